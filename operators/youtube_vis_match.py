"""Which detection found which object: the matching of videos, category by category.

In:     annotations and results of some videos
Out:    VideoMatch: of each category that has any of them what youtube_vis_curves.py joins over the videos
State:  none
Source: evaluation specification, "YouTube-VIS AP and AR"; numbers in square brackets are its rules. Occlusion: CrossVIS
        specification 4.5, after J. Qi et al., "Occluded Video Instance Segmentation: A Benchmark", IJCV 2022

An object counts in the classes that its area and its level of occlusion belong to, and is ignored in the others. A
detection has an area, but nobody knows how far it is occluded: it is wrong in each level, if it is wrong.

Letters: D detections and G objects of one video and category · A classes · I IoU thresholds
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from operators.youtube_vis_data import Annotation, Video
from operators.youtube_vis_iou import TrackMasks
from operators.youtube_vis_results import Result

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)                        # (I,); the sixth is exactly 0.75
AREAS = np.array([[0, 1e10], [0, 128**2], [128**2, 256**2], [256**2, 1e10]])    # all, s, m, l; both ends belong in [4]
LEVELS = {"light": (0.0, 0.25), "medium": (0.25, 0.5), "heavy": (0.5, 1.0)}     # both ends belong in
MAX_DETECTIONS = 100

LEVEL_SCORES = {"no_occlusion": 0.0, "slight_occlusion": 0.25, "severe_occlusion": 0.75}


@dataclass(frozen=True)
class Job:
    """One video with what is to be matched in it."""

    video: Video
    path: str
    """Of the annotations, for messages."""
    objects: Sequence[Annotation] = field(repr=False)
    results: Sequence[Result] = field(repr=False)
    levels: bool
    """Whether the classes of occlusion are among the A classes."""
    official_faults: bool

    @property
    def num_masks(self) -> int:
        """Entries of all lists of masks: what the job costs."""
        return sum(len(track.segmentations) for side in (self.objects, self.results) for track in side)


@dataclass(frozen=True)
class VideoMatch:
    """What came of a job."""

    categories: list[CategoryMatch]
    results_of_other_size: int
    """Results that have a mask of another size than the video."""
    objects_of_other_size: int


@dataclass(frozen=True)
class CategoryMatch:
    """One video and category. Detections best score first; D may be 0, and so may the number of objects."""

    category_id: int
    scores: np.ndarray
    """(D,) float64"""
    areas: np.ndarray
    """(D,) float64"""
    num_objects: np.ndarray
    """(A,) int64, objects to be found: crowds and those of other classes are not among them."""
    matched: np.ndarray | None
    """(A, I, D) bool; None where nothing is."""
    ignored: np.ndarray | None
    """(A, I, D) bool, matched with an object that does not count; None as above."""


def match_videos(jobs: Sequence[Job]) -> list[VideoMatch]:
    """Match all categories of some videos, whose masks are measured together: small videos take half of the time so.

    Raises DatasetError for a mask that is damaged, whether it counts or not.
    """
    groups = [_by_category(job) for job in jobs]
    tracks = [track for group in groups for side in group.values() for track in (*side.results, *side.objects)]
    sizes = [(job.video.height, job.video.width) for job in jobs for _ in range(len(job.results) + len(job.objects))]
    path = jobs[0].path if jobs else ""
    masks = TrackMasks.of([track.segmentations for track in tracks], sizes,
                          lambda track: _where(tracks[track], path))  # fmt: skip
    areas = masks.mean_areas()
    found, start = [], 0
    for job, group in zip(jobs, groups, strict=True):
        matches, odd_results, odd_objects = [], 0, 0
        for category, side in group.items():
            rows = range(start, start + min(len(side.results), MAX_DETECTIONS))
            truths = range(start + len(side.results), start + len(side.results) + len(side.objects))
            ious = masks.ious(rows, truths)
            scores = np.array([result.score for result in side.results[:MAX_DETECTIONS]], dtype=np.float64)
            matches.append(match_category(category, scores, areas[rows.start : rows.stop], side.objects, ious, job))
            odd_results += int((~masks.regular[start : truths.start]).sum())
            odd_objects += int((~masks.regular[truths.start : truths.stop]).sum())
            start = truths.stop
        found.append(VideoMatch(matches, odd_results, odd_objects))
    return found


def match_category(
    category: int, scores: np.ndarray, areas: np.ndarray, objects: Sequence[Annotation], ious: np.ndarray, job: Job
) -> CategoryMatch:
    """Match the detections of one video and category, best first, with its objects.  (D,), (D,), G objects, (D, G)"""
    crowd = np.array([annotation.iscrowd for annotation in objects], dtype=bool)                     # (G,)
    object_ignored = crowd | _not_in_class(objects, job.levels)                                      # (A, G)
    num_objects = (~object_ignored).sum(axis=1)
    if not (ious >= IOU_THRESHOLDS[0]).any():
        return CategoryMatch(category, scores, areas, num_objects, None, None)
    partner = match(ious, object_ignored, crowd)                                                     # (A, I, D)
    matched = partner >= 0
    ignored = matched & object_ignored[np.arange(len(object_ignored))[:, None, None], partner]
    if job.official_faults:
        matched &= np.array([annotation.id != 0 for annotation in objects])[partner]                 # [13]
    return CategoryMatch(category, scores, areas, num_objects, matched, ignored)


def match(ious: np.ndarray, object_ignored: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Each detection's object, detections in their order [6, 7].  (D, G), (A, G), (G,) -> (A, I, D) int64, -1 for none

    An object is taken once, a crowd any number of times. The highest IoU that reaches the threshold wins, at equal IoU
    the later object; one that is ignored only where no other fits.
    """
    thresholds = np.minimum(IOU_THRESHOLDS, 1 - 1e-10)
    if ((ious >= thresholds[0]).sum(axis=1) <= 1).all():
        partner = _match_apart(ious, crowd, thresholds)
        return np.broadcast_to(partner, (len(object_ignored), *partner.shape))
    return _match_in_turn(ious, object_ignored, crowd, thresholds[:, None])


