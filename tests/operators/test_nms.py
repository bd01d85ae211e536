"""Suppression: by hand, and against a loop over all pairs written from CrossVIS specification 4.1 step 3."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from operators.nms import class_aware_nms

TALL = [0, 0, 10, 10]
"""IoU of 0.6, 0.5 and 0.7 with the first 6, 5 and 7 of its ten rows."""
SIX, FIVE, SEVEN = [0, 0, 10, 6], [0, 0, 10, 5], [0, 0, 10, 7]
FAR = [100, 100, 110, 110]


def nms(boxes: list, scores: list, labels: list | None = None, threshold: float = 0.6, most: int = 100) -> list[int]:
    labels = [0] * len(boxes) if labels is None else labels
    tensors = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels)
    return class_aware_nms(*tensors, threshold, most).tolist()


@pytest.mark.parametrize("boxes, scores, labels, kept", [
    pytest.param([], [], [], [], id="nothing"),
    pytest.param([TALL], [0.3], [5], [0], id="one"),
    pytest.param([TALL, SIX], [0.9, 0.8], [0, 0], [0, 1], id="an IoU of exactly 0.6 stays"),
    pytest.param([TALL, SEVEN], [0.9, 0.8], [0, 0], [0], id="above 0.6 goes"),
    pytest.param([TALL, SEVEN], [0.8, 0.9], [0, 0], [1], id="the better score stays, wherever it stands"),
    pytest.param([TALL, TALL], [0.9, 0.8], [0, 1], [0, 1], id="another class is untouched"),
    pytest.param([FAR, TALL, FIVE], [0.1, 0.5, 0.9], [0, 0, 0], [2, 1, 0], id="order is falling score"),
    # 10 rows against 8: 0.8. 8 against 6: 0.75. 10 against 6: 0.6, which stays once the 8 are gone.
    pytest.param([TALL, [0, 0, 10, 8], SIX], [0.9, 0.8, 0.7], [0, 0, 0], [0, 2], id="what is removed removes nothing"),
    pytest.param([TALL, TALL, TALL], [0.5, 0.7, 0.7], [0, 0, 0], [1], id="equal scores: the earlier wins"),
    pytest.param([[3, 3, 3, 8], TALL], [0.9, 0.8], [0, 0], [0, 1], id="a line removes nothing"),
    pytest.param([TALL, [3, 3, 3, 8]], [0.9, 0.8], [0, 0], [0, 1], id="a line inside a better box stays"),
    pytest.param([[3, 3, 3, 3]] * 3, [0.9, 0.8, 0.7], [0] * 3, [0, 1, 2], id="equal points all stay"),
])
def test_by_hand(boxes, scores, labels, kept):
    assert nms(boxes, scores, labels) == kept


ROW = [[20 * i, 0, 20 * i + 10, 10] for i in range(6)]


@pytest.mark.parametrize("scores, most, kept", [
    pytest.param([0.9, 0.8, 0.7, 0.6, 0.5, 0.4], 3, [0, 1, 2], id="the best so many"),
    pytest.param([0.9, 0.8, 0.7, 0.7, 0.7, 0.4], 3, [0, 1, 2, 3, 4], id="those tied with the last stay"),
    pytest.param([0.9, 0.9, 0.7, 0.7, 0.7, 0.4], 2, [0, 1], id="ties below the cut do not"),
    pytest.param([0.5] * 6, 1, [0, 1, 2, 3, 4, 5], id="all tied"),
    pytest.param([0.4, 0.5, 0.6, 0.7, 0.8, 0.9], 1, [5], id="one"),
])
def test_cut_at_the_best_so_many(scores, most, kept):
    assert nms(ROW, scores, most=most) == kept


def test_boxes_without_area_count_for_the_cut():
    assert nms([[5, 5, 5, 9], *ROW], [0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4], most=2) == [0, 1]


def test_removed_boxes_do_not_count_for_the_cut():
    assert nms([TALL, TALL, TALL, FAR], [0.9, 0.8, 0.7, 0.6], most=2) == [0, 3]


def naive(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, most: int) -> list[int]:
    """All pairs, in float64: the spec's sentence and nothing else."""
    boxes = boxes.double().tolist()
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i].item(), i))
    kept: list[int] = []
    for i in order:
        if all(labels[i] != labels[j] or iou(boxes[i], boxes[j]) <= threshold for j in kept):
            kept.append(i)
    if len(kept) > most:
        kept = [i for i in kept if scores[i] >= scores[kept[most - 1]]]
    return kept


def iou(a: list[float], b: list[float]) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    intersection = max(w, 0) * max(h, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - intersection
    return intersection / union if union > 0 else 0.0


@pytest.mark.parametrize("seed", range(6))
def test_against_the_naive_loop(seed):
    rng = torch.Generator().manual_seed(seed)
    n = 250
    corners = torch.randint(0, 30, (n, 2), generator=rng).float()
    sides = torch.randint(0, 20, (n, 2), generator=rng).float()          # some have no area
    boxes = torch.cat([corners, corners + sides], dim=1)
    scores = torch.randint(1, 60, (n,), generator=rng) / 64              # many ties, exact in float32
    labels = torch.randint(0, 3, (n,), generator=rng)
    threshold, most = [(0.6, 100), (0.6, 20), (0.3, 10), (0.0, 7), (0.9, 100), (1.0, 1000)][seed]
    found = class_aware_nms(boxes, scores, labels, threshold, most)
    assert found.dtype == torch.int64
    assert found.tolist() == naive(boxes, scores, labels, threshold, most)
