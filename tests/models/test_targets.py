"""Assignment: cases drawn by hand, and random instances against the specification's loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.fcos import FCOSConfig, Locations
from models.targets import Assignment, FrameTargets, assign, mask_centroids
from tests.models import oracles

RELEASED = (64, 128, 256, 512)
FINE = (16, 32, 64, 128)
ODD = (11, 22, 44, 88)


def locations(size: int) -> Locations:
    return Locations.of(oracles.level_sizes(size, size), torch.device("cpu"))


def filled(boxes: list[tuple[float, ...]], size: int, parts: list[tuple[int, ...]] | None = None) -> FrameTargets:
    """Masks fill their boxes, or `parts` of them: (x1, y1, x2, y2) in pixels, the last not counted."""
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, parts or boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    count = len(boxes)
    return FrameTargets(torch.tensor(boxes).reshape(-1, 4).float(), torch.arange(count) + 5, torch.arange(count), masks)


def found(frames: list[FrameTargets], size: int, bounds: tuple[int, ...] = RELEASED) -> Assignment:
    return assign(frames, locations(size), FCOSConfig(size_bounds=bounds).ranges)


def places(result: Assignment, size: int) -> list[tuple[int, float, float]]:
    """(level, x, y) of every positive, P3 as 3."""
    at = locations(size)
    rows = zip(at.levels[result.location] + 3, at.points[result.location], strict=True)
    return [(int(level), *point.tolist()) for level, point in rows]


# ------------------------------------------------------------------------------------------ by hand


@pytest.mark.parametrize("box, part, expected", [
    pytest.param((5, 5, 7, 7), None, [], id="between the points: none"),
    pytest.param((4, 4, 12, 12), None, [], id="points on the edges are outside"),
    pytest.param((3.5, 3.5, 12, 12), None, [(3, 4, 4)], id="strictly inside by half a pixel"),
    pytest.param((5, 5, 19, 19), None, [(3, 12, 12)], id="one point of P3; P4's (8, 8) is too coarse"),
    pytest.param((4, 4, 56, 12), None, [], id="a flat box with points on both long edges: none"),
    pytest.param(
        (4, 2, 56, 14), None, [(3, 20, 4), (3, 28, 4), (3, 36, 4), (3, 20, 12), (3, 28, 12), (3, 36, 12)],
        id="window of 12 pixels round the centroid (29.5, 7.5)",
    ),
    pytest.param(
        (2, 2, 62, 14), (2, 2, 22, 14), [(3, x, y) for y in (4, 12) for x in (4, 12, 20)],
        id="the centroid of the mask, (11.5, 7.5), not the centre of the box",
    ),
])
def test_small_instances(box, part, expected):
    result = found([filled([box], 64, [part] if part else None)], 64)
    assert places(result, 64) == expected


@pytest.mark.parametrize("box, part, on_p3, on_p4", [
    pytest.param((4, 4, 132, 132), None, {(68, 68)}, 9, id="64 from the only P3 point: inclusive above"),
    pytest.param((8, 8, 136, 136), None, set(), 9, id="64 from a P4 point: inclusive below"),
    pytest.param(
        (4, 8, 100, 100), (55, 60, 73, 76), {(x, y) for x in (52, 60, 68) for y in (60, 68)}, 7,
        id="one instance, 64 from a P3 point and from a P4 point: both",
    ),
])
def test_size_of_exactly_64_belongs_to_both_levels(box, part, on_p3, on_p4):
    result = found([filled([box], 160, [part] if part else None)], 160)
    rows = places(result, 160)
    assert {(x, y) for level, x, y in rows if level == 3} == on_p3
    assert sum(level == 4 for level, _, _ in rows) == on_p4
    sizes = result.distances.amax(1) * locations(160).strides[result.location]
    assert 64 in sizes.tolist()


def test_no_image_with_instances_gives_no_positive():
    result = found([filled([], 64), filled([], 64)], 64)
    assert result.labels.shape == (2, 86) and bool((result.labels == -1).all())
    assert [len(v) for v in (result.image, result.location, result.instance)] == [0, 0, 0]
    assert result.distances.shape == (0, 4) and result.centerness.shape == (0,)


def test_empty_image_between_others():
    result = found([filled([(5, 5, 19, 19)], 64), filled([], 64), filled([(5, 5, 7, 7), (13, 13, 27, 27)], 64)], 64)
    assert result.image.tolist() == [0, 2] and result.instance.tolist() == [0, 1]
    assert places(result, 64) == [(3, 12, 12), (3, 20, 20)]
    assert (result.labels[0] >= 0).sum() == 1 and (result.labels[1] >= 0).sum() == 0
    assert result.labels[0, result.location[0]] == 5 and result.labels[2, result.location[1]] == 6


@pytest.mark.parametrize("order", [pytest.param([0, 1], id="large first"), pytest.param([1, 0], id="small first")])
def test_ambiguous_location_goes_to_the_smaller_box(order):
    """The smaller box has the larger mask: it is the box's area that counts."""
    boxes = [(0, 0, 40, 40), (2, 2, 36, 36)]
    parts = [(19, 19, 22, 22), (2, 2, 36, 36)]
    result = found([filled([boxes[i] for i in order], 64, [parts[i] for i in order])], 64)
    assert set(result.instance.tolist()) == {order.index(1)}
    assert len(result.location) == len(set(result.location.tolist())) == 9


