"""One frame of IAI: assignment by trying all, masks by the specification's own loop, and who passes the thresholds."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from models.dynamic_mask import aligned_upsample
from operators.identities import (
    NOTHING,
    IdentityDetectConfig,
    assign,
    find_identities,
    overlap,
    paint,
    rank_weights,
    seen,
)
from tests.operators.small_identities import Scripted, frame, level_numbers, random_said

UNIT = st.floats(0, 1)

# ------------------------------------------------------------------------------------------------------ assignment


@given(st.integers(0, 4).flatmap(lambda n: arrays(np.float64, (n, 4), elements=st.sampled_from([0, 0.5]) | UNIT)))
@settings(max_examples=200, deadline=None)
def test_the_columns_are_the_best_of_all(identities):
    """N + L columns, written out: [d_0 .. d_{N-1}, 0, d_{N-1}, ..]."""
    count, rows = len(identities), [[*d, 0.0, *[d[-1]] * (len(identities) - 1)] for d in identities.tolist()]
    columns = assign(identities).tolist()
    assert len(columns) == count == len(set(columns))
    best = max(sum(row[j] for row, j in zip(rows, js, strict=True))
               for js in itertools.permutations(range(4 + count), count))
    assert math.isclose(sum(row[j] for row, j in zip(rows, columns, strict=True)), best, abs_tol=1e-9)


def one_of(n: int, **at: float) -> list[float]:
    """A row of identity probabilities: d3=0.9 is column 3."""
    row = [0.0] * n
    for key, value in at.items():
        row[int(key[1:])] = value
    return row


@pytest.mark.parametrize("rows, columns", [
    pytest.param([], [], id="no detection"),
    pytest.param([one_of(5, d2=0.2)], [2], id="a weak identity is better than none"),
    pytest.param([one_of(5, d1=0.6, d4=0.7)], [4], id="rather new"),
    pytest.param([one_of(5, d0=0.9, d1=0.5), one_of(5, d0=0.8, d1=0.1)], [1, 0],
                 id="two best on slot 0 split by total score"),
    pytest.param([one_of(5, d0=0.9), one_of(5, d0=0.8, d4=0.3)], [0, 4], id="the loser is new"),
])
def test_assignment(rows, columns):
    assert assign(np.array(rows).reshape(-1, 5)).tolist() == columns


def test_three_that_all_say_new_are_all_new():
    columns = assign(np.array([one_of(20, d19=0.9)] * 3))
    assert len(set(columns.tolist())) == 3 and (columns >= 19).all()


def test_one_that_says_nothing_at_all_takes_the_column_of_zeros_or_another_that_nobody_wants():
    columns = assign(np.array([one_of(3, d0=0.9), one_of(3)]))
    assert columns[0] == 0 and columns[1] != 0


# ----------------------------------------------------------------------------------------------------------- masks


def looped(masks: torch.Tensor, floor: float) -> tuple[torch.Tensor, list[bool]]:
    """Step 8 word by word."""
    free, visible, kept = torch.ones(masks.shape[1:], dtype=torch.bool), [], []
    for mask in masks:
        visible.append(mask & free)
        free = free & ~visible[-1]
        kept.append(bool(mask.any()) and not visible[-1].sum() / mask.sum() < floor)
    return torch.stack(visible) if len(masks) else masks, kept


@pytest.mark.parametrize("count", [0, 1, 2, 7, 50, 300])
def test_overlap_is_the_loop(count):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        masks = torch.rand(count, 12, 9, generator=generator) < torch.rand(count, 1, 1, generator=generator) ** 2
        found = overlap(masks)
        visible, kept = looped(masks, 0.1)
        for n in range(count):
            assert torch.equal(found.owner == n, visible[n])
        assert torch.equal(found.owner == count, ~masks.any(0))
        assert found.visible.tolist() == visible.sum((1, 2)).tolist()
        assert seen(found.area.numpy(), found.visible.numpy(), 0.1).tolist() == kept


@pytest.mark.parametrize("area, visible, stays", [
    pytest.param(0, 0, False, id="no pixel"),
    pytest.param(10, 0, False, id="covered"),
    pytest.param(10, 1, True, id="exactly a tenth"),
    pytest.param(11, 1, False, id="less than a tenth"),
    pytest.param(3000, 300, True, id="exactly a tenth of many"),
])
def test_seen(area, visible, stays):
    assert seen(np.array([float(area)]), np.array([float(visible)]), 0.1).tolist() == [stays]


def test_painting():
    owner = torch.tensor([[0, 1, 3], [2, 3, 3]])
    assert paint(owner, torch.tensor([7, NOTHING, 0, 9], dtype=torch.int8)).tolist() == [[7, -1, 9], [0, 9, 9]]


# ------------------------------------------------------------------------------------------------------ candidates


def quiet_said(num_classes: int = 3, num_outputs: int = 5):
    said = random_said(np.random.default_rng(0), num_classes, num_outputs)
    said.classes[:], said.identities[:], said.quality[:] = -9, -9, 0
    return said


def candidates(said, weights=(1.0, 0.5), **settings):
    network = Scripted([said], 5)
    return find_identities(network, network.heads(([0],)), 0, frame(0), weights, IdentityDetectConfig(**settings))


def test_a_quiet_frame_has_no_candidates():
    found = candidates(quiet_said())
    assert (len(found.scores), found.boxes.shape, found.classes.shape) == (0, (0, 4), (0, 3))
    assert (found.identities.shape, found.masks.shape) == ((0, 5), (0, 64, 64))


@pytest.mark.parametrize("class_, identity, passes", [
    pytest.param(2, -4, False, id="sure of the class alone"),
    pytest.param(-4, 2, False, id="sure of the identity alone"),
    pytest.param(-2, -2, True, id="a little sure of both"),
])
def test_both_thresholds_must_be_passed_and_neither_asks_for_centerness(class_, identity, passes):
    said = quiet_said()
    said.classes[20, 1], said.identities[20, 4], said.quality[20] = class_, identity, -6
    assert len(candidates(said).scores) == passes


def test_levels_send_their_best_by_class_and_centerness_before_any_threshold():
    said = quiet_said()
    said.classes[:64, 0] = 1 + np.arange(64) / 64             # the 63rd is best, and has no identity
    said.identities[:62, 0] = 3
    said.boxes[:] = [[4 * p % 60, 4 * p // 60, 4 * p % 60 + 2, 4 * p // 60 + 2] for p in range(86)]
    assert level_numbers()[:64].max() == 0
    assert len(candidates(said, max_per_level=2, max_per_frame=50).scores) == 0
    assert len(candidates(said, max_per_level=5, max_per_frame=50).scores) == 3


def test_suppression_does_not_ask_for_the_class():
    said = quiet_said()
    said.classes[3, 0], said.classes[4, 1], said.identities[3:5, 0] = 2, 1, 2
    said.boxes[3:5] = [[10, 10, 30, 30], [10, 11, 30, 31]]
    assert len(candidates(said).scores) == 1


def test_boxes_are_clipped_to_the_frame_and_lie_in_the_original_and_empty_ones_stay():
    said = quiet_said()
    said.classes[3:5, 0], said.identities[3:5, 0] = (2, 1), 2
    said.boxes[3:5] = [[-5, 11, 100, 50], [62, 2, 63, 8]]     # the frame is 44 x 60 inside, 33 x 80 originally
    found = candidates(said)
    np.testing.assert_allclose(found.boxes.numpy(), [[0, 8.25, 80, 33], [80, 1.5, 80, 6]], rtol=1e-6)


def test_as_many_as_asked_for_even_of_equal_rank():
    said = quiet_said()
    said.classes[:5, 0], said.identities[:5, 0] = 2, 2
    said.boxes[:5] = [[12 * p, 0, 12 * p + 8, 8] for p in range(5)]
    assert len(candidates(said, max_per_frame=3).scores) == 3


@pytest.mark.parametrize("mode, first, rank", [
    ("reference", True, 0.8 + 0.5 * 0.6), ("reference", False, 0.5 * 0.8 + 0.6), ("stream", True, 0.8 + 0.5 * 0.6),
    ("stream", False, 0.5 * 0.8 + 0.6), ("paper", True, 0.7), ("paper", False, 0.7),
])
def test_ranks(mode, first, rank):
    said, logit = quiet_said(), lambda p: math.log(p / (1 - p))
    said.classes[7, 2], said.identities[7, 1] = logit(0.8), logit(0.6)
    assert candidates(said, rank_weights(mode, first)).scores.item() == pytest.approx(0.5 * rank)


def test_masks_for_the_memory_are_not_cut_to_the_frame():
    said = quiet_said()
    said.classes[3, 0], said.identities[3, 0], said.masks[3] = 2, 2, 5
    found = candidates(said)
    assert found.masks.all() and found.masks.shape == (1, 64, 64)
    assert torch.equal(found.masks, aligned_upsample(found.mask_logits.sigmoid(), 4) > 0.5)


@pytest.mark.parametrize("wrong", [{"min_class": -0.1}, {"min_visible": 2}, {"max_per_frame": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IdentityDetectConfig(**wrong)
