"""The generated dataset: what colour every pixel of a scene has.

In:     `Scene` and a random generator (noise alone draws from it)
Out:    frames (H, W, 3) uint8 RGB, one after the other
State:  none
Limits: motion blur averages up to MAX_MOMENTS moments of an object; faster motion shows them as steps

An object's blur is the mean of its premultiplied sprite over the exposure, laid over what is behind it as a whole: far
cheaper than painting the whole scene at every moment, and the same wherever no two moving edges meet.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from PIL import Image

from operators.shapes_forms import silhouette, sprite
from operators.shapes_scene import Mover, Scene

MAX_MOMENTS = 8
"""Moments of one exposure that are averaged; they lie two pixels apart, so a way of 16 pixels is smooth."""


def paint(scene: Scene, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """The frames (H, W, 3) uint8 of a scene, in order, with motion blur and noise."""
    config = scene.config
    height, width = config.height, config.width
    sprites = [sprite(silhouette(mover.category, mover.sprite_size), mover.look) for mover in scene.movers]
    # drawing noise anew for each frame took longer than all the rest: one sheet is cut at random places and mirrored
    grain = np.round(rng.normal(0, config.noise, (height + 64, width + 64, 3))).astype(np.int16)
    for t in range(config.num_frames):
        frame = _paint_background(scene, t)
        for mover, picture in zip(scene.movers, sprites, strict=True):
            _paint_object(frame, mover, picture, t, config.motion_blur)
        top, left = rng.integers(64, size=2)
        sheet = grain[top : top + height, left : left + width][:: rng.choice([-1, 1]), :: rng.choice([-1, 1])]
        yield np.clip(np.asarray(frame) + sheet, 0, 255).astype(np.uint8)


def _paint_background(scene: Scene, t: int) -> Image.Image:
    """One moment of the exposure, or the mean of two where the camera moves over a pixel meanwhile."""
    camera, config = scene.camera, scene.config
    quarter = config.motion_blur / 4
    ends = np.array([t - 2 * quarter, t + 2 * quarter])
    if np.hypot(np.ptp(camera.x.at(ends)), np.ptp(camera.y.at(ends))) < 1.0:
        return camera.draw(scene.background, t, config.height, config.width)
    early, late = (camera.draw(scene.background, t + d, config.height, config.width) for d in (-quarter, quarter))
    return Image.blend(early, late, 0.5)


def _paint_object(frame: Image.Image, mover: Mover, picture: Image.Image, t: int, shutter: float) -> None:
    """Paste the mean of the sprite over the exposure, which t halves: the mask shows it at the middle of its blur."""
    ends = np.array([t - shutter / 2, t + shutter / 2])
    bounds = mover.bounds(np.append(ends, t), frame.height, frame.width)
    if bounds is None:
        return
    way = np.hypot(np.ptp(mover.x.at(ends)), np.ptp(mover.y.at(ends)))
    way += abs(mover.spin) * shutter * float(mover.diameter.at(t)) / 2   # what the rim moves as the object turns
    num_moments = int(np.clip(np.ceil(way / 2), 1, MAX_MOMENTS))
    moments = t + shutter * ((np.arange(num_moments) + 0.5) / num_moments - 0.5)
    if num_moments == 1:
        patch = mover.draw(picture, t, bounds)
    else:
        total = sum(np.asarray(mover.draw(picture, moment, bounds), dtype=np.uint16) for moment in moments)
        mean = ((total + num_moments // 2) // num_moments).astype(np.uint8)
        patch = Image.frombuffer("RGBa", (mean.shape[1], mean.shape[0]), mean.tobytes(), "raw", "RGBa", 0, 1)
    patch = patch.convert("RGBA")
    frame.paste(patch, bounds[:2], patch)
