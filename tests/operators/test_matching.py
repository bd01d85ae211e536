"""Who gets which track: values worked by hand, claims in a table, and both rules against loops.

Source of what is expected: CrossVIS specification 4.2, 4.3 and acceptance check 8.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from operators.association import Associate
from operators.matching import (
    LOST,
    NEW,
    AssociateConfig,
    MaskTrackRuleConfig,
    TrackMemory,
    claim,
    claims,
    masktrack_values,
    match_scores,
    settle,
)
from tests.operators.small_tracks import (
    BOX,
    CAT,
    DOG,
    EAST,
    FAR,
    NORTH,
    WEST,
    Ambiguous,
    Found,
    at_cosine,
    detections,
    frame,
    ids,
    naive,
    places,
)

pytestmark = pytest.mark.usefixtures("one_thread")

RULES = ("cosine_iou", "masktrack")


def memory_of(*known: tuple, dim: int = 2) -> TrackMemory:
    """What is known after one frame with these detections."""
    d, m = detections(*known, dim=dim), len(known)
    return TrackMemory(torch.arange(m), d.embeddings, d.boxes, d.labels, torch.zeros(m, dtype=torch.int64), next_id=m)


# ---------------------------------------------------------------------------------------------------- mode A: the match


def test_match_scores_by_hand():
    memory = memory_of((BOX, CAT, (2, 0)), (FAR, DOG, (0, 3)))
    found = detections(((0, 0, 10, 5), CAT, at_cosine(0.6)), (FAR, DOG, WEST))
    iou, same = 50 / (100 + 1e-5), 100 / (100 + 1e-5)
    expected = torch.tensor([[0.6 + iou, -1], [-1, 0 + same]])
    torch.testing.assert_close(match_scores(found, memory, AssociateConfig()), expected)
    half = AssociateConfig(embedding_weight=0.5, iou_weight=2.0)
    expected = torch.tensor([[0.3 + 2 * iou, -1], [-1, 2 * same]])
    torch.testing.assert_close(match_scores(found, memory, half), expected)


def test_the_union_of_boxes_has_1e_5_added():
    """It shows on boxes of a hundredth of a pixel: 1e-4 over 1.1e-4."""
    speck = (0, 0, 0.01, 0.01)
    match = match_scores(detections((speck, CAT, NORTH)), memory_of((speck, CAT, EAST)), AssociateConfig())
    assert match.item() == pytest.approx(1 / 1.1, rel=1e-5)


# ------------------------------------------------------------------------------------------- claims and their conflicts


@pytest.mark.parametrize("match, claimed", [
    pytest.param(torch.zeros(0, 3), [], id="no detection"),
    pytest.param(torch.zeros(0, 0), [], id="neither"),
    pytest.param(torch.zeros(2, 0), [NEW, NEW], id="no track yet"),
    pytest.param([[0.39]], [NEW], id="below the threshold"),
    pytest.param([[0.4]], [0], id="exactly the threshold keeps the id"),
    pytest.param([[0.9, 0.9]], [0], id="two equal tracks: the first"),
    pytest.param([[0.1, 0.9, 0.9]], [1], id="two equal tracks behind a worse one"),
    pytest.param([[0.9], [0.9]], [0, LOST], id="two equal claims: the earlier wins"),
    pytest.param([[0.8], [0.9]], [LOST, 0], id="the larger claim wins, though later"),
    pytest.param([[0.7], [0.9], [0.8]], [LOST, 0, LOST], id="three claims"),
    pytest.param([[0.7], [0.9], [0.9], [0.8]], [LOST, 0, LOST, LOST], id="four claims, two of them equal"),
    pytest.param([[0.9, 0.8], [0.95, 0.5]], [LOST, 0], id="no second choice"),
    pytest.param([[0.3, 0.2], [0.5, 1.5], [0.5, 0.2]], [NEW, 1, 0], id="each its own"),
    pytest.param([[0.1], [0.2]], [NEW, NEW], id="new ones do not compete"),
    pytest.param([[-1.0, -1.0]], [NEW], id="other classes only"),
])
def test_claim(match, claimed):
    match = torch.as_tensor(match, dtype=torch.float64)
    assert claim(match, 0.4).tolist() == claimed


@pytest.mark.parametrize("track, value, settled", [
    pytest.param([], [], [], id="nobody"),
    pytest.param([0], [-100.0], [LOST], id="exactly the floor loses though alone"),
    pytest.param([0], [-99.9], [0], id="just above it wins"),
    pytest.param([NEW, 0], [-math.inf, -200.0], [NEW, LOST], id="a new track needs no value"),
    pytest.param([0, 1, 0], [-101.0, -5.0, -7.0], [LOST, 1, 0], id="one below the floor is no rival"),
    pytest.param([1, 1], [-100.0, -100.0], [LOST, LOST], id="both lose"),
])
def test_settle_with_a_floor(track, value, settled):
    track, value = torch.tensor(track, dtype=torch.int64), torch.tensor(value, dtype=torch.float64)
    assert settle(track, value, -100.0).tolist() == settled


# --------------------------------------------------------------------------------------------------- mode B: the values


def test_masktrack_values_by_hand():
    memory = memory_of((BOX, CAT, (3, 0)), (FAR, DOG, (0, -1)))
    found = detections(((0, 0, 10, 5), CAT, (1, 2), 0.25), (FAR, DOG, (-1, 4), 1.0))
    first = math.log(1 + math.exp(3) + math.exp(-2))                     # dot products 3 and -2
    second = math.log(1 + math.exp(-3) + math.exp(-4))                   # -3 and -4
    by_score = math.log(0.25)
    expected = torch.tensor([
        [0 - first + by_score + 0 + 10, 3 - first + by_score + 2 * 0.5 + 10, -2 - first + by_score],
        [0 - second + 0 + 10, -3 - second, -4 - second + 2 * 1.0 + 10],
    ], dtype=torch.float64)
    torch.testing.assert_close(masktrack_values(found, memory, MaskTrackRuleConfig()), expected)
    cfg = MaskTrackRuleConfig(score_weight=0.5, iou_weight=3.0, class_weight=4.0)
    expected = torch.tensor([
        [0 - first + by_score / 2 + 4, 3 - first + by_score / 2 + 3 * 0.5 + 4, -2 - first + by_score / 2],
        [0 - second + 4, -3 - second, -4 - second + 3 * 1.0 + 4],
    ], dtype=torch.float64)
    torch.testing.assert_close(masktrack_values(found, memory, cfg), expected)


@pytest.mark.parametrize("n, m", [(0, 0), (0, 3), (2, 0)], ids=["neither", "no detection", "no track yet"])
def test_masktrack_values_of_nothing(n, m):
    found, memory = detections(*[(BOX, CAT, EAST)] * n), memory_of(*[(BOX, CAT, EAST)] * m)
    assert masktrack_values(found, memory, MaskTrackRuleConfig()).shape == (n, 1 + m)
    for rule in RULES:
        assert claims(found, memory, AssociateConfig(), rule).tolist() == [NEW] * n


def test_the_union_of_boxes_has_nothing_added():
    speck = (0, 0, 0.01, 0.01)
    found, memory = detections((speck, CAT, NORTH, 1.0)), memory_of((speck, CAT, EAST))
    values = masktrack_values(found, memory, MaskTrackRuleConfig())
    assert values[0, 1].item() == pytest.approx(math.log(0.5) + 2 + 10, rel=1e-12)


@pytest.mark.parametrize("length", [1e2, 1e4, 1e30])
def test_dot_products_of_any_size_give_numbers(length):
    """exp would give inf, the smaller p would be 0; the products themselves leave float32 at 1e38."""
    memory = memory_of((BOX, CAT, (length, 0)), (BOX, CAT, (0, length)), (BOX, CAT, (-length, 0)))
    values = masktrack_values(detections((BOX, CAT, (length, 0)), (FAR, DOG, (-length, -length))), memory,
                              MaskTrackRuleConfig())
    assert values.isfinite().all()
    assert values.argmax(1).tolist() == [1, 3], "the nearest of each"
    assert values[0, 1].item() == pytest.approx(math.log(0.5) + 2 + 10), "p is 1"


def test_a_score_of_0_gives_a_new_track_and_no_nan():
    found, memory = detections((BOX, CAT, EAST, 0.0)), memory_of((BOX, CAT, EAST))
    values = masktrack_values(found, memory, MaskTrackRuleConfig())
    assert (values == -math.inf).all()
    assert claims(found, memory, AssociateConfig(), "masktrack").tolist() == [NEW]
    assert masktrack_values(found, memory, MaskTrackRuleConfig(score_weight=0.0)).isfinite().all()


@pytest.mark.parametrize("dot, box, label, new", [
    pytest.param(-1.9, BOX, CAT, False, id="-1.9 + 2 of IoU beat the 0 of a new track"),
    pytest.param(-2.1, BOX, CAT, True, id="-2.1 + 2 do not"),
    pytest.param(0.0, FAR, CAT, True, id="a tie with the new track, which comes first"),
    pytest.param(0.01, FAR, CAT, False, id="there is no threshold"),
    pytest.param(7.9, BOX, DOG, True, id="another class costs 10: 7.9 + 2 are too few"),
    pytest.param(8.1, BOX, DOG, False, id="8.1 + 2 are enough"),
    pytest.param(9.9, FAR, DOG, True, id="9.9 alone are too few"),
    pytest.param(10.1, FAR, DOG, False, id="10.1 alone are enough"),
])
def test_when_a_detection_is_a_new_track(dot, box, label, new):
    track = claims(detections((box, label, (dot, 5))), memory_of((BOX, CAT, EAST)), AssociateConfig(), "masktrack")
    assert track.tolist() == [NEW if new else 0]


@pytest.mark.parametrize("found, track", [
    pytest.param([(BOX, CAT, EAST, 0.5), (BOX, CAT, EAST, 0.6)], [LOST, 0], id="the surer of two equals"),
    pytest.param([(BOX, CAT, EAST, 0.5), (BOX, CAT, EAST, 0.5)], [0, LOST], id="twins: the earlier"),
    pytest.param([(FAR, CAT, EAST, 0.5), (BOX, CAT, EAST, 0.1)], [LOST, 0], id="2 of IoU beat ln 5"),
    pytest.param([(FAR, CAT, EAST, 0.9), (BOX, CAT, EAST, 0.1)], [0, LOST], id="ln 9 beats 2 of IoU"),
    pytest.param([(FAR, DOG, (20, 0), 0.5), (FAR, CAT, EAST, 0.1)], [LOST, 0], id="10 of class beat p and score"),
])
def test_two_claims_on_one_track(found, track):
    assert claims(detections(*found), memory_of((BOX, CAT, EAST)), AssociateConfig(), "masktrack").tolist() == track


def test_a_claim_of_minus_100_or_less_is_out():
    """Initial best of every track: -100. 100 ln(0.3) is -120, so the detection is no match and no new track either."""
    cfg = AssociateConfig(masktrack=MaskTrackRuleConfig(score_weight=100.0))
    memory = memory_of((BOX, CAT, (50, 0)))
    found = detections((BOX, CAT, EAST, 0.3), (FAR, DOG, WEST, 0.3))
    assert claims(found, memory, cfg, "masktrack").tolist() == [LOST, NEW]
    assert claims(found, memory, AssociateConfig(), "masktrack").tolist() == [0, NEW]


@pytest.mark.parametrize("settings, says", [
    pytest.param({"score_weight": -1.0}, "score_weight is -1.0", id="below 0"),
    pytest.param({"iou_weight": math.inf}, "iou_weight is inf", id="not finite"),
    pytest.param({"class_weight": math.nan}, "class_weight is nan", id="not a number"),
])
def test_weights_that_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        MaskTrackRuleConfig(**settings)


def test_mode_a_settings_that_are_refused():
    with pytest.raises(ValueError, match="max_unseen is -1"):
        AssociateConfig(max_unseen=-1)
    with pytest.raises(ValueError, match="min_match is -1.0"):
        AssociateConfig(min_match=-1.0)


@pytest.mark.parametrize("rule, of_network, in_use", [
    ("network", "cosine_iou", "cosine_iou"),
    ("network", "masktrack", "masktrack"),
    ("cosine_iou", "masktrack", "cosine_iou"),
    ("masktrack", "cosine_iou", "masktrack"),
])
def test_the_rule_in_use(rule, of_network, in_use):
    assert AssociateConfig(rule=rule).rule_for(of_network) == in_use
    assert Associate(AssociateConfig(rule=rule), of_network).rule == in_use


# ------------------------------------------------------------------------------------------------- both against loops


def tracked(frames: list[list[Found]], rule: str, weights: tuple = (1, 2, 10), max_unseen: int | None = None, dim=2):
    """The stage's own answer, as `naive` gives it: frames in two batches, their settings given."""
    names = ("score_weight", "iou_weight", "class_weight")
    masktrack = MaskTrackRuleConfig(**dict(zip(names, map(float, weights), strict=True)))
    stage = Associate(AssociateConfig(rule=rule, masktrack=masktrack, max_unseen=max_unseen))
    stage.open("s")
    records = [frame(t, *found, dim=dim) for t, found in enumerate(frames)]
    given = [*stage(records[:3]), *stage(records[3:])]
    return [list(zip(places(record), ids(record), strict=True)) for record in given]


