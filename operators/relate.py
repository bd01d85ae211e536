"""Steps 6 and 7 of TLTM and of its baseline: the heads, then tracks by edge scores or by boxes, then original pixels.

In:     Features         raw P3..P7 of a frame; for a network with a fuser with the reference that `previous` gave
Out:    FrameDetections  with `track_ids`: the best `max_per_frame` of those that have a track. Boxes, scores and ids
                         are on the host, masks stay on the device
State:  per stream what is known of its tracks, by rule; their vectors stay on the stage's device
            edges  TrackMemory (object_graph.py): 512 float32 of a vector, a box, a class, an id, when seen: 2088 bytes
                   a track, so 2.1 MB as a snapshot for 1000
            boxes  BoxTracks (box_tracks.py): 40 bytes a track
Limits: `edges` forgets nothing by default, as published, right for files; for endless streams `max_unseen` and
        `max_tracks` bound it. Its graph grows with tracks x detections: 50 detections are 14 ms of a CPU core with 50
        tracks, 52 with 200, 640 with 1000. `boxes` ends its tracks by itself. A frame's result depends on no later one
Source: TLTM specification 4.1 to 4.4, 5. Tracks live in pixels of the network input, unclipped, because memory and
        detections must be in the same; only what is given out is clipped. A stream that changes its size begins anew,
        with new ids. Frames of all streams share the network's calls; tracks are each stream's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from models.outputs import Detections
from operators import box_tracks, object_graph
from operators.box_tracks import BoxTracks, BoxTracksConfig
from operators.errors import StageError
from operators.matching import TrackMemory
from operators.network import BatchConfig, Detect, Heads, to_original
from operators.object_graph import ObjectGraphConfig
from operators.object_graph import Relate as Edges
from operators.records import Features, FrameDetections, FrameInfo
from operators.states import check_open, check_order, pack, refuse_closed, refuse_open, unpacked

RelateRule = Literal["edges", "boxes"]


@dataclass(frozen=True, kw_only=True)
class RelateConfig(BatchConfig):
    """The defaults are TLTM as released. The weights of the rule `edges` are the network's (`edges` in its file)."""

    rule: RelateRule | Literal["network"] = "network"
    """How detections find their tracks: `edges`, scores of the network's object graph, boxes and classes; `boxes`, the
    overlap of boxes alone (SORT without its Kalman filter); `network` leaves it to `association` in its file."""
    max_per_frame: int = 15
    """Instances that a frame gives, the best of those that have a track; the others have refreshed their tracks
    already. Higher: weaker ones are shown too, and more masks are painted."""
    max_unseen: int | None = None
    """Of `edges`: frames a track outlives being unseen; null never forgets, for files alone. Higher: longer occlusions
    survive, more memory and time."""
    max_tracks: int | None = None
    """Of `edges`: tracks that a stream remembers at most; those unseen longest go first. null: all. Higher: as above.
    Should be more than the network's `detect.max_per_frame`."""
    boxes: BoxTracksConfig = field(default_factory=BoxTracksConfig)
    """Of `boxes`."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_per_frame < 1:
            raise ValueError(f"max_per_frame is {self.max_per_frame}, expected at least 1")
        self.edges_of(ObjectGraphConfig())

    def edges_of(self, of_network: ObjectGraphConfig) -> ObjectGraphConfig:
        """The rule `edges` as the network's file has it, bounded as the graph says. Raises ValueError."""
        bounds = {"max_unseen": self.max_unseen, "max_tracks": self.max_tracks}
        return replace(of_network, **{name: value for name, value in bounds.items() if value is not None})


class TrackRule(Protocol):
    """What the stage asks of a rule. A memory is never changed in place."""

    name: RelateRule

    def begin(self, dim: int) -> Any:
        """The memory of a stream whose detections have vectors of `dim` numbers."""

    def renewed(self, memory: Any) -> Any:
        """The same without its tracks; their ids are not given again."""

    def advance(self, memory: Any, found: Detections, info: FrameInfo) -> tuple[Any, Detections]:
        """One frame: the memory after it, and the detections that have a track, `track_ids` set, in their order."""

    def plain(self, memory: Any) -> dict[str, Any]:
        """The memory as numbers and tensors on the host."""

    def restored(self, content: dict[str, Any]) -> Any:
        """From `plain`, onto the device."""


class ByEdges:
    """Rule `edges`. Vectors lie on the device, where the graph reads them, the rest on the host, where is decided."""

    name: RelateRule = "edges"

    def __init__(self, edges: Edges, config: ObjectGraphConfig, device: torch.device) -> None:
        self.edges, self.config, self.device = edges, config, device

    def begin(self, dim: int) -> TrackMemory:
        return self._placed(TrackMemory.empty(dim))

    def renewed(self, memory: TrackMemory) -> TrackMemory:
        return memory[torch.zeros(0, dtype=torch.int64)]

    def advance(self, memory: TrackMemory, found: Detections, info: FrameInfo) -> tuple[TrackMemory, Detections]:
        if memory.embeddings.shape[1] != found.embeddings.shape[1]:
            raise StageError(
                f"relate, {info}: object vectors {tuple(found.embeddings.shape)}, memory "
                f"{tuple(memory.embeddings.shape)}. Restored from another network?"
            )
        return object_graph.advance(memory, found, info.index, self.edges, self.config)

    def plain(self, memory: TrackMemory) -> dict[str, Any]:
        return {"next_id": memory.next_id} | {name: one.cpu().clone() for name, one in memory.tensors().items()}

    def restored(self, content: dict[str, Any]) -> TrackMemory:
        return self._placed(TrackMemory(**content))

    def _placed(self, memory: TrackMemory) -> TrackMemory:
        return replace(memory, embeddings=memory.embeddings.to(self.device))


