"""ResNet: counts and sizes of the specification, the Caffe stride, what is frozen, a plain composition beside it."""

from __future__ import annotations

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


def test_channels_tell_what_comes_out():
    network = ResNet(SMALL)
    outputs = network(torch.zeros(2, 3, 64, 96))
    assert tuple(x.shape[1] for x in outputs) == network.channels
    assert [tuple(x.shape[-2:]) for x in outputs] == [(8, 12), (4, 6), (2, 3)]


# ------------------------------------------------------------------------------------------ the arithmetic


def plain_conv_norm(x: torch.Tensor, part: ConvNorm, stride: int) -> torch.Tensor:
    y = conv(x, part.conv.weight, stride=stride)
    norm = part.norm
    return batch_norm(y, norm.weight, norm.bias, norm.running_mean, norm.running_var)


def plain_block(x: torch.Tensor, block: Bottleneck, stride: int, projected: bool) -> torch.Tensor:
    y = plain_conv_norm(x, block.conv1, stride).clamp(min=0)
    y = plain_conv_norm(y, block.conv2, 1).clamp(min=0)
    y = plain_conv_norm(y, block.conv3, 1)
    return (y + (plain_conv_norm(x, block.shortcut, stride) if projected else x)).clamp(min=0)


@pytest.mark.parametrize("inputs, stride, projected", [
    pytest.param(16, 1, False, id="later block: the input itself is added"),
    pytest.param(6, 1, True, id="first block of res2: projection, no stride"),
    pytest.param(16, 2, True, id="first block of res3: projection and stride"),
])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_block_is_its_plain_composition(norm, inputs, stride, projected):
    block = Bottleneck(inputs, 4, stride, norm).eval()
    shake(block, seed=1)
    x = torch.randn(2, inputs, 6, 8)
    assert torch.allclose(block(x).double(), plain_block(x, block, stride, projected), atol=1e-5)


def test_whole_network_is_its_plain_composition():
    network = ResNet(SMALL).eval()
    shake(network, seed=2)
    image = torch.randn(1, 3, 64, 64)
    x = plain_conv_norm(image, network.stem, 2).clamp(min=0)
    x = F.pad(x, (1, 1, 1, 1), value=-torch.inf).unfold(2, 3, 2).unfold(3, 3, 2).amax((4, 5))
    expected = []
    for stage, stride in ((network.res2, 1), (network.res3, 2), (network.res4, 2), (network.res5, 2)):
        for j, block in enumerate(stage):
            x = plain_block(x, block, stride if j == 0 else 1, projected=j == 0)
        expected.append(x)
    for found, wanted in zip(network(image), expected[1:], strict=True):
        assert torch.allclose(found.double(), wanted, atol=1e-4)


def test_no_convolution_has_a_bias():
    assert all(m.bias is None for m in ResNet(SMALL).modules() if isinstance(m, nn.Conv2d))


# ------------------------------------------------------------------------------------------ the Caffe style


def test_stride_sits_in_the_first_1x1():
    """A 1x1 of stride 2 looks at even pixels alone; a 3x3 of stride 2 would see the odd ones too."""
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


def test_strides_and_projections_stand_in_the_first_block_of_each_stage():
    network = ResNet(ResNetConfig(blocks=(2, 2, 2, 2), stem_channels=8, mid_channels=4))
    for stage, stride in ((network.res2, 1), (network.res3, 2), (network.res4, 2), (network.res5, 2)):
        first, second = stage
        assert (first.conv1.conv.stride, first.shortcut.conv.stride) == ((stride, stride), (stride, stride))
        assert first.conv2.conv.stride == first.conv3.conv.stride == (1, 1)
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


@pytest.mark.parametrize("wrong", [
    pytest.param({"blocks": (1, 0, 1, 1)}, id="a stage without blocks"),
    pytest.param({"stem_channels": 0}, id="no channels"),
    pytest.param({"frozen_stages": 6}, id="more stages than there are"),
    pytest.param({"frozen_stages": -1}, id="less than none"),
])
def test_settings_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="ResNet"):
        ResNetConfig(**wrong)
