"""What is kept of a stream: when frames are stored, what goes first, and that 20,000 frames take no more than 200."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.iai_memory import Entry
from operators.errors import StageError
from operators.identity_memory import (
    IdentifyConfig,
    StreamState,
    arrive,
    forget_slots,
    from_bytes,
    remember,
    to_bytes,
)
from operators.identity_slots import DROPPED, SlotTable, allot, settle
from operators.records import Features, FrameInfo

CPU = torch.device("cpu")
SLOTS = 4


def features(index: int, time_s: float, size=(4, 4), original=(8, 8)) -> Features:
    return Features(FrameInfo("s", index, time_s, *original), (), size, (4, 4))


def entry(number: int, slots=()) -> Entry:
    """Of a map of 4 x 4, each slot in a row of its own; keys and values tell the frame."""
    labels = torch.full((4, 4), 5, dtype=torch.int8)
    for slot in slots:
        labels[slot % 4] = slot
    return Entry(torch.full((1, 2), float(number)), torch.full((1, 2), -float(number)), labels, number)


def erase(one: Entry, slot: int) -> Entry:
    labels = torch.where(one.labels == slot, torch.full_like(one.labels, 5), one.labels)
    return replace(one, labels=labels, values=one.values - 100)


class Life:
    """A stream whose frames are told by the slots they show and whether one of them is new."""

    def __init__(self, fps: float = 6, live: int = SLOTS, **settings) -> None:
        self.cfg, self.fps, self.index = IdentifyConfig(**{"mode": "stream", "interval": 3} | settings), fps, -1
        table = SlotTable.empty(SLOTS + 1, 2, "stream")
        table.track_ids[:live] = range(live)
        self.state = StreamState(table=table)

    def see(self, slots=(), new: bool = False, at: float | None = None) -> list[int]:
        """The frames that are stored after it, oldest first."""
        self.index += 1
        time_s = self.index / self.fps if at is None else at
        self.state = arrive(self.state, features(self.index, time_s), self.cfg)
        one = entry(self.state.frame + 1, slots)
        self.state = remember(self.state, one, frozenset(slots), new, self.cfg)
        assert self.state.memory.local is one
        return [kept.frame for kept in reversed(self.state.memory.stored)]


@pytest.mark.parametrize("new_at, stored", [
    pytest.param((), [1, 3, 6, 9, 12], id="no new object"),
    pytest.param((5,), [1, 3, 5, 8, 11], id="a new object in frame 5"),
    pytest.param((1, 2), [1, 2, 5, 8, 11], id="in the first two"),
])
@pytest.mark.parametrize("settings", [
    pytest.param({"max_stored": 0}, id="by frames"),
    pytest.param({"max_stored": 0, "interval_s": 0.5}, id="by seconds, at 6 frames a second"),
])
def test_stored_frames(new_at, stored, settings):
    """Acceptance check 3."""
    life = Life(**settings)
    assert [life.see(new=t in new_at) for t in range(1, 14)][-1] == stored


@pytest.mark.parametrize("fps, stored", [
    pytest.param(24, [1, 9, 21, 33], id="24 frames a second"),
    pytest.param(2, list(range(1, 41)), id="2: every frame is due"),
])
def test_by_seconds_the_frame_rate_does_not_matter(fps, stored):
    life = Life(fps=fps, interval_s=0.5, max_stored=0)
    assert [life.see() for _ in range(40)][-1] == stored


def test_seconds_forgive_the_rounding_of_time_stamps():
    life = Life(interval_s=0.5, max_stored=0)
    times = [round(t / 6, 3) - (t % 2) * 4e-4 for t in range(13)]
    assert [life.see(at=at) for at in times][-1] == [1, 3, 6, 9, 12]


@pytest.mark.parametrize("mode, max_stored, cap", [
    ("reference", None, 0), ("paper", None, 0), ("stream", None, 10), ("stream", 0, 0), ("reference", 7, 7),
])
def test_limits(mode, max_stored, cap):
    assert IdentifyConfig(mode=mode, max_stored=max_stored).cap == cap


def test_at_the_limit_the_oldest_goes_whose_identities_the_others_show():
    life = Life(interval=1, max_stored=3)
    for slots in ((0,), (1,), (1, 2)):
        life.see(slots)
    assert life.see((2, 3)) == [1, 3, 4], "frame 2 shows 1, as frame 3 does; frame 1 alone shows 0"
    assert life.see((0,)) == [3, 4, 5], "frame 5 shows 0 now"


def test_where_each_shows_something_of_its_own_the_oldest_goes():
    life = Life(interval=1, max_stored=3)
    for slot in range(3):
        life.see((slot,))
    assert life.see((3,)) == [2, 3, 4]


def test_an_entry_that_shows_nothing_more_goes_before_the_only_one_of_a_live_identity():
    life = Life(interval=1, max_stored=2)
    life.see((0,)), life.see((1,))
    assert life.see(()) == [1, 2], "even when it has just come"


def test_dead_identities_keep_no_entry():
    life = Life(interval=1, max_stored=2, live=2)
    life.see((3,)), life.see((0, 1))
    assert life.see(()) == [2, 3]


def test_against_the_rule_told_by_sets():
    rng = random.Random(0)
    for _ in range(200):
        life, model = Life(interval=1, max_stored=3, live=3), []
        for number in range(1, 12):
            slots = tuple(slot for slot in range(SLOTS) if rng.random() < 0.3)
            model.append((number, set(slots) & {0, 1, 2}))
            if len(model) > 3:
                covered = [one for one in model if one[1] <= set().union(*(o[1] for o in model if o is not one))]
                model.remove((covered or model)[0])
            assert life.see(slots) == [number for number, _ in model]


def test_at_the_limit_new_objects_write_once_an_interval():
    life = Life(max_stored=2)
    before = [life.see(new=True), life.see(new=True)]
    assert before == [[1], [1, 2]], "below the limit each writes"
    rest = [life.see(new=True) for _ in range(9)]
    assert [stored[-1] for stored in rest] == [2, 2, 5, 5, 5, 8, 8, 8, 11]


def test_at_the_limit_and_by_seconds():
    life = Life(max_stored=2, interval_s=0.5)
    rest = [life.see(new=True) for _ in range(11)]
    assert [stored[-1] for stored in rest] == [1, 2, 2, 2, 5, 5, 5, 8, 8, 8, 11]


@pytest.mark.parametrize("fps, age_s, back", [
    pytest.param(6, None, 1, id="the previous frame"),
    pytest.param(6, 1 / 6, 1, id="at 6 frames a second the same"),
    pytest.param(24, 1 / 6, 4, id="at 24 the fourth last"),
    pytest.param(30, 1 / 6, 5, id="at 30 the fifth last"),
    pytest.param(2, 1 / 6, 1, id="at 2 the previous, though older"),
    pytest.param(240, 1 / 6, 16, id="at 240 as far as it goes"),
])
def test_local_memory_of_an_age(fps, age_s, back):
    life = Life(fps=fps, local_age_s=age_s)
    for _ in range(40):
        life.see((0,))
    arrived = arrive(life.state, features(40, 40 / fps), life.cfg)
    assert arrived.recalled(life.cfg).local.frame == 41 - back
    assert len(life.state.recent) <= (0 if age_s is None else min(back + 2, 16))
    assert life.state.memory.local.frame == 40


def test_recent_frames_are_erased_and_kept_in_snapshots_too():
    life = Life(fps=24, local_age_s=1 / 6)
    for t in range(9):
        life.see((t % 2,))
    state = forget_slots(life.state, [0], erase)
    assert [one.values[0, 0].item() for _, one in state.recent] == [-109, -8, -107, -6, -105]
    again = from_bytes(to_bytes(state, "stream"), "stream", CPU, "here")
    assert [(time_s, one.frame) for time_s, one in again.recent] == [(t / 24, t + 1) for t in (8, 7, 6, 5, 4)]
    assert again.shown == state.shown and again.recent[0][1] is again.memory.local


def test_slots_are_forgotten_wherever_they_show_once_and_nowhere_else():
    life = Life(interval=2)
    life.see((0, 1)), life.see((1,)), life.see((0,))
    state = forget_slots(life.state, [0], erase)
    assert [one.values[0, 0].item() for one in state.memory.stored] == [-2, -101], "frame 2 does not show it"
    assert state.memory.local.values[0, 0] == -103
    assert all(0 not in one.labels for one in (*state.memory.stored, state.memory.local))
    assert state.shown == {1: {1}, 2: {1}, 3: set()}
    assert forget_slots(life.state, [], erase) is life.state


def test_a_frame_that_stands_in_both_memories_is_erased_once():
    life = Life()
    life.see((0,))
    state = forget_slots(life.state, [0], erase)
    assert state.memory.local is state.memory.stored[0] and state.memory.local.values[0, 0] == -101


@pytest.mark.parametrize("record", [
    pytest.param(features(1, 1 / 6, size=(3, 4)), id="another size"),
    pytest.param(features(1, 1 / 6, original=(9, 8)), id="of another original"),
    pytest.param(features(1, 3.0), id="after a gap"),
])
def test_a_stream_begins_anew(record):
    life = Life(max_gap_s=2.0)
    life.see((0,))
    table = replace(life.state.table, next_id=7, dropped=3)
    state = arrive(replace(life.state, table=table), record, life.cfg)
    assert state.memory is None and state.frame == 0 and not state.table.live.any() and state.shown == {}
    assert (state.table.next_id, state.table.dropped, state.index) == (7, 3, 1)


def test_a_gap_is_nothing_unless_asked_for():
    life = Life()
    life.see((0,))
    assert arrive(life.state, features(1, 1e6), life.cfg).memory is life.state.memory


# --------------------------------------------------------------------------------------------------- endless, as bytes


class Endless(Life):
    """Objects come and go at random; frames are painted with what `allot` gives them."""

    def __init__(self, seed: int) -> None:
        super().__init__(max_stored=3, stale_s=2.0, interval_s=0.5, local_age_s=0.3, live=0)
        self.rng, self.owner, self.present = random.Random(seed), {}, set()

    def step(self) -> list[int]:
        """The track ids of a frame."""
        self.index += 1
        time_s = self.index / self.fps
        state = arrive(self.state, features(self.index, time_s), self.cfg)
        self.present = {slot for slot in range(SLOTS) if self.rng.random() < (0.9 if slot in self.present else 0.01)}
        columns = [*self.present, 99] if self.rng.random() < 0.3 else [*self.present]
        got = allot(state.table, np.array(columns, np.int64), time_s, "stream", self.cfg.stale_s)
        state = forget_slots(state, got.recycled.tolist(), erase)
        table, ids = settle(state.table, got, np.ones((len(columns), 2)), state.frame + 1, time_s)
        slots = frozenset(got.slots[got.slots != DROPPED].tolist())
        self.present |= slots
        one = entry(state.frame + 1, slots)
        self.state = remember(replace(state, table=table), one, slots, bool(got.is_new.any()), self.cfg)
        self.check(got)
        return ids.tolist()

    def check(self, got) -> None:
        """No entry shows a slot under an owner who has it no more: the labels are those of today's owners."""
        for slot in got.slots[got.is_new].tolist():
            self.owner[slot] = self.state.frame
        for kept in self.state.entries:
            for slot in set(kept.labels.flatten().tolist()) - {5}:
                assert self.owner[slot] <= kept.frame, "painted before its owner came"
                assert slot in self.state.shown[kept.frame]


