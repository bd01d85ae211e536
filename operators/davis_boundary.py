"""Boundary F of many masks with many others, all in one pass over two label maps.

In:     two label maps (H, W) uint8 of one frame: the objects', and the proposals'
Out:    BoundaryCounts: boundary pixels of each label, and how many of them lie near each label of the other map
State:  none
Limits: up to 64 labels of a map at once, a bit each of one integer a pixel; the caller takes more in turns
Source: evaluation specification, "DAVIS 2019 unsupervised J and F", 4: the boundary map, and the disk of radius
        ceil(0.008 x diagonal). P. Arbelaez et al., "Contour Detection and Hierarchical Image Segmentation", PAMI 2011.

A direct program draws and dilates two masks for each pair of object and proposal. Here a pixel carries the set of all
labels whose boundary it is on, as bits of one integer: a dilation is an OR of shifted integers, the same work for one
label and for twenty. And as what is asked for is only whether a boundary pixel has some label near it, no
dilated map is made where boundaries are thin: 0.4 ms a map of 480 x 854 with 20 labels, where in full it takes 1.6 ms.

Letters: H W frame · r radius of the disk · n m boundary pixels of the two maps · L labels of a map
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BOUND = 0.008
"""Share of the frame's diagonal within which boundaries agree."""
MAX_LABELS = 64
CROWDED = 0.05
"""Share of the pixels that are on a boundary from which on whole maps are dilated: about where both ways take equally
long. Only maps of noise have that many."""


@dataclass(frozen=True)
class BoundaryCounts:
    """How the boundaries of G objects and P proposals lie to each other in one frame; counts of pixels, int64."""

    objects: np.ndarray
    """(G,) on the boundary of each object."""
    proposals: np.ndarray
    """(P,) on that of each proposal."""
    objects_near: np.ndarray
    """(G, P) of the object's, those within r of the proposal's."""
    proposals_near: np.ndarray
    """(G, P) of the proposal's, those within r of the object's."""

    def f_measure(self) -> np.ndarray:
        """F of each pair, (G, P) float64: 1 where neither has a boundary, 0 where one has none."""
        with np.errstate(invalid="ignore"):                                          # 0 / 0 is settled below
            precision = self.proposals_near / self.proposals                         # (G, P)
            recall = self.objects_near / self.objects[:, None]                       # (G, P)
            f = 2 * precision * recall / (precision + recall)
        neither = (self.objects[:, None] == 0) & (self.proposals == 0)
        return np.where(neither, 1.0, np.where(np.isnan(f), 0.0, f))


@dataclass(frozen=True)
class Canvas:
    """A frame laid out as one line of pixels, with room on all sides for shifts of up to `radius` either way.

    Row y, column x is number `origin + y * stride + x`. The room right of a row is also that left of the next.
    """

    height: int
    width: int
    radius: int

    @property
    def stride(self) -> int:
        return self.width + self.radius

    @property
    def origin(self) -> int:
        return self.radius * (self.stride + 1)

    @property
    def size(self) -> int:
        return self.stride * (self.height + 2 * self.radius) + 2 * self.radius

    @property
    def half_widths(self) -> list[int]:
        """Of the disk's rows 0, 1, .. r above or below its middle: the largest x with x^2 + y^2 <= r^2."""
        return [math.isqrt(self.radius**2 - y * y) for y in range(self.radius + 1)]


@dataclass(frozen=True)
class Boundary:
    """The pixels where a label map changes, by their numbers on the canvas, and whose boundary each is on."""

    at: np.ndarray
    """(n,) int64, rising."""
    bits: np.ndarray
    """(n,) of some unsigned type: bit k for label first + k."""


def boundary_counts(truth: np.ndarray, found: np.ndarray, first: int, num_objects: int, num_proposals: int
                    ) -> BoundaryCounts:  # fmt: skip
    """Compare labels first .. first + num_objects - 1 of `truth` with labels 1 .. num_proposals of `found`.

    Maps (H, W) uint8 of equal size, at most MAX_LABELS on either side. No labels on a side give arrays of length 0.
    """
    height, width = truth.shape
    canvas = Canvas(height, width, radius(height, width))
    objects, proposals = boundary(truth, first, num_objects, canvas), boundary(found, 1, num_proposals, canvas)
    object_planes, proposal_planes = planes(objects.bits, num_objects), planes(proposals.bits, num_proposals)
    near_proposals = planes(bits_near(proposals, objects.at, canvas), num_proposals)        # (P, n / 64)
    near_objects = planes(bits_near(objects, proposals.at, canvas), num_objects)            # (G, m / 64)
    return BoundaryCounts(
        objects=np.bitwise_count(object_planes).sum(axis=1, dtype=np.int64),
        proposals=np.bitwise_count(proposal_planes).sum(axis=1, dtype=np.int64),
        objects_near=common(object_planes, near_proposals),
        proposals_near=common(near_objects, proposal_planes),
    )


