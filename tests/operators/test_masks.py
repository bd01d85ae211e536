"""Masks: against a float64 loop written from CrossVIS specification 4.1 step 5, and drawn by hand for run lengths."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from pycocotools import mask as coco

from models.outputs import Detections
from models.region_losses import Regions, mask_targets
from operators.masks import EncodeMasks, decode_masks, encode_box_masks, encode_masks
from operators.records import UNSHOWN, FrameDetections, FrameInfo, FrameTracks


def draw(*rows: str) -> np.ndarray:
    return np.array([[c == "#" for c in row] for row in rows])


def painted(logits: torch.Tensor, size: tuple[int, int], height: int, width: int) -> np.ndarray:
    """What `encode_masks` stands for: (N, height, width) bool."""
    return decode_masks(encode_masks(logits, size, height, width), height, width).transpose(2, 0, 1) > 0


EMPTY = draw("....", "....", "....")
RING = draw("####", "#..#", "####")
FULL = draw("####", "####", "####")

# ----------------------------------------------------------------------------------------------------- logits to pixels


def naive_masks(logits: np.ndarray, size: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Probabilities (N, height, width) before the threshold, pixel by pixel in float64."""
    n, rows, columns = logits.shape
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    fine = np.zeros((n, *size))
    for y in range(size[0]):                                            # U4: (j - 2) / 4, replicated at both ends
        for x in range(size[1]):
            fine[:, y, x] = lerp(probability, clamp((y - 2) / 4, rows), clamp((x - 2) / 4, columns))
    out = np.zeros((n, height, width))
    for y in range(height):                                             # half-pixel bilinear of what was cut out
        for x in range(width):
            v, u = (y + 0.5) * size[0] / height - 0.5, (x + 0.5) * size[1] / width - 0.5
            out[:, y, x] = lerp(fine, clamp(v, size[0]), clamp(u, size[1]))
    return out


def clamp(p: float, length: int) -> float:
    return min(max(p, 0.0), length - 1.0)


def lerp(maps: np.ndarray, v: float, u: float) -> np.ndarray:
    """(N, H, W) at row v, column u -> (N,)"""
    y, x = int(v), int(u)
    below, right = min(y + 1, maps.shape[1] - 1), min(x + 1, maps.shape[2] - 1)
    top = maps[:, y, x] * (1 - u + x) + maps[:, y, right] * (u - x)
    bottom = maps[:, below, x] * (1 - u + x) + maps[:, below, right] * (u - x)
    return top * (1 - v + y) + bottom * (v - y)


@pytest.mark.parametrize("size, height, width", [
    pytest.param((24, 32), 24, 32, id="the frame fills the input, at its own size"),
    pytest.param((24, 32), 41, 67, id="enlarged, sides of different shares"),
    pytest.param((18, 27), 36, 54, id="padded at the right and bottom, enlarged by 2"),
    pytest.param((17, 31), 9, 13, id="shrunk, without antialiasing"),
    pytest.param((23, 5), 61, 13, id="portrait"),
    pytest.param((1, 1), 3, 2, id="one pixel"),
])
def test_against_the_float64_loop(size, height, width):
    rng = np.random.default_rng(height)
    logits = rng.normal(0, 3, (3, 6, 8)).astype(np.float32)
    expected = naive_masks(logits, size, height, width)
    found = painted(torch.from_numpy(logits), size, height, width)
    clear = np.abs(expected - 0.5) > 1e-5                               # float32 may round a tie either way
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(found[clear], (expected > 0.5)[clear])


