"""HOTA, IDF1, MOTA and ID switches of mask tracks, by TrackEval.

In:     Dataset        the ground truth (youtube_vis_data.py)
        TracksOf       the tracks of each video (mot_data.py)
Out:    MotScores      for all categories at once, for each, their mean, and for each video
State:  none; the masks of one video are in memory at a time
Limits: those of the files. The time of TrackEval grows with frames x thresholds, some 1 ms a frame
Source: TrackEval's metric classes HOTA, CLEAR and Identity, called with data made here: it has no reader for masks of
        YouTube-VIS that overlap. J. Luiten et al., "HOTA: A Higher Order Metric for Evaluating Multi-Object
        Tracking", IJCV 2020; P. Voigtlaender et al., "MOTS", CVPR 2019, for masks and regions to be ignored.

The rules:

- An object or track is in a frame if it has pixels there: null and empty masks are no detections, neither found, missed
  nor wrong. Frames of a track past the end of its video do not count. A mask of another size has IoU 0 with all.
- Similarity is the plain IoU of two masks in a frame. Masks may overlap, which MOTS forbids: each counts for itself.
- Class-agnostic: every track may match every object. Per category: tracks of a category match its objects alone, and
  a track of a wrong category is missing in one category and wrong in another.
- Crowds are regions to be ignored, as in MOTS: a detection that no object takes (best total of IoUs of at least
  0.5) and that lies by more than half in the frame's crowds (per category: those of the category) is left out.
- Scores say only who takes part: tracks below `min_score` do not.
- Videos are put together as TrackEval does, by sums of counts, and HOTA's association by its matches. The mean over
  categories leaves out those with neither objects nor tracks.

TrackEval counts ID switches against the last track that an object had, however long ago, but keeps to the old track in
matching only from one frame to the next; id_switches.py keeps to it over gaps too, and so may find fewer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from scipy.optimize import linear_sum_assignment
from trackeval.metrics import CLEAR, HOTA, Identity

from operators.errors import DatasetError
from operators.id_switches import frame_ious
from operators.mot_data import TracksOf, open_results
from operators.score_files import check_writable, write_scores
from operators.youtube_vis_data import Dataset, Video, read_dataset
from operators.youtube_vis_entries import distinct_names
from operators.youtube_vis_rle import MaskTrack

METRICS = (
    "HOTA", "DetA", "AssA", "DetRe", "DetPr", "AssRe", "AssPr", "LocA", "IDF1", "IDR", "IDP", "MOTA", "MOTP", "sMOTA",
    "IDSW", "Frag", "MT", "PT", "ML", "CLR_TP", "CLR_FN", "CLR_FP",
)  # fmt: skip
"""TrackEval's names. Up to sMOTA shares of 1 (MOTA and sMOTA may be negative), then counts."""
COUNTS = METRICS[METRICS.index("IDSW") :]
IN_TABLE = ("HOTA", "DetA", "AssA", "LocA", "IDF1", "MOTA", "MOTP", "IDSW", "Frag", "CLR_TP", "CLR_FN", "CLR_FP")
MIN_IOU = 0.5
"""Of a pair that CLEAR and Identity match; HOTA goes through 0.05 to 0.95."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class MotScores:
    """What an evaluation gives: METRICS each; all NaN where there are neither objects nor tracks."""

    agnostic: dict[str, float]
    """All categories taken as one."""
    averaged: dict[str, float]
    """Means over the categories, each matched by itself; counts are sums."""
    per_category: dict[str, dict[str, float]]
    """Category name -> METRICS, of categories with objects or tracks; with its id where two share a name."""
    per_video: dict[str, dict[str, float]]
    """Video name -> class-agnostic METRICS; with its id where two share a name."""
    notes: tuple[str, ...] = ()
    """What a reader should know of the input, in sentences."""

    def as_json(self) -> dict:
        """The class-agnostic METRICS, `class_averaged`, `per_category`, `per_video` and `notes`."""
        return {**self.agnostic, "class_averaged": self.averaged, "per_category": self.per_category,
                "per_video": self.per_video, "notes": list(self.notes)}  # fmt: skip


@dataclass(frozen=True)
class VideoPairs:
    """One video, reduced to numbers: G objects and D tracks in T frames. Crowds are not among the objects."""

    object_categories: np.ndarray
    """(G,) int64"""
    track_categories: np.ndarray
    """(D,) int64"""
    objects_in: np.ndarray
    """(T, G) bool: has pixels."""
    tracks_in: np.ndarray
    """(T, D) bool"""
    ious: list[np.ndarray]
    """T matrices float64: a row for each object in the frame, a column for each track in it."""
    in_crowd: dict[int | None, np.ndarray]
    """Category, None for all -> (T, D) bool: more than half of the track's pixels are in crowds. No key without any."""

    @property
    def categories(self) -> set[int]:
        """Those that anything in a frame has, crowds apart."""
        objects, tracks = self.objects_in.any(axis=0), self.tracks_in.any(axis=0)
        return {*self.object_categories[objects].tolist(), *self.track_categories[tracks].tolist()}