def test_a_smaller_box_wins_only_where_it_is_a_candidate():
    result = found([filled([(0, 0, 40, 40), (13, 13, 27, 27)], 64)], 64)
    at = {place: int(g) for place, g in zip(places(result, 64), result.instance, strict=True)}
    assert at[(3, 20, 20)] == 1
    assert sorted(set(at.values())) == [0, 1] and sum(g == 1 for g in at.values()) == 1


def test_distances_are_in_strides_and_centerness_by_hand():
    result = found([filled([(2, 3, 20, 19)], 64, [(11, 11, 14, 14)])], 64, bounds=(13, 32, 64, 128))
    assert places(result, 64) == [(3, 12, 12)]
    assert result.distances.tolist() == [[10 / 8, 9 / 8, 8 / 8, 7 / 8]]
    assert result.centerness.item() == pytest.approx(math.sqrt(8 / 10 * 7 / 9))


def test_distances_of_a_coarse_level_are_in_its_strides():
    result = found([filled([(8, 8, 40, 40)], 64)], 64, bounds=FINE)
    assert places(result, 64) == [(4, 24, 24)]
    assert result.distances.tolist() == [[1, 1, 1, 1]] and result.centerness.tolist() == [1]


def test_positives_come_level_first():
    frames = [filled([(4, 8, 100, 100)], 160, [(55, 60, 73, 76)]) for _ in range(2)]
    result = found(frames, 160)
    keys = list(zip(locations(160).levels[result.location].tolist(), result.image.tolist(), result.location.tolist(),
                    strict=True))
    assert keys == sorted(keys) and len({level for level, _, _ in keys}) == 2


# ------------------------------------------------------------------------------------------ masks


def test_centroid_is_the_mean_pixel_index():
    masks = torch.zeros(2, 4, 6, dtype=torch.bool)
    masks[0, 1, 2] = True
    masks[1, 0, 0] = masks[1, 0, 5] = masks[1, 3, 4] = True
    assert mask_centroids(masks, torch.zeros(2, 4)).tolist() == [[2, 1], [3, 1]]


def test_centroid_of_no_mask():
    assert mask_centroids(torch.zeros(0, 4, 6, dtype=torch.bool), torch.zeros(0, 4)).shape == (0, 2)


def test_centroid_of_an_empty_mask_is_the_box_centre():
    boxes = torch.tensor([[1.0, 2, 4, 3]])
    assert mask_centroids(torch.zeros(1, 4, 6, dtype=torch.bool), boxes).tolist() == [[2.5, 2.5]]


