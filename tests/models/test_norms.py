"""The frozen norm against its formula by hand, and what `make_norm` gives."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.norms import FrozenBatchNorm2d, make_norm


@pytest.mark.parametrize("x, weight, bias, mean, var, expected", [
    pytest.param(3.0, 1.0, 0.0, 0.0, 1 - 1e-5, 3.0, id="nothing to do"),
    pytest.param(3.0, 2.0, 1.0, 0.0, 1 - 1e-5, 7.0, id="caffe origin: weight and bias alone"),
    pytest.param(3.0, 2.0, 1.0, 1.0, 4.0, (3 - 1) * 2 / math.sqrt(4.00001) + 1, id="all four"),
    pytest.param(0.0, 2.0, 1.0, 1.0, 0.0, -1 * 2 / math.sqrt(1e-5) + 1, id="no variance: eps alone"),
])
def test_frozen_norm_follows_its_formula(x, weight, bias, mean, var, expected):
    norm = FrozenBatchNorm2d(1)
    norm.load_state_dict({
        "weight": torch.tensor([weight]), "bias": torch.tensor([bias]),
        "running_mean": torch.tensor([mean]), "running_var": torch.tensor([var]),
    })
    assert norm(torch.full((1, 1, 1, 1), x)).item() == pytest.approx(expected, rel=1e-5)


def test_fresh_frozen_norm_hands_on_what_came():
    """Caffe files fill weight and bias alone: the variance left behind, with eps, must make exactly one."""
    norm, x = FrozenBatchNorm2d(2), torch.randn(1, 2, 3, 3)
    assert (norm.running_var.double() + 1e-5).tolist() == pytest.approx([1, 1], abs=2e-7)
    assert torch.allclose(norm(x), x, rtol=1e-6, atol=0)


def test_frozen_norm_treats_channels_apart():
    norm = FrozenBatchNorm2d(2)
    norm.weight.copy_(torch.tensor([2.0, -1.0]))
    norm.bias.copy_(torch.tensor([0.0, 5.0]))
    out = norm(torch.ones(3, 2, 2, 2))
    assert torch.allclose(out[:, 0], torch.tensor(2.0)) and torch.allclose(out[:, 1], torch.tensor(4.0))


def test_frozen_norm_has_nothing_to_train_and_does_not_move():
    norm = FrozenBatchNorm2d(3).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.randn(4, 3, 5, 5))
    assert list(norm.parameters()) == []
    assert before.keys() == {"weight", "bias", "running_mean", "running_var"}
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_frozen_norm_lets_the_gradient_through_scaled():
    norm = FrozenBatchNorm2d(1)
    norm.weight.fill_(3.0)
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    norm(x).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 3.0))


def test_batch_norm_has_the_momentum_and_eps_of_the_specification():
    norm = make_norm("batch", 7)
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 7
    assert (norm.momentum, norm.eps, norm.affine) == (0.1, 1e-5, True)


def test_make_norm_frozen():
    assert isinstance(make_norm("frozen", 2), FrozenBatchNorm2d)


def test_an_unknown_norm_is_refused():
    with pytest.raises(KeyError):
        make_norm("group", 8)
