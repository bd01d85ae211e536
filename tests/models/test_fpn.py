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


@pytest.mark.parametrize("extra, coarser", [
    pytest.param("none", [], id="nothing more"),
    pytest.param("subsample", [(2, 3)], id="P6 by subsampling, rounded up"),
    pytest.param("p6p7", [(2, 3), (1, 2)], id="P6 and P7 by convolution, rounded up"),
])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_levels_by_number_of_maps_and_extra(count, extra, coarser):
    sizes = [(24, 40), (12, 20), (6, 10), (3, 5)][-count:]
    in_channels = (2, 3, 4, 5)[-count:]
    maps = [torch.zeros(2, c, *size) for c, size in zip(in_channels, sizes, strict=True)]
    levels = FPN(in_channels, 6, extra)(*maps)
    assert [tuple(x.shape) for x in levels] == [(2, 6, *size) for size in (*sizes, *coarser)]


def test_counts_of_the_other_pyramids():
    with torch.device("meta"):
        lite, two_stage = FPN((128, 256, 512), 256, "none"), FPN((256, 512, 1024, 2048), 256, "subsample")
    assert count(lite) == 256 * (128 + 256 + 512) + 3 * 256 + 1_770_240
    assert count(two_stage) == 256 * (256 + 512 + 1024 + 2048) + 4 * 256 + 4 * (256 * 256 * 9 + 256)


def test_names_of_the_state():
    """Shipped and converted weights are written under these."""
    layers = [f"{part}.{i}" for part in ("lateral", "output") for i in range(3)]
    for extra, more in (("none", []), ("subsample", []), ("p6p7", ["p6", "p7"])):
        expected = {f"{layer}.{value}" for layer in (*layers, *more) for value in ("weight", "bias")}
        assert FPN((1, 1, 1), 1, extra).state_dict().keys() == expected


def passing(maps: int = 3, extra: str = "p6p7") -> FPN:
    """One channel; every convolution hands on the middle of its window."""
    fpn = FPN((1,) * maps, 1, extra)
    with torch.no_grad():
        for layer in (module for module in fpn.modules() if isinstance(module, nn.Conv2d)):
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


def test_subsampled_p6_is_every_second_cell_of_p5():
    fpn = passing(4, "subsample")
    c5 = torch.tensor([[1.0, 9, -2, 9, 3], [9, 9, 9, 9, 9], [4, 9, -5, 9, 6]]).reshape(1, 1, 3, 5)
    maps = [torch.zeros(1, 1, 3 * 2**i, 5 * 2**i) for i in (3, 2, 1)]
    *_, p5, p6 = fpn(*maps, c5)
    assert torch.equal(p5, c5)
    assert p6.squeeze().tolist() == [[1, -2, 3], [4, -5, 6]]       # not the largest of a window


def test_four_maps_are_summed_down_to_the_finest():
    c5, c4, c3, c2 = (10.0**i * torch.arange(1.0, 4**i + 1).reshape(1, 1, 2**i, 2**i) for i in range(4))
    p2, p3, p4, p5 = passing(4, "none")(c2, c3, c4, c5)
    assert torch.equal(p5, c5) and torch.equal(p4, c4 + c5)
    for i in range(8):
        for j in range(8):
            coarser = (c3[0, 0, i // 2, j // 2], c4[0, 0, i // 4, j // 4], c5[0, 0, 0, 0])
            assert p2[0, 0, i, j] == c2[0, 0, i, j] + sum(coarser)
    assert p3.shape == (1, 1, 4, 4)


def layer(part: nn.Conv2d, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
    return conv(x, part.weight, part.bias, stride)


def double_size(x: torch.Tensor) -> torch.Tensor:
    return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_three_levels_are_those_of_five():
    three, five = FPN((3, 5, 7), 4, "none"), FPN((3, 5, 7), 4)
    shake(five, seed=4)
    three.load_state_dict({k: v for k, v in five.state_dict().items() if k.split(".")[0] not in ("p6", "p7")})
    maps = torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6), torch.randn(2, 7, 2, 3)
    found = three(*maps)
    assert len(found) == 3 and all(torch.equal(a, b) for a, b in zip(found, five(*maps)[:3], strict=True))
    x4 = layer(three.lateral[1], maps[1]) + double_size(layer(three.lateral[2], maps[2]))
    assert torch.allclose(found[1].double(), layer(three.output[1], x4), atol=1e-5)


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="in_channels is empty"):
        FPN((), 4)
    with pytest.raises(ValueError, match="extra is 'p6', expected one of p6p7, none, subsample"):
        FPN((3, 5, 7), 4, "p6")


def test_another_number_of_maps_is_refused():
    with pytest.raises(ValueError, match="2 maps came, built for 3"):
        FPN((3, 5, 7), 4)(torch.zeros(1, 5, 4, 4), torch.zeros(1, 7, 2, 2))


def test_whole_pyramid_is_its_plain_composition():
    fpn = FPN((3, 5, 7), 4)
    shake(fpn, seed=3)
    c3, c4, c5 = torch.randn(2, 3, 8, 12), torch.randn(2, 5, 4, 6), torch.randn(2, 7, 2, 3)

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
