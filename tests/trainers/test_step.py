"""One update: learning rates from a table, decay and averages by hand, and a loss that is no number.

Source of what is expected: CrossVIS specification 3.7; IAI specification 3.4.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from models.association_block import AssociationConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.fcos import FCOSConfig
from models.iai import IAI, IAIConfig
from models.norms import FrozenBatchNorm2d
from models.resnet import ResNetConfig
from pipelines.config import build, load_yaml, resolve
from trainers.config import TrainConfig
from trainers.step import Average, OptimizerConfig, PartConfig, Shared, learning_rate, make_optimizer, update

# -------------------------------------------------------------------------------------------------------- learning rate


@pytest.mark.parametrize("step, rate", [
    (0, 0.005 * 0.001), (250, 0.005 * (0.001 * 0.75 + 0.25)), (500, 0.005 * 0.5005), (999, 0.005 * 0.999001),
    (1000, 0.005), (14999, 0.005), (15000, 0.0005), (20999, 0.0005), (21000, 0.00005), (22999, 0.00005),
])  # fmt: skip
def test_the_released_schedule(step, rate):
    assert learning_rate(step, 23000, OptimizerConfig()) == pytest.approx(rate, rel=1e-9)


@pytest.mark.parametrize("step, rate", [
    (0, 1e-7), (250, 5.005e-5), (499, 1e-4 * (0.998 + 0.001 * 0.002)), (500, 1e-4), (5599, 1e-4), (5600, 1e-5),
    (7699, 1e-5), (7700, 1e-6), (8399, 1e-6),
])  # fmt: skip
def test_the_released_schedule_of_iai(step, rate):
    """12 epochs of 700 steps, a tenth after the 8th and the 11th, 500 steps of warm-up."""
    cfg = settings_of("iai_condinst_r50_ytvis19")
    assert learning_rate(step, cfg.steps, cfg.optimizer) == pytest.approx(rate, rel=1e-6)


@pytest.mark.parametrize("step, rate", [
    (0, 5e-6), (500, 0.0025025), (999, 0.004995005), (1000, 0.005), (14999, 0.005), (15000, 5e-4), (20999, 5e-4),
    (21000, 5e-5), (22999, 5e-5),
])  # fmt: skip
def test_the_full_size_run_of_crossvis(step, rate):
    """16 pairs a step, for 23,000 steps, no clipping, no average, float32; 0.1 % of the rate at first."""
    cfg = settings_of("crossvis_r50_ytvis19")
    assert (cfg.steps, cfg.samples_per_step, cfg.precision) == (23000, 16, "float32")
    assert (cfg.optimizer.clip_norm, cfg.optimizer.average_decay) == (None, None)
    assert learning_rate(step, cfg.steps, cfg.optimizer) == pytest.approx(rate, rel=1e-6)


def settings_of(name: str) -> TrainConfig:
    path = resolve(f"configs/training/{name}.yaml")
    return build(TrainConfig, load_yaml(path), str(path))


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


def decayed(name: str, **settings) -> dict[str, float]:
    """By what one step with a gradient of 0 does: 1 becomes 1 - rate * decay, or stays 1."""
    network = Parts()
    optimizer = make_optimizer(network, OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.5, **settings))
    nothing = 0.0 * sum(value.sum() for value in network.parameters() if value.requires_grad)
    update(lambda batch: {"nothing": nothing}, network, optimizer, [None], 0.1, None)
    return {name: round(value.flatten()[0].item(), 6) for name, value in network.named_parameters()}


NORM_NAMES = [f"{kind}_norm.{what}" for kind in ("batch", "group", "layer") for what in ("weight", "bias")]


@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("settings, bias, norm", [
    pytest.param({}, 0.95, 1, id="as CrossVIS: norms do not"),
    pytest.param({"decay_norms": True}, 0.95, 0.95, id="as IAI: everything"),
    pytest.param({"decay_biases": False}, 1, 1, id="weights alone"),
    pytest.param({"decay_biases": False, "decay_norms": True}, 1, 0.95, id="a norm's bias is the norm's"),
])  # fmt: skip
def test_what_decays(name, settings, bias, norm):
    assert decayed(name, **settings) == {
        "conv.weight": 0.95, "conv.bias": bias, "scales": 0.95, **dict.fromkeys(NORM_NAMES, norm),
        "frozen.weight": 1, "frozen.bias": 1}  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_weights_and_biases_decay_and_norms_do_not(name):
    assert decayed(name) == {
        "conv.weight": 0.95, "conv.bias": 0.95, "scales": 0.95, "batch_norm.weight": 1, "batch_norm.bias": 1,
        "group_norm.weight": 1, "group_norm.bias": 1, "layer_norm.weight": 1, "layer_norm.bias": 1,
        "frozen.weight": 1, "frozen.bias": 1}  # fmt: skip


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_parts_have_rates_of_their_own(name):
    """Shrinking by rate x decay tells both at once. The first part that a name contains counts."""
    parts = (PartConfig(contains="norm", learning_rate=0.5, weight_decay=0.2), PartConfig(contains="conv"),
             PartConfig(contains="a", learning_rate=3.0))  # fmt: skip
    after = decayed(name, parts=parts, decay_norms=True)
    assert after == {
        **dict.fromkeys(NORM_NAMES, 0.995),                             # 1 - 0.05 * 0.1; "batch", "layer" hold an a
        "conv.weight": 0.95, "conv.bias": 0.95, "scales": 0.85,         # 1 - 0.3 * 0.5
        "frozen.weight": 1, "frozen.bias": 1}  # fmt: skip


def test_the_learning_rate_of_a_step_is_multiplied_in_each_part():
    network = Line()
    network.slow = nn.Parameter(torch.tensor([2.0]))
    cfg = OptimizerConfig(momentum=0.0, weight_decay=0.0, parts=(PartConfig(contains="slow", learning_rate=0.1),))
    optimizer = make_optimizer(network, cfg)
    update(lambda batch: {"a": network.w.sum() + network.slow.sum()}, network, optimizer, [None], 0.5, None)
    assert network.slow.item() == pytest.approx(1.95) and network.w.tolist() == pytest.approx([2.5, 3.5])
    update(lambda batch: {"a": network.w.sum() + network.slow.sum()}, network, optimizer, [None], 0.1, None)
    assert network.slow.item() == pytest.approx(1.94) and network.w.tolist() == pytest.approx([2.4, 3.4])


def test_the_rates_of_the_released_iai():
    """Backbone, and by its name the classification projector: a tenth of the rate, nine tenths of the decay."""
    network = IAI(IAIConfig(
        num_classes=3, num_slots=4, channels=16, mask_channels=8,
        backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=8, mid_channels=4, norm="frozen_statistics",
                              stride_in="3x3"),
        fcos=FCOSConfig(tower_convs=1, groups=4, tower_bias=False),
        association=AssociationConfig(dim=16, hidden=32, groups=4, radius=1, class_channels=96)))  # fmt: skip
    optimizer = make_optimizer(network, settings_of("iai_condinst_r50_ytvis19").optimizer)
    of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    names = {id(p): name for name, p in network.named_parameters()}
    slow = {names[key] for key, group in of.items() if (group["lr"], group["weight_decay"]) == (1e-5, 9e-5)}
    rest = {names[key] for key, group in of.items() if (group["lr"], group["weight_decay"]) == (1e-4, 1e-4)}
    assert slow == {name for name in names.values() if "backbone" in name and id(network.get_parameter(name)) in of}
    assert "association.backbone_projector.bias" in slow and "association.encoder_projector.bias" in rest
    assert any(name.endswith("norm.weight") for name in slow), "norms of the backbone train, and decay"
    assert len(slow) + len(rest) == len(of) == sum(p.requires_grad for p in network.parameters())


def test_a_part_that_no_parameter_belongs_to_is_refused():
    with pytest.raises(ValueError, match="optimizer.parts: no trainable parameter's name contains 'bakbone'"):
        make_optimizer(Parts(), OptimizerConfig(parts=(PartConfig(contains="bakbone"),)))


@pytest.mark.parametrize("settings", [
    {"contains": ""}, {"contains": "a", "learning_rate": 0.0}, {"contains": "a", "weight_decay": -1.0}], ids=str)
def test_parts_out_of_range(settings):
    with pytest.raises(ValueError):
        PartConfig(**settings)


def test_a_checkpoint_of_a_run_before_there_were_parts_goes_on():
    """Its groups are in the same order, and have no factors."""
    network = Parts()
    optimizer = make_optimizer(network, OptimizerConfig())
    saved = optimizer.state_dict()
    for group in saved["param_groups"]:
        group.pop("rate_factor")
    assert [group["weight_decay"] for group in saved["param_groups"]] == [1e-4, 0.0]
    optimizer.load_state_dict(saved)
    update(lambda batch: {"a": network.scales.sum()}, network, optimizer, [None], 0.25, None)
    assert {group["lr"] for group in optimizer.param_groups} == {0.25}


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
    losses = update(quadratic(network), network, optimizer, [None], 0.1, None)
    assert losses == {"a": 4.5, "b": 8.0, "total": 12.5, "gradient_norm": 5.0}
    torch.testing.assert_close(network.w.detach(), torch.tensor([2.7, 3.6]))        # w - 0.1 w
    losses = update(quadratic(network), network, optimizer, [None], 0.2, None)
    assert losses == pytest.approx({"a": 3.645, "b": 6.48, "total": 10.125, "gradient_norm": 4.5})
    # momentum: 0.5 * (3, 4) + (2.7, 3.6) = (4.2, 5.6), at the second step's own rate; gradients do not add up
    torch.testing.assert_close(network.w.detach(), torch.tensor([2.7 - 0.84, 3.6 - 1.12]))


@pytest.mark.parametrize("clip_norm, after", [pytest.param(1.0, [2.94, 3.92], id="5 becomes 1"),
                                               pytest.param(10.0, [2.7, 3.6], id="short enough")])
def test_gradients_are_shortened(clip_norm, after):
    network = Line()
    update(quadratic(network), network, make_optimizer(network, PLAIN), [None], 0.1, clip_norm)
    torch.testing.assert_close(network.w.detach(), torch.tensor(after))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_loss_that_is_no_number_stops_before_the_update(bad, name):
    network = Line()
    optimizer = make_optimizer(network, OptimizerConfig(name=name))
    update(quadratic(network), network, optimizer, [None], 0.1, None)
    weights, state = network.w.detach().clone(), copy.deepcopy(optimizer.state_dict()["state"])

    def losses_of(batch) -> dict[str, Tensor]:
        return {"fine": network.w.sum(), "spoilt": network.w.sum() * bad}

    with pytest.raises(FloatingPointError, match="not finite.*'fine'.*'spoilt'"):
        update(losses_of, network, optimizer, [None], 0.1, None)
    assert torch.equal(network.w.detach(), weights)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(torch.as_tensor(after[0][key]), torch.as_tensor(value)) for key, value in state[0].items())


def test_losses_without_a_gradient_for_some_parameters_leave_those_alone():
    """What gets no gradient in a step is not moved by the gradient of the last."""
    network = Line()
    network.other = nn.Parameter(torch.tensor([1.0]))
    optimizer = make_optimizer(network, OptimizerConfig(momentum=0.0, weight_decay=0.0))
    update(lambda batch: {"a": (network.other * 2).sum()}, network, optimizer, [None], 0.1, None)
    update(quadratic(network), network, optimizer, [None], 0.1, None)
    assert network.other.item() == pytest.approx(0.8)


# ------------------------------------------------------------------------------------------------------ several batches


def line_losses(network: Line):
    """Of a batch of numbers (n, 2): the mean over it, as a network gives it."""
    return lambda batch: {"a": (batch @ network.w).pow(2).mean() / 2, "b": (batch @ network.w).mean()}


@pytest.mark.parametrize("clip_norm", [None, 0.5])
@pytest.mark.parametrize("name", ["sgd", "adamw"])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_batches_one_after_the_other_are_one_big_batch(name, count, clip_norm):
    big, parts = Line(), Line()
    cfg = OptimizerConfig(name=name)
    optimizers = [make_optimizer(network, cfg) for network in (big, parts)]
    for step in range(3):
        batch = torch.randn(6, 2, generator=torch.Generator().manual_seed(step))
        whole = update(line_losses(big), big, optimizers[0], [batch], 0.1, clip_norm)
        summed = update(line_losses(parts), parts, optimizers[1], batch.chunk(count), 0.1, clip_norm)
        assert summed == pytest.approx(whole, rel=1e-5)
        torch.testing.assert_close(parts.w.detach(), big.w.detach(), rtol=1e-5, atol=1e-6)


class Counting(nn.Module):
    """Divides by a number that is shared, as networks do by their positives: those above 0."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.norm = nn.Parameter(torch.tensor([1.0, -2.0])), nn.BatchNorm1d(2)

    def forward(self, batch: Tensor, average=lambda value: value) -> dict[str, Tensor]:
        self.norm(batch)
        positives = average(torch.tensor(float((batch[:, 0] > 0).sum())))
        return {"a": (batch @ self.w).sum() / positives.clamp(min=1), "b": (batch @ self.w).pow(2).mean()}


