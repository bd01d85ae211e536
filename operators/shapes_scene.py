"""The generated dataset: where everything is at every moment of one clip, and which pixels it owns.

In:     objects, each with its path through the frame; a background with the camera's path over it
Out:    id maps (T, H, W), exact at the middle of each exposure; whether the clip keeps its config's promises
State:  none
Limits: 255 objects, the values of an id map

N objects, T frames. Time runs in frames and need not be whole: motion blur asks for moments in between.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from operators.shapes_config import ShapesConfig
from operators.shapes_forms import SPRITE_MARGIN, Look, outline_area, silhouette


@dataclass(frozen=True)
class Swing:
    """One coordinate in time: at `anchor` when t = `middle`, swinging by `amplitude` at `omega` radians a frame."""

    anchor: float
    amplitude: float = 0.0
    omega: float = 0.0
    phase: float = 0.0
    middle: float = 0.0

    def at(self, t: np.ndarray | float) -> np.ndarray:
        turned = np.sin(self.omega * (np.asarray(t, dtype=np.float64) - self.middle) + self.phase)
        return self.anchor + self.amplitude * (turned - np.sin(self.phase))


@dataclass(frozen=True)
class Mover:
    """One object and its way through the frame. Position and diameter in pixels, angle in radians."""

    category: str
    look: Look
    x: Swing
    y: Swing
    diameter: Swing
    angle: float
    spin: float

    @property
    def sprite_size(self) -> int:
        """Pixels that show the object at its largest without enlarging."""
        swing = self.diameter
        largest = swing.anchor - swing.amplitude * np.sin(swing.phase) + abs(swing.amplitude)
        return int(np.ceil(largest)) + 2 * SPRITE_MARGIN

    def bounds(self, times: np.ndarray, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Pixels (x1, y1, x2, y2), x2 and y2 exclusive, that may show it at any of `times`; None: outside the frame."""
        x, y, reach = self.x.at(times), self.y.at(times), self.diameter.at(times) / 2 + 1
        x1, y1 = max(0, int(np.floor((x - reach).min()))), max(0, int(np.floor((y - reach).min())))
        x2, y2 = min(width, int(np.ceil((x + reach).max()))), min(height, int(np.ceil((y + reach).max())))
        return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None

    def draw(self, picture: Image.Image, t: float, bounds: tuple[int, int, int, int]) -> Image.Image:
        """`picture` (its sprite or silhouette) as it lies at moment t, cut to `bounds` of the frame."""
        x1, y1, x2, y2 = bounds
        size = picture.width
        zoom = (size / 2 - SPRITE_MARGIN) / (float(self.diameter.at(t)) / 2)   # sprite pixels a frame pixel
        angle = self.angle + self.spin * t
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        left, top = x1 - float(self.x.at(t)), y1 - float(self.y.at(t))
        affine = (cos, sin, size / 2 + cos * left + sin * top, -sin, cos, size / 2 - sin * left + cos * top)
        return picture.transform((x2 - x1, y2 - y1), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Camera:
    """How the background lies: shift in pixels, angle in radians, zoom, each in time."""

    x: Swing
    y: Swing
    angle: Swing
    zoom: Swing

    def draw(self, background: Image.Image, t: float, height: int, width: int) -> Image.Image:
        """The part of `background` that the frame (height, width) shows at moment t."""
        zoom, angle = float(self.zoom.at(t)), float(self.angle.at(t))
        cos, sin = np.cos(angle) / zoom, np.sin(angle) / zoom
        x, y = background.width / 2 + float(self.x.at(t)), background.height / 2 + float(self.y.at(t))
        affine = (cos, sin, x - cos * width / 2 - sin * height / 2, -sin, cos, y + sin * width / 2 - cos * height / 2)
        return background.transform((width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Scene:
    """One clip before it is painted. Object k + 1 of the id maps is movers[k]; later ones lie above earlier ones."""

    config: ShapesConfig
    movers: tuple[Mover, ...]
    background: Image.Image
    camera: Camera


@dataclass(frozen=True)
class Coverage:
    """Who owns which pixel.

    ids (T, H, W) uint8   0 background, k + 1 the object movers[k], the uppermost one at each pixel
    inside (N, T) int64   pixels of each object that lie in the frame, hidden or not
    visible (N, T) int64  pixels of each object in `ids`
    """

    ids: np.ndarray
    inside: np.ndarray
    visible: np.ndarray


def cover(scene: Scene) -> Coverage:
    """Paint the silhouettes back to front: a pixel is an object's where it covers more than half of it."""
    config = scene.config
    ids = np.zeros((config.num_frames, config.height, config.width), dtype=np.uint8)     # (T, H, W)
    inside = np.zeros((len(scene.movers), config.num_frames), dtype=np.int64)            # (N, T)
    for k, mover in enumerate(scene.movers):
        form = silhouette(mover.category, mover.sprite_size)
        for t in range(config.num_frames):
            bounds = mover.bounds(np.array([t]), config.height, config.width)
            if bounds is None:
                continue
            x1, y1, x2, y2 = bounds
            covered = np.asarray(mover.draw(form, t, bounds)) > 127
            inside[k, t] = np.count_nonzero(covered)
            ids[t, y1:y2, x1:x2][covered] = k + 1
    counts = [np.bincount(frame.ravel(), minlength=len(scene.movers) + 1)[1:] for frame in ids]
    return Coverage(ids, inside, np.stack(counts, axis=-1))


def keeps_promises(scene: Scene, coverage: Coverage) -> bool:
    """Enough full occlusions and re-entries, and no object that is hidden most of its time."""
    config = scene.config
    areas = whole_areas(scene)
    shows = coverage.visible > 0.25 * areas
    present = np.maximum(1, (coverage.inside > 0.25 * areas).sum(axis=1))
    return bool(
        np.all(shows.sum(axis=1) >= config.min_visibility * present)
        and np.all(shows.sum(axis=1) >= 0.3 * config.num_frames)
        and fully_occluded(coverage, areas).sum() >= config.full_occlusions
        and re_entering(coverage).sum() >= config.re_entries
    )


def whole_areas(scene: Scene) -> np.ndarray:
    """Area (N, T) in pixels that each object would fill, were it alone and the frame without end."""
    times = np.arange(scene.config.num_frames)
    return np.stack([outline_area(mover.category) * (mover.diameter.at(times) / 2) ** 2 for mover in scene.movers])


def fully_occluded(coverage: Coverage, areas: np.ndarray) -> np.ndarray:
    """(N,) bool: wholly inside the frame yet unseen at some time, and seen before and after."""
    return _seen_around((coverage.visible == 0) & (coverage.inside > 0.95 * areas), coverage.visible > 0)


def re_entering(coverage: Coverage) -> np.ndarray:
    """(N,) bool: wholly outside the frame at some time, and seen before and after."""
    return _seen_around(coverage.inside == 0, coverage.visible > 0)


def _seen_around(event: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """event, seen (N, T) -> (N,): an event with a sight before it and one after it."""
    before = np.logical_or.accumulate(seen, axis=1)
    after = np.logical_or.accumulate(seen[:, ::-1], axis=1)[:, ::-1]
    return (event & before & after).any(axis=1)
