"""Association mode A: a track's life told frame by frame, then a loop over detections and identities.

Source of what is expected: CrossVIS specification 4.2 and acceptance check 8.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch

from models.outputs import Detections
from operators.association import Associate, AssociateConfig, TrackMemory, claim, match_scores
from operators.errors import StageError
from operators.records import FrameDetections, FrameInfo
from tests.pipelines.contract import check_stream_stage

BOX = (0, 0, 10, 10)
FAR = (100, 100, 110, 110)
CAT, DOG = 0, 1
EAST, NORTH, WEST = (1, 0), (0, 1), (-1, 0)
Found = tuple[tuple, int, Sequence[float]]
"""box, class, embedding"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """On a busy machine several threads wait for each other longer than these few numbers take."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def at_cosine(cosine: float) -> tuple[float, float]:
    """An embedding with this cosine to EAST."""
    return (cosine, math.sqrt(1 - cosine**2))


def detections(*found: Found, dim: int = 2) -> Detections:
    """The score tells the place in the frame, so that the survivors can be named."""
    n = len(found)
    return Detections(
        boxes=torch.tensor([f[0] for f in found], dtype=torch.float32).reshape(n, 4),
        scores=torch.tensor([float(i) for i in range(n)]),
        labels=torch.tensor([f[1] for f in found], dtype=torch.int64),
        embeddings=torch.tensor([list(f[2]) for f in found], dtype=torch.float32).reshape(n, dim),
        mask_logits=torch.zeros(n, 2, 2),
    )


def frame(index: int, *found: Found, stream: str = "s", dim: int = 2) -> FrameDetections:
    info = FrameInfo(stream, index, index / 10, 200, 200)
    return FrameDetections(info, detections(*found, dim=dim), (64, 64), (64, 64))


def opened(*streams: str, **settings) -> Associate:
    stage = Associate(AssociateConfig(**settings))
    for stream in streams or ("s",):
        stage.open(stream)
    return stage


def ids(record: FrameDetections) -> list[int]:
    return record.detections.track_ids.tolist()


def places(record: FrameDetections) -> list[int]:
    """Which detections of the frame survived."""
    return record.detections.scores.int().tolist()


def life(*frames: list[Found], **settings) -> list[list[int]]:
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


@pytest.mark.parametrize("match, claimed", [
    pytest.param(torch.zeros(0, 3), [], id="no detection"),
    pytest.param(torch.zeros(0, 0), [], id="neither"),
    pytest.param(torch.zeros(2, 0), [-1, -1], id="no track yet"),
    pytest.param([[0.39]], [-1], id="below the threshold"),
    pytest.param([[0.4]], [0], id="exactly the threshold keeps the id"),
    pytest.param([[0.9, 0.9]], [0], id="two equal tracks: the first"),
    pytest.param([[0.1, 0.9, 0.9]], [1], id="two equal tracks behind a worse one"),
    pytest.param([[0.9], [0.9]], [0, -2], id="two equal claims: the earlier wins"),
    pytest.param([[0.8], [0.9]], [-2, 0], id="the larger claim wins, though later"),
    pytest.param([[0.7], [0.9], [0.8]], [-2, 0, -2], id="three claims"),
    pytest.param([[0.7], [0.9], [0.9], [0.8]], [-2, 0, -2, -2], id="four claims, two of them equal"),
    pytest.param([[0.9, 0.8], [0.95, 0.5]], [-2, 0], id="no second choice"),
    pytest.param([[0.3, 0.2], [0.5, 1.5], [0.5, 0.2]], [-1, 1, 0], id="each its own"),
    pytest.param([[0.1], [0.2]], [-1, -1], id="new ones do not compete"),
    pytest.param([[-1.0, -1.0]], [-1], id="other classes only"),
])
def test_claim(match, claimed):
    match = torch.as_tensor(match, dtype=torch.float64)
    assert claim(match, 0.4).tolist() == claimed


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


# ----------------------------------------------------------------------------------------------------- the match itself


def test_match_scores_by_hand():
    memory = TrackMemory(
        torch.tensor([0, 1]), torch.tensor([[2.0, 0], [0, 3]]), torch.tensor([BOX, FAR], dtype=torch.float32),
        torch.tensor([CAT, DOG]), torch.tensor([0, 0]), next_id=2,
    )
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
    memory = TrackMemory(torch.tensor([0]), torch.tensor([[1.0, 0]]), torch.tensor([speck]), torch.tensor([CAT]),
                         torch.tensor([0]), next_id=1)
    match = match_scores(detections((speck, CAT, NORTH)), memory, AssociateConfig())
    assert match.item() == pytest.approx(1 / 1.1, rel=1e-5)


