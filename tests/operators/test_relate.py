"""The stages `previous` and `relate`: frames against a slow composition, lives of streams, bounds, wrong calls.

Source of what is expected: TLTM specification 4, 5 and acceptance test 9.
"""

from __future__ import annotations

import functools
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch

from operators.box_tracks import BoxTracks, BoxTracksConfig
from operators.box_tracks import advance as advance_boxes
from operators.detect_objects import detect_objects
from operators.errors import StageError
from operators.network import Heads
from operators.object_graph import ObjectGraphConfig
from operators.previous import Previous
from operators.records import FrameDetections
from operators.relate import RelateConfig
from tests.operators.slow_tltm import Rules, SlowTLTM
from tests.operators.small_objects import (
    CPU,
    DETECT,
    ORIGINAL,
    SIZE,
    Both,
    clip,
    finding_centermask,
    finding_tltm,
    ids,
    images,
    of_stream,
    relate,
    run,
)
from tests.pipelines.contract import check_stream_stage, plain

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def network():
    return finding_tltm()


@pytest.fixture(scope="module")
def baseline():
    return finding_centermask()


# ------------------------------------------------------------------------------------------ what comes out


@pytest.mark.parametrize("changes, edges", [
    pytest.param({}, {}, id="as released"),
    pytest.param({}, {"edge_weight": 1.25, "score_weight": 1.0}, id="R-101's weights"),
    pytest.param({"fuser": "none"}, {}, id="without a fuser"),
])
@pytest.mark.parametrize("seed", [0, 1])
def test_three_frames_from_images_to_tracks(changes, edges, seed):
    """Against loops in float64: ids exactly, all else to rounding."""
    network, cfg = finding_tltm(**changes), ObjectGraphConfig(**edges)
    both, slow = Both(network, edges=cfg, max_per_frame=8), SlowTLTM(network, Rules(
        DETECT.min_class, DETECT.max_iou, DETECT.max_per_frame, a0=cfg.edge_weight, a1=cfg.score_weight, shown=8))
    told = []
    for record, image in zip(run(both, clip(network, seed, frames=3)), images(seed, 3), strict=True):
        expected, found = slow.frame(image, SIZE, ORIGINAL), record.detections
        assert [one[0] for one in expected] == found.track_ids.tolist()
        assert [one[1] for one in expected] == found.labels.tolist()
        for column, tensor in ((2, found.scores), (3, found.boxes), (4, found.mask_logits)):
            wanted = np.array([one[column] for one in expected])
            np.testing.assert_allclose(tensor.numpy(), wanted, rtol=1e-4, atol=1e-4)
        told.append(set(found.track_ids.tolist()))
    assert told[0] & told[2] and len(slow.boxes) > 12, "some tracks last, and some are new"


def test_a_frame_depends_on_the_one_before_and_on_no_later_one(network):
    records = clip(network, 0, frames=6)
    whole = run(Both(network), records, per_call=4)
    for end in range(1, 6):
        assert plain(run(Both(network), records[:end], per_call=2)) == plain(whole[:end])
    changed = [replace(records[0], levels=tuple(level + 0.5 for level in records[0].levels)), *records[1:]]
    other = run(Both(network), changed)
    boxes, others = ([plain(one.detections.boxes) for one in given] for given in (whole, other))
    assert boxes[1] != others[1], "the fuser sees the frame before"
    assert boxes[2:] == others[2:], "raw, so what is found does not depend on frames before that"


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("rule", ["edges", "boxes"])
def test_streams_together_equal_each_alone(network, rule, batch):
    """Of other pictures, interleaved unevenly, one of them longer."""
    clips = {"a": clip(network, 0, "a", 6), "b": clip(network, 1, "b", 9), "c": of_stream(clip(network, 0), "c")}
    settings = {"rule": rule, "batch": batch}
    alone = {name: [plain(one) for one in run(Both(network, **settings), records)] for name, records in clips.items()}
    together, given = Both(network, **settings), {name: [] for name in clips}
    for name in clips:
        together.open(name)
    left = {name: list(records) for name, records in clips.items()}
    for turn in ("aabcccc", "bbbaaaa", "cbbbbb", "cccc"):
        for record in together([left[name].pop(0) for name in turn]):
            given[record.info.stream].append(plain(record))
    assert given == alone and not any(left.values())


