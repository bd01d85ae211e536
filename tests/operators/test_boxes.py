"""Box arithmetic on boxes small enough to count squares."""

from __future__ import annotations

import pytest
import torch

from operators.boxes import box_area, box_iou, clip_boxes, is_empty

NONE = torch.zeros(0, 4)


@pytest.mark.parametrize("box, area", [
    pytest.param([2, 3, 2, 3], 0, id="a point"),
    pytest.param([2, 3, 7, 3], 0, id="a line"),
    pytest.param([5, 5, 3, 3], 0, id="both sides negative"),
    pytest.param([5, 5, 3, 9], 0, id="one side negative"),
    pytest.param([1, 2, 4, 7], 15, id="no plus one"),
    pytest.param([-1.5, 0, 0.5, 0.25], 0.5, id="fractions, outside the frame"),
])
def test_area(box, area):
    assert box_area(torch.tensor([box], dtype=torch.float32)).tolist() == [area]


@pytest.mark.parametrize("a, b, iou", [
    pytest.param([0, 0, 4, 4], [4, 0, 8, 4], 0, id="touching"),
    pytest.param([0, 0, 4, 4], [6, 6, 9, 9], 0, id="apart on both axes: two negative sides make no area"),
    pytest.param([0, 0, 4, 4], [0, 0, 4, 4], 1, id="the same"),
    pytest.param([0, 0, 4, 4], [2, 0, 6, 4], 8 / 24, id="half over half"),
    pytest.param([0, 0, 4, 4], [1, 1, 3, 3], 4 / 16, id="one inside the other"),
    pytest.param([0, 0, 4, 4], [1, 1, 1, 3], 0, id="a line inside a box"),
    pytest.param([2, 2, 2, 2], [2, 2, 2, 2], 0, id="two equal points: 0 / 0 is 0"),
])
def test_iou(a, b, iou):
    one, other = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    assert box_iou(one, other).item() == pytest.approx(iou, abs=1e-7)
    assert box_iou(other, one).item() == pytest.approx(iou, abs=1e-7)


def test_iou_adds_eps_to_the_union():
    small = torch.tensor([[0, 0, 0.01, 0.01]])                           # area 1e-4
    assert box_iou(small, small, eps=1e-5).item() == pytest.approx(1e-4 / 1.1e-4, rel=1e-5)


def test_iou_of_all_pairs():
    a = torch.tensor([[0, 0, 2, 2], [10, 0, 12, 2], [0, 0, 2, 1]], dtype=torch.float32)
    b = torch.tensor([[0, 0, 2, 2], [11, 0, 13, 2]], dtype=torch.float32)
    expected = torch.tensor([[1, 0], [0, 2 / 6], [0.5, 0]])
    torch.testing.assert_close(box_iou(a, b), expected)
    assert box_iou(NONE, b).shape == (0, 2)
    assert box_iou(a, NONE).shape == (3, 0)


@pytest.mark.parametrize("box, clipped", [
    pytest.param([1, 2, 3, 4], [1, 2, 3, 4], id="inside"),
    pytest.param([0, 0, 20, 10], [0, 0, 20, 10], id="the frame itself"),
    pytest.param([-5, -1, 25, 11], [0, 0, 20, 10], id="over every edge"),
    pytest.param([15, 3, 30, 12], [15, 3, 20, 10], id="width limits x, height limits y"),
    pytest.param([30, 3, 40, 5], [20, 3, 20, 5], id="outside: no width is left"),
])
def test_clip(box, clipped):
    assert clip_boxes(torch.tensor([box], dtype=torch.float32), height=10, width=20).tolist() == [clipped]


def test_empty_are_those_without_a_positive_side():
    boxes = torch.tensor([[0, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0], [2, 0, 1, 1], [0, 0, 1e-6, 1]])
    assert is_empty(boxes).tolist() == [False, True, True, True, False]
    assert is_empty(NONE).shape == (0,)
    assert clip_boxes(NONE, 3, 3).shape == (0, 4)
