"""Run lengths from outlines: small masks by hand, and any mask against every pixel looked at in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators import crossings
from operators.crossings import mask_runs

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
    assert mask_runs(probability, HALVES, HALVES) == runs


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
    for mask, runs in zip(masks, mask_runs(masks, down, across), strict=True):
        inside = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
        exact = painted(mask, down, across)
        sure = np.abs(exact - 0.5) > 1e-6
        assert sum(runs) == height * width and all(run > 0 for run in runs[1:])
        assert np.array_equal(inside[sure], (exact > 0.5)[sure])


def test_a_few_at_a_time_gives_the_same(monkeypatch):
    masks = np.random.default_rng(0).random((9, 6, 7)).astype(np.float32)
    places = np.linspace(0, 5, 40), np.linspace(0, 6, 50)
    together = mask_runs(masks, *places)
    monkeypatch.setattr(crossings, "MAX_SAMPLES", 1)
    assert mask_runs(masks, *places) == together
