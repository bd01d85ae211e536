"""IoU of tracks from run lengths, against the pixels of every frame."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from operators import youtube_vis_iou
from operators.errors import DatasetError
from operators.youtube_vis_iou import TrackMasks, track_ious
from operators.youtube_vis_rle import MaskTrack

HEIGHT, WIDTH = 5, 7


def rle(mask: np.ndarray) -> dict:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def plain(mask: np.ndarray) -> dict:
    """Uncompressed, without runs of length 0 but the first."""
    pixels = mask.T.ravel()
    bounds = np.flatnonzero(np.diff(pixels.astype(int), prepend=0)).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *bounds, len(pixels)]).tolist()}


def naive_iou(one: list[np.ndarray | None], other: list[np.ndarray | None]) -> float:
    common = either = 0
    for a, b in zip(one, other, strict=False):
        if a is None or b is None:
            either += sum(int(mask.sum()) for mask in (a, b) if mask is not None)
        elif a.shape == b.shape:
            common, either = common + int((a & b).sum()), either + int((a | b).sum())
    return common / either if either else 0.0


def masks_of(tracks: list, size: tuple[int, int] = (HEIGHT, WIDTH)) -> TrackMasks:
    """Every other mask uncompressed."""
    encoded = [[None if mask is None else (rle, plain)[(t + f) % 2](mask) for f, mask in enumerate(track)]
               for t, track in enumerate(tracks)]  # fmt: skip
    return TrackMasks.of(encoded, [size] * len(tracks), lambda track: f"track {track}")


@st.composite
def random_tracks(draw: st.DrawFn) -> list[list[np.ndarray | None]]:
    """Boxes and noise; most lists of one length, most masks of one size. One in two is a copy with small changes."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    num_frames, odd = draw(st.integers(0, 20)), draw(st.sampled_from([0.0, 0.0, 0.2]))
    tracks: list[list[np.ndarray | None]] = []
    for _ in range(draw(st.integers(0, 9))):
        track = []
        for frame in range(max(0, num_frames + (int(rng.integers(-2, 3)) if rng.random() < odd else 0))):
            shape = (HEIGHT, WIDTH) if rng.random() >= odd / 4 else (WIDTH, HEIGHT)
            mask = np.zeros(shape, dtype=bool)
            low, high = np.sort(rng.integers(0, 7, size=(2, 2)), axis=0)
            mask[low[0] : high[0] + 1, low[1] : high[1] + 1] = True
            if tracks and rng.random() < 0.7 and frame < len(tracks[0]) and tracks[0][frame] is not None:
                mask = tracks[0][frame].copy()
            mask ^= rng.random(mask.shape) < rng.choice([0, 0, 0.1])
            track.append(None if rng.random() < 0.2 else mask)
        tracks.append(track)
    return tracks


@given(random_tracks(), st.data())
@settings(max_examples=120, deadline=None)
def test_ious_are_those_of_the_pixels(tracks, data):
    """However few pairs, frames or entries are looked at at once; what is below 0.5 may be given as 0."""
    num_rows = data.draw(st.integers(0, len(tracks)))
    before = youtube_vis_iou.FEW_PAIRS, youtube_vis_iou.FEW_FRAMES, youtube_vis_iou.BLOCK
    youtube_vis_iou.FEW_PAIRS = data.draw(st.sampled_from([0, 2, 12]))
    youtube_vis_iou.FEW_FRAMES = data.draw(st.sampled_from([1, 8]))
    youtube_vis_iou.BLOCK = data.draw(st.sampled_from([1, 30, 1 << 20]))
    try:
        found = masks_of(tracks).ious(range(num_rows), range(num_rows, len(tracks)))
    finally:
        youtube_vis_iou.FEW_PAIRS, youtube_vis_iou.FEW_FRAMES, youtube_vis_iou.BLOCK = before
    assert found.shape == (num_rows, len(tracks) - num_rows)
    for (d, one), (g, other) in itertools.product(enumerate(tracks[:num_rows]), enumerate(tracks[num_rows:])):
        expected = naive_iou(one, other)
        assert found[d, g] == expected or (expected < 0.5 and found[d, g] == 0)


