"""Suppression in chunks: what lies on both sides of a chunk's edge, groups, and overlaps that count the last pixel."""

from __future__ import annotations

import pytest
import torch

from models.nms import CHUNK, greedy_nms, pairwise_iou
from tests.operators.test_nms import naive


def column(count: int, step: float) -> torch.Tensor:
    """Boxes of 10 x 10, one `step` to the right of the other."""
    left = torch.arange(count) * step
    return torch.stack([left, torch.zeros(count), left + 10, torch.full((count,), 10.0)], dim=1)


def test_no_boxes():
    none = torch.zeros(0, dtype=torch.int64)
    found = greedy_nms(torch.zeros(0, 4), torch.zeros(0), none, 0.5, 10)
    assert found.shape == (0,) and found.dtype == torch.int64


def test_a_long_chain_across_chunks():
    """Each overlaps the next by 8 of 12: every one is removed by its better neighbour unless that is gone itself."""
    count = 3 * CHUNK + 1
    found = greedy_nms(column(count, 2.0), torch.linspace(1, 0.1, count), torch.zeros(count), 0.5, 10 * count)
    assert found.tolist() == list(range(0, count, 2))


def test_a_box_removes_others_chunks_later():
    boxes = column(2 * CHUNK, 20.0)
    boxes[[CHUNK + 3, 2 * CHUNK - 1]] = boxes[5].clone()
    found = greedy_nms(boxes, torch.linspace(1, 0.1, 2 * CHUNK), torch.zeros(2 * CHUNK), 0.5, 1000)
    assert found.tolist() == [i for i in range(2 * CHUNK) if i not in (CHUNK + 3, 2 * CHUNK - 1)]


def test_groups_do_not_touch():
    boxes = column(1, 1).expand(6, 4)
    groups = torch.tensor([4, 0, 4, 1, 0, 1])
    assert greedy_nms(boxes, torch.linspace(1, 0.5, 6), groups, 0.5, 10).tolist() == [0, 1, 3]


@pytest.mark.parametrize("tied, most", [
    pytest.param(CHUNK + 30, CHUNK - 10, id="ties with the last go on into the next chunk"),
    pytest.param(2 * CHUNK + 7, 1, id="and the one after it"),
    pytest.param(CHUNK, CHUNK - 1, id="ties end with the chunk"),
    pytest.param(CHUNK, CHUNK, id="the cut is the chunk's end"),
])
def test_ties_with_the_last_stay(tied, most):
    count = 3 * CHUNK
    scores = torch.where(torch.arange(count) < tied, 0.5, 0.25)
    assert greedy_nms(column(count, 20.0), scores, torch.zeros(count), 0.5, most).tolist() == list(range(tied))


@pytest.mark.parametrize("seed", range(3))
def test_against_the_naive_loop(seed):
    rng = torch.Generator().manual_seed(seed)
    n = 3 * CHUNK + 50
    low = torch.randint(0, 60, (n, 2), generator=rng).float()
    boxes = torch.cat([low, low + torch.randint(0, 20, (n, 2), generator=rng)], dim=1)
    scores, groups = torch.randint(1, 200, (n,), generator=rng) / 256, torch.randint(0, 4, (n,), generator=rng)
    threshold, most = [(0.5, 1000), (0.7, 60), (0.25, 300)][seed]
    assert greedy_nms(boxes, scores, groups, threshold, most).tolist() == naive(boxes, scores, groups, threshold, most)


# ------------------------------------------------------------------------------------------ overlap


@pytest.mark.parametrize("a, b, iou", [
    pytest.param((0, 0, 10, 10), (0, 0, 10, 10), 1.0, id="the same"),
    pytest.param((0, 0, 10, 10), (5, 0, 15, 10), 1 / 3, id="half and half"),
    pytest.param((0, 0, 10, 10), (10, 0, 20, 10), 0.0, id="side by side"),
    pytest.param((0, 0, 10, 10), (2, 2, 4, 7), 0.1, id="inside"),
    pytest.param((3, 3, 3, 3), (3, 3, 3, 3), 0.0, id="points: 0 / 0"),
])
def test_iou_by_hand(a, b, iou):
    boxes = torch.tensor([a, b], dtype=torch.float32)
    assert pairwise_iou(boxes[:1], boxes[1:]).item() == pytest.approx(iou)
    assert pairwise_iou(boxes[1:], boxes[:1]).item() == pytest.approx(iou)


def test_iou_is_that_of_inclusive_boxes():
    """With the last pixel counted in, sides are x2 - x1 + 1: of boxes that end one pixel earlier, the same."""
    low = torch.rand(12, 2) * 40
    boxes = torch.cat([low, low + 1 + torch.rand(12, 2) * 30], dim=1)
    table = pairwise_iou(boxes[:5], boxes[5:])
    assert table.shape == (5, 7)
    for i, a in enumerate((boxes[:5].double() - torch.tensor([0, 0, 1, 1])).tolist()):
        for j, b in enumerate((boxes[5:].double() - torch.tensor([0, 0, 1, 1])).tolist()):
            w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
            inner = max(w, 0) * max(h, 0)
            areas = [(c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)]
            assert table[i, j].item() == pytest.approx(inner / (sum(areas) - inner), abs=1e-5)
