"""Anchors and deltas: by hand, and against loops in float64 that count a box's last pixel in, as the release does.

`inclusive` turns a box of this repository, x2 the edge behind the last pixel, into one of that convention.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.anchors import Anchors, cell_anchors, clip_to_image, decode_boxes, encode_boxes

RATIOS = (0.5, 1.0, 2.0)


def inclusive(boxes: torch.Tensor) -> np.ndarray:
    return boxes.double().numpy() - [0, 0, 1, 1]


@pytest.mark.parametrize("base, ratio, box", [
    # area 32^2, centre 1.5: sides 45.25 x 22.63, from -20.63 to 23.63 and from -9.31 to 12.31
    pytest.param(4, 0.5, (-21, -9, 25, 13), id="P2, lying"),
    pytest.param(4, 1.0, (-14, -14, 18, 18), id="P2, square: 32 pixels, -14 to 17"),
    pytest.param(4, 2.0, (-9, -21, 13, 25), id="P2, upright"),
    pytest.param(8, 1.0, (-28, -28, 36, 36), id="P3: 64 pixels around 3.5"),
    # area 512^2, centre 31.5: 724.08 x 362.04, from -330.04 to 393.04 and from -149.02 to 212.02
    pytest.param(64, 0.5, (-330, -149, 394, 213), id="P6, lying"),
])
def test_anchor_of_the_first_cell(base, ratio, box):
    assert cell_anchors(base, 8, (ratio,)).tolist() == [list(box)]


def test_no_anchors_for_no_ratio():
    assert cell_anchors(4, 8, ()).shape == (0, 4)


def test_count_for_the_standard_input():
    sizes = [(96, 160), (48, 80), (24, 40), (12, 20), (6, 10)]
    anchors = Anchors.of(sizes, 8, RATIOS, torch.device("cpu"))
    assert anchors.counts == (46080, 11520, 2880, 720, 180)
    assert len(anchors.boxes) == len(anchors.levels) == 61380
    assert torch.bincount(anchors.levels).tolist() == list(anchors.counts)


def test_order_is_level_row_column_ratio():
    sizes = [(2, 3), (1, 2), (1, 1), (1, 1), (1, 1)]
    anchors = Anchors.of(sizes, 8, RATIOS, torch.device("cpu"))
    rows = iter(inclusive(anchors.boxes).tolist())
    for level, (h, w) in enumerate(sizes):
        stride = 4 * 2**level
        for i in range(h):
            for j in range(w):
                for ratio in RATIOS:
                    width, height = 8 * stride / math.sqrt(ratio), 8 * stride * math.sqrt(ratio)
                    x, y = (stride - 1) / 2, (stride - 1) / 2
                    first = [round(x - (width - 1) / 2) + stride * j, round(y - (height - 1) / 2) + stride * i]
                    last = [round(x + (width - 1) / 2) + stride * j, round(y + (height - 1) / 2) + stride * i]
                    assert next(rows) == first + last
    assert next(rows, None) is None


def test_maps_of_another_number_are_refused():
    with pytest.raises(ValueError):
        Anchors.of([(2, 3)], 8, RATIOS, torch.device("cpu"))


# ------------------------------------------------------------------------------------------ deltas


def naive_encode(box: np.ndarray, anchor: np.ndarray) -> list[float]:
    """Both inclusive."""
    pw, ph = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
    gw, gh = box[2] - box[0] + 1, box[3] - box[1] + 1
    dx = ((box[0] + box[2]) / 2 - (anchor[0] + anchor[2]) / 2) / pw
    dy = ((box[1] + box[3]) / 2 - (anchor[1] + anchor[3]) / 2) / ph
    return [dx, dy, math.log(gw / pw), math.log(gh / ph)]


def naive_decode(delta: np.ndarray, anchor: np.ndarray) -> list[float]:
    """Both inclusive."""
    bound = abs(math.log(16 / 1000))
    pw, ph = anchor[2] - anchor[0] + 1, anchor[3] - anchor[1] + 1
    x = (anchor[0] + anchor[2]) / 2 + pw * delta[0]
    y = (anchor[1] + anchor[3]) / 2 + ph * delta[1]
    w, h = pw * math.exp(min(max(delta[2], -bound), bound)), ph * math.exp(min(max(delta[3], -bound), bound))
    return [x - w / 2 + 0.5, y - h / 2 + 0.5, x + w / 2 - 0.5, y + h / 2 - 0.5]


def some_boxes(count: int) -> torch.Tensor:
    low = torch.rand(count, 2) * 100 - 20
    return torch.cat([low, low + 1 + torch.rand(count, 2) * 80], dim=1)


@pytest.mark.parametrize("box, anchor, delta", [
    pytest.param((0, 0, 10, 20), (0, 0, 10, 20), (0, 0, 0, 0), id="the same"),
    pytest.param((5, 0, 15, 20), (0, 0, 10, 20), (0.5, 0, 0, 0), id="half a side to the right"),
    pytest.param((-5, -10, 15, 30), (0, 0, 10, 20), (0, 0, math.log(2), math.log(2)), id="twice as large"),
    pytest.param((0, 0, 10, 10), (0, 0, 10, 20), (0, -0.25, 0, -math.log(2)), id="the upper half"),
])
def test_deltas_by_hand(box, anchor, delta):
    box, anchor = torch.tensor([box], dtype=torch.float32), torch.tensor([anchor], dtype=torch.float32)
    assert encode_boxes(box, anchor)[0].tolist() == pytest.approx(delta, abs=1e-6)
    assert decode_boxes(torch.tensor([delta]), anchor)[0].tolist() == pytest.approx(box[0].tolist(), abs=1e-5)


def test_deltas_are_those_of_inclusive_boxes():
    boxes, anchors = some_boxes(40), some_boxes(40)
    expected = [naive_encode(*pair) for pair in zip(inclusive(boxes), inclusive(anchors), strict=True)]
    np.testing.assert_allclose(encode_boxes(boxes, anchors).numpy(), expected, atol=1e-5)
    deltas = torch.randn(40, 4) * 2
    deltas[:2, 2:] = torch.tensor([9.0, -9.0])
    expected = [naive_decode(*pair) for pair in zip(deltas.double().numpy(), inclusive(anchors), strict=True)]
    np.testing.assert_allclose(inclusive(decode_boxes(deltas, anchors)), expected, rtol=1e-4, atol=1e-3)


def test_no_boxes():
    none = torch.zeros(0, 4)
    assert encode_boxes(none, none).shape == decode_boxes(none, none).shape == clip_to_image(none, 4, 4).shape == (0, 4)


@pytest.mark.parametrize("box, clipped", [
    pytest.param((1, 2, 7, 9), (1, 2, 7, 9), id="inside"),
    pytest.param((-3, -4, 12, 99), (0, 0, 12, 10), id="to the edges"),
    pytest.param((-9, 3, -2, 8), (0, 3, 1, 8), id="left of the image: its first column is left"),
    pytest.param((30, 3, 40, 8), (19, 3, 20, 8), id="right of it: its last column"),
    pytest.param((2, 11, 5, 12), (2, 9, 5, 10), id="below: its last row"),
])
def test_clip_keeps_a_pixel(box, clipped):
    """In an image of 10 rows and 20 columns; inclusive edges are brought to 0..9 and 0..19."""
    assert clip_to_image(torch.tensor([box], dtype=torch.float32), 10, 20)[0].tolist() == list(clipped)
    first_last = np.clip(inclusive(torch.tensor([box])), 0, [19, 9, 19, 9])
    assert (first_last + [0, 0, 1, 1]).tolist() == [list(clipped)]
