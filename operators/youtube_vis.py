"""AP and AR of YouTube-VIS and OVIS, as the official evaluator computes them.

In:     Dataset        the ground truth (youtube_vis_data.py)
        results        a list of tracks as the evaluation server takes it (youtube_vis_results.py)
Out:    Scores         twelve numbers over all categories, and the same for each
State:  none
Source: evaluation specification, "YouTube-VIS AP and AR"; numbers in square brackets below are its rules. Followed to
        the letter but for two plain faults of the official program, which `official_faults=True` brings back: it
        refuses an empty list of results [11], and takes a match with the annotation of id 0 for none [13].

Letters: D detections and G objects of one video and category · T frames · A area classes · I IoU thresholds ·
R = 101 recall points · E detections of a category over all videos
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask

from operators.errors import ConfigError, DatasetError
from operators.youtube_vis_data import Annotation, Dataset, Video, read_dataset
from operators.youtube_vis_results import Result, parse_results, read_results
from operators.youtube_vis_rle import MaskTrack

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)                        # (I,); the sixth is exactly 0.75
RECALLS = np.linspace(0.0, 1.0, 101)                               # (R,)
AREAS = np.array([[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]])    # (A, 2): all, s, m, l; both ends in [4]
MAX_DETECTIONS = 100

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

    def __getitem__(self, metric: str) -> float:
        return self.overall[metric]

    def as_json(self) -> dict:
        return {**self.overall, "per_category": self.per_category, "notes": list(self.notes)}


@dataclass(frozen=True)
class Matching:
    """What came of the detections of one video and category, best score first.

    Ignored detections count neither as right nor as wrong.
    """

    scores: np.ndarray
    """(D,) float64"""
    matched: np.ndarray
    """(A, I, D) bool"""
    ignored: np.ndarray
    """(A, I, D) bool"""
    num_objects: np.ndarray
    """(A,) int64, objects to be found: crowds and those of another area class are not among them."""


def evaluate(
    dataset: Dataset, results: list[dict], *, official_faults: bool = False, progress: Progress | None = None
) -> Scores:
    """AP and AR of a list of results. No results: 0 in every category that has objects, else -1.

    `progress` is called with videos done and videos in all. Raises DatasetError naming the result for one that is
    malformed, damaged, or of a video that the dataset does not have.
    """
    tracks = parse_results(results)
    if official_faults and not tracks:
        raise DatasetError("the list of results is empty, which the official evaluator refuses.")
    for track in tracks:
        if track.video_id not in dataset.video_of:
            raise DatasetError(f"{track.where}: {dataset.path} has no video {track.video_id}. Another split's results?")
    found: dict[tuple[int, int], list[Result]] = defaultdict(list)
    for track in tracks:
        found[track.video_id, track.category_id].append(track)
    matchings: dict[int, list[Matching]] = defaultdict(list)
    for done, video in enumerate(dataset.videos, start=1):                   # by ascending id [5]
        objects: dict[int, list[Annotation]] = defaultdict(list)
        for annotation in dataset.annotations_of[video.id]:
            objects[annotation.category_id].append(annotation)
        for category in dataset.categories:                                 # what is of others is dropped [10]
            here = found.get((video.id, category.id), [])
            if here or category.id in objects:
                matching = match_video(dataset, objects[category.id], here, official_faults=official_faults)
                matchings[category.id].append(matching)
        if progress:
            progress(done, len(dataset.videos))
    per_category = {name: category_scores(matchings[c]) for c, name in _names(dataset).items()}
    return Scores(_means(list(per_category.values())), per_category, _notes(dataset, tracks))


def match_video(
    dataset: Dataset, objects: Sequence[Annotation], results: Sequence[Result], *, official_faults: bool = False
) -> Matching:
    """Match the detections of one video and category with its objects, for all area classes and thresholds."""
    scores = np.array([result.score for result in results], dtype=np.float64)
    order = np.argsort(-scores, kind="stable")[:MAX_DETECTIONS]                                      # [5]
    detections = [results[index].track() for index in order]
    areas = np.array([_mean_area(track.areas) for track in detections])                             # (D,)
    crowd = np.array([annotation.iscrowd for annotation in objects], dtype=bool)                     # (G,)
    object_areas = np.array([_mean_area([area or 0 for area in a.areas]) for a in objects])          # (G,)
    object_ignored = crowd | _outside(object_areas)                                                  # (A, G)
    if objects and detections:
        ious = track_ious(detections, [MaskTrack.of(dataset.masks(annotation)) for annotation in objects])
        partner = match(ious, object_ignored, crowd)                                                 # (A, I, D)
    else:
        partner = np.full((len(AREAS), len(IOU_THRESHOLDS), len(detections)), -1)
    matched, with_ignored = partner >= 0, np.zeros(partner.shape, dtype=bool)
    if objects:
        rows = np.arange(len(AREAS))[:, None, None]
        with_ignored = matched & object_ignored[rows, partner]
        if official_faults:
            matched &= np.array([annotation.id != 0 for annotation in objects])[partner]             # [13]
    ignored = with_ignored | (~matched & _outside(areas)[:, None, :])                               # [8]
    return Matching(scores[order], matched, ignored, (~object_ignored).sum(axis=1))


def track_ious(detections: Sequence[MaskTrack], objects: Sequence[MaskTrack]) -> np.ndarray:
    """Pixels in common over pixels in either, both summed over the frames [1, 2, 3].  -> (D, G) float64; 0 / 0 is 0

    Frames count up to the end of the shorter track; a frame where the two masks differ in size does not count.
    """
    common = np.zeros((len(detections), len(objects)), dtype=np.int64)
    apart = np.zeros_like(common)       # pixels of frames where the two masks differ in size
    num_frames = min(max((len(track.masks) for track in side), default=0) for side in (detections, objects))
    for frame in range(num_frames):
        rows = [d for d, track in enumerate(detections) if frame < len(track.masks) and track.masks[frame] is not None]
        cols = [g for g, track in enumerate(objects) if frame < len(track.masks) and track.masks[frame] is not None]
        if not rows or not cols:
            continue
        ious = coco_mask.iou(
            [detections[d].masks[frame] for d in rows], [objects[g].masks[frame] for g in cols], [False] * len(cols)
        )                                                                                            # (rows, cols)
        row_areas = np.array([detections[d].areas[frame] for d in rows])[:, None]
        both = row_areas + np.array([objects[g].areas[frame] for g in cols])
        apart[np.ix_(rows, cols)] += np.where(ious < 0, both, 0)         # COCO's sign for masks of different size
        ious = np.maximum(ious, 0)
        # iou = i / (both - i) in double: solved for i the error stays under 1e-6 pixels, so rounding gives the count
        common[np.ix_(rows, cols)] += np.rint(ious * both / (1 + ious)).astype(np.int64)
    either = _area_until(detections, objects) + _area_until(objects, detections).T - common - apart
    return np.divide(common, either, out=np.zeros(common.shape), where=either > 0)


def match(ious: np.ndarray, object_ignored: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Each detection's object, detections in their order [6, 7].  (D, G), (A, G), (G,) -> (A, I, D) int64, -1 for none

    An object is taken once, a crowd any number of times. The highest IoU that reaches the threshold wins, at equal IoU
    the later object; one that is ignored only where no other fits.
    """
    num_detections, num_objects = ious.shape
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)[:, None]                              # (I, 1)
    partner = np.full((len(object_ignored), len(thresholds), num_detections), -1)
    free = np.ones((len(object_ignored), len(thresholds), num_objects), dtype=bool)          # (A, I, G)
    # whole-number ranks: a bonus added to the IoU itself would round away small differences
    bonus = np.where(object_ignored, 0, num_objects)[:, None, :]                             # (A, 1, G)
    for d in np.flatnonzero((ious >= thresholds[0]).any(axis=1)):
        rank = np.empty(num_objects, dtype=np.int64)
        rank[np.argsort(ious[d], kind="stable")] = np.arange(num_objects)
        value = np.where(free & (ious[d] >= thresholds), rank + bonus, -1)                   # (A, I, G)
        best = value.argmax(axis=2)                                                          # (A, I)
        area, threshold = np.nonzero(value.max(axis=2) >= 0)
        partner[area, threshold, d] = best[area, threshold]
        free[area, threshold, best[area, threshold]] = crowd[best[area, threshold]]
    return partner


