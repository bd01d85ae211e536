"""One update: learning rates from a table, decay and averages by hand, and a loss that is no number.

Source of what is expected: CrossVIS specification 3.7.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from models.crossvis import CrossVIS, CrossVISConfig
from models.fcos import FCOSConfig
from models.norms import FrozenBatchNorm2d
from models.resnet import ResNetConfig
from trainers.step import Average, OptimizerConfig, learning_rate, make_optimizer, train_step

# -------------------------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize("step, rate", [
    (0, 0.005 * 0.001), (250, 0.005 * (0.001 * 0.75 + 0.25)), (500, 0.005 * 0.5005), (999, 0.005 * 0.999001),
    (1000, 0.005), (14999, 0.005), (15000, 0.0005), (20999, 0.0005), (21000, 0.00005), (22999, 0.00005),
])  # fmt: skip
def test_the_released_schedule(step, rate):
    assert learning_rate(step, 23000, OptimizerConfig()) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("total, decays", [
    pytest.param(23000, (15000, 21000), id="of the release"),
    pytest.param(46000, (30000, 42000), id="twice as long: at the same shares"),
])
def test_decays_stand_at_shares_of_the_run(total, decays):
    rates = [learning_rate(step, total, OptimizerConfig()) for step in (decays[0] - 1, *decays)]
    assert rates == pytest.approx([0.005, 0.0005, 0.00005])


@pytest.mark.parametrize("step, share", [
    (0, 1.0), (25, (1 + math.sqrt(0.5)) / 2), (50, 0.5), (75, (1 - math.sqrt(0.5)) / 2),
    (99, (1 - math.cos(math.pi / 100)) / 2),
])  # fmt: skip
def test_cosine(step, share):
    cfg = OptimizerConfig(learning_rate=0.2, decay="cosine", warmup_steps=0)
    assert learning_rate(step, 100, cfg) == pytest.approx(0.2 * share, rel=1e-9)


def test_warm_up_multiplies_the_cosine():
    cfg = OptimizerConfig(learning_rate=0.2, decay="cosine", warmup_steps=40, warmup_factor=0.1)
    assert learning_rate(0, 100, cfg) == pytest.approx(0.2 * 0.1)
    assert learning_rate(20, 100, cfg) == pytest.approx(0.2 * 0.55 * (1 + math.cos(0.2 * math.pi)) / 2)
    assert learning_rate(40, 100, cfg) == pytest.approx(0.2 * (1 + math.cos(0.4 * math.pi)) / 2)


def test_no_warm_up_and_no_decay():
    cfg = OptimizerConfig(warmup_steps=0, decay_at=())
    assert {learning_rate(step, 10, cfg) for step in range(10)} == {0.005}


@pytest.mark.parametrize("settings", [
    {"learning_rate": 0.0}, {"learning_rate": -1.0}, {"weight_decay": -1e-4}, {"warmup_steps": -1},
    {"average_decay": 0.0}, {"average_decay": 1.0}, {"average_decay": 1.5},
    pytest.param({"clip_norm": -1.0}, id="clip_norm -1.0: it would turn every gradient round"),
    pytest.param({"momentum": -0.5}, id="momentum -0.5: torch refuses it, once training has begun"),
], ids=str)  # fmt: skip
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError):
        OptimizerConfig(**settings)


# ---------------------------------------------------------------------------------------------------------- what decays


class Parts(nn.Module):
    """Every kind of parameter, each full of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 1)
        self.batch_norm, self.group_norm, self.layer_norm = nn.BatchNorm2d(4), nn.GroupNorm(2, 4), nn.LayerNorm(4)
        self.frozen_norm = FrozenBatchNorm2d(4)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.scales = nn.Parameter(torch.ones(5))
        with torch.no_grad():
            for value in self.parameters():
                value.fill_(1.0)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_and_biases_decay_and_norms_do_not(name):
    """By what one step without a gradient does: 1 becomes 1 - rate * decay, or stays 1."""
    network = Parts()
    optimizer = make_optimizer(network, OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5))
    for value in network.parameters():
        value.grad = torch.zeros_like(value) if value.requires_grad else None
    optimizer.step()
    after = {name: round(value.flatten()[0].item(), 6) for name, value in network.named_parameters()}
    assert after == {
        "conv.weight": 0.95, "conv.bias": 0.95, "scales": 0.95, "batch_norm.weight": 1, "batch_norm.bias": 1,
        "group_norm.weight": 1, "group_norm.bias": 1, "layer_norm.weight": 1, "layer_norm.bias": 1,
        "frozen.weight": 1, "frozen.bias": 1}  # fmt: skip


def test_every_trainable_parameter_is_in_the_optimiser_once():
    config = CrossVISConfig(num_classes=3, backbone=ResNetConfig(blocks=(1, 1, 1, 1), mid_channels=4, norm="batch"),
                            channels=16, fcos=FCOSConfig(tower_convs=1, groups=4), mask_channels=8, embedding_dim=8)
    network = CrossVIS(config, num_identities=5)
    optimizer = make_optimizer(network, OptimizerConfig())
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters() if p.requires_grad)
    assert len(held) < len(list(network.parameters())), "stem and res2 are frozen by default"
    without = {id(p) for group in optimizer.param_groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, p in network.named_parameters() if id(p) in without}
    # in CrossVIS a norm is called norm, or stands at place 1 behind a convolution
    assert names and all(".norm." in name or name.split(".")[-2] == "1" for name in names)
    assert {"fcos.scales", "controller.bias", "proxies.proxies.bias", "embedding.project.bias"}.isdisjoint(names)