def radius(height: int, width: int) -> int:
    """Of the disk, in pixels: at least 1."""
    return math.ceil(BOUND * math.sqrt(height * height + width * width))


def boundary(labels: np.ndarray, first: int, num_labels: int, canvas: Canvas) -> Boundary:
    """Where a label map (H, W) uint8 changes to the right, below or diagonally below, and from which labels to which.

    A pixel is on the boundary of every label among itself and those three neighbours, unless all four are one. The last
    row and column have neighbours along the border only.
    """
    height, width = canvas.height, canvas.width
    padded = np.zeros((height + 1, canvas.stride), dtype=np.uint8)
    padded[:-1, :width] = labels
    padded[:-1, width] = labels[:, -1]        # the border repeated is a neighbour that never differs
    padded[-1] = padded[-2]
    here = padded[:-1, :width]
    right, below, across = padded[:-1, 1 : width + 1], padded[1:, :width], padded[1:, 1 : width + 1]
    changes = np.zeros((height, canvas.stride), dtype=bool)
    changes[:, :width] = (here != right) | (here != below) | (here != across)
    at = np.flatnonzero(changes)                                                            # (n,)
    bit_of = np.zeros(256, dtype=_integer_of(num_labels))
    bit_of[first : first + num_labels] = np.left_shift(1, np.arange(num_labels, dtype=np.uint64), dtype=np.uint64)
    line = padded.ravel()
    bits = bit_of[line[at]]
    for step in (1, canvas.stride, canvas.stride + 1):
        bits |= bit_of[line[at + step]]
    return Boundary(at + canvas.origin, bits)


def bits_near(boundary: Boundary, at: np.ndarray, canvas: Canvas) -> np.ndarray:
    """The labels that have a boundary pixel within r of each of the pixels `at` (m,).  -> (m,) bits"""
    if len(boundary.at) + len(at) > CROWDED * canvas.height * canvas.width:
        return _dilated(boundary, canvas)[at]
    line = np.zeros(canvas.size, dtype=boundary.bits.dtype)       # labels with a pixel up to `half_width` left or right
    near = np.zeros(len(at), dtype=boundary.bits.dtype)           # (m,)
    for half_width in range(canvas.radius + 1):
        for step in {half_width, -half_width}:
            line[boundary.at + step] |= boundary.bits             # no place twice within one step, so none is lost
        for row in _rows(canvas, half_width):
            near |= line[at + row * canvas.stride]
    return near


def _dilated(boundary: Boundary, canvas: Canvas) -> np.ndarray:
    """The same at every pixel of the canvas, by shifts of the whole.  -> (canvas.size,) bits"""
    points = np.zeros(canvas.size, dtype=boundary.bits.dtype)
    points[boundary.at] = boundary.bits
    line, out = points.copy(), np.zeros_like(points)
    for half_width in range(canvas.radius + 1):
        for step in {half_width, -half_width}:
            _or_shifted(line, points, step)
        for row in _rows(canvas, half_width):
            _or_shifted(out, line, row * canvas.stride)
    return out


def _rows(canvas: Canvas, half_width: int) -> set[int]:
    """The rows of the disk, counted from its middle, that are this wide."""
    return {sign * row for row, width in enumerate(canvas.half_widths) if width == half_width for sign in (1, -1)}


def _or_shifted(into: np.ndarray, line: np.ndarray, step: int) -> None:
    if step >= 0:
        into[step:] |= line[: len(line) - step]
    else:
        into[:step] |= line[-step:]


def planes(bits: np.ndarray, num_labels: int) -> np.ndarray:
    """Pixels' sets of labels turned into labels' sets of pixels.  (n,) bits -> (num_labels, n / 64) uint64"""
    packed = np.zeros((num_labels, -(-len(bits) // 64) * 8), dtype=np.uint8)
    used = -(-len(bits) // 8)
    for label in range(num_labels):
        packed[label, :used] = np.packbits(bits & bits.dtype.type(1 << label) != 0)
    return packed.view(np.uint64)


def common(rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sizes of the intersections of sets of pixels.  (R, words), (C, words) uint64 -> (R, C) int64"""
    counts = [np.bitwise_count(row & columns).sum(axis=1, dtype=np.int64) for row in rows]
    return np.array(counts, dtype=np.int64).reshape(len(rows), len(columns))


def _integer_of(num_labels: int) -> type[np.unsignedinteger]:
    """The narrowest integer with a bit for each label: half the width is half the time."""
    types = {8: np.uint8, 16: np.uint16, 32: np.uint32, MAX_LABELS: np.uint64}
    return next(integer for size, integer in types.items() if num_labels <= size)
