"""Association as a stage: tracks' lives told frame by frame in both modes, bounded memory, the stage's contract.

Source of what is expected: CrossVIS specification 4.2, 4.3 and acceptance check 8. The rules alone: test_matching.py.
"""

from __future__ import annotations

import math

import pytest
import torch

from operators.association import Associate
from operators.errors import StageError
from operators.matching import AssociateConfig
from tests.operators.small_tracks import (
    BOX,
    CAT,
    DOG,
    EAST,
    FAR,
    NORTH,
    WEST,
    Found,
    at_cosine,
    detections,
    frame,
    ids,
    naive,
    places,
)
from tests.pipelines.contract import check_stream_stage

pytestmark = pytest.mark.usefixtures("one_thread")

RULES = ("cosine_iou", "masktrack")


def opened(*streams: str, **settings) -> Associate:
    stage = Associate(AssociateConfig(**settings))
    for stream in streams or ("s",):
        stage.open(stream)
    return stage


def life(*frames: list[tuple], **settings) -> list[list[int]]:
    """Track ids of each frame."""
    stage = opened(**settings)
    return [ids(record) for record in stage([frame(t, *found) for t, found in enumerate(frames)])]


# ----------------------------------------------------------------------------------------------- a life, frame by frame


def test_a_life():
    stage = opened()
    (first,) = stage([frame(0)])                                         # nobody is there
    assert ids(first) == []
    (second,) = stage([frame(1, (BOX, CAT, EAST), (FAR, DOG, NORTH))])   # both are new, in the order of detections
    assert ids(second) == [0, 1]
    (third,) = stage([frame(2, (FAR, DOG, NORTH), (BOX, CAT, EAST))])    # the order of detections does not matter
    assert ids(third) == [1, 0]
    (fourth,) = stage([frame(3, (FAR, DOG, NORTH))])                     # the cat hides
    assert ids(fourth) == [1]
    (fifth,) = stage([frame(4)])                                         # so does the dog: nothing changes
    assert ids(fifth) == []
    (sixth,) = stage([frame(9, (BOX, CAT, WEST), (FAR, CAT, EAST))])     # a stranger in its place; the cat, elsewhere
    assert ids(sixth) == [2, 0]
    (seventh,) = stage([frame(10, (FAR, CAT, EAST), (FAR, DOG, NORTH))])
    assert ids(seventh) == [0, 1]


def test_detections_keep_their_fields_and_order():
    (record,) = opened()([frame(0, (BOX, CAT, EAST), (FAR, DOG, NORTH))])
    given = detections((BOX, CAT, EAST), (FAR, DOG, NORTH))
    for name in ("boxes", "scores", "labels", "embeddings", "mask_logits"):
        assert torch.equal(getattr(record.detections, name), getattr(given, name)), name
    assert record.detections.track_ids.dtype == torch.int64
    assert record.info == frame(0).info


@pytest.mark.parametrize("cosine, box, new", [
    pytest.param(0.39, FAR, True, id="0.39 is a new track (acceptance 8)"),
    pytest.param(0.41, FAR, False, id="0.41 keeps its id"),
    pytest.param(-0.55, BOX, False, id="cosine -0.55 and IoU 1 make 0.45"),
    pytest.param(-0.65, BOX, True, id="cosine -0.65 and IoU 1 make 0.35"),
    pytest.param(0.0, (0, 0, 10, 5), False, id="IoU 0.5 alone"),
    pytest.param(0.0, (0, 0, 10, 3), True, id="IoU 0.3 alone"),
])
def test_match_of_at_least_0_4_keeps_the_id(cosine, box, new):
    assert life([(BOX, CAT, EAST)], [(box, CAT, at_cosine(cosine))]) == [[0], [1 if new else 0]]


def test_another_class_is_a_new_identity_even_with_iou_1_and_cosine_1():
    assert life([(BOX, CAT, EAST)], [(BOX, DOG, EAST)], [(BOX, CAT, EAST), (BOX, DOG, EAST)]) == [[0], [1], [0, 1]]