def test_nothing_found_leaves_the_tracks_and_moves_the_reference(network):
    """4.2 steps 4 and 7: ids go on after an empty frame, whose pyramid is the next one's reference all the same."""
    records, stage = clip(network, 0, frames=4), Both(network)
    first = run(stage, records[:1])
    tracks = stage.relate._states["s"].memory
    detect = stage.relate.heads.detect
    stage.relate.heads.detect = functools.partial(detect_objects, cfg=replace(DETECT, min_class=1.0))
    (empty,) = stage(records[1:2])
    assert len(empty.detections) == 0 and empty.detections.mask_logits.shape == (0, 28, 28)
    assert stage.relate._states["s"].memory is tracks
    stage.relate.heads.detect = detect
    (third,) = stage(records[2:3])
    assert set(ids(first)[0]) & set(ids([third])[0])
    after_it, after_first = (run(Both(network), [one, records[2]])[1].detections.boxes for one in records[1::-1])
    assert plain(third.detections.boxes) == plain(after_it) != plain(after_first)


def test_the_best_are_shown_after_all_have_refreshed_their_tracks(network):
    """4.2 step 6: fewer shown, the same ids."""
    records = clip(network, 2, frames=6)
    many, few = (run(Both(network, max_per_frame=most), records) for most in (50, 5))
    assert [one[:5] for one in ids(many)] == ids(few) and max(map(len, ids(many))) > 5
    for one, other in zip(many, few, strict=True):
        assert plain(one.detections[torch.arange(5)]) == plain(other.detections)


def test_boxes_are_clipped_when_shown_and_not_before(network):
    """Pitfall 3: memory is in unclipped input pixels; a box that reaches out goes on with its track."""
    records = clip(network, 0, frames=3)
    both = Both(network)
    shown = run(both, records)[2].detections
    (state,) = both.relate._states.values()
    assert (shown.boxes >= 0).all() and (shown.boxes[:, 2] <= 125).all() and (shown.boxes[:, 3] <= 90).all()
    assert (state.memory.boxes < 0).any() or (state.memory.boxes[:, 2:] > 64).any()
    scale = torch.tensor([125 / 50, 90 / 60] * 2)
    for track, box in zip(shown.track_ids.tolist(), shown.boxes, strict=True):
        (known,) = state.memory.boxes[state.memory.track_ids == track] * scale
        assert torch.allclose(torch.minimum(known.clamp(min=0), torch.tensor([125.0, 90, 125, 90])), box)


def test_what_is_given_out_carries_no_more_than_itself(network):
    """What goes from process to process: no object vectors, and no rows that are not shown."""
    found = run(Both(network, max_per_frame=2), clip(network, 0, frames=1))[0].detections
    assert found.embeddings.shape == (2, 0) and len(pickle.dumps(found)) < 2 * 28 * 28 * 4 + 6000


# ------------------------------------------------------------------------------------------ the baseline


def test_boxes_alone_against_the_tracker_by_itself(baseline):
    """The heads' boxes, before they are clipped, through operators/box_tracks.py."""
    records, cfg = clip(baseline, 0, frames=9), BoxTracksConfig(max_unseen=2, min_hits=1)
    given = run(relate(baseline, rule="boxes", boxes=cfg, batch=2, max_per_frame=99), records, per_call=4)
    heads, tracks = Heads(baseline, RelateConfig(), relate(baseline).heads.detect, CPU), BoxTracks()
    with torch.inference_mode():
        for record, found in zip(given, heads.found(records), strict=True):
            tracks, expected = advance_boxes(tracks, found.boxes, cfg)
            inside = (found.boxes[:, 2:] > 0).all(1) & (found.boxes[:, 0] < 50) & (found.boxes[:, 1] < 60)
            assert record.detections.track_ids.tolist() == expected[(expected >= 0) & inside].tolist()
    assert len({track for frame in ids(given) for track in frame}) > 12 and not baseline.state_dict().keys() & {"fuser"}


