"""Colours lie where the masks say, blur and noise change pixels and never masks."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from operators.shapes_config import PRESETS
from operators.shapes_paint import paint
from operators.shapes_plan import draw_scene

CLEAN = replace(PRESETS["easy"], width=160, height=120, num_frames=6, motion_blur=0.0, noise=0.0)


def test_masks_lie_where_the_objects_are_painted():
    """Without blur and noise, a scene differs from its empty background exactly at the masks, edges aside."""
    scene, coverage = draw_scene(CLEAN, np.random.default_rng(4))
    painted = np.stack(list(paint(scene, np.random.default_rng(0)))).astype(int)
    empty = np.stack(list(paint(replace(scene, movers=()), np.random.default_rng(0)))).astype(int)
    changed = np.abs(painted - empty).max(axis=-1) > 0
    seen = coverage.ids > 0
    assert (seen & ~changed).sum() < 0.01 * seen.sum()        # a colour may equal the background at single pixels
    reach = range(-2, 3)
    grown = np.any([np.roll(seen, (dy, dx), axis=(1, 2)) for dy in reach for dx in reach], axis=0)
    assert not (changed & ~grown).any()                       # the soft edge is two pixels wide at most


@pytest.mark.parametrize("motion", [
    pytest.param({"speed": 0.03, "rotation": 0.0}, id="moving"),
    pytest.param({"speed": 0.0, "rotation": 20.0, "camera_motion": 0.0}, id="turning on the spot"),
    pytest.param({"min_objects": 1, "max_objects": 1, "min_classes": 1, "speed": 0.0, "rotation": 0.0,
                  "camera_motion": 0.3}, id="camera moving"),
])  # fmt: skip
def test_masks_are_those_of_the_middle_of_the_exposure(motion):
    """Blur changes pixels, never masks, and spreads evenly to both sides of the mask."""
    fast = replace(CLEAN, **motion)
    sharp = draw_scene(fast, np.random.default_rng(4))
    blurred = draw_scene(replace(fast, motion_blur=1.0), np.random.default_rng(4))
    np.testing.assert_array_equal(sharp[1].ids, blurred[1].ids)
    frames = [np.stack(list(paint(scene, np.random.default_rng(0)))).astype(int) for scene, _ in (sharp, blurred)]
    assert not np.array_equal(*frames)
    assert np.abs(frames[0].mean(axis=(1, 2)) - frames[1].mean(axis=(1, 2))).max() < 1


def test_noise_is_as_strong_as_it_says():
    scene, _ = draw_scene(replace(CLEAN, noise=5.0), np.random.default_rng(4))
    noisy = np.stack(list(paint(scene, np.random.default_rng(0)))).astype(int)
    clean = np.stack(list(paint(replace(scene, config=CLEAN), np.random.default_rng(0)))).astype(int)
    assert (noisy - clean).std() == pytest.approx(5.0, rel=0.1)
    assert not np.array_equal((noisy - clean)[0], (noisy - clean)[1])
