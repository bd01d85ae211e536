"""The run lengths of many masks at once: do they fill their frames, and where and how large are the masks?

In:     compressed counts (text) or uncompressed ones (lists), S masks, and the pixels of each one's frame
Out:    Extents of the S masks, or None where any of them is damaged; no pixel is decoded
State:  none
Limits: a number of compressed counts has at most MAX_DIGITS characters, a frame at most MAX_PIXELS pixels
Source: COCO's compressed form: numbers of 5 bits a character, from character 48 on, lowest first, bit 5 set where more
        follow, bit 4 of the last one the sign; from the fourth number on each is the difference to the last but one

Letters: S strings, a mask each · E characters · R numbers, that is runs, of all strings joined
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

MAX_PIXELS = 1 << 28
"""Pixels of a frame, 16384 x 16384. Runs up to here fit pycocotools' 32 bits with room for their differences."""

MAX_DIGITS = 6
"""Characters of one number in compressed counts: 6 x 5 bits hold every difference of two runs within MAX_PIXELS."""

BLOCK = 1 << 17
"""Characters that are looked at at once. What numpy then holds stays in the cache: a third faster than all at once."""


@dataclass(frozen=True)
class Extents:
    """What S masks cover, in pixels counted down the columns. Of a mask without pixels `ends` <= `begins`."""

    areas: np.ndarray
    """(S,) int64"""
    begins: np.ndarray
    """(S,) int64: no pixel of the mask comes before this one"""
    ends: np.ndarray
    """(S,) int64: nor at this one or after it"""

    @classmethod
    def joined(cls, parts: Sequence[Extents]) -> Extents:
        """One after the other; () gives those of no mask."""
        columns = [[getattr(part, name) for part in parts] for name in ("areas", "begins", "ends")]
        return cls(*(np.concatenate([np.zeros(0, np.int64), *column]) for column in columns))


def compressed_extents(counts: Sequence[str], pixels: np.ndarray) -> Extents | None:
    """Extents of S masks from their compressed counts; None unless each one's runs sum up to its `pixels` (S,)."""
    parts = []
    sizes = np.cumsum(np.fromiter(map(len, counts), dtype=np.int64, count=len(counts)))
    start = 0
    while start < len(counts):
        before = sizes[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(sizes, before + BLOCK, side="right")))
        numbers = _numbers(counts[start:stop])
        part = None if numbers is None else _extents(*numbers, pixels[start:stop], differences=True)
        if part is None:
            return None
        parts.append(part)
        start = stop
    return Extents.joined(parts)


def plain_extents(counts: Sequence[list[int]], pixels: np.ndarray) -> Extents | None:
    """The same for S lists of whole numbers, as uncompressed RLE holds them; None for other things in them too."""
    lengths = np.array([len(runs) for runs in counts], dtype=np.int64)                     # (S,)
    if not lengths.all():
        return None
    try:
        runs = np.array(list(chain.from_iterable(counts)))                                  # (R,)
    except (ValueError, TypeError):       # lists of different lengths inside
        return None
    if not len(runs):
        return Extents.joined([])
    # no run above the largest frame: a sum of such runs cannot wrap around
    if runs.ndim != 1 or runs.dtype.kind != "i" or runs.max() > MAX_PIXELS:
        return None
    return _extents(runs.astype(np.int64), np.cumsum(lengths), pixels, differences=False)


def run_ends(counts: Sequence[str]) -> list[np.ndarray]:
    """Where each run of S masks ends, in pixels counted down the columns: (R,) int64 each, rising; () gives none.

    The mask begins where an even run ends, and stops where an odd one does. Raises ValueError for damaged counts; that
    they fill their frames is for the caller to know.
    """
    numbers = _numbers(counts) if counts else (np.zeros(0, np.int64), np.zeros(0, np.int64))
    if numbers is None:
        raise ValueError("no compressed RLE")
    values, past = numbers
    found = []
    for runs in np.split(values, past[:-1]):
        for half in (1, 2):         # places 1, 3, 5, ... and 2, 4, 6, ...: each is the difference to the last but one
            runs[half::2] = np.cumsum(runs[half::2])
        found.append(np.cumsum(runs))
    return found[: len(counts)]


def _numbers(counts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """The numbers written in S strings (R,), and how many there are up to the end of each (S,); None if damaged."""
    text = "".join(counts)
    lengths = np.fromiter(map(len, counts), dtype=np.int64, count=len(counts))             # (S,)
    if not text.isascii() or not lengths.all():
        return None
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8) - np.uint8(48)              # (E,); below 48 wraps round
    is_end = codes < 32                                                                     # (E,)
    last = np.cumsum(lengths) - 1                                                           # (S,)
    if codes.max() > 63 or not is_end[last].all():
        return None
    ends = np.flatnonzero(is_end)                                                           # (R,)
    digits = np.diff(ends, prepend=-1)                                                      # (R,)
    most = int(digits.max())
    if most > MAX_DIGITS:
        return None
    values = (codes[ends] ^ np.uint8(16)).astype(np.int64) - 16                             # (R,); bit 4 is the sign
    for digit in range(1, most):                                                            # from the top down
        more = np.flatnonzero(digits > digit)
        values[more] = (values[more] << 5) | (codes[ends[more] - digit] & 31)
    return values, np.searchsorted(ends, last) + 1


def _extents(values: np.ndarray, past: np.ndarray, pixels: np.ndarray, *, differences: bool) -> Extents | None:
    """Extents from runs (R,) or their `differences`, `past` (S,) the end of each mask; None unless they fill `pixels`.

    Runs at even places of a mask are background, at odd ones the mask: each half of the values, every other one of all
    masks joined, holds for each mask one of the two, and its differences are summed up within that half.
    """
    first = np.concatenate([[0], past[:-1]])                                                # (S,)
    areas, total = np.zeros((2, len(first)), dtype=np.int64)
    final = np.zeros(len(first), dtype=np.int64)                    # the last run where it is background, else 0
    for half in (0, 1):
        runs = values[half::2]                                                              # (R / 2,)
        begin, end = (first + 1 - half) >> 1, (past + 1 - half) >> 1                        # (S,), within `runs`
        inside = (first - half) & 1                                                         # (S,), 1: runs of the mask
        if differences:
            # sums start anew at place 1 and, as place 0 stands alone, at place 2
            sums = np.concatenate([[0], np.cumsum(runs)])
            anew = np.minimum(begin + 1 - inside, end)
            runs = sums[1:] - np.repeat(sums[anew], end - begin)
            outside = inside == 0
            runs[begin[outside]] = values[first[outside]]
        if runs.min(initial=0) < 0:
            return None
        sums = np.concatenate([[0], np.cumsum(runs)])
        here = sums[end] - sums[begin]
        total += here
        areas += here * inside
        closes = np.flatnonzero(((past - first) & 1 == 1) & (inside == 0))
        final[closes] = runs[end[closes] - 1]
    if not (total == pixels).all():
        return None
    return Extents(areas, values[first], pixels - final)
