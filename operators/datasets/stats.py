"""`maskstream dataset stats`: what a dataset is made of, counted and measured.

In:     a Truth of any format (convert.open_truth)
Out:    Stats: counts, distributions, a row a category; crowds are counted and otherwise left out
State:  _Collector, one number for each mask, track, frame and video
Limits: one video is in memory at a time, and 8 bytes for each of those numbers
Source: occlusion without labels is the bounding-box occlusion rate of the OVIS paper (Qi et al., IJCV 2022): of the
        pixels that boxes of a frame cover, the share that two or more cover; its mean over frames is the paper's mBOR.
        Area classes: evaluation specification, YouTube-VIS 4

An object is seen in a frame where its mask has a pixel. Frames are those of the file, which keeps every fifth or so.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from operators.datasets.truth import Progress, TrackTruth, Truth, VideoTruth
from operators.youtube_vis_entries import OCCLUSION_LABELS, distinct_names
from operators.youtube_vis_rle import MaskTrack, Rle
from operators.youtube_vis_runs import run_ends

DISTRIBUTIONS = {
    "video_length": "frames of a video",
    "tracks_per_video": "tracks of a video",
    "objects_per_frame": "objects seen in a frame",
    "track_length": "frames that show a track",
    "gaps_per_track": "returns of a track",
    "gap_length": "frames gone before a return",
    "mask_size": "mask / frame",
    "speed": "centroid's way a frame / √area",
    "box_overlap": "boxes' area under several",
}
"""Name -> what is measured, in the order of tables and plots."""

AREA_CLASSES = ("small", "medium", "large")
AREA_BOUNDS = (128**2, 256**2)
"""Of a track's mean area in pixels; the evaluation counts a bound to both sides, this to the upper one."""


@dataclass(frozen=True)
class CategoryStats:
    """What there is of one category, crowds left out."""

    tracks: int
    masks: int
    videos: int
    mean_length: float
    """Frames in which a track is seen."""
    median_size: float
    """Of its masks, share of the frame."""


@dataclass(frozen=True)
class Stats:
    """Everything that was counted; of nothing, zeros and empty arrays."""

    counts: dict[str, int]
    """videos, frames, frames_with_objects, tracks, crowds, masks, tracks_without_pixels, tracks_with_gaps."""
    area_classes: dict[str, int]
    """AREA_CLASSES -> tracks of that mean area."""
    occlusion: dict[str, int] | None
    """OCCLUSION_LABELS -> masks labelled so; None where nobody labelled them, and box_overlap stands in."""
    distributions: dict[str, np.ndarray] = field(repr=False)
    """DISTRIBUTIONS -> what was measured, (n,) float64."""
    per_category: dict[str, CategoryStats] = field(repr=False)
    """Those with tracks, the most tracks first."""
    unused: tuple[str, ...]
    """Categories without tracks."""
    notes: tuple[str, ...]

    def as_json(self) -> dict:
        """Plain numbers; a distribution as `summary` has it."""
        return {
            **self.counts, "area_classes": self.area_classes, "occlusion_labels": self.occlusion,
            "distributions": {name: summary(values) for name, values in self.distributions.items()},
            "per_category": {name: vars(row) for name, row in self.per_category.items()},
            "unused_categories": list(self.unused), "notes": list(self.notes),
        }  # fmt: skip


def summary(values: np.ndarray) -> dict[str, float | int | None]:
    """n, mean, min, median, p90 and max of (n,) numbers; None for all but n where there are none."""
    if not len(values):
        return {"n": 0, "mean": None, "min": None, "median": None, "p90": None, "max": None}
    low, median, p90, high = np.percentile(values, [0, 50, 90, 100]).tolist()
    return {"n": len(values), "mean": float(values.mean()), "min": low, "median": median, "p90": p90, "max": high}


def collect(truth: Truth, progress: Progress | None = None) -> Stats:
    """Read a dataset through, video by video. Raises DatasetError for damaged masks, naming the place."""
    collector = _Collector()
    for video in truth.each(progress):
        collector.add(video)
    return collector.stats(truth)


def gaps(seen: np.ndarray) -> list[int]:
    """Lengths of the stretches between two sights of a track, (T,) bool; [] if it is never or always seen."""
    frames = np.flatnonzero(seen)
    apart = np.diff(frames) - 1
    return apart[apart > 0].tolist()


