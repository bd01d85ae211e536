"""Step 7 of IAI: the few identities that the network knows, and which object of the stream has which.

In:     for each of N instances of a frame, in rank, the column that the assignment gave it, and its class vector
Out:    the slot that each is painted in, and the track id that it is shown under
State:  SlotTable, one per stream: who has each slot, since when, when last seen, the sum of its class vectors
Limits: `capacity` slots, whatever the length of the stream; track ids are 64-bit and never used twice
Source: IAI specification 4 step 10 and "Overflow", 9.3 items 4 and 6. I is the number of outputs of the identity head
        (the specification's N). A column is known while its slot is taken; every other means "new".

mode        objects   when no slot is free
reference   I - 2     slot I - 2 is a sink: everything new goes there, is painted and never shown, and counts as new
paper       I - 1     a new object is dropped, and counted
stream      I - 1     the slot that was unseen longest changes hands, if that is `stale_s` or more; else as in `paper`

A slot is free until it is taken for the first time: nothing but `stream` takes one back.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from operators.records import UNSHOWN

Mode = Literal["reference", "paper", "stream"]

FREE = -1
"""Of a slot: no track has it."""
DROPPED = -1
"""Of an instance: no slot was to be had."""


@dataclass(frozen=True)
class SlotTable:
    """Who has each of `capacity` slots. Arrays of the host: a few numbers, and decisions are made of them."""

    track_ids: np.ndarray
    """(capacity,) int64, FREE where nobody has the slot."""
    first_frame: np.ndarray
    """(capacity,) int64: frame of the owner's first record."""
    last_seen_s: np.ndarray
    """(capacity,) float64: time of its latest."""
    class_sums: np.ndarray
    """(capacity, K) float64: its class vectors, summed over frames."""
    next_id: int = 0
    """The id that the next new track gets; also after a reset."""
    dropped: int = 0
    """Instances that got no slot, since the stream was opened."""

    @staticmethod
    def empty(num_outputs: int, num_classes: int, mode: Mode) -> SlotTable:
        """Nobody has a slot yet.  `num_outputs` of the identity head."""
        capacity = num_outputs - (2 if mode == "reference" else 1)
        nothing = np.zeros(capacity, np.int64)
        return SlotTable(nothing + FREE, nothing, np.zeros(capacity), np.zeros((capacity, num_classes)))

    @property
    def capacity(self) -> int:
        return len(self.track_ids)

    @property
    def live(self) -> np.ndarray:
        """(capacity,) bool."""
        return self.track_ids != FREE

    def cleared(self) -> SlotTable:
        """All slots free again; ids go on where they were."""
        nothing = {name: np.zeros_like(value) for name, value in self.arrays().items()}
        return replace(self, **nothing | {"track_ids": np.full_like(self.track_ids, FREE)})

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: value for name, value in vars(self).items() if isinstance(value, np.ndarray)}


@dataclass(frozen=True)
class Allotment:
    """What N instances of a frame got, in rank."""

    slots: np.ndarray
    """(N,) int64; DROPPED without one. The sink is slot `capacity`, the only one that may stand here twice."""
    is_new: np.ndarray
    """(N,) bool: it has a slot, and was not known before the frame; always so in the sink."""
    recycled: np.ndarray
    """(r,) int64: slots whose owner was sent away, to be erased from memory before anything is painted in them."""

    def painted(self, capacity: int) -> frozenset[int]:
        """Slots that show in the frame, the sink left out."""
        return frozenset(slot for slot in self.slots.tolist() if 0 <= slot < capacity)


def allot(table: SlotTable, columns: np.ndarray, time_s: float, mode: Mode, stale_s: float) -> Allotment:
    """A slot for each of N instances, by the column that it was assigned.  (N,) int64

    A known column is its own slot. The others get, in rank, the free slots from the lowest on, then what the mode has.
    Known columns must not stand there twice (`identities.assign` sees to that). No instance: all empty.
    """
    live = table.live
    known = columns < table.capacity
    known[known] = live[columns[known]]
    count = len(columns) - int(known.sum())
    free = np.flatnonzero(~live)
    stale = _stale(table, columns[known], time_s, stale_s) if mode == "stream" else free[:0]
    last = table.capacity if mode == "reference" else DROPPED
    given = np.concatenate([free, stale, np.full(count, last)])[:count]
    slots = columns.copy()
    slots[~known] = given
    return Allotment(slots, ~known & (slots != DROPPED), given[len(free) : len(free) + len(stale)])


def _stale(table: SlotTable, matched: np.ndarray, time_s: float, stale_s: float) -> np.ndarray:
    """Slots that may change hands, those unseen longest first, of equals the lowest: not any that the frame shows."""
    seen = table.last_seen_s.copy()
    seen[matched] = time_s
    order = np.argsort(seen, kind="stable")
    return order[table.live[order] & (time_s - seen[order] >= stale_s)]


def settle(
    table: SlotTable, got: Allotment, classes: np.ndarray, frame: int, time_s: float
) -> tuple[SlotTable, np.ndarray]:
    """The table after the frame, and the track id of each of the N instances: UNSHOWN in the sink, and when dropped.

    classes (N, K) are their class vectors. A new owner begins with a sum of zero.
    """
    real = (got.slots >= 0) & (got.slots < table.capacity)
    begun = got.slots[got.is_new & real]
    rows = got.slots[real]
    after = replace(
        table, **{name: array.copy() for name, array in table.arrays().items()}, next_id=table.next_id + len(begun),
        dropped=table.dropped + int((got.slots == DROPPED).sum()),
    )  # fmt: skip
    after.track_ids[begun] = np.arange(table.next_id, after.next_id)
    after.first_frame[begun], after.class_sums[begun] = frame, 0.0
    after.last_seen_s[rows] = time_s
    after.class_sums[rows] += classes[real]
    ids = np.full_like(got.slots, UNSHOWN)
    ids[real] = after.track_ids[rows]
    return after, ids


def running_scores(table: SlotTable, slots: np.ndarray, frame: int) -> np.ndarray:
    """Mean class vectors of slots (n,) over all frames since their owner was first seen, `frame` included.  (n, K)

    A frame in which it was not seen counts as zero: what was seen once and never again fades.
    """
    frames = frame - table.first_frame[slots] + 1
    return (table.class_sums[slots] / frames[:, None]).astype(np.float32)
