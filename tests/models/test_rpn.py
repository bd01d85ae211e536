"""Proposals and their losses: by hand, and against loops over all anchors in float64.

Source of what is expected: CrossVIS specification 5.2, row RPN.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.anchors import Anchors
from models.rpn import RPN, RPNConfig, RPNOutputs, propose, rpn_losses
from models.sampling import SamplingConfig
from tests.models.small import frame, shake
from tests.models.test_anchors import inclusive, naive_decode, naive_encode
from tests.models.test_losses import slopes
from tests.operators.test_nms import naive as naive_nms

SIZES = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
"""Maps of a 64 x 64 input: 3 x 341 anchors."""
ALL = SamplingConfig(count=4000, positive_share=0.5, positive_iou=0.7, negative_iou=0.3, least_best_iou=0.3)
"""Draws every anchor that is not left out, so that nothing is left to chance."""


def outputs(images: int = 1, seed: int = 0) -> RPNOutputs:
    rng = torch.Generator().manual_seed(seed)
    anchors = Anchors.of(SIZES, 3.0, (0.5, 1.0, 2.0), torch.device("cpu"))
    count = len(anchors.boxes)
    logits = torch.randn(images, count, generator=rng)
    return RPNOutputs(logits, 0.3 * torch.randn(images, count, 4, generator=rng), anchors)


def test_defaults_are_the_released_ones():
    assert RPNConfig() == RPNConfig(
        anchor_scale=8, anchor_ratios=(0.5, 1, 2), max_per_level=200, max_iou=0.7, max_proposals=200,
        sampling=SamplingConfig(count=64, positive_share=0.5, positive_iou=0.7, negative_iou=0.3, least_best_iou=0.3))
    with torch.device("meta"):
        assert sum(p.numel() for p in RPN(256, RPNConfig()).parameters()) == 590_080 + 771 + 3_084


@pytest.mark.parametrize("settings, message", [
    pytest.param({"anchor_ratios": ()}, "anchor_ratios", id="no ratio"),
    pytest.param({"anchor_scale": 0.0}, "anchor_scale is 0", id="no size"),
    pytest.param({"max_per_level": 0}, "at least 1", id="no candidate"),
    pytest.param({"max_iou": 1.5}, "between 0 and 1", id="IoU"),
])
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        RPNConfig(**settings)


@torch.no_grad()
def test_rows_are_cells_level_first_ratios_side_by_side():
    rpn = RPN(4, RPNConfig())
    shake(rpn, 1)
    levels = tuple(torch.randn(2, 4, h, w) for h, w in SIZES)
    out, row = rpn(levels), 0
    assert out.logits.shape == (2, 3 * 341) and out.deltas.shape == (2, 3 * 341, 4)
    for level, (h, w) in zip(levels, SIZES, strict=True):
        x = rpn.conv(level).clamp(min=0)
        logits, deltas = rpn.logits(x), rpn.deltas(x)
        for i in range(h):
            for j in range(w):
                for a in range(3):
                    assert torch.equal(out.logits[:, row], logits[:, a, i, j])
                    assert torch.equal(out.deltas[:, row], deltas[:, 4 * a : 4 * a + 4, i, j])
                    row += 1
    assert row == len(out.anchors.boxes)


def test_start():
    rpn = RPN(64, RPNConfig())
    for layer in (rpn.conv, rpn.logits, rpn.deltas):
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.15) and not layer.bias.any()


# ------------------------------------------------------------------------------------------ proposals


def naive_proposals(out: RPNOutputs, image: int, size: tuple[int, int], cfg: RPNConfig) -> np.ndarray:
    """Inclusive boxes, level by level, in falling score."""
    kept, begin = [], 0
    for count in out.anchors.counts:
        rows = sorted(range(begin, begin + count), key=lambda i: -out.logits[image, i].item())[: cfg.max_per_level]
        boxes = np.array([naive_decode(out.deltas[image, i].double().numpy(), inclusive(out.anchors.boxes[i]))
                          for i in rows])
        boxes = np.clip(boxes, 0, [size[1] - 1, size[0] - 1] * 2) + [0, 0, 1, 1]     # naive_nms has sides x2 - x1
        scores = out.logits[image, rows]
        order = naive_nms(torch.tensor(boxes), scores, torch.zeros(len(rows)), cfg.max_iou, count)
        kept += [(scores[i].item(), boxes[i]) for i in order]
        begin += count
    kept.sort(key=lambda pair: -pair[0])
    return np.array([box for _, box in kept[: cfg.max_proposals]])


@pytest.mark.parametrize("per_level, most, size", [
    pytest.param(200, 200, (64, 64), id="as released"),
    pytest.param(20, 1000, (64, 64), id="few of each level, all of them"),
    pytest.param(200, 7, (50, 37), id="few in all, a frame smaller than its input"),
])
def test_proposals_are_those_of_the_loop(per_level, most, size):
    cfg = RPNConfig(anchor_scale=3.0, max_per_level=per_level, max_proposals=most)
    out = outputs(images=2)
    for image in (0, 1):
        found, expected = propose(out, image, size, cfg), naive_proposals(out, image, size, cfg)
        assert len(found) == len(expected) > 5
        np.testing.assert_allclose(found.numpy(), expected, atol=1e-3)
        assert found[:, 2].max() <= size[1] and found[:, 3].max() <= size[0] and found.min() >= 0


def test_levels_do_not_suppress_each_other():
    out = outputs()
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0]]).expand(len(out.anchors.boxes), 4)
    same = replace(out, deltas=torch.zeros_like(out.deltas), anchors=replace(out.anchors, boxes=boxes))
    assert propose(same, 0, (64, 64), RPNConfig()).tolist() == [[8, 8, 40, 40]] * 5


def test_proposals_carry_no_gradient():
    out = outputs()
    out.deltas.requires_grad_()
    assert not propose(out, 0, (64, 64), RPNConfig()).requires_grad


# ------------------------------------------------------------------------------------------ losses


def naive_losses(logits, deltas, boxes, targets, size, beta=1 / 9) -> tuple[float, float]:
    """All anchors that count, in float64; `boxes` of the anchors and of `targets` inclusive."""
    objectness = distance = count = 0
    for b, truth in enumerate(targets):
        inside = [i for i, a in enumerate(boxes)
                  if a[0] >= 0 and a[1] >= 0 and a[2] < size[1] and a[3] < size[0]]
        overlap = np.array([[iou(boxes[i], g) for i in inside] for g in truth]).reshape(len(truth), len(inside))
        owner = {}
        for k, i in enumerate(inside):
            best = overlap[:, k].max() if len(truth) else 0.0
            if best >= 0.7:
                owner[i] = int(overlap[:, k].argmax())
            elif best < 0.3:
                owner[i] = -1
        for g in range(len(truth)):
            if overlap[g].max() >= 0.3:
                for k, i in enumerate(inside):
                    if abs(overlap[g, k] - overlap[g].max()) < 1e-9:
                        owner[i] = g
        count += len(owner)
        for i, g in owner.items():
            p = 1 / (1 + math.exp(-logits[b, i]))
            objectness -= math.log(p if g >= 0 else 1 - p)
            if g >= 0:
                for d in np.abs(deltas[b, i] - naive_encode(truth[g], boxes[i])):
                    distance += d * d / (2 * beta) if d < beta else d - beta / 2
    return objectness / max(count, 1), distance / max(count, 1)


def iou(a, b) -> float:
    w, h = min(a[2], b[2]) - max(a[0], b[0]) + 1, min(a[3], b[3]) - max(a[1], b[1]) + 1
    inner = max(w, 0) * max(h, 0)
    return inner / (sum((c[2] - c[0] + 1) * (c[3] - c[1] + 1) for c in (a, b)) - inner)


TARGETS = [frame([(6, 8, 26, 30), (34, 30, 58, 60), (3, 50, 9, 54)]), frame([]), frame([(20, 20, 33, 31)])]


@pytest.fixture(scope="module")
def case():
    out = outputs(images=3, seed=2)
    truth = [inclusive(t.boxes) for t in TARGETS]
    return out, inclusive(out.anchors.boxes), truth


@pytest.mark.parametrize("size", [(64, 64), (40, 64)])
def test_losses_are_those_of_the_loop(case, size):
    out, boxes, truth = case
    cfg = RPNConfig(sampling=ALL)
    expected = naive_losses(out.logits.double().numpy(), out.deltas.double().numpy(), boxes, truth, size)
    found = rpn_losses(out, TARGETS, size, cfg)
    assert [loss.item() for loss in found] == pytest.approx(expected, rel=1e-5)
    assert expected[1] > 0


def test_gradients_are_those_of_differences(case):
    """Of a few anchors of one image, those around the first instance, whose logits and deltas matter most."""
    out, boxes, truth = case
    near = sorted(range(len(boxes)), key=lambda i: -iou(boxes[i], truth[0][0]))[:6]
    some = RPNOutputs(out.logits[:1, near].requires_grad_(), out.deltas[:1, near].requires_grad_(),
                      Anchors(out.anchors.boxes[near], out.anchors.levels[near], (6,)))
    losses = rpn_losses(some, TARGETS[:1], (64, 64), RPNConfig(sampling=ALL))
    plain = some.logits.detach().double().numpy(), some.deltas.detach().double().numpy()
    of_logits = slopes(lambda x: naive_losses(x, plain[1], boxes[near], truth[:1], (64, 64))[0], some.logits)
    of_deltas = slopes(lambda x: naive_losses(plain[0], x, boxes[near], truth[:1], (64, 64))[1], some.deltas)
    assert of_logits.any() and of_deltas.any()
    np.testing.assert_allclose(torch.autograd.grad(losses[0], some.logits)[0].numpy(), of_logits, atol=1e-4)
    np.testing.assert_allclose(torch.autograd.grad(losses[1], some.deltas)[0].numpy(), of_deltas, atol=1e-4)


def test_only_those_drawn_count():
    """Of 64 anchors with the logit 0 each costs ln 2, whichever they are; the mean is over all drawn of all images."""
    out = outputs(images=2)
    fresh = replace(out, logits=torch.zeros_like(out.logits))
    objectness, _ = rpn_losses(fresh, [TARGETS[0], TARGETS[2]], (64, 64), RPNConfig())
    assert objectness.item() == pytest.approx(math.log(2), rel=1e-5)
    out.logits.requires_grad_()
    rpn_losses(out, [TARGETS[0], TARGETS[2]], (64, 64), RPNConfig())[0].backward()
    assert (out.logits.grad != 0).sum(1).tolist() == [64, 64]


def test_a_frame_without_instances_teaches_background_alone():
    out = outputs()
    out.deltas.requires_grad_(), out.logits.requires_grad_()
    objectness, distance = rpn_losses(out, [frame([])], (64, 64), RPNConfig())
    (objectness + distance).backward()
    assert distance.item() == 0 and not out.deltas.grad.any()
    assert (out.logits.grad > 0).sum() == 64 and (out.logits.grad >= 0).all()


def test_no_anchor_inside_gives_zero_joined_to_the_graph():
    out = outputs()
    out.logits.requires_grad_(), out.deltas.requires_grad_()
    losses = rpn_losses(out, [TARGETS[0]], (2, 2), RPNConfig())
    assert [loss.item() for loss in losses] == [0, 0] and all(loss.requires_grad for loss in losses)
