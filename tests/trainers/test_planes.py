"""Masks as bits: against pycocotools' own pixels, resized one by one.

Source of what is expected: CrossVIS specification 1.6, source index floor((j + 0.5) * scale); CiCo specification 1.2,
bilinear at (j + 0.5) * scale - 0.5.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from operators.errors import DatasetError
from trainers.planes import FULL, bounds_of, paint, paint_soft, unpack, unpack_soft


def rle(mask: np.ndarray) -> dict:
    runs = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": runs["size"], "counts": runs["counts"].decode("ascii")}


def plain(mask: np.ndarray) -> dict:
    """Uncompressed, as the training files of YouTube-VIS have it."""
    flat = mask.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": list(mask.shape), "counts": np.diff([0, *changes, flat.size]).tolist()}


def painted(masks: list, stored: tuple[int, int], size: tuple[int, int], **settings) -> np.ndarray:
    return paint(bounds_of(masks, stored, lambda i: f"mask {i}"), stored, size, **settings)


def nearest(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Pixel by pixel, in whole numbers."""
    (height, width), (h, w) = mask.shape, size
    return np.array([[mask[(2 * y + 1) * height // (2 * h), (2 * x + 1) * width // (2 * w)] for x in range(w)]
                     for y in range(h)])  # fmt: skip


def masks_of(planes: np.ndarray, count: int) -> np.ndarray:
    return unpack(torch.from_numpy(planes).permute(2, 0, 1).contiguous(), count).numpy()


@pytest.mark.parametrize("rles", [pytest.param([], id="no instance"), pytest.param([None], id="none with a mask"),
                                  pytest.param([None] * 9, id="nine without")])  # fmt: skip
def test_nothing_to_paint(rles):
    planes = painted(rles, (9, 7), (4, 6))
    assert planes.shape == (4, 6, max(1, -(-len(rles) // 8))) and not planes.any()
    assert masks_of(planes, len(rles)).shape == (len(rles), 4, 6)


SIZES = [
    pytest.param((7, 11), id="as stored"), pytest.param((3, 5), id="half"), pytest.param((1, 1), id="a pixel"),
    pytest.param((14, 22), id="double"), pytest.param((20, 4), id="higher and narrower"),
    pytest.param((2, 31), id="lower and wider"),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("count", [1, 8, 9, 17])
def test_masks_are_those_of_a_loop_over_pixels(size, count):
    rng = np.random.default_rng(count)
    masks = rng.random((count, 7, 11)) < rng.random((count, 1, 1))
    masks[0] = True                                             # no background run at all
    masks[-1] = False                                           # no run but background
    for written in (rle, plain):
        planes = painted([written(mask) for mask in masks], (7, 11), size)
        assert planes.shape == (*size, -(-count // 8)) and planes.dtype == np.uint8
        np.testing.assert_array_equal(masks_of(planes, count), [nearest(mask, size) for mask in masks])


def bilinear(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """In float64: every stored centre weighs by how near it is to the place, 0 from one pixel on; no filter."""
    tents = []
    for stored, resized in zip(mask.shape, size, strict=True):
        places = np.clip((np.arange(resized) + 0.5) * stored / resized - 0.5, 0, stored - 1)
        tents.append(np.clip(1 - np.abs(places[:, None] - np.arange(stored)), 0, None))
    return tents[0] @ mask @ tents[1].T


@pytest.mark.parametrize("rles", [pytest.param([], id="no instance"), pytest.param([None] * 2, id="none with a mask")])
def test_nothing_to_paint_softly(rles):
    planes = paint_soft(bounds_of(rles, (9, 7), str), (9, 7), (4, 6))
    assert planes.shape == (4, 6, max(1, len(rles))) and not planes.any()
    assert unpack_soft(torch.from_numpy(planes).permute(2, 0, 1), len(rles)).shape == (len(rles), 4, 6)


@pytest.mark.parametrize("size", SIZES)
def test_soft_masks_are_bilinear_shares(size):
    rng = np.random.default_rng(0)
    masks = rng.random((5, 7, 11)) < rng.random((5, 1, 1))
    masks[0], masks[1] = True, False
    masks[2, :, :4] = masks[2, :, 8:] = False                   # columns on either side without any of it
    for written in (rle, plain):
        planes = paint_soft(bounds_of([*map(written, masks), None], (7, 11), str), (7, 11), size)
        assert planes.shape == (*size, 6) and planes.dtype == np.uint8 and not planes[..., 5].any()
        found = unpack_soft(torch.from_numpy(planes).permute(2, 0, 1), 5)
        assert found.dtype == torch.float16 and (found[0] == 1).all() and not found[1].any()
        expected = [bilinear(mask, size) for mask in masks]
        np.testing.assert_allclose(found.numpy().astype(float), expected, atol=0.5 / FULL + 1e-6)


@pytest.mark.parametrize("rows, expected", [
    pytest.param(["....", "...."], [0, 0], id="nothing"), pytest.param(["####", "####"], [1, 1], id="everything"),
    pytest.param(["#...", "...."], [0.25, 0], id="a pixel of four"),
    pytest.param([".#..", "#..#"], [0.5, 0.25], id="two of four are a half exactly"),
    pytest.param(["####", ".#.."], [0.75, 0.5], id="three of four"),
])  # fmt: skip
def test_of_a_frame_at_half_its_size_shares_are_exact(rows, expected):
    """No pixel is lost, as every second one is by nearest, and none is rounded."""
    mask = np.array([[c == "#" for c in row] for row in rows])
    planes = paint_soft(bounds_of([rle(mask)], (2, 4), str), (2, 4), (1, 2))
    assert unpack_soft(torch.from_numpy(planes).permute(2, 0, 1), 1).tolist() == [[expected]]


def test_masks_may_overlap_and_be_absent_in_between():
    both = np.ones((4, 4), bool)
    found = masks_of(painted([rle(both), None, plain(both)], (4, 4), (4, 4)), 3)
    assert found[0].all() and not found[1].any() and found[2].all()


def test_exclusive_masks_leave_a_pixel_to_the_last_that_claims_it():
    """Ten instances in two planes; each claims all rows from its own on."""
    masks = np.arange(10)[None, :, None] >= np.arange(10)[:, None, None] * np.ones((1, 1, 3), int)      # (10, 10, 3)
    found = masks_of(painted([rle(mask) for mask in masks], (10, 3), (10, 3), exclusive=True), 10)
    np.testing.assert_array_equal(found, np.broadcast_to(np.eye(10, dtype=bool)[:, :, None], (10, 10, 3)))


def test_a_long_mask_is_painted_at_another_size_without_its_pixels():
    """16384 x 16384: its pixels would take 256 MiB."""
    half = {"size": [16384, 16384], "counts": coco.frPyObjects(
        {"size": [16384, 16384], "counts": [1 << 27, 1 << 27]}, 16384, 16384)["counts"].decode("ascii")}  # fmt: skip
    found = masks_of(painted([half], (16384, 16384), (4, 6)), 1)[0]
    np.testing.assert_array_equal(found, [[False] * 3 + [True] * 3] * 4)


GOOD = {"size": [4, 4], "counts": [3, 10, 3]}


@pytest.mark.parametrize("bad", [
    pytest.param({"size": [4, 4], "counts": [3, 10, 2]}, id="too short"),
    pytest.param({"size": [4, 4], "counts": [3, 10, 4]}, id="too long"),
    pytest.param({"size": [4, 4], "counts": [20, -7, 3]}, id="a run backwards"),
    pytest.param({"size": [4, 4], "counts": [2**63 - 1, 2**63 - 1, 18]}, id="a sum that wraps round to 16"),
    pytest.param({"size": [4, 4], "counts": [10**30]}, id="a number beyond all"),
    pytest.param({"size": [4, 4], "counts": [3.0, 10.0, 3.0]}, id="no whole numbers"),
    pytest.param({"size": [4, 4], "counts": [[3, 10, 3]]}, id="a list in a list"),
    pytest.param({"size": [4, 4], "counts": [True] * 16}, id="truths"),
    pytest.param({"size": [4, 4], "counts": []}, id="no runs"),
    pytest.param({"size": [4, 4], "counts": None}, id="no counts"),
    pytest.param({"size": [4, 4], "counts": "zz"}, id="no compressed counts"),
    pytest.param({"size": [4, 5], "counts": [3, 10, 3]}, id="another size"),
    pytest.param({"size": [4, 4]}, id="half of it missing"), pytest.param(7, id="a number"),
])  # fmt: skip
def test_damaged_masks_are_an_error_with_their_place(bad):
    with pytest.raises(DatasetError, match="^mask 1"):
        bounds_of([GOOD, bad, None], (4, 4), lambda i: f"mask {i}")


def test_polygons_are_rasterised():
    (found,) = bounds_of([[[1, 1, 3, 1, 3, 3, 1, 3]]], (4, 4), str)
    np.testing.assert_array_equal(masks_of(paint([found], (4, 4), (4, 4)), 1)[0],
                                  coco.decode(coco.merge(coco.frPyObjects([[1, 1, 3, 1, 3, 3, 1, 3]], 4, 4))))
