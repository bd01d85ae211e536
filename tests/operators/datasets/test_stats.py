"""Statistics: every number against a case worked out by hand, or against masks decoded pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from operators.datasets.stats import (
    DISTRIBUTIONS,
    box_overlap,
    centroid,
    collect,
    gaps,
    speeds,
    summary,
)
from operators.datasets.truth import open_youtube_vis
from tests.operators.datasets.small_truth import rectangle, rle, track, video, write

MASKS = arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12)))


@given(MASKS)
@settings(max_examples=200, deadline=None)
def test_centroid(mask):
    y, x = np.nonzero(mask)
    if len(x):
        assert centroid(rle(mask)) == pytest.approx((x.mean(), y.mean()), abs=1e-12)
    else:
        assert np.isnan(centroid(rle(mask))).all()


def test_centroid_of_a_large_frame():
    mask = np.zeros((2160, 3840), bool)
    mask[1000:2000, 3000:3800] = True
    assert centroid(rle(mask)) == (3399.5, 1499.5)


@pytest.mark.parametrize("seen, expected", [
    pytest.param("", [], id="no frame"), pytest.param("000", [], id="never"), pytest.param("111", [], id="always"),
    pytest.param("0110", [], id="once"), pytest.param("101", [1], id="one frame gone"),
    pytest.param("0100110001", [2, 3], id="twice gone"),
])  # fmt: skip
def test_gaps(seen, expected):
    assert gaps(np.array([char == "1" for char in seen], dtype=bool)) == expected


def test_speeds():
    still, moved = rectangle(0, 0, 2, 2), rectangle(3, 4, 5, 6)        # from (0.5, 0.5) to (4.5, 3.5), area 4
    larger = rectangle(3, 4, 5, 8)                                      # about (5.5, 3.5), area 8
    masks = [rle(still), rle(still), rle(moved), None, rle(moved), rle(larger)]
    areas = np.array([4, 4, 4, 0, 4, 8])
    assert speeds(masks, areas).tolist() == pytest.approx([0, 5 / 2, 1 / np.sqrt(6)])
    assert speeds([], np.zeros(0, int)).tolist() == [] and speeds([rle(still)], areas[:1]).tolist() == []


@pytest.mark.parametrize("boxes, expected", [
    pytest.param([], 0, id="no box"), pytest.param([[1, 1, 0, 4]], 0, id="no area"),
    pytest.param([[0, 0, 4, 4]], 0, id="alone"), pytest.param([[0, 0, 4, 4], [4, 0, 4, 4]], 0, id="edge to edge"),
    pytest.param([[0, 0, 4, 4], [0, 0, 4, 4]], 1, id="one on the other"),
    pytest.param([[0, 0, 4, 4], [2, 0, 4, 4]], 8 / 24, id="half"),
    pytest.param([[0, 0, 4, 4]] * 2 + [[2, 0, 4, 4]], 16 / 24, id="covered by three counts once"),
])  # fmt: skip
def test_box_overlap(boxes, expected):
    assert box_overlap(boxes) == pytest.approx(expected)


@given(st.lists(st.tuples(*[st.integers(0, 9)] * 4), max_size=6))
@settings(max_examples=100, deadline=None)
def test_box_overlap_pixel_by_pixel(boxes):
    cover = np.zeros((20, 20), int)
    for x, y, w, h in boxes:
        cover[y : y + h, x : x + w] += 1
    once, twice = (cover >= 1).sum(), (cover >= 2).sum()
    assert box_overlap(boxes) == pytest.approx(twice / once if once else 0)


@pytest.mark.parametrize("values, expected", [
    ([], {"n": 0, "mean": None, "min": None, "median": None, "p90": None, "max": None}),
    ([2.0], {"n": 1, "mean": 2, "min": 2, "median": 2, "p90": 2, "max": 2}),
    (list(range(11)), {"n": 11, "mean": 5, "min": 0, "median": 5, "p90": 9, "max": 10}),
])  # fmt: skip
def test_summary(values, expected):
    assert summary(np.array(values, float)) == expected


def test_an_empty_dataset(tmp_path):
    stats = collect(open_youtube_vis(write(tmp_path / "a.json", [], [])))
    assert set(stats.counts.values()) == {0} and stats.per_category == {} and stats.unused == ("cat", "dog")
    assert all(len(stats.distributions[name]) == 0 for name in DISTRIBUTIONS)
    json.dumps(stats.as_json(), allow_nan=False)


def test_by_hand(tmp_path):
    """6 x 8 frames: a cat comes back, a dog is under it in one frame, a crowd does not count."""
    cat, dog = rectangle(0, 0, 2, 4), rectangle(0, 2, 2, 6)
    videos = [video(1, "a", 5), video(2, "b", 1)]
    tracks = [
        track(1, 1, [cat, None, None, cat, cat]), track(2, 1, [None, None, None, dog, None], 2),
        track(3, 1, [cat] * 5, 2, iscrowd=1), track(4, 2, [np.zeros((6, 8), bool)], 2),
    ]  # fmt: skip
    calls = []
    stats = collect(open_youtube_vis(write(tmp_path / "a.json", videos, tracks, ("cat", "dog", "emu"))),
                    lambda done, total: calls.append((done, total)))                               # fmt: skip
    assert calls == [(1, 2), (2, 2)]
    assert stats.counts == {"videos": 2, "frames": 6, "frames_with_objects": 3, "tracks": 3, "crowds": 1, "masks": 4,
                            "tracks_without_pixels": 1, "tracks_with_gaps": 1}                     # fmt: skip
    found = {name: values.tolist() for name, values in stats.distributions.items()}
    assert found == {
        "video_length": [5, 1], "tracks_per_video": [2, 1], "objects_per_frame": [1, 0, 0, 2, 1, 0],
        "track_length": [3, 1], "gaps_per_track": [1, 0], "gap_length": [2], "mask_size": [8 / 48] * 4, "speed": [0],
        "box_overlap": [0, 4 / 12, 0],
    }  # fmt: skip
    assert list(stats.per_category) == ["dog", "cat"] and stats.unused == ("emu",)
    cats, dogs = stats.per_category["cat"], stats.per_category["dog"]
    assert (cats.tracks, cats.masks, cats.videos, cats.mean_length, cats.median_size) == (1, 3, 1, 3, 8 / 48)
    assert (dogs.tracks, dogs.masks, dogs.videos, dogs.mean_length) == (2, 1, 2, 0.5)
    assert stats.occlusion is None and stats.area_classes == {"small": 2, "medium": 0, "large": 0}
    raw = json.loads(json.dumps(stats.as_json(), allow_nan=False))
    assert raw["distributions"]["gap_length"]["mean"] == 2 and raw["per_category"]["cat"]["masks"] == 3


@pytest.mark.parametrize("side, name", [(127, "small"), (128, "medium"), (255, "medium"), (256, "large")])
def test_area_classes(tmp_path, side, name):
    mask = rectangle(0, 0, side, side, 300, 300)
    stats = collect(open_youtube_vis(write(tmp_path / "a.json", [video(1, "a", 1, 300, 300)], [track(1, 1, [mask])])))
    assert stats.area_classes[name] == 1


def test_occlusion_labels(tmp_path):
    cat = rectangle(0, 0, 2, 4)
    levels = ["no_occlusion", None, "severe_occlusion", "severe_occlusion"]
    tracks = [track(1, 1, [cat, None, cat, cat], occlusion=levels), track(2, 1, [cat] * 4)]
    stats = collect(open_youtube_vis(write(tmp_path / "a.json", [video(1, "a", 4)], tracks)))
    assert stats.occlusion == {"no_occlusion": 1, "slight_occlusion": 0, "severe_occlusion": 2}


def test_two_categories_of_one_name(tmp_path):
    cat = rectangle(0, 0, 2, 4)
    tracks = [track(1, 1, [cat]), track(2, 1, [cat], 2)]
    stats = collect(open_youtube_vis(write(tmp_path / "a.json", [video(1, "a", 1)], tracks, ("cat", "cat"))))
    assert list(stats.per_category) == ["cat (1)", "cat (2)"]
