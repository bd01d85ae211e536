"""The whole network at inference: counts, how the heads' maps become rows, masks of one image, and batches."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch
from torch import nn

from models import NETWORKS
from models.condinst import DenseOutputs
from models.crossvis import CrossVIS, CrossVISConfig
from models.inputs import InputConfig
from models.resnet import ResNetConfig
from tests.models import oracles
from tests.models.small import SMALL, images, small_network

PER_LOCATION = ("class_logits", "distances", "centerness", "filters", "embeddings")
RESNET_101 = CrossVISConfig(backbone=ResNetConfig(blocks=(3, 4, 23, 3)))


def count(module: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


@pytest.fixture(scope="module")
def resnet_50() -> CrossVIS:
    with torch.device("meta"):
        return CrossVIS(CrossVISConfig(), num_identities=3774)


# ------------------------------------------------------------------------------------------ counts, defaults


def test_counts_of_resnet_50(resnet_50):
    assert count(resnet_50) == 37_417_569
    assert count(resnet_50, trainable_only=True) == 37_195_169
    assert count(resnet_50.controller) == 389_545
    assert count(resnet_50) - count(resnet_50.proxies) == 36_447_651


def test_entries_of_resnet_50_are_those_of_the_release(resnet_50):
    """397 entries, 159 of them parameters, there; four scales more and two counters that nothing uses."""
    assert len(list(resnet_50.parameters())) == 159 - 4
    assert len(resnet_50.state_dict()) == 397 - 4 - 2


@pytest.mark.parametrize("config, identities, parameters", [
    pytest.param(CrossVISConfig(), None, 36_447_651, id="resnet-50 at inference"),
    pytest.param(RESNET_101, 3774, 56_357_473, id="resnet-101"),
])
def test_counts_of_the_others(config, identities, parameters):
    with torch.device("meta"):
        assert count(CrossVIS(config, identities)) == parameters


def test_standard_input_has_5115_locations(resnet_50):
    with torch.device("meta"):
        levels = resnet_50.features(torch.zeros(1, 3, 384, 640))
        dense = resnet_50.heads(levels)
    assert [tuple(x.shape) for x in levels] == [(1, 256, h, w) for h, w in oracles.level_sizes(384, 640)]
    said = {f.name: getattr(dense, f.name) for f in fields(dense) if f.name not in ("at", "identity_logits")}
    shapes = {name: tuple(value.shape) for name, value in said.items()}
    assert shapes == {
        "class_logits": (1, 5115, 40), "distances": (1, 5115, 4), "centerness": (1, 5115), "filters": (1, 5115, 169),
        "embeddings": (1, 5115, 256), "mask_features": (1, 8, 48, 80),
    }


def test_controller_starts_as_the_other_heads():
    controller = CrossVIS(SMALL).controller
    assert controller.weight.std().item() == pytest.approx(0.01, rel=0.05) and not controller.bias.any()
    assert controller.kernel_size == (3, 3)


def test_input_defaults_are_the_released_ones():
    expected = InputConfig(short_side=360, long_side=640, channel_order="bgr", mean=(103.530, 116.280, 123.675),
                           std=(1.0, 1.0, 1.0), divisor=32)
    assert CrossVISConfig().input == expected
    assert CrossVISConfig().gradient_gate == 0.1


def test_table_of_networks_names_this_one():
    assert NETWORKS["crossvis"] == (CrossVIS, CrossVISConfig)


def test_proxies_are_there_for_training_alone():
    assert small_network(num_identities=None).proxies is None
    kept = small_network().state_dict().keys() - small_network(num_identities=None).state_dict().keys()
    assert kept == {"proxies.proxies.weight", "proxies.proxies.bias"}


# ------------------------------------------------------------------------------------------ the heads


@torch.no_grad()
def dense_of(network: CrossVIS, pictures: torch.Tensor) -> DenseOutputs:
    return network.heads(network.features(pictures))


@torch.no_grad()
def test_rows_are_cells_level_first_row_by_row():
    network = small_network().eval()
    levels = network.features(images(2, 96))
    dense = network.heads(levels)
    per_level, embeddings = network.fcos(levels), network.embedding(levels)
    at = oracles.locations(96, 96)
    assert dense.at.points.tolist() == [[x, y] for _, _, x, y in at] and dense.class_logits.shape[:2] == (2, len(at))
    for p, (level, stride, x, y) in enumerate(at):
        i, j = int(y // stride), int(x // stride)
        classes, distances, centerness, box = per_level[level]
        for name, cells in (("class_logits", classes), ("distances", distances), ("centerness", centerness.squeeze(1)),
                            ("filters", network.controller(box)), ("embeddings", embeddings[level])):
            assert torch.equal(getattr(dense, name)[:, p], cells[..., i, j]), (name, p)


@pytest.mark.parametrize("part, moves", [
    pytest.param("fcos.class_tower.0", {"class_logits"}, id="class tower"),
    pytest.param("fcos.box_tower.0", {"distances", "centerness", "filters"}, id="box tower: the filters too"),
    pytest.param("embedding.tower.0", {"embeddings"}, id="identity tower"),
    pytest.param("mask_branch.refine.2.0", {"mask_features"}, id="mask branch, from P5"),
    pytest.param("fpn.p7", {*PER_LOCATION}, id="P7: no mask features"),
])
def test_what_hangs_on_what(part, moves):
    network = small_network().eval()
    before = dense_of(network, images(1))
    with torch.no_grad():
        network.get_submodule(part).weight.add_(torch.randn_like(network.get_submodule(part).weight))
    after = dense_of(network, images(1))
    names = (*PER_LOCATION, "mask_features")
    assert {name for name in names if not torch.equal(getattr(before, name), getattr(after, name))} == moves


# ------------------------------------------------------------------------------------------ masks of one image


def test_masks_are_painted_in_their_own_image_at_their_own_place():
    network = small_network().eval()
    dense = dense_of(network, images(2))
    bounds = network.config.fcos.size_bounds
    chosen = torch.tensor([9, 9, 64 + 3, 64 + 16 + 1, 84, 85])                 # twice P3, then P4, P5, P6, P7
    masks = network.mask_logits(dense, 1, chosen)
    assert masks.shape == (6, 16, 16)
    for mask, p in zip(masks, chosen.tolist(), strict=True):
        level, _, x, y = oracles.locations(64, 64)[p]
        divisor = (*bounds, 2 * bounds[-1])[level]
        arguments = dense.mask_features[1].double().numpy(), dense.filters[1, p].double().numpy(), (x, y), divisor
        assert np.allclose(mask.numpy(), oracles.mask_logits(*arguments), atol=1e-4)


def test_no_instance_gives_no_mask():
    network = small_network().eval()
    masks = network.mask_logits(dense_of(network, images(1)), 0, torch.zeros(0, dtype=torch.int64))
    assert masks.shape == (0, 16, 16)


# ------------------------------------------------------------------------------------------ batches


@pytest.mark.parametrize("norm", ["batch", "frozen"])
def test_batch_of_two_equals_two_of_one(norm):
    backbone = ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, norm=norm)
    network = small_network(backbone=backbone).eval()
    pictures = images(2)
    with torch.no_grad():
        together = network.features(pictures)
        alone = [network.features(picture[None]) for picture in pictures]
    for level, *single in zip(together, *alone, strict=True):
        assert torch.allclose(level, torch.cat(single), atol=1e-5)
    both, each = dense_of(network, pictures), [dense_of(network, picture[None]) for picture in pictures]
    for name in (*PER_LOCATION, "mask_features"):
        assert torch.allclose(getattr(both, name), torch.cat([getattr(d, name) for d in each]), atol=1e-4), name


def test_an_image_does_not_see_its_batch_mates():
    network = small_network().eval()
    pictures = images(3)
    other = torch.cat([pictures[:1], 100 * images(2, seed=9)])
    first, second = dense_of(network, pictures), dense_of(network, other)
    for name in (*PER_LOCATION, "mask_features"):
        assert torch.allclose(getattr(first, name)[0], getattr(second, name)[0], atol=1e-5), name
        assert not torch.allclose(getattr(first, name)[1], getattr(second, name)[1], atol=1e-2), name


def test_nothing_is_remembered_at_inference():
    network = small_network().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, _, again = (dense_of(network, images(1, seed=s)) for s in (0, 1, 0))
    assert torch.equal(first.filters, again.filters) and torch.equal(first.mask_features, again.mask_features)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
