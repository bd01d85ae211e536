"""Aligned up-sampling, the mask branch, and the dynamic head against loops over pixels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from models.dynamic_mask import (
    NUM_FILTER_VALUES,
    MaskBranch,
    aligned_upsample,
    dynamic_mask_logits,
    relative_coordinates,
    split_filters,
)
from tests.models import oracles
from tests.models.oracles import batch_norm, conv
from tests.models.small import shake

# ------------------------------------------------------------------------------------------ U_f


@pytest.mark.parametrize("factor, row, expected", [
    pytest.param(2, [5], [5, 5], id="one cell"),
    pytest.param(2, [0, 1, 2], [0, 0, 0.5, 1, 1.5, 2], id="twice"),
    pytest.param(4, [0, 1, 2], [0, 0, 0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2], id="four times: two pixels late"),
])
@pytest.mark.parametrize("along", ["x", "y"])
def test_upsample_by_hand(factor, row, expected, along):
    x = torch.tensor([row], dtype=torch.float32)
    out = aligned_upsample(x if along == "x" else x.T, factor)
    line = out[0] if along == "x" else out[:, 0]
    assert line.tolist() == pytest.approx(expected)
    across = out if along == "x" else out.T
    assert across.shape[0] == factor and torch.allclose(across, across[:1])


@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("shape", [(3, 5), (2, 4, 3), (2, 3, 1, 6)])
def test_upsample_is_the_loop(factor, shape):
    x = torch.randn(shape, dtype=torch.float64)
    out = aligned_upsample(x, factor)
    assert out.shape == (*shape[:-2], factor * shape[-2], factor * shape[-1])
    for plane, wanted in zip(out.reshape(-1, *out.shape[-2:]), x.reshape(-1, *shape[-2:]), strict=True):
        assert np.allclose(plane.numpy(), oracles.upsample(wanted.numpy(), factor), atol=1e-12)


@pytest.mark.parametrize("factor", [2, 4])
def test_upsample_of_channels_last_maps_is_the_same(factor):
    x = torch.randn(2, 3, 4, 5)
    out = aligned_upsample(x.contiguous(memory_format=torch.channels_last), factor)
    assert out.stride(1) == 1, "and they stay channels last"
    assert torch.allclose(out, aligned_upsample(x, factor), atol=1e-6)


@pytest.mark.parametrize("factor", [2, 4])
def test_gradient_of_upsample(factor):
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: aligned_upsample(v, factor), x)


# ------------------------------------------------------------------------------------------ the mask branch


def test_counts_of_the_branch():
    with torch.device("meta"):
        branch = MaskBranch(256, 128)
    assert sum(p.numel() for p in branch.refine.parameters()) == 885_504
    rest = [*branch.tower.parameters(), *branch.output.parameters()]
    assert sum(p.numel() for p in rest) == 591_880


def test_branch_is_its_plain_composition():
    branch = MaskBranch(4, 6).eval()
    shake(branch, seed=1)
    maps = torch.randn(2, 4, 8, 12), torch.randn(2, 4, 4, 6), torch.randn(2, 4, 2, 3)

    def block(x: torch.Tensor, part: nn.Sequential) -> torch.Tensor:
        norm = part[1]
        y = batch_norm(conv(x, part[0].weight), norm.weight, norm.bias, norm.running_mean, norm.running_var)
        return y.clamp(min=0)

    x = torch.zeros(2, 6, 8, 12, dtype=torch.float64)
    for level, refine, factor in zip(maps, branch.refine, (1, 2, 4), strict=True):
        for b, planes in enumerate(block(level, refine)):
            x[b] += torch.stack([torch.from_numpy(oracles.upsample(plane.numpy(), factor)) for plane in planes])
    for part in branch.tower:
        x = block(x, part)
    expected = conv(x, branch.output.weight, branch.output.bias)
    assert len(branch.tower) == 4 and expected.shape == (2, 8, 8, 12) and expected.min() < 0
    assert torch.allclose(branch(*maps).double(), expected, atol=1e-4)


def test_start_of_the_branch():
    branch = MaskBranch(32, 128)
    threes = [m for m in branch.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert len(threes) == 7
    for layer in threes:
        bound = math.sqrt(3 / layer.weight[0].numel())
        assert layer.bias is None and layer.weight.abs().max() <= bound
        assert layer.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)
    bound = 1 / math.sqrt(128)
    assert branch.output.weight.abs().max() <= bound and branch.output.bias.abs().max() <= bound
    assert branch.output.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)
    assert branch.output.bias.any()


def test_norms_of_the_branch_learn_and_remember():
    branch = MaskBranch(4, 6).train()
    branch(torch.randn(2, 4, 8, 8), torch.randn(2, 4, 4, 4), torch.randn(2, 4, 2, 2)).sum().backward()
    norms = [m for m in branch.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 7
    for norm in norms:
        assert (norm.eps, norm.momentum) == (1e-5, 0.1)
        assert norm.num_batches_tracked == 1 and norm.running_mean.any() and norm.weight.grad is not None


# ------------------------------------------------------------------------------------------ the dynamic head


def theta(**parts: float | list[float]) -> torch.Tensor:
    """169 zeros but for the named places: `w1_x` the first column of W1, `w2` and `w3` all of theirs, `b3` the last."""
    places = {"w1_x": slice(0, 80, 10), "w1_y": slice(1, 80, 10), "w1_f1": slice(2, 80, 10),
              "w2": slice(80, 144), "w3": slice(144, 152), "b1": slice(152, 160), "b2": slice(160, 168), "b3": 168}
    filters = torch.zeros(1, 169)
    for name, value in parts.items():
        filters[0, places[name]] = torch.as_tensor(value)
    return filters


def paint(filters: torch.Tensor, x: float = 20, y: float = 12, divisor: float = 64) -> torch.Tensor:
    """On random features of 4 x 6 cells, the instance at (x, y).  -> (8, 12)"""
    features = torch.randn(1, 8, 4, 6, generator=torch.Generator().manual_seed(0))
    return dynamic_mask_logits(features, filters, torch.tensor([[x, y]]), torch.tensor([divisor]))[0]


def test_there_are_169_numbers():
    assert NUM_FILTER_VALUES == 169


def test_split_keeps_the_released_order():
    (w1, w2, w3), (b1, b2, b3) = split_filters(torch.arange(169.0)[None])
    assert w1[0].tolist() == [[10 * o + i for i in range(10)] for o in range(8)]
    assert w2[0].tolist() == [[80 + 8 * o + i for i in range(8)] for o in range(8)]
    assert w3[0].tolist() == [list(range(144, 152))]
    assert [b[0].tolist() for b in (b1, b2, b3)] == [list(range(152, 160)), list(range(160, 168)), [168]]


def test_nothing_but_b3_gives_a_constant():
    assert torch.allclose(paint(theta(b3=1.75)), torch.tensor(1.75))


def test_relative_x_alone_falls_to_the_right():
    """Acceptance 5; b1 lifts the first layer clear of its ReLU, so that the response is linear."""
    out = paint(theta(w1_x=1.0, b1=10.0, w2=0.125, w3=0.125))
    assert torch.allclose(out, out[:1].expand_as(out))                  # the same in every row
    middle = out[0, 1:]                                                 # the first column is replicated
    assert bool((middle.diff() < 0).all())
    assert out[0, 1].item() == pytest.approx(10 + (20 - 4) / 64 * 1.0)  # cell 0, at pixel 4, the instance at 20


def test_relative_y_alone_falls_downwards():
    out = paint(theta(w1_y=1.0, b1=10.0, w2=0.125, w3=0.125))
    assert torch.allclose(out, out[:, :1].expand_as(out))
    assert bool((out[1:, 0].diff() < 0).all())
    assert out[1, 0].item() == pytest.approx(10 + (12 - 4) / 64 * 1.0)


@pytest.mark.parametrize("b1, b2, b3, expected", [
    pytest.param(-1.0, 0.5, 0.25, 0.5 + 0.25, id="first layer rectified"),
    pytest.param(-1.0, -0.5, 0.25, 0.25, id="second layer rectified"),
    pytest.param(1.0, -0.5, 0.25, 0.5 + 0.25, id="both pass"),
    pytest.param(1.0, -0.5, -3.0, 0.5 - 3.0, id="the last is not rectified"),
])
def test_rectified_after_the_first_two_layers(b1, b2, b3, expected):
    out = paint(theta(b1=b1, b2=b2, b3=b3, w2=0.125, w3=0.125))
    assert torch.allclose(out, torch.tensor(expected))


def test_relative_coordinates_are_instance_minus_pixel_over_the_divisor():
    dx, dy = relative_coordinates(torch.tensor([[20.0, 12.0], [64.0, 64.0]]), torch.tensor([64.0, 1024.0]), 2, 3)
    assert dx.tolist() == [[16 / 64, 8 / 64, 0], [60 / 1024, 52 / 1024, 44 / 1024]]
    assert dy.tolist() == [[8 / 64, 0], [60 / 1024, 52 / 1024]]


def test_dynamic_head_is_the_loop_over_pixels():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(3, 8, 3, 4, dtype=torch.float64, generator=generator)
    filters = torch.randn(3, 169, dtype=torch.float64, generator=generator)
    points = torch.tensor([[4.0, 4.0], [24.0, 8.0], [64.0, 64.0]], dtype=torch.float64)
    divisors = torch.tensor([64.0, 128.0, 1024.0], dtype=torch.float64)
    out = dynamic_mask_logits(features, filters, points, divisors)
    assert out.shape == (3, 6, 8)
    for n in range(3):
        wanted = oracles.mask_logits(features[n].numpy(), filters[n].numpy(), points[n].tolist(), divisors[n].item())
        assert np.allclose(out[n].numpy(), wanted, atol=1e-10)


@pytest.mark.parametrize("count", [0, 1, 5])
def test_instances_of_one_image_share_its_features(count):
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(8, 3, 4, dtype=torch.float64, generator=generator)
    filters = torch.randn(count, 169, dtype=torch.float64, generator=generator)
    points = 30 * torch.rand(count, 2, dtype=torch.float64, generator=generator)
    divisors = torch.full((count,), 64.0, dtype=torch.float64)
    out = dynamic_mask_logits(features, filters, points, divisors)
    assert out.shape == (count, 6, 8)
    for n in range(count):
        wanted = oracles.mask_logits(features.numpy(), filters[n].numpy(), points[n].tolist(), 64.0)
        assert np.allclose(out[n].numpy(), wanted, atol=1e-10)


def test_gradient_of_the_dynamic_head():
    generator = torch.Generator().manual_seed(4)
    features = torch.randn(1, 8, 2, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    filters = torch.randn(1, 169, dtype=torch.float64, generator=generator, requires_grad=True)
    place = torch.tensor([[4.0, 12.0]], dtype=torch.float64), torch.tensor([64.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda f, t: dynamic_mask_logits(f, t, *place), (features, filters))


def test_no_instance_gives_no_mask_and_stays_in_the_graph():
    filters = torch.zeros(0, 169, requires_grad=True)
    out = dynamic_mask_logits(torch.zeros(0, 8, 4, 6), filters, torch.zeros(0, 2), torch.zeros(0))
    assert out.shape == (0, 8, 12)
    out.sum().backward()
    assert filters.grad is not None and filters.grad.shape == (0, 169)
