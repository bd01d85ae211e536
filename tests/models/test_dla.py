"""DLA-34: counts, shapes and names of the specification, and a second form of it, written flat in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models.dla import DLA, DLAConfig
from tests.models.oracles import batch_norm, conv
from tests.models.small import shake

SMALL = DLAConfig(widths=(3, 4, 6, 8, 10, 12))


def count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def meta_network() -> DLA:
    with torch.device("meta"):
        return DLA(DLAConfig())


# ------------------------------------------------------------------------------------------ counts, shapes, names


def test_counts_and_sizes():
    network = meta_network()
    outputs = network(torch.zeros(1, 3, 384, 640, device="meta"))
    assert count(network) == 15_270_832
    assert count(network.level3.project) + count(network.level4.project) == 41_728
    assert [tuple(x.shape) for x in outputs] == [(1, 128, 48, 80), (1, 256, 24, 40), (1, 512, 12, 20)]
    assert network.channels == (128, 256, 512) and network.strides == (8, 16, 32)


def test_widths_of_the_roots():
    network = meta_network()
    roots = {name: m.conv.in_channels for name, m in network.named_modules() if name.endswith("root")}
    assert roots == {
        "level2.root": 128,
        "level3.tree1.root": 256, "level3.tree2.root": 448,
        "level4.tree1.root": 512, "level4.tree2.root": 896,
        "level5.root": 1280,
    }  # fmt: skip


def released_names() -> set[str]:
    """Specification 6.4, without its prefix."""
    pairs = [(f"{at}.0", f"{at}.1") for at in ("base_layer", "level0", "level1")]
    pairs += [(f"level{i}.project.0", f"level{i}.project.1") for i in (2, 3, 4, 5)]
    pairs += [(f"level{i}.tree1.project.0", f"level{i}.tree1.project.1") for i in (3, 4)]
    trees = ["level2", "level5", *(f"level{i}.tree{j}" for i in (3, 4) for j in (1, 2))]
    pairs += [(f"{tree}.root.conv", f"{tree}.root.bn") for tree in trees]
    pairs += [(f"{tree}.tree{i}.conv{j}", f"{tree}.tree{i}.bn{j}") for tree in trees for i in (1, 2) for j in (1, 2)]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    return {f"{conv}.weight" for conv, _ in pairs} | {f"{bn}.{part}" for _, bn in pairs for part in norm}


def test_names_are_those_of_the_public_files():
    assert meta_network().state_dict().keys() == released_names()


@pytest.mark.parametrize("first_output, channels", [
    pytest.param(2, (6, 8, 10, 12), id="level2 to level5"),
    pytest.param(3, (8, 10, 12), id="level3 to level5"),
    pytest.param(5, (12,), id="level5 alone"),
])
def test_channels_tell_what_comes_out(first_output, channels):
    network = DLA(SMALL, first_output)
    outputs = network(torch.zeros(2, 3, 32, 64))
    assert network.channels == channels == tuple(x.shape[1] for x in outputs)
    assert [tuple(x.shape[-2:]) for x in outputs] == [(32 // s, 64 // s) for s in network.strides]


# ------------------------------------------------------------------------------------------ the arithmetic


class Flat:
    """DLA-34 of specification 2.2, level by level without recursion, in float64, on a state dict."""

    def __init__(self, state: dict[str, Tensor]) -> None:
        self.state = state

    def conv_norm(self, x: Tensor, at: str, norm: str, stride: int = 1) -> Tensor:
        affine_and_statistics = ("weight", "bias", "running_mean", "running_var")
        y = conv(x, self.state[f"{at}.weight"], stride=stride)
        return batch_norm(y, *(self.state[f"{norm}.{part}"] for part in affine_and_statistics))

    def block(self, x: Tensor, residual: Tensor, at: str, stride: int = 1) -> Tensor:
        y = self.conv_norm(x, f"{at}.conv1", f"{at}.bn1", stride).clamp(min=0)
        return (self.conv_norm(y, f"{at}.conv2", f"{at}.bn2") + residual).clamp(min=0)

    def root(self, maps: list[Tensor], at: str) -> Tensor:
        return self.conv_norm(torch.cat(maps, 1), f"{at}.root.conv", f"{at}.root.bn").clamp(min=0)

    def pooled(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        return x.reshape(b, c, h // 2, 2, w // 2, 2).amax((3, 5))

    def halving_blocks(self, x: Tensor, at: str) -> tuple[Tensor, Tensor]:
        """The two blocks of a tree that halves the size: the residual of the first is pooled, then projected."""
        residual = self.conv_norm(self.pooled(x), f"{at}.project.0", f"{at}.project.1")
        first = self.block(x, residual, f"{at}.tree1", stride=2)
        return first, self.block(first, first, f"{at}.tree2")

    def shallow(self, x: Tensor, at: str, level_root: bool) -> Tensor:
        first, second = self.halving_blocks(x, at)
        return self.root([second, first, *([self.pooled(x)] if level_root else [])], at)

    def deep(self, x: Tensor, at: str) -> Tensor:
        first, second = self.halving_blocks(x, f"{at}.tree1")
        a = self.root([second, first], f"{at}.tree1")
        third = self.block(a, a, f"{at}.tree2.tree1")
        fourth = self.block(third, third, f"{at}.tree2.tree2")
        return self.root([fourth, third, self.pooled(x), a], f"{at}.tree2")

    def __call__(self, images: Tensor) -> list[Tensor]:
        x = images.double()
        for at, stride in (("base_layer", 1), ("level0", 1), ("level1", 2)):
            x = self.conv_norm(x, f"{at}.0", f"{at}.1", stride).clamp(min=0)
        level2 = self.shallow(x, "level2", level_root=False)
        level3 = self.deep(level2, "level3")
        level4 = self.deep(level3, "level4")
        return [level2, level3, level4, self.shallow(level4, "level5", level_root=True)]


@pytest.mark.parametrize("norm", ["sync", "batch", "frozen"])
def test_network_is_its_flat_form(norm):
    network = DLA(replace(SMALL, norm=norm), first_output=2).eval()
    shake(network, seed=1)
    images = torch.randn(2, 3, 64, 32)
    found, expected = network(images), Flat(network.state_dict())(images)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape and float(b.std()) > 0.05
        assert torch.allclose(a.double(), b, atol=1e-4)


def test_a_tree_of_equal_widths_adds_its_pooled_input():
    """No projection then; level5 becomes block(x, pooled x), block, root."""
    network = DLA(replace(SMALL, widths=(3, 4, 6, 8, 10, 10))).eval()
    shake(network, seed=2)
    assert not list(network.level5.project.parameters())
    flat, x = Flat(network.state_dict()), torch.randn(1, 10, 4, 6)
    first = flat.block(x, flat.pooled(x).double(), "level5.tree1", stride=2)
    second = flat.block(first, first, "level5.tree2")
    expected = flat.root([second, first, flat.pooled(x).double()], "level5")
    assert torch.allclose(network.level5(x).double(), expected, atol=1e-5)


def test_a_root_has_no_residual_and_the_base_keeps_the_size():
    network = DLA(SMALL).eval()
    with torch.no_grad():
        network.level2.root.conv.weight.zero_()
    half = network.level1(network.level0(network.base_layer(torch.randn(1, 3, 32, 32))))
    assert half.shape == (1, 4, 16, 16)
    assert not network.level2(half).any()


# ------------------------------------------------------------------------------------------ training


def test_all_but_the_unused_projections_train():
    network = DLA(SMALL).train()
    sum(x.square().sum() for x in network(torch.randn(2, 3, 64, 64))).backward()
    still = {name for name, p in network.named_parameters() if p.grad is None}
    unused = {f"level{i}.project.{part}" for i in (3, 4) for part in ("0.weight", "1.weight", "1.bias")}
    assert still == unused == {name for name, p in network.named_parameters() if not p.requires_grad}
    assert all(p.grad.any() for name, p in network.named_parameters() if name not in unused)


def test_unused_projections_change_nothing():
    network = DLA(SMALL).eval()
    images = torch.randn(1, 3, 32, 32)
    before = network(images)
    with torch.no_grad():
        for level in (network.level3, network.level4):
            level.project[0].weight.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, network(images), strict=True))


def test_start_is_normal_by_fan_out():
    """Standard deviation sqrt(2 / (9 * 64)) in a 3x3 to 64 channels."""
    weight = DLA(DLAConfig()).level2.tree1.conv2.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
    assert abs(weight.mean().item()) < 1e-3


@pytest.mark.parametrize("wrong, message", [
    pytest.param({"widths": (0, 1, 1, 1, 1, 1)}, "DLA: widths", id="no channels"),
    pytest.param({"depths": (1, 0, 1, 1)}, "DLA: depths", id="a tree without blocks"),
    pytest.param({"depths": (1, 7, 1, 1)}, "DLA: depths", id="a tree of 128 blocks"),
])
def test_settings_that_cannot_be_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        DLAConfig(**wrong)


@pytest.mark.parametrize("first_output", [1, 6])
def test_maps_that_there_are_not(first_output):
    with pytest.raises(ValueError, match=f"first_output is {first_output}, expected 2..5"):
        DLA(SMALL, first_output)
