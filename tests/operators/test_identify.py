"""The stage `identify`: against the specification's section 4 told by loops, and in its life among streams."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models.remembering import MemoryConfig
from operators.errors import StageError
from operators.identities import IdentityDetectConfig
from operators.identity_memory import from_bytes
from operators.masks import EncodeMasks, decode_masks
from tests.operators.identity_oracle import Ambiguous, Naive
from tests.operators.small_identities import Scripted, clip, frame, random_said, run, small_iai, stage
from tests.pipelines.contract import check_stream_stage, plain

DETECT = IdentityDetectConfig(min_class=0.3, min_identity=0.5, max_per_level=9, max_iou=0.7, max_per_frame=4)
ORACLE = {"pre": 9, "tau_c": 0.3, "tau_d": 0.5, "iou": 0.7, "most": 4}
SIZE, ORIGINAL = (44, 60), (33, 80)


def script(seed: int, quiet: tuple[int, ...] = (), frames: int = 8) -> list:
    rng = np.random.default_rng(seed)
    return [random_said(rng, num_classes=3, num_outputs=5, quiet=t in quiet) for t in range(frames)]


@pytest.mark.parametrize("mode", ["reference", "paper", "stream"])
@pytest.mark.parametrize("quiet", [
    pytest.param((0, 1, 2, 3, 4, 5, 6, 7), id="nothing in any frame"),
    pytest.param((0,), id="nothing in the first frame"),
    pytest.param((2, 5), id="nothing in some frames"),
    pytest.param((), id="something in all frames"),
])
def test_eight_frames_against_the_loops(mode, quiet):
    told = 0
    for seed in range(20):
        said = script(seed, quiet)
        naive = Naive(mode, 5, ORACLE, stale_s=0.4)
        try:
            expected = [naive.frame(one, SIZE, ORIGINAL, t / 6) for t, one in enumerate(said)]
        except Ambiguous:
            continue
        network = Scripted(said, 5)
        identify = stage(network, DETECT, mode=mode, stale_s=0.4)
        identify.open("s")
        for t, wanted in enumerate(expected):
            (record,) = identify([frame(t)])
            compare(record, wanted)
            np.testing.assert_array_equal(one_hot(network.painted[t], 5), wanted.onehot, f"seed {seed}, frame {t}")
        assert identify.dropped("s") == naive.dropped
        told += 1
        if told == (1 if quiet else 3):
            return
    pytest.fail("every seed is ambiguous")


def compare(record, wanted) -> None:
    found = record.detections
    assert found.track_ids.tolist() == wanted.ids
    np.testing.assert_allclose(found.boxes.numpy(), np.reshape(wanted.boxes, (-1, 4)), rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(found.class_scores.numpy(), np.reshape(wanted.classes, (-1, 3)), rtol=1e-5, atol=1e-6)
    (tracks,) = EncodeMasks()([record])
    shown = [k for k, id_ in enumerate(wanted.ids) if id_ >= 0]
    assert tracks.track_ids.tolist() == [wanted.ids[k] for k in shown]
    masks = decode_masks(tracks.masks, *ORIGINAL).transpose(2, 0, 1)
    for mask, k in zip(masks, shown, strict=True):
        np.testing.assert_array_equal(mask > 0, wanted.pictures[k])
    in_sink = [wanted.classes[k] for k, id_ in enumerate(wanted.ids) if id_ < 0]
    assert (tracks.unshown_scores is None) == (not in_sink)
    if in_sink:
        np.testing.assert_allclose(tracks.unshown_scores, in_sink[-1], rtol=1e-5)


def one_hot(labels: torch.Tensor, num_outputs: int) -> np.ndarray:
    return np.stack([(labels == code).numpy() for code in range(num_outputs + 1)])


# ------------------------------------------------------------------------------------------ streams, one and several

EASY = IdentityDetectConfig(min_class=0.05, min_identity=0.05, max_iou=0.7, max_per_frame=5)


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    return small_iai(seed=6)


def test_a_clip_has_identities_that_last(network):
    """What the other tests of this part stand on: tracks are found again, and new ones come."""
    ids = [record.detections.track_ids.tolist() for record in run(stage(network, EASY, mode="paper"), clip(network, 0))]
    assert sum(map(len, ids)) > 15 and len({id_ for one in ids for id_ in one}) > 3
    assert any(set(one) & set(other) for one, other in zip(ids[1:], ids[2:], strict=False))


@pytest.mark.parametrize("settings, per_call", [
    pytest.param({}, 3, id="reference"),
    pytest.param({"mode": "paper", "interval_s": 0.5}, 3, id="paper, by seconds"),
    pytest.param({"mode": "stream", "max_stored": 2, "stale_s": 0.3, "local_age_s": 0.4}, 1, id="stream"),
])
def test_it_keeps_the_contract_of_stages(network, settings, per_call):
    records = clip(network, 1)
    batches = [records[begin : begin + per_call] for begin in range(0, len(records), per_call)]
    check_stream_stage(lambda: stage(network, EASY, **settings), batches, "s")


@pytest.mark.parametrize("of_network, of_stage, stored", [
    pytest.param(3, None, [1, 3, 6, 9], id="as released"),
    pytest.param(4, None, [1, 4, 8], id="as the network was trained"),
    pytest.param(4, 2, [1, 2, 4, 6, 8], id="as the graph has it"),
])
def test_how_often_memory_is_written(of_network, of_stage, stored):
    network = Scripted(script(0, quiet=tuple(range(9)), frames=9), 5)
    network.config = MemoryConfig(interval=of_network)
    identify = stage(network, DETECT, interval=of_stage)
    run(identify, [frame(t) for t in range(9)])
    kept = from_bytes(identify.snapshot("s"), "reference", torch.device("cpu"), "here").memory.stored
    assert [one.frame for one in reversed(kept)] == stored


@pytest.mark.parametrize("batch_streams", [1, 3])
@pytest.mark.parametrize("order", [
    pytest.param("abababababababababab", id="in turn"),
    pytest.param("aaabbaabbbaaaabbbbba", id="by and by, with different numbers of stored frames"),
])
@pytest.mark.parametrize("mode", ["reference", "stream"])
def test_two_streams_interleaved_equal_each_alone(network, batch_streams, order, mode):
    settings = {"mode": mode, "batch_streams": batch_streams, "max_stored": 3, "stale_s": 0.3}
    clips = {name: clip(network, seed, name, frames=10) for seed, name in enumerate("ab", start=2)}
    alone = {name: run(stage(network, EASY, **settings), records) for name, records in clips.items()}
    waiting = {name: iter(records) for name, records in clips.items()}
    together = run(stage(network, EASY, **settings), [next(waiting[name]) for name in order], per_call=5)
    for name in "ab":
        assert plain([one for one in together if one.info.stream == name]) == plain(alone[name]), name


def test_rows_that_share_a_call_equal_single_ones_but_for_last_bits(network):
    """Another number of rows may take other kernels: ids are the same, numbers to 1e-5."""
    records = [one for pair in zip(clip(network, 2, "a"), clip(network, 3, "b"), strict=True) for one in pair]
    single = run(stage(network, EASY), records, per_call=6)
    several = run(stage(network, EASY, batch_streams=4), records, per_call=6)
    for one, other in zip(single, several, strict=True):
        assert one.detections.track_ids.tolist() == other.detections.track_ids.tolist()
        torch.testing.assert_close(one.detections.mask_logits, other.detections.mask_logits, rtol=1e-4, atol=1e-5)


def test_frames_of_two_sizes_may_share_a_batch(network):
    small = clip(network, 4, "a")
    images = torch.randn(3, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        levels = network.features(images)
    wide = [replace(frame(t, "b", size=(64, 96)), levels=tuple(m[t] for m in levels), padded=(64, 96))
            for t in range(3)]
    mixed = [small[0], wide[0], small[1], wide[1], small[2], wide[2]]
    together = run(stage(network, EASY, batch_streams=2), mixed, per_call=4)
    assert plain(together[0::2]) == plain(run(stage(network, EASY, batch_streams=2), small[:3]))
    assert plain(together[1::2]) == plain(run(stage(network, EASY, batch_streams=2), wide))


def test_a_frame_does_not_depend_on_later_ones(network):
    records, others = clip(network, 0), clip(network, 6)
    whole = run(stage(network, EASY), records, per_call=3)
    for cut in (1, 4, 8):
        changed = run(stage(network, EASY), records[:cut] + others[cut:], per_call=3)
        assert plain(changed[:cut]) == plain(whole[:cut])
        assert plain(changed[cut]) != plain(whole[cut])


def test_a_frame_depends_on_earlier_ones(network):
    records, others = clip(network, 0), clip(network, 6)
    assert plain(run(stage(network, EASY), records)[5]) != plain(run(stage(network, EASY), others[:5] + records[5:])[5])


def test_a_call_that_fails_changes_nothing(network):
    records = clip(network, 0)
    expected = run(stage(network, EASY), records)
    identify = stage(network, EASY)
    given = run(identify, records[:4])
    broken = replace(records[5], levels=tuple(level[:, :1] for level in records[5].levels))
    with pytest.raises((ValueError, RuntimeError)):
        identify([records[4], broken])
    assert plain(given + identify(records[4:])) == plain(expected)


@pytest.mark.parametrize("act, message", [
    pytest.param(lambda s: s.open("s"), "stream 's' is open already", id="opened twice"),
    pytest.param(lambda s: s([frame(0, "x")]), "stream 'x', frame 0: the stream is not open", id="not open"),
    pytest.param(lambda s: s.snapshot("x"), "stream 'x' is not open", id="nothing to keep"),
    pytest.param(lambda s: (s([frame(3)]), s([frame(3)])), "came after frame 3; frames must come in order", id="order"),
    pytest.param(lambda s: s.restore("s", b"x"), "stream 's': the snapshot is damaged", id="damaged"),
    pytest.param(lambda s: (s.close("s"), s.restore("s", after_one_frame(6)), s([frame(1)])), "from another network",
                 id="network"),
    pytest.param(lambda s: s.restore("s", opened("paper").snapshot("s")), "of mode 'paper'", id="another mode"),
])
def test_misuse_is_named(act, message):
    with pytest.raises(StageError, match=f"identify, {message}|identify: {message}|{message}"):
        act(opened("reference"))


def after_one_frame(num_outputs: int) -> bytes:
    identify = stage(Scripted([one_object(0, 20, num_outputs)], num_outputs))
    run(identify, [frame(0)])
    return identify.snapshot("s")


def opened(mode: str):
    identify = stage(Scripted(script(0), 5), DETECT, mode=mode)
    identify.open("s")
    return identify


# ------------------------------------------------------------------------------ objects that come one by one, by script


def one_object(column: int, at: int, num_outputs: int = 20):
    """A frame with one object: which output of the identity head is sure of it, and which location finds it."""
    said = random_said(np.random.default_rng(0), 3, num_outputs)
    said.classes[:], said.identities[:], said.quality[:] = -9, -9, 8
    said.classes[at % 64, 0], said.identities[at % 64, column] = 3, 3
    return said


def test_twenty_five_objects_one_by_one():
    """Acceptance check 9, painted: the sink's pixels go into memory and its masks nowhere."""
    network = Scripted([one_object(19, t) for t in range(25)], 20)
    records = run(stage(network), [frame(t) for t in range(25)])
    assert [record.detections.track_ids.tolist() for record in records] == [[k] for k in range(18)] + [[-1]] * 7
    assert [sorted(set(labels.flatten().tolist())) for labels in network.painted] == \
        [[k, 20] for k in range(18)] + [[18, 20]] * 7
    tracks = EncodeMasks()(records)
    assert [len(one) for one in tracks] == [1] * 18 + [0] * 7
    assert all(one.unshown_scores is not None for one in tracks[18:])