@given(random_tracks(), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_track_ious_are_those_of_the_pixels(tracks, num_rows):
    made = [MaskTrack.of([None if mask is None else rle(mask) for mask in track]) for track in tracks]
    found = track_ious(made[:num_rows], made[num_rows:])
    expected = [[naive_iou(one, other) for other in tracks[num_rows:]] for one in tracks[:num_rows]]
    assert found.tolist() == expected


@given(random_tracks())
@settings(max_examples=50, deadline=None)
def test_mean_areas_are_over_frames_with_pixels(tracks):
    found = masks_of(tracks).mean_areas()
    areas = [[int(mask.sum()) for mask in track if mask is not None and mask.any()] for track in tracks]
    assert found.tolist() == [float(np.mean(some)) if some else 0.0 for some in areas]


def drawn(*frames: str | None) -> list[np.ndarray | None]:
    """One row of pixels a frame."""
    return [None if frame is None else np.array([[sign == "#" for sign in frame]]) for frame in frames]


@pytest.mark.parametrize("one, other, iou", [
    pytest.param([], [], 0, id="no frame"),
    pytest.param(drawn(None), drawn(None), 0, id="no mask"),
    pytest.param(drawn("...."), drawn("...."), 0, id="no pixel"),
    pytest.param(drawn("##.."), drawn(".##."), 0, id="1 / 3: under 0.5"),
    pytest.param(drawn("###."), drawn(".###"), 2 / 4, id="2 / 4: just so"),
    pytest.param(drawn("####", "#..."), drawn("###.", "##.."), 4 / 6, id="sums, not means"),
    pytest.param(drawn("####", None), drawn("####", "###."), 4 / 7, id="null counts the other"),
    pytest.param(drawn("####"), drawn("####", "####"), 1, id="up to the shorter end"),
])  # fmt: skip
def test_by_hand(one, other, iou):
    assert masks_of([one, other], (1, 4)).ious(range(1), range(1, 2)).tolist() == [[iou]]


def test_more_frames_than_pycocotools_measures_at_once():
    track = drawn(*["##.."] * 300)
    assert masks_of([track, track], (1, 4)).ious(range(1), range(1, 2)).tolist() == [[1.0]]
    assert MaskTrack.of([rle(mask) for mask in track]).areas.tolist() == [2] * 300


def test_intersections_are_exact_for_large_masks():
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.random((9, 16)) < 0.7, np.ones((120, 120), dtype=bool)) for _ in range(3)]
    other = [mask ^ (rng.random(mask.shape) < 0.01) for mask in masks]
    expected = naive_iou(masks, other)
    for few in (0, 12):
        youtube_vis_iou.FEW_PAIRS, before = few, youtube_vis_iou.FEW_PAIRS
        try:
            assert masks_of([masks, other], masks[0].shape).ious(range(1), range(1, 2))[0, 0] == expected
        finally:
            youtube_vis_iou.FEW_PAIRS = before


@pytest.mark.parametrize("mask, message", [
    pytest.param({"size": [5, 7], "counts": "99"}, "track 1, frame 2: counts '99'", id="too short"),
    pytest.param({"size": [5, 7], "counts": [34]}, "track 1, frame 2: the runs", id="uncompressed, too short"),
    pytest.param({"size": [5, 7], "counts": [-5, 40]}, "track 1, frame 2: the runs", id="negative"),
    pytest.param({"size": [10**9, 10**9], "counts": [10**18]}, "over the limit", id="a frame of 10^18 pixels"),
    pytest.param({"size": [5, "7"], "counts": [35]}, "size is", id="a side as text"),
    pytest.param({"size": None, "counts": [35]}, "size is None", id="no size"),
    pytest.param([[0, 0, 1e9, 0, 1, 1]], "leaves its 5 x 7 frame", id="polygon out of the frame"),
    pytest.param({"size": [5, 7], "counts": b"99"}, "counts '99'", id="bytes"),
])  # fmt: skip
def test_damage_is_told_with_its_place(mask, message):
    good = {"size": [HEIGHT, WIDTH], "counts": [35]}
    with pytest.raises(DatasetError, match=message):
        TrackMasks.of([[good], [None, good, mask]], [(HEIGHT, WIDTH)] * 2, lambda track: f"track {track}")


def test_a_size_of_floats_is_that_of_whole_numbers():
    mask = {"size": [5.0, 7.0], "counts": rle(np.ones((5, 7)))["counts"]}
    masks = TrackMasks.of([[mask], [mask]], [(HEIGHT, WIDTH)] * 2, str)
    assert masks.ious(range(1), range(1, 2)).tolist() == [[1.0]]