def test_objects_anywhere_in_frames_of_any_size():
    """Each mask is painted in the window of its own cells alone: nothing may be lost at the window's rim."""
    rng = np.random.default_rng(1)
    for _ in range(40):
        cells, (height, width) = rng.integers(2, 9, 2), rng.integers(1, 60, 2)
        size = tuple(int(rng.integers(1, 4 * n + 1)) for n in cells)
        logits = rng.normal(rng.choice([-4.0, 0.0, 2.0]), 3, (3, *cells)).astype(np.float32)
        expected = naive_masks(logits, size, height, width)
        clear = np.abs(expected - 0.5) > 1e-5
        found = painted(torch.from_numpy(logits), size, height, width)
        np.testing.assert_array_equal(found[clear], (expected > 0.5)[clear])


def test_a_half_is_not_above_a_half():
    assert not painted(torch.zeros(1, 4, 4), (16, 16), 32, 32).any()
    assert painted(torch.full((1, 4, 4), 1e-3), (16, 16), 32, 32).all()


def test_what_lies_in_the_padding_does_not_reach_the_mask():
    """The probabilities are cut to the frame before they are resized: all rows below it are another matter."""
    logits = torch.full((1, 8, 8), -9.0)
    logits[:, 4:] = 9.0                                                 # stride-4 rows 4.. begin at fine row 16 + 2
    assert not painted(logits, (14, 32), 140, 32).any()
    assert painted(logits, (32, 32), 32, 32).any()


def test_no_instance():
    assert encode_masks(torch.zeros(0, 6, 8), (24, 32), 48, 64) == ()


@pytest.mark.parametrize("size, height, width", [
    pytest.param((24, 32), 24, 32, id="the frame fills the input"),
    pytest.param((20, 32), 41, 67, id="padded below, enlarged by different shares"),
    pytest.param((19, 27), 60, 54, id="cells that the frame fills in part are not its own"),
    pytest.param((24, 12), 9, 5, id="portrait, shrunk"), pytest.param((2, 3), 3, 2, id="less than a cell"),
])
def test_plain_masks_against_torch(size, height, width):
    """CiCo specification 4.5: the cells that the frame fills, cut out, then one bilinear step, half-pixel centres."""
    logits = torch.from_numpy(np.random.default_rng(height).normal(0, 3, (3, 6, 8)))
    rows, columns = (max(side // 4, 1) for side in size)
    cut = logits.sigmoid()[None, :, :rows, :columns]
    expected = torch.nn.functional.interpolate(cut, (height, width), mode="bilinear", align_corners=False)[0].numpy()
    rles = encode_masks(logits.float(), size, height, width, plain=True)
    found = decode_masks(rles, height, width).transpose(2, 0, 1) > 0
    clear = np.abs(expected - 0.5) > 1e-5
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(found[clear], (expected > 0.5)[clear])


def test_plain_masks_of_probabilities_that_are_0_or_1():
    """What was cut off has a logit of minus infinity."""
    logits = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).logit()[None]
    found = decode_masks(encode_masks(logits, (8, 8), 4, 4, plain=True), 4, 4)[..., 0]
    np.testing.assert_array_equal(found > 0, draw("..##", "..##", "##..", "##.."))


# ----------------------------------------------------------------------------------------------- logits that fill a box


def boxed(logits: torch.Tensor, boxes: list, height: int, width: int) -> np.ndarray:
    """What `encode_box_masks` stands for: (N, height, width) bool."""
    rles = encode_box_masks(logits, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), height, width)
    return decode_masks(rles, height, width).transpose(2, 0, 1) > 0


def naive_box_mask(logits: np.ndarray, box: list[float], height: int, width: int) -> np.ndarray:
    """Probability (height, width) pixel by pixel in float64; 0 where a pixel's centre is not in the box."""
    rows, columns = logits.shape
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    out = np.zeros((height, width))
    for y in range(height):
        for x in range(width):
            if box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3]:
                v = clamp((y + 0.5 - box[1]) / (box[3] - box[1]) * rows - 0.5, rows)
                u = clamp((x + 0.5 - box[0]) / (box[2] - box[0]) * columns - 0.5, columns)
                out[y, x] = lerp(probability[None], v, u)[0]
    return out


YES, NO = 5.0, -5.0
HALVES = torch.tensor([[[YES, NO], [YES, NO]]])


