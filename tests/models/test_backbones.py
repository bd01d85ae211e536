"""Backbones by their settings: the right one, the right maps, and how much each computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.backbones import make_backbone
from models.dla import DLA, DLAConfig
from models.resnet import ResNet, ResNetConfig

RESNET = ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, norm="batch", frozen_stages=0)
SMALL_DLA = DLAConfig(widths=(2, 4, 8, 16, 32, 64))


def giga_multiplications(network: nn.Module, height: int, width: int) -> float:
    """Of the convolutions: outputs x weights of one output channel. On the meta device: no memory, no time."""
    counts: list[int] = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, _, out: counts.append(out.numel() * m.weight[0].numel()))
    network(torch.zeros(1, 3, height, width, device="meta"))
    return sum(counts) / 1e9


@pytest.mark.parametrize("config, kind, channels", [
    pytest.param(RESNET, ResNet, (16, 32, 64, 128), id="resnet"),
    pytest.param(SMALL_DLA, DLA, (8, 16, 32, 64), id="dla34"),
])
@pytest.mark.parametrize("first_output", [2, 3])
def test_settings_make_their_backbone(config, kind, channels, first_output):
    network = make_backbone(config, first_output)
    maps = network(torch.zeros(1, 3, 32, 64))
    assert type(network) is kind
    assert network.strides == (4, 8, 16, 32)[first_output - 2 :]
    assert network.channels == channels[first_output - 2 :]
    assert [tuple(x.shape) for x in maps] == [
        (1, c, 32 // s, 64 // s) for c, s in zip(network.channels, network.strides, strict=True)
    ]


def test_the_first_output_is_stride_8_unless_asked():
    assert make_backbone(RESNET).strides == make_backbone(SMALL_DLA).strides == (8, 16, 32)


def test_names_tell_the_settings_apart():
    assert (RESNET.name, SMALL_DLA.name) == ("resnet", "dla34")


def test_settings_of_something_else_are_refused():
    with pytest.raises(TypeError, match="dict, expected ResNetConfig or DLAConfig"):
        make_backbone({"name": "resnet"})


@pytest.mark.parametrize("config, expected", [
    pytest.param(ResNetConfig(), 18.89, id="resnet-50"),
    pytest.param(ResNetConfig(blocks=(3, 4, 23, 3)), 37.07, id="resnet-101"),
    pytest.param(DLAConfig(), 15.0, id="dla-34"),
])
def test_multiplications_of_the_specification(config, expected):
    with torch.device("meta"):
        network = make_backbone(config).eval()
    assert giga_multiplications(network, 384, 640) == pytest.approx(expected, rel=0.003)
