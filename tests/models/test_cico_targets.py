"""What anchors of clips learn: gaps, unions, and the matcher against the specification's steps in plain loops."""

from __future__ import annotations

import random

import pytest
import torch
from torch import Tensor

from models.cico_anchors import TubeAnchors, to_corners
from models.cico_targets import ClipTargets, MatchConfig, clip_targets, filled, match, matching_boxes, quarter
from models.sampling import BACKGROUND, IGNORED
from models.targets import FrameTargets
from tests.models.small_cico import drawn, targets_of
from tests.models.test_cico_anchors import plain_diou, plain_iou

CPU = torch.device("cpu")
ANCHORS = TubeAnchors.of([(8, 12), (4, 6), (2, 3)], CPU)
ANCHORS = TubeAnchors(ANCHORS.boxes.double(), ANCHORS.levels)           # a small object fits three anchors equally well


# ------------------------------------------------------------------------------------------ ground truth of a clip


def test_no_object():
    found = clip_targets([drawn([])] * 3)
    assert len(found) == 0 and found.boxes.shape == (0, 3, 4) and found.masks.shape == (0, 3, 16, 24)
    assert found.unions.shape == (0, 4)


def test_objects_are_put_together_by_identity():
    """Object 7 is in frames 0 and 2, object 3 in frame 1; frame 2 says another class of object 7, but once of three."""
    frames = [drawn([(0, 0, 48, 32)], identities=[7], labels=[2]),
              drawn([(48, 32, 96, 64), (0, 0, 24, 32)], identities=[3, 7], labels=[1, 2]),
              drawn([(24, 0, 72, 32)], identities=[7], labels=[0])]  # fmt: skip
    found = clip_targets(frames)
    assert found.labels.tolist() == [1, 2]
    assert found.boxes[1].tolist() == [[0, 0, 0.5, 0.5], [0, 0, 0.25, 0.5], [0.25, 0, 0.75, 0.5]]
    assert found.boxes[0].tolist() == [[0.5, 0.5, 1, 1]] * 3, "filled"
    assert found.masks[0].sum((1, 2)).tolist() == [0, 8 * 12, 0], "masks are not"
    assert found.unions.tolist() == [[0.5, 0.5, 1, 1], [0, 0, 0.75, 0.5]]


def test_a_box_without_area_is_absent():
    found = clip_targets([drawn([(5, 5, 5, 20)]), drawn([(5, 5, 30, 20)])])
    assert len(found) == 1 and torch.equal(found.boxes[0, 0], found.boxes[0, 1])
    assert len(clip_targets([drawn([(5, 5, 5, 20)])])) == 0


def test_an_identity_twice_in_a_frame():
    with pytest.raises(ValueError, match="identity twice"):
        clip_targets([drawn([(0, 0, 9, 9), (5, 5, 9, 9)], identities=[1, 1])])


@pytest.mark.parametrize("visible, source", [
    ([1, 0, 0, 0], [0, 0, 0, 0]), ([0, 0, 1, 0], [2, 2, 2, 2]), ([1, 0, 1, 0], [0, 0, 2, 2]),
    ([0, 1, 0, 0, 1], [1, 1, 1, 4, 4]), ([1, 1, 1, 1], [0, 1, 2, 3]),
])  # fmt: skip
def test_gaps_take_the_nearest_box_and_of_two_the_earlier(visible, source):
    boxes = torch.arange(len(visible) * 4.0).reshape(1, -1, 4)
    assert torch.equal(filled(boxes, torch.tensor([visible]) > 0), boxes[:, source])


def test_masks_at_a_quarter_are_the_middle_of_each_cell():
    masks = torch.rand(3, 16, 24) < 0.5
    found = quarter(masks)
    for y in range(4):
        for x in range(6):
            inner = masks[:, 4 * y + 1 : 4 * y + 3, 4 * x + 1 : 4 * x + 3].float().mean((1, 2))
            assert torch.equal(found[:, y, x], (inner > 0.5).float())


