"""Masks of a frame as run lengths, from where their outlines cross its columns. No pixel is ever painted.

In:     probabilities (N, cells down, cells across), and where the frame's pixels lie among the cells
Out:    run lengths of N masks at the frame's size, down the columns, background first
State:  none
Limits: some 4 million samples (of all instances, pixel columns x cell rows) are in memory at a time

Between two neighbouring cells of a column a bilinear mask is a straight line, which crosses 0.5 at most once, at a
place that a division gives. So of a frame's pixels only columns x cell rows are looked at, near cells above 0.5: at
1080p a twelfth of them. All instances are done at once. Painting each in a window of its own took twice as long.
"""

from __future__ import annotations

import numpy as np

THRESHOLD = 0.5
MAX_SAMPLES = 1 << 22


def mask_runs(probability: np.ndarray, down: np.ndarray, across: np.ndarray) -> list[list[int]]:
    """(N, h, w) float32 probabilities -> N lists of run lengths of len(down) x len(across) pixels. No mask: [].

    `down` (H,) and `across` (W,) are the places of the pixels' centres among the cells, 0 .. h - 1 and 0 .. w - 1,
    rising. A pixel is the mask's if the probability there, linear between cells, is above 0.5.
    """
    columns = np.ascontiguousarray(probability.transpose(0, 2, 1))                        # (N, w, h)
    at_once = max(MAX_SAMPLES // max(probability.shape[1] * len(across), 1), 1)
    runs: list[list[int]] = []
    for first in range(0, len(columns), at_once):
        part = columns[first : first + at_once]
        runs += runs_of_spans(*_spans(part, down, across), len(part), len(down) * len(across))
    return runs


def _ragged(begin: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """begin[i], begin[i] + 1, ... count[i] numbers for each i, in one row; before them, which i each belongs to."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + np.repeat(begin - (count.cumsum() - count), count)


def _extent(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first that is inside and the one past the last, of each row of (N, cells); 0, 0 where none is."""
    some = inside.any(1)
    return inside.argmax(1), np.where(some, inside.shape[1] - inside[:, ::-1].argmax(1), 0)


def _spans(columns: np.ndarray, down: np.ndarray, across: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of (N, w, h): every span of a pixel column that lies inside: its mask, its first pixel and the one past its last,
    counted down the columns of the frame. In order."""
    _, w, h = columns.shape
    inside = columns > THRESHOLD
    left, right = _extent(inside.any(2))
    top, bottom = _extent(inside.any(1))
    x_begin = np.searchsorted(across, left - 1, side="right")          # pixels that look at a cell that is inside
    x_end = np.searchsorted(across, right, side="left")
    top, bottom = np.maximum(top - 1, 0), np.minimum(bottom + 1, h)    # a row without on either side, to cross from
    some = right > 0
    mask, x = _ragged(x_begin, np.where(some, x_end - x_begin, 0))                        # every pixel column (C,)
    cell = np.minimum(across[x].astype(np.int64), max(w - 2, 0))
    share = (across[x] - cell).astype(np.float32)
    column, row = _ragged(top[mask], np.where(some, bottom - top, 0)[mask])               # every sample (S,)
    at = (mask * w + cell)[column] * h + row
    flat = columns.reshape(-1)
    values = flat[at] + (flat[at + (h if w > 1 else 0)] - flat[at]) * share[column]
    begin, end, of = _crossings(values, column, row, down)
    origin = x[of] * len(down)
    return mask[of], origin + begin, origin + end


def _crossings(
    values: np.ndarray, column: np.ndarray, row: np.ndarray, down: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """First pixel, the one past the last, and the column, of every span of samples above 0.5 that holds a pixel."""
    inside = values > THRESHOLD
    border = np.ones(len(values) + 1, bool)                            # before a column's first sample, after its last
    border[1:-1] = column[1:] != column[:-1]
    enters = np.flatnonzero(inside & ~(np.r_[False, inside[:-1]] & ~border[:-1]))
    leaves = np.flatnonzero(inside & ~(np.r_[inside[1:], False] & ~border[1:]))
    # A column's first sample is inside at the upper edge of the frame alone, its last at the lower edge.
    begin = np.searchsorted(down, _place(values, row, enters, border[:-1][enters], -1), side="right")
    end = np.searchsorted(down, _place(values, row, leaves, border[1:][leaves], +1), side="left")
    begin = np.where(border[:-1][enters], 0, begin)
    end = np.where(border[1:][leaves], len(down), end)
    holds = end > begin
    return begin[holds], end[holds], column[enters][holds]


def _place(values: np.ndarray, row: np.ndarray, inner: np.ndarray, edge: np.ndarray, step: int) -> np.ndarray:
    """Where, in rows, the line from sample `inner` to its neighbour outside crosses 0.5; its own row at an edge."""
    outer = np.where(edge, inner, inner + step)
    high, low = values[inner].astype(np.float64), values[outer].astype(np.float64)
    share = np.where(edge, 0.0, (high - THRESHOLD) / np.where(edge, 1.0, high - low))
    return row[inner] + step * share


def runs_of_spans(mask: np.ndarray, begin: np.ndarray, end: np.ndarray, count: int, pixels: int) -> list[list[int]]:
    """Spans (S,) in order, of masks 0 .. count - 1, counted down the columns of a frame of so many pixels -> the run
    lengths of each mask, background first. A span that ends a column may go on in the next. No span: all background."""
    apart = (begin[1:] != end[:-1]) | (mask[1:] != mask[:-1])
    first, last = np.r_[True, apart][: len(begin)], np.r_[apart, True][: len(begin)]
    begin, end, mask = begin[first], end[last], mask[first]
    spans = np.bincount(mask, minlength=count)
    bounds = np.stack([begin, end], axis=1).ravel()
    behind = 2 * spans.cumsum()
    before = np.r_[0, bounds[:-1]][: len(bounds)]
    before[(behind - 2 * spans)[spans > 0]] = 0
    rest = np.full(count, pixels)
    rest[spans > 0] -= bounds[behind[spans > 0] - 1]
    parts = np.split(bounds - before, behind[:-1]) if count else []
    return [part.tolist() + [left] * (left > 0) for part, left in zip(parts, rest.tolist(), strict=True)]
