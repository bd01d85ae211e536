"""Masks of a frame as run lengths, from where their outlines cross its columns. No pixel is ever painted.

In:     probabilities (N, cells down, cells across), and where the frame's pixels lie among the cells of each mask:
        the same for all of masks of the frame, each its own of masks that fill a box
Out:    run lengths of N masks at the frame's size, down the columns, background first
State:  none
Limits: some 4 million samples (of all masks, pixel columns x cell rows) are in memory at a time, or, where masks
        exclude each other, as many pieces of spans; the spans themselves are a few for each mask and pixel column

Between two neighbouring cells of a column a bilinear mask is a straight line, which crosses 0.5 at most once, at a
place that a division gives. So of a frame's pixels only columns x cell rows are looked at, near cells above 0.5: at
1080p a twelfth of them. All masks are done at once. Painting each in a window of its own took twice as long.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

THRESHOLD = 0.5
MAX_SAMPLES = 1 << 22

Spans = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of each span (S,) int64: its mask, its first pixel and the one past its last, counted down the columns of a frame."""


@dataclass(frozen=True, eq=False)
class Places:
    """Where the pixels of one axis of a frame lie among the cells of N masks.

    The pixels of mask n are a part of the axis: `values[offsets[p]:offsets[p + 1]]`, where p is `part[n]`, are the
    places of the pixels from `first[n]` on. Masks may share a part.
    """

    values: np.ndarray
    """(P,) float64, 0 .. cells - 1, rising in each part."""
    offsets: np.ndarray
    """(parts + 1,) int64."""
    part: np.ndarray
    """(N,) int64."""
    first: np.ndarray
    """(N,) int64."""

    @classmethod
    def of_all(cls, values: np.ndarray, masks: int) -> Places:
        """The same for all masks, from the axis' first pixel to its last."""
        nothing = np.zeros(masks, np.int64)
        return cls(values, np.array([0, len(values)]), nothing, nothing)

    @cached_property
    def count(self) -> np.ndarray:
        """(N,) pixels of each mask."""
        return np.diff(self.offsets)[self.part]

    @cached_property
    def _keys(self) -> np.ndarray:
        """Each value with its part before it."""
        return _pairs(np.repeat(np.arange(len(self.offsets) - 1), np.diff(self.offsets)), self.values)

    def at(self, mask: np.ndarray, pixel: np.ndarray) -> np.ndarray:
        """The places of pixels, counted from the first of their mask."""
        return self.values[self.offsets[self.part[mask]] + pixel]

    def search(self, mask: np.ndarray, place: np.ndarray, side: str) -> np.ndarray:
        """numpy's searchsorted among the pixels of each mask: before how many of them `place` comes."""
        if len(self.offsets) == 2:                                     # one part for all: no pairs to compare
            return np.searchsorted(self.values, place, side=side)
        part = self.part[mask]
        found = np.searchsorted(self._keys, _pairs(part, place), side=side) - self.offsets[part]
        return np.minimum(found, self.count[mask])                     # a place that is not a number comes after all

    def of(self, masks: slice) -> Places:
        """Those of some of the masks."""
        return Places(self.values, self.offsets, self.part[masks], self.first[masks])