def test_the_length_of_an_embedding_does_not_count():
    assert life([(BOX, CAT, (1e-3, 0))], [(FAR, CAT, (1e4, 0))]) == [[0], [0]]


def test_the_score_does_not_count_and_every_unmatched_detection_is_a_new_track():
    crowd = [((20 * i, 0, 20 * i + 5, 5), CAT, at_cosine(math.cos(i))) for i in range(8)]
    assert life([], crowd) == [[], list(range(8))]


# --------------------------------------------------------------------------------------------------------------- claims


def test_two_on_one_track_one_survives_and_the_other_vanishes():
    """Acceptance 8: no third identity, and the loser is not remembered."""
    stage = opened()
    strong, weak = (BOX, CAT, EAST), (BOX, CAT, at_cosine(0.9))
    stage([frame(0, (BOX, CAT, EAST))])
    (record,) = stage([frame(1, weak, strong)])
    assert (ids(record), places(record)) == ([0], [1])
    (record,) = stage([frame(2, (FAR, CAT, EAST), (FAR, CAT, at_cosine(0.3)))])
    assert ids(record) == [0, 1], "ids go on from 0: the loser took none, and is not there to be matched"


def test_a_loser_with_a_second_best_track_above_the_threshold_still_vanishes():
    first, second = (BOX, CAT, EAST), (FAR, CAT, at_cosine(0.8))
    stage = opened()
    stage([frame(0, first, second)])
    # both are nearest to track 0; the loser would match track 1 with cosine 0.8
    (record,) = stage([frame(1, (BOX, CAT, EAST), ((0, 0, 10, 9), CAT, EAST))])
    assert (ids(record), places(record)) == ([0], [0])


def test_equal_tracks_the_first_is_taken():
    twins = [(BOX, CAT, EAST), (BOX, CAT, EAST)]
    assert life(twins, [(BOX, CAT, EAST)], [(FAR, CAT, EAST)]) == [[0, 1], [0], [0]]


def test_claims_go_to_the_state_before_the_frame():
    """What is new in a frame cannot be claimed in it."""
    assert life([], [(BOX, CAT, EAST), (BOX, CAT, EAST), (BOX, CAT, EAST)]) == [[], [0, 1, 2]]


def test_only_the_latest_record_counts():
    north = at_cosine(0.0)
    # the embedding turns by a quarter while the box stays: then only NORTH is known
    assert life([(BOX, CAT, EAST)], [(BOX, CAT, north)], [(FAR, CAT, EAST)]) == [[0], [0], [1]]
    assert life([(BOX, CAT, EAST)], [(BOX, CAT, north)], [(FAR, CAT, north)]) == [[0], [0], [0]]
    # so with boxes: what is remembered is where it was last, not where it was first
    moved = (0, 0, 10, 20)
    assert life([(BOX, CAT, EAST)], [(moved, CAT, EAST)], [(moved, CAT, north)]) == [[0], [0], [0]]


def test_a_track_comes_back_after_any_gap():
    frames = [[(BOX, CAT, EAST)], *[[] for _ in range(300)], [(FAR, CAT, EAST)]]
    assert life(*frames)[-1] == [0]
    strangers = [[(BOX, CAT, EAST)], *[[(BOX, DOG, EAST)] for _ in range(300)], [(FAR, CAT, EAST)]]
    assert life(*strangers)[-1] == [0]


def test_without_the_embedding_only_boxes_decide():
    turned = [(BOX, CAT, WEST), (FAR, CAT, EAST)]
    assert life([(BOX, CAT, EAST), (FAR, CAT, WEST)], turned) == [[0, 1], [1, 0]]
    assert life([(BOX, CAT, EAST), (FAR, CAT, WEST)], turned, embedding_weight=0.0) == [[0, 1], [0, 1]]


# ------------------------------------------------------------------------------------------- mode B, as MaskTrack R-CNN


