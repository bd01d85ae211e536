"""AP and AR of YouTube-VIS and OVIS, as the official evaluator computes them.

In:     Dataset        the ground truth (youtube_vis_data.py)
        results        a list of tracks as the evaluation server takes it (youtube_vis_results.py)
Out:    Scores         twelve numbers over all categories, and the same for each; OVIS: split by level of occlusion
State:  none
Limits: files as in youtube_vis_data.py; of a batch of videos no more than masks and IoU of tracks is held
Source: evaluation specification, "YouTube-VIS AP and AR"; numbers in square brackets are its rules. Followed to the
        letter but for the plain faults of the official program, which `official_faults=True` brings back: it refuses
        an empty list of results [11], takes a match with the annotation of id 0 for none, and where annotations share
        an id, puts the last of them in the place of each [13].

The way of a result: checked (youtube_vis_results.py), measured (youtube_vis_runs.py), its IoU with the objects of its
video and category (youtube_vis_iou.py), matched (youtube_vis_match.py), counted (youtube_vis_curves.py).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np

from operators.cpus import usable_cpus
from operators.errors import ConfigError, DatasetError
from operators.json_files import read_json
from operators.processes import in_processes
from operators.score_files import check_writable, write_scores
from operators.youtube_vis_curves import LEVEL_METRICS, METRICS, Curves, curves_of
from operators.youtube_vis_data import Annotation, Dataset, Video, read_dataset
from operators.youtube_vis_entries import distinct_names
from operators.youtube_vis_match import AREAS, LEVELS, CategoryMatch, Job, VideoMatch, match_videos, occlusion_level
from operators.youtube_vis_results import Result, parse_results, refuse_annotations

__all__ = ["METRICS", "Scores", "evaluate", "main_evaluate", "short_name"]

MASKS_PER_WORKER = 1_000_000
"""Entries of masks that make a further process pay: one takes 8 us here, 2 us to send, and a process 0.5 s to start.
On two CPUs that a training shared, two processes took 4.9 s for 480,000 entries where one took 4.3 s."""

MASKS_PER_BATCH = 2_000
"""Entries of masks of videos that are matched together: enough that each costs little, few enough that a bar moves."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Scores:
    """What an evaluation gives. Every number is 0..1, or -1 where there is nothing to evaluate."""

    overall: dict[str, float]
    """The twelve METRICS: means over the categories that have objects."""
    per_category: dict[str, dict[str, float]]
    """Category name -> METRICS, in the order of the category ids; with its id where two categories share a name."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the input, in sentences: results that cannot count, and why."""
    occlusion: dict[str, dict[str, float]] = field(default_factory=dict)
    """Level -> LEVEL_METRICS and "objects", how many there are; {} where the annotations have no such labels."""
    precision: np.ndarray = field(default_factory=lambda: np.zeros((0, 10, 101)), repr=False)
    """(categories, IoU thresholds, 101 recalls) precision at all areas; -1 for categories without objects."""

    def __getitem__(self, metric: str) -> float:
        return self.overall[metric]

    def as_json(self) -> dict:
        occlusion = {"occlusion": self.occlusion} if self.occlusion else {}
        return {**self.overall, "per_category": self.per_category, **occlusion, "notes": list(self.notes)}


