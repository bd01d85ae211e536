"""Run lengths from outlines: small masks by hand, and any mask against every pixel looked at in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import crossings
from operators.crossings import Places, first_come, mask_runs, runs_of_spans

HALVES = np.array([0, 0.5, 1.0, 1.5, 2.0])
"""Five pixels over three cells."""


def cells(*rows: list[float]) -> np.ndarray:
    return np.array([rows], np.float32)


@pytest.mark.parametrize("probability, runs", [
    pytest.param(np.zeros((0, 3, 3), np.float32), [], id="no mask"),
    pytest.param(cells([0, 0, 0], [0, 0, 0], [0, 0, 0]), [[25]], id="no pixel"),
    pytest.param(cells([1, 1, 1], [1, 1, 1], [1, 1, 1]), [[0, 25]], id="every pixel"),
    pytest.param(cells([0.5] * 3, [0.5] * 3, [0.5] * 3), [[25]], id="0.5 is not above 0.5"),
    # The cell in the middle: half-way to a neighbour it is 0.4, half-way to a corner 0.2.
    pytest.param(cells([0, 0, 0], [0, 0.8, 0], [0, 0, 0]), [[12, 1, 12]], id="one cell, one pixel"),
    # Straight lines from 1 to 0.2 reach 0.6 half-way, so the pixels between belong to it.
    pytest.param(cells([0.2] * 3, [0.2, 1, 0.2], [0.2] * 3), [[7, 1, 3, 3, 3, 1, 7]], id="a cross"),
    pytest.param(cells([1, 0, 0], [1, 0, 0], [1, 0, 0]), [[0, 5, 20]], id="the left edge: its column alone"),
    pytest.param(cells([0, 0, 1], [0, 0, 0], [1, 0, 0]), [[4, 1, 15, 1, 4]], id="two corners"),
    # Columns 0 and 1 are full (1 and 0.75), so their runs join.
    pytest.param(cells([1, 0.5, 0], [1, 0.5, 0], [1, 0.5, 0]), [[0, 10, 15]], id="full columns are one run"),
])
def test_by_hand(probability, runs):
    assert lists(frame_runs(probability, HALVES, HALVES)) == runs


def frame_runs(masks: np.ndarray, down: np.ndarray, across: np.ndarray) -> list[np.ndarray]:
    """Of masks that all lie alike in a frame of len(down) x len(across)."""
    places = (Places.of_all(axis, len(masks)) for axis in (down, across))
    return mask_runs(masks, *places, len(down), len(across))


def lists(runs: list[np.ndarray]) -> list[list[int]]:
    return [counts.tolist() for counts in runs]


def filled(counts: np.ndarray, height: int, width: int) -> np.ndarray:
    """Run lengths as (height, width) bool, after a look at the format's rules."""
    assert counts.sum() == height * width and (counts[1:] > 0).all()
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def painted(mask: np.ndarray, down: np.ndarray, across: np.ndarray) -> np.ndarray:
    """Every pixel, bilinear in float64."""
    out = np.zeros((len(down), len(across)))
    for i, p in enumerate(down):
        for j, q in enumerate(across):
            for r, a in ((int(p), 1 - p % 1), (min(int(p) + 1, len(mask) - 1), p % 1)):
                for c, b in ((int(q), 1 - q % 1), (min(int(q) + 1, mask.shape[1] - 1), q % 1)):
                    out[i, j] += a * b * float(mask[r, c])
    return out


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 7), st.integers(1, 7), st.integers(1, 13), st.integers(1, 13))
def test_any_masks(seed, rows, columns, height, width):
    rng = np.random.default_rng(seed)
    masks = rng.choice([0.0, 0.3, 0.9, 1.0], (3, rows, columns)).astype(np.float32)
    masks += rng.uniform(-0.05, 0, masks.shape).astype(np.float32)
    down, across = (np.sort(rng.uniform(0, n - 1, m)) for n, m in ((rows, height), (columns, width)))
    for mask, runs in zip(masks, frame_runs(masks, down, across), strict=True):
        inside, exact = filled(runs, height, width), painted(mask, down, across)
        sure = np.abs(exact - 0.5) > 1e-6
        assert np.array_equal(inside[sure], (exact > 0.5)[sure])


def parts(rng: np.random.Generator, masks: int, cells: int, pixels: int) -> Places:
    """A random stretch of the axis for each mask, now and then none of it or all."""
    begin = rng.integers(0, pixels + 1, masks)
    end = np.where(rng.random(masks) < 0.3, pixels, rng.integers(begin, pixels + 1))
    values = [np.sort(rng.uniform(0, cells - 1, n)) for n in end - begin]
    return Places(np.concatenate(values), np.r_[0, (end - begin).cumsum()], np.arange(masks), begin)