def test_a_life_in_mode_b():
    stage = opened(rule="masktrack")
    cat, dog = (4, 0), (0, 4)
    (first,) = stage([frame(0)])                                         # nobody is there
    assert ids(first) == []
    (second,) = stage([frame(1, (BOX, CAT, cat), (BOX, CAT, cat))])      # all of the first frame, twins too
    assert ids(second) == [0, 1]
    (third,) = stage([frame(2, (FAR, DOG, dog), (BOX, CAT, cat))])       # of two equal tracks the first
    assert ids(third) == [2, 0]
    (fourth,) = stage([frame(3)])
    assert ids(fourth) == []
    (fifth,) = stage([frame(9, (FAR, CAT, cat, 0.3), (BOX, DOG, dog, 0.9), (FAR, CAT, cat, 0.4))])   # places swapped
    assert (ids(fifth), places(fifth)) == ([2, 0], [1, 2]), "16 of looks beat 2 of place; of the two cats the surer"


def test_the_class_that_is_stored_is_that_of_the_first_record():
    """Seen as a dog with 16 + 2 against 10, it stays a cat: as a dog it would be known with 1 + 10 against 10."""
    cat, as_dog = (BOX, CAT, (4, 0)), (BOX, DOG, (4, 0))
    assert life([cat], [as_dog], [(FAR, DOG, (0.25, 0))], rule="masktrack") == [[0], [0], [1]]
    assert life([cat], [as_dog], [(FAR, CAT, (0.25, 0))], rule="masktrack") == [[0], [0], [0]]
    (record,) = opened_with(cat, rule="masktrack")([frame(1, as_dog)])
    assert record.detections.labels.tolist() == [DOG], "the frame's own record keeps the frame's class"


def test_embedding_and_box_are_replaced_in_mode_b():
    turned = (BOX, CAT, (-0.5, 2))                                       # dot -1, IoU 1: 1 + 10 beat 10
    assert life([(BOX, CAT, (2, 0))], [turned], [(FAR, CAT, (1, 0))], rule="masktrack") == [[0], [0], [1]]
    assert life([(BOX, CAT, (2, 0))], [turned], [(FAR, CAT, (0, 1))], rule="masktrack") == [[0], [0], [0]]
    moved = (FAR, CAT, (0.25, 0))                                        # dot 0.5: known without overlap
    assert life([(BOX, CAT, (2, 0))], [moved], [(FAR, CAT, (-4, 0))], rule="masktrack") == [[0], [0], [0]]
    assert life([(BOX, CAT, (2, 0))], [moved], [(BOX, CAT, (-4, 0))], rule="masktrack") == [[0], [0], [1]]


def test_a_loser_in_mode_b_vanishes():
    stage = opened_with((BOX, CAT, (4, 0)), rule="masktrack")
    (record,) = stage([frame(1, (BOX, CAT, (4, 0), 0.5), (BOX, CAT, (4, 0), 0.9))])
    assert (ids(record), places(record)) == ([0], [1])
    (record,) = stage([frame(2, (FAR, DOG, (0, 1)))])
    assert ids(record) == [1], "the loser took no id"


@pytest.mark.parametrize("cosine, rule, kept", [
    pytest.param(0.39, "cosine_iou", [1], id="mode A: 0.39 is a new track (acceptance 8)"),
    pytest.param(0.39, "masktrack", [0], id="mode B: there is no threshold"),
    pytest.param(-0.39, "masktrack", [1], id="mode B: below 0 a new track is likelier"),
])
def test_the_rules_differ(cosine, rule, kept):
    assert life([(BOX, CAT, EAST)], [(FAR, CAT, at_cosine(cosine))], rule=rule) == [[0], kept]


def opened_with(*found: tuple, **settings) -> Associate:
    """A stage that has seen one frame."""
    stage = opened(**settings)
    stage([frame(0, *found)])
    return stage


# ------------------------------------------------------------------------------------------------ many frames, by loops


