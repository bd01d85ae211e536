"""Steps 6 and 7 of IAI: detection and tracking in one pass, because the memory is read before the heads.

In:     Features         C3, C4, C5 of a frame
Out:    FrameDetections  with `track_ids` and `class_scores`; the earlier instance has the pixels that two claim. Of a
                         network without an identity head no `track_ids`: the stage `associate` follows
State:  StreamState      one per stream, on the stage's device: attention memory and slot table (identity_memory.py)
Limits: see identity_memory.py; in mode `stream` nothing grows with the length of the stream. A frame's result depends
        on no later one. `dropped` counts instances that found no slot: no other stage has such a count, so it is asked
        for here, and stands in the snapshot
Source: IAI specification 4 and 9.3

    frame, memory ─► associate ─► heads ─► candidates ─► who owns which pixel ─┐
                                                one copy to the host: a few hundred numbers an instance
       memory ◄─ entry ◄─ identity map ◄─ slots ◄─ columns ◄───────────────────┘
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from models.association_block import HybridAssociation, Read
from models.iai_memory import Entry, Memory
from models.outputs import Detections
from models.remembering import MemoryConfig
from operators.errors import StageError
from operators.identities import NOTHING, Candidates, Overlap, assign, overlap, paint, rank_weights, seen
from operators.identity_memory import (
    IdentifyConfig,
    StreamState,
    arrive,
    forget_slots,
    from_bytes,
    remember,
    to_bytes,
)
from operators.identity_slots import DROPPED, Allotment, Mode, SlotTable, allot, running_scores, settle
from operators.kept_features import owned
from operators.records import Features, FrameDetections
from operators.states import check_open, check_order, refuse_closed, refuse_open


class RememberingNetwork(Protocol):
    """What the stage asks of a network. All calls are stateless: memories are handed in."""

    association: HybridAssociation
    config: MemoryConfig

    def associate(
        self, levels: tuple[Tensor, ...], memories: list[Memory | None]
    ) -> tuple[tuple[Tensor, ...], Read]:
        """Maps of B frames, and their streams' memories, None before a first frame -> the pyramid, and what it read."""
        ...

    def heads(self, pyramid: tuple[Tensor, ...]) -> Any:
        """The pyramid -> what the network's own `Find` reads."""
        ...


Find = Callable[[Any, Any, int, Features, tuple[float, float]], Candidates]
"""(network, what its heads said, which image of the batch, its frame, weights of class and identity in the rank)."""


@dataclass(frozen=True)
class _Said:
    """What decides a frame's identities, of N candidates, on the host."""

    identities: np.ndarray
    """(N, I)."""
    classes: np.ndarray
    """(N, K) float32."""
    kept: np.ndarray
    """(N,) bool: enough of the mask is to be seen."""


