"""Step 7 of IAI: what is kept of one stream, and what goes first when it must not grow.

In:     the state before a frame, the frame's memory entry, which slots are painted in it
Out:    the state after it
State:  StreamState: attention memory, slot table, and when what was written; never changed in place
Limits: `max_stored` entries and the previous frame, with `local_age_s` up to 16 of the last. Of a 360x640 frame an
        entry is 480 KiB in float32, and 720 with its label map, which only mode `stream` keeps. 10 entries, the
        previous frame and the table are 7.7 MiB as a snapshot. Without a limit there is one more entry every third
        frame: 4.7 MiB a second at 30 frames a second
Source: IAI specification 2.5, 9.3 items 1 to 3, 5, 7
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.iai_memory import Entry, Memory, write
from operators.errors import StageError
from operators.identity_slots import Mode, SlotTable
from operators.records import Features
from operators.states import pack, unpacked

NEVER = 1 << 62
"""Frames between two writes, where seconds decide instead."""
CLOCK_S = 1e-3
"""Time stamps are rounded to milliseconds by many containers: so much early counts as due."""
STREAM_STORED = 10
MOST_RECENT = 16
"""Frames that are kept for `local_age_s`."""


@dataclass(frozen=True, kw_only=True)
class IdentifyConfig:
    """The defaults are IAI as released, for files; `mode: stream` is for streams without end."""

    mode: Mode = "reference"
    """What happens when there are more objects than identities: operators/identity_slots.py. `stream` also bounds the
    memory and gives each frame's instances the mean class vector since they were first seen, not that of the frame."""
    batch_streams: int = 1
    """Streams whose frames share a network call; always the same number of rows, zeros where streams are lacking. 1
    gives every frame the result that it has alone. More: better use of a GPU; some of the last bits may then differ
    from those of 1, and with the network's `association.pad_memory` from company to company."""
    interval: int | None = None
    """Frames between two writes to global memory; null is the network's own `interval`, with which it was trained.
    Higher: less memory and attention, coarser recall."""
    interval_s: float | None = None
    """The same in seconds, for frame rates other than the 6 a second of training, where 3 frames are 0.5; then
    `interval` only tells how early the first write comes. null counts frames."""
    local_age_s: float | None = None
    """How old local memory is; null is the previous frame, whenever that was. Trained with 1/6 s: at higher frame rates
    the frame of that age moved as far as in training, where the previous one hardly moved; costs an entry for each
    frame in between. Looks back 16 frames at most."""
    max_stored: int | None = None
    """Entries of global memory; 0 is no limit, null is 10 in mode `stream` and no limit in the others. Higher: recalls
    objects that left long ago; attention costs 29.5 M multiplications an entry and drifts from what was trained."""
    stale_s: float = 10.0
    """Mode `stream`: seconds unseen after which a slot may change hands. Higher: longer absences survive, and more new
    objects are dropped while all slots are taken."""
    max_gap_s: float | None = None
    """Seconds without a frame after which a stream begins anew, with new track ids; null never. Lower: no ids carried
    over to another scene, more broken ones after a stutter."""

    def __post_init__(self) -> None:
        interval = 1 if self.interval is None else self.interval
        if not 1 <= self.batch_streams <= 1024 or interval < 1 or not 0 <= (self.max_stored or 0) <= 4096:
            raise ValueError(f"batch_streams {self.batch_streams}, interval {self.interval} and max_stored "
                             f"{self.max_stored}: expected 1 to 1024, 1 or more, and 0 to 4096")
        for name in ("interval_s", "local_age_s", "stale_s", "max_gap_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}, expected more than 0, and finite")

    def trained_with(self, interval: int) -> IdentifyConfig:
        """The same settings for a network that wrote every so many frames: no `interval` is left open."""
        return self if self.interval is not None else replace(self, interval=interval)

    @property
    def cap(self) -> int:
        """Entries of global memory; 0 is no limit."""
        if self.max_stored is None:
            return STREAM_STORED if self.mode == "stream" else 0
        return self.max_stored


