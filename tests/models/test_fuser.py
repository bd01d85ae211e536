"""The fuser of pyramids: layer by layer, which of its inputs is which, and that every level has weights of its own."""

from __future__ import annotations

import pytest
import torch

from models.fuser import FORMS, PyramidFuser, correlation
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


def test_counts_of_the_forms_that_nothing_selects():
    """V2 adds a convolution 512 -> 512, V3 256 channels between the two maps: 768 for 512 (specification 2.3)."""
    with torch.device("meta"):
        twice, correlated = (PyramidFuser(256, 1, form) for form in ("twice", "correlated"))
    assert sum(p.numel() for p in twice.parameters()) == 1_769_984 + 512 * 512 * 9 + 512
    assert correlated.levels[0].conv1.weight.shape == (256, 768, 3, 3)


@torch.no_grad()
def test_a_convolution_applied_twice_with_the_same_weights():
    fuser = PyramidFuser(4, 1, "twice")
    shake(fuser, 0)
    (level,), reference, current = fuser.levels, pyramid(1)[0], pyramid(2)[0]
    x = torch.cat([reference, current], dim=1)
    for _ in range(2):
        x = conv(x, level.conv0.weight, level.conv0.bias).clamp(min=0)
    x = conv(x, level.conv1.weight, level.conv1.bias).clamp(min=0)
    x = current.double() + conv(x, level.conv2.weight, level.conv2.bias)
    assert torch.allclose(fuser((reference,), (current,))[0].double(), x, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("patch", [1, 3, 4, 16])
def test_correlation_cell_by_cell(patch):
    reference, current = pyramid(1)[1], pyramid(2)[1]                                           # (2, 4, 4, 6)
    expected, first = torch.zeros(2, patch, patch, 4, 6), -((patch - 1) // 2)
    for y in range(4):
        for x in range(6):
            for i in range(patch):
                for j in range(patch):
                    v, u = y + first + i, x + first + j
                    if 0 <= v < 4 and 0 <= u < 6:
                        expected[:, i, j, y, x] = (current[:, :, y, x] * reference[:, :, v, u]).sum(1) / 4
    assert torch.allclose(correlation(reference, current, patch), expected.flatten(1, 2), atol=1e-6)


def test_correlation_finds_where_a_thing_was():
    reference, current = torch.zeros(1, 2, 9, 12), torch.zeros(1, 2, 9, 12)
    reference[0, :, 4, 5] = current[0, :, 2, 8] = 1.0
    found = correlation(reference, current, 16)[0, :, 2, 8].reshape(16, 16)
    assert found.nonzero().tolist() == [[2 + 7, -3 + 7]] and found.max() == 1


def test_gradient_of_the_correlation_by_differences():
    maps = [torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(lambda *pair: correlation(*pair, 3), maps)


@torch.no_grad()
def test_the_correlation_stands_between_the_two_maps():
    fuser = PyramidFuser(4, 1, "correlated")
    shake(fuser, 0)
    (level,), reference, current = fuser.levels, pyramid(1)[0], pyramid(2)[0]
    x = torch.cat([reference, correlation(reference, current, 16), current], dim=1)
    x = conv(conv(x, level.conv1.weight, level.conv1.bias).clamp(min=0), level.conv2.weight, level.conv2.bias)
    assert torch.allclose(fuser((reference,), (current,))[0].double(), current.double() + x, atol=1e-5)


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


@pytest.mark.parametrize("form", ["plain", "twice"])
def test_gradient_by_differences(form):
    fuse = FORMS[form](2).double()
    maps = [torch.randn(1, 2, 3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    assert torch.autograd.gradcheck(fuse, maps)