@pytest.mark.parametrize("inner, expected", [
    pytest.param((0, 0, 0, 0), 0, id="nothing"), pytest.param((0.5, 0.5, 0.5, 0.5), 0, id="a half is not above a half"),
    pytest.param((0.5, 0.5, 0.5, 0.75), 1, id="above it, though three of the four alone are not"),
    pytest.param((1, 0.75, 0.25, 0), 0, id="a half in four parts"),
    pytest.param((0.75, 0.75, 0.25, 0), 0, id="below it, though two of four are more"),
])  # fmt: skip
def test_soft_masks_meet_a_threshold_here_and_nowhere_before(inner, expected):
    masks = torch.ones(1, 4, 4, dtype=torch.float16)
    masks[0, 1:3, 1:3] = torch.tensor(inner).reshape(2, 2)
    assert quarter(masks).tolist() == [[[expected]]]
    frame = FrameTargets(torch.tensor([[0.0, 0, 4, 4]]), torch.zeros(1, dtype=torch.int64),
                         torch.zeros(1, dtype=torch.int64), masks)  # fmt: skip
    assert clip_targets([frame]).masks.tolist() == [[[[expected]]]]


# ------------------------------------------------------------------------------------------ the box to match with


def tube(*xs: float, width: float = 0.2) -> Tensor:
    """(1, T, 4): a box that moves to the right."""
    return torch.tensor([[[x, 0.2, x + width, 0.4] for x in xs]])


@pytest.mark.parametrize("how, xs, expected", [
    pytest.param("current", (0.1, 0.15, 0.2), [(0.1, 0.3), (0.15, 0.35), (0.2, 0.4)], id="current"),
    pytest.param("union3", (0.1, 0.12, 0.14), [(0.1, 0.32), (0.1, 0.34), (0.12, 0.34)], id="slow: all three"),
    pytest.param("union3", (0.1, 0.3, 0.32), [(0.1, 0.3), (0.3, 0.52), (0.3, 0.52)], id="a leap is left out"),
    pytest.param("union3_unguarded", (0.1, 0.3, 0.5), [(0.1, 0.5), (0.1, 0.7), (0.3, 0.7)], id="paper: all of them"),
    pytest.param("union3", (0.1, 0.15, 0.2), [(0.1, 0.35), (0.1, 0.35), (0.15, 0.4)],
                 id="held against what is joined already"),
    pytest.param("union3", (0.1,), [(0.1, 0.3)], id="one frame"),
])  # fmt: skip
def test_matching_boxes(how, xs, expected):
    found, small = matching_boxes(tube(*xs), how)
    assert torch.allclose(found[:, 0, [0, 2]], torch.tensor(expected))
    assert not small.any()


def test_small_in_a_frame_that_takes_part():
    boxes = torch.tensor([[[0.1, 0.1, 0.2, 0.21], [0.1, 0.1, 0.19, 0.2], [0.5, 0.5, 0.9, 0.9]]])
    assert matching_boxes(boxes, "current")[1][:, 0].tolist() == [False, True, False]
    assert matching_boxes(boxes, "union3")[1][:, 0].tolist() == [True, True, False]
    assert matching_boxes(boxes, "union3_unguarded")[1][:, 0].tolist() == [True, True, True]


def test_matching_boxes_leave_the_truth_alone():
    """Acceptance check 8."""
    boxes = tube(0.1, 0.12, 0.14)
    before = boxes.clone()
    matching_boxes(boxes, "union3")
    assert torch.equal(boxes, before)


# ------------------------------------------------------------------------------------------ the matcher