def evaluate(
    dataset: Dataset, tracks_of: TracksOf, *, min_score: float = 0.0, progress: Progress | None = None
) -> MotScores:
    """Evaluate all videos. `progress` is called with videos done and videos in all.

    Raises DatasetError naming annotation or result where a mask is damaged.
    """
    metrics = {type(m).__name__: m for m in (HOTA(), CLEAR(_settings()), Identity(_settings()))}
    found: dict[int | None, dict[str, dict]] = defaultdict(lambda: defaultdict(dict))   # category, metric, video
    names = distinct_names(dataset.videos)
    left_out = 0
    for done, video in enumerate(dataset.videos, start=1):
        pairs = pair_video(dataset, video, tracks_of, min_score)
        left_out += int((~np.isin(pairs.track_categories, list(dataset.labels))).sum())
        for category in [None, *sorted(pairs.categories & set(dataset.labels))]:
            data = sequence_data(pairs, category)
            for name, metric in metrics.items():
                found[category][name][names[video.id]] = metric.eval_sequence(data)
        if progress:
            progress(done, len(dataset.videos))
    categories = distinct_names(dataset.categories)
    combined = {category: {name: metric.combine_sequences(found[category][name]) for name, metric in metrics.items()}
                for category in found}                                                  # fmt: skip
    return MotScores(
        agnostic=flat_scores(combined[None]) if None in combined else _nothing(),
        averaged=_averaged(metrics, {c: results for c, results in combined.items() if c is not None}),
        per_category={categories[c]: flat_scores(combined[c]) for c in categories if c in combined},
        per_video={name: flat_scores({metric: of[name] for metric, of in found[None].items()})
                   for name in names.values()},
        notes=_notes(dataset, left_out, len(combined) - 1),
    )  # fmt: skip


def pair_video(dataset: Dataset, video: Video, tracks_of: TracksOf, min_score: float) -> VideoPairs:
    """Every IoU of a video, and who is in which frame. No objects or no tracks give arrays of that length."""
    annotations = dataset.annotations_of[video.id]
    objects, crowds = ([a for a in annotations if a.iscrowd == crowd] for crowd in (False, True))
    results = [result for result in tracks_of(video) if result.score >= min_score]
    truths = [MaskTrack.of(dataset.masks(annotation)) for annotation in objects]
    tracks = [result.track() for result in results]
    objects_in, tracks_in = _presence(truths, video.length), _presence(tracks, video.length)
    ious = [frame_ious(truths, tracks, t)[np.ix_(objects_in[t], tracks_in[t])] for t in range(video.length)]
    in_crowd = {}
    for category in {None, *(crowd.category_id for crowd in crowds)} if crowds else ():
        regions = [MaskTrack.of(dataset.masks(c)) for c in crowds if category in (None, c.category_id)]
        in_crowd[category] = _in_crowd(regions, tracks, video.length)
    return VideoPairs(
        np.array([annotation.category_id for annotation in objects], dtype=np.int64),
        np.array([result.category_id for result in results], dtype=np.int64),
        objects_in, tracks_in, ious, in_crowd,
    )  # fmt: skip


