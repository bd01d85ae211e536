"""Step 2 of training, the masks of a frame: run lengths to pixels, eight instances to a byte.

In:     the masks of one frame as they stand in the file; the size that the frame is resized to
Out:    planes (h, w, P) uint8: bit g % 8 of plane g // 8 is the mask of instance g, P = max(1, ceil(G / 8))
State:  none but small tables of which rows and columns are seen
Source: CrossVIS specification 1.6: masks by nearest, source index floor((j + 0.5) * scale), here in whole numbers

Masks are resized as run lengths: a run of the stored frame is a run of the resized one, so no pixel of the stored frame
is ever painted. Four masks of 1280 x 720 take 0.6 ms to 640 x 360; their pixels alone, before any resizing, 2.5 ms.
Bits, unlike ids in a map, let masks overlap, and nearest moves them as any other value.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from operators.youtube_vis_rle import Where, segmentations_to_rles
from operators.youtube_vis_runs import run_ends

BITS = 8


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
        if ends is not None:
            runs = np.diff(_resized(ends, stored, size), prepend=0)
            painted[g // BITS] |= np.repeat(np.resize(np.array([0, 1 << g % BITS], np.uint8), len(runs)), runs)
    if exclusive:
        _only_last(painted, len(bounds))
    upright = painted.reshape(len(painted), seen, h).transpose(2, 1, 0)                          # (h, seen, P)
    return np.ascontiguousarray(upright if w == seen else upright[:, _sources(stored[1], w)])


def unpack(planes: Tensor, count: int) -> Tensor:
    """Planes (P, H, W) uint8 -> the masks of `count` instances (count, H, W) bool."""
    bits = (1 << torch.arange(BITS, device=planes.device)).to(torch.uint8)[:, None, None]
    parts = [(plane & bits[: count - BITS * p]).bool() for p, plane in enumerate(planes)]
    return torch.cat(parts) if len(parts) > 1 else parts[0]


def _resized(bounds: np.ndarray, stored: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """How many pixels of the resized frame, down its columns, come before the stored pixel `bounds`."""
    columns, rows = _seen(stored[1], size[1]), _seen(stored[0], size[0], repeated=True)
    column, row = np.divmod(bounds, stored[0])
    inside = np.append(np.diff(columns), 0)[column]             # whether the column that the bound lies in is seen
    return columns[column] * size[0] + inside * rows[row]


@lru_cache(maxsize=256)
def _seen(stored: int, resized: int, repeated: bool = False) -> np.ndarray:
    """For each of `stored` places and the end, how many resized ones look at an earlier place; those that look at the
    same place count once unless `repeated`.  (stored + 1,) int64, rising"""
    sources = _sources(stored, resized)
    return np.searchsorted(sources if repeated else np.unique(sources), np.arange(stored + 1))


@lru_cache(maxsize=256)
def _sources(stored: int, resized: int) -> np.ndarray:
    """Where each resized pixel of an axis looks: floor((j + 0.5) * stored / resized).  (resized,) int64"""
    return (2 * np.arange(resized) + 1) * stored // (2 * resized)


def _only_last(painted: np.ndarray, count: int) -> None:
    """Clear every bit of a pixel (P, n) but the highest; in place."""
    taken = np.zeros(painted.shape[1], bool)
    for g in reversed(range(count)):
        bit, plane = np.uint8(1 << g % BITS), painted[g // BITS]
        plane &= np.where(taken, ~bit, np.uint8(255))
        taken |= (plane & bit) > 0
