"""The generated dataset, part 1: what one object and one background look like.

In:     a category, a `Look` (pattern and colours), sizes in pixels
Out:    sprites (S, S) premultiplied RGBA and backdrops (H, W) RGB, as Pillow images: Pillow moves them, in C
State:  none; whatever is random comes from the generator handed in, or from the seed inside a `Look`
Limits: classes differ by outline alone: every pattern and colour is drawn for every class alike
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

SCANLINES = 4
"""Lines a pixel row on which outlines are sampled. More: smoother edges that are nearly level."""

SPRITE_MARGIN = 3
"""Empty pixels around a sprite's form, so that interpolation at its edge finds transparency."""


def _ring(
    num: int, radius: float = 1.0, start: float = 0.0, stop: float = 2 * np.pi, center: float = 0.0
) -> np.ndarray:
    """`num` points (num, 2) on an arc about (center, 0), from angle `start` up to, not including, `stop`."""
    angles = np.linspace(start, stop, num, endpoint=False)
    return np.stack([center + radius * np.cos(angles), radius * np.sin(angles)], axis=-1)


def _star() -> np.ndarray:
    radii = np.where(np.arange(10) % 2, 0.48, 1.0)
    return _ring(10) * radii[:, None]


def _cross() -> np.ndarray:
    arm, end = 0.32, 0.947   # hypot(arm, end) = 1: the corners touch the unit circle
    quarter = np.array([[end, -arm], [end, arm], [arm, arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _crescent() -> np.ndarray:
    """The unit disc less a disc of radius 0.72 about (0.55, 0), which meets the rim where x = 0.713."""
    bite, center = 0.72, 0.55
    x = (1 - bite**2 + center**2) / (2 * center)
    rim, inner = np.arccos(x), np.arccos((x - center) / bite)
    return np.concatenate([_ring(48, 1.0, rim, 2 * np.pi - rim), _ring(36, bite, 2 * np.pi - inner, inner, center)])


OUTLINES: dict[str, np.ndarray] = {
    "circle": _ring(72),
    "square": _ring(4),
    "triangle": _ring(3),
    "star": _star(),
    "cross": _cross(),
    "crescent": _crescent(),
    "arrow": np.array([[1, 0], [0.1, 0.8], [0.1, 0.34], [-0.94, 0.34], [-0.94, -0.34], [0.1, -0.34], [0.1, -0.8]]),
}
"""Category -> corners (P, 2) of its outline, inside the unit circle. The last four are not convex."""

CATEGORIES: tuple[str, ...] = tuple(OUTLINES)
"""Names in order of category id, which begins at 1."""

COVERING: tuple[str, ...] = ("circle", "square")
"""Forms so full that a large one hides a small object of any class: their inner circle is at least 0.7 of the outer."""


def outline_area(category: str) -> float:
    """Area of the outline, where the circle about it has radius 1."""
    x, y = OUTLINES[category].T
    return 0.5 * abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1)))


@dataclass(frozen=True)
class Look:
    """Surface of an object: twins share one. `colors` are two of RGB 0..255, `seed` makes the irregular patterns."""

    pattern: str
    colors: tuple[tuple[int, int, int], tuple[int, int, int]]
    frequency: float
    """Repetitions of the pattern over the object's diameter."""
    angle: float
    seed: int


