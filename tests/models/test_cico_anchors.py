"""Anchors, box coding and overlaps of tubes, against numbers worked out by hand and in float64 loops."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.cico_anchors import TubeAnchors, areas, decode, diou, encode, iou, to_center, to_corners, union_box

CPU = torch.device("cpu")
FULL = [(48, 80), (24, 40), (12, 20), (6, 10), (3, 5)]


def boxes(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    low = torch.rand(count, 2, generator=generator, dtype=torch.float64) * 0.6
    return torch.cat([low, low + 0.05 + 0.35 * torch.rand(count, 2, generator=generator, dtype=torch.float64)], dim=1)


# ------------------------------------------------------------------------------------------ anchors


def test_number_and_order_at_full_size():
    anchors = TubeAnchors.of(FULL, CPU)
    assert anchors.boxes.shape == (15345, 4) and anchors.boxes.dtype == torch.float32
    assert anchors.levels.bincount().tolist() == [11520, 2880, 720, 180, 45]
    assert (anchors.levels.diff() >= 0).all()
    place = 11520 + (7 * 40 + 31) * 3                                   # P4, row 7, column 31
    for a, ratio in enumerate((1, 0.5, 2)):
        expected = [31.5 / 40, 7.5 / 24, 3 * math.sqrt(ratio) / 40, 3 / math.sqrt(ratio) / 24]
        assert anchors.boxes[place + a].tolist() == pytest.approx(expected)


def test_sides_in_pixels():
    anchors = TubeAnchors.of(FULL, CPU)
    sides = anchors.boxes[:, 2:] * torch.tensor([640, 384])
    first = [int((anchors.levels == level).nonzero()[0]) for level in range(5)]
    assert torch.allclose(sides[first], torch.tensor([[s, s] for s in (24.0, 48, 96, 192, 384)]))
    tall, wide = sides[first[0] + 1], sides[first[0] + 2]
    assert tall[0] / tall[1] == pytest.approx(0.5) and wide[0] / wide[1] == pytest.approx(2)
    assert tall.prod().item() == pytest.approx(24**2)


def test_anchors_of_nothing():
    assert TubeAnchors.of([(0, 0)], CPU).boxes.shape == (0, 4)


# ------------------------------------------------------------------------------------------ coding


def test_there_and_back():
    anchors = to_center(boxes(20, 1))
    truth = boxes(20)
    assert torch.allclose(decode(encode(truth, anchors), anchors), truth)
    assert torch.allclose(to_corners(to_center(truth)), truth)


def test_zero_is_the_anchor():
    anchors = to_center(boxes(5))
    assert torch.allclose(decode(torch.zeros(5, 4, dtype=torch.float64), anchors), boxes(5))


def test_formula():
    """2.4: a box of centre (0.6, 0.5), 0.2 x 0.4, against an anchor of centre (0.5, 0.5), 0.4 x 0.2."""
    deltas = encode(torch.tensor([[0.5, 0.3, 0.7, 0.7]]), torch.tensor([[0.5, 0.5, 0.4, 0.2]]))[0]
    expected = [0.1 / 0.04, 0, math.log(0.5) / 0.2, math.log(2) / 0.2]
    assert deltas.tolist() == pytest.approx(expected, abs=1e-5)


def test_all_boxes_of_a_tube_are_coded_against_one_anchor():
    anchors, truth = to_center(boxes(4, 1)), boxes(12).reshape(4, 3, 4)
    coded = encode(truth, anchors[:, None])
    for t in range(3):
        assert torch.equal(coded[:, t], encode(truth[:, t], anchors))


def test_a_box_without_area_cannot_be_coded():
    assert not encode(torch.tensor([[0.5, 0.5, 0.5, 0.7]]), torch.tensor([[0.5, 0.5, 0.1, 0.1]])).isfinite().all()


# ------------------------------------------------------------------------------------------ overlaps


def plain_iou(a: list[float], b: list[float]) -> float:
    across = max(min(a[2], b[2]) - max(a[0], b[0]), 0)
    down = max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - across * down
    return across * down / union if union else 0


def plain_diou(a: list[float], b: list[float]) -> float:
    center = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    hull = [max(a[i + 2], b[i + 2]) - min(a[i], b[i]) for i in (0, 1)]
    return plain_iou(a, b) - (center[0] ** 2 + center[1] ** 2) / (hull[0] ** 2 + hull[1] ** 2)


@pytest.mark.parametrize("function, plain", [(iou, plain_iou), (diou, plain_diou)], ids=["iou", "diou"])
def test_overlaps_of_pairs(function, plain):
    a, b = boxes(15, 2), boxes(12, 3)
    found = function(a[:, None], b)
    expected = [[plain(x, y) for y in b.tolist()] for x in a.tolist()]
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(function(a, a), torch.ones(15, dtype=torch.float64))


def test_boxes_without_area():
    point = torch.tensor([0.5, 0.5, 0.5, 0.5])
    assert iou(point, point) == 0 and diou(point, point) == 0
    assert areas(torch.tensor([0.5, 0.5, 0.4, 0.9])) == 0


def test_gradient_of_diou():
    a, b = boxes(4, 5).requires_grad_(), boxes(4, 6)
    assert torch.autograd.gradcheck(lambda x: diou(x, b), (a,))


def test_union_of_a_tubes_boxes():
    tube = torch.tensor([[[0.1, 0.5, 0.3, 0.6], [0.2, 0.4, 0.25, 0.9], [0.15, 0.45, 0.5, 0.5]]])
    assert torch.equal(union_box(tube), torch.tensor([[0.1, 0.4, 0.5, 0.9]]))
    assert torch.equal(union_box(tube[:, :1]), tube[:, 0])