def test_edges_of_a_network_without_a_graph_are_all_alike(baseline):
    """`score_a0_zero`, the released baseline's rule: class, overlap and score alone, with no vectors at all."""
    cfg = ObjectGraphConfig(edge_weight=0.0)
    stage = relate(baseline, cfg)
    given = ids(run(stage, clip(baseline, 0, frames=5)))
    assert set(given[0]) & set(given[4]) and stage._states["s"].memory.embeddings.shape[1] == 0


# ------------------------------------------------------------------------------------------ lives of streams


def test_it_keeps_the_contract_of_stages(network):
    """With references; without, and in its other settings, tests/pipelines/test_contract.py holds it to that."""
    records = run(Previous(CPU), clip(network, 1, frames=6), 6)
    check_stream_stage(lambda: relate(network, batch=2), [records[:3], records[3:5], records[5:]], "s")


@pytest.mark.parametrize("rule", ["edges", "boxes"])
def test_both_snapshots_restored_elsewhere_go_on_bit_for_bit(network, rule):
    records = clip(network, 0, frames=8)
    whole = [plain(one) for one in run(Both(network, rule=rule), records)]
    first, second = Both(network, rule=rule), Both(network, rule=rule)
    given = [plain(one) for one in run(first, records[:5], per_call=2)]
    second.restore("s", first.snapshot("s"))
    assert given + [plain(one) for one in second(records[5:])] == whole
    pyramid, tracks = first.snapshot("s")
    assert 8 * (64 + 16 + 4 + 1 + 1) * 4 < len(pyramid) < 8 * 86 * 4 + 4096, "P3 to P7 of a 64 x 64 frame, 8 channels"
    assert len(tracks) < 16_000


@pytest.fixture(scope="module")
def endless(network):
    """Every fifth picture is another one."""
    return clip(network, 3, frames=60)


EDGES = ObjectGraphConfig(min_iou=0.9)
"""Few boxes overlap that much: every frame begins tracks that never go on."""


@pytest.mark.parametrize("settings, most", [
    pytest.param({"max_unseen": 1, "max_tracks": 20}, 20, id="edges: both bounds"),
    pytest.param({"max_tracks": 15}, 15, id="edges: a number of tracks"),
    pytest.param({"max_unseen": 1}, 36, id="edges: an age"),
    pytest.param({"rule": "boxes", "boxes": BoxTracksConfig(min_iou=0.9, max_unseen=1)}, 24, id="boxes"),
])
def test_memory_of_an_endless_stream_is_flat(network, endless, settings, most):
    stage, tracks, sizes = Both(network, edges=EDGES, **settings), [], []
    stage.open("s")
    for record in endless:
        stage([record])
        tracks.append(len(stage.relate._states["s"].memory))
        sizes.append(sum(map(len, stage.snapshot("s"))))
    assert max(tracks) <= most and stage.relate._states["s"].memory.next_id > 4 * most
    assert max(sizes[30:]) <= max(sizes[:30]) + 10 * 100, "ten tracks of 100 bytes: how many come in a frame differs"


def test_as_published_nothing_is_forgotten(network, endless):
    """The test above can fail."""
    stage = Both(network, edges=EDGES)
    run(stage, endless, per_call=6)
    memory = stage.relate._states["s"].memory
    assert len(memory) == memory.next_id > 144 and memory.track_ids.tolist() == list(range(memory.next_id))