@pytest.mark.parametrize("logits, box, expected", [
    pytest.param(HALVES, (0, 0, 2, 2), draw("#...", "#...", "...."), id="a cell a pixel"),
    pytest.param(HALVES, (0, 0, 4, 3), draw("##..", "##..", "##.."), id="stretched over the frame"),
    pytest.param(HALVES, (-4, 0, 4, 3), draw("....", "....", "...."), id="its left half lies out of the frame"),
    pytest.param(HALVES, (2, 1, 6, 9), draw("....", "..##", "..##"), id="its right half does, and most of its rows"),
    pytest.param(HALVES + 10, (1, 1, 3, 2), draw("....", ".##.", "...."), id="nothing outside of the box"),
    pytest.param(HALVES + 10, (0.6, 0.4, 2.5, 1.6), draw(".#..", ".#..", "...."), id="pixels by their centres"),
    pytest.param(HALVES + 10, (1.6, 1, 2.4, 2), draw("....", "....", "...."), id="too thin to hold a centre"),
    pytest.param(HALVES + 10, (1, 1, 1, 3), draw("....", "....", "...."), id="no area"),
    pytest.param(HALVES + 10, (9, 9, 12, 12), draw("....", "....", "...."), id="out of the frame"),
    pytest.param(torch.zeros(1, 2, 2), (0, 0, 4, 3), EMPTY, id="a half is not above a half"),
])
def test_box_masks_by_hand(logits, box, expected):
    np.testing.assert_array_equal(boxed(logits, [box], 3, 4)[0], expected)


def test_box_masks_against_the_float64_loop():
    rng = np.random.default_rng(5)
    for _ in range(30):
        height, width = rng.integers(1, 50, 2)
        logits = rng.normal(0, 3, (3, *rng.integers(1, 9, 2))).astype(np.float32)
        low = rng.uniform(-20, 40, (3, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.1, 60, (3, 2))], axis=1).astype(np.float32)
        found = boxed(torch.from_numpy(logits), boxes.tolist(), height, width)
        for mask, z, box in zip(found, logits, boxes.astype(np.float64), strict=True):
            expected = naive_box_mask(z, box.tolist(), height, width)
            clear = np.abs(expected - 0.5) > 1e-5
            np.testing.assert_array_equal(mask[clear], (expected > 0.5)[clear])


def test_no_boxed_instance():
    assert encode_box_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 48, 64) == ()


def test_boxes_whose_edges_lie_on_centres():
    """A centre on the upper or left edge belongs to the box, one on the lower or right edge does not."""
    logits = torch.full((3, 2, 2), 5.0)
    boxes = [[0.5, 0.5, 2.5, 1.5], [1.5, 1.5, 3.5, 2.5], [-0.5, -0.5, 0.5, 0.5]]
    found = boxed(logits, boxes, 3, 4)
    np.testing.assert_array_equal(found, [draw("##..", "....", "...."), draw("....", ".##.", "...."), EMPTY])


@pytest.mark.parametrize("box", [
    pytest.param([math.nan, 0, 4, 3], id="not a number"),
    pytest.param([0, -math.inf, 4, 3], id="without end"),
    pytest.param([3, 2, 1, 0], id="its corners the other way round"),
    pytest.param([5e37, 0, 3e38, 3], id="far off"),
])
def test_boxes_that_hold_no_pixel_do_not_disturb_their_neighbours(box):
    whole = [-1e30, -1e30, 1e30, 1e30]
    found = boxed(torch.full((3, 2, 2), 5.0), [whole, box, whole], 3, 4)
    np.testing.assert_array_equal(found, [FULL, EMPTY, FULL])


