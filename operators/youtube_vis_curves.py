"""Precision and recall of one category over all videos.

In:     the category's CategoryMatch of every video, in ascending order of the video ids
Out:    Curves: precision at 101 recalls for every IoU threshold and class, recall for each limit of detections
State:  none
Source: evaluation specification, "YouTube-VIS AP and AR"; numbers in square brackets are its rules

Letters: A classes (youtube_vis_match.py) · I IoU thresholds · R = 101 recalls · E detections of all videos
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from operators.youtube_vis_match import AREAS, IOU_THRESHOLDS, LEVELS, CategoryMatch, outside

RECALLS = np.linspace(0.0, 1.0, 101)                               # (R,)
LIMITS = (1, 10, 100)
METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LEVEL_METRICS = ("AP", "AP50", "AP75", "AR1", "AR10", "AR100")


@dataclass(frozen=True)
class Curves:
    """-1 in classes without objects to be found."""

    precision: np.ndarray
    """(A, I, R), of 100 detections a video"""
    recalls: np.ndarray
    """(A, I, limits), the highest one, of 1, 10 and 100 detections a video"""
    num_objects: np.ndarray
    """(A,)"""

    def metrics(self) -> dict[str, float]:
        """The twelve METRICS."""
        scores = self._of_class(0)
        for row, letter in enumerate("sml", start=1):
            scores |= {f"AP{letter}": float(self.precision[row].mean())}
            scores |= {f"AR{letter}": float(self.recalls[row, :, 2].mean())}
        return {metric: scores[metric] for metric in METRICS}

    def level_metrics(self) -> dict[str, dict[str, float]]:
        """LEVEL_METRICS of each level of occlusion; {} where these are not among the classes."""
        rows = range(len(AREAS), len(self.precision))
        return {level: self._of_class(row) for row, level in zip(rows, LEVELS, strict=False)}

    def _of_class(self, row: int) -> dict[str, float]:
        precision, recalls = self.precision[row], self.recalls[row]
        scores = {"AP": precision.mean(), "AP50": precision[0].mean(), "AP75": precision[5].mean()}
        scores |= {f"AR{limit}": recalls[:, i].mean() for i, limit in enumerate(LIMITS)}
        return {metric: float(score) for metric, score in scores.items()}


def curves_of(matches: Sequence[CategoryMatch], num_classes: int) -> Curves:
    """The curves of one category; no match gives -1 everywhere."""
    num_objects = np.zeros(num_classes, dtype=np.int64)
    for found in matches:
        num_objects += found.num_objects
    shape = num_classes, len(IOU_THRESHOLDS)
    precision, recalls = np.full((*shape, len(RECALLS)), -1.0), np.full((*shape, len(LIMITS)), -1.0)
    if not num_objects.any():
        return Curves(precision, recalls, num_objects)
    right, wrong, rank = _outcomes([found for found in matches if len(found.scores)], shape)
    for row in np.flatnonzero(num_objects):
        precision[row] = _precision(right[row], wrong[row], int(num_objects[row]))
        for i, limit in enumerate(LIMITS):
            recalls[row, :, i] = right[row][:, rank < limit].sum(axis=1) / num_objects[row]
    return Curves(precision, recalls, num_objects)


def _outcomes(matches: Sequence[CategoryMatch], shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of all detections, best first, are right and which wrong (A, I, E), and their ranks in their video (E,).

    Those that are neither are ignored: matched with an object that does not count, or unmatched and of another area.
    """
    num = sum(len(found.scores) for found in matches)
    matched, ignored = np.zeros((2, *shape, num), dtype=bool)
    start = 0
    for found in matches:
        stop = start + len(found.scores)
        if found.matched is not None:
            matched[:, :, start:stop], ignored[:, :, start:stop] = found.matched, found.ignored
        start = stop
    none = np.zeros(0)
    scores = np.concatenate([none, *(found.scores for found in matches)])
    areas = np.concatenate([none, *(found.areas for found in matches)])
    rank = np.concatenate([none, *(np.arange(len(found.scores)) for found in matches)])
    other_area = np.zeros((shape[0], 1, num), dtype=bool)
    other_area[: len(AREAS), 0] = outside(areas)
    order = np.argsort(-scores, kind="stable")                                                       # [5]
    right = matched & ~ignored
    wrong = ~(matched | ignored | other_area)                                                        # [8]
    return right[:, :, order], wrong[:, :, order], rank[order]


def _precision(right: np.ndarray, wrong: np.ndarray, num_objects: int) -> np.ndarray:
    """Precision at RECALLS (I, R) from what is right and wrong (I, E) [9].

    Precision falls with every wrong detection, so the best from some recall on is always at a right one: the k-th of
    them, with recall k / num_objects, is all that matters of a curve.
    """
    threshold, place = np.nonzero(right)
    first = np.searchsorted(threshold, np.arange(len(right)))
    k = np.arange(len(threshold)) - first[threshold] + 1
    fp = np.cumsum(wrong, axis=1)[threshold, place].astype(np.float64)
    most = int(k.max(initial=0))
    at = np.zeros((len(right), most + 2))                       # at[:, k]; 0 past the last recall
    at[threshold, k] = k / (fp + k + np.spacing(1))
    at = np.maximum.accumulate(at[:, ::-1], axis=1)[:, ::-1]
    needed = np.searchsorted(np.arange(num_objects + 1) / num_objects, RECALLS, side="left")         # (R,)
    return at[:, np.minimum(needed, most + 1)]
