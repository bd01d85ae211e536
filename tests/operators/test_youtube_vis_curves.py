"""Curves by hand: what is right, wrong or ignored, and what becomes of precision and recall."""

from __future__ import annotations

import numpy as np
import pytest

from operators.youtube_vis_curves import METRICS, curves_of
from operators.youtube_vis_match import CategoryMatch


def video(outcomes: str, scores: list[float], num_objects: int, area: float = 100.0) -> CategoryMatch:
    """One video: + right, - wrong, o matched with an object that does not count, at every threshold and class."""
    shape = (4, 10, len(outcomes))
    return CategoryMatch(
        1, np.array(scores, dtype=float), np.full(len(outcomes), area), np.array([num_objects, num_objects, 0, 0]),
        np.broadcast_to([sign in "+o" for sign in outcomes], shape),
        np.broadcast_to([sign == "o" for sign in outcomes], shape),
    )  # fmt: skip


@pytest.mark.parametrize("videos, ap, ar1", [
    pytest.param([video("", [], 2)], 0, 0, id="no detection"),
    pytest.param([video("+", [0.9], 1)], 1, 1, id="one of one"),
    pytest.param([video("-", [0.9], 1)], 0, 0, id="none of one"),
    pytest.param([video("+", [0.9], 2)], 51 / 101, 0.5, id="one of two: 51 recalls up to 0.5"),
    pytest.param([video("-+", [0.9, 0.8], 1)], 0.5, 0, id="wrong, then right"),
    pytest.param([video("o+", [0.9, 0.8], 1)], 1, 0, id="ignored, then right"),
    pytest.param([video("+-+", [0.9, 0.8, 0.7], 2)], (51 + 50 * 2 / 3) / 101, 0.5, id="right, wrong, right"),
    pytest.param([video("-", [0.5], 0), video("+", [0.5], 1)], 0.5, 1, id="equal scores: the first video first"),
    pytest.param([video("+", [0.5], 1), video("-", [0.5], 0)], 1, 1, id="equal scores, the other way round"),
])  # fmt: skip
def test_by_hand(videos, ap, ar1):
    scores = curves_of(videos, 4).metrics()
    assert (scores["AP"], scores["AP75"], scores["APs"]) == pytest.approx((ap, ap, ap), abs=1e-12)
    assert (scores["AR1"], scores["APm"], scores["ARl"]) == pytest.approx((ar1, -1, -1))


def test_no_video():
    assert curves_of([], 4).metrics() == dict.fromkeys(METRICS, -1.0)
    assert list(curves_of([], 7).level_metrics()) == ["light", "medium", "heavy"]


def test_a_wrong_detection_counts_in_the_class_of_its_area_alone():
    large, right = video("-", [0.9], 0, area=70_000), video("+", [0.5], 1)
    scores = curves_of([large, right], 4).metrics()
    assert (scores["AP"], scores["APs"]) == pytest.approx((0.5, 1))


def test_recall_counts_the_best_of_each_video():
    two = [video("-" * 9 + "++", [1 - 0.01 * k for k in range(11)], 2), video("+", [0.1], 1)]
    scores = curves_of(two, 4).metrics()
    assert (scores["AR1"], scores["AR10"], scores["AR100"]) == pytest.approx((1 / 3, 2 / 3, 1))
