"""Step 2 of training, the masks of a frame: run lengths to pixels, eight instances to a byte.

In:     the masks of one frame as they stand in the file; the size that the frame is resized to
Out:    planes (h, w, P) uint8: bit g % 8 of plane g // 8 is the mask of instance g, P = max(1, ceil(G / 8));
        or soft masks (h, w, max(1, G)) uint8, shares of FULL
State:  none but small tables of which rows and columns are seen
Source: CrossVIS specification 1.6: masks by nearest, source index floor((j + 0.5) * scale), here in whole numbers.
        CiCo specification 1.2: masks as 0/1 maps, bilinear without anti-aliasing. The one threshold that it names is
        that of the loss, above a half on the grid of its masks (3.2), so they are soft as far as there

Masks are resized as run lengths: a run of the stored frame is a run of the resized one, so no pixel of the stored frame
is ever painted. Four masks of 1280 x 720 take 0.6 ms to 640 x 360; their pixels alone, before any resizing, 2.5 ms.
Bits, unlike ids in a map, let masks overlap, and nearest moves them as any other value. A soft mask is made of four
that are found alike, by the four stored pixels round where a pixel looks, and takes some ten times as long.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from operators.youtube_vis_rle import Where, segmentations_to_rles
from operators.youtube_vis_runs import run_ends

BITS = 8
FULL = 128
"""What a pixel of a soft mask is inside the object. A power of two: halves and quarters are exact, and with them what
lies at the threshold of a frame that is shrunk to half its size."""

Side = Literal["nearest", "before", "after"]
"""Which stored place a resized one looks at: that which holds its centre, or the two whose centres lie round it."""
SIDES: tuple[Side, Side] = ("before", "after")


def bounds_of(segmentations: Sequence[Any], stored: tuple[int, int], where: Where) -> list[np.ndarray | None]:
    """Where the runs of a frame's masks end, counted down its columns: (R,) int64 each, rising; None: there is none.

    The masks are as in a YouTube-VIS file, `stored` (H, W) is its frame; `where(i)` opens the DatasetError for mask i.
    What is plainly an RLE that fills the frame is read once; all else is left to `segmentations_to_rles`.
    """
    counts = [None if s is None else _counts(s, list(stored)) for s in segmentations]
    try:
        texts = iter(run_ends([c for c in counts if isinstance(c, str)]))
        found = [None if c is None else next(texts) if isinstance(c, str) else _sums(c) for c in counts]
    except ValueError:                      # damaged, and not that alone perhaps: looked at more closely below
        found = [_sums([])]
    if all(bounds is None or _fills(bounds, stored) for bounds in found):
        return found
    rles = segmentations_to_rles(segmentations, *stored, where)
    texts = iter(run_ends([rle["counts"] for rle in rles if rle is not None]))
    return [None if rle is None else next(texts) for rle in rles]


def _counts(segmentation: Any, size: list[int]) -> Any:
    """What stands for the runs of an RLE of this size; [] for anything else."""
    if not isinstance(segmentation, dict) or segmentation.get("size") != size:
        return []
    counts = segmentation.get("counts")
    return [] if counts is None else counts


def _sums(counts: Any) -> np.ndarray:
    """Where the runs of an uncompressed RLE end; (0,) for what is no list of whole numbers."""
    try:
        runs = np.asarray(counts)
    except (ValueError, OverflowError):     # lists of different lengths inside
        runs = np.zeros(0)
    plain = runs.ndim == 1 and runs.dtype == np.int64
    return np.cumsum(runs) if plain else np.zeros(0, np.int64)


def _fills(bounds: np.ndarray, stored: tuple[int, int]) -> bool:
    """Whether runs rise from 0 to the last pixel of the frame. A sum that wrapped round would have fallen."""
    if not len(bounds) or bounds[0] < 0 or bounds[-1] != stored[0] * stored[1]:
        return False
    return bool((bounds[1:] >= bounds[:-1]).all())


def paint(
    bounds: Sequence[np.ndarray | None], stored: tuple[int, int], size: tuple[int, int], *, exclusive: bool = False
) -> np.ndarray:
    """Masks of one frame, `bounds` in its `stored` (H, W) pixels, resized to `size` (h, w) by nearest: (h, w, P).

    None, or no instance: nothing painted. `exclusive`: a pixel that several masks claim is the last one's.
    """
    h, w = size
    seen = int(_seen(stored[1], w)[-1])                         # columns that are seen at all; each once
    painted = np.zeros((-(-max(len(bounds), 1) // BITS), seen * h), np.uint8)                    # (P, seen * h)
    for g, ends in enumerate(bounds):
        if ends is None or len(ends) < 2:
            continue
        edges = _resized(ends, stored, size, "nearest", "nearest")[: len(ends) // 2 * 2]     # begin, end, begin, ...
        value = np.zeros(len(edges) - 1, np.uint8)
        value[::2] = 1 << g % BITS
        painted[g // BITS, edges[0] : edges[-1]] |= np.repeat(value, edges[1:] - edges[:-1])
    if exclusive:
        _only_last(painted, len(bounds))
    upright = painted.reshape(len(painted), seen, h).transpose(2, 1, 0)                          # (h, seen, P)
    return np.ascontiguousarray(upright if w == seen else upright[:, _sources(stored[1], w)])


def unpack(planes: Tensor, count: int) -> Tensor:
    """Planes (P, H, W) uint8 -> the masks of `count` instances (count, H, W) bool."""
    bits = (1 << torch.arange(BITS, device=planes.device)).to(torch.uint8)[:, None, None]
    # In place: memory that is touched for the first time costs more than the arithmetic.
    parts = [(plane & bits[: count - BITS * p]).ne_(0).view(torch.bool) for p, plane in enumerate(planes)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def paint_soft(
    bounds: Sequence[np.ndarray | None], stored: tuple[int, int], size: tuple[int, int]
) -> np.ndarray:
    """The same masks as 0/1 maps resized bilinearly, with no filter where they shrink: (h, w, max(G, 1)) uint8.

    Shares of FULL, rounded. None, or no instance: 0.
    """
    h, w = size
    down, across = _share(stored[0], h), _share(stored[1], w)[:, None]                             # (h,), (w, 1)
    soft = np.zeros((max(len(bounds), 1), w, h), np.uint8)
    for g, ends in enumerate(bounds):
        if ends is None or len(ends) < 2:
            continue
        near = _columns_near(ends, stored, w)           # an object is narrow: most columns are left as they are
        left, right = (_blended(*(_upright(ends, stored, size, near, row, column) for row in SIDES), down)
                       for column in SIDES)  # fmt: skip
        soft[g, near] = np.rint(FULL * _blended(left, right, across[near]))
    return np.ascontiguousarray(soft.transpose(2, 1, 0))


def unpack_soft(planes: Tensor, count: int) -> Tensor:
    """Soft masks (max(G, 1), H, W) uint8 -> those of `count` = G instances (count, H, W) float16, 0..1, exactly."""
    return planes[:count].half() / FULL


def _columns_near(ends: np.ndarray, stored: tuple[int, int], width: int) -> slice:
    """The resized columns that look at any column between the first and the last one of a mask."""
    first, last = ends[0] // stored[0], (ends[len(ends) // 2 * 2 - 1] - 1) // stored[0]
    begin = np.searchsorted(_sources(stored[1], width, "after"), first)
    return slice(int(begin), int(np.searchsorted(_sources(stored[1], width, "before"), last, side="right")))


def _blended(before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Between two maps, by the share of the latter."""
    return before + share * (after - before)