@settings(max_examples=120, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 5), st.integers(1, 13), st.integers(1, 13))
def test_masks_that_lie_each_somewhere_else(seed, rows, columns, height, width):
    rng = np.random.default_rng(seed)
    masks = rng.choice([0.1, 0.4, 0.8, 1.0], (4, rows, columns)).astype(np.float32)
    down, across = parts(rng, 4, rows, height), parts(rng, 4, columns, width)
    for n, runs in enumerate(mask_runs(masks, down, across, height, width)):
        ys, xs = (axis.values[axis.offsets[n] : axis.offsets[n + 1]] for axis in (down, across))
        exact = np.zeros((height, width))
        exact[down.first[n] :, across.first[n] :][: len(ys), : len(xs)] = painted(masks[n], ys, xs)
        sure = np.abs(exact - 0.5) > 1e-6
        assert np.array_equal(filled(runs, height, width)[sure], (exact > 0.5)[sure])


def test_a_probability_that_is_not_a_number_stays_in_its_frame():
    masks = np.random.default_rng(0).choice([0.0, 1.0, np.nan], (30, 4, 4)).astype(np.float32)
    down, across = (parts(np.random.default_rng(seed), 30, 4, 9) for seed in (1, 2))
    for runs in mask_runs(masks, down, across, 9, 9) + frame_runs(masks, np.linspace(0, 3, 9), np.linspace(0, 3, 9)):
        assert runs.sum() == 81 and (runs >= 0).all()


@pytest.mark.parametrize("exclusive", [False, True])
def test_a_few_at_a_time_gives_the_same(monkeypatch, exclusive):
    masks = np.random.default_rng(0).random((9, 6, 7)).astype(np.float32)
    places = Places.of_all(np.linspace(0, 5, 40), 9), Places.of_all(np.linspace(0, 6, 50), 9)
    together = lists(mask_runs(masks, *places, 40, 50, exclusive))
    monkeypatch.setattr(crossings, "MAX_SAMPLES", 1)
    assert lists(mask_runs(masks, *places, 40, 50, exclusive)) == together


# ------------------------------------------------------------------------------------------------- spans, without masks


@pytest.mark.parametrize("spans, expected", [
    pytest.param([], [], id="none"),
    pytest.param([(0, 2, 5)], [(0, 2, 5)], id="alone"),
    pytest.param([(0, 2, 5), (1, 2, 5)], [(0, 2, 5)], id="the same twice: the second has nothing"),
    pytest.param([(0, 2, 5), (1, 0, 9)], [(0, 2, 5), (1, 0, 2), (1, 5, 9)], id="a hole in the second"),
    pytest.param([(0, 0, 9), (1, 2, 5)], [(0, 0, 9)], id="the second within the first"),
    pytest.param([(0, 2, 5), (1, 5, 7)], [(0, 2, 5), (1, 5, 7)], id="neighbours do not touch"),
    pytest.param([(1, 3, 8), (2, 1, 5), (4, 0, 9)], [(1, 3, 8), (2, 1, 3), (4, 0, 1), (4, 8, 9)], id="three deep"),
])
@pytest.mark.parametrize("at_once", [1, 2, 1 << 20])
def test_the_first_mask_that_claims_a_pixel_has_it(monkeypatch, spans, expected, at_once):
    monkeypatch.setattr(crossings, "MAX_SAMPLES", at_once)
    assert joined(first_come(*np.array(spans, np.int64).reshape(-1, 3).T)) == expected


def joined(spans: tuple[np.ndarray, ...]) -> list[tuple[int, int, int]]:
    """Spans of a mask that touch, as one."""
    out: list[tuple[int, int, int]] = []
    for mask, begin, end in zip(*(part.tolist() for part in spans), strict=True):
        before = out.pop() if out and out[-1][0] == mask and out[-1][2] == begin else (mask, begin, begin)
        out.append((mask, before[1], end))
    return out


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30), st.integers(1, 12)), max_size=25))
def test_any_spans_that_exclude_each_other(drawn):
    spans = np.array([(mask, begin, begin + length) for mask, begin, length in sorted(drawn)], np.int64).reshape(-1, 3)
    owner = np.full(43, -1)
    for mask, begin, end in spans[::-1]:
        owner[begin:end] = mask
    found = np.full(43, -1)
    for mask, begin, end in zip(*first_come(*spans.T), strict=True):
        assert (found[begin:end] == -1).all()
        found[begin:end] = mask
    np.testing.assert_array_equal(found, owner)


@pytest.mark.parametrize("spans, count, runs", [
    pytest.param([], 0, [], id="no mask"),
    pytest.param([], 2, [[12], [12]], id="masks without spans"),
    pytest.param([(0, 0, 12)], 1, [[0, 12]], id="every pixel"),
    pytest.param([(0, 0, 2), (0, 3, 4)], 1, [[0, 2, 1, 1, 8]], id="a corner"),
    pytest.param([(0, 0, 3), (0, 3, 4)], 1, [[0, 4, 8]], id="runs go on from column to column"),
    pytest.param([(1, 2, 12), (3, 0, 1)], 4, [[12], [2, 10], [12], [0, 1, 11]], id="masks between have none"),
    pytest.param([(0, 5, 7), (1, 7, 9)], 2, [[5, 2, 5], [7, 2, 3]], id="of two masks they do not join"),
])
def test_runs_of_spans_by_hand(spans, count, runs):
    assert lists(runs_of_spans(*np.array(spans, np.int64).reshape(-1, 3).T, count, 12)) == runs