def test_twenty_thousand_frames_take_no_more_than_two_hundred():
    """Acceptance check 11: the state is flat, ids are never used twice, and no slot is shown under two owners."""
    life, sizes, seen = Endless(0), [], set()
    for t in range(1, 20_001):
        if t % 200 < 10:
            sizes.append(len(to_bytes(life.state, "stream")))
        seen.update(id_ for id_ in life.step() if id_ >= 0)
        assert len(life.state.memory.stored) <= 3 and len(life.state.shown) <= 6
    tenth = len(sizes) // 10
    assert max(sizes[tenth:]) <= max(sizes[:tenth]) + 64, "numbers grow longer, nothing else"
    assert seen == set(range(life.state.table.next_id)) and len(seen) > 500


def test_restored_from_a_snapshot_it_goes_on_the_same():
    calm, cut = Endless(1), Endless(1)
    for t in range(120):
        if t % 7 == 3:
            cut.state = from_bytes(to_bytes(cut.state, "stream"), "stream", CPU, "here")
        assert calm.step() == cut.step()
    assert to_bytes(calm.state, "stream") == to_bytes(cut.state, "stream")


def test_a_fresh_state_goes_through_bytes():
    again = from_bytes(to_bytes(StreamState(), "paper"), "paper", CPU, "here")
    assert again == StreamState()


