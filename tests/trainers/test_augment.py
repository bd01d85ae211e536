"""What is drawn and what it means, in numbers: sizes, colours, motion, blur, windows.

Source of what is expected: CrossVIS specification 1.6 and 3.8, TLTM 1.4, CiCo 1.6; hand-worked cases.
"""

from __future__ import annotations

import colorsys
import math
from collections import Counter

import numpy as np
import pytest

from trainers.augment import (
    Augment,
    Blur,
    JitterConfig,
    PhotometricConfig,
    ScaleConfig,
    Window,
    blur_kernel,
    colour,
    motion_about,
    move_boxes,
    one_after_other,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def applied(change, *rgb: float) -> np.ndarray:
    return np.reshape(change, (3, 4)) @ [*rgb, 1]


# ---------------------------------------------------------------------------------------------------------------- sizes


def test_short_sides_are_drawn_among_the_listed_alone():
    """COCO's: six short sides, one limit of the long one."""
    scale = ScaleConfig(short_sides=(640, 672, 704, 736, 768, 800), long_side=(1333, 1333))
    draws = rng()
    found = Counter(scale.draw(draws, 1)[0] for _ in range(3000))
    assert set(found) == {(side, 1333) for side in scale.short_sides}
    assert all(abs(count / 3000 - 1 / 6) < 5 * (5 / 36 / 3000) ** 0.5 for count in found.values())


@pytest.mark.parametrize("settings", [{"short_sides": (0,)}, {"short_sides": (640, 1 << 20)},
                                      {"long_side": (640, 1 << 20)}], ids=str)  # fmt: skip
def test_sides_out_of_range(settings):
    with pytest.raises(ValueError, match="up to|from 1 to"):
        ScaleConfig(**settings)


@pytest.mark.parametrize("window, size, expected", [
    pytest.param(Window(1.0, 0.9, 0.9), (36, 64), ((36, 64), (0, 0), (36, 64)), id="as it is: there is no room"),
    pytest.param(Window(0.5, 0.9, 0.9), (36, 64), ((18, 32), (0, 0), (18, 32)), id="shrunk: at the top left"),
    pytest.param(Window(1.5, 0.0, 0.0), (36, 64), ((54, 96), (0, 0), (36, 64)), id="enlarged: first place"),
    pytest.param(Window(1.5, 0.999999, 0.999999), (36, 64), ((54, 96), (18, 32), (36, 64)), id="last place"),
    pytest.param(Window(1.5, 0.5, 0.25), (36, 64), ((54, 96), (4, 16), (36, 64)), id="left and top are two draws"),
    pytest.param(Window(0.05, 0.5, 0.5), (3, 4), ((1, 1), (0, 0), (1, 1)), id="never less than a pixel"),
])  # fmt: skip
def test_windows(window, size, expected):
    assert window.place(size) == expected


# -------------------------------------------------------------------------------------------------------------- colours


def test_no_change_of_colour():
    np.testing.assert_allclose(np.reshape(colour(), (3, 4)), np.eye(3, 4), atol=1e-9)
    assert PhotometricConfig(brightness=0, saturation=0, hue=0).draw(rng()) is None


@pytest.mark.parametrize("change, expected", [
    pytest.param({"brightness": 12.5}, (112.5, 62.5, 32.5), id="brightness is added"),
    pytest.param({"contrast": 0.5}, (86, 11, -34), id="contrast is about 128"),
    pytest.param({"saturation": -1.0}, (61.53, 61.53, 61.53), id="without saturation: the grey of BT.601"),
    pytest.param({"saturation": 1.0}, (138.47, 38.47, -21.53), id="twice as far from grey"),
    pytest.param({"hue": 360.0}, (100, 50, 20), id="once round"),
])  # fmt: skip
def test_changes_of_colour_by_hand(change, expected):
    """Of (100, 50, 20), whose grey is 0.299 * 100 + 0.587 * 50 + 0.114 * 20 = 61.53."""
    np.testing.assert_allclose(applied(colour(**change), 100, 50, 20), expected, atol=1e-2)


def test_hue_turns_round_the_grey_axis():
    grey = applied(colour(hue=77.0), 90, 90, 90)
    np.testing.assert_allclose(grey, 90, atol=1e-3)
    y, i, q = colorsys.rgb_to_yiq(0.8, 0.3, 0.2)
    turned = applied(colour(hue=90.0), 0.8, 0.3, 0.2)           # I goes to Q, Q to -I; colorsys rounds its matrix
    np.testing.assert_allclose(turned, _from_yiq(y, -q, i), atol=5e-3)


def _from_yiq(y: float, i: float, q: float) -> np.ndarray:
    return np.array([y + 0.9563 * i + 0.6210 * q, y - 0.2721 * i - 0.6474 * q, y - 1.1070 * i + 1.7046 * q])


def test_changes_of_colour_one_after_the_other():
    first, second = colour(brightness=10, hue=20), colour(contrast=0.3, saturation=-0.4)
    expected = applied(second, *applied(first, 90, 60, 200))
    np.testing.assert_allclose(applied(one_after_other(first, second), 90, 60, 200), expected)
    assert one_after_other(None, second) == second and one_after_other(first, None) == first


def test_one_or_both_kinds_of_colour_change_as_often_as_the_release_picks_them():
    """Brightness alone 1/4, hue and saturation alone 1/4, both 1/2."""
    draws, kinds = rng(), Counter()
    for _ in range(2000):
        change = np.reshape(PhotometricConfig().draw(draws), (3, 4))
        brighter, turned = abs(change[:, 3]).max() > 1e-9, abs(change[:, :3] - np.eye(3)).max() > 1e-9
        assert abs(change[:, 3]).max() <= 20
        kinds[brighter, turned] += 1
    assert kinds[False, False] == 0
    for kind, share in {(True, False): 0.25, (False, True): 0.25, (True, True): 0.5}.items():
        assert abs(kinds[kind] / 2000 - share) < 5 * (share * (1 - share) / 2000) ** 0.5, kinds


@pytest.mark.parametrize("settings", [{"brightness": -1.0}, {"contrast": 1.0}, {"saturation": 1.5}, {"hue": 181.0}],
                         ids=str)  # fmt: skip
def test_colours_out_of_range(settings):
    with pytest.raises(ValueError, match="expected"):
        PhotometricConfig(**settings)


# --------------------------------------------------------------------------------------------------------------- motion


@pytest.mark.parametrize("degrees, scale, shift, point, expected", [
    pytest.param(0, 1, (0, 0), (7, 9), (7, 9), id="none"),
    pytest.param(0, 1, (3, -2), (7, 9), (10, 7), id="shifted"),
    pytest.param(90, 1, (0, 0), (60, 50), (50, 60), id="right goes down"),
    pytest.param(180, 1, (0, 0), (60, 50), (40, 50), id="half round"),
    pytest.param(0, 2, (0, 0), (60, 45), (70, 40), id="scaled about the centre"),
    pytest.param(90, 2, (1, 1), (60, 50), (51, 71), id="all: shifted last"),
])  # fmt: skip
def test_points_go_where_they_should(degrees, scale, shift, point, expected):
    a, b, c, d, e, f = motion_about((50, 50), degrees, scale, shift)
    x, y = point
    assert (a * x + b * y + c, d * x + e * y + f) == pytest.approx(expected)


@pytest.mark.parametrize("box, centre, degrees, shift, expected", [
    pytest.param((10, 20, 30, 40), (50, 25), 0, (5, 5), (15, 25, 35, 45), id="shifted"),
    pytest.param((10, 20, 30, 40), (50, 25), 0, (-20, 0), (0, 20, 10, 40), id="clipped to the frame"),
    pytest.param((10, 20, 30, 40), (50, 25), 0, (-40, 0), (0, 20, 0, 40), id="outside: no width is left"),
    pytest.param((60, 20, 70, 30), (75, 25), 90, (0, 0), (70, 10, 80, 20), id="from the left of the centre to above"),
    pytest.param((45, 20, 55, 30), (50, 25), 45, (0, 0),
                 (50 - 50**0.5, 25 - 50**0.5, 50 + 50**0.5, 25 + 50**0.5), id="the hull of a square on its corner"),
])  # fmt: skip
def test_moved_boxes(box, centre, degrees, shift, expected):
    """In a frame of 100 x 50."""
    moved = move_boxes(np.array([box], np.float32), motion_about(centre, degrees, 1, shift), 100, 50)
    np.testing.assert_allclose(moved[0], expected, atol=1e-4)


def test_no_box_moves_to_none():
    assert move_boxes(np.zeros((0, 4), np.float32), motion_about((5, 5), 9, 1, (0, 0)), 10, 10).shape == (0, 4)


# ----------------------------------------------------------------------------------------------------------------- blur


@pytest.mark.parametrize("size", [1, 3, 7, 9])
@pytest.mark.parametrize("angle, direction", [(0, 0), (33, 0.4), (90, -1), (201, 1)])
def test_kernels_keep_the_brightness(size, angle, direction):
    kernel = blur_kernel(Blur(size, angle, direction))
    assert kernel.shape == (size, size) and kernel.dtype == np.float32
    assert kernel.min() >= 0 and kernel.sum() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("angle, line", [
    pytest.param(0, (lambda x, y: y == 0), id="along a row"),
    pytest.param(90, (lambda x, y: x == 0), id="along a column"),
    pytest.param(45, (lambda x, y: x == y), id="from top left to bottom right"),
    pytest.param(135, (lambda x, y: x == -y), id="from top right to bottom left"),
])  # fmt: skip
def test_a_kernel_lies_along_its_angle(angle, line):
    kernel = blur_kernel(Blur(9, angle, 0.0))
    on = sum(kernel[y + 4, x + 4] for x in range(-4, 5) for y in range(-4, 5) if line(x, y))
    near = sum(kernel[y + 4, x + 4] for x in range(-4, 5) for y in range(-4, 5)
               if any(line(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)))  # fmt: skip
    assert near == pytest.approx(1, abs=1e-6)
    assert on > (0.99 if angle % 90 == 0 else 0.6)


def test_direction_says_which_end_weighs_more():
    even, right = blur_kernel(Blur(7, 0, 0.0))[3], blur_kernel(Blur(7, 0, 1.0))[3]
    np.testing.assert_allclose(even, even[::-1], atol=1e-6)
    assert (np.diff(right[:6]) > 0).all() and right[6] > right[1]
    left, place = blur_kernel(Blur(7, 0, -1.0))[3], np.arange(7)
    np.testing.assert_allclose(left, right[::-1], atol=1e-6)
    assert right @ place > 3.5 > 2.5 > left @ place


# ---------------------------------------------------------------------------------------------------------------- looks


def test_all_frames_of_a_sample_look_alike():
    augment = Augment(flip=0.5, scale=ScaleConfig(), photometric=PhotometricConfig(contrast=0.2),
                      jitter=JitterConfig(probability=0.8))  # fmt: skip
    draws = rng()
    looks = [augment.draw(draws, 4) for _ in range(50)]
    for look in looks:
        assert len(look.flips) == len(look.scales) == len(look.changes) == 4
        assert len(set(look.flips)) == len(set(look.scales)) == len(set(look.changes)) == 1
    assert len({look.changes for look in looks}) == 50 and {look.flips[0] for look in looks} == {False, True}


def test_nothing_asked_for_is_nothing_done():
    look = Augment(flip=0.0).draw(rng(), 2)
    assert look.flips == (False, False) and look.scales is None and look.changes is None


def test_later_settings_leave_earlier_draws_as_they_were():
    """A run that began before there were colours goes on with the same pairs when they are off, and the same sizes when
    they are on."""
    plain = Augment(flip=0.5, scale=ScaleConfig()).draw(rng(7), 3)
    more = Augment(flip=0.5, scale=ScaleConfig(), photometric=PhotometricConfig()).draw(rng(7), 3)
    assert (plain.flips, plain.scales) == (more.flips, more.scales) and plain.changes is None


def test_jitter_comes_as_often_as_asked_and_evenly():
    draws, jitter = rng(), JitterConfig()
    windows = [jitter.draw(draws) for _ in range(2000)]
    drawn = [window for window in windows if window is not None]
    assert abs(len(drawn) / 2000 - 0.5) < 0.06
    factors = np.array([window.factor for window in drawn])
    assert 0.5 <= factors.min() < 0.51 and 1.49 < factors.max() <= 1.5
    assert math.isclose(factors.mean(), 1.0, abs_tol=0.05)


@pytest.mark.parametrize("settings", [{"probability": 1.5}, {"factor": (1.5, 0.5)}, {"factor": (0.0, 1.0)}], ids=str)
def test_jitter_out_of_range(settings):
    with pytest.raises(ValueError, match="expected"):
        JitterConfig(**settings)
