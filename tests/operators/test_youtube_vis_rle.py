"""Masks of files: each encoding gives the same pixels, and what is damaged never reaches pycocotools."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from operators.errors import DatasetError
from operators.youtube_vis_rle import MAX_PIXELS, MaskTrack, check_compressed, segmentation_to_rle

RING = np.array([[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0]], dtype=np.uint8)     # 3 x 4; column-major: 4, 2, 1, 2, 3
FULL = np.ones((3, 4), dtype=np.uint8)
EMPTY = np.zeros((3, 4), dtype=np.uint8)
SQUARE = [1, 1, 3, 1, 3, 3, 1, 3]


def compressed(mask: np.ndarray) -> dict:
    found = coco_mask.encode(np.asfortranarray(mask))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


@pytest.mark.parametrize("nothing", [None, {}, []])
def test_null_is_no_mask(nothing):
    assert segmentation_to_rle(nothing, 3, 4) is None


@pytest.mark.parametrize("segmentation, pixels", [
    pytest.param({"size": [3, 4], "counts": [12]}, EMPTY, id="runs, no pixel"),
    pytest.param({"size": [3, 4], "counts": [0, 12]}, FULL, id="runs, all pixels"),
    pytest.param({"size": [3, 4], "counts": [4, 2, 1, 2, 3]}, RING, id="runs"),
    pytest.param({"size": [3, 4], "counts": [4, 1, 0, 1, 1, 2, 0, 0, 3]}, RING, id="runs, some of length 0"),
    pytest.param(compressed(EMPTY), EMPTY, id="compressed, no pixel"),
    pytest.param(compressed(FULL), FULL, id="compressed, all pixels"),
    pytest.param(compressed(RING), RING, id="compressed"),
    pytest.param({"size": [3, 4], "counts": compressed(RING)["counts"].encode()}, RING, id="compressed, as bytes"),
    pytest.param([[0, 0, 4, 4]], EMPTY, id="a ring of two points is left out"),
    pytest.param([[0, 0, 4, 4], [], SQUARE], RING, id="polygon beside rings that are left out"),
    pytest.param([[1, 1, 2, 1, 2, 3, 1, 3], [2, 1, 3, 1, 3, 3, 2, 3]], RING, id="two polygons side by side"),
    pytest.param([[-2, -2, 6, -2, 6, 5, -2, 5]], FULL, id="polygon beyond the frame"),
])  # fmt: skip
def test_every_encoding(segmentation, pixels):
    rle = segmentation_to_rle(segmentation, 3, 4)
    assert rle["size"] == [3, 4] and isinstance(rle["counts"], str)
    np.testing.assert_array_equal(coco_mask.decode(rle), pixels)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_every_mask_of_pycocotools_passes(data):
    """Also several at once, of different sizes, runs up to the largest frame, and differences of either sign."""
    rles, sizes = [], []
    for _ in range(data.draw(st.integers(1, 4))):
        height = data.draw(st.sampled_from([1, 7, 360, 16384]))
        width = data.draw(st.integers(1, MAX_PIXELS // height))
        cuts = sorted(data.draw(st.lists(st.integers(0, height * width), max_size=12)))
        runs = np.diff([0, *cuts, height * width]).tolist()
        found = coco_mask.frPyObjects({"size": [height, width], "counts": runs}, height, width)
        rles.append({"size": [height, width], "counts": found["counts"].decode()})
        sizes.append((height, width, sum(runs[1::2])))
    check_compressed(rles, str)
    for rle, (height, width, area) in zip(rles, sizes, strict=True):
        assert segmentation_to_rle(rle, height, width) == rle
        assert int(coco_mask.area(rle)) == area
        with pytest.raises(DatasetError):
            check_compressed([{**rle, "size": [height, width + 1]}], str)


def runs_of(text: str) -> list[int] | None:
    """The format read in plain loops; None where it is broken off or leaves its alphabet."""
    runs: list[int] = []
    number = digit = 0
    for character in text:
        code = ord(character) - 48
        if not 0 <= code <= 63:
            return None
        number += (code & 31) << 5 * digit
        digit += 1
        if not code & 32:
            number -= 1 << 5 * digit if code & 16 else 0
            runs.append(number + (runs[-2] if len(runs) > 2 else 0))
            number = digit = 0
    return None if digit else runs


@given(st.data())
@settings(max_examples=400, deadline=None)
def test_damaged_characters_are_found_unless_the_runs_still_fit(data):
    cuts = sorted(data.draw(st.lists(st.integers(0, 3000), max_size=12)))
    runs = np.diff([0, *cuts, 3000]).tolist()
    counts = coco_mask.frPyObjects({"size": [50, 60], "counts": runs}, 50, 60)["counts"].decode()
    for _ in range(data.draw(st.integers(0, 2))):
        at = data.draw(st.integers(0, len(counts) - 1))
        counts = counts[:at] + chr(data.draw(st.integers(44, 116))) + counts[at + data.draw(st.integers(0, 1)) :]
    runs = runs_of(counts)
    fits = runs is not None and sum(runs) == 3000 and min(runs) >= 0
    try:
        check_compressed([{"size": [50, 60], "counts": counts}], str)
    except DatasetError:
        assert not fits
    else:
        assert fits


@pytest.mark.parametrize("segmentation, message", [
    pytest.param(7, "is no mask", id="a number"),
    pytest.param({"size": [4, 3], "counts": [12]}, r"\[4, 3\], its video's is \[3, 4\]", id="width first"),
    pytest.param({"counts": [12]}, "size is None", id="no size"),
    pytest.param({"size": [3, 4]}, "counts are None", id="no counts"),
    pytest.param({"size": [3, 4], "counts": []}, "counts are", id="no runs"),
    pytest.param({"size": [3, 4], "counts": [4, 2, 1, 2]}, "do not fill", id="runs too short"),
    pytest.param({"size": [3, 4], "counts": [4, 2, 1, 2, 4]}, "do not fill", id="runs too long"),
    pytest.param({"size": [3, 4], "counts": [14, -2]}, "do not fill", id="a negative run"),
    pytest.param({"size": [3, 4], "counts": [2**62] * 4 + [12]}, "do not fill", id="a sum that wraps to 12"),
    pytest.param({"size": [3, 4], "counts": [2**64, 12]}, "counts are", id="a run beyond 64 bits"),
    pytest.param({"size": [3, 4], "counts": [6.5, 5.5]}, "counts are", id="half pixels"),
    pytest.param({"size": [3, 4], "counts": [[1], [1, 2]]}, "counts are", id="lists of lists"),
    pytest.param({"size": [3, 4], "counts": "421"}, "that fills 3 x 4 pixels", id="compressed, too short"),
    pytest.param({"size": [3, 4], "counts": "42123" + "9999"}, "that fills", id="compressed, too long"),
    pytest.param({"size": [3, 4], "counts": "4T"}, "cut short", id="compressed, cut inside a number"),
    pytest.param({"size": [3, 4], "counts": "oooooooooooo0"}, "no compressed RLE", id="a number of 13 characters"),
    pytest.param({"size": [3, 4], "counts": "4 2"}, "no compressed RLE", id="a character below the alphabet"),
    pytest.param({"size": [3, 4], "counts": "4é"}, "no compressed RLE", id="not ASCII"),
    pytest.param({"size": [3, 4], "counts": "4\0"}, "no compressed RLE", id="a zero byte"),
    pytest.param([[0, 0, 4, 4, 1]], "a ring is", id="half a point"),
    pytest.param([0, 0, 4, 0, 4, 4], "a ring is", id="ring outside a list"),
    pytest.param([[0, 0, "4", 0, 4, 4]], "a ring is", id="text in a ring"),
    pytest.param([[0, 0, 1e9, 0, 1e9, 1e9]], "leaves its 3 x 4 frame", id="polygon of 10^18 pixels"),
    pytest.param([[0, 0, float("nan"), 0, 4, 4]], "leaves its 3 x 4 frame", id="not a number"),
    pytest.param([[0, 0, 4, 3] * 1000], "outline is longer", id="polygon that goes to and fro"),
])  # fmt: skip
def test_damage_is_told(segmentation, message):
    with pytest.raises(DatasetError, match=f"^frame 5: .*{message}"):
        segmentation_to_rle(segmentation, 3, 4, "frame 5")


def test_an_outline_of_a_huge_frame_does_not_reserve_gigabytes():
    """300 times across 16384 x 16384 pixels: by the frame's own size that would be 13 GB."""
    to_and_fro = [0, 0, 16384, 16384] * 150
    with pytest.raises(DatasetError, match="outline is longer than 4194304 pixels"):
        segmentation_to_rle([to_and_fro], 16384, 16384, "frame 5")
    once = segmentation_to_rle([[0, 0, 16384, 0, 16384, 16384]], 16384, 16384, "frame 5")
    assert once["size"] == [16384, 16384]


@pytest.mark.parametrize("odd", [None, 7, {}, {"counts": "4"}, {"size": [3, 4], "counts": [12]}, {"size": [3, 4]}])
def test_what_is_no_compressed_rle_is_refused(odd):
    check_compressed([], str)
    with pytest.raises(DatasetError, match="^1: "):
        check_compressed([compressed(RING), odd], str)


def test_the_first_damaged_mask_of_many_is_named():
    good = compressed(RING)
    bad = {"size": [3, 4], "counts": "42"}
    with pytest.raises(DatasetError, match="^mask 2:"):
        check_compressed([good, good, bad, good, bad], lambda i: f"mask {i}")


def test_track_areas_tell_nothing_from_no_pixels():
    track = MaskTrack.of([None, compressed(EMPTY), compressed(RING)])
    assert track.areas.tolist() == [0, 0, 4]
    assert [mask is None for mask in track.masks] == [True, False, False]
    assert MaskTrack.of([]).areas.shape == (0,)
