"""The fuser of pyramids: layer by layer, which of its inputs is which, and that every level has weights of its own."""

from __future__ import annotations

import pytest
import torch

from models.fuser import PyramidFuser, ResFuser
from tests.models.oracles import conv
from tests.models.small import shake


def pyramid(seed: int, channels: int = 4) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, channels, *size, generator=generator) for size in ((8, 12), (4, 6), (2, 3)))


def lively(levels: int = 3) -> PyramidFuser:
    fuser = PyramidFuser(4, levels)
    shake(fuser, 0)
    return fuser


def test_counts():
    with torch.device("meta"):
        fuser = PyramidFuser(256)
    assert [sum(p.numel() for p in level.parameters()) for level in fuser.levels] == 5 * [1_769_984]


@torch.no_grad()
def test_each_level_by_its_convolutions_the_reference_first():
    fuser, before, now = lively(), pyramid(1), pyramid(2)
    for level, reference, current, out in zip(fuser.levels, before, now, fuser(before, now), strict=True):
        x = conv(torch.cat([reference, current], dim=1), level.conv1.weight, level.conv1.bias).clamp(min=0)
        x = current.double() + conv(x, level.conv2.weight, level.conv2.bias)
        assert torch.allclose(out.double(), x, atol=1e-5)
        assert (out < 0).any(), "no ReLU behind the sum"


@torch.no_grad()
def test_a_silent_second_convolution_leaves_the_frame_as_it_is():
    fuser = lively()
    for level in fuser.levels:
        level.conv2.weight.zero_()
        level.conv2.bias.zero_()
    before, now = pyramid(1), pyramid(2)
    assert all(torch.equal(out, current) for out, current in zip(fuser(before, now), now, strict=True))


def test_the_two_inputs_are_not_alike():
    fuser, before, now = lively(), pyramid(1), pyramid(2)
    for a, b, p, q in zip(fuser(before, now), fuser(now, before), before, now, strict=True):
        assert not torch.allclose(a - q, b - p, atol=1e-2)


def test_levels_share_nothing():
    fuser = lively()
    map_of_one_size = torch.randn(1, 4, 6, 6)
    out = [level(map_of_one_size, map_of_one_size) for level in fuser.levels]
    assert not torch.allclose(out[0], out[1]) and not torch.allclose(out[1], out[2])


@pytest.mark.parametrize("before, now, message", [
    pytest.param((), (), "0 levels of the reference and 0 of the frame came, built for 3", id="none"),
    pytest.param(pyramid(1)[:2], pyramid(2), "2 levels of the reference and 3", id="a level is missing"),
    pytest.param(tuple(x[..., :-1] for x in pyramid(1)), pyramid(2), r"\(2, 4, 8, 11\), of the frame \(2, 4, 8, 12\)",
                 id="another size"),
])
def test_pyramids_that_do_not_fit(before, now, message):
    with pytest.raises(ValueError, match=message):
        lively()(before, now)


def test_images_of_a_batch_do_not_meet():
    fuser, before, now = lively(), pyramid(1), pyramid(2)
    alone = fuser(tuple(x[1:] for x in before), tuple(x[1:] for x in now))
    assert all(torch.allclose(out[1:], one, atol=1e-6) for out, one in zip(fuser(before, now), alone, strict=True))


def test_gradient_by_differences():
    fuse = ResFuser(2).double()
    maps = [torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(fuse, maps)