def mask_runs(
    probability: np.ndarray, down: Places, across: Places, height: int, width: int, exclusive: bool = False
) -> list[np.ndarray]:
    """(N, h, w) float32 probabilities -> N arrays of run lengths in a frame of height x width pixels. No mask: [].

    A pixel is the mask's if it has a place and the probability there, linear between cells, is above 0.5.
    `exclusive`: a pixel that several masks claim is the first one's.
    """
    if not len(probability):
        return []
    columns = np.ascontiguousarray(probability.transpose(0, 2, 1))                        # (N, w, h)
    at_once = max(MAX_SAMPLES // max(probability.shape[1] * int(across.count.max()), 1), 1)
    parts = []
    for first in range(0, len(columns), at_once):
        masks = slice(first, first + at_once)
        mask, begin, end = _spans(columns[masks], down.of(masks), across.of(masks), height)
        parts.append((first + mask, begin, end))
    spans = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    return runs_of_spans(*(first_come(*spans) if exclusive else spans), len(columns), height * width)


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Numbers that numpy orders by `first`, then by `second`: complex ones."""
    pairs = np.empty(len(first), np.complex128)
    pairs.real, pairs.imag = first, second
    return pairs


def _ragged(begin: np.ndarray, count: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """begin[i], begin[i] + 1, ... count[i] numbers for each i, in one row; before them, which i each belongs to."""
    owner = np.repeat(np.arange(len(count)), count)
    return owner, np.arange(len(owner)) + np.repeat(begin - (count.cumsum() - count), count)


def _extent(inside: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The first that is inside and the one past the last, of each row of (N, cells); 0, 0 where none is."""
    some = inside.any(1)
    return inside.argmax(1), np.where(some, inside.shape[1] - inside[:, ::-1].argmax(1), 0)


def _spans(columns: np.ndarray, down: Places, across: Places, height: int) -> Spans:
    """Of (N, w, h): every span of a pixel column that lies inside, in order."""
    n, w, h = columns.shape
    inside = columns > THRESHOLD
    left, right = _extent(inside.any(2))
    top, bottom = _extent(inside.any(1))
    masks = np.arange(n)
    x_begin = across.search(masks, left - 1, side="right")             # pixels that look at a cell that is inside
    x_end = across.search(masks, right, side="left")
    top, bottom = np.maximum(top - 1, 0), np.minimum(bottom + 1, h)    # a row without on either side, to cross from
    some = (right > 0) & (down.count > 0)
    mask, x = _ragged(x_begin, np.where(some, x_end - x_begin, 0))                        # every pixel column (C,)
    place = across.at(mask, x)
    cell = np.minimum(place.astype(np.int64), max(w - 2, 0))
    share = (place - cell).astype(np.float32)
    column, row = _ragged(top[mask], np.where(some, bottom - top, 0)[mask])               # every sample (S,)
    at = (mask * w + cell)[column] * h + row
    flat = columns.reshape(-1)
    values = flat[at] + (flat[at + (h if w > 1 else 0)] - flat[at]) * share[column]
    begin, end, of = _crossings(values, column, row, mask, down)
    mask, x = mask[of], x[of]
    origin = (across.first[mask] + x) * height + down.first[mask]
    return mask, origin + begin, origin + end


def _crossings(values: np.ndarray, column: np.ndarray, row: np.ndarray, mask: np.ndarray, down: Places) -> Spans:
    """First pixel, the one past the last, and the column, of every span of samples above 0.5 that holds a pixel.

    `values`, `column`, `row` (S,) are the samples; `mask` (C,) is that of each column.
    """
    inside = values > THRESHOLD
    border = np.ones(len(values) + 1, bool)                            # before a column's first sample, after its last
    border[1:-1] = column[1:] != column[:-1]
    enters = np.flatnonzero(inside & ~(np.r_[False, inside[:-1]] & ~border[:-1]))
    leaves = np.flatnonzero(inside & ~(np.r_[inside[1:], False] & ~border[1:]))
    of = mask[column[enters]]
    # A column's first sample is inside at the mask's upper edge alone, its last at the lower edge.
    begin = down.search(of, _place(values, row, enters, border[:-1][enters], -1), side="right")
    end = down.search(of, _place(values, row, leaves, border[1:][leaves], +1), side="left")
    begin = np.where(border[:-1][enters], 0, begin)
    end = np.where(border[1:][leaves], down.count[of], end)
    holds = end > begin
    return begin[holds], end[holds], column[enters][holds]


def _place(values: np.ndarray, row: np.ndarray, inner: np.ndarray, edge: np.ndarray, step: int) -> np.ndarray:
    """Where, in rows, the line from sample `inner` to its neighbour outside crosses 0.5; its own row at an edge."""
    outer = np.where(edge, inner, inner + step)
    high, low = values[inner].astype(np.float64), values[outer].astype(np.float64)
    share = np.where(edge, 0.0, (high - THRESHOLD) / np.where(edge, 1.0, high - low))
    return row[inner] + step * share


def first_come(mask: np.ndarray, begin: np.ndarray, end: np.ndarray) -> Spans:
    """Of spans (S,), in the order of their masks, what no span of a mask before holds; in order. No span: none.

    All borders cut the frame into cells; the cells of the spans are written with their masks, the last mask first.
    """
    borders = np.concatenate([begin, end])
    order = np.argsort(borders)
    borders = borders[order]
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    low, high = rank[: len(mask)], rank[len(mask) :]
    free = int(mask.max(initial=-1)) + 1
    owner = np.full(len(borders), free, np.min_scalar_type(free))      # of the cell that begins with each border
    for part in _bounded((high - low)[::-1]):
        part = slice(len(mask) - part.stop, len(mask) - part.start)
        span, cell = _ragged(low[part][::-1], (high - low)[part][::-1])
        owner[cell] = mask[part][::-1][span]                           # of cells named twice numpy keeps the last
    cells = np.flatnonzero(owner[:-1] != free)
    cells = cells[borders[cells] < borders[cells + 1]]
    cells = cells[np.argsort(owner[cells], kind="stable")]
    return owner[cells].astype(np.int64), borders[cells], borders[cells + 1]


def _bounded(count: np.ndarray) -> Iterator[slice]:
    """Slices of those whose `count` together is at most MAX_SAMPLES, or that are one alone."""
    total = count.cumsum()
    first = 0
    while first < len(count):
        before = total[first - 1] if first else 0
        last = max(int(np.searchsorted(total, before + MAX_SAMPLES, side="right")), first + 1)
        yield slice(first, last)
        first = last


def runs_of_spans(mask: np.ndarray, begin: np.ndarray, end: np.ndarray, count: int, pixels: int) -> list[np.ndarray]:
    """Spans (S,) in order, of masks 0 .. count - 1, counted down the columns of a frame of so many pixels -> the run
    lengths of each mask, background first. A span that ends a column may go on in the next. No span: all background."""
    apart = (begin[1:] != end[:-1]) | (mask[1:] != mask[:-1])
    first, last = np.r_[True, apart][: len(begin)], np.r_[apart, True][: len(begin)]
    begin, end, mask = begin[first], end[last], mask[first]
    last_of = np.cumsum(2 * np.bincount(mask, minlength=count) + 1) - 1     # where each mask's borders have `pixels`
    borders = np.empty(2 * len(mask) + count, np.int64)
    at = 2 * np.arange(len(mask)) + mask                                    # after one `pixels` of each mask before
    borders[at], borders[at + 1], borders[last_of] = begin, end, pixels
    runs = np.diff(borders, prepend=0)
    runs[last_of[:-1] + 1] = borders[last_of[:-1] + 1]                      # a mask's first run begins at the frame's
    kept = np.ones(len(runs), bool)
    kept[last_of] = runs[last_of] > 0
    return np.split(runs[kept], np.cumsum(kept)[last_of[:-1]]) if count else []