def test_what_batches_divide_by_is_counted_over_all_of_them():
    """5 positives of 6: two batches must each divide by 2.5, whichever share of them they hold."""
    network = Counting()
    running = copy.deepcopy(network.norm.state_dict())
    batch = torch.tensor([[1.0, 2.0], [3.0, 1.0], [1.0, 1.0], [-1.0, 4.0], [2.0, 2.0], [5.0, 1.0]])
    counted = Shared(lambda value: value).count(network, batch.split(3))
    assert [value.tolist() for value in counted] == [2.5]
    after = network.norm.state_dict()
    assert network.training and all(torch.equal(after[name], value) for name, value in running.items())
    told = [network(part, lambda value: counted[0])["a"] for part in batch.split(3)]
    assert sum(told).item() / 2 == pytest.approx(network(batch)["a"].item())


def test_they_are_counted_over_the_workers_too():
    counted = Shared(lambda value: value + 10).count(Counting(), torch.ones(4, 2).split(2))
    assert [value.tolist() for value in counted] == [12.0]


def test_a_network_that_asks_for_nothing_is_asked_once():
    passes = []
    network = Line()
    network.forward = lambda batch, average: passes.append(batch) or {}
    shared = Shared(lambda value: value)
    assert [shared.count(network, [torch.zeros(1)] * 2) for _ in range(3)] == [[], [], []]
    assert len(passes) == 2


