"""Regions of fixed size: by hand on a ramp, against a float64 loop over every sample, and the gradient by differences.

Source of what is expected: CrossVIS specification 5.2 (legacy form), and the rules for the rim that `roi_align` states.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.roi_align import _torchvision, plain_roi_align, roi_align
from tests.models.naive_maps import bilinear


def naive(features, boxes, image, size, scale, samples, half_pixel) -> np.ndarray:
    """Sample by sample."""
    maps = features.detach().double().numpy()
    out = np.zeros((len(boxes), maps.shape[1], size, size))
    for r, (box, b) in enumerate(zip(boxes.double().tolist(), image.tolist(), strict=True)):
        x1, y1, x2, y2 = (edge * scale - (0.5 if half_pixel else 0.0) for edge in box)
        w, h = x2 - x1, y2 - y1
        if not half_pixel:
            w, h = max(w, 1.0), max(h, 1.0)
        across, down = samples or math.ceil(w / size), samples or math.ceil(h / size)
        for i in range(size):
            for j in range(size):
                for v in range(down):
                    for u in range(across):
                        y = y1 + (i + (v + 0.5) / down) * h / size
                        x = x1 + (j + (u + 0.5) / across) * w / size
                        out[r, :, i, j] += bilinear(maps[b], y, x) / (down * across)
    return out


def ramp(width: int = 8) -> torch.Tensor:
    """Every cell holds its own column: what a bin gives is the mean column of its samples."""
    return torch.arange(float(width)).expand(1, 1, 6, width).contiguous()


@pytest.mark.parametrize("box, settings, columns", [
    # scale 1/4, two bins across: the box covers cells 1 to 3
    pytest.param((4, 4, 12, 12), {}, [1.5, 2.5], id="legacy: cell 0 stands at 0"),
    pytest.param((4, 4, 12, 12), {"half_pixel": True}, [1.0, 2.0], id="half-pixel: half a cell less"),
    pytest.param((4, 4, 4, 4), {}, [1.25, 1.75], id="legacy: a point is a cell wide"),
    pytest.param((4, 4, 5, 5), {"half_pixel": True}, [0.5625, 0.6875], id="half-pixel: it stays a quarter"),
    pytest.param((-8, 0, 8, 8), {}, [0.0, (0.5 + 1.5) / 2], id="two cells to the left: half 0, half the rim's 0"),
    pytest.param((24, 0, 40, 8), {}, [(6.5 + 7) / 2, 0.0], id="to the right: the rim's 7, then nothing"),
    pytest.param((26, 0, 34, 8), {}, [(6.75 + 7) / 2, (7 + 0) / 2], id="7.75 is the rim's 7, 8.25 nothing"),
    pytest.param((200, 0, 240, 8), {}, [0, 0], id="far out"),
    pytest.param((4, 4, 20, 12), {"samples": 1}, [2, 4], id="one sample: the middle of the bin"),
    pytest.param((4, 4, 20, 12), {"samples": 0}, [2, 4], id="as many as cells"),
])
def test_a_ramp_by_hand(box, settings, columns):
    boxes = torch.tensor([box], dtype=torch.float32)
    out = roi_align(ramp(), boxes, torch.tensor([0]), 2, 0.25, **settings)
    assert out.shape == (1, 1, 2, 2)
    assert out[0, 0, 0].tolist() == pytest.approx(columns, abs=1e-6)


@pytest.mark.parametrize("half_pixel", [False, True])
@pytest.mark.parametrize("samples", [2, 1, 3, 0])
@pytest.mark.parametrize("size", [1, 4])
def test_against_the_loop(size, samples, half_pixel):
    rng = torch.Generator().manual_seed(size)
    features = torch.randn(3, 2, 5, 9, generator=rng)
    low = torch.rand(30, 2, generator=rng) * torch.tensor([90.0, 60.0]) - 20
    boxes = torch.cat([low, low + torch.rand(30, 2, generator=rng) ** 2 * 90], dim=1)
    boxes[:6] = torch.tensor([[0, 0, 72, 40], [16, 16, 16, 16], [-30, -30, -9, -9], [63, 31, 71, 39], [-8, -8, 80, 48],
                              [71, 39, 300, 200]])
    image = torch.randint(0, 3, (30,), generator=rng)
    out = plain_roi_align(features, boxes, image, size, 1 / 8, samples, half_pixel)
    expected = naive(features, boxes, image, size, 1 / 8, samples, half_pixel)
    assert np.abs(expected).max(axis=(1, 2, 3)).min() == 0, "some region must lie outside"
    np.testing.assert_allclose(out.numpy(), expected, atol=1e-5)


def test_a_region_turned_inside_out_is_empty_when_samples_follow_its_size():
    boxes = torch.tensor([[20.0, 4.0, 8.0, 12.0], [4.0, 4.0, 12.0, 12.0]])
    image = torch.zeros(2, dtype=torch.int64)
    out = plain_roi_align(ramp() + 1, boxes, image, 2, 0.25, samples=0, half_pixel=True)
    np.testing.assert_allclose(out.numpy(), naive(ramp() + 1, boxes, image, 2, 0.25, 0, True), atol=1e-6)
    assert not out[0].any() and out[1].all()


def test_no_region():
    features = torch.randn(2, 5, 4, 4, requires_grad=True)
    out = roi_align(features, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7, 0.25)
    assert out.shape == (0, 5, 7, 7)


@pytest.mark.parametrize("samples", [2, 0])
def test_gradient_is_that_of_differences(samples):
    features = torch.randn(2, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[3.0, 2.0, 29.0, 31.0], [-5.0, -3.0, 18.0, 9.0], [30.0, 20.0, 60.0, 60.0]])
    image = torch.tensor([0, 1, 1])
    assert torch.autograd.gradcheck(lambda f: plain_roi_align(f, boxes, image, 3, 1 / 8, samples), features)


def test_order_in_memory_does_not_matter():
    features = torch.randn(2, 6, 7, 9)
    boxes, image = torch.tensor([[3.0, 2.0, 40.0, 31.0], [8.0, 0.0, 70.0, 50.0]]), torch.tensor([1, 0])
    rows = roi_align(features, boxes, image, 7, 1 / 8)
    assert torch.equal(roi_align(features.contiguous(memory_format=torch.channels_last), boxes, image, 7, 1 / 8), rows)
    assert torch.equal(roi_align(features.transpose(2, 3).contiguous().transpose(2, 3), boxes, image, 7, 1 / 8), rows)


def test_half_precision_is_computed_in_float32():
    features = torch.randn(1, 4, 6, 8).bfloat16()
    boxes, image = torch.tensor([[3.0, 2.0, 40.0, 31.0]]), torch.tensor([0])
    out = roi_align(features, boxes, image, 3, 1 / 8)
    assert out.dtype == torch.bfloat16
    assert torch.equal(out, roi_align(features.float(), boxes, image, 3, 1 / 8).bfloat16())


@pytest.mark.parametrize("size, samples", [(0, 2), (7, -1)])
def test_settings_out_of_range(size, samples):
    with pytest.raises(ValueError, match=f"size is {size}, samples are {samples}"):
        roi_align(torch.zeros(1, 1, 2, 2), torch.zeros(1, 4), torch.tensor([0]), size, 1.0, samples)


@pytest.mark.gpu
@pytest.mark.parametrize("samples, half_pixel", [(2, False), (0, True)])
def test_on_a_gpu(samples, half_pixel):
    """By the plain form, and by torchvision's kernel where it is installed."""
    features, low = torch.randn(2, 8, 20, 30), torch.rand(50, 2) * 200 - 10
    boxes, image = torch.cat([low, low + torch.rand(50, 2) * 120], dim=1), torch.randint(0, 2, (50,))
    expected = plain_roi_align(features, boxes, image, 7, 1 / 8, samples, half_pixel)
    placed = features.cuda(), boxes.cuda(), image.cuda()
    assert torch.allclose(plain_roi_align(*placed, 7, 1 / 8, samples, half_pixel).cpu(), expected, atol=1e-4)
    assert torch.allclose(roi_align(*placed, 7, 1 / 8, samples, half_pixel).cpu(), expected, atol=1e-3)