@dataclass(frozen=True)
class StreamState:
    """Of one stream, after a frame. Fresh: before its first."""

    memory: Memory | None = None
    """None before the first frame, and after a reset."""
    table: SlotTable | None = None
    """None before the first frame of all, and of a network without an identity head."""
    shown: dict[int, frozenset[int]] = field(default_factory=dict)
    """Frame of an entry -> slots that are painted in it. The sink is none of them."""
    sizes: tuple[int, ...] = ()
    """height, width, h, w, Hp, Wp of its frames."""
    index: int = -1
    """Of the last frame, in its source."""
    time_s: float = -math.inf
    written_s: float = -math.inf
    """Time of the last write to global memory, where seconds decide."""
    urgent: float = -math.inf
    """Frame or time of the last write that a new object caused out of turn."""
    recent: tuple[tuple[float, Entry], ...] = ()
    """Time and entry of the last frames, newest first; () where local memory is the previous frame."""

    @property
    def frame(self) -> int:
        """Number of the last frame since the (re)start, from 1."""
        return 0 if self.memory is None else self.memory.local.frame

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All that are kept; some may stand here twice."""
        if self.memory is None:
            return ()
        return (*self.memory.stored, self.memory.local, *(entry for _, entry in self.recent))

    def recalled(self, cfg: IdentifyConfig) -> Memory | None:
        """What the frame that arrived reads: of the last frames, that of the age asked for is the local one."""
        if cfg.local_age_s is None or not self.recent:
            return self.memory
        _, local = min(self.recent, key=lambda one: abs(self.time_s - one[0] - cfg.local_age_s))
        return replace(self.memory, local=local)


def arrive(state: StreamState, frame: Features, cfg: IdentifyConfig) -> StreamState:
    """The state as the frame finds it: begun anew where it has another size than those before, or comes too late."""
    info = frame.info
    sizes = (info.height, info.width, *frame.size, *frame.padded)
    late = cfg.max_gap_s is not None and info.time_s - state.time_s > cfg.max_gap_s
    if state.memory is not None and (late or sizes != state.sizes):
        state = StreamState(table=state.table and state.table.cleared())
    return replace(state, sizes=sizes, index=info.index, time_s=info.time_s)


def remember(
    state: StreamState, entry: Entry, slots: frozenset[int], new_object: bool, cfg: IdentifyConfig
) -> StreamState:
    """The state with a finished frame in memory: `slots` are painted in it; `table` is that after the frame.

    The schedule is that of models/iai_memory.py; by seconds, the first interval ends one nominal frame early, as there.
    At the limit new objects cause a write once an interval at most, and something goes for each that comes.
    """
    by_time = cfg.interval_s is not None
    clock, span = (state.time_s + CLOCK_S, cfg.interval_s) if by_time else (entry.frame, cfg.interval)
    full = state.memory is not None and 0 < cfg.cap <= len(state.memory.stored)
    urgent = new_object and not (full and clock - state.urgent < span)
    due = by_time and clock - state.written_s >= span
    memory = write(state.memory, entry, urgent or due, NEVER if by_time else cfg.interval)
    written_s = state.written_s
    if state.memory is None:
        written_s = state.time_s - (cfg.interval_s or 0.0) / cfg.interval
    elif memory.stored[0] is entry:
        written_s = state.time_s
        state = replace(state, urgent=clock) if urgent else state
    shown = state.shown | {entry.frame: slots}
    memory = _within(memory, shown, state.table, cfg.cap)
    recent = _recent(((state.time_s, entry), *state.recent), cfg.local_age_s)
    state = replace(state, memory=memory, written_s=written_s, recent=recent)
    kept = {one.frame for one in state.entries}
    return replace(state, shown={number: those for number, those in shown.items() if number in kept})


def _recent(frames: tuple[tuple[float, Entry], ...], age_s: float | None) -> tuple[tuple[float, Entry], ...]:
    """Of the last frames those that later ones may look back to: up to the first that is of that age already."""
    if age_s is None:
        return ()
    now = frames[0][0]
    young = sum(now - time_s < age_s for time_s, _ in frames)
    return frames[: min(young + 1, MOST_RECENT)]


def _within(memory: Memory, shown: dict[int, frozenset[int]], table: SlotTable | None, cap: int) -> Memory:
    """The memory with at most `cap` entries stored; 0 is no limit."""
    stored = list(memory.stored)
    live = frozenset() if table is None else frozenset(np.flatnonzero(table.live).tolist())
    while 0 < cap < len(stored):
        del stored[_least([shown[entry.frame] & live for entry in stored])]
    return replace(memory, stored=tuple(stored))


def _least(shown: list[frozenset[int]]) -> int:
    """Which entry can go, of those that show these live slots, newest first: the oldest whose slots the others show
    too; the oldest of all where each shows a slot that no other does."""
    for place in reversed(range(len(shown))):
        others = frozenset().union(*shown[:place], *shown[place + 1 :])
        if shown[place] <= others:
            return place
    return len(shown) - 1


def forget_slots(state: StreamState, slots: list[int], erase: Callable[[Entry, int], Entry]) -> StreamState:
    """The state with slots gone from every entry, as if they had been background: their next owners inherit nothing."""
    if not slots or state.memory is None:
        return state
    clean = {entry.frame: entry for entry in state.entries}         # a frame may stand in more than one memory
    for frame, those in state.shown.items():
        for slot in those.intersection(slots):
            clean[frame] = erase(clean[frame], slot)
    stored = tuple(clean[entry.frame] for entry in state.memory.stored)
    return replace(
        state,
        memory=replace(state.memory, stored=stored, local=clean[state.memory.local.frame]),
        recent=tuple((time_s, clean[entry.frame]) for time_s, entry in state.recent),
        shown={frame: those.difference(slots) for frame, those in state.shown.items()},
    )


# ---------------------------------------------------------------------------------------------------------- as bytes


def to_bytes(state: StreamState, mode: Mode) -> bytes:
    """The state as plain arrays and numbers."""
    plain: dict[str, Any] = {name: getattr(state, name) for name in ("sizes", "index", "time_s", "written_s", "urgent")}
    plain["mode"] = mode
    plain["shown"] = {frame: sorted(slots) for frame, slots in state.shown.items()}
    if state.table is not None:
        plain["table"] = {name: torch.from_numpy(array) for name, array in state.table.arrays().items()}
        plain["counts"] = {"next_id": state.table.next_id, "dropped": state.table.dropped}
    if state.memory is not None:
        memory = state.memory
        plain["entries"] = {entry.frame: _to_plain(entry) for entry in state.entries}
        plain["recent"] = [(time_s, entry.frame) for time_s, entry in state.recent]
        plain["memory"] = {
            "stored": [entry.frame for entry in memory.stored], "local": memory.local.frame,
            "last_write": memory.last_write, "frames_seen": memory.frames_seen,
        }  # fmt: skip
    return pack(plain)


def from_bytes(state: bytes, mode: Mode, device: torch.device, where: str) -> StreamState:
    """What `to_bytes` was given, on `device`. Raises StageError for other bytes, and for a state of another mode."""
    with unpacked(state, where) as plain:
        shown = {int(frame): frozenset(slots) for frame, slots in plain["shown"].items()}
        table = None
        if "table" in plain:
            table = SlotTable(**{name: each.numpy() for name, each in plain["table"].items()}, **plain["counts"])
        memory, recent = _memory(plain, device) if "memory" in plain else (None, ())
        numbers = {name: plain[name] for name in ("index", "time_s", "written_s", "urgent")}
        kept = StreamState(memory, table, shown, tuple(plain["sizes"]), **numbers, recent=recent)
        made_in = plain["mode"]
    if made_in != mode:
        raise StageError(f"{where}: the snapshot is of mode '{made_in}', this stage runs in '{mode}'. "
                         "Restore it with the `identify.mode` that it was made with.")
    return kept


def _to_plain(entry: Entry) -> dict[str, Any]:
    labels = None if entry.labels is None else entry.labels.cpu()
    return {"keys": entry.keys.cpu(), "values": entry.values.cpu(), "labels": labels}


def _memory(plain: dict[str, Any], device: torch.device) -> tuple[Memory, tuple[tuple[float, Entry], ...]]:
    """Attention memory, and the recent frames."""

    def moved(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(device)

    entries = {
        frame: Entry(moved(one["keys"]), moved(one["values"]), moved(one["labels"]), int(frame))
        for frame, one in plain["entries"].items()
    }
    told = plain["memory"]
    stored = tuple(entries[frame] for frame in told["stored"])
    memory = Memory(stored, entries[told["local"]], int(told["last_write"]), int(told["frames_seen"]))
    return memory, tuple((time_s, entries[frame]) for time_s, frame in plain["recent"])
