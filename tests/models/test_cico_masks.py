"""Masks of tubes: Yolact's sums and CondInst's layers, tube by tube in float64, and the window that they are cut to."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.cico_masks import MaskForm, Window, coordinates, inside, paint
from tests.models.small_cico import GAUSS, OFFSETS, YOLACT

H, W, T = 8, 12, 3
UNIONS = torch.tensor([[0.1, 0.2, 0.5, 0.9], [0.55, 0.3, 0.6, 0.35], [0.4, -0.2, 1.3, 0.6]])
LEVELS = torch.tensor([0, 2, 4])
WINDOW = Window(1.5)


def prototypes(form: MaskForm, seed: int = 0) -> Tensor:
    return torch.randn(H, W, T, form.prototypes, generator=torch.Generator().manual_seed(seed)).clamp(min=0)


def parameters(form: MaskForm, tubes: int = 3, seed: int = 1) -> Tensor:
    return torch.randn(tubes, form.num_parameters, generator=torch.Generator().manual_seed(seed)).tanh()


# ------------------------------------------------------------------------------------------ the plain form


def plain_window(box: list[float], window: Window | None) -> tuple[int, int, int, int]:
    """First column and row, and those behind the last."""
    if window is None:
        return 0, 0, W, H
    center, sides = [(box[i] + box[i + 2]) / 2 for i in (0, 1)], [box[i + 2] - box[i] for i in (0, 1)]
    sides = [max(side * window.factor, window.least) for side in sides]
    low = [min(max(c - s / 2, 0), 1) for c, s in zip(center, sides, strict=True)]
    high = [min(max(c + s / 2, 0), 1) for c, s in zip(center, sides, strict=True)]
    return (math.floor(low[0] * W) - 1, math.floor(low[1] * H) - 1,
            math.floor(high[0] * W) + 1, math.floor(high[1] * H) + 1)  # fmt: skip


def plain_coordinates(box: list[float], level: int, x: int, y: int, rel_coord: str) -> list[float]:
    center = (box[0] + box[2]) / 2 * W, (box[1] + box[3]) / 2 * H
    if rel_coord == "offset2":
        reach = (16, 32, 64, 128, 256)[level]
        return [(center[0] - (x + 0.5)) / reach, (center[1] - (y + 0.5)) / reach]
    sigma = max(1.5 * (box[2] - box[0]) * W, 1), max(1.5 * (box[3] - box[1]) * H, 1)
    parts = ((x - round(center[0])) / sigma[0]) ** 2 + ((y - round(center[1])) / sigma[1]) ** 2
    return [math.exp(-0.5 * parts)]


def layer(values: list[float], weights: list[float], biases: list[float]) -> list[float]:
    n = len(values)
    return [sum(w * v for w, v in zip(weights[o * n : (o + 1) * n], values, strict=True)) + b
            for o, b in enumerate(biases)]


def plain_logit(features: list[float], theta: list[float], form: MaskForm, where: list[float]) -> float:
    """2.7: all weights, layer by layer and output by output, then all biases."""
    if form.kind == "yolact":
        return sum(p * t for p, t in zip(features, theta, strict=True))
    values = where + features
    n = len(values)
    at = [0, 8 * n, 8 * n + 64, 8 * n + 72, 8 * n + 80, 8 * n + 88, 8 * n + 89]
    w1, w2, w3, b1, b2, b3 = (theta[a:b] for a, b in zip(at, at[1:], strict=False))
    hidden = [max(v, 0) for v in layer(values, w1, b1)]
    hidden = [max(v, 0) for v in layer(hidden, w2, b2)]
    return layer(hidden, w3, b3)[0]


def plain_masks(
    maps: Tensor, thetas: Tensor, unions: Tensor, levels: Tensor, form: MaskForm, window: Window | None
) -> Tensor:  # fmt: skip
    out = torch.zeros(len(thetas), T, H, W, dtype=torch.float64)
    features = maps.double().tolist()
    tubes = zip(thetas.double().tolist(), unions.tolist(), levels.tolist(), strict=True)
    for m, (theta, box, level) in enumerate(tubes):
        x1, y1, x2, y2 = plain_window(box, window)
        for y in range(max(y1, 0), min(y2, H)):
            for x in range(max(x1, 0), min(x2, W)):
                where = plain_coordinates(box, level, x, y, form.rel_coord)
                for t in range(T):
                    out[m, t, y, x] = 1 / (1 + math.exp(-plain_logit(features[y][x][t], theta, form, where)))
    return out


@pytest.mark.parametrize("form", [YOLACT, OFFSETS, GAUSS], ids=["yolact", "offset2", "gauss1"])
@pytest.mark.parametrize("window", [WINDOW, Window(1.2, 0.0), None], ids=["training", "propagation", "whole"])
def test_masks_are_their_plain_form(form, window):
    maps, thetas = prototypes(form), parameters(form)
    found = paint(maps, thetas, UNIONS, LEVELS, form, window)
    assert torch.allclose(found.double(), plain_masks(maps, thetas, UNIONS, LEVELS, form, window), atol=1e-5)


# ------------------------------------------------------------------------------------------ what follows from it


@pytest.mark.parametrize("form, count", [
    (MaskForm(), 32), (MaskForm(kind="condinst", prototypes=8), 169),
    (MaskForm(kind="condinst", prototypes=8, rel_coord="gauss1"), 161),
])  # fmt: skip
def test_number_of_parameters(form, count):
    assert form.num_parameters == count


@pytest.mark.parametrize("form", [YOLACT, OFFSETS, GAUSS], ids=["yolact", "offset2", "gauss1"])
def test_no_tube(form):
    found = paint(prototypes(form), parameters(form, 0), UNIONS[:0], LEVELS[:0], form, WINDOW)
    assert found.shape == (0, T, H, W)


def test_a_one_hot_parameter_shows_its_prototype():
    """Acceptance check 4."""
    maps, theta = prototypes(YOLACT), torch.zeros(1, 4)
    theta[0, 2] = 1
    found = paint(maps, theta, UNIONS[:1], LEVELS[:1], YOLACT, WINDOW)[0]
    here = inside(UNIONS[:1], WINDOW, H, W)[0]
    assert torch.allclose(found, maps[..., 2].permute(2, 0, 1).sigmoid() * here)


@pytest.mark.parametrize("form", [YOLACT, OFFSETS, GAUSS], ids=["yolact", "offset2", "gauss1"])
def test_many_tubes_are_as_if_alone(form):
    """More than are painted at a time."""
    count = 70
    thetas, maps = parameters(form, count), prototypes(form)
    unions, levels = UNIONS.repeat(24, 1)[:count], LEVELS.repeat(24)[:count]
    together = paint(maps, thetas, unions, levels, form, WINDOW)
    for i in (0, 31, 32, 69):
        alone = paint(maps, thetas[i : i + 1], unions[i : i + 1], levels[i : i + 1], form, WINDOW)
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


@pytest.mark.parametrize("form", [YOLACT, OFFSETS, GAUSS], ids=["yolact", "offset2", "gauss1"])
def test_gradients(form):
    maps = (prototypes(form)[:2, :2, :2] + 0.1).double().requires_grad_()
    thetas = parameters(form, 2).double().requires_grad_()
    unions = UNIONS[:2].double()
    assert torch.autograd.gradcheck(lambda p, t: paint(p, t, unions, LEVELS[:2], form, WINDOW), (maps, thetas))


def test_no_gradient_passes_through_place():
    unions = UNIONS.clone().requires_grad_()
    found = paint(prototypes(OFFSETS), parameters(OFFSETS).requires_grad_(), unions, LEVELS, OFFSETS, WINDOW)
    found.sum().backward()
    assert unions.grad is None


@pytest.mark.parametrize("box, window, columns, rows", [
    pytest.param([0, 0, 1, 1], Window(1.5), (0, 20), (0, 10), id="all of it"),
    pytest.param([0.41, 0.41, 0.61, 0.61], Window(1.0), (7, 13), (3, 7), id="a column more on either side"),
    pytest.param([0.41, 0.41, 0.61, 0.61], Window(1.5), (6, 14), (2, 7), id="half as large again"),
    pytest.param([0.51, 0.51, 0.51, 0.51], Window(1.1), (8, 12), (3, 6), id="a point has a tenth"),
    pytest.param([0.525, 0.55, 0.525, 0.55], Window(1.2, 0.0), (9, 11), (4, 6), id="but not in propagation"),
    pytest.param([-0.5, 0.9, 0.02, 1.5], Window(1.0), (0, 1), (8, 10), id="out of the picture"),
])  # fmt: skip
def test_windows(box, window, columns, rows):
    """On 10 x 20 cells."""
    here = inside(torch.tensor([box], dtype=torch.float64), window, 10, 20)[0]
    expected = torch.zeros(10, 20, dtype=torch.bool)
    expected[slice(*rows), slice(*columns)] = True
    assert torch.equal(here, expected)


def test_coordinates_are_those_of_the_specification():
    found = coordinates(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), torch.tensor([1]), 8, 16, "offset2")
    assert found[0, :, 4, 8].tolist() == pytest.approx([-0.5 / 32, -0.5 / 32])
    assert found[0, :, 0, 15].tolist() == pytest.approx([-7.5 / 32, 3.5 / 32]), "x first"
    found = coordinates(torch.tensor([[0.25, 0.25, 0.75, 0.75]]), torch.tensor([1]), 8, 16, "gauss1")
    assert found.shape == (1, 1, 8, 16) and found[0, 0, 4, 8] == 1
    assert found[0, 0, 4, 2].item() == pytest.approx(math.exp(-0.5 * (6 / 12) ** 2)), "1.5 sides of 8 cells are 12"
