"""Boundaries and what lies near them, on maps small enough to draw, and against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from operators.davis_boundary import (
    MAX_LABELS,
    Canvas,
    _dilated,
    bits_near,
    boundary,
    boundary_counts,
    common,
    planes,
    radius,
)
from tests.operators.davis_direct import boundary_f, boundary_map, brute_dilate


def drawn(*rows: str) -> np.ndarray:
    return np.array([[0 if sign == "." else int(sign) for sign in row] for row in rows], dtype=np.uint8)


def shown(labels: np.ndarray, label: int) -> list[str]:
    canvas = Canvas(*labels.shape, radius(*labels.shape))
    found = boundary(labels, 1, 9, canvas)
    picture = np.zeros(canvas.size, dtype=bool)
    picture[found.at] = found.bits & (1 << (label - 1)) != 0
    rows = picture[canvas.origin :][: labels.shape[0] * canvas.stride].reshape(labels.shape[0], -1)
    return ["".join("#" if pixel else "." for pixel in row[: labels.shape[1]]) for row in rows]


BOUNDARIES = [
    pytest.param(drawn("...", "..."), ["...", "..."], id="nothing"),
    pytest.param(drawn("111", "111"), ["...", "..."], id="the whole frame has no boundary"),
    pytest.param(drawn("1"), ["."], id="one pixel is the corner"),
    pytest.param(drawn("....", ".1..", "...."), ["##..", "##..", "...."], id="offset to the upper left"),
    pytest.param(drawn("...", "..1"), [".##", ".#."], id="last row and column along the border, the corner never"),
    pytest.param(drawn("12"), ["#."], id="between two labels"),
    pytest.param(drawn("2.", ".1"), ["##", "#."], id="a neighbour diagonally below"),
    pytest.param(drawn("23", "3."), ["..", ".."], id="others' boundaries are not this one's"),
]


@pytest.mark.parametrize("labels, expected", BOUNDARIES)
def test_boundary(labels, expected):
    assert shown(labels, 1) == expected
    assert np.array_equal(boundary_map(labels == 1), np.array([[s == "#" for s in row] for row in expected]))


@pytest.mark.parametrize("height, width, expected", [
    pytest.param(1, 1, 1, id="at least one"),
    pytest.param(75, 100, 1, id="0.008 x 125 is exactly 1"),
    pytest.param(76, 100, 2, id="a little more"),
    pytest.param(480, 854, 8, id="480p"),
    pytest.param(1080, 1920, 18, id="1080p"),
])  # fmt: skip
def test_radius(height, width, expected):
    assert radius(height, width) == expected


@pytest.mark.parametrize("r", [1, 2, 3, 8])
def test_half_widths_are_the_disk(r):
    disk = [[x for x in range(-r, r + 1) if x * x + y * y <= r * r] for y in range(r + 1)]
    assert Canvas(5, 5, r).half_widths == [max(row) for row in disk]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 4), st.data())
def test_both_ways_of_dilation_are_brute_force(height, width, r, data):
    labels = data.draw(arrays.arrays(np.uint8, (height, width), elements=st.integers(0, 20)))
    canvas = Canvas(height, width, r)
    found = boundary(labels, 1, 20, canvas)
    rows, columns = np.indices((height, width)).reshape(2, -1)
    everywhere = canvas.origin + rows * canvas.stride + columns
    crowded = _dilated(found, canvas)[everywhere]
    one_by_one = [bits_near(found, everywhere[[k]], Canvas(height, width, r)) for k in range(len(everywhere))]
    for label in (1, 2, 20):
        bit = np.uint32(1 << (label - 1))
        expected = brute_dilate(boundary_map(labels == label), r).ravel()
        assert np.array_equal(crowded & bit != 0, expected)
        assert np.array_equal(np.concatenate(one_by_one) & bit != 0, expected)


@pytest.mark.parametrize("count", [1, 8, 9, 16, 17, 32, 33, MAX_LABELS])
def test_every_width_of_integer_holds_its_labels(count):
    labels = np.arange(count + 2, dtype=np.uint8).reshape(1, -1)        # 0, 1 .. count, and one too many
    canvas = Canvas(1, count + 2, 1)
    found = boundary(labels, 1, count, canvas)
    assert np.bitwise_count(planes(found.bits, count)).sum(axis=1).tolist() == [2] * count
    assert np.bitwise_count(found.bits).max() == min(count, 2)


def test_thin_boundaries_in_a_large_frame_take_the_sparse_way():
    truth, found = np.zeros((90, 120), np.uint8), np.zeros((90, 120), np.uint8)
    truth[20:40, 30:60], found[21:42, 29:59], found[70:, 110:] = 3, 2, 5
    counts = boundary_counts(truth, found, 3, 1, 6)
    assert counts.f_measure().shape == (1, 6)
    for label in range(1, 7):
        assert counts.f_measure()[0, label - 1] == boundary_f(truth == 3, found == label, brute_dilate)


@pytest.mark.parametrize("objects, proposals", [(0, 3), (2, 0), (0, 0)])
def test_no_labels(objects, proposals):
    labels = drawn("12", "21")
    assert boundary_counts(labels, labels, 1, objects, proposals).f_measure().shape == (objects, proposals)


def test_common_of_no_pixels():
    assert common(planes(np.zeros(0, np.uint8), 2), planes(np.zeros(0, np.uint8), 3)).tolist() == [[0] * 3] * 2