def sequence_data(pairs: VideoPairs, category: int | None) -> dict:
    """What TrackEval's metrics take: ids that count from 0 and do occur, and similarities, frame by frame.

    `category` None takes all objects and tracks.
    """
    objects, tracks = pairs.objects_in, pairs.tracks_in & ~_ignored(pairs, category)             # (T, G), (T, D)
    if category is not None:
        objects = objects & (pairs.object_categories == category)
        tracks = tracks & (pairs.track_categories == category)
    object_ids, num_objects = _numbered(objects)
    track_ids, num_tracks = _numbered(tracks)
    frames = range(len(objects))
    return {
        "num_timesteps": len(objects),
        "num_gt_ids": num_objects,
        "num_tracker_ids": num_tracks,
        "num_gt_dets": int(objects.sum()),
        "num_tracker_dets": int(tracks.sum()),
        "gt_ids": [object_ids[objects[t]] for t in frames],
        "tracker_ids": [track_ids[tracks[t]] for t in frames],
        "similarity_scores": [_part(pairs, t, objects[t], tracks[t]) for t in frames],
    }


def flat_scores(results: dict[str, dict]) -> dict[str, float]:
    """METRICS of what HOTA, CLEAR and Identity gave; HOTA's are means over its thresholds. NaN where all is empty."""
    values = {name: value for result in results.values() for name, value in result.items()}
    if values["CLR_TP"] + values["CLR_FN"] + values["CLR_FP"] == 0:
        return _nothing()
    scores = {metric: float(np.mean(values[metric])) for metric in METRICS}
    return scores | {metric: int(scores[metric]) for metric in COUNTS}


def main_evaluate(
    truth: Path | str,
    results: Path | str,
    json_out: Path | str | None = None,
    *,
    min_score: float = 0.0,
    progress: Progress | None = None,
) -> MotScores:
    """`maskstream evaluate mot`: read, evaluate, write `json_out` if asked to (NaN as null).

    Raises DatasetError for files that cannot be used, and ConfigError before any work where `json_out` cannot be
    written.
    """
    check_writable(json_out)
    dataset = read_dataset(truth, for_evaluation=True)
    if not dataset.annotated:
        raise DatasetError(f"{truth}: has no annotations, as the validation and test files of YouTube-VIS; there is "
                           "nothing to compare tracks with.")  # fmt: skip
    scores = evaluate(dataset, open_results(results, dataset), min_score=min_score, progress=progress)
    if json_out is not None:
        write_scores(json_out, scores.as_json())
    return scores


def format_table(scores: MotScores) -> str:
    """The scores as lines of text: categories, their mean, and all taken as one; '-' stands for NaN."""
    rows = [*scores.per_category.items(), ("mean of categories", scores.averaged), ("class-agnostic", scores.agnostic)]
    width = max(len(name) for name, _ in rows)
    table = [IN_TABLE, *([_cell(metric, row[metric]) for metric in IN_TABLE] for _, row in rows)]
    wide = [max(8, 1 + max(map(len, column))) for column in zip(*table, strict=True)]   # MOTA may be -60.0000 and less
    lines = [
        name.ljust(width) + "".join(cell.rjust(w) for cell, w in zip(cells, wide, strict=True))
        for name, cells in zip(["category", *(name for name, _ in rows)], table, strict=True)
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:], *scores.notes])


def _settings() -> dict:
    return {"THRESHOLD": MIN_IOU, "PRINT_CONFIG": False}


