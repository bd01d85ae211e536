"""Who owns which pixel, by hand: places, sizes, order of depth, and the telling of what was hidden or away."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from operators.shapes_config import ShapesConfig
from operators.shapes_forms import Look
from operators.shapes_scene import (
    Camera,
    Coverage,
    Mover,
    Scene,
    Swing,
    cover,
    fully_occluded,
    keeps_promises,
    re_entering,
    whole_areas,
)

LOOK = Look("stripes", ((255, 0, 0), (0, 0, 255)), 2.0, 0.0, 0)
STILL = Camera(Swing(0), Swing(0), Swing(0), Swing(1))
FREE = {"min_objects": 1, "min_classes": 1, "num_twins": 0, "full_occlusions": 0, "re_entries": 0}


def mover(category: str, x: float, y: float, diameter: float, way: float = 0.0) -> Mover:
    """Upright, at (x, y) in frame 0, going `way` pixels to the right in each frame: a piece of a very wide swing."""
    return Mover(category, LOOK, Swing(x, 1e6 * way, 1e-6), Swing(y), Swing(diameter), angle=0.0, spin=0.0)


def scene(*movers: Mover, num_frames: int = 1, **settings) -> Scene:
    config = ShapesConfig(width=100, height=80, num_frames=num_frames, **{**FREE, **settings})
    return Scene(config, movers, Image.new("RGB", (200, 200)), STILL)


def extent(ids: np.ndarray, value: int) -> tuple[int, int, int, int]:
    rows, columns = np.nonzero(ids == value)
    return columns.min(), rows.min(), columns.max() + 1, rows.max() + 1


@pytest.mark.parametrize("category, x, y, diameter, expected", [
    pytest.param("circle", 50, 40, 20, (40, 30, 60, 50), id="circle on a pixel corner"),
    pytest.param("circle", 50.5, 40.5, 21, (40, 30, 61, 51), id="circle on a pixel centre"),
    pytest.param("circle", 0, 0, 20, (0, 0, 10, 10), id="circle cut by two edges"),
    pytest.param("circle", 100, 40, 20, (90, 30, 100, 50), id="half a circle"),
    pytest.param("square", 50, 40, 40, (30, 20, 70, 60), id="square, standing on a corner"),
])  # fmt: skip
def test_place_and_size(category, x, y, diameter, expected):
    ids = cover(scene(mover(category, x, y, diameter))).ids[0]
    found = extent(ids, 1)
    tolerance = 1 if category == "square" else 0   # the pixel at a corner's tip is covered by half, or less
    assert max(abs(a - b) for a, b in zip(found, expected, strict=True)) <= tolerance


def test_no_object():
    coverage = cover(scene(mover("circle", -60, 40, 20)))
    assert not coverage.ids.any() and not coverage.inside.any() and not coverage.visible.any()


@pytest.mark.parametrize("category", ["circle", "square", "triangle", "star", "cross", "crescent", "arrow"])
def test_turned_forms_keep_their_area(category):
    spun = Mover(category, LOOK, Swing(50), Swing(40), Swing(60, 6.0, 0.3), angle=0.3, spin=0.2)
    drawn = scene(spun, num_frames=12)
    coverage = cover(drawn)
    np.testing.assert_allclose(coverage.visible, whole_areas(drawn), rtol=0.02)
    np.testing.assert_array_equal(coverage.visible, coverage.inside)


def test_turning_turns_clockwise_as_the_arrow_points():
    """The arrow's outline points along +x; a quarter turn brings its tip to +y, which is down."""
    arrow = Mover("arrow", LOOK, Swing(50), Swing(40), Swing(40), angle=0.0, spin=np.pi / 2)
    ids = cover(scene(arrow, num_frames=2)).ids
    assert ids[0, 40, 68] == 1 and ids[0, 58, 50] == 0   # tip at the right
    assert ids[1, 58, 50] == 1 and ids[1, 40, 68] == 0   # tip below


def test_later_objects_lie_above():
    coverage = cover(scene(mover("circle", 50, 40, 40), mover("circle", 60, 40, 20)))
    assert coverage.ids[0, 40, 60] == 2 and coverage.ids[0, 40, 40] == 1
    assert coverage.visible[1, 0] == coverage.inside[1, 0]
    assert coverage.visible[0, 0] == coverage.inside[0, 0] - coverage.inside[1, 0]   # the small one lies within


