"""ResNet: counts and sizes of the specification, both stride styles, what is frozen, a plain composition beside it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from models.resnet import Bottleneck, ConvNorm, ResNet, ResNetConfig
from tests.models.oracles import batch_norm, conv
from tests.models.small import shake

SMALL = ResNetConfig(blocks=(1, 2, 1, 1), stem_channels=6, mid_channels=4, norm="frozen", frozen_stages=0)


def count(module: nn.Module, trainable_only: bool = False) -> int:
    return sum(p.numel() for p in module.parameters() if p.requires_grad or not trainable_only)


@pytest.mark.parametrize("blocks, parameters", [
    pytest.param((3, 4, 6, 3), 23_454_912, id="resnet-50"),
    pytest.param((3, 4, 23, 3), 42_394_816, id="resnet-101"),
])
def test_counts_and_sizes(blocks, parameters):
    with torch.device("meta"):
        network = ResNet(ResNetConfig(blocks=blocks))
        outputs = network(torch.zeros(1, 3, 384, 640))
    assert count(network) == parameters
    assert count(network) - count(network, trainable_only=True) == 222_400
    assert [tuple(x.shape) for x in outputs] == [(1, 512, 48, 80), (1, 1024, 24, 40), (1, 2048, 12, 20)]
    assert network.channels == (512, 1024, 2048) and network.strides == (8, 16, 32)


@pytest.mark.parametrize("first_output, channels, strides", [
    pytest.param(2, (16, 32, 64, 128), (4, 8, 16, 32), id="C2 to C5: two-stage networks"),
    pytest.param(3, (32, 64, 128), (8, 16, 32), id="C3 to C5"),
    pytest.param(5, (128,), (32,), id="C5 alone"),
])
def test_channels_and_strides_tell_what_comes_out(first_output, channels, strides):
    network = ResNet(SMALL, first_output)
    outputs = network(torch.zeros(2, 3, 64, 96))
    assert network.channels == channels and network.strides == strides
    expected = [(2, c, 64 // s, 96 // s) for c, s in zip(channels, strides, strict=True)]
    assert [tuple(x.shape) for x in outputs] == expected


def test_an_earlier_first_output_changes_nothing_else():
    network, longer = ResNet(SMALL), ResNet(SMALL, first_output=2)
    longer.load_state_dict(network.state_dict())
    images = torch.randn(1, 3, 32, 64)
    assert all(torch.equal(a, b) for a, b in zip(network(images), longer(images)[1:], strict=True))


@pytest.mark.parametrize("first_output", [1, 6])
def test_maps_that_there_are_not(first_output):
    with pytest.raises(ValueError, match=f"first_output is {first_output}, expected 2..5"):
        ResNet(SMALL, first_output)


def test_names_of_the_state():
    """Shipped and converted weights are written under these."""
    names = ResNet(SMALL).state_dict().keys()
    norm, block = ("weight", "bias", "running_mean", "running_var"), ("conv1", "conv2", "conv3")
    parts = ["stem", *(f"res3.1.{part}" for part in block)]
    parts += [f"{stage}.0.{part}" for stage in ("res2", "res3", "res4", "res5") for part in (*block, "shortcut")]
    assert names == {f"{at}.conv.weight" for at in parts} | {f"{at}.norm.{part}" for at in parts for part in norm}


# ------------------------------------------------------------------------------------------ the arithmetic


def plain_conv_norm(x: torch.Tensor, part: ConvNorm, stride: int) -> torch.Tensor:
    y = conv(x, part.conv.weight, stride=stride)
    norm = part.norm
    return batch_norm(y, norm.weight, norm.bias, norm.running_mean, norm.running_var)


def plain_block(
    x: torch.Tensor, block: Bottleneck, stride: int, projected: bool, stride_in: str = "1x1"
) -> torch.Tensor:
    y = plain_conv_norm(x, block.conv1, stride if stride_in == "1x1" else 1).clamp(min=0)
    y = plain_conv_norm(y, block.conv2, stride if stride_in == "3x3" else 1).clamp(min=0)
    y = plain_conv_norm(y, block.conv3, 1)
    return (y + (plain_conv_norm(x, block.shortcut, stride) if projected else x)).clamp(min=0)


@pytest.mark.parametrize("inputs, stride, projected", [
    pytest.param(16, 1, False, id="later block: the input itself is added"),
    pytest.param(6, 1, True, id="first block of res2: projection, no stride"),
    pytest.param(16, 2, True, id="first block of res3: projection and stride"),
])
@pytest.mark.parametrize("norm", ["frozen", "frozen_statistics", "batch", "sync"])
@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_block_is_its_plain_composition(stride_in, norm, inputs, stride, projected):
    block = Bottleneck(inputs, 4, stride, norm, stride_in).eval()
    shake(block, seed=1)
    x = torch.randn(2, inputs, 6, 8)
    assert torch.allclose(block(x).double(), plain_block(x, block, stride, projected, stride_in), atol=1e-5)


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_whole_network_is_its_plain_composition(stride_in):
    network = ResNet(replace(SMALL, stride_in=stride_in)).eval()
    shake(network, seed=2)
    image = torch.randn(1, 3, 64, 64)
    x = plain_conv_norm(image, network.stem, 2).clamp(min=0)
    x = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    expected = []
    for stage, stride in ((network.res2, 1), (network.res3, 2), (network.res4, 2), (network.res5, 2)):
        for j, block in enumerate(stage):
            x = plain_block(x, block, stride if j == 0 else 1, projected=j == 0, stride_in=stride_in)
        expected.append(x)
    for found, wanted in zip(network(image), expected[1:], strict=True):
        assert torch.allclose(found.double(), wanted, atol=1e-4)


def test_no_convolution_has_a_bias():
    assert all(m.bias is None for m in ResNet(SMALL).modules() if isinstance(m, nn.Conv2d))


# ------------------------------------------------------------------------------------------ where the stride sits


def test_the_1x1_with_the_stride_looks_at_even_pixels_alone():
    block = Bottleneck(8, 4, 2, "frozen")
    x = torch.randn(1, 8, 8, 8)
    odd = x.clone()
    odd[..., 1::2, :] += 1
    odd[..., :, 1::2] += 1
    even = x.clone()
    even[..., 2, 4] += 1
    assert block(x).shape == (1, 16, 4, 4)
    assert torch.equal(block(x), block(odd))
    assert not torch.equal(block(x), block(even))


def test_the_3x3_with_the_stride_looks_at_every_pixel():
    block = Bottleneck(8, 4, 2, "frozen", stride_in="3x3")
    shake(block, seed=3)
    x = torch.randn(1, 8, 8, 8, requires_grad=True)
    out = block(x)
    out.sum().backward()
    assert out.shape == (1, 16, 4, 4)
    assert bool(x.grad[..., 1::2, :].any()) and bool(x.grad[..., :, 1::2].any())


@pytest.mark.parametrize("stride_in", ["1x1", "3x3"])
def test_strides_and_projections_stand_in_the_first_block_of_each_stage(stride_in):
    small = ResNetConfig(blocks=(2, 2, 2, 2), stem_channels=8, mid_channels=4, stride_in=stride_in)
    network = ResNet(small)
    for stage, stride in ((network.res2, 1), (network.res3, 2), (network.res4, 2), (network.res5, 2)):
        first, second = stage
        strides = {"1x1": (stride, 1), "3x3": (1, stride)}[stride_in]
        assert [conv.conv.stride for conv in (first.conv1, first.conv2)] == [(strides[0],) * 2, (strides[1],) * 2]
        assert (first.conv3.conv.stride, first.shortcut.conv.stride) == ((1, 1), (stride, stride))
        assert first.conv1.conv.kernel_size == first.conv3.conv.kernel_size == (1, 1)
        assert second.conv1.conv.stride == (1, 1) and not list(second.shortcut.parameters())


# ------------------------------------------------------------------------------------------ what is frozen


@pytest.mark.parametrize("frozen_stages, frozen", [
    pytest.param(0, set(), id="all train"),
    pytest.param(1, {"stem"}, id="the stem"),
    pytest.param(2, {"stem", "res2"}, id="stem and res2, as released"),
    pytest.param(5, {"stem", "res2", "res3", "res4", "res5"}, id="everything"),
])
def test_frozen_stages_get_no_gradients(frozen_stages, frozen):
    network = ResNet(ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, frozen_stages=frozen_stages))
    image = torch.randn(2, 3, 32, 32, requires_grad=True)
    sum(x.sum() for x in network(image)).backward()
    still = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is None}
    moving = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert still == frozen
    assert moving == {"stem", "res2", "res3", "res4", "res5"} - frozen


def test_frozen_statistics_train_the_affine_of_what_is_not_frozen():
    """The two-stage baseline: statistics never move, weight and bias of the norms do, but in stem and res2."""
    network = ResNet(replace(SMALL, norm="frozen_statistics", frozen_stages=2)).train()
    shake(network, seed=4)
    before = {name: value.clone() for name, value in network.named_buffers()}
    sum(x.sum() for x in network(torch.randn(2, 3, 32, 32))).backward()
    assert all(torch.equal(before[name], value) for name, value in network.named_buffers())
    norms = {name: p for name, p in network.named_parameters() if ".norm." in name}
    moving = {name for name, p in norms.items() if p.grad is not None and p.grad.any()}
    assert len(norms) == 2 * 20
    assert moving == {name for name in norms if name.split(".")[0] in ("res3", "res4", "res5")}


@pytest.mark.parametrize("wrong", [
    pytest.param({"stride_in": "5x5"}, id="a stride in no convolution"),
    pytest.param({"blocks": (1, 0, 1, 1)}, id="a stage without blocks"),
    pytest.param({"stem_channels": 0}, id="no channels"),
    pytest.param({"frozen_stages": 6}, id="more stages than there are"),
    pytest.param({"frozen_stages": -1}, id="less than none"),
])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="ResNet"):
        ResNetConfig(**wrong)
