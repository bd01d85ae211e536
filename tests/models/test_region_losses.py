"""The second stage's training: what is drawn, true masks, and each loss by hand and against loops in float64.

Source of what is expected: CrossVIS specification 5.2, rows box head, mask head, track head.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.region_losses import (
    Regions,
    box_losses,
    draw_regions,
    mask_loss,
    mask_targets,
    match_loss,
    refine_boxes,
    region_classes,
)
from models.sampling import SamplingConfig
from tests.models.small import frame
from tests.models.test_anchors import inclusive, naive_decode, naive_encode
from tests.models.test_losses import check

CFG = SamplingConfig(count=128, positive_share=0.25, positive_iou=0.5, negative_iou=0.5, least_best_iou=0.5)
STDS = np.array([0.1, 0.1, 0.2, 0.2])
TARGETS = [frame([(6, 8, 26, 30), (34, 30, 58, 60), (3, 50, 9, 54)]), frame([]), frame([(20, 20, 33, 31)])]
"""Classes 0, 1, 2 in the first image, 0 in the last."""


def regions(*rows: tuple) -> Regions:
    """Rows of (box, image, instance)."""
    boxes, image, instance = zip(*rows, strict=True) if rows else ((), (), ())
    return Regions(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(image, dtype=torch.int64),
                   torch.tensor(instance, dtype=torch.int64))


SOME = regions(
    ((5, 8, 27, 31), 0, 0), ((30, 30, 58, 57), 0, 1), ((0, 0, 5, 5), 0, -1), ((3, 3, 60, 60), 1, -1),
    ((20, 19, 33, 33), 2, 0), ((2, 50, 9, 55), 0, 2),
)


# ------------------------------------------------------------------------------------------ what is drawn


def test_true_boxes_join_and_owners_are_those_of_the_overlap():
    near, far = torch.tensor([7.0, 9.0, 27.0, 29.0]), torch.tensor([40.0, 2.0, 60.0, 20.0])
    found = draw_regions([torch.stack([far, near]), far[None], torch.zeros(0, 4)], TARGETS, CFG)
    rows = {(b, g, *box) for b, g, box in zip(found.image.tolist(), found.instance.tolist(), found.boxes.tolist(),
                                               strict=True)}
    assert len(rows) == len(found) == 7
    assert rows == {
        (0, 0, 6, 8, 26, 30), (0, 1, 34, 30, 58, 60), (0, 2, 3, 50, 9, 54), (0, 0, *near.tolist()),
        (0, -1, *far.tolist()), (1, -1, *far.tolist()), (2, 0, 20, 20, 33, 31),
    }


def test_at_most_a_quarter_of_128_is_positive():
    low = torch.rand(400, 2) * 40
    away = torch.cat([low, low + 4], dim=1)
    found = draw_regions([torch.cat([TARGETS[0].boxes[:1].expand(100, 4), away])], TARGETS[:1], CFG)
    assert len(found) == 128 and (found.instance >= 0).sum() == 32
    assert (found.instance[:32] >= 0).all(), "positives stand first"


def test_classes_leave_0_to_the_background():
    assert region_classes(SOME, TARGETS).tolist() == [1, 2, 0, 0, 1, 3]
    assert region_classes(regions(), TARGETS).tolist() == []


# ------------------------------------------------------------------------------------------ classes and boxes


def naive_box_losses(logits: np.ndarray, deltas: np.ndarray) -> tuple[float, float]:
    classes, truths = [1, 2, 0, 0, 1, 3], [inclusive(t.boxes) for t in TARGETS]
    right = close = 0.0
    for r, (k, box, b, g) in enumerate(zip(classes, inclusive(SOME.boxes), SOME.image.tolist(), SOME.instance.tolist(),
                                           strict=True)):
        right -= logits[r, k] - math.log(np.exp(logits[r]).sum())
        if g >= 0:
            for d in np.abs(deltas[r, k] - naive_encode(truths[b][g], box) / STDS):
                close += d * d / 2 if d < 1 else d - 0.5
    return right / 6, close / 6


def test_box_losses_are_those_of_the_loop():
    logits, deltas = (2 * torch.randn(6, 4)).requires_grad_(), torch.randn(6, 4, 4).requires_grad_()
    other = logits.detach().double().numpy(), deltas.detach().double().numpy()
    right, close = box_losses(logits, deltas, SOME, TARGETS)
    check(right, lambda x: naive_box_losses(x, other[1])[0], logits)
    check(close, lambda x: naive_box_losses(other[0], x)[1], deltas)
    used = torch.autograd.grad(box_losses(logits, deltas, SOME, TARGETS)[1], deltas)[0].any(2)
    assert used.nonzero().tolist() == [[0, 1], [1, 2], [4, 1], [5, 3]], "the true class alone, of positives alone"


def test_no_region_costs_nothing():
    logits, deltas = torch.zeros(0, 4, requires_grad=True), torch.zeros(0, 4, 4, requires_grad=True)
    losses = box_losses(logits, deltas, regions(), TARGETS)
    assert [loss.item() for loss in losses] == [0, 0] and all(loss.requires_grad for loss in losses)


def test_refined_boxes_undo_the_units():
    boxes, deltas = SOME.boxes, torch.randn(6, 4)
    expected = [naive_decode(d, a) for d, a in zip(deltas.double().numpy() * STDS, inclusive(boxes), strict=True)]
    np.testing.assert_allclose(inclusive(refine_boxes(deltas, boxes)), expected, atol=1e-4)


# ------------------------------------------------------------------------------------------ masks


def naive_target(mask: np.ndarray, box: list[float], side: int) -> np.ndarray:
    """Bilinear value at the centre of each cell; a pixel's centre is half a pixel behind its edge."""
    h, w = mask.shape
    out = np.zeros((side, side))
    for i in range(side):
        for j in range(side):
            y = min(max(box[1] + (i + 0.5) / side * (box[3] - box[1]) - 0.5, 0), h - 1)
            x = min(max(box[0] + (j + 0.5) / side * (box[2] - box[0]) - 0.5, 0), w - 1)
            t, f = int(y), int(x)
            b, r = min(t + 1, h - 1), min(f + 1, w - 1)
            out[i, j] = ((1 - y + t) * ((1 - x + f) * mask[t, f] + (x - f) * mask[t, r])
                         + (y - t) * ((1 - x + f) * mask[b, f] + (x - f) * mask[b, r]))
    return out