def _stripes(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    return np.sin(np.pi * look.frequency * u)


def _checker(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    return np.sin(np.pi * look.frequency * u) * np.sin(np.pi * look.frequency * v)


def _dots(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    return np.cos(np.pi * look.frequency * u) + np.cos(np.pi * look.frequency * v) - 0.5


def _rings(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    return np.sin(np.pi * look.frequency * np.hypot(u, v) + look.angle)


def _blobs(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    cells = max(3, round(look.frequency * 2))
    field = smooth_noise(np.random.default_rng(look.seed), *u.shape, cells)
    return 4 * (field - 0.5)


def _gradient(u: np.ndarray, v: np.ndarray, look: Look) -> np.ndarray:
    return u / 6


PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, Look], np.ndarray]] = {
    "stripes": _stripes, "checker": _checker, "dots": _dots, "rings": _rings, "blobs": _blobs, "gradient": _gradient,
}  # fmt: skip
"""Pattern -> function of object coordinates (-1..1 over the diameter); below 0 the first colour, above the second."""


def random_look(rng: np.random.Generator, avoid: np.ndarray) -> Look:
    """A surface of two vivid colours that differ from each other, and both from the colours `avoid` (A, 3)."""
    first = _far_color(rng, avoid, distance=100)
    second = _far_color(rng, np.vstack([avoid, first]), distance=100)
    names = tuple(PATTERNS)
    return Look(
        pattern=names[rng.integers(len(names))],
        colors=(first, second),
        frequency=float(rng.uniform(2.0, 4.0)),
        angle=float(rng.uniform(0, 2 * np.pi)),
        seed=int(rng.integers(2**31)),
    )


def _far_color(rng: np.random.Generator, avoid: np.ndarray, distance: float) -> tuple[int, int, int]:
    """A vivid or a very light colour at least `distance` from all in `avoid`, or the farthest of 32 drawn."""
    best, best_gap = (255, 255, 255), -1.0
    for _ in range(32):
        light = rng.random() < 0.15
        hsv = (rng.random(), rng.uniform(0.0, 0.2) if light else rng.uniform(0.65, 1.0), rng.uniform(0.75, 1.0))
        color = tuple(round(255 * c) for c in colorsys.hsv_to_rgb(*hsv))
        gap = float(np.linalg.norm(avoid - color, axis=1).min())
        if gap >= distance:
            return color
        if gap > best_gap:
            best, best_gap = color, gap
    return best


def silhouette(category: str, size: int) -> Image.Image:
    """Coverage of the form in a square of `size` pixels, mode "L"; its radius is size / 2 - SPRITE_MARGIN."""
    coverage = _fill(OUTLINES[category] * (size / 2 - SPRITE_MARGIN) + size / 2, size)
    return Image.fromarray(np.round(255 * coverage).astype(np.uint8))


def _fill(corners: np.ndarray, size: int) -> np.ndarray:
    """Share (size, size) of each pixel inside the outline (P, 2): exact along x, from SCANLINES lines a pixel along y.

    Each crossing of a scan line and a side puts all that lies to its right inside or outside again, so it is added at
    its own pixel, and a running sum spreads it. Pillow's polygon is no substitute: it fills half a pixel too much.
    """
    lines = (np.arange(size * SCANLINES) + 0.5)[:, None] / SCANLINES                     # (L, 1)
    (x1, y1), (x2, y2) = corners.T, np.roll(corners, -1, axis=0).T                       # (P,) each
    line, side = np.nonzero((y1 <= lines) != (y2 <= lines))
    slope = (x2 - x1)[side] / (y2 - y1)[side]
    x = x1[side] + (lines[line, 0] - y1[side]) * slope
    sign = np.where(y2[side] > y1[side], -1.0, 1.0)   # corners run clockwise on screen: left sides go up
    pixel = np.floor(x).astype(np.int64)
    change = np.zeros((size, size + 1))
    np.add.at(change, (line // SCANLINES, pixel), sign * (pixel + 1 - x))
    np.add.at(change, (line // SCANLINES, pixel + 1), sign * (x - pixel))
    return np.clip(np.cumsum(change, axis=1)[:, :size] / SCANLINES, 0, 1)


def sprite(coverage: Image.Image, look: Look) -> Image.Image:
    """The form painted with its pattern and a darker rim, mode "RGBa" (premultiplied), as large as `coverage`."""
    size = coverage.width
    radius = size / 2 - SPRITE_MARGIN
    y, x = (np.mgrid[:size, :size] + 0.5 - size / 2) / radius
    u = x * np.cos(look.angle) + y * np.sin(look.angle)
    v = y * np.cos(look.angle) - x * np.sin(look.angle)
    # times the pixels in half a repetition: the step from one colour to the other is about two pixels wide
    mix = np.clip(PATTERNS[look.pattern](u, v, look) * (radius / look.frequency / 3) + 0.5, 0, 1)
    if look.pattern == "gradient":
        mix = np.clip(u / 1.6 + 0.5, 0, 1)
    first, second = np.asarray(look.colors, dtype=np.float64)
    paint = first + (second - first) * mix[..., None]                                   # (S, S, 3)
    alpha = np.asarray(coverage, dtype=np.float64)[..., None] / 255                      # (S, S, 1)
    blurred = coverage.filter(ImageFilter.GaussianBlur(max(1.0, radius * 0.035)))
    depth = np.asarray(blurred, dtype=np.float64)[..., None] / 255                       # 0.5 at the edge, 1 inside
    paint *= 0.25 + 0.75 * np.clip((depth - 0.5) * 2.4, 0, 1)
    rgba = np.concatenate([paint * alpha, alpha * 255], axis=-1)
    return Image.frombuffer("RGBa", (size, size), np.round(rgba).astype(np.uint8).tobytes(), "raw", "RGBa", 0, 1)


def smooth_noise(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Noise (height, width) in 0..1 with about `cells` hills along the shorter side."""
    scale = cells / min(height, width)
    shape = (max(2, round(height * scale)), max(2, round(width * scale)))
    grid = Image.fromarray(rng.random(shape, dtype=np.float32))
    return np.clip(np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC)), 0, 1)


def backdrop(rng: np.random.Generator, height: int, width: int, contrast: float) -> Image.Image:
    """A textured background (height, width), mode "RGB": dull clouds of two colours, often with a faint pattern."""
    first, second = _dull_colors(rng, contrast)
    field = sum(smooth_noise(rng, height, width, cells) * share for cells, share in ((4, 0.5), (12, 0.3), (40, 0.2)))
    style = rng.integers(4)
    if style:   # 0: clouds alone
        y, x = np.mgrid[:height, :width] / min(height, width)
        angle, waves = rng.uniform(0, np.pi), rng.uniform(10, 24)
        look = Look("", ((0, 0, 0), (0, 0, 0)), waves, angle, 0)
        u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
        wave = (_stripes, _checker, _dots)[style - 1](u, v, look)
        field = field + 0.22 * (np.clip(wave * 3, -1, 1))
    field = np.clip(field, 0, 1)[..., None]
    return Image.fromarray(np.round(first + (second - first) * field).astype(np.uint8))


def _dull_colors(rng: np.random.Generator, contrast: float) -> np.ndarray:
    """Two colours (2, 3) of weak saturation, `contrast` of the full brightness apart."""
    hues = rng.random() + np.array([0.0, rng.uniform(0.0, 0.3)])
    middle = rng.uniform(0.25 + contrast / 2, 0.75 - contrast / 2)
    saturations = rng.uniform(0.08, 0.35, size=2)
    values = middle + np.array([-0.5, 0.5]) * contrast
    return np.array([
        [255 * c for c in colorsys.hsv_to_rgb(hue % 1.0, saturation, value)]
        for hue, saturation, value in zip(hues, saturations, values, strict=True)
    ])  # fmt: skip