class Identify:
    """Keeps one StreamState per stream. `find` is the network's own detector (operators/detectors.py)."""

    def __init__(
        self, network: RememberingNetwork, config: IdentifyConfig, find: Find, device: torch.device,
        min_visible: float = 0.1,
    ) -> None:
        self.network, self.find, self.device = network, find, device
        self.config = config.trained_with(network.config.interval)
        self.min_visible = min_visible
        self._states: dict[str, StreamState] = {}

    def open(self, stream: str) -> None:
        refuse_open("identify", stream, self._states, "it begins anew")
        self._states[stream] = StreamState()

    def snapshot(self, stream: str) -> bytes:
        refuse_closed("identify", stream, self._states)
        return to_bytes(self._states[stream], self.config.mode)

    def restore(self, stream: str, state: bytes) -> None:
        """Raises StageError for an open stream, a damaged snapshot, and one of another mode: its slots mean something
        else."""
        kept = from_bytes(state, self.config.mode, self.device, f"identify, stream '{stream}'")
        refuse_open("identify", stream, self._states, "it is restored")
        self._states[stream] = kept

    def close(self, stream: str) -> list[FrameDetections]:
        self._states.pop(stream, None)
        return []

    def dropped(self, stream: str) -> int:
        """Instances of an open stream that got no identity, because all were taken."""
        table = self._states[stream].table
        return 0 if table is None else table.dropped

    @torch.inference_mode()
    def __call__(self, batch: list[Features]) -> list[FrameDetections]:
        """Raises StageError for a stream that is not open, or frames out of order. A call that raises changes nothing:
        it may be made again with part of its frames."""
        states = dict(self._states)
        out: list[FrameDetections | None] = [None] * len(batch)
        for places in _together(batch, self.config.batch_streams):
            for place, given in zip(places, self._frames([batch[i] for i in places], states), strict=True):
                out[place] = given
        self._states = states
        return out

    def _frames(self, frames: list[Features], states: dict[str, StreamState]) -> list[FrameDetections]:
        """One frame each of some streams of one padded size, in one network call; `states` are brought up to date."""
        before = [self._arrived(frame, states) for frame in frames]
        spare = self.config.batch_streams - len(frames)
        levels = tuple(self._rows(level, spare) for level in zip(*(frame.levels for frame in frames), strict=True))
        memories = [state.recalled(self.config) for state in before] + [None] * spare
        pyramid, read = self.network.associate(levels, memories)
        dense = self.network.heads(pyramid)
        given = []
        for row, (frame, state) in enumerate(zip(frames, before, strict=True)):
            states[frame.info.stream], found = self._one(frame, state, dense, read, row)
            given.append(FrameDetections(frame.info, found, frame.size, frame.padded))
        return given

    def _arrived(self, frame: Features, states: dict[str, StreamState]) -> StreamState:
        info = frame.info
        check_open("identify", info, states)
        state = states[info.stream]
        check_order("identify", info, state.index)
        return arrive(state, frame, self.config)

    def _rows(self, maps: tuple[Tensor, ...], spare: int) -> Tensor:
        """(batch_streams, C, h, w): every call has the same shape, so that kernels do not change with the company."""
        rows = torch.stack([each.to(self.device) for each in maps])
        return torch.cat([rows, rows.new_zeros(spare, *rows.shape[1:])]) if spare else rows

    def _one(
        self, frame: Features, state: StreamState, dense: Any, read: Read, row: int
    ) -> tuple[StreamState, Detections]:
        """One frame from what was said of it to its detections, and the state after it."""
        mode, number = self.config.mode, state.frame + 1
        found = self.find(self.network, dense, row, frame, rank_weights(mode, state.memory is None))
        shared = overlap(found.masks)
        said = self._said(found, shared)
        num_outputs = found.identities.shape[1]
        if not num_outputs:
            entry = self._entry(read, row, torch.zeros_like(shared.owner), number)
            state = remember(state, entry, frozenset(), False, self.config)
            return state, self._detections(found, said.kept, said.classes, said.classes)
        table = _table_of(state, num_outputs, found.classes.shape[1], mode, frame)
        state, got, ids = self._named(replace(state, table=table), said, frame)
        codes = _codes(said.kept, got, table.capacity, num_outputs).to(self.device)
        entry = self._entry(read, row, paint(shared.owner, codes), number)
        state = remember(state, entry, got.painted(table.capacity), bool(got.is_new.any()), self.config)
        has = got.slots != DROPPED
        named, scores = said.kept.copy(), said.classes
        named[said.kept] = has
        if mode == "stream":
            scores = scores.copy()
            scores[named] = running_scores(state.table, got.slots[has], number)
        detections = self._detections(found, named, said.classes, scores)
        return state, detections.with_track_ids(torch.from_numpy(ids[has]).to(self.device))

    def _named(self, state: StreamState, said: _Said, frame: Features) -> tuple[StreamState, Allotment, np.ndarray]:
        """Slots and track ids of the kept candidates; the state with these in its table, and slots that change hands
        erased from its memory."""
        cfg, time_s = self.config, frame.info.time_s
        got = allot(state.table, assign(said.identities[said.kept]), time_s, cfg.mode, cfg.stale_s)
        table, ids = settle(state.table, got, said.classes[said.kept], state.frame + 1, time_s)
        state = forget_slots(state, got.recycled.tolist(), self.network.association.erase)
        return replace(state, table=table), got, ids

    def _said(self, found: Candidates, shared: Overlap) -> _Said:
        """From the device in one copy; pixels are counted exactly up to 2^53."""
        columns = [found.identities, found.classes, shared.area[:, None], shared.visible[:, None]]
        table = torch.cat([column.double() for column in columns], dim=1).cpu().numpy()        # (N, I + K + 2)
        ends = np.cumsum([column.shape[1] for column in columns])[:-1]
        identities, classes, area, visible = np.split(table, ends, axis=1)
        return _Said(identities, classes.astype(np.float32), seen(area[:, 0], visible[:, 0], self.min_visible))

    def _entry(self, read: Read, row: int, labels: Tensor, number: int) -> Entry:
        """With no storage but its own, and its label map only where identities may have to be erased from it."""
        entry = self.network.association.entry(read, row, labels, number)
        return replace(
            entry, keys=owned(entry.keys), values=owned(entry.values),
            labels=owned(entry.labels) if self.config.mode == "stream" else None,
        )  # fmt: skip

    def _detections(
        self, found: Candidates, kept: np.ndarray, classes: np.ndarray, shown: np.ndarray
    ) -> Detections:
        """Of N candidates those `kept` (N,), with scores and labels out of `shown` (N, K)."""
        scores, labels = torch.from_numpy(shown[kept]).to(self.device).max(1)
        there = torch.from_numpy(np.flatnonzero(kept)).to(self.device)
        return Detections(
            boxes=found.boxes[there],
            scores=scores,
            labels=labels,
            embeddings=found.boxes.new_zeros(len(scores), 0),
            mask_logits=found.mask_logits[there],
            mask_frame=found.mask_frame,
            class_scores=torch.from_numpy(classes[kept]).to(self.device),
            exclusive=True,
        )


