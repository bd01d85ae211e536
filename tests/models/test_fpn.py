"""The pyramid: sizes and counts, hand-set weights that show each path, and a plain composition beside it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.fpn import FPN, STRIDES
from tests.models.oracles import conv, level_sizes
from tests.models.small import shake


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def test_counts():
    with torch.device("meta"):
        fpn = FPN((512, 1024, 2048), 256)
    assert (count(fpn.lateral), count(fpn.output), count(fpn.p6, fpn.p7)) == (918_272, 1_770_240, 1_180_160)
    assert count(fpn) == 918_272 + 1_770_240 + 1_180_160


@pytest.mark.parametrize("height, width, expected", [
    pytest.param(32, 32, [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)], id="the smallest input"),
    pytest.param(384, 640, [(48, 80), (24, 40), (12, 20), (6, 10), (3, 5)], id="360x640, padded"),
    pytest.param(160, 256, [(20, 32), (10, 16), (5, 8), (3, 4), (2, 2)], id="odd sizes round up"),
])
def test_sizes_of_the_levels(height, width, expected):
    maps = [torch.zeros(2, 4, height // s, width // s) for s in STRIDES[:3]]
    levels = FPN((4, 4, 4), 6)(*maps)
    assert [tuple(x.shape) for x in levels] == [(2, 6, h, w) for h, w in expected]
    assert level_sizes(height, width) == expected


def passing() -> FPN:
    """One channel; every convolution hands on the middle of its window."""
    fpn = FPN((1, 1, 1), 1)
    with torch.no_grad():
        for layer in (*fpn.lateral, *fpn.output, fpn.p6, fpn.p7):
            layer.weight.zero_()
            layer.weight[0, 0, layer.kernel_size[0] // 2, layer.kernel_size[1] // 2] = 1
    return fpn


def test_top_down_is_nearest_and_sum():
    c3 = torch.arange(64.0).reshape(1, 1, 8, 8)
    c4 = 100 * torch.arange(16.0).reshape(1, 1, 4, 4)
    c5 = 10_000 * torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]])
    p3, p4, p5, _, _ = passing()(c3, c4, c5)
    for i in range(4):
        for j in range(4):
            assert p4[0, 0, i, j] == c4[0, 0, i, j] + c5[0, 0, i // 2, j // 2]
    for i in range(8):
        for j in range(8):
            assert p3[0, 0, i, j] == c3[0, 0, i, j] + c4[0, 0, i // 2, j // 2] + c5[0, 0, i // 4, j // 4]
    assert torch.equal(p5, c5)


def test_p6_comes_from_p5_and_p7_from_its_positive_part():
    fpn = passing()
    with torch.no_grad():
        fpn.output[2].weight.mul_(-2)
        fpn.p7.bias.fill_(0.25)
    c5 = torch.tensor([[1.0, 0, -3, 0], [0, 0, 0, 0], [-5, 0, 7, 0], [0, 0, 0, 0]]).reshape(1, 1, 4, 4)
    _, _, p5, p6, p7 = fpn(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 8, 8), c5)
    assert torch.equal(p5, -2 * c5)
    assert p6.squeeze().tolist() == [[-2, 6], [10, -14]]       # every second cell of P5, signs kept
    assert p7.squeeze().tolist() == 0 + 0.25                   # P6's first cell is negative


def test_p7_is_not_rectified():
    fpn = passing()
    with torch.no_grad():
        fpn.p7.weight.mul_(-1)
    _, _, _, p6, p7 = fpn(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 2, 2), torch.full((1, 1, 1, 1), 3.0))
    assert (p6.item(), p7.item()) == (3.0, -3.0)


def test_whole_pyramid_is_its_plain_composition():
    fpn = FPN((3, 5, 7), 4)
    shake(fpn, seed=3)
    c3, c4, c5 = torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6), torch.randn(2, 7, 2, 3)

    def layer(part: nn.Conv2d, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return conv(x, part.weight, part.bias, stride)

    def double_size(x: torch.Tensor) -> torch.Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    x5 = layer(fpn.lateral[2], c5)
    x4 = layer(fpn.lateral[1], c4) + double_size(x5)
    x3 = layer(fpn.lateral[0], c3) + double_size(x4)
    p5 = layer(fpn.output[2], x5)
    p6 = layer(fpn.p6, p5, 2)
    expected = (layer(fpn.output[0], x3), layer(fpn.output[1], x4), p5, p6, layer(fpn.p7, p6.clamp(min=0), 2))
    for found, wanted in zip(fpn(c3, c4, c5), expected, strict=True):
        assert torch.allclose(found.double(), wanted, atol=1e-5)


def test_start_is_kaiming_uniform_by_fan_in():
    fpn = FPN((64, 64, 64), 64)
    for layer in (*fpn.lateral, *fpn.output, fpn.p6, fpn.p7):
        bound = math.sqrt(6 / ((1 + 1**2) * layer.weight[0].numel()))
        assert layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
        assert not layer.bias.any()