def category_scores(matchings: Sequence[Matching]) -> dict[str, float]:
    """The METRICS of one category from its videos in ascending order of their ids; -1 without objects."""
    precision, ar100 = precision_recall(matchings, 0, 100)                       # (I, R), (I,)
    scores = {"AP": precision.mean(), "AP50": precision[0].mean(), "AP75": precision[5].mean()}
    by_area = {letter: precision_recall(matchings, area, 100) for area, letter in enumerate("sml", start=1)}
    scores |= {f"AP{letter}": curves[0].mean() for letter, curves in by_area.items()}
    scores |= {f"AR{limit}": precision_recall(matchings, 0, limit)[1].mean() for limit in (1, 10)}
    scores |= {"AR100": ar100.mean()} | {f"AR{letter}": curves[1].mean() for letter, curves in by_area.items()}
    return {metric: float(scores[metric]) for metric in METRICS}


def precision_recall(matchings: Sequence[Matching], area: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision at RECALLS (I, R) and highest recall (I,), of `limit` detections a video [9]; -1 without objects."""
    num_objects = sum(int(matching.num_objects[area]) for matching in matchings)
    shape = (len(IOU_THRESHOLDS), len(RECALLS))
    if num_objects == 0:
        return np.full(shape, -1.0), np.full(shape[0], -1.0)
    order = np.argsort(-np.concatenate([m.scores[:limit] for m in matchings]), kind="stable")
    if len(order) == 0:
        return np.zeros(shape), np.zeros(shape[0])
    matched = np.concatenate([m.matched[area, :, :limit] for m in matchings], axis=1)[:, order]      # (I, E)
    counts = ~np.concatenate([m.ignored[area, :, :limit] for m in matchings], axis=1)[:, order]      # (I, E)
    right = np.cumsum(matched & counts, axis=1).astype(np.float64)
    wrong = np.cumsum(~matched & counts, axis=1).astype(np.float64)
    recall = right / num_objects                                                                    # (I, E)
    precision = right / (wrong + right + np.spacing(1))
    precision = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    precision = np.pad(precision, ((0, 0), (0, 1)))                # 0 past the last recall
    at = np.stack([np.searchsorted(row, RECALLS, side="left") for row in recall])                    # (I, R)
    return np.take_along_axis(precision, at, axis=1), recall[:, -1]


def main_evaluate(
    gt_path: Path | str,
    results_path: Path | str,
    json_out: Path | str | None = None,
    *,
    official_faults: bool = False,
    progress: Progress | None = None,
) -> Scores:
    """`maskstream evaluate youtube-vis`: read both files, evaluate, write `json_out` if asked to.

    The JSON holds the METRICS, "per_category" and "notes". Raises DatasetError for a file that cannot be used, and
    ConfigError before any work where `json_out` cannot be written.
    """
    if json_out is not None and (not Path(json_out).resolve().parent.is_dir() or Path(json_out).is_dir()):
        raise ConfigError(f"{json_out}: cannot be written; expected the name of a file in a folder that exists.")
    dataset = read_dataset(gt_path, for_evaluation=True)
    if not dataset.annotated:
        raise DatasetError(f"{gt_path}: has no annotations, as the validation and test files of YouTube-VIS; "
                           "only its evaluation server can score results for it.")  # fmt: skip
    results = read_results(results_path)
    try:
        scores = evaluate(dataset, results, official_faults=official_faults, progress=progress)
    except DatasetError as error:
        raise DatasetError(f"{results_path} against {gt_path}: {error}") from error
    if json_out is not None:
        try:
            Path(json_out).write_text(json.dumps(scores.as_json(), indent=2) + "\n")
        except OSError as error:
            raise ConfigError(f"{json_out}: cannot be written ({error.strerror}).") from error
    return scores


def format_table(scores: Scores) -> str:
    """The scores as lines of text, categories without objects summed up in one; '-' stands for -1."""
    evaluated = {name: row for name, row in scores.per_category.items() if row["AP"] >= 0}
    width = max(len(name) for name in ["all categories", *evaluated])
    lines = ["category".ljust(width) + "".join(metric.rjust(7) for metric in METRICS)]
    lines.append("-" * len(lines[0]))
    for name, row in [*evaluated.items(), ("all categories", scores.overall)]:
        cells = ("-" if row[metric] < 0 else f"{row[metric]:.3f}" for metric in METRICS)
        lines.append(name.ljust(width) + "".join(cell.rjust(7) for cell in cells))
    left = len(scores.per_category) - len(evaluated)
    lines += [f"{left} of {len(scores.per_category)} categories have no objects and are in no mean."] if left else []
    return "\n".join([*lines, *scores.notes])


def _mean_area(areas: Sequence[float] | np.ndarray) -> float:
    """The mean over the frames that have any [4]; 0 where none has."""
    areas = np.asarray(areas, dtype=np.float64)
    return float(areas[areas != 0].mean()) if areas.any() else 0.0


def _outside(areas: np.ndarray) -> np.ndarray:
    """(N,) -> (A, N) bool: not of this area class."""
    return (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])


def _area_until(tracks: Sequence[MaskTrack], others: Sequence[MaskTrack]) -> np.ndarray:
    """Pixels of each track before it or the other one ends.  -> (len(tracks), len(others)) int64"""
    sums = [np.concatenate([[0], np.cumsum(track.areas)]) for track in tracks]
    return np.array([[row[min(len(row) - 1, len(other.masks))] for other in others] for row in sums])


def _means(rows: list[dict[str, float]]) -> dict[str, float]:
    kept = {metric: [row[metric] for row in rows if row[metric] > -1] for metric in METRICS}
    return {metric: float(np.mean(values)) if values else -1.0 for metric, values in kept.items()}


def _names(dataset: Dataset) -> dict[int, str]:
    names = [category.name for category in dataset.categories]
    return {c.id: c.name if names.count(c.name) == 1 else f"{c.name} ({c.id})" for c in dataset.categories}


def _notes(dataset: Dataset, tracks: Sequence[Result]) -> tuple[str, ...]:
    unknown = sum(track.category_id not in dataset.labels for track in tracks)
    known = [(track, dataset.video_of[track.video_id]) for track in tracks]
    length = sum(len(track.segmentations) != video.length for track, video in known)
    size = sum(_has_other_size(track, video) for track, video in known)
    return tuple(note for count, note in (
        (dataset.num_left_out, f"{dataset.num_left_out} annotations are of categories not listed: left out."),
        (unknown, f"{unknown} results are of categories not listed: left out."),
        (length, f"{length} results have more or fewer frames than their video: frames count to the shorter end."),
        (size, f"{size} results have masks of another size than their video: those frames match nothing."),
    ) if count)  # fmt: skip


def _has_other_size(track: Result, video: Video) -> bool:
    return any(entry and entry["size"] != [video.height, video.width] for entry in track.segmentations)