def test_ids_of_forgotten_tracks_are_not_given_again(network, endless):
    seen = [set(one) for one in ids(run(Both(network, edges=EDGES, max_unseen=0), endless, per_call=6))]
    gone: set[int] = set()
    for before, now in zip(seen, seen[1:], strict=False):
        assert not (now - before) & gone
        gone |= before - now
    assert len(gone) > 40


@pytest.mark.parametrize("rule", ["edges", "boxes"])
def test_a_change_of_size_begins_anew_with_new_ids(network, rule):
    records = clip(network, 0, frames=4)
    smaller = [replace(record, size=(60, 44)) for record in records[2:]]
    given = ids(run(Both(network, rule=rule, boxes=BoxTracksConfig(min_hits=0)), records[:2] + smaller))
    assert not set(given[0] + given[1]) & set(given[2] + given[3]) and min(given[2]) > max(given[0] + given[1])


# ------------------------------------------------------------------------------------------ what cannot be


def test_a_fusing_network_wants_references(network):
    stage = relate(network)
    stage.open("s")
    state = stage.snapshot("s")
    with pytest.raises(StageError, match="stream 's', frame 0: came without a reference.*'previous'"):
        stage(clip(network, 0, frames=1))
    assert stage.snapshot("s") == state


def test_a_call_that_fails_changes_nothing(network):
    stage = Both(network)
    records = clip(network, 0, frames=4)
    run(stage, records[:2])
    before = stage.relate.snapshot("s")
    fed = stage.previous(records[2:])
    with pytest.raises(StageError, match="came after frame 2"):
        stage.relate([fed[0], fed[0]])
    stage.relate.open("t")
    with pytest.raises(StageError, match="stream 'u'.*not open"):
        stage.relate([fed[0], *of_stream(fed[1:], "u")])
    assert stage.relate.snapshot("s") == before


@pytest.mark.parametrize("made, restored, message", [
    pytest.param({"rule": "boxes"}, {}, "rule 'boxes', this stage follows 'edges'", id="another rule"),
    pytest.param({}, {"rule": "boxes"}, "rule 'edges', this stage follows 'boxes'", id="another rule, the other way"),
])
def test_a_snapshot_of_another_rule_is_refused(network, made, restored, message):
    stage = Both(network, **made)
    run(stage, clip(network, 0, frames=2))
    with pytest.raises(StageError, match=message):
        relate(network, **restored).restore("s", stage.relate.snapshot("s"))


def test_a_snapshot_of_another_network_is_told_by_its_vectors(network):
    stage, wider = Both(network), Both(finding_tltm(object_dim=32))
    run(stage, clip(network, 0, frames=2))
    wider.restore("s", stage.snapshot("s"))
    with pytest.raises(StageError, match=r"object vectors \(12, 32\), memory \(\d+, 16\). Restored from another"):
        wider(clip(network, 0, frames=3)[2:])


@pytest.mark.parametrize("settings, message", [
    ({"max_per_frame": 0}, "max_per_frame is 0"), ({"batch": 0}, "batch is 0"),
    ({"max_unseen": -1}, "max_unseen is -1"), ({"max_tracks": 0}, "max_tracks is 0"),
])
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ValueError, match=message):
        RelateConfig(**settings)


def test_the_graphs_bounds_go_over_those_of_the_network():
    of_network = ObjectGraphConfig(edge_weight=1.25, max_unseen=7)
    assert RelateConfig().edges_of(of_network) == of_network
    assert RelateConfig(max_unseen=3, max_tracks=9).edges_of(of_network) == replace(
        of_network, max_unseen=3, max_tracks=9)


def test_records_say_which_frames_they_are(network):
    records = clip(network, 0, frames=2)
    given = run(Both(network), records, per_call=2)
    assert all(isinstance(one, FrameDetections) for one in given)
    assert [(one.info, one.size, one.padded) for one in given] == [(r.info, r.size, r.padded) for r in records]
