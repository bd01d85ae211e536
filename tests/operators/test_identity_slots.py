"""Slots of identities: an object's life told frame by frame, in each of the three modes."""

from __future__ import annotations

import numpy as np
import pytest

from operators.identity_slots import DROPPED, FREE, SlotTable, allot, running_scores, settle
from operators.records import UNSHOWN

NEW = 99
"""A column that no slot has."""


class Life:
    """A stream of frames that are nothing but columns."""

    def __init__(self, mode: str, num_outputs: int = 5, stale_s: float = 10.0) -> None:
        self.mode, self.stale_s, self.table = mode, stale_s, SlotTable.empty(num_outputs, 2, mode)
        self.frame = 0

    def see(self, *columns: int, at: float | None = None, classes=None) -> tuple[list[int], list[int]]:
        """The slots and the track ids of a frame."""
        self.frame += 1
        time_s = float(self.frame) if at is None else at
        columns = np.array(columns, np.int64)
        self.got = allot(self.table, columns, time_s, self.mode, self.stale_s)
        classes = np.ones((len(columns), 2)) if classes is None else np.array(classes)
        self.table, ids = settle(self.table, self.got, classes, self.frame, time_s)
        return self.got.slots.tolist(), ids.tolist()


MODES = pytest.mark.parametrize("mode", ["reference", "paper", "stream"])


@MODES
def test_a_frame_without_instances_changes_nothing(mode):
    life = Life(mode)
    before = life.table
    assert life.see() == ([], [])
    assert life.table.next_id == 0 and (life.table.track_ids == before.track_ids).all()


@MODES
def test_new_ones_take_the_lowest_free_slots_in_rank_and_known_ones_keep_theirs(mode):
    life = Life(mode, num_outputs=8)
    assert life.see(NEW, 3, NEW) == ([0, 1, 2], [0, 1, 2]), "a column that nobody has yet is new"
    assert life.see(2, NEW, 0) == ([2, 3, 0], [2, 3, 0])
    assert life.got.is_new.tolist() == [False, True, False] and not len(life.got.recycled)
    assert life.see(7, 1) == ([4, 1], [4, 1]), "the column that says new"


def test_twenty_five_objects_one_by_one_as_released():
    """Acceptance check 9: N = 20 allots 0..17, then 18 again and again, and shows 18 objects."""
    life = Life("reference", num_outputs=20)
    given = [life.see(19) for _ in range(25)]
    assert [slots for slots, _ in given] == [[k] for k in range(18)] + [[18]] * 7
    assert [ids for _, ids in given] == [[k] for k in range(18)] + [[UNSHOWN]] * 7
    assert int(life.table.live.sum()) == 18 and life.got.is_new.all(), "what lands in the sink is new each time"
    assert life.see(18, 17) == ([18, 17], [UNSHOWN, 17]), "the sink's own column means new as well"


@pytest.mark.parametrize("mode", ["paper", "stream"])
def test_twenty_five_objects_one_by_one_otherwise(mode):
    """Acceptance check 9: 19 are tracked, the others dropped and counted, as long as none is stale."""
    life = Life(mode, num_outputs=20, stale_s=100)
    given = [life.see(NEW) for _ in range(25)]
    assert [slots for slots, _ in given] == [[k] for k in range(19)] + [[DROPPED]] * 6
    assert life.table.dropped == 6 and not life.got.is_new.any()


def test_several_at_once_share_the_sink():
    life = Life("reference")                                  # slots 0..2, the sink is 3
    assert life.see(NEW, NEW, NEW, NEW, NEW) == ([0, 1, 2, 3, 3], [0, 1, 2, UNSHOWN, UNSHOWN])
    assert life.got.painted(3) == {0, 1, 2}


def test_the_slot_unseen_longest_changes_hands_once_it_is_stale():
    life = Life("stream", num_outputs=4, stale_s=10)          # slots 0..2
    life.see(NEW, NEW, NEW, at=0)
    life.see(1, at=2), life.see(2, at=4)
    assert life.see(NEW, at=9.9) == ([DROPPED], [UNSHOWN]) and life.table.dropped == 1
    assert life.see(NEW, at=10) == ([0], [3]) and life.got.recycled.tolist() == [0]
    assert life.see(0, at=11) == ([0], [3]), "the slot's column is its new owner's"
    assert life.see(NEW, NEW, NEW, at=14) == ([1, 2, DROPPED], [4, 5, UNSHOWN])
    assert life.got.recycled.tolist() == [1, 2] and life.table.dropped == 2


def test_what_the_frame_itself_shows_does_not_change_hands():
    life = Life("stream", num_outputs=3, stale_s=10)          # slots 0 and 1
    life.see(NEW, NEW, at=0)
    assert life.see(NEW, NEW, 0, at=50) == ([1, DROPPED, 0], [2, UNSHOWN, 0])


def test_of_slots_unseen_equally_long_the_lowest_goes_first():
    life = Life("stream", num_outputs=4, stale_s=1)
    life.see(NEW, NEW, NEW, at=0)
    assert life.see(NEW, at=5)[0] == [0]


def test_nothing_goes_stale_for_files():
    for mode in ("reference", "paper"):
        life = Life(mode, num_outputs=4, stale_s=1)
        life.see(NEW, NEW, NEW, at=0)
        assert life.see(NEW, at=1e9)[1] == [UNSHOWN] and not len(life.got.recycled)


def test_running_scores_count_the_frames_without_it():
    life = Life("stream", num_outputs=3, stale_s=2)
    life.see(NEW, classes=[[0.5, 0.25]])
    assert running_scores(life.table, np.array([0]), life.frame).tolist() == [[0.5, 0.25]]
    life.see()
    life.see(0, NEW, classes=[[0.25, 0.5], [1.0, 0.0]])
    assert running_scores(life.table, np.array([0, 1]), life.frame).tolist() == [[0.25, 0.25], [1.0, 0.0]]
    life.see(at=50)
    life.see(NEW, at=60, classes=[[0.0, 1.0]])
    assert life.got.slots.tolist() == [0]
    assert running_scores(life.table, np.array([0]), life.frame).tolist() == [[0.0, 1.0]], "begun anew"


def test_a_cleared_table_is_free_but_goes_on_counting():
    life = Life("paper", num_outputs=3)
    life.see(NEW, NEW, NEW)
    table = life.table.cleared()
    assert table.track_ids.tolist() == [FREE, FREE] and not table.class_sums.any()
    assert (table.next_id, table.dropped) == (2, 1)