def test_a_large_form_hides_a_small_one_for_a_while():
    drawn = scene(mover("star", 10, 40, 20, way=8), mover("circle", 50, 40, 40), num_frames=11, full_occlusions=0)
    coverage = cover(drawn)
    assert np.flatnonzero(coverage.visible[0] == 0).tolist() == [4, 5, 6]   # within 10 pixels of the circle's centre
    assert fully_occluded(coverage, whole_areas(drawn)).tolist() == [True, False]
    assert not re_entering(coverage).any()


@pytest.mark.parametrize("inside, visible, occluded, re_enters", [
    pytest.param([9, 9, 9], [9, 9, 9], False, False, id="always seen"),
    pytest.param([9, 9, 9], [9, 0, 9], True, False, id="hidden between"),
    pytest.param([9, 9, 9], [0, 0, 9], False, False, id="hidden from the start"),
    pytest.param([9, 9, 9], [9, 0, 0], False, False, id="hidden to the end"),
    pytest.param([9, 5, 9], [9, 0, 9], False, False, id="hidden at the edge of the frame"),
    pytest.param([9, 0, 9], [9, 0, 9], False, True, id="away between"),
    pytest.param([9, 0, 0], [9, 0, 0], False, False, id="leaves for good"),
    pytest.param([0, 0, 9], [0, 0, 9], False, False, id="comes late"),
    pytest.param([9, 0, 9], [9, 0, 0], False, False, id="comes back hidden"),
])  # fmt: skip
def test_what_counts_as_hidden_and_as_away(inside, visible, occluded, re_enters):
    coverage = Coverage(np.zeros((3, 1, 1), np.uint8), np.array([inside]), np.array([visible]))
    assert fully_occluded(coverage, np.full((1, 3), 9.0)).tolist() == [occluded]
    assert re_entering(coverage).tolist() == [re_enters]


@pytest.mark.parametrize("settings, kept", [
    pytest.param({}, True, id="nothing promised"),
    pytest.param({"full_occlusions": 1, "min_objects": 2, "max_objects": 2}, True, id="one occlusion"),
    pytest.param({"full_occlusions": 2, "min_objects": 4, "max_objects": 4}, False, id="two occlusions"),
    pytest.param({"re_entries": 1}, False, id="a re-entry"),
    pytest.param({"min_visibility": 0.95}, False, id="nearly always visible"),
])  # fmt: skip
def test_promises(settings, kept):
    drawn = scene(mover("star", 10, 40, 20, way=2), mover("circle", 50, 40, 32), num_frames=41, **settings)
    assert keeps_promises(drawn, cover(drawn)) is kept


def test_an_object_unseen_for_most_of_the_clip_breaks_the_promise():
    drawn = scene(mover("circle", 115, 40, 20, way=-0.5), num_frames=30)
    assert not keeps_promises(drawn, cover(drawn))


def test_camera_shows_the_middle_and_moves():
    y, x = np.mgrid[:200, :200]
    background = Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8))
    still = np.asarray(STILL.draw(background, 0, 80, 100))
    np.testing.assert_array_equal(still[..., :2], np.asarray(background)[60:140, 50:150, :2])
    moved = Camera(Swing(10), Swing(-5), Swing(0), Swing(1))
    np.testing.assert_array_equal(np.asarray(moved.draw(background, 0, 80, 100))[0, 0, :2], [60, 55])
    zoomed = np.asarray(Camera(Swing(0), Swing(0), Swing(0), Swing(2)).draw(background, 0, 80, 100))
    assert np.ptp(zoomed[..., 0]) == pytest.approx(50, abs=1)


def test_swing():
    swing = Swing(anchor=5.0, amplitude=2.0, omega=0.1, phase=np.pi / 2, middle=3.0)
    assert swing.at(3) == 5.0
    assert swing.at(3 + 10 * np.pi) == pytest.approx(1.0)   # the other end, half a period later
    assert Swing(4.0).at(np.arange(3)).tolist() == [4.0, 4.0, 4.0]