def _upright(
    ends: np.ndarray, stored: tuple[int, int], size: tuple[int, int], near: slice, row: Side, column: Side
) -> np.ndarray:
    """Columns `near` of a mask (n, h) float32, 0 or 1, by the stored pixels on one side of where its pixels look."""
    seen = _pixels(ends, stored, size, 1, row, column).reshape(-1, size[0])                        # (columns, h)
    return seen[_places(stored[1], size[1], column)[near]].astype(np.float32)


def _pixels(
    ends: np.ndarray, stored: tuple[int, int], size: tuple[int, int], value: int, row: Side = "nearest",
    column: Side = "nearest",
) -> np.ndarray:  # fmt: skip
    """The resized mask, `value` where it is, down its columns, of which those that look alike stand once: (n,) uint8"""
    runs = np.diff(_resized(ends, stored, size, row, column), prepend=0)
    return np.repeat(np.resize(np.array([0, value], np.uint8), len(runs)), runs)


def _resized(
    bounds: np.ndarray, stored: tuple[int, int], size: tuple[int, int], row_side: Side, column_side: Side
) -> np.ndarray:
    """How many pixels of the resized frame, down its columns, come before the stored pixel `bounds`."""
    columns = _seen(stored[1], size[1], column_side)
    rows = _seen(stored[0], size[0], row_side, repeated=True)
    column, row = np.divmod(bounds, stored[0])
    inside = _is_seen(stored[1], size[1], column_side)[column]          # the column that the bound lies in
    return columns[column] * size[0] + inside * rows[row]