def test_what_is_painted_is_what_was_learnt():
    """The true mask of a region, taken as logits, gives back the mask where the box is as fine as its cells."""
    mask = torch.rand(1, 40, 50, generator=torch.Generator().manual_seed(1)) < 0.5
    box = torch.tensor([[7.0, 5.0, 35.0, 33.0]])
    zero = torch.zeros(1, dtype=torch.int64)
    target = mask_targets([mask], Regions(box, zero, zero), 28)
    painted_again = boxed(target * 20 - 10, box.tolist(), 40, 50)[0]
    np.testing.assert_array_equal(painted_again[5:33, 7:35], mask[0, 5:33, 7:35].numpy())
    assert painted_again.sum() == painted_again[5:33, 7:35].sum()


# ---------------------------------------------------------------------------------------------------------- run lengths


def counts_of(rle: dict) -> bytes:
    return rle["counts"].encode("ascii")


def test_runs_are_written_as_the_official_code_writes_them():
    """The text of a mask is the one that the official code gives for the same pixels, at every edge of the frame."""
    rng = np.random.default_rng(3)
    for _ in range(200):
        height, width = rng.integers(1, 9, 2)
        logits = torch.from_numpy(rng.normal(rng.choice([-2.0, 0.0, 3.0]), 2, (1, 3, 4)).astype(np.float32))
        for (rle,) in (
            encode_masks(logits, (9, 14), height, width),
            encode_box_masks(logits, torch.tensor([[-0.7, 0.6, width - 0.4, height + 3.0]]), height, width),
        ):
            pixels = np.asfortranarray(decode_masks([rle], height, width)[..., 0])
            assert coco.encode(pixels)["counts"] == counts_of(rle)


def test_none_is_a_mask_without_pixels():
    ring = coco.encode(np.asfortranarray(RING.astype(np.uint8)))
    decoded = decode_masks([None, ring, None], 3, 4)
    np.testing.assert_array_equal(decoded.transpose(2, 0, 1), [EMPTY, RING, EMPTY])
    np.testing.assert_array_equal(decode_masks([None, None], 3, 4), np.zeros((3, 4, 2)))


# ------------------------------------------------------------------------------------------------------------ the stage


def record(logits: torch.Tensor, height: int = 48, width: int = 64, with_ids: bool = True) -> FrameDetections:
    n = len(logits)
    found = Detections(
        boxes=torch.arange(4.0 * n).reshape(n, 4), scores=torch.linspace(1, 0.5, n), labels=torch.arange(n) % 3,
        embeddings=torch.zeros(n, 2), mask_logits=logits, track_ids=torch.arange(n) + 7 if with_ids else None,
    )
    return FrameDetections(FrameInfo("s", 3, 0.1, height, width), found, (24, 32), (24, 32))


def test_an_empty_batch_and_a_frame_without_instances():
    assert EncodeMasks()([]) == []
    (tracks,) = EncodeMasks()([record(torch.zeros(0, 6, 8))])
    assert len(tracks) == 0 and tracks.masks == ()
    assert tracks.boxes.shape == (0, 4) and tracks.track_ids.shape == (0,)


def test_fields_and_a_mask_without_pixels():
    logits = torch.full((3, 6, 8), -5.0)
    logits[0, :, :4] = 5.0                                              # the left half
    logits[2] = 5.0
    (tracks,) = EncodeMasks()([record(logits)])
    assert isinstance(tracks, FrameTracks) and tracks.info == record(logits).info
    assert tracks.track_ids.tolist() == [7, 8, 9] and tracks.track_ids.dtype == np.int64
    assert tracks.labels.tolist() == [0, 1, 2] and tracks.labels.dtype == np.int64
    assert tracks.scores.tolist() == [1, 0.75, 0.5] and tracks.scores.dtype == np.float32
    assert tracks.boxes.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]] and tracks.boxes.dtype == np.float32
    assert [list(rle["size"]) for rle in tracks.masks] == [[48, 64]] * 3
    painted = decode_masks(tracks.masks, 48, 64)
    assert painted[:, :20, 0].all() and not painted[:, 40:, 0].any()
    assert not painted[:, :, 1].any(), "a mask without a pixel is an RLE of zeros, not left out"
    assert painted[:, :, 2].all()


