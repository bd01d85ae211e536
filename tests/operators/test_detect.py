"""From dense outputs to instances: locations written down one by one, then a loop over all of them.

Source of what is expected: CrossVIS specification 4.1, steps 1 to 3.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from models.condinst import DenseOutputs
from models.fcos import Locations
from operators.detect import DetectConfig, select
from tests.operators.test_nms import naive

SIZES = [(4, 6), (2, 3), (1, 2), (1, 1), (1, 1)]
"""Feature maps of a 32 x 48 input: 24 + 6 + 2 + 1 + 1 locations."""
P4, P5 = 24, 30
"""First location of these levels."""
HALF = 0.0
"""Logit of probability 1/2, which float32 holds exactly: 1/2 x 1/2 is 1/4 to the bit."""


def dense(classes: int = 2, images: int = 1) -> DenseOutputs:
    """Nothing is found anywhere; every box reaches one stride to each side; centre-ness is 1 throughout."""
    at = Locations.of(SIZES, torch.device("cpu"))
    p = len(at.points)
    return DenseOutputs(
        class_logits=torch.full((images, p, classes), -100.0), distances=torch.ones(images, p, 4),
        centerness=torch.full((images, p), 100.0), filters=torch.zeros(images, p, 169),
        embeddings=torch.zeros(images, p, 3), mask_features=torch.zeros(images, 8, 4, 6), at=at,
    )


def logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def test_nothing_above_the_threshold():
    found = select(dense(), 0, DetectConfig())
    assert found.locations.shape == found.labels.shape == found.scores.shape == (0,)
    assert found.boxes.shape == (0, 4)
    assert (found.locations.dtype, found.labels.dtype) == (torch.int64, torch.int64)


@pytest.mark.parametrize("class_p, centre_p, min_score, kept", [
    pytest.param(0.5, 0.5, 0.25, False, id="exactly the threshold: strictly above is asked"),
    pytest.param(0.5, 0.5, 0.2499, True, id="just above"),
    pytest.param(0.9, 0.05, 0.05, False, id="the product counts, not the class alone"),
    pytest.param(0.05, 0.9, 0.05, False, id="nor the centre-ness alone"),
    pytest.param(0.2, 0.2, 0.05, False, id="0.04: its root 0.2 would pass"),
    pytest.param(0.3, 0.3, 0.05, True, id="0.09"),
])
def test_threshold_is_on_the_product_before_the_root(class_p, centre_p, min_score, kept):
    outputs = dense()
    outputs.class_logits[0, 7, 1] = HALF if class_p == 0.5 else logit(class_p)
    outputs.centerness[0, 7] = HALF if centre_p == 0.5 else logit(centre_p)
    found = select(outputs, 0, DetectConfig(min_score=min_score))
    assert found.locations.tolist() == ([7] if kept else [])
    if kept:
        assert found.labels.tolist() == [1]
        assert found.scores.item() == pytest.approx(math.sqrt(class_p * centre_p), rel=1e-6)


@pytest.mark.parametrize("location, box", [
    # P3, stride 8: cell (row 1, column 2) has its point at (20, 12)
    pytest.param(8, [20 - 8, 12 - 16, 20 + 4, 12 + 24], id="P3, reaching out of the image: not clipped"),
    pytest.param(P4 + 5, [40 - 16, 24 - 32, 40 + 8, 24 + 48], id="P4, stride 16: row 1, column 2"),
    pytest.param(P5 + 1, [48 - 32, 16 - 64, 48 + 16, 16 + 96], id="P5, stride 32: column 1"),
    pytest.param(33, [64 - 128, 64 - 256, 64 + 64, 64 + 384], id="P7, stride 128"),
])
def test_box_is_the_point_and_distances_in_strides(location, box):
    outputs = dense()
    outputs.class_logits[0, location, 0] = 3.0
    outputs.distances[0, location] = torch.tensor([1, 2, 0.5, 3])
    assert select(outputs, 0, DetectConfig()).boxes.tolist() == [box]


def test_a_location_may_hold_two_classes_and_the_order_is_falling_score():
    outputs = dense()
    for location, label, p in ((3, 0, 0.5), (3, 1, 0.9), (P4, 0, 0.7)):
        outputs.class_logits[0, location, label] = logit(p)
    outputs.distances[0, P4] = 0.1                                      # small, so that it overlaps nobody enough
    found = select(outputs, 0, DetectConfig())
    assert list(zip(found.locations.tolist(), found.labels.tolist(), strict=True)) == [(3, 1), (P4, 0), (3, 0)]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.7, 0.5]).sqrt())


def test_only_the_asked_image_is_looked_at():
    outputs = dense(images=3)
    outputs.class_logits[0, 1, 0], outputs.class_logits[1, 2, 1] = 2.0, 2.0
    assert [select(outputs, i, DetectConfig()).locations.tolist() for i in range(3)] == [[1], [2], []]


def test_each_level_sends_its_best_before_suppression():
    """Locations 0, 1, 2 of P3 and 0, 1 of P4, two a level allowed. The second of P3 is then suppressed by its first:
    the third of P3 must not step into its place."""
    outputs = dense()
    for location, p in ((0, 0.9), (1, 0.8), (2, 0.7), (P4, 0.3), (P4 + 1, 0.2)):
        outputs.class_logits[0, location, 0] = logit(p)
    outputs.distances[0, :3] = torch.tensor([[1, 1, 1, 1], [2, 1, 0, 1], [0.1] * 4])   # the first two boxes are equal
    outputs.distances[0, P4 : P4 + 2] = 0.1
    assert select(outputs, 0, DetectConfig(max_per_level=2)).locations.tolist() == [0, P4, P4 + 1]
    assert select(outputs, 0, DetectConfig(max_per_level=3)).locations.tolist() == [0, 2, P4, P4 + 1]
    assert select(outputs, 0, DetectConfig(max_per_level=1)).locations.tolist() == [0, P4]


@pytest.mark.parametrize("settings, message", [
    pytest.param({"min_score": -0.1}, "min_score -0.1", id="negative threshold"),
    pytest.param({"max_iou": 1.1}, "max_iou 1.1", id="IoU above 1"),
    pytest.param({"max_per_level": 0}, "at least 1", id="no candidate"),
    pytest.param({"max_per_frame": 0}, "at least 1", id="no instance"),
])
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        DetectConfig(**settings)


@pytest.mark.parametrize("seed", range(4))
def test_against_a_loop_over_all_locations(seed):
    rng = torch.Generator().manual_seed(seed)
    cfg = DetectConfig(min_score=0.1, max_per_level=9, max_per_frame=8)
    outputs = dense(classes=3)
    p = len(outputs.at.points)
    outputs = replace(
        outputs, class_logits=torch.randn(1, p, 3, generator=rng), centerness=torch.randn(1, p, generator=rng),
        distances=torch.rand(1, p, 4, generator=rng) * 2,
    )
    candidates = []
    for location in range(p):
        for label in range(3):
            a = outputs.class_logits[0, location, label].sigmoid() * outputs.centerness[0, location].sigmoid()
            if a > cfg.min_score:
                candidates.append((a.item(), location, label))
    kept = []
    for level in range(5):
        of_level = [c for c in candidates if outputs.at.levels[c[1]] == level]
        kept += sorted(of_level, key=lambda c: -c[0])[: cfg.max_per_level]
    boxes = []
    for _, location, _ in kept:
        x, y = outputs.at.points[location].tolist()
        left, top, right, bottom = (outputs.distances[0, location] * outputs.at.strides[location]).tolist()
        boxes.append([x - left, y - top, x + right, y + bottom])
    scores, labels = torch.tensor([c[0] for c in kept]).sqrt(), torch.tensor([c[2] for c in kept])
    order = naive(torch.tensor(boxes), scores, labels, cfg.max_iou, cfg.max_per_frame)
    found = select(outputs, 0, cfg)
    assert len(order) == 8 < len(kept) < len(candidates), "every rule must have had something to do"
    assert found.locations.tolist() == [kept[i][1] for i in order]
    assert found.labels.tolist() == [kept[i][2] for i in order]
    torch.testing.assert_close(found.scores, scores[order])
    torch.testing.assert_close(found.boxes, torch.tensor([boxes[i] for i in order]))