@lru_cache(maxsize=256)
def _is_seen(stored: int, resized: int, side: Side) -> np.ndarray:
    """1 for each of `stored` places that a resized one looks at, else 0, as at the end.  (stored + 1,) int64"""
    return np.append(np.diff(_seen(stored, resized, side)), 0)


@lru_cache(maxsize=256)
def _seen(stored: int, resized: int, side: Side = "nearest", repeated: bool = False) -> np.ndarray:
    """For each of `stored` places and the end, how many resized ones look at an earlier place; those that look at the
    same place count once unless `repeated`.  (stored + 1,) int64, rising"""
    sources = _sources(stored, resized, side)
    return np.searchsorted(sources if repeated else np.unique(sources), np.arange(stored + 1))


@lru_cache(maxsize=256)
def _sources(stored: int, resized: int, side: Side = "nearest") -> np.ndarray:
    """Where each resized pixel of an axis looks: floor((j + 0.5) * stored / resized); `before` and `after`: the places
    around (j + 0.5) * stored / resized - 0.5, none beyond the ends.  (resized,) int64, rising"""
    if side == "nearest":
        return (2 * np.arange(resized) + 1) * stored // (2 * resized)
    before = _between(stored, resized) // (2 * resized)
    return before if side == "before" else np.minimum(before + 1, stored - 1)


@lru_cache(maxsize=256)
def _places(stored: int, resized: int, side: Side) -> np.ndarray:
    """Where the column that a resized one looks at stands among those that are seen, each once.  (resized,) int64"""
    return np.unique(_sources(stored, resized, side), return_inverse=True)[1]


@lru_cache(maxsize=256)
def _share(stored: int, resized: int) -> np.ndarray:
    """How much of a resized pixel is that of the place `after`.  (resized,) float32, 0..1"""
    return (_between(stored, resized) % (2 * resized) / (2 * resized)).astype(np.float32)


def _between(stored: int, resized: int) -> np.ndarray:
    """(j + 0.5) * stored / resized - 0.5 in parts of 2 * resized, none beyond the ends.  (resized,) int64"""
    places = (2 * np.arange(resized) + 1) * stored - resized
    return places.clip(0, 2 * resized * (stored - 1))


def _only_last(painted: np.ndarray, count: int) -> None:
    """Clear every bit of a pixel (P, n) but the highest; in place."""
    taken = np.zeros(painted.shape[1], bool)
    for g in reversed(range(count)):
        bit, plane = np.uint8(1 << g % BITS), painted[g // BITS]
        plane &= np.where(taken, ~bit, np.uint8(255))
        taken |= (plane & bit) > 0
