"""Layers of the fused form against loops and against the layers they stand for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from models.dla import DLA, DLAConfig
from models.fpn import FPN
from models.fused_layers import MAX_PACKED, Conv, Form, GroupNormReLU, can_prepack, fold, lower
from models.norms import NORMS
from models.resnet import ResNet, ResNetConfig
from tests.models.oracles import batch_norm, conv, group_norm
from tests.models.small import shake

PLAIN = Form(torch.float32, prepacked=False)
PACKED = Form(torch.float32, prepacked=True)
FORMS = [
    pytest.param(PLAIN, id="public convolution"),
    pytest.param(PACKED, id="weights laid out", marks=pytest.mark.skipif(
        not can_prepack(torch.float32), reason="this PyTorch has no oneDNN convolution to lay weights out for")),
]  # fmt: skip


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    shake(module, seed)
    return module.eval().requires_grad_(False)


def close(a: Tensor, b: Tensor, rtol: float = 1e-5) -> bool:
    """Within `rtol` of the largest value."""
    return a.shape == b.shape and (a.double() - b.double()).abs().max() <= rtol * b.abs().max()


# ------------------------------------------------------------------------------------------ convolutions


@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("bias", [False, True])
def test_folded_weights_do_what_convolution_and_norm_do(norm, bias):
    layer = lively(nn.Conv2d(3, 4, 3, padding=1, bias=bias))
    behind = lively(NORMS[norm](4), seed=1) if norm else None
    x = torch.randn(2, 3, 5, 6)
    expected = conv(x, layer.weight, layer.bias)
    if behind:
        expected = batch_norm(expected, behind.weight, behind.bias, behind.running_mean, behind.running_var)
    assert torch.allclose(conv(x, *fold(layer, behind)), expected, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kernel, stride, relu, added", [
    pytest.param(1, 1, False, False, id="1x1"), pytest.param(3, 1, True, False, id="3x3, ReLU"),
    pytest.param(3, 2, False, False, id="3x3, stride 2"), pytest.param(1, 1, True, True, id="1x1, sum, ReLU"),
    pytest.param(3, 1, False, True, id="3x3, sum"), pytest.param(7, 2, True, False, id="7x7, stride 2, ReLU"),
])
def test_convolution_sum_and_relu(form, kernel, stride, relu, added):
    layer = lively(nn.Conv2d(4, 6, kernel, stride, padding=kernel // 2))
    fused = Conv(layer, form, relu=relu)
    for size in ((6, 5), (9, 4), (6, 5)):                        # laid out anew for a new size, and found again
        x = torch.randn(2, 4, *size).contiguous(memory_format=torch.channels_last)
        expected = conv(x, layer.weight, layer.bias, stride)
        other = torch.randn(expected.shape).contiguous(memory_format=torch.channels_last)
        expected = expected + other.double() if added else expected
        assert close(fused(x, other if added else None), expected.clamp(min=0) if relu else expected)
        assert not relu or (expected < 0).any()


@pytest.mark.parametrize("form", FORMS[1:])
def test_layouts_of_few_sizes_are_kept(form):
    fused = Conv(lively(nn.Conv2d(2, 3, 3, padding=1)), form)
    for width in range(3, 3 + 2 * MAX_PACKED):
        x = torch.randn(1, 2, 3, width)
        assert close(fused(x), conv(x, fused.weight, fused.bias))
    assert len(fused.packed) == MAX_PACKED


def test_a_convolution_takes_any_dtype_and_gives_its_own():
    fused = Conv(lively(nn.Conv2d(2, 3, 1)), PLAIN)
    x = torch.randn(1, 2, 4, 4).bfloat16()
    assert fused(x).dtype == torch.float32 and torch.equal(fused(x), fused(x.float()))


# ------------------------------------------------------------------------------------------ GroupNorm


@pytest.mark.parametrize("dtype, rtol", [
    pytest.param(torch.float32, 1e-5, id="float32"), pytest.param(torch.bfloat16, 2**-8, id="bfloat16: one rounding"),
])
@pytest.mark.parametrize("shape", [
    pytest.param((1, 8, 1, 1), id="one cell"), pytest.param((3, 8, 3, 5), id="three small maps"),
    pytest.param((2, 8, 32, 33), id="two large ones"),
])
def test_group_norm_and_relu_are_the_loop(shape, dtype, rtol):
    norm = lively(nn.GroupNorm(2, 8))
    x = (3 * torch.randn(shape) + torch.randn(shape[0], 8, 1, 1)).to(dtype)
    out = GroupNormReLU(norm)(x.contiguous(memory_format=torch.channels_last))
    expected = group_norm(x, 2, norm.weight, norm.bias).clamp(min=0)
    assert out.dtype == dtype and close(out, expected, rtol)


# ------------------------------------------------------------------------------------------ whole parts


def small_resnet(**changes) -> ResNet:
    return ResNet(ResNetConfig(blocks=(1, 2, 1, 1), stem_channels=6, mid_channels=4, frozen_stages=0, **changes))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("make", [
    *(pytest.param(lambda norm=norm: small_resnet(norm=norm), id=f"ResNet, {norm}") for norm in NORMS),
    pytest.param(lambda: small_resnet(stride_in="3x3"), id="ResNet, stride in the 3x3"),
    *(pytest.param(lambda norm=norm: DLA(DLAConfig(widths=(4, 4, 6, 8, 8, 10), norm=norm)), id=f"DLA, {norm}")
      for norm in NORMS),
])
def test_a_fused_backbone_is_the_backbone(make, form):
    backbone = lively(make())
    x = torch.randn(2, 3, 64, 96)
    expected = backbone(x)
    fused = lower(backbone, form)
    assert not any(isinstance(m, (nn.Conv2d, *NORMS.values())) for m in fused.modules())
    for a, b in zip(fused(x.contiguous(memory_format=torch.channels_last)), expected, strict=True):
        assert close(a, b) and b.std() > 0.01


@pytest.mark.parametrize("extra", ["p6p7", "none", "subsample"])
def test_a_fused_pyramid_is_the_pyramid(extra):
    fpn = lively(FPN((4, 6, 8), 8, extra))
    maps = torch.randn(2, 4, 8, 12), torch.randn(2, 6, 4, 6), torch.randn(2, 8, 2, 3)
    expected = fpn(*maps)
    for a, b in zip(lower(fpn, PLAIN)(*maps), expected, strict=True):
        assert close(a, b)


@pytest.mark.parametrize("loose", [
    pytest.param(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), id="no convolution before it"),
    pytest.param(nn.Sequential(nn.Conv2d(3, 4, 1), nn.GroupNorm(2, 4)), id="GroupNorm without a ReLU"),
])
def test_a_norm_that_cannot_be_folded(loose):
    with pytest.raises(ValueError, match="fuse: a (Batch|Group)Norm.* with no convolution before it, or no ReLU"):
        lower(loose, PLAIN)