@pytest.mark.parametrize("box, target", [
    pytest.param((0, 0, 4, 4), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], id="a cell a pixel"),
    pytest.param((2, 2, 4, 4), [[1, 1, 1, 1]] * 4, id="enlarged"),
    pytest.param((0, 0, 8, 8), [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], id="two pixels: a half is 1"),
    pytest.param((0, 2, 4, 4), [[0, 0, 1, 1]] * 4, id="flat"),
    pytest.param((-2, -2, 2, 2), [[1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]], id="outside: the rim"),
])
def test_targets_by_hand(box, target):
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 0, 0] = mask[0, 1, 1] = True
    mask[0, 2:4, 2:4] = True
    assert mask_targets([mask], regions((box, 0, 0)), 4)[0].tolist() == target


def test_targets_are_those_of_the_loop():
    masks = [torch.rand(2, 20, 30) < 0.5, torch.zeros(0, 20, 30, dtype=torch.bool), torch.rand(1, 20, 30) < 0.5]
    some = regions(((2.3, 1.7, 9.1, 17.2), 0, 1), ((-3, 5, 40, 25), 2, 0), ((4, 4, 4.5, 4.2), 0, 0),
                   ((0, 0, 30, 20), 0, 0))
    found = mask_targets(masks, some, 28)
    assert found.shape == (4, 28, 28) and found.dtype == torch.float32
    for n, (box, b, g) in enumerate(zip(some.boxes.tolist(), some.image.tolist(), some.instance.tolist(), strict=True)):
        expected = naive_target(masks[b][g].double().numpy(), box, 28)
        clear = abs(expected - 0.5) > 1e-4
        assert clear.mean() > 0.9
        np.testing.assert_array_equal(found[n].numpy()[clear], expected[clear] >= 0.5)
    assert mask_targets(masks, regions(), 28).shape == (0, 28, 28)


