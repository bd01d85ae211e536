"""Settings that cannot be met are refused with their name; the presets keep what the README says of them."""

from __future__ import annotations

import pytest

from operators.errors import ConfigError
from operators.shapes_config import BOUNDS, PRESETS, ShapesConfig


@pytest.mark.parametrize("settings, message", [
    pytest.param({"width": 32}, "width: 32 came, expected 64 to 4096", id="too narrow"),
    pytest.param({"speed": -0.1}, "speed: -0.1 came", id="negative speed"),
    pytest.param({"noise": float("nan")}, "noise: nan came", id="not a number"),
    pytest.param({"min_objects": 9}, "9 to 8 objects", id="fewest above most"),
    pytest.param({"min_size": 0.5}, "size 0.5 to 0.46", id="smallest above largest"),
    pytest.param({"min_objects": 5}, "5 came; 5 classes and 1 twins need 6", id="too few for the classes"),
    pytest.param({"full_occlusions": 3}, "twins need 8", id="too few for the occlusions"),
    pytest.param({"full_occlusions": 2, "re_entries": 2}, "twins need 7", id="too few for all parts"),
    pytest.param({"num_frames": 23}, "at least 24 frames", id="too short to come back"),
])  # fmt: skip
def test_impossible_settings(settings, message):
    with pytest.raises(ConfigError, match=message):
        ShapesConfig(**settings)


def test_medium_is_what_it_is_called():
    medium = PRESETS["medium"]
    assert 4 <= medium.min_objects <= medium.max_objects <= 8 and medium.min_classes >= 5
    assert medium.num_frames >= 30 and medium.num_twins >= 1
    assert min(medium.full_occlusions, medium.re_entries, medium.camera_motion, medium.motion_blur) > 0


@pytest.mark.parametrize("name", ["num_twins", "speed", "full_occlusions", "camera_motion", "motion_blur", "noise"])
def test_presets_rise_in_difficulty(name):
    easy, medium, hard = (getattr(PRESETS[preset], name) for preset in ("easy", "medium", "hard"))
    assert easy < medium < hard


def test_every_setting_is_bounded():
    assert {name for name, _, _ in BOUNDS} == set(ShapesConfig.__dataclass_fields__)