def _table_of(state: StreamState, num_outputs: int, num_classes: int, mode: Mode, frame: Features) -> SlotTable:
    """The stream's slot table, made with its first frame. Raises StageError where it is that of another network."""
    fresh = SlotTable.empty(num_outputs, num_classes, mode)
    if state.table is not None and state.table.class_sums.shape != fresh.class_sums.shape:
        raise StageError(
            f"identify, {frame.info}: the network has {fresh.class_sums.shape} slots and classes, the stream's memory "
            f"{state.table.class_sums.shape}. Restored from another network?"
        )
    return state.table or fresh


def _codes(kept: np.ndarray, got: Allotment, sink: int, background: int) -> Tensor:
    """What each of N candidates writes into the identity map, and, last, what stands where there is none.  (N + 1,)

    Rejected and dropped ones write background. The sink's channel holds its last object alone, and the pixels of those
    before it are not background either: nothing.
    """
    codes = np.full(len(kept) + 1, background, np.int8)
    codes[:-1][kept] = np.where(got.slots == DROPPED, background, got.slots)
    in_sink = np.flatnonzero(codes == sink)
    codes[in_sink[:-1]] = NOTHING
    return torch.from_numpy(codes)


def _together(batch: list[Features], most: int) -> Iterator[list[int]]:
    """Places of frames that can share a call: of different streams, of one padded size, at most `most`; of one stream
    in order."""
    turns: dict[str, int] = {}
    groups: dict[tuple[int, int, int], list[int]] = {}
    for place, frame in enumerate(batch):
        turn = turns[frame.info.stream] = turns.get(frame.info.stream, -1) + 1
        groups.setdefault((turn, *frame.padded), []).append(place)
    for key in sorted(groups, key=lambda key: key[0]):
        for begin in range(0, len(groups[key]), most):
            yield groups[key][begin : begin + most]