def test_torchvision_is_optional():
    kernel = _torchvision()
    assert kernel is None or callable(kernel)
    if kernel is None:
        pytest.skip("torchvision does not import here: the plain form does all")
    features, boxes = torch.randn(1, 4, 9, 9), torch.tensor([[0.0, 5.0, 5.0, 50.0, 60.0]])
    plain = plain_roi_align(features, boxes[:, 1:], torch.tensor([0]), 7, 1 / 8)
    assert torch.allclose(kernel(features, boxes, 7, 1 / 8, 2, False), plain, atol=1e-5)


# ------------------------------------------------------------------------------------------ far larger than the map


@pytest.mark.parametrize("box", [
    pytest.param((-700, 3, 900, 30), id="wide"), pytest.param((5, -900, 40, 700), id="high"),
    pytest.param((-300, -250, 350, 300), id="both"), pytest.param((60, 30, 2000, 45), id="to the right"),
])  # fmt: skip
def test_samples_off_the_map_need_not_be_looked_at(box):
    """At one sample a cell, of which a bin has up to 100 here and the map 9 x 5."""
    features = torch.randn(1, 2, 5, 9)
    boxes, image = torch.tensor([box, (8, 8, 30, 20)], dtype=torch.float32), torch.zeros(2, dtype=torch.int64)
    out = plain_roi_align(features, boxes, image, 2, 1 / 8, samples=0, half_pixel=True)
    expected = naive(features, boxes, image, 2, 1 / 8, 0, half_pixel=True)
    np.testing.assert_allclose(out.numpy(), expected, atol=2e-5)
    assert np.abs(expected).max() > 0


def test_a_box_of_any_size_is_read_within_bounds():
    boxes = torch.tensor([[-1e9, -1e9, 1e9, 1e9], [0, 0, 1e12, 10]])
    out = plain_roi_align(torch.randn(1, 1, 6, 8), boxes, torch.zeros(2, dtype=torch.int64), 14, 1 / 32, 0, True)
    assert out.shape == (2, 1, 14, 14) and out.isfinite().all()


def test_some_regions_at_a_time_are_all_of_them(monkeypatch):
    features, boxes = torch.randn(2, 3, 6, 8), torch.rand(9, 4).cumsum(1)[:, [0, 1, 2, 3]] * 20
    image = torch.arange(9) % 2
    whole = plain_roi_align(features, boxes, image, 4, 1 / 4, samples=0, half_pixel=True)
    monkeypatch.setattr("models.roi_align.MOST_TAPS", 1)
    assert torch.equal(plain_roi_align(features, boxes, image, 4, 1 / 4, samples=0, half_pixel=True), whole)
