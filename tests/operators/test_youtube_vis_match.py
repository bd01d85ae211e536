"""Matching, one choice at a time; and the level of occlusion of a track."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.youtube_vis_match import IOU_THRESHOLDS, match, occlusion_level, outside

N, S, V = "no_occlusion", "slight_occlusion", "severe_occlusion"


@pytest.mark.parametrize("labels, level", [
    pytest.param(None, None, id="no labels"),
    pytest.param([], None, id="no frame"),
    pytest.param([None, None], None, id="no frame with a label"),
    pytest.param([N], 0, id="one frame, free"),
    pytest.param([V], 0.75, id="one frame, severe"),
    pytest.param([N, V], 0.75, id="the more occluded one of two"),
    pytest.param([N, None, V, None], 0.75, id="frames without a label do not count"),
    pytest.param([N, S, V], 0.5, id="two of three: 0.75 and 0.25"),
    pytest.param([S, N, N, N], 0.125, id="two of four: 0.25 and 0"),
    pytest.param([V, V, N, N, N], 0.5, id="three of five: 0.75, 0.75 and 0"),
])  # fmt: skip
def test_occlusion_level(labels, level):
    assert occlusion_level(labels) == level


def naive(ious: list[list[float]], ignored: list[bool], crowd: list[bool], threshold: float) -> list[int]:
    taken: set[int] = set()
    partners = []
    for row in ious:
        fits = [g for g, iou in enumerate(row) if iou >= min(threshold, 1 - 1e-10) and (g not in taken or crowd[g])]
        fits = [g for g in fits if not ignored[g]] or fits
        best = max(fits, key=lambda g: (row[g], g), default=-1)
        partners.append(best)
        taken.add(best)
    return partners


IOUS = st.sampled_from([0.0, 0.3, 0.5, 0.55, 0.75, 0.8, 0.95, 1.0])


@given(st.integers(0, 6), st.integers(1, 4), st.booleans(), st.data())
@settings(max_examples=300, deadline=None)
def test_match_equals_one_choice_at_a_time(num_detections, num_objects, apart, data):
    row = st.lists(IOUS, min_size=num_objects, max_size=num_objects)
    ious = data.draw(st.lists(row, min_size=num_detections, max_size=num_detections))
    if apart:           # no detection has a choice: another way through the code
        ious = [[iou if g == int(np.argmax(row)) else min(iou, 0.3) for g, iou in enumerate(row)] for row in ious]
    flags = st.lists(st.booleans(), min_size=num_objects, max_size=num_objects)
    crowd, other = data.draw(flags), data.draw(flags)
    ignored = [crowd, [a or b for a, b in zip(crowd, other, strict=True)]]
    found = match(np.array(ious).reshape(-1, num_objects), np.array(ignored), np.array(crowd))
    assert found.shape == (2, len(IOU_THRESHOLDS), num_detections)
    for a, i in np.ndindex(2, len(IOU_THRESHOLDS)):
        assert found[a, i].tolist() == naive(ious, ignored[a], crowd, IOU_THRESHOLDS[i])


@pytest.mark.parametrize("area, classes", [
    (0, "as"), (16383.9, "as"), (16384, "asm"), (16384.1, "am"), (65536, "aml"), (65536.1, "al"), (1e10, "al"),
    (1.1e10, ""),
])  # fmt: skip
def test_area_classes_share_their_bounds(area, classes):
    assert [name for name, out in zip("asml", outside(np.array([area]))[:, 0], strict=True) if not out] == list(classes)