def test_stored_frames_in_the_stage():
    """Acceptance check 3: frame 1 alone has a new object; then one in frame 5 too."""
    for new_at, stored in (((1,), [1, 3, 6, 9, 12]), ((1, 5), [1, 3, 5, 8, 11])):
        said = [one_object(4 if t in new_at else 0, 20, 5) for t in range(1, 14)]
        identify = stage(Scripted(said, 5), IdentityDetectConfig())
        run(identify, [frame(t) for t in range(13)])
        assert [one.frame for one in reversed(identify._states["s"].memory.stored)] == stored


def test_the_sink_writes_to_memory_in_every_frame():
    identify = stage(Scripted([one_object(4, 20, 5)] * 9, 5))
    run(identify, [frame(t) for t in range(9)])
    assert [one.frame for one in identify._states["s"].memory.stored] == [9, 8, 7, 6, 5, 4, 3, 2, 1]


def reused():
    """19 objects, then the first six leave for good and others come, each for two frames."""
    columns = [19] * 19 + [k for k in range(6, 19)] + [19, 0, 19, 1, 19, 2, 19, 3]
    said = [one_object(column, (t if t < 32 else t // 2 * 2) * 3) for t, column in enumerate(columns)]
    network = Scripted(said, 20)
    identify = stage(network, mode="stream", stale_s=4.0, max_stored=0)
    return network, identify, [frame(t) for t in range(len(said))]


def test_a_reused_slot_is_another_track():
    network, identify, frames = reused()
    ids = [record.detections.track_ids.tolist() for record in run(identify, frames)]
    assert ids == [[k] for k in [*range(19), *range(6, 19), 19, 19, 20, 20, 21, 21, 22, 22]]


def test_a_reused_slot_is_erased_from_memory_as_if_it_had_never_been_painted():
    """Acceptance check 10 in the stream: values are those of a memory painted anew without the slot's old owner."""
    network, identify, frames = reused()
    offered = []
    association = network.association
    entry, association.entry = association.entry, lambda *a: (offered.append(a[0].offered_u[a[1]]), entry(*a))[1]
    run(identify, frames)
    state = identify._states["s"]
    taken_at = {slot: int(state.table.first_frame[slot]) for slot in range(4)}
    assert sorted(taken_at.values()) == [33, 35, 37, 39]
    erased = 0
    for kept in (*state.memory.stored, state.memory.local):
        labels = network.painted[kept.frame - 1].long()
        for slot, since in taken_at.items():
            erased += int(since > kept.frame and (labels == slot).any())
            labels[(labels == slot) & (since > kept.frame)] = 20
        assert torch.equal(kept.labels.long(), labels)
        with torch.inference_mode():
            values = association.block.values(offered[kept.frame - 1], association.bank(labels[None])[0])
        torch.testing.assert_close(kept.values, values, rtol=1e-5, atol=1e-5)
    assert erased > 0, "nothing was erased that this could show"


def test_scores_of_endless_streams_are_means_since_an_object_was_first_seen():
    said = [one_object(19, 20), one_object(0, 20), *[one_object(19, 60)] * 2, one_object(0, 20)]
    said[2].classes[:], said[3].classes[:] = -9, -9
    records = run(stage(Scripted(said, 20), mode="stream"), [frame(t) for t in range(5)])
    one = records[0].detections.scores.item()
    assert records[1].detections.scores.item() == pytest.approx(one)
    assert records[4].detections.scores.item() == pytest.approx(one * 3 / 5)
    assert records[4].detections.class_scores.max().item() == pytest.approx(one), "the frame's own"


def test_ids_go_on_after_a_change_of_size():
    said = [one_object(19, 20)] * 4
    records = [frame(0), frame(1), frame(2, size=(30, 60)), frame(3, size=(30, 60))]
    identify = stage(Scripted(said, 20))
    found = run(identify, records)
    assert [record.detections.track_ids.tolist() for record in found] == [[0], [1], [2], [3]]
    assert identify._states["s"].memory.frames_seen == 2


def test_a_network_without_identity_head_remembers_and_leaves_ids_to_the_next_stage():
    network = small_iai(use_id=False)
    records = clip(network, 0)
    found = run(stage(network, EASY, mode="stream"), records)
    assert all(record.detections.track_ids is None for record in found) and any(len(one.detections) for one in found)
    assert plain(found[5]) != plain(run(stage(network, EASY, mode="stream"), [records[5]])[0])