def test_without_the_embedding_only_boxes_decide():
    turned = [(BOX, CAT, WEST), (FAR, CAT, EAST)]
    assert life([(BOX, CAT, EAST), (FAR, CAT, WEST)], turned) == [[0, 1], [1, 0]]
    assert life([(BOX, CAT, EAST), (FAR, CAT, WEST)], turned, embedding_weight=0.0) == [[0, 1], [0, 1]]


def naive(frames: list[list[Found]]) -> list[list[tuple[int, int]]]:
    """(place in the frame, identity) of what is written out, by loops: specification 4.2 sentence by sentence."""
    identities: dict[int, list[Found]] = {}
    written = []
    for found in frames:
        before = {k: history[-1] for k, history in identities.items()}
        new: dict[int, int] = {}
        claims: dict[int, tuple[float, int]] = {}
        for d, one in enumerate(found):
            best, best_k = -math.inf, None
            for k, other in before.items():
                m = match(one, other)
                if m > best:
                    best, best_k = m, k
            if best_k is None or best < 0.4:
                new[d] = len(identities) + len(new)
            elif best_k not in claims or best > claims[best_k][0]:
                claims[best_k] = (best, d)
        winners = {d: k for k, (_, d) in claims.items()}
        for d, k in {**new, **winners}.items():
            identities.setdefault(k, []).append(found[d])
        identities = dict(sorted(identities.items()))
        written.append(sorted({**new, **winners}.items()))
    return written


def match(a: Found, b: Found) -> float:
    if a[1] != b[1]:
        return -1.0
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = a[0], b[0]
    common = max(min(ax2, bx2) - max(ax1, bx1), 0) * max(min(ay2, by2) - max(ay1, by1), 0)
    union = (ax2 - ax1) * (ay2 - ay1) + (bx2 - bx1) * (by2 - by1) - common
    dot = sum(x * y for x, y in zip(a[2], b[2], strict=True))
    return dot / (math.hypot(*a[2]) * math.hypot(*b[2])) + common / (union + 1e-5)


def random_frames(seed: int, count: int = 40) -> list[list[Found]]:
    rng = torch.Generator().manual_seed(seed)
    frames = []
    for _ in range(count):
        n = int(torch.randint(0, 7, (), generator=rng))
        corners = torch.rand(n, 2, generator=rng) * 30
        boxes = torch.cat([corners, corners + 5 + torch.rand(n, 2, generator=rng) * 20], dim=1).tolist()
        labels = torch.randint(0, 2, (n,), generator=rng).tolist()
        embeddings = torch.randn(n, 3, generator=rng).tolist()
        frames.append(list(zip(map(tuple, boxes), labels, embeddings, strict=True)))
    return frames


@pytest.mark.parametrize("seed", range(5))
def test_against_the_naive_loop(seed):
    frames = random_frames(seed)
    expected = naive(frames)
    records = opened()([frame(t, *found, dim=3) for t, found in enumerate(frames)])
    assert [list(zip(places(r), ids(r), strict=True)) for r in records] == expected
    lost = sum(map(len, frames)) - sum(map(len, expected))
    assert lost > 5 and any(k > 3 for frame_ids in expected for _, k in frame_ids), "every rule must have had its turn"


# ------------------------------------------------------------------------------------------------------- bounded memory


def test_max_unseen_counts_the_frames_between():
    gone_for_two = [[(BOX, CAT, EAST)], [], [], [(BOX, CAT, EAST)]]
    assert life(*gone_for_two, max_unseen=2)[-1] == [0]
    assert life(*gone_for_two, max_unseen=1)[-1] == [1]
    assert life([(BOX, CAT, EAST)], [(BOX, CAT, EAST)], max_unseen=0) == [[0], [0]]


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


def test_max_unseen_below_zero_is_refused():
    with pytest.raises(ValueError, match="max_unseen is -1"):
        AssociateConfig(max_unseen=-1)


# ------------------------------------------------------------------------------------------------- the stage's contract


@pytest.mark.parametrize("max_unseen", [None, 0, 3])
def test_keeps_the_contract_of_a_stage_with_memory(max_unseen):
    records = [frame(t, *found, dim=3) for t, found in enumerate(random_frames(seed=11, count=12))]
    batches = [records[0:1], records[1:4], [], records[4:9], records[9:12]]
    check_stream_stage(lambda: Associate(AssociateConfig(max_unseen=max_unseen)), batches, "s")


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


def test_a_threshold_that_would_match_other_classes_is_refused():
    with pytest.raises(ValueError, match="min_match is -1.0"):
        AssociateConfig(min_match=-1.0)