def scene(seed: int, dim: int = 3) -> list[list[Found]]:
    """8 frames of 6 objects that wander, hide, come back, flicker in class and are found twice; one frame is empty."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*size: int) -> torch.Tensor:
        return torch.rand(*size, generator=rng)

    looks, corners, labels = 8 * draw(6, dim) - 3, 60 * draw(6, 2), (2 * draw(6)).int()
    frames: list[list[Found]] = []
    for t in range(8):
        corners, found = corners + 8 * draw(6, 2) - 4, []
        for k in range(6):
            if t == 4 or draw(1) < 0.3:
                continue
            look = [round(x, 3) for x in (looks[k] + 0.5 * draw(dim)).tolist()]
            box = [round(x, 1) for x in (*corners[k].tolist(), *(corners[k] + 15 + 10 * draw(2)).tolist())]
            label = int(labels[k]) ^ int(draw(1) < 0.25)
            one = Found(tuple(box), label, look, round(0.25 + 0.7 * draw(1).item(), 3))
            found += [one] + [one] * int(draw(1) < 0.15) + [one._replace(score=0.2)] * int(draw(1) < 0.15)
        frames.append(found)
    return frames


def happened(frames: list[list[Found]], written: list[list[tuple[int, int]]]) -> Counter:
    """What a sequence made the rule do."""
    events, first, last = Counter(), {}, {}
    for t, (found, out) in enumerate(zip(frames, written, strict=True)):
        events["empty"] += not found
        events["lost"] += len(found) - len(out)
        for d, k in out:
            events["new"] += k not in first
            events["kept"] += k in first
            events["back"] += t - last.get(k, t) > 1
            events["flicker"] += found[d].label != first.setdefault(k, found[d].label)
            last[k] = t
    return events


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("max_unseen", [None, 1], ids=["nothing forgotten", "max_unseen 1"])
def test_scenes_against_the_loops(rule, max_unseen):
    events = Counter()
    for seed in range(20):
        frames = scene(seed)
        written = naive(frames, rule, max_unseen=max_unseen)
        assert tracked(frames, rule, max_unseen=max_unseen, dim=3) == written, f"seed {seed}"
        events += happened(frames, written)
    wanted = {"empty", "lost", "new", "kept", "back"} | ({"flicker"} if rule != "cosine_iou" else set())
    assert wanted == {event for event, times in events.items() if times >= 10}, "every rule must have had its turn"


QUARTERS = st.integers(-6, 6).map(lambda x: x / 4)
"""Their products are exact in float32, so that what is equal in the loops is equal in tensors."""
FOUND = st.builds(
    Found,
    st.sampled_from([BOX, FAR, (0, 0, 10, 5), (3, 0, 13, 10), (5, 5, 5, 9)]),
    st.sampled_from([CAT, DOG]),
    st.tuples(QUARTERS, QUARTERS),
    st.sampled_from([0.125, 0.5, 0.75, 1.0]),
)


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])
@given(
    pool=st.lists(FOUND, min_size=1, max_size=5),
    data=st.data(),
    weights=st.sampled_from([(1, 2, 10), (1, 2, 10), (200, 2, 10), (1, 0, 0), (0, 2, 1)]),
    max_unseen=st.sampled_from([None, None, 0, 2]),
)
def test_any_sequence_against_the_loops(rule, pool, data, weights, max_unseen):
    """Frames out of one small pool: exact duplicates and ties are common, and so is coming back."""
    frames = data.draw(st.lists(st.lists(st.sampled_from(pool), max_size=6), max_size=8))
    try:
        written = naive(frames, rule, max_unseen=max_unseen, weights=weights)
    except Ambiguous:
        assume(False)
    assert tracked(frames, rule, weights, max_unseen) == written


@pytest.mark.parametrize("rule", RULES)
def test_a_track_has_one_detection_and_a_detection_one_track(rule):
    found = detections(*scene(3)[0] * 3, dim=3)
    track = claims(found, memory_of(*scene(3)[0], dim=3), AssociateConfig(), rule)
    kept = track[track >= 0]
    assert len(kept) == len(kept.unique()) > 2 and (track == LOST).sum() > 2