def _match_apart(ious: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """`match` where no detection has a choice, as with objects that do not overlap: the first one takes its object.

    -> (I, D), the same in every class
    """
    rows = np.arange(len(ious))
    column = ious.argmax(axis=1)                                                             # (D,)
    reached = ious[rows, column] >= thresholds[:, None]                                      # (I, D)
    wants = reached[:, :, None] & (column[:, None] == np.arange(ious.shape[1]))              # (I, D, G)
    first = (wants.cumsum(axis=1) == 1)[:, rows, column]                                     # (I, D)
    return np.where(reached & (first | crowd[column]), column, -1)


def _match_in_turn(
    ious: np.ndarray, object_ignored: np.ndarray, crowd: np.ndarray, thresholds: np.ndarray
) -> np.ndarray:
    num_detections, num_objects = ious.shape
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


def occlusion_level(labels: Sequence[str | None] | None) -> float | None:
    """How far a track is occluded, 0..0.75: the mean score of the more occluded half of its frames that have a label.

    None where no frame has one. Of an odd number of frames the middle one is in the half.
    """
    scores = sorted((LEVEL_SCORES[label] for label in labels or () if label is not None), reverse=True)
    half = (len(scores) + 1) // 2
    return sum(scores[:half]) / half if half else None


def outside(areas: np.ndarray) -> np.ndarray:
    """(N,) -> (len(AREAS), N) bool: not of this area class [4]."""
    return (areas < AREAS[:, :1]) | (areas > AREAS[:, 1:])


def _not_in_class(objects: Sequence[Annotation], levels: bool) -> np.ndarray:
    """(A, G) bool; an object without labels of occlusion is in none of their classes."""
    rows = outside(np.array([_mean_area(annotation.areas) for annotation in objects]))
    if not levels:
        return rows
    level = np.array([occlusion_level(annotation.occlusion) for annotation in objects], dtype=np.float64)   # None: NaN
    bounds = np.array(list(LEVELS.values()))
    return np.concatenate([rows, ~((level >= bounds[:, :1]) & (level <= bounds[:, 1:]))])


def _mean_area(areas: Sequence[float | None]) -> float:
    """The mean over the frames that have any [4]; 0 where none has."""
    areas = [area for area in areas if area]
    return float(np.mean(areas)) if areas else 0.0


def _where(track: Annotation | Result, path: str) -> str:
    if isinstance(track, Result):
        return track.where
    return f"{path}: video {track.video_id}, annotation {track.id}"


@dataclass
class _Category:
    """What a video has of a category: results best first, objects in the order of the file."""

    results: list[Result] = field(default_factory=list)
    objects: list[Annotation] = field(default_factory=list)


def _by_category(job: Job) -> dict[int, _Category]:
    found: dict[int, _Category] = defaultdict(_Category)
    for result in sorted(job.results, key=lambda result: -result.score):                             # stable [5]
        found[result.category_id].results.append(result)
    for annotation in job.objects:
        found[annotation.category_id].objects.append(annotation)
    return found
