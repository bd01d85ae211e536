"""Every scene of a preset holds what the preset promises, seen in the pixels of its id maps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from operators.errors import ConfigError
from operators.shapes_config import PRESETS, ShapesConfig
from operators.shapes_plan import draw_scene
from operators.shapes_scene import Mover, Scene, cover, keeps_promises


def alone(scene: Scene, k: int) -> np.ndarray:
    """Pixels of movers[k] in each frame (T,), had it the frame for itself."""
    return cover(Scene(scene.config, scene.movers[k : k + 1], scene.background, scene.camera)).visible[0]


def seen_before_and_after(visible: np.ndarray, t: int) -> bool:
    return bool(visible[:t].any() and visible[t + 1 :].any())


@pytest.mark.parametrize("seed", range(6))
def test_medium_promises(seed):
    config = PRESETS["medium"]
    scene, coverage = draw_scene(config, np.random.default_rng(seed))
    num = len(scene.movers)
    visible = np.stack([(coverage.ids == k + 1).sum(axis=(1, 2)) for k in range(num)])
    whole = np.stack([alone(scene, k) for k in range(num)])
    gone = [(k, t) for k, t in np.argwhere(visible == 0) if seen_before_and_after(visible[k], t)]
    assert 4 <= num <= 8 and len(coverage.ids) >= 30
    assert len({mover.category for mover in scene.movers}) >= 5
    assert any(whole[k, t] > 0.9 * np.median(whole[k]) / 2 for k, t in gone), "nothing is hidden inside the frame"
    assert any(whole[k, t] == 0 for k, t in gone), "nothing leaves and comes back"
    assert np.all((visible > 0).mean(axis=1) > 0.3), "an object is hardly ever seen"


@pytest.mark.parametrize("preset", ["medium", "hard"])
def test_twins_look_alike(preset):
    config = PRESETS[preset]
    scene, _ = draw_scene(config, np.random.default_rng(5))
    by_look: dict = {}
    for mover in scene.movers:
        by_look.setdefault(mover.look, []).append(mover)
    pairs = [movers for movers in by_look.values() if len(movers) > 1]
    assert len(pairs) == config.num_twins
    for first, second in pairs:
        assert first.category == second.category
        assert first.diameter.anchor == pytest.approx(second.diameter.anchor, rel=0.06)


@pytest.mark.parametrize("preset", PRESETS)
def test_presets_need_few_draws_and_move_as_fast_as_they_say(preset):
    config = PRESETS[preset]
    times = np.arange(config.num_frames)
    for seed in range(3):
        scene, coverage = draw_scene(config, np.random.default_rng([9, seed]))
        assert config.min_objects <= len(scene.movers) <= config.max_objects
        assert keeps_promises(scene, coverage)
        steps = [np.hypot(np.diff(mover.x.at(times)), np.diff(mover.y.at(times))) for mover in scene.movers]
        assert 0.3 * config.speed < np.median(np.max(steps, axis=1)) / config.width < 2 * config.speed


def far_end(mover: Mover, width: int) -> float:
    return float(np.max(np.abs(mover.x.at(np.arange(2000)) - width / 2)))


def test_wanderers_stay_inside_for_ever():
    config = replace(PRESETS["easy"], camera_motion=0.0)
    for seed in range(10):
        scene, _ = draw_scene(config, np.random.default_rng([2, seed]))
        assert all(far_end(mover, config.width) < config.width / 2 for mover in scene.movers)


@pytest.mark.parametrize("settings", [
    pytest.param({"num_frames": 1}, id="a single frame"),
    pytest.param({"width": 64, "height": 64}, id="smallest frame"),
    pytest.param({"width": 90, "height": 200}, id="portrait"),
    pytest.param({"speed": 0.0, "rotation": 0.0, "scaling": 0.0, "camera_motion": 0.0}, id="nothing moves"),
    pytest.param({"min_objects": 1, "max_objects": 1, "min_classes": 1}, id="one object"),
    pytest.param({"num_twins": 1, "min_objects": 3, "min_size": 0.1, "max_size": 0.1}, id="equal sizes"),
])  # fmt: skip
def test_unusual_settings(settings):
    config = replace(PRESETS["easy"], **{"num_frames": 8, **settings})
    scene, coverage = draw_scene(config, np.random.default_rng(0))
    assert coverage.ids.shape == (config.num_frames, config.height, config.width)
    assert set(np.unique(coverage.ids)) <= set(range(len(scene.movers) + 1)) and coverage.ids.any()


def test_three_occlusions_of_two_covering_classes():
    config = ShapesConfig(min_objects=9, max_objects=9, full_occlusions=3, re_entries=0, min_visibility=0.4)
    scene, coverage = draw_scene(config, np.random.default_rng(1))
    assert keeps_promises(scene, coverage) and len({mover.category for mover in scene.movers}) >= 5


def test_what_cannot_be_met_is_said(monkeypatch):
    monkeypatch.setattr("operators.shapes_plan.MAX_DRAWS", 3)
    crowd = ShapesConfig(
        width=64, height=64, min_objects=30, max_objects=30, min_size=0.7, max_size=0.8, num_frames=24,
        full_occlusions=0, re_entries=0, min_visibility=1.0,
    )  # fmt: skip
    with pytest.raises(ConfigError, match="3 random scenes of 30 to 30 objects"):
        draw_scene(crowd, np.random.default_rng(0))
