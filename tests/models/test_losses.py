"""Each loss by hand, against loops in float64, its gradient against differences of those loops, and the empty case."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from models.losses import centerness_loss, dice_loss, giou_loss, mean_or_zero, sigmoid_focal_loss
from tests.models import oracles


def slopes(loss: Callable[[np.ndarray], float], at: torch.Tensor, step: float = 1e-5) -> np.ndarray:
    """Central differences of `loss`, entry by entry."""
    x = at.detach().double().numpy()
    out = np.empty_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        out[index] = (loss(up) - loss(down)) / (2 * step)
    return out


def check(loss: torch.Tensor, expected: Callable[[np.ndarray], float], at: torch.Tensor) -> None:
    """Value and gradient of `loss`, made from `at`, are those of `expected`."""
    assert loss.item() == pytest.approx(expected(at.detach().double().numpy()), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, at)
    assert gradient.any() and np.allclose(gradient.numpy(), slopes(expected, at), atol=1e-4)


# ------------------------------------------------------------------------------------------ focal


@pytest.mark.parametrize("logit, target, expected", [
    pytest.param(0.0, 1, 0.25 * 0.25 * math.log(2), id="undecided, positive"),
    pytest.param(0.0, 0, 0.75 * 0.25 * math.log(2), id="undecided, negative"),
    pytest.param(-math.log(99), 1, 0.25 * 0.99**2 * math.log(100), id="fresh, positive"),
    pytest.param(-math.log(99), 0, 0.75 * 0.01**2 * math.log(100 / 99), id="fresh, negative"),
    pytest.param(math.log(9), 1, 0.25 * 0.1**2 * math.log(10 / 9), id="right: hardly counts"),
    pytest.param(200.0, 0, 0.75 * 200, id="far off: still finite"),
    pytest.param(-200.0, 0, 0.0, id="far right: nothing"),
])
def test_focal_by_hand(logit, target, expected):
    loss = sigmoid_focal_loss(torch.tensor([logit]), torch.tensor([float(target)]))
    assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_focal_is_the_loop():
    logits = (3 * torch.randn(4, 5)).requires_grad_()
    targets = (torch.rand(4, 5) < 0.3).float()
    check(sigmoid_focal_loss(logits, targets), lambda z: oracles.focal(z, targets.numpy()), logits)


# ------------------------------------------------------------------------------------------ GIoU


@pytest.mark.parametrize("pred, target, expected", [
    pytest.param((1, 1, 1, 1), (1, 1, 1, 1), 0.0, id="the same box"),
    pytest.param((1, 1, 1, 1), (2, 2, 2, 2), 1 - 5 / 17, id="a quarter, inside: (4 + 1) / (16 + 1), hull full"),
    pytest.param((0, 0, 0, 0), (1, 1, 1, 1), 1 - 1 / 5, id="no area predicted: 1 / (4 + 1)"),
    pytest.param((2, 1, 0, 1), (0, 1, 2, 1), 1 - (1 / 9 - 0 / 8), id="side by side: hull is the union"),
    pytest.param((2, 2, 0, 0), (0, 0, 2, 2), 1 - (1 / 9 - 8 / 16), id="corner to corner: half the hull is empty"),
])
def test_giou_by_hand(pred, target, expected):
    rows = torch.tensor([pred], dtype=torch.float32), torch.tensor([target], dtype=torch.float32)
    assert giou_loss(*rows, torch.ones(1)).item() == pytest.approx(expected, abs=1e-6)
    assert giou_loss(*rows, torch.tensor([0.5])).item() == pytest.approx(0.5 * expected, abs=1e-6)


def test_giou_is_the_loop():
    pred, target = (4 * torch.rand(7, 4)).requires_grad_(), 4 * torch.rand(7, 4) + 0.1
    weights = torch.rand(7)
    truth = target.double().numpy(), weights.double().numpy()
    check(giou_loss(pred, target, weights), lambda x: oracles.box_loss(x, *truth), pred)


# ------------------------------------------------------------------------------------------ dice


@pytest.mark.parametrize("logits, mask, expected", [
    pytest.param([[0, 0]], [[1, 1]], 1 - 2 / (0.5 + 2 + 1e-5), id="undecided everywhere"),
    pytest.param([[50, -50]], [[1, 0]], 1 - 2 / 2.00001, id="right"),
    pytest.param([[50, -50]], [[0, 1]], 1.0, id="the reverse"),
    pytest.param([[-50, -50]], [[0, 0]], 1.0, id="nothing there, nothing said: 1e-5 keeps it finite"),
])
def test_dice_by_hand(logits, mask, expected):
    loss = dice_loss(torch.tensor([logits], dtype=torch.float32), torch.tensor([mask], dtype=torch.bool))
    assert loss.shape == (1,) and loss.item() == pytest.approx(expected, abs=1e-6)


def test_dice_knows_its_epsilon():
    """A mask so faint that 1e-5 is most of the denominator: m = 1e-3 on one pixel, none true."""
    z = math.log(1e-3 / 0.999)
    loss = dice_loss(torch.full((1, 1, 1), z), torch.ones(1, 1, 1) * 1e-3)
    assert loss.item() == pytest.approx(1 - 2e-6 / (2e-6 + 1e-5), abs=1e-5)


def test_dice_is_the_loop_and_instances_stand_alone():
    logits = (2 * torch.randn(3, 4, 5)).requires_grad_()
    masks = torch.rand(3, 4, 5) < 0.5
    each = [oracles.dice(z, m) for z, m in zip(logits.detach().numpy(), masks.numpy(), strict=True)]
    assert dice_loss(logits, masks).tolist() == pytest.approx(each, rel=1e-5)

    def total(z: np.ndarray) -> float:
        return sum(oracles.dice(a, m) for a, m in zip(z, masks.numpy(), strict=True))

    check(dice_loss(logits, masks).sum(), total, logits)


# ------------------------------------------------------------------------------------------ centre-ness


@pytest.mark.parametrize("logit, target, expected", [
    pytest.param(0.0, 0.3, math.log(2), id="undecided"),
    pytest.param(math.log(3), 0.75, -0.75 * math.log(0.75) - 0.25 * math.log(0.25), id="right, yet not zero"),
    pytest.param(math.log(3), 0.0, -math.log(0.25), id="wrong"),
])
def test_centerness_by_hand(logit, target, expected):
    assert centerness_loss(torch.tensor([logit]), torch.tensor([target])).item() == pytest.approx(expected)


def test_centerness_is_the_loop():
    logits, targets = (2 * torch.randn(6)).requires_grad_(), torch.rand(6)
    check(centerness_loss(logits, targets), lambda z: oracles.cross_entropy(z, targets.double().numpy()), logits)


# ------------------------------------------------------------------------------------------ nothing to sum


@pytest.mark.parametrize("loss, shape", [
    pytest.param(lambda x: sigmoid_focal_loss(x, torch.zeros(0, 3)), (0, 3), id="focal"),
    pytest.param(lambda x: giou_loss(x, torch.zeros(0, 4), torch.zeros(0)), (0, 4), id="giou"),
    pytest.param(lambda x: mean_or_zero(dice_loss(x, torch.zeros(0, 4, 5, dtype=torch.bool))), (0, 4, 5), id="dice"),
    pytest.param(lambda x: centerness_loss(x, torch.zeros(0)), (0,), id="centre-ness"),
    pytest.param(mean_or_zero, (0,), id="mean"),
])
def test_nothing_gives_zero_within_the_graph(loss, shape):
    network_output = torch.ones(shape, requires_grad=True)
    value = loss(network_output)
    assert value.shape == () and value.item() == 0
    value.backward()
    assert network_output.grad.shape == shape


def test_mean_or_zero_is_the_mean():
    assert mean_or_zero(torch.tensor([1.0, 2.0, 6.0])).item() == 3


@pytest.mark.parametrize("loss", [
    pytest.param(lambda x: sigmoid_focal_loss(x, torch.zeros_like(x)), id="focal"),
    pytest.param(lambda x: giou_loss(x, x.detach() + 1, torch.ones(len(x))), id="giou"),
    pytest.param(lambda x: dice_loss(x[None], torch.ones(1, *x.shape)).sum(), id="dice"),
    pytest.param(lambda x: centerness_loss(x, torch.zeros_like(x)), id="centre-ness"),
])
def test_half_precision_is_summed_in_float32(loss):
    """4,000 equal terms: in bfloat16 the sum would stick at a few hundred."""
    x = torch.full((1000, 4), 1.5, dtype=torch.bfloat16)
    value = loss(x)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(loss(x.float()).item(), rel=1e-6)