class ByBoxes:
    """Rule `boxes`."""

    name: RelateRule = "boxes"

    def __init__(self, config: BoxTracksConfig) -> None:
        self.config = config

    def begin(self, dim: int) -> BoxTracks:
        return BoxTracks()

    def renewed(self, memory: BoxTracks) -> BoxTracks:
        return BoxTracks(next_id=memory.next_id)

    def advance(self, memory: BoxTracks, found: Detections, info: FrameInfo) -> tuple[BoxTracks, Detections]:
        memory, ids = box_tracks.advance(memory, found.boxes, self.config)
        shown = ids >= 0
        return memory, found[shown].with_track_ids(ids[shown])

    def plain(self, memory: BoxTracks) -> dict[str, Any]:
        values = {one.name: getattr(memory, one.name) for one in fields(memory)}
        return {name: value.clone() if isinstance(value, Tensor) else value for name, value in values.items()}

    def restored(self, content: dict[str, Any]) -> BoxTracks:
        return BoxTracks(**content)


@dataclass(frozen=True)
class _State:
    """Of one stream, after a frame. Fresh: before its first."""

    memory: Any = None
    """None before the first frame: an empty memory is another matter, it knows which ids were given."""
    index: int = -1
    sizes: tuple[int, ...] = ()
    """height, width, h, w of its frames."""


class Relate:
    """Keeps the tracks of each stream. `fuses`: the network's heads want the frame before as a reference."""

    def __init__(
        self, network: Any, config: RelateConfig, detect: Detect, rule: TrackRule, device: torch.device, fuses: bool
    ) -> None:
        self.config, self.rule, self.fuses = config, rule, fuses
        self.heads = Heads(network, config, detect, device)
        self._states: dict[str, _State] = {}

    def open(self, stream: str) -> None:
        refuse_open("relate", stream, self._states, "it begins anew")
        self._states[stream] = _State()

    @torch.inference_mode()
    def __call__(self, batch: list[Features]) -> list[FrameDetections]:
        """Raises StageError for a stream that is not open, frames out of order, and a missing reference; then nothing
        has changed."""
        last = {stream: state.index for stream, state in self._states.items()}
        for frame in batch:
            self._check(frame, last)
        states, out = dict(self._states), []
        for frame, found in zip(batch, self.heads.found(batch), strict=True):
            stream = frame.info.stream
            states[stream], tracks = self._one(states[stream], frame, _decided_on_host(found))
            out.append(FrameDetections(frame.info, tracks, frame.size, frame.padded))
        self._states = states
        return out

    def _check(self, frame: Features, last: dict[str, int]) -> None:
        info = frame.info
        check_open("relate", info, last)
        check_order("relate", info, last[info.stream])
        if self.fuses and not frame.references:
            raise StageError(
                f"relate, {info}: came without a reference, but this network fuses each frame with the one before. Put "
                f"the stage 'previous' before 'relate', as configs/graphs/offline_tltm.yaml does."
            )
        last[info.stream] = info.index

    def _one(self, state: _State, frame: Features, found: Detections) -> tuple[_State, Detections]:
        """One frame's tracks, in original pixels, and the state after it."""
        sizes = (frame.info.height, frame.info.width, *frame.size)
        memory = self.rule.begin(found.embeddings.shape[1]) if state.memory is None else state.memory
        if state.memory is not None and sizes != state.sizes:
            memory = self.rule.renewed(memory)
        memory, tracks = self.rule.advance(memory, found, frame.info)
        bare = replace(tracks, embeddings=tracks.boxes.new_zeros(len(tracks), 0))       # nobody behind asks for them
        shown = to_original(bare, frame)
        best = torch.arange(len(shown))[: self.config.max_per_frame]                    # a slice would carry all rows
        return _State(memory, frame.info.index, sizes), shown[best]

    def snapshot(self, stream: str) -> bytes:
        refuse_closed("relate", stream, self._states)
        state = self._states[stream]
        known = None if state.memory is None else self.rule.plain(state.memory)
        return pack({"rule": self.rule.name, "index": state.index, "sizes": state.sizes, "memory": known})

    def restore(self, stream: str, state: bytes) -> None:
        """Raises StageError for an open stream, a damaged snapshot, and one of another rule."""
        with unpacked(state, f"relate, stream '{stream}'") as content:
            rule = content["rule"]
            known = content["memory"] if rule == self.rule.name else None
            memory = None if known is None else self.rule.restored(known)
            kept = _State(memory, int(content["index"]), tuple(content["sizes"]))
        if rule != self.rule.name:
            raise StageError(
                f"relate, stream '{stream}': the snapshot is of rule '{rule}', this stage follows '{self.rule.name}'. "
                "Restore it with the network and the `relate.rule` that it was made with."
            )
        refuse_open("relate", stream, self._states, "it is restored")
        self._states[stream] = kept

    def close(self, stream: str) -> list[FrameDetections]:
        self._states.pop(stream, None)
        return []


def _decided_on_host(found: Detections) -> Detections:
    """The same with boxes, scores and labels on the host, in one copy; vectors and masks stay where they are."""
    columns = [found.boxes.double(), found.scores.double()[:, None], found.labels.double()[:, None]]
    table = torch.cat(columns, dim=1).cpu()                                                         # (N, 6)
    return replace(found, boxes=table[:, :4].float(), scores=table[:, 4].float(), labels=table[:, 5].long())
