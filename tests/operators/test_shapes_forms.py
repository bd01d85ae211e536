"""Outlines can be told apart, silhouettes fill what their outlines enclose, surfaces stand out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from operators.shapes_forms import (
    CATEGORIES,
    COVERING,
    OUTLINES,
    PATTERNS,
    SPRITE_MARGIN,
    Look,
    backdrop,
    outline_area,
    random_look,
    silhouette,
    smooth_noise,
    sprite,
)

RED_BLUE = ((255, 0, 0), (0, 0, 255))


@pytest.mark.parametrize("category, area", [
    pytest.param("circle", np.pi, id="circle"),
    pytest.param("square", 2.0, id="square"),
    pytest.param("triangle", 3 * np.sqrt(3) / 4, id="triangle"),
    pytest.param("star", 10 * 0.5 * 0.48 * np.sin(np.pi / 5), id="star: ten triangles of sides 1 and 0.48"),
    pytest.param("cross", 4 * 0.947 * 0.64 - 0.64**2, id="cross: two bars less their common square"),
])  # fmt: skip
def test_outline_area(category, area):
    assert outline_area(category) == pytest.approx(area, rel=0.01)


@pytest.mark.parametrize("category", CATEGORIES)
def test_silhouette_fills_its_outline(category):
    form = np.asarray(silhouette(category, 126)) / 255
    assert form.sum() == pytest.approx(outline_area(category) * 60**2, rel=0.004)   # 60 = 126 / 2 - SPRITE_MARGIN
    assert form[:SPRITE_MARGIN - 1].sum() == form[:, :SPRITE_MARGIN - 1].sum() == 0
    corners = OUTLINES[category]
    assert np.hypot(*corners.T).max() == pytest.approx(1, abs=0.01)


def test_silhouettes_are_centred():
    form = np.asarray(silhouette("circle", 66)).astype(int)
    assert np.abs(form - form[::-1, ::-1]).max() <= 1


def _convex(corners: np.ndarray) -> bool:
    sides = np.roll(corners, -1, axis=0) - corners
    following = np.roll(sides, -1, axis=0)
    turns = sides[:, 0] * following[:, 1] - sides[:, 1] * following[:, 0]
    return bool(np.all(turns > 0) or np.all(turns < 0))


def test_seven_classes_of_which_four_are_not_convex():
    assert len(CATEGORIES) == 7 and set(COVERING) <= set(CATEGORIES)
    assert {name for name in CATEGORIES if not _convex(OUTLINES[name])} == {"star", "cross", "crescent", "arrow"}


def test_outlines_differ_at_every_angle_and_size():
    """The best overlap of any two forms of equal area stays well below that of one form with itself."""
    def form(category: str, angle: float) -> np.ndarray:
        radius = 28 / np.sqrt(outline_area(category))
        picture = silhouette(category, 2 * round(radius) + 2 * SPRITE_MARGIN)
        canvas = Image.new("L", (80, 80))
        canvas.paste(picture, ((80 - picture.width) // 2, (80 - picture.height) // 2))
        return np.asarray(canvas.rotate(angle, Image.Resampling.BILINEAR)) > 127

    upright = {name: form(name, 0) for name in CATEGORIES}
    for first in CATEGORIES:
        for second in CATEGORIES[CATEGORIES.index(first) + 1 :]:
            turned = [form(second, angle) for angle in range(0, 360, 15)]
            overlaps = [(upright[first] & other).sum() / (upright[first] | other).sum() for other in turned]
            assert max(overlaps) < 0.9, (first, second)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_sprite_shows_both_colours_inside_its_outline_only(pattern):
    coverage = silhouette("circle", 86)
    picture = sprite(coverage, Look(pattern, RED_BLUE, frequency=3.0, angle=0.4, seed=5))
    pixels = np.asarray(picture)
    assert picture.mode == "RGBa" and pixels.shape == (86, 86, 4)
    np.testing.assert_array_equal(pixels[..., 3], np.asarray(coverage))
    assert pixels[np.asarray(coverage) == 0].sum() == 0
    inner = pixels[20:66, 20:66].reshape(-1, 4)
    red, blue = (inner[:, 0] > 150).mean(), (inner[:, 2] > 150).mean()
    assert red > 0.1 and blue > 0.1


def test_random_looks_stand_out():
    rng = np.random.default_rng(3)
    avoid = np.array([[90.0, 90.0, 90.0], [150.0, 140.0, 120.0]])
    looks = [random_look(rng, avoid) for _ in range(50)]
    for look in looks:
        colors = np.vstack([avoid, look.colors])
        assert np.linalg.norm(colors[2:, None] - avoid, axis=-1).min() >= 100
        assert np.linalg.norm(colors[2] - colors[3]) >= 100
    assert {look.pattern for look in looks} == set(PATTERNS)


def test_backdrop_is_dull_and_textured():
    for seed in range(8):
        pixels = np.asarray(backdrop(np.random.default_rng(seed), 90, 120, contrast=0.25)).astype(float)
        assert pixels.shape == (90, 120, 3)
        assert 4 < pixels.mean(axis=-1).std() < 50
        assert (pixels.max(axis=-1) - pixels.min(axis=-1)).mean() < 80


def test_smooth_noise_stays_in_range():
    field = smooth_noise(np.random.default_rng(0), 40, 60, cells=5)
    assert field.shape == (40, 60) and field.min() >= 0 and field.max() <= 1 and field.std() > 0.1
    assert np.abs(np.diff(field, axis=1)).max() < 0.5
