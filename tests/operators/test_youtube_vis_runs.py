"""Run lengths of many masks at once, against the pixels of each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from operators import youtube_vis_runs
from operators.youtube_vis_runs import MAX_PIXELS, compressed_extents, plain_extents, run_ends


def text_of(runs: list[int]) -> str:
    """COCO's compressed form, in plain loops."""
    text = ""
    for place, run in enumerate(runs):
        number = run - (runs[place - 2] if place > 2 else 0)
        while True:
            digit, number = number & 31, number >> 5
            more = number != (-1 if digit & 16 else 0)
            text += chr(48 + digit + 32 * more)
            if not more:
                break
    return text


def naive(runs: list[int]) -> tuple[int, int, int]:
    """Area, first pixel and the one past the last, from the pixels; 0, 0, 0 without any."""
    pixels = np.zeros(sum(runs), dtype=bool)
    for start, run in zip(np.cumsum(runs)[:-1:2], runs[1::2], strict=False):
        pixels[start : start + run] = True
    inside = np.flatnonzero(pixels)
    return (len(inside), int(inside[0]), int(inside[-1]) + 1) if len(inside) else (0, 0, 0)


RUNS = st.lists(st.one_of(st.integers(0, 3), st.integers(0, 3000)), min_size=1, max_size=12)


@given(st.lists(RUNS, max_size=8), st.sampled_from([4, 40, 1 << 17]))
@settings(max_examples=300, deadline=None)
def test_extents_are_those_of_the_pixels(many, block):
    youtube_vis_runs.BLOCK, before = block, youtube_vis_runs.BLOCK
    try:
        pixels = np.array([sum(runs) for runs in many], dtype=np.int64)
        for found in (plain_extents(many, pixels), compressed_extents([text_of(runs) for runs in many], pixels)):
            assert found.areas.shape == found.begins.shape == found.ends.shape == (len(many),)
            for i, runs in enumerate(many):
                area, first, past = naive(runs)
                assert found.areas[i] == area
                if area:        # runs of length 0 may make them wider than they need be
                    assert found.begins[i] <= first and found.ends[i] >= past
                    if 0 not in runs[1:]:
                        assert (found.begins[i], found.ends[i]) == (first, past)
                elif 0 not in runs[1:]:
                    assert found.ends[i] <= found.begins[i]
    finally:
        youtube_vis_runs.BLOCK = before


def test_the_form_is_that_of_pycocotools():
    runs = [5, 0, 3, 1000, 2, 70_000, 1, 31, 32]
    pixels = sum(runs)
    assert coco_mask.frPyObjects({"size": [1, pixels], "counts": runs}, 1, pixels)["counts"] == text_of(runs).encode()


@given(st.lists(RUNS, min_size=1, max_size=5), st.data())
@settings(max_examples=200, deadline=None)
def test_one_that_does_not_fill_its_frame_spoils_all(many, data):
    pixels = np.array([sum(runs) for runs in many], dtype=np.int64)
    pixels[data.draw(st.integers(0, len(many) - 1))] += data.draw(st.sampled_from([-1, 1, 2**32, -(2**32)]))
    assert plain_extents(many, pixels) is None
    assert compressed_extents([text_of(runs) for runs in many], pixels) is None


@pytest.mark.parametrize("runs, pixels", [
    pytest.param([-1, 5], 4, id="negative"),
    pytest.param([6, -2, 0], 4, id="negative amid others"),
    pytest.param([2**32, 4], 4, id="wraps round in 32 bits"),
    pytest.param([2**61] * 8 + [4], 4, id="wraps round in 64 bits"),
    pytest.param([-(2**31), 2**31, 4], 4, id="large ones of both signs"),
])  # fmt: skip
def test_counts_that_overflow(runs, pixels):
    assert plain_extents([runs], np.array([pixels])) is None
    assert compressed_extents([text_of(runs)], np.array([pixels])) is None


@pytest.mark.parametrize("runs", [[], [1.0, 3], [[4]], [[1], [1, 2]], ["4"], [None, 4], [2**64], [2**63, 4], [True]])
def test_no_whole_numbers(runs):
    assert plain_extents([[4], runs], np.array([4, 4])) is None


@pytest.mark.parametrize("text", ["", "T", "4T", "é", "4\0", "4 ", "\x7f", "o" * 5000 + "4", "\ud800"])
def test_no_numbers(text):
    assert compressed_extents(["4", text], np.array([4, 4])) is None


def test_no_mask_at_all():
    for measure in (plain_extents, compressed_extents):
        found = measure([], np.zeros(0, dtype=np.int64))
        assert found.areas.shape == found.begins.shape == found.ends.shape == (0,)


def test_the_largest_frame():
    runs = [MAX_PIXELS // 2, MAX_PIXELS // 2]
    for found in (plain_extents([runs], np.array([MAX_PIXELS])),
                  compressed_extents([text_of(runs)], np.array([MAX_PIXELS]))):  # fmt: skip
        assert (found.areas[0], found.begins[0], found.ends[0]) == (runs[1], runs[0], MAX_PIXELS)


@given(st.lists(RUNS, max_size=8))
@settings(max_examples=200, deadline=None)
def test_runs_end_where_their_lengths_sum_up_to(many):
    found = run_ends([text_of(runs) for runs in many])
    assert [ends.tolist() for ends in found] == [np.cumsum(runs).tolist() for runs in many]


@pytest.mark.parametrize("damaged", ["", "z", "0\x7f", "é"])
def test_runs_of_damaged_counts(damaged):
    with pytest.raises(ValueError, match="no compressed RLE"):
        run_ends(["0", damaged])