def test_mask_loss_is_the_mean_cross_entropy():
    logits = torch.randn(2, 3, 3, requires_grad=True)
    truth = (torch.rand(2, 3, 3) < 0.5).float()

    def naive(x: np.ndarray) -> float:
        p = 1 / (1 + np.exp(-x))
        return -np.log(np.where(truth.numpy() > 0, p, 1 - p)).mean()

    check(mask_loss(logits, truth), naive, logits)
    none = mask_loss(logits[:0], truth[:0])
    assert none.item() == 0 and none.requires_grad


# ------------------------------------------------------------------------------------------ matches


@pytest.mark.parametrize("dots, partner, loss", [
    pytest.param([], -1, 0.0, id="an empty reference: new for sure"),
    pytest.param([0.0], -1, math.log(2), id="one, undecided"),
    pytest.param([0.0, 0.0], 1, math.log(3), id="two, undecided"),
    pytest.param([20.0, 0.0], 0, 0.0, id="right"),
    pytest.param([20.0, 0.0], 1, 20.0, id="the other one"),
    pytest.param([-20.0, -20.0], -1, 0.0, id="new, and like nobody"),
    pytest.param([math.log(2), 0.0], 0, math.log(2), id="2 of 1 + 2 + 1"),
])
def test_match_by_hand(dots, partner, loss):
    embedding, known = torch.tensor([[1.0, 0.0]]), torch.tensor([[d, 7.0] for d in dots]).reshape(-1, 2)
    image = torch.zeros(len(dots), dtype=torch.int64)
    found = match_loss(embedding, known, regions(((0, 0, 1, 1), 0, 0)), image, [torch.tensor([partner])], 1)
    assert found.item() == pytest.approx(loss, abs=1e-5)


OWNERS = [(0, 0), (0, 1), (0, 0), (2, 0), (2, 1), (2, 1), (2, 2)]
"""(image, instance) of seven regions; image 1 has none, and of image 3 none was drawn."""
INTO = [torch.tensor([2, -1]), torch.tensor([0]), torch.tensor([-1, 0, 1]), torch.zeros(0, dtype=torch.int64)]
KNOWN_IMAGE = torch.tensor([0, 0, 0, 1, 2, 2])


def naive_match(e: np.ndarray, f: np.ndarray) -> float:
    total = 0.0
    for b in range(4):
        own = [i for i, (image, _) in enumerate(OWNERS) if image == b]
        there = [j for j, image in enumerate(KNOWN_IMAGE.tolist()) if image == b]
        for i in own:
            z = [0.0, *(float(e[i] @ f[j]) for j in there)]
            total += (math.log(sum(map(math.exp, z))) - z[int(INTO[b][OWNERS[i][1]]) + 1]) / len(own)
    return total / 4


def test_match_is_the_loop():
    e, f = torch.randn(7, 5, requires_grad=True), torch.randn(6, 5, requires_grad=True)
    some = regions(*(((0, 0, 1, 1), *owner) for owner in OWNERS))
    plain = e.detach().double().numpy(), f.detach().double().numpy()
    check(match_loss(e, f, some, KNOWN_IMAGE, INTO, 4), lambda x: naive_match(x, plain[1]), e)
    check(match_loss(e, f, some, KNOWN_IMAGE, INTO, 4), lambda x: naive_match(plain[0], x), f)


def test_no_region_to_match():
    e, f = torch.zeros(0, 5, requires_grad=True), torch.randn(6, 5)
    loss = match_loss(e, f, regions(), KNOWN_IMAGE, INTO, 4)
    assert loss.item() == 0 and loss.requires_grad
