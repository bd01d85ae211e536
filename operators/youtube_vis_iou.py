"""IoU of mask tracks over a whole video, from run lengths.

In:     the masks of N tracks, of one video or of some, as their files hold them
Out:    TrackMasks, all of them checked; mean areas (N,), and the IoU of any of these tracks with any others
State:  TrackMasks turns uncompressed RLE into compressed when it is first needed, and keeps that
Limits: as in youtube_vis_rle.py; for every entry of a list of masks some 40 bytes more than the entry itself
Source: evaluation specification, "YouTube-VIS AP and AR"; numbers in square brackets are its rules

A pair counts only from an IoU of 0.5 on, so most pairs need no look at their pixels. In a frame two masks have no more
in common than the smaller area, nor than the pixels that both of them span down the columns, from first to last. If the
sum of these cannot reach 0.5, the pair is left at 0. Of the others frame after frame is replaced by what pycocotools
counts, until that is all of them, or the sum is too low.

Letters: D rows and G columns of tracks · P pairs of them · M masks of all tracks · T frames
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from operators.errors import DatasetError
from operators.youtube_vis_rle import (
    MaskTrack,
    Rle,
    Where,
    check_rle_size,
    counts_text,
    damage,
    segmentation_to_rle,
)
from operators.youtube_vis_runs import Extents, compressed_extents, plain_extents

FEW_PAIRS = 12
"""Up to so many pairs a frame, merging them one by one costs less than one call for all rows with all columns."""

FEW_FRAMES = 8
"""So many frames of a pair are merged before its bound is looked at again."""

BLOCK = 1 << 20
"""Entries of an array over pairs and frames that are held at once."""

NOTHING = Extents(*np.zeros((3, 1), dtype=np.int64))
"""Of one mask that is not there."""


@dataclass(frozen=True)
class TrackMasks:
    """The masks of N tracks, each of a video of its own size."""

    counts: list[str | list[int]] = field(repr=False)
    """Of the M masks, track by track: text or, until a mask is asked for, runs."""
    sizes: list[list[int]] = field(repr=False)
    """[height, width] of the M masks."""
    tracks: np.ndarray
    """(M,) which track each is of, in ascending order"""
    frames: np.ndarray
    """(M,) which frame each is of, in ascending order within a track"""
    extents: Extents
    """Of the M masks and, at the end, of no mask: 0."""
    lengths: np.ndarray
    """(N,) entries of each track's list, those without a mask included"""
    regular: np.ndarray
    """(N,) bool, all masks of the track have its video's size"""

    @classmethod
    def of(cls, lists: Sequence[Sequence[Any]], videos: Sequence[tuple[int, int]], where: Where) -> TrackMasks:
        """The masks in N lists, an entry a frame, false for none, of videos of N sizes (height, width).

        Lists hold what is false, polygons, which become masks of that size, and dicts with "size" and "counts" of text
        or a list. Raises DatasetError, opening with `where(n)` and the frame, for a mask that is damaged.
        """
        counts: list[str | list[int]] = []
        sizes: list[list[int]] = []
        frames: list[int] = []
        num_masks, regular = [], []
        for track, (entries, (height, width)) in enumerate(zip(lists, videos, strict=True)):
            present = [frame for frame, entry in enumerate(entries) if entry]               # [2]
            masks = [entries[frame] for frame in present]
            if list in {*map(type, masks)}:
                masks = [_from_list(mask, height, width, f"{where(track)}, frame {frame}")
                         for frame, mask in zip(present, masks, strict=True)]  # fmt: skip
            found = [mask["size"] for mask in masks]
            regular.append(found.count([height, width]) == len(found))
            if not regular[-1]:
                for frame, mask in zip(present, masks, strict=True):
                    check_rle_size(mask, f"{where(track)}, frame {frame}")
            sizes += [[height, width]] * len(found) if regular[-1] else found               # a file may hold 4.0 for 4
            counts += [mask["counts"] for mask in masks]
            frames += present
            num_masks.append(len(present))
        track_of, frame_of = np.repeat(np.arange(len(lists)), num_masks), np.array(frames, dtype=np.int64)
        extents = _extents(counts, sizes, lambda mask: f"{where(track_of[mask])}, frame {frames[mask]}")
        lengths = np.array([len(entries) for entries in lists], dtype=np.int64)
        return cls(counts, sizes, track_of, frame_of, extents, lengths, np.array(regular, dtype=bool))

    def mean_areas(self) -> np.ndarray:
        """(N,) float64 pixels, the mean over the frames that have any [4]; 0 where none has."""
        num_tracks = len(self.lengths)
        areas = self.extents.areas[:-1]
        counts = np.bincount(self.tracks, areas > 0, num_tracks)
        return np.bincount(self.tracks, areas, num_tracks) / np.maximum(counts, 1)

    def rle(self, mask: int) -> Rle:
        """One of the M masks, compressed."""
        rle = {"size": self.sizes[mask], "counts": self.counts[mask]}
        if isinstance(rle["counts"], list):
            rle = coco_mask.frPyObjects(rle, *rle["size"])
            self.counts[mask] = counts_text(rle["counts"])
        return rle

    def track(self, track: int) -> MaskTrack:
        first, last = np.searchsorted(self.tracks, [track, track + 1])
        masks: list[Rle | None] = [None] * int(self.lengths[track])
        for mask in range(first, last):
            rle = self.rle(mask)
            masks[self.frames[mask]] = {**rle, "counts": counts_text(rle["counts"])}
        areas = np.zeros(len(masks), dtype=np.int64)
        areas[self.frames[first:last]] = self.extents.areas[first:last]
        return MaskTrack(tuple(masks), areas)

    def ious(self, rows: range, columns: range) -> np.ndarray:
        """IoU of tracks `rows` with tracks `columns` of the same video, over all frames [1, 2, 3].  -> (D, G) float64

        What is below 0.5 may be given as 0. 0 / 0 is 0.
        """
        if not len(rows) or not len(columns):
            return np.zeros((len(rows), len(columns)))
        if not self._alike(rows) or not self._alike(columns):
            return track_ious([self.track(row) for row in rows], [self.track(column) for column in columns])
        num_frames = int(min(self.lengths[rows.start], self.lengths[columns.start]))        # [3]
        row_masks, column_masks = self._grid(rows, num_frames), self._grid(columns, num_frames)
        step = max(1, BLOCK // max(1, column_masks.size))
        return np.concatenate(
            [self._block(row_masks[at : at + step], column_masks) for at in range(0, len(rows), step)]
        )

    def _alike(self, tracks: range) -> bool:
        """Have all masks of these tracks their video's size, and all lists one length?"""
        some = slice(tracks.start, tracks.stop)
        return bool(self.regular[some].all() and (self.lengths[some] == self.lengths[tracks.start]).all())

    def _grid(self, tracks: range, num_frames: int) -> np.ndarray:
        """(tracks, num_frames) the mask of each track and frame, M where there is none."""
        grid = np.full((len(tracks), num_frames), len(self.counts))
        first, last = np.searchsorted(self.tracks, [tracks.start, tracks.stop])
        masks = np.arange(first, last)
        masks = masks[self.frames[first:last] < num_frames]
        grid[self.tracks[masks] - tracks.start, self.frames[masks]] = masks
        return grid

    def _block(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """`ious` of (D, T) with (G, T) masks."""
        areas, begins, ends = self.extents.areas, self.extents.begins, self.extents.ends
        sums = areas[rows].sum(axis=1)[:, None] + areas[columns].sum(axis=1)                 # (D, G)
        most = np.minimum(ends[rows][:, None], ends[columns]) - np.maximum(begins[rows][:, None], begins[columns])
        most = np.minimum(np.minimum(areas[rows][:, None], areas[columns]), most).clip(0)    # (D, G, T)
        row, column = np.nonzero(_may_match(most.sum(axis=2), sums))                         # (P,), (P,)
        common = np.zeros(sums.shape, dtype=np.int64)
        if len(row):
            count = self._few if len(row) <= FEW_PAIRS else self._many
            common[row, column] = count(rows, columns, row, column, most[row, column], sums[row, column])
        return np.divide(common, sums - common, out=np.zeros(common.shape), where=common > 0)

    def _few(
        self, rows: np.ndarray, columns: np.ndarray, row: np.ndarray, column: np.ndarray, most: np.ndarray,
        sums: np.ndarray,
    ) -> list[int]:  # fmt: skip
        """Pixels in common of P pairs of masks `rows` (D, T) and `columns` (G, T); 0 of pairs that cannot match.

        `row` and `column` (P,) say which; `most` (P, T) bounds them from above; `sums` (P,) are the areas of both.
        """
        found = []
        for ones, others, bounds, total in zip(rows[row], columns[column], most, sums.tolist(), strict=True):
            bound = int(bounds.sum())
            frames = np.flatnonzero(bounds)
            for some in np.split(frames, range(FEW_FRAMES, len(frames), FEW_FRAMES)):
                both = [
                    coco_mask.merge([self.rle(one), self.rle(other)], intersect=True)
                    for one, other in zip(ones[some].tolist(), others[some].tolist(), strict=True)
                ]
                bound += int(coco_mask.area(both).sum()) - int(bounds[some].sum())
                if not _may_match(bound, total):
                    bound = 0
                    break
            found.append(bound)
        return found

    def _many(
        self, rows: np.ndarray, columns: np.ndarray, row: np.ndarray, column: np.ndarray, most: np.ndarray,
        sums: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """The same, frame by frame for all pairs."""
        areas = self.extents.areas
        bound = most.sum(axis=1)                                                            # (P,)
        for frame in range(most.shape[1]):
            pairs = np.flatnonzero(_may_match(bound, sums) & (most[:, frame] > 0))
            if not len(pairs):
                continue
            ones, one = _distinct(row[pairs], len(rows))
            others, other = _distinct(column[pairs], len(columns))
            ious = coco_mask.iou(
                [self.rle(mask) for mask in rows[ones, frame].tolist()],
                [self.rle(mask) for mask in columns[others, frame].tolist()],
                [False] * len(others),
            )[one, other]
            # iou = i / (both - i) in double: solved for i the error is under 1e-6 pixels, so rounding gives the count
            both = areas[rows[row[pairs], frame]] + areas[columns[column[pairs], frame]]
            bound[pairs] += np.rint(ious * both / (1 + ious)).astype(np.int64) - most[pairs, frame]
        return np.where(_may_match(bound, sums), bound, 0)


def _distinct(indices: np.ndarray, below: int) -> tuple[np.ndarray, np.ndarray]:
    """The different ones in ascending order, and the place of each among them; numpy's own takes thrice as long."""
    marks = np.zeros(below, dtype=bool)
    marks[indices] = True
    return np.flatnonzero(marks), (np.cumsum(marks) - 1)[indices]


def _may_match(common: Any, sums: Any) -> Any:
    """Is common / (sums - common) >= 0.5 > 0?  In whole numbers, so at the very bound too."""
    return (3 * common >= sums) & (common > 0)


def _from_list(mask: Any, height: int, width: int, where: str) -> Rle:
    return segmentation_to_rle(mask, height, width, where) if isinstance(mask, list) else mask


def _extents(counts: list[str | list[int]], sizes: list[list[int]], where: Where) -> Extents:
    """Extents of M masks and of none. Raises DatasetError for the first one that does not fill its size."""
    heights_widths = np.array(sizes, dtype=np.int64).reshape(-1, 2)
    pixels = heights_widths[:, 0] * heights_widths[:, 1]                                     # (M,)
    kinds = {*map(type, counts)}
    if kinds == {str}:
        found = compressed_extents(counts, pixels)
        if found is not None:
            return Extents.joined([found, NOTHING])
    areas, begins, ends = np.zeros((3, len(counts) + 1), dtype=np.int64)
    plain = np.array([isinstance(runs, list) for runs in counts], dtype=bool)
    for kind, measure in ((plain, plain_extents), (~plain, compressed_extents)):
        which = np.flatnonzero(kind)
        some = [counts[mask] if measure is plain_extents else counts_text(counts[mask]) for mask in which]
        found = measure(some, pixels[which])
        if found is None:
            bad = next(i for i in range(len(which)) if measure(some[i : i + 1], pixels[which[i : i + 1]]) is None)
            raise DatasetError(f"{where(which[bad])}: {damage({'size': sizes[which[bad]], 'counts': some[bad]})}")
        areas[which], begins[which], ends[which] = found.areas, found.begins, found.ends
    return Extents(areas, begins, ends)


def track_ious(detections: Sequence[MaskTrack], objects: Sequence[MaskTrack]) -> np.ndarray:
    """Pixels in common over pixels in either, both summed over the frames [1, 2, 3].  -> (D, G) float64; 0 / 0 is 0

    Of any tracks: frames count up to the end of the shorter one; a frame where the two masks differ in size does not.
    """
    common = np.zeros((len(detections), len(objects)), dtype=np.int64)
    apart = np.zeros_like(common)       # pixels of frames where the two masks differ in size
    with_rows, with_cols = _by_frame(detections), _by_frame(objects)
    for frame in with_rows.keys() & with_cols.keys():
        rows, cols = with_rows[frame], with_cols[frame]
        one, other = [detections[d].masks[frame] for d in rows], [objects[g].masks[frame] for g in cols]
        ious = np.maximum(coco_mask.iou(one, other, [False] * len(cols)), 0)                         # (rows, cols)
        both = np.add.outer([detections[d].areas[frame] for d in rows], [objects[g].areas[frame] for g in cols])
        # said by the sizes: COCO's IoU of masks of different size is -1, but 0 where their boxes lie apart
        differ = np.not_equal.outer(*([mask["size"][0] for mask in side] for side in (one, other)))
        differ |= np.not_equal.outer(*([mask["size"][1] for mask in side] for side in (one, other)))
        apart[np.ix_(rows, cols)] += np.where(differ, both, 0)
        # iou = i / (both - i) in double: solved for i the error stays under 1e-6 pixels, so rounding gives the count
        common[np.ix_(rows, cols)] += np.rint(ious * both / (1 + ious)).astype(np.int64)
    either = _area_until(detections, objects) + _area_until(objects, detections).T - common - apart
    return np.divide(common, either, out=np.zeros(common.shape), where=either > 0)


def _by_frame(tracks: Sequence[MaskTrack]) -> dict[int, list[int]]:
    """Frame -> the tracks that have a mask there."""
    found: dict[int, list[int]] = {}
    for index, track in enumerate(tracks):
        for frame in [frame for frame, mask in enumerate(track.masks) if mask is not None]:
            found.setdefault(frame, []).append(index)
    return found


def _area_until(tracks: Sequence[MaskTrack], others: Sequence[MaskTrack]) -> np.ndarray:
    """Pixels of each track before it or the other one ends.  -> (len(tracks), len(others)) int64"""
    sums = [np.concatenate([[0], np.cumsum(track.areas)]) for track in tracks]
    rows = [[row[min(len(row) - 1, len(other.masks))] for other in others] for row in sums]
    return np.array(rows, dtype=np.int64).reshape(len(tracks), len(others))
