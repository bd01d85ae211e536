"""Locations, and the FCOS head: what hangs on which tower, and the arithmetic of each output."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from models.fcos import FCOSConfig, FCOSHead, Locations
from tests.models import oracles
from tests.models.oracles import conv, group_norm
from tests.models.small import shake

CPU = torch.device("cpu")
SMALL = FCOSConfig(tower_convs=2, groups=2)


def count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def levels(channels: int, batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple(torch.randn(batch, channels, n, n + 1, generator=generator) for n in (6, 4, 3, 2, 1))


# ------------------------------------------------------------------------------------------ locations


def test_locations_of_the_standard_input():
    at = Locations.of(oracles.level_sizes(384, 640), CPU)
    assert len(at.points) == len(at.strides) == len(at.levels) == 5115
    assert torch.bincount(at.levels).tolist() == [3840, 960, 240, 60, 15]
    assert at.points[0].tolist() == [4, 4] and at.points[1].tolist() == [12, 4] and at.points[80].tolist() == [4, 12]
    assert at.points[5100].tolist() == [64, 64] and at.points[-1].tolist() == [64 + 4 * 128, 64 + 2 * 128]


@pytest.mark.parametrize("height, width", [(32, 32), (64, 96), (160, 256)])
def test_locations_are_the_loop(height, width):
    at = Locations.of(oracles.level_sizes(height, width), CPU)
    found = zip(at.levels.tolist(), at.strides.tolist(), *at.points.T.tolist(), strict=True)
    assert list(found) == oracles.locations(height, width)


def test_locations_of_three_levels_are_the_first_of_five():
    sizes = oracles.level_sizes(384, 640)
    three, five = Locations.of(sizes[:3], CPU), Locations.of(sizes, CPU)
    assert len(three.points) == len(three.strides) == len(three.levels) == 5040
    assert torch.equal(three.points, five.points[:5040]) and torch.equal(three.levels, five.levels[:5040])
    assert three.strides.unique().tolist() == [8, 16, 32]


@pytest.mark.parametrize("count", [0, 6])
def test_maps_of_no_known_stride_are_refused(count):
    with pytest.raises(ValueError, match=f"{count} feature maps came, expected 1 to 5"):
        Locations.of([(1, 1)] * count, CPU)


# ------------------------------------------------------------------------------------------ settings


@pytest.mark.parametrize("bounds, ranges, divisors", [
    pytest.param(
        (64, 128, 256, 512), [(-1, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)], [64, 128, 256, 512, 1024],
        id="as released",
    ),
    pytest.param(
        (32, 64, 128, 256), [(-1, 32), (32, 64), (64, 128), (128, 256), (256, math.inf)], [32, 64, 128, 256, 512],
        id="half the size",
    ),
    pytest.param((64, 128), [(-1, 64), (64, 128), (128, math.inf)], [64, 128, 256], id="three levels: CrossVIS-Lite"),
])
def test_ranges_and_divisors(bounds, ranges, divisors):
    config = FCOSConfig(size_bounds=bounds)
    assert config.num_levels == len(ranges)
    assert list(config.ranges) == ranges
    assert list(config.divisors) == divisors


def test_released_bounds_are_the_default():
    released = FCOSConfig(tower_convs=4, groups=32, size_bounds=(64, 128, 256, 512), center_sampling="mask")
    assert FCOSConfig() == released


@pytest.mark.parametrize("bounds", [(0, 64, 128, 256), (64, 64, 128, 256), (128, 64, 256, 512), (-64, 128), (64, 64)])
def test_bounds_that_do_not_rise_are_refused(bounds):
    with pytest.raises(ValueError, match="size_bounds.*expected positive, rising"):
        FCOSConfig(size_bounds=bounds)


@pytest.mark.parametrize("bounds", [(), (64,), (64, 128, 256), (64, 128, 256, 512, 1024)])
def test_pyramids_that_there_are_not_are_refused(bounds):
    with pytest.raises(ValueError, match=r"size_bounds.*expected four \(levels P3 to P7\) or two \(P3 to P5\)"):
        FCOSConfig(size_bounds=bounds)


def test_centers_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="center_sampling is 'centroid', expected 'mask', 'moments' or 'box'"):
        FCOSConfig(center_sampling="centroid")


# ------------------------------------------------------------------------------------------ the head


def test_counts():
    with torch.device("meta"):
        head = FCOSHead(256, 40, FCOSConfig())
    assert (count(head.class_tower), count(head.box_tower)) == (2_362_368, 2_362_368)
    assert (count(head.class_logits), count(head.distances), count(head.centerness)) == (92_200, 9_220, 2_305)
    assert head.scales.numel() == 5
    assert count(head) == 2 * 2_362_368 + 92_200 + 9_220 + 2_305 + 5


def test_three_levels_have_three_scales_and_the_same_answers():
    five = FCOSHead(4, 3, SMALL)
    shake(five, seed=8)
    three = FCOSHead(4, 3, FCOSConfig(tower_convs=2, groups=2, size_bounds=(64, 128)))
    three.load_state_dict({**five.state_dict(), "scales": five.scales[:3]})
    found, wanted = three(levels(4)[:3]), five(levels(4))[:3]
    assert len(found) == 3
    for a, b in zip(found, wanted, strict=True):
        assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_another_number_of_levels_is_refused():
    with pytest.raises(ValueError, match="3 levels came, built for 5"):
        FCOSHead(4, 3, SMALL)(levels(4)[:3])


def test_start():
    head = FCOSHead(64, 40, FCOSConfig())
    convs = [m for m in head.modules() if isinstance(m, nn.Conv2d)]
    norms = [m for m in head.modules() if isinstance(m, nn.GroupNorm)]
    assert len(convs) == 11 and len(norms) == 8
    for layer in convs:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.1) and abs(layer.weight.mean()) < 1e-3
        bias = -4.59512 if layer is head.class_logits else 0
        assert layer.bias.tolist() == pytest.approx([bias] * layer.out_channels, abs=1e-5)
    for norm in norms:
        assert (norm.num_groups, norm.eps) == (32, 1e-5)
        assert bool((norm.weight == 1).all() and (norm.bias == 0).all())
    assert head.scales.tolist() == [1] * 5


def test_head_is_its_plain_composition():
    head = FCOSHead(4, 3, SMALL)
    shake(head, seed=4)

    def tower(layers: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
        for i in range(0, len(layers), 3):
            x = conv(x, layers[i].weight, layers[i].bias)
            x = group_norm(x, 2, layers[i + 1].weight, layers[i + 1].bias).clamp(min=0)
        return x

    maps = levels(4)
    for level, (found, x) in enumerate(zip(head(maps), maps, strict=True)):
        box = tower(head.box_tower, x)
        raw = conv(box, head.distances.weight, head.distances.bias)
        expected = (
            conv(tower(head.class_tower, x), head.class_logits.weight, head.class_logits.bias),
            (raw * head.scales[level].item()).clamp(min=0),
            conv(box, head.centerness.weight, head.centerness.bias),
            box,
        )
        assert expected[1].any() and (expected[1] == 0).any()
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape and torch.allclose(a.double(), b, atol=1e-5)


@pytest.mark.parametrize("bias, expected", [
    pytest.param(-1.0, [0, 0, 0, 0, 0], id="negative: zero, not an exponential"),
    pytest.param(0.0, [0, 0, 0, 0, 0], id="zero stays zero"),
    pytest.param(3.0, [3, 6, 9, 12, 15], id="each level by its own scale"),
])
def test_distances_are_scaled_then_rectified(bias, expected):
    head = FCOSHead(4, 3, SMALL)
    with torch.no_grad():
        head.distances.weight.zero_()
        head.distances.bias.fill_(bias)
        head.scales.copy_(torch.arange(1.0, 6.0))
    for (_, distances, _, _), value in zip(head(levels(4)), expected, strict=True):
        assert distances.shape[1] == 4 and bool((distances == value).all())


@pytest.mark.parametrize("tower, moves", [
    pytest.param("class_tower", [True, False, False, False], id="class tower: classes alone"),
    pytest.param("box_tower", [False, True, True, True], id="box tower: boxes, centre-ness and the controller's input"),
])
def test_what_hangs_on_which_tower(tower, moves):
    head = FCOSHead(4, 3, SMALL)
    shake(head, seed=6)
    before = head(levels(4))
    with torch.no_grad():
        getattr(head, tower)[0].weight.add_(0.5 * torch.randn_like(getattr(head, tower)[0].weight))
    for old, new in zip(before[:2], head(levels(4))[:2], strict=True):      # the two largest maps surely show it
        assert [not torch.equal(a, b) for a, b in zip(old, new, strict=True)] == moves


def test_levels_share_the_weights():
    head = FCOSHead(4, 3, SMALL)
    shake(head, seed=7)
    with torch.no_grad():
        head.scales.fill_(1)
    outputs = head((levels(4)[0],) * 5)
    for name in range(4):
        assert all(torch.equal(outputs[0][name], other[name]) for other in outputs[1:])