def random_frames(seed: int, count: int = 40) -> list[list[Found]]:
    rng = torch.Generator().manual_seed(seed)
    frames = []
    for _ in range(count):
        n = int(torch.randint(0, 7, (), generator=rng))
        corners = torch.rand(n, 2, generator=rng) * 30
        boxes = torch.cat([corners, corners + 5 + torch.rand(n, 2, generator=rng) * 20], dim=1).tolist()
        labels = torch.randint(0, 2, (n,), generator=rng).tolist()
        embeddings = torch.randn(n, 3, generator=rng).tolist()
        frames.append([Found(tuple(box), *rest) for box, *rest in zip(boxes, labels, embeddings, strict=True)])
    return frames


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(3))
def test_against_the_naive_loop(seed, rule):
    frames = random_frames(seed)
    expected = naive(frames, rule)
    records = opened(rule=rule)([frame(t, *found, dim=3) for t, found in enumerate(frames)])
    assert [list(zip(places(r), ids(r), strict=True)) for r in records] == expected
    lost = sum(map(len, frames)) - sum(map(len, expected))
    assert lost > 5 and any(k > 3 for frame_ids in expected for _, k in frame_ids), "every rule must have had its turn"


# ------------------------------------------------------------------------------------------------------- bounded memory


@pytest.mark.parametrize("rule", RULES)
def test_max_unseen_counts_the_frames_between(rule):
    gone_for_two = [[(BOX, CAT, EAST)], [], [], [(BOX, CAT, EAST)]]
    assert life(*gone_for_two, max_unseen=2, rule=rule)[-1] == [0]
    assert life(*gone_for_two, max_unseen=1, rule=rule)[-1] == [1]
    assert life([(BOX, CAT, EAST)], [(BOX, CAT, EAST)], max_unseen=0, rule=rule) == [[0], [0]]


def test_max_unseen_counts_frame_numbers_that_never_came_too():
    stage = opened(max_unseen=2)
    stage([frame(0, (BOX, CAT, EAST))])
    (record,) = stage([frame(4, (BOX, CAT, EAST))])
    assert ids(record) == [1]


def test_ids_are_never_used_twice_though_everything_was_forgotten():
    stage = opened(max_unseen=1)
    stage([frame(0, (BOX, CAT, EAST), (FAR, DOG, EAST))])
    stage([frame(t) for t in range(1, 10)])                              # nobody for longer than that
    (record,) = stage([frame(10, (BOX, CAT, EAST))])
    assert ids(record) == [2], "0 and 1 belong to objects that were shown before"


def test_memory_stays_flat_however_many_objects_come():
    stage = opened(max_unseen=10)
    sizes, last = [], []
    for t in range(5000):
        angle = t * 2.4
        (record,) = stage([frame(t, ((5 * t, 0, 5 * t + 4, 4), t % 7, (math.cos(angle), math.sin(angle))))])
        last = ids(record)
        if t in (100, 1000, 4999):
            sizes.append(len(stage.snapshot("s")))
    assert max(sizes) - min(sizes) <= 64, f"snapshots of {sizes} bytes"
    assert last[0] > 3000, "almost every object must have been a new track, or the test shows nothing"


def test_by_default_nothing_is_forgotten():
    strangers = [[((20 * t, 0, 20 * t + 4, 4), t, EAST)] for t in range(200)]
    lives = life(*strangers, *strangers)
    assert [one for (one,) in lives] == [*range(200), *range(200)]


# ------------------------------------------------------------------------------------------------- the stage's contract


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("max_unseen", [None, 0, 3])
def test_keeps_the_contract_of_a_stage_with_memory(max_unseen, rule):
    records = [frame(t, *found, dim=3) for t, found in enumerate(random_frames(seed=11, count=12))]
    batches = [records[0:1], records[1:4], [], records[4:9], records[9:12]]
    check_stream_stage(lambda: Associate(AssociateConfig(max_unseen=max_unseen, rule=rule)), batches, "s")