def centroid(mask: Rle) -> tuple[float, float]:
    """Mean x and y of the pixels of a checked mask, without decoding it. Of no pixel: not a number.

    Pixel i of the column-major order is at (i // height, i % height), so a run's sums are differences of sums up to a
    pixel, which have a closed form.
    """
    height = mask["size"][0]
    (bounds,) = run_ends([mask["counts"]])
    bounds = bounds[: len(bounds) // 2 * 2]                                     # begin, end, begin, end, ...
    columns, rows = np.divmod(bounds, height)
    sum_x = height * (columns * (columns - 1) // 2) + columns * rows            # of the pixels before each bound
    sum_y = columns * (height * (height - 1) // 2) + rows * (rows - 1) // 2
    area, x, y = (int((sums[1::2] - sums[0::2]).sum()) for sums in (bounds, sum_x, sum_y))
    return (x / area, y / area) if area else (np.nan, np.nan)


def speeds(masks: Sequence[Rle | None], areas: np.ndarray) -> np.ndarray:
    """Way of the centroid from each frame to the next, over the square root of the mean of both areas.

    Only pairs of neighbouring frames count that both show the object: masks with areas (T,) > 0.
    """
    pairs = np.flatnonzero((areas[:-1] > 0) & (areas[1:] > 0))                  # (P,)
    if not len(pairs):
        return np.zeros(0)
    where = {frame: centroid(masks[frame]) for frame in np.union1d(pairs, pairs + 1).tolist()}
    way = np.array([np.subtract(where[p + 1], where[p]) for p in pairs.tolist()])                # (P, 2)
    return np.hypot(way[:, 0], way[:, 1]) / np.sqrt((areas[pairs] + areas[pairs + 1]) / 2)


def box_overlap(boxes: Sequence[Sequence[float]]) -> float:
    """Of the area that boxes [x, y, width, height] cover, the share covered by two or more; 0 for no area."""
    xywh = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    x1, y1, x2, y2 = xywh[:, 0], xywh[:, 1], xywh[:, 0] + xywh[:, 2], xywh[:, 1] + xywh[:, 3]
    xs, ys = np.unique([x1, x2]), np.unique([y1, y2])            # every edge: no box ends within a cell between them
    cover = np.zeros((max(len(ys), 1), max(len(xs), 1)), np.int64)
    for left, top, right, bottom in zip(*(np.searchsorted(e, v) for e, v in ((xs, x1), (ys, y1), (xs, x2), (ys, y2))),
                                        strict=True):                                              # fmt: skip
        cover[top:bottom, left:right] += 1
    cells = np.diff(ys)[:, None] * np.diff(xs)
    once, twice = (float(cells[cover[:-1, :-1] >= n].sum()) for n in (1, 2))
    return twice / once if once else 0.0


class _Collector:
    """What `collect` adds up, video by video."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._area_classes: Counter[str] = Counter()
        self._levels: Counter[str] = Counter()
        self._values: dict[str, list[np.ndarray]] = defaultdict(list)
        self._lengths: dict[int, list[int]] = defaultdict(list)
        self._sizes: dict[int, list[np.ndarray]] = defaultdict(list)
        self._videos: Counter[int] = Counter()

    def add(self, video: VideoTruth) -> None:
        counted = [track for track in video.tracks if not track.iscrowd]
        self._counts.update(videos=1, frames=video.length, tracks=len(counted), crowds=len(video.tracks) - len(counted))
        self._videos.update({track.category_id for track in counted})
        areas = np.zeros((len(counted), video.length), np.int64)                # (tracks, T)
        for k, track in enumerate(counted):
            areas[k] = MaskTrack.of(track.masks).areas
            self._add_track(track, areas[k], video.width * video.height)
        seen = (areas > 0).sum(axis=0)                                          # (T,)
        self._counts["frames_with_objects"] += int((seen > 0).sum())
        self._note("video_length", [video.length])
        self._note("tracks_per_video", [len(counted)])
        self._note("objects_per_frame", seen)
        self._note("box_overlap", list(_overlaps(counted, areas)))

    def _add_track(self, track: TrackTruth, areas: np.ndarray, pixels: int) -> None:
        seen = areas > 0
        missed = gaps(seen)
        masks = int(seen.sum())
        self._counts.update(masks=masks, tracks_with_gaps=bool(missed), tracks_without_pixels=not masks)
        self._lengths[track.category_id].append(masks)
        self._sizes[track.category_id].append(areas[seen] / pixels)
        if masks:
            self._area_classes[AREA_CLASSES[int(np.searchsorted(AREA_BOUNDS, areas[seen].mean(), "right"))]] += 1
            self._note("track_length", [masks])
            self._note("gaps_per_track", [len(missed)])
        self._note("gap_length", missed)
        self._note("mask_size", areas[seen] / pixels)
        self._note("speed", speeds(track.masks, areas))
        self._levels.update(level for level in track.occlusion or () if level is not None)

    def _note(self, name: str, values: Sequence[float] | np.ndarray) -> None:
        self._values[name].append(np.asarray(values, np.float64))

    def stats(self, truth: Truth) -> Stats:
        names = ("videos", "frames", "frames_with_objects", "tracks", "crowds", "masks", "tracks_without_pixels",
                 "tracks_with_gaps")                                                               # fmt: skip
        labels = distinct_names(truth.categories)
        used = sorted((c for c in labels if self._lengths[c]), key=lambda c: (-len(self._lengths[c]), c))
        return Stats(
            counts={name: int(self._counts[name]) for name in names},
            area_classes={name: self._area_classes[name] for name in AREA_CLASSES},
            occlusion={level: self._levels[level] for level in OCCLUSION_LABELS} if self._levels else None,
            distributions={name: np.concatenate([np.zeros(0), *self._values[name]]) for name in DISTRIBUTIONS},
            per_category={labels[c]: self._category(c) for c in used},
            unused=tuple(labels[c] for c in labels if not self._lengths[c]),
            notes=tuple(truth.notes.lines()),
        )

    def _category(self, category_id: int) -> CategoryStats:
        lengths, sizes = self._lengths[category_id], np.concatenate(self._sizes[category_id])
        median = float(np.median(sizes)) if len(sizes) else 0.0
        return CategoryStats(len(lengths), sum(lengths), self._videos[category_id], float(np.mean(lengths)), median)


def _overlaps(tracks: Sequence[TrackTruth], areas: np.ndarray) -> Iterator[float]:
    """`box_overlap` of each frame that shows an object; the boxes as annotated."""
    for frame in np.flatnonzero((areas > 0).any(axis=0)).tolist():
        boxes = (t.bboxes[frame] for t, area in zip(tracks, areas[:, frame], strict=True) if area)
        yield box_overlap([box for box in boxes if box is not None])