def test_masks_at_stride_4_are_sampled_not_pooled():
    masks = torch.zeros(1, 8, 12, dtype=torch.bool)
    masks[0, 2, 2] = masks[0, 6, 10] = True
    masks[0, 0:2] = masks[0, 3:6] = True         # rows that no sample meets
    frame = FrameTargets(torch.zeros(1, 4), torch.zeros(1).long(), torch.zeros(1).long(), masks)
    assert frame.masks_stride4.int().tolist() == [[[1, 0, 0], [0, 0, 1]]]


# ------------------------------------------------------------------------------------------ against the loop


def random_frame(generator: np.random.Generator, size: int) -> FrameTargets:
    """Up to nine instances of all sizes, corners on half pixels so that points meet edges; masks are ragged parts."""
    boxes, parts = [], []
    for _ in range(generator.integers(0, 10)):
        side = generator.integers(3, size - 8, 2) * generator.uniform(0.3, 1)
        x, y = generator.uniform(0, size - side[0]), generator.uniform(0, size - side[1])
        box = [round(2 * v) / 2 for v in (x, y, x + side[0], y + side[1])]
        areas = [(b[2] - b[0]) * (b[3] - b[1]) for b in boxes]
        if (box[2] - box[0]) * (box[3] - box[1]) in [0, *areas]:
            continue                             # who wins a tie is not specified
        mask = np.zeros((size, size), bool)
        inside = mask[math.floor(box[1]) : math.ceil(box[3]), math.floor(box[0]) : math.ceil(box[2])]
        inside[:] = generator.random(inside.shape) < generator.uniform(0.05, 1)
        inside[:, : int(inside.shape[1] * generator.uniform(0, 0.6))] = False
        inside[-1, -1] = True
        boxes.append(box)
        parts.append(torch.from_numpy(mask))
    count = len(boxes)
    masks = torch.stack(parts) if parts else torch.zeros(0, size, size, dtype=torch.bool)
    labels = torch.from_numpy(generator.integers(0, 40, count))
    return FrameTargets(torch.tensor(boxes).reshape(-1, 4).float(), labels, torch.arange(count), masks)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("bounds", [FINE, ODD], ids=["powers of two", "odd bounds"])
def test_random_instances_are_assigned_as_in_the_loop(seed, bounds):
    generator = np.random.default_rng(seed)
    size = 96
    frames = [random_frame(generator, size) for _ in range(3)]
    result = found(frames, size, bounds)
    expected = {}
    for b, frame in enumerate(frames):
        for p, answer in oracles.positives(frame.boxes.numpy(), frame.masks.numpy(), bounds).items():
            expected[b, p] = answer
    order = sorted(expected, key=lambda key: (locations(size).levels[key[1]].item(), *key))
    assert list(zip(result.image.tolist(), result.location.tolist(), strict=True)) == order
    assert result.instance.tolist() == [expected[key][0] for key in order]
    sides = np.array([expected[key][1] for key in order]).reshape(-1, 4)
    assert np.allclose(result.distances.numpy(), sides, atol=1e-5)
    assert np.allclose(result.centerness.numpy(), [oracles.centerness(s) for s in sides], atol=1e-5)
    labels = np.full((3, len(locations(size).points)), -1)
    for (b, p), (g, _) in expected.items():
        labels[b, p] = frames[b].labels[g]
    assert np.array_equal(result.labels.numpy(), labels)


def test_random_instances_are_worth_trying():
    """That the frames above try what they are to try: coarse levels too, and points that two instances want."""
    levels, wanted_twice = set(), 0
    for seed in range(8):
        generator = np.random.default_rng(seed)
        for frame in [random_frame(generator, 96) for _ in range(3)]:
            boxes, masks = frame.boxes.numpy(), frame.masks.numpy()
            together = oracles.positives(boxes, masks, ODD)
            alone = [oracles.positives(boxes[g : g + 1], masks[g : g + 1], ODD) for g in range(len(boxes))]
            wanted_twice += sum(len(found) for found in alone) - len(together)
            levels |= {locations(96).levels[p].item() for p in together}
    assert levels == {0, 1, 2, 3} and wanted_twice > 10, (levels, wanted_twice)