def evaluate(
    dataset: Dataset,
    results: list[dict],
    *,
    official_faults: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """AP and AR of a list of results. No results: 0 in every category that has objects, else -1.

    `workers` processes share the videos; by default one, and more only where there is so much to do that they pay.
    `progress` is called with videos done and videos in all. Raises DatasetError naming the result for one that is
    malformed, damaged, or of a video that the dataset does not have; ConfigError for `workers` below 1.
    """
    tracks = parse_results(results)
    if official_faults and not tracks:
        raise DatasetError("the list of results is empty, which the official evaluator refuses.")
    for track in tracks:
        if track.video_id not in dataset.video_of:
            raise DatasetError(f"{track.where}: {dataset.path} has no video {track.video_id}. Another split's results?")
    levels = any(annotation.occlusion is not None for annotation in dataset.annotations)
    jobs = _jobs(dataset, tracks, levels, official_faults)
    matches: dict[int, list[CategoryMatch]] = {category.id: [] for category in dataset.categories}
    odd_results = odd_objects = 0
    for done, found in enumerate(_in_order(jobs, workers), start=1):            # videos by ascending id [5]
        odd_results, odd_objects = odd_results + found.results_of_other_size, odd_objects + found.objects_of_other_size
        for match in found.categories:
            if match.category_id in matches:                                    # what is of others is dropped [10]
                matches[match.category_id].append(match)
        if progress:
            progress(done, len(jobs))
    num_classes = len(AREAS) + len(LEVELS) * levels
    curves = [curves_of(matches[category.id], num_classes) for category in dataset.categories]
    return _scores(dataset, curves, _notes(dataset, tracks, levels, odd_results, odd_objects))


def _jobs(dataset: Dataset, tracks: Iterable[Result], levels: bool, official_faults: bool) -> list[Job]:
    """What there is to do, a job for each video by ascending id."""
    found: dict[int, list[Result]] = {video.id: [] for video in dataset.videos}
    for track in tracks:
        found[track.video_id].append(track)
    objects = _objects_with_faults(dataset) if official_faults else dataset.annotations_of
    return [
        Job(video, str(dataset.path), objects[video.id], found[video.id], levels, official_faults)
        for video in dataset.videos
    ]


def _objects_with_faults(dataset: Dataset) -> dict[int, list[Annotation]]:
    """Video id -> annotations, each replaced by the last one with its id, wherever that belongs [13]."""
    last = {annotation.id: annotation for annotation in dataset.annotations}
    found: dict[int, list[Annotation]] = {video.id: [] for video in dataset.videos}
    for video in dataset.videos:
        for annotation in dataset.annotations_of[video.id]:
            if annotation.id not in dataset.superseded:
                found[last[annotation.id].video_id].append(last[annotation.id])
    return found


def _in_order(jobs: list[Job], workers: int | None) -> Iterator[VideoMatch]:
    """The matches of each job in order, found in this process or in `workers` fresh ones."""
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; expected at least 1.")
    num_masks = sum(job.num_masks for job in jobs)
    if workers is None:
        workers = min(usable_cpus(), 1 + num_masks // MASKS_PER_WORKER)
    batches = _batches(jobs, min(MASKS_PER_BATCH, num_masks // (4 * workers) + 1) if workers > 1 else MASKS_PER_BATCH)
    workers = min(workers, len(batches))
    if workers <= 1:
        yield from chain.from_iterable(map(match_videos, batches))
        return
    # without garbage collection: there are no cycles; looking for them makes the masks arrive at a third of the speed
    results = in_processes(match_videos, batches, workers, initializer=gc.disable)
    try:
        yield from chain.from_iterable(results)
    except BrokenProcessPool as error:
        raise DatasetError("a process that matched videos was ended, most likely for want of memory; "
                           "use fewer workers.") from error  # fmt: skip
    finally:
        results.close()


def _batches(jobs: list[Job], size: int = MASKS_PER_BATCH) -> list[list[Job]]:
    """The jobs in order, so many to a batch that it has about `size` entries of masks."""
    batches: list[list[Job]] = []
    room = 0
    for job in jobs:
        if not batches or job.num_masks > room:
            batches.append([])
            room = size
        batches[-1].append(job)
        room -= job.num_masks
    return batches


def _scores(dataset: Dataset, curves: list[Curves], notes: tuple[str, ...]) -> Scores:
    rows = [found.metrics() for found in curves]
    by_level = [found.level_metrics() for found in curves]
    occlusion = {
        level: _means(LEVEL_METRICS, [row[level] for row in by_level])
        | {"objects": sum(int(found.num_objects[len(AREAS) + i]) for found in curves)}
        for i, level in enumerate(LEVELS)
        if by_level and by_level[0]
    }
    names = distinct_names(dataset.categories).values()
    precision = np.array([found.precision[0] for found in curves]).reshape(len(curves), 10, 101)
    return Scores(_means(METRICS, rows), dict(zip(names, rows, strict=True)), notes, occlusion, precision)


def _means(metrics: tuple[str, ...], rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each metric over the categories that have it [10]."""
    kept = {metric: [row[metric] for row in rows if row[metric] > -1] for metric in metrics}
    return {metric: float(np.mean(values)) if values else -1.0 for metric, values in kept.items()}


def _notes(
    dataset: Dataset, tracks: list[Result], levels: bool, odd_results: int, odd_objects: int
) -> tuple[str, ...]:
    unknown = sum(track.category_id not in dataset.labels for track in tracks)
    videos = dataset.video_of
    result_length = sum(_has_other_length(track, videos[track.video_id]) for track in tracks)
    object_length = sum(_has_other_length(track, videos[track.video_id]) for track in dataset.annotations)
    unlabelled = sum(occlusion_level(annotation.occlusion) is None for annotation in dataset.annotations) * levels
    return tuple(f"{count} {text}" for count, text in (
        (dataset.num_left_out, "annotations are of categories not listed: left out."),
        (dataset.num_repeated, "annotations have an id that one before them has: each counts for itself."),
        (unlabelled, "annotations have no label of occlusion: they count in none of its levels."),
        (object_length, "annotations have more or fewer frames than their video: frames count to the shorter end."),
        (odd_objects, "annotations have masks of another size than their video."),
        (unknown, "results are of categories not listed: left out."),
        (result_length, "results have more or fewer frames than their video: frames count to the shorter end."),
        (odd_results, "results have masks of another size than their video: those frames match nothing."),
    ) if count)  # fmt: skip


def _has_other_length(track: Annotation | Result, video: Video) -> bool:
    return video.length > 0 and len(track.segmentations) != video.length


def short_name(name: str, limit: int) -> str:
    """A name for tables and pictures: what cannot be printed becomes ?, what goes beyond `limit` an ellipsis."""
    name = "".join(sign if sign.isprintable() else "?" for sign in name[: limit + 1])
    return name if len(name) <= limit else name[: limit - 1] + "…"


def main_evaluate(
    gt_path: Path | str,
    results_path: Path | str,
    json_out: Path | str | None = None,
    *,
    plots: Path | str | None = None,
    official_faults: bool = False,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Scores:
    """`maskstream evaluate youtube-vis`: read both files, evaluate, write `json_out` and `plots` if asked to.

    The JSON holds the METRICS, "per_category", "notes", and "occlusion" where there is such; `plots` is a folder for
    the pictures of youtube_vis_plots.py. Raises DatasetError for a file that cannot be used, and ConfigError before any
    work where `json_out` or `plots` cannot be written.
    """
    _check_outputs(json_out, plots)
    dataset = read_dataset(gt_path, for_evaluation=True)
    if not dataset.annotated:
        raise DatasetError(f"{gt_path}: has no annotations, as the validation and test files of YouTube-VIS; "
                           "only its evaluation server can score results for it.")  # fmt: skip
    results = read_json(Path(results_path), "a list of YouTube-VIS results", constants=True)
    refuse_annotations(results, results_path)
    try:
        scores = evaluate(dataset, results, official_faults=official_faults, workers=workers, progress=progress)
    except DatasetError as error:
        raise DatasetError(f"{results_path} against {gt_path}: {error}") from error
    if json_out is not None:
        write_scores(json_out, scores.as_json())
    if plots is not None:
        from operators.youtube_vis_plots import write_plots  # matplotlib takes a second to load

        try:
            write_plots(scores, Path(plots))
        except OSError as error:
            raise ConfigError(f"{error.filename or plots}: cannot be written ({error.strerror}).") from error
    return scores


def _check_outputs(json_out: Path | str | None, plots: Path | str | None) -> None:
    check_writable(json_out)
    if plots is not None:
        try:
            Path(plots).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{plots}: cannot be made ({error.strerror}); expected a folder for plots.") from error