def _presence(tracks: Sequence[MaskTrack], num_frames: int) -> np.ndarray:
    present = np.zeros((num_frames, len(tracks)), dtype=bool)
    for number, track in enumerate(tracks):
        areas = track.areas[:num_frames]
        present[: len(areas), number] = areas > 0
    return present


def _in_crowd(regions: Sequence[MaskTrack], tracks: Sequence[MaskTrack], num_frames: int) -> np.ndarray:
    """Does more than half of a track's mask lie in the union of the regions?  -> (T, D) bool"""
    inside = np.zeros((num_frames, len(tracks)), dtype=bool)
    for frame in range(num_frames):
        masks = [region.masks[frame] for region in regions if region.areas[frame]]
        columns = [d for d, track in enumerate(tracks) if frame < len(track.masks) and track.areas[frame]]
        if masks and columns:
            # with a crowd on the right COCO divides by the area on the left
            shares = coco_mask.iou([tracks[d].masks[frame] for d in columns], [coco_mask.merge(masks)], [True])
            inside[frame, columns] = shares[:, 0] > 0.5
    return inside


def _ignored(pairs: VideoPairs, category: int | None) -> np.ndarray:
    """Detections in crowds that no object takes.  -> (T, D) bool"""
    if category not in pairs.in_crowd:
        return np.zeros_like(pairs.tracks_in)
    ignored = pairs.in_crowd[category].copy()
    of_objects = (pairs.object_categories == category) | (category is None)                      # (G,)
    of_tracks = (pairs.track_categories == category) | (category is None)                        # (D,)
    for t in np.flatnonzero(ignored.any(axis=1)):
        tracks = pairs.tracks_in[t] & of_tracks
        ious = _part(pairs, t, pairs.objects_in[t] & of_objects, tracks)
        rows, columns = linear_sum_assignment(np.where(ious >= MIN_IOU, ious, -1e4), maximize=True)
        ignored[t, np.flatnonzero(tracks)[columns[ious[rows, columns] >= MIN_IOU]]] = False
    return ignored


def _part(pairs: VideoPairs, frame: int, objects: np.ndarray, tracks: np.ndarray) -> np.ndarray:
    """The IoUs of some of the objects (G,) and tracks (D,) bool in a frame."""
    return pairs.ious[frame][np.ix_(objects[pairs.objects_in[frame]], tracks[pairs.tracks_in[frame]])]


def _numbered(present: np.ndarray) -> tuple[np.ndarray, int]:
    """New numbers, from 0, for the columns of (T, N) that have anything; and how many these are."""
    occurs = present.any(axis=0)
    return np.cumsum(occurs) - 1, int(occurs.sum())


def _averaged(metrics: dict, combined: dict[int, dict[str, dict]]) -> dict[str, float]:
    kept = {str(c): of for c, of in combined.items() if not math.isnan(flat_scores(of)["HOTA"])}
    if not kept:
        return _nothing()
    return flat_scores({
        name: metric.combine_classes_class_averaged({c: of[name] for c, of in kept.items()})
        for name, metric in metrics.items()
    })  # fmt: skip


def _nothing() -> dict[str, float]:
    return dict.fromkeys(METRICS, math.nan)


def _notes(dataset: Dataset, left_out: int, num_found: int) -> tuple[str, ...]:
    empty = len(dataset.categories) - num_found
    return tuple(note for count, note in (
        (empty, f"{empty} of {len(dataset.categories)} categories have neither objects nor tracks and are in no mean."),
        (left_out, f"{left_out} tracks are of categories not listed: they count in the class-agnostic numbers alone."),
        (dataset.num_left_out, f"{dataset.num_left_out} annotations are of categories not listed: left out."),
    ) if count)  # fmt: skip


def _cell(metric: str, value: float) -> str:
    return "-" if math.isnan(value) else str(value) if metric in COUNTS else f"{value:.4f}"