def plain_match(boxes: Tensor, cfg: MatchConfig) -> list[list[int]]:
    """3.1, step by step; boxes (n, T, 4)."""
    anchors, measure = to_corners(ANCHORS.boxes).tolist(), plain_iou if cfg.overlap == "iou" else plain_diou
    joined, small = (x.transpose(0, 1).tolist() for x in matching_boxes(boxes, cfg.box))
    neutral = (cfg.positive + cfg.negative) / 2
    n, out = len(boxes), []
    for slot in range(boxes.shape[1]):
        table = [[measure(joined[j][slot], anchor) for anchor in anchors] for j in range(n)]
        owner = [max(range(n), key=lambda j: table[j][a]) for a in range(len(anchors))]
        best = [table[owner[a]][a] for a in range(len(anchors))]
        for a in range(len(anchors)):
            if sum(table[j][a] > cfg.positive for j in range(n)) >= 2:
                best[a] = neutral
        objects, free = set(range(n)), set(range(len(anchors)))
        for _ in range(n):
            j, a = max(((j, a) for j in objects for a in free), key=lambda pair: table[pair[0]][pair[1]])
            if best[a] < neutral / 2 and any(b > cfg.positive for b in best):
                break
            best[a], owner[a] = 2, j
            objects.remove(j)
            free.remove(a)
        every = cfg.gain == "all" and (cfg.box == "current" or boxes.shape[1] == 1)
        best = [b * 1.05 if every or small[owner[a]][slot] else b for a, b in enumerate(best)]
        out.append([o if b > cfg.positive else BACKGROUND if b < cfg.negative else IGNORED
                    for o, b in zip(owner, best, strict=True)])
    return out


def random_tubes(objects: int, frames: int, seed: int) -> Tensor:
    """Objects of all sizes, some close together, that move a little."""
    draw = random.Random(seed)
    boxes = torch.zeros(objects, frames, 4)
    for j in range(objects):
        side = [draw.choice((0.06, 0.25, 0.3, 0.5)) * draw.uniform(0.7, 1.4) for _ in range(2)]
        x, y = (draw.uniform(0.1, 0.6) for _ in range(2))
        if j % 3 == 2:
            x, y = boxes[j - 1, 0, :2].tolist()
        for t in range(frames):
            boxes[j, t] = torch.tensor([x, y, x + side[0], y + side[1]])
            x, y = x + draw.uniform(0, 0.03), y + draw.uniform(0, 0.03)
    return boxes


@pytest.mark.parametrize("cfg", [
    pytest.param(MatchConfig(), id="default"),
    pytest.param(MatchConfig(box="current", gain="all"), id="as released"),
    pytest.param(MatchConfig(box="union3_unguarded"), id="paper"),
    pytest.param(MatchConfig(box="current", overlap="diou", positive=0.425, negative=0.34), id="stills"),
])  # fmt: skip
@pytest.mark.parametrize("objects, frames", [(1, 1), (2, 3), (7, 3)])
def test_match_is_its_plain_form(cfg, objects, frames):
    for seed in range(2):
        boxes = random_tubes(objects, frames, seed).double()
        found = match(targets_of(boxes, [0] * objects), ANCHORS, cfg)
        assert found.tolist() == plain_match(boxes, cfg)


def test_the_plain_cases_reach_every_branch():
    """Else the comparison above shows little."""
    kinds = [match(targets_of(random_tubes(7, 3, s), [0] * 7), ANCHORS, MatchConfig()) for s in range(2)]
    found = torch.stack(kinds)
    assert (found >= 0).sum() > 20 and (found == IGNORED).sum() > 20 and (found == BACKGROUND).any()
    assert (found == 6).any(), "the last object, beside another, finds anchors too"


def test_a_clip_without_objects_has_no_negatives():
    none = ClipTargets(torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 3, 4, 4))
    assert (match(none, ANCHORS, MatchConfig()) == IGNORED).all()


def test_an_object_no_anchor_fits_is_given_one_all_the_same():
    """Far smaller than any anchor: while no anchor of the slot is positive, the best one is."""
    speck = torch.tensor([[[0.505, 0.505, 0.51, 0.51]]])
    owner = match(targets_of(speck, [0]), ANCHORS, MatchConfig())
    assert (owner == 0).sum() == 1
    two = torch.cat([speck, speck + 0.3])
    assert (match(targets_of(two, [0, 0]), ANCHORS, MatchConfig()) >= 0).sum() == 1, "but once"


@pytest.mark.parametrize("positive, negative", [(0.4, 0.5), (1.0, 0.4), (0.5, 0.0)])
def test_thresholds_that_are_wrong(positive, negative):
    with pytest.raises(ValueError, match="expected 0 < both < 1"):
        MatchConfig(positive=positive, negative=negative)