def test_a_snapshot_of_another_rule_is_refused_and_changes_nothing():
    stage = opened_with((BOX, CAT, EAST), rule="masktrack")
    other = opened_with((FAR, DOG, WEST), (FAR, DOG, NORTH), rule="cosine_iou")
    with pytest.raises(StageError, match="stream 's': the snapshot is of rule 'masktrack', this stage follows 'cosine"):
        other.restore("s", stage.snapshot("s"))
    (record,) = other([frame(1, (FAR, DOG, NORTH))])
    assert ids(record) == [1]


def test_a_snapshot_of_forgotten_tracks_still_knows_the_next_id():
    """An empty frame, cut, then the rest: ids go on, in both instances."""
    records = [frame(0, (BOX, CAT, EAST)), frame(1), frame(2), frame(3, (BOX, CAT, EAST))]
    stage, other = opened(max_unseen=0), Associate(AssociateConfig(max_unseen=0))
    stage(records[:3])
    other.restore("s", stage.snapshot("s"))
    assert [ids(one([records[3]])[0]) for one in (stage, other)] == [[1], [1]]


def test_streams_do_not_see_each_other():
    stage = opened("a", "b")
    cat, dog = (BOX, CAT, EAST), (BOX, DOG, EAST)
    first = [frame(0, cat, stream="a"), frame(0, dog, cat, stream="b")]
    second = [frame(1, dog, stream="a"), frame(1, cat, stream="b")]
    told = [(record.info.stream, ids(record)) for record in stage([*first, *second])]
    assert told == [("a", [0]), ("b", [0, 1]), ("a", [1]), ("b", [1])]
    stage.close("a")
    (record,) = stage([frame(2, dog, stream="b")])
    assert ids(record) == [0], "closing one stream leaves the other as it was"


def test_close_forgets_and_is_harmless_twice():
    stage = opened()
    stage([frame(0, (BOX, CAT, EAST))])
    assert stage.close("s") == [] == stage.close("s")
    assert stage.close("never opened") == []
    stage.open("s")
    (record,) = stage([frame(0, (FAR, DOG, EAST))])
    assert ids(record) == [0]


@pytest.mark.parametrize("index", [pytest.param(5, id="the same frame again"), pytest.param(4, id="an earlier frame")])
def test_frames_out_of_order_are_an_error(index):
    stage = opened()
    stage([frame(5, (BOX, CAT, EAST))])
    with pytest.raises(StageError, match=f"associate, stream 's', frame {index}: came after frame 5"):
        stage([frame(index, (BOX, CAT, EAST))])


def test_order_is_remembered_by_a_snapshot():
    stage, other = opened(), Associate(AssociateConfig())
    stage([frame(5, (BOX, CAT, EAST))])
    other.restore("s", stage.snapshot("s"))
    with pytest.raises(StageError, match="came after frame 5"):
        other([frame(5, (BOX, CAT, EAST))])


def test_embeddings_of_another_length_are_an_error_that_says_both():
    stage = opened()
    stage([frame(0, (BOX, CAT, EAST))])
    with pytest.raises(StageError, match=r"associate, stream 's', frame 1: embeddings \(1, 3\), memory \(1, 2\)"):
        stage([frame(1, (BOX, CAT, (1, 0, 0)), dim=3)])


def test_open_twice_and_not_opened_are_errors():
    stage = opened()
    with pytest.raises(StageError, match="'s' is open already"):
        stage.open("s")
    with pytest.raises(StageError, match="stream 'other', frame 0: the stream is not open"):
        stage([frame(0, stream="other")])


def test_a_damaged_snapshot_and_a_stream_that_is_not_open():
    stage = Associate(AssociateConfig())
    with pytest.raises(StageError, match="'s' is not open"):
        stage.snapshot("s")
    with pytest.raises(StageError, match="the snapshot is damaged"):
        stage.restore("s", b"nothing of ours")