def test_frames_of_a_batch_are_painted_at_their_own_sizes():
    logits = torch.full((1, 6, 8), 5.0)
    small, large = EncodeMasks()([record(logits, 10, 20), record(logits, 30, 15)])
    assert [list(t.masks[0]["size"]) for t in (small, large)] == [[10, 20], [30, 15]]


def test_masks_of_boxes_are_painted_in_them():
    """The same logits, said to fill the box: what lies in the padding of the input is no matter then."""
    given = record(torch.full((2, 6, 8), 5.0), height=48, width=64)
    boxes = torch.tensor([[2.0, 3.0, 12.0, 9.0], [60.0, 40.0, 70.0, 60.0]])
    (tracks,) = EncodeMasks()([replace(given, detections=replace(given.detections, boxes=boxes, mask_frame="box"))])
    painted = decode_masks(tracks.masks, 48, 64)
    assert painted[3:9, 2:12, 0].all() and painted[..., 0].sum() == 6 * 10
    assert painted[40:, 60:, 1].all() and painted[..., 1].sum() == 8 * 4


def test_detections_without_track_ids_are_a_mistake_in_the_graph():
    with pytest.raises(ValueError, match="'associate' must come before 'encode_masks'"):
        EncodeMasks()([record(torch.zeros(1, 6, 8), with_ids=False)])


# ---------------------------------------------------------------------------------------------------- exclusive masks


@pytest.mark.parametrize("frame", ["image", "box"])
@pytest.mark.parametrize("count", [0, 1, 6])
def test_of_exclusive_masks_a_pixel_is_the_first_ones(frame, count):
    rng = np.random.default_rng(count)
    for _ in range(20):
        logits = torch.from_numpy(rng.normal(0, 3, (count, 6, 8)).astype(np.float32))
        low = rng.uniform(-10, 40, (count, 2))
        boxes = torch.from_numpy(np.concatenate([low, low + rng.uniform(1, 50, (count, 2))], axis=1).astype(np.float32))
        if frame == "box":
            plain, own = (encode_box_masks(logits, boxes, 48, 64, exclusive) for exclusive in (False, True))
        else:
            plain, own = (encode_masks(logits, (23, 31), 48, 64, exclusive) for exclusive in (False, True))
        taken, own = np.zeros((48, 64), bool), decode_masks(own, 48, 64)
        for n, mask in enumerate(decode_masks(plain, 48, 64).transpose(2, 0, 1) > 0):
            np.testing.assert_array_equal(own[:, :, n] > 0, mask & ~taken)
            taken |= mask


def test_what_is_not_shown_keeps_its_pixels_and_gives_its_scores():
    logits = torch.full((4, 6, 8), -5.0)
    logits[1, :, :4] = 5.0                                              # the left half, not shown
    logits[3] = 5.0
    given = record(logits)
    found = replace(given.detections, track_ids=torch.tensor([4, UNSHOWN, UNSHOWN, 9]), exclusive=True,
                    class_scores=torch.arange(8.0).reshape(4, 2))
    (tracks,) = EncodeMasks()([replace(given, detections=found)])
    assert (tracks.track_ids.tolist(), tracks.labels.tolist(), tracks.scores.tolist()) == ([4, 9], [0, 0], [1.0, 0.5])
    assert tracks.class_scores.tolist() == [[0, 1], [6, 7]] and tracks.unshown_scores.tolist() == [4, 5]
    painted = decode_masks(tracks.masks, 48, 64)
    assert not painted[:, :20, 1].any() and painted[:, 40:, 1].all() and len(tracks.boxes) == 2


def test_without_class_vectors_there_are_none():
    (tracks,) = EncodeMasks()([record(torch.zeros(2, 6, 8))])
    assert tracks.class_scores is None and tracks.unshown_scores is None