@pytest.mark.parametrize("state, mode, message", [
    pytest.param(b"", "stream", "here: the snapshot is damaged", id="empty"),
    pytest.param(b"PK nonsense", "stream", "here: the snapshot is damaged", id="no snapshot"),
    pytest.param(to_bytes(StreamState(), "paper"), "stream", "of mode 'paper', this stage runs in 'stream'", id="mode"),
])
def test_other_bytes_are_refused(state, mode, message):
    with pytest.raises(StageError, match=message):
        from_bytes(state, mode, CPU, "here")


def test_a_snapshot_of_ten_entries_of_a_360x640_frame_is_as_large_as_told():
    """480 KiB of keys and values an entry, 240 KiB of labels, ten of them and the previous frame: 7.8 MiB."""
    life = Life()
    life.see()
    keys, labels = torch.zeros(240, 256), torch.zeros(384, 640, dtype=torch.int8)
    entries = [Entry(keys.clone(), keys.clone(), labels.clone(), number) for number in range(11)]
    memory = replace(life.state.memory, stored=tuple(entries[9::-1]), local=entries[10])
    size = len(to_bytes(replace(life.state, memory=memory), "stream"))
    print(f"snapshot: {size / 2**20:.2f} MiB")
    assert 11 * 720 <= size / 1024 <= 11 * 720 + 32


@pytest.mark.parametrize("wrong", [
    {"batch_streams": 0}, {"interval": 0}, {"max_stored": -1}, {"stale_s": 0.0}, {"interval_s": -0.5},
    {"max_gap_s": float("inf")},
])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        IdentifyConfig(**wrong)
