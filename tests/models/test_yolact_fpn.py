"""Yolact's pyramid: sizes, counts, and its arithmetic written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from models.yolact_fpn import YolactFPN
from tests.models.oracles import conv
from tests.models.small import shake


def plain_resize(x: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Half-pixel bilinear, number by number."""
    def weights(cells: int, wanted: int) -> torch.Tensor:
        rows = torch.zeros(wanted, cells, dtype=torch.float64)
        for i in range(wanted):
            at = max((i + 0.5) * cells / wanted - 0.5, 0)
            low = min(int(at), cells - 1)
            rows[i, low] += 1 - (at - low)
            rows[i, min(low + 1, cells - 1)] += at - low
        return rows

    return weights(x.shape[-2], height) @ x.double() @ weights(x.shape[-1], width).T


@pytest.mark.parametrize("sizes", [((8, 12), (4, 6), (2, 3)), ((7, 11), (4, 6), (2, 3))], ids=["even", "odd"])
@torch.no_grad()
def test_arithmetic(sizes):
    fpn = YolactFPN((4, 5, 6), 3)
    shake(fpn, 0)
    maps = [torch.randn(2, c, *size) for c, size in zip((4, 5, 6), sizes, strict=True)]
    levels = fpn(*maps)
    sums = [conv(x, lateral.weight, lateral.bias) for lateral, x in zip(fpn.lateral, maps, strict=True)]
    for i in (1, 0):
        sums[i] = sums[i] + plain_resize(sums[i + 1], *sizes[i])
    expected = [conv(x, out.weight, out.bias).clamp(min=0) for out, x in zip(fpn.output, sums, strict=True)]
    for extra in (fpn.p6, fpn.p7):
        expected.append(conv(expected[-1], extra.weight, extra.bias, stride=2))
    assert (levels[3] < 0).any() and (levels[4] < 0).any(), "no ReLU on P6 and P7"
    for found, wanted in zip(levels, expected, strict=True):
        assert torch.allclose(found.double(), wanted, atol=1e-5)


@pytest.mark.parametrize("inputs, channels, parameters", [
    pytest.param((512, 1024, 2048), 256, 3_868_672, id="resnet"),
    pytest.param((192, 384, 768), 192, 1_918_464, id="swin-tiny, narrow"),
])
def test_counts(inputs, channels, parameters):
    with torch.device("meta"):
        assert sum(p.numel() for p in YolactFPN(inputs, channels).parameters()) == parameters


def test_how_it_begins():
    fpn = YolactFPN((4, 5, 6), 8)
    limit = (6 / (8 * 9 + 8 * 9)) ** 0.5
    assert all(not m.bias.any() for m in (*fpn.lateral, *fpn.output, fpn.p6, fpn.p7))
    assert 0.8 * limit < fpn.p6.weight.abs().max() <= limit
    assert F.relu(fpn.p7.weight).any()


def test_another_number_of_maps():
    with pytest.raises(ValueError, match="2 maps came, built for 3"):
        YolactFPN((4, 5, 6), 3)(torch.zeros(1, 4, 4, 4), torch.zeros(1, 5, 2, 2))