def test_the_released_optimiser():
    groups = make_optimizer(Parts(), OptimizerConfig()).param_groups
    assert all((g["lr"], g["momentum"], g["nesterov"], g["dampening"]) == (0.005, 0.9, False, 0) for g in groups)
    assert sorted(g["weight_decay"] for g in groups) == [0.0, 1e-4]


# ---------------------------------------------------------------------------------------------------------- the average


class One(nn.Module):
    def __init__(self, value: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([value]))
        self.register_buffer("mean", torch.tensor([10 * value]))
        self.register_buffer("count", torch.tensor(int(value)))


def set_to(network: One, value: float) -> None:
    with torch.no_grad():
        network.weight.fill_(value)
        network.mean.fill_(10 * value)
        network.count.fill_(int(value))


def test_the_average_by_hand():
    network = One(8.0)
    average = Average(network, decay=0.75)
    expected = 8.0
    # the decay rises 1/10, 2/11, 3/12, ... until it meets 0.75
    for step, (value, decay) in enumerate([(4.0, 1 / 10), (2.0, 2 / 11), (6.0, 3 / 12)]):
        set_to(network, value)
        average.update(network, step)
        expected = decay * expected + (1 - decay) * value
        assert average.state["weight"].item() == pytest.approx(expected, rel=1e-6)
        assert average.state["mean"].item() == pytest.approx(10 * expected, rel=1e-6), "running statistics too"
        assert average.state["count"].item() == int(value), "counters are copied"
    for step in (26, 27, 1000):                                         # 27 / 36 is 0.75
        set_to(network, -1.0)
        average.update(network, step)
        expected = 0.75 * expected - 0.25
        assert average.state["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_the_average_stands_apart_from_the_network():
    network = One(3.0)
    average = Average(network, decay=0.9)
    set_to(network, 5.0)
    assert average.state["weight"].item() == 3.0 and not average.state["weight"].requires_grad
    average.update(network, 100)
    assert network.weight.item() == 5.0


# ------------------------------------------------------------------------------------------------------------- the step


class Line(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, 4.0]))


def quadratic(network: Line):
    """Two parts whose sum has the gradient w."""
    return lambda batch: {"a": network.w[0] ** 2 / 2, "b": network.w[1] ** 2 / 2}


PLAIN = OptimizerConfig(momentum=0.5, weight_decay=0.0)


def test_two_steps_by_hand():
    network = Line()
    optimizer = make_optimizer(network, PLAIN)
    assert train_step(quadratic(network), network, optimizer, None, 0.1, None) == {"a": 4.5, "b": 8.0, "total": 12.5}
    torch.testing.assert_close(network.w.detach(), torch.tensor([2.7, 3.6]))        # w - 0.1 w
    losses = train_step(quadratic(network), network, optimizer, None, 0.2, None)
    assert losses == pytest.approx({"a": 3.645, "b": 6.48, "total": 10.125})
    # momentum: 0.5 * (3, 4) + (2.7, 3.6) = (4.2, 5.6), at the second step's own rate; gradients do not add up
    torch.testing.assert_close(network.w.detach(), torch.tensor([2.7 - 0.84, 3.6 - 1.12]))


@pytest.mark.parametrize("clip_norm, after", [pytest.param(1.0, [2.94, 3.92], id="5 becomes 1"),
                                               pytest.param(10.0, [2.7, 3.6], id="short enough")])
def test_gradients_are_shortened(clip_norm, after):
    network = Line()
    train_step(quadratic(network), network, make_optimizer(network, PLAIN), None, 0.1, clip_norm)
    torch.testing.assert_close(network.w.detach(), torch.tensor(after))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_loss_that_is_no_number_stops_before_the_update(bad, name):
    network = Line()
    optimizer = make_optimizer(network, OptimizerConfig(name=name))
    train_step(quadratic(network), network, optimizer, None, 0.1, None)
    weights, state = network.w.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])

    def losses_of(batch) -> dict[str, Tensor]:
        return {"fine": network.w.sum(), "spoilt": network.w.sum() * bad}

    with pytest.raises(FloatingPointError, match="not finite.*'fine'.*'spoilt'"):
        train_step(losses_of, network, optimizer, None, 0.1, None)
    assert torch.equal(network.w.detach(), weights)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(torch.as_tensor(after[0][key]), torch.as_tensor(value)) for key, value in state[0].items())


def test_losses_without_a_gradient_for_some_parameters_leave_those_alone():
    """What gets no gradient in a step is not moved by the gradient of the last."""
    network = Line()
    network.other = nn.Parameter(torch.tensor([1.0]))
    optimizer = make_optimizer(network, OptimizerConfig(momentum=0.0, weight_decay=0.0))
    train_step(lambda batch: {"a": (network.other * 2).sum()}, network, optimizer, None, 0.1, None)
    train_step(quadratic(network), network, optimizer, None, 0.1, None)
    assert network.other.item() == pytest.approx(0.8)