# -------------------------------------------------------------------------------------------------- workers and float16


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_worker_s_bad_loss_stops_all(bad):
    """Here all is well; the mean over the workers says that elsewhere it is not."""
    network = Line()
    with pytest.raises(FloatingPointError, match="the loss is not finite"):
        update(quadratic(network), network, make_optimizer(network, PLAIN), [None], 0.1, None,
               average=lambda value: value + bad)
    assert network.w.tolist() == [3.0, 4.0]


def test_a_gradient_that_is_no_number_stops_though_the_loss_is_one():
    """The slope of a root at 0. The checkpoint after such a step would be worth nothing."""
    network = Line()
    with pytest.raises(FloatingPointError, match="the gradient is not finite, though the loss is"):
        update(lambda batch: {"a": (network.w - network.w.detach()).sqrt().sum()}, network,
               make_optimizer(network, PLAIN), [None], 0.1, None)
    assert network.w.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("clip_norm, after", [(None, [2.7, 3.6]), (1.0, [2.94, 3.92])])
def test_a_scaled_loss_gives_the_step_of_the_loss(clip_norm, after):
    """By hand: the gradient is (3, 4), of length 5; scaling leaves no trace, and what is clipped is the true one."""
    network, scaler = Line(), torch.amp.GradScaler("cpu", init_scale=1024.0)
    losses = update(quadratic(network), network, make_optimizer(network, PLAIN), [None], 0.1, clip_norm, scaler=scaler)
    torch.testing.assert_close(network.w.detach(), torch.tensor(after))
    assert losses == {"a": 4.5, "b": 8.0, "total": 12.5, "gradient_norm": 5.0}


def test_a_step_whose_scaled_gradients_overflow_is_left_out_and_the_scale_halved():
    network, scaler = Line(), torch.amp.GradScaler("cpu", init_scale=2.0**127)
    optimizer = make_optimizer(network, PLAIN)
    losses = update(quadratic(network), network, optimizer, [None], 0.1, None, scaler=scaler)
    assert network.w.tolist() == [3.0, 4.0] and losses["total"] == 12.5 and losses["gradient_norm"] == math.inf
    assert scaler.get_scale() == 2.0**126
    scaler.update(4.0)
    update(quadratic(network), network, optimizer, [None], 0.1, None, scaler=scaler)
    torch.testing.assert_close(network.w.detach(), torch.tensor([2.7, 3.6]))
