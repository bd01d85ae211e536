"""Step 7: give every detection of a frame a track id.

In:     FrameDetections  N of a frame, in falling score: embeddings (N, D), boxes (N, 4) xyxy in original pixels
Out:    the same records with `track_ids` set; detections that lost their track to a better one are left out
State:  TrackMemory      one per stream: of each of M tracks the latest embedding and box, its class, when it was seen
Limits: the releases forget nothing within a video, so M grows with every track ever started: that is the default,
        right for files. `max_unseen` bounds it for endless streams: tracks not seen for that many frames are forgotten,
        and what comes back later gets a new id. Drift: none beyond the tracks themselves; nothing is averaged.
Source: CrossVIS specification 4.2 (mode A) and 4.3 (mode B); who gets which track is decided in `matching.py`.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.outputs import Detections
from operators.errors import StageError
from operators.matching import LOST, NEW, AssociateConfig, Rule, TrackMemory, claims
from operators.records import FrameDetections
from operators.states import check_open, check_order, pack, refuse_closed, refuse_open, unpacked


def advance(
    memory: TrackMemory, found: Detections, frame: int, cfg: AssociateConfig, rule: Rule
) -> tuple[TrackMemory, Detections]:
    """One frame: claim, refresh what was seen, start new tracks, forget what was not seen for long.

    Returns the new memory and the detections that have a track, in their order, `track_ids` set.
    """
    memory = without_forgotten(memory, frame, cfg.max_unseen)
    return remember(memory, found, claims(found, memory, cfg, rule), frame)


def without_forgotten(memory: TrackMemory, frame: int, max_unseen: int | None) -> TrackMemory:
    """The tracks that went unseen for at most `max_unseen` frames before `frame`; None: all."""
    return memory if max_unseen is None else memory[frame - memory.last_seen - 1 <= max_unseen]


def remember(memory: TrackMemory, found: Detections, track: Tensor, frame: int) -> tuple[TrackMemory, Detections]:
    """The memory after `frame`, and those of its detections that have a track, in their order, `track_ids` set.

    `track` (N,): what each claimed, a row of the memory, NEW or LOST.
    """
    new, matched = track == NEW, track >= 0
    started = torch.arange(int(new.sum())) + memory.next_id
    ids = torch.full((len(found),), -1, dtype=torch.int64)
    ids[new] = started
    ids[matched] = memory.track_ids[track[matched]]
    memory = _refresh(memory, track[matched], found[matched], frame)
    memory = _append(memory, started, found[new], frame)
    kept = track != LOST
    return memory, found[kept].with_track_ids(ids[kept])


def _refresh(memory: TrackMemory, rows: Tensor, found: Detections, frame: int) -> TrackMemory:
    """The latest record replaces embedding and box; the class stays that of the first."""
    embeddings, boxes, last_seen = memory.embeddings.clone(), memory.boxes.clone(), memory.last_seen.clone()
    embeddings[rows], boxes[rows], last_seen[rows] = found.embeddings, found.boxes, frame
    return replace(memory, embeddings=embeddings, boxes=boxes, last_seen=last_seen)


def _append(memory: TrackMemory, ids: Tensor, found: Detections, frame: int) -> TrackMemory:
    return TrackMemory(
        torch.cat([memory.track_ids, ids]),
        torch.cat([memory.embeddings, found.embeddings]),
        torch.cat([memory.boxes, found.boxes]),
        torch.cat([memory.labels, found.labels]),
        torch.cat([memory.last_seen, torch.full_like(ids, frame)]),
        next_id=memory.next_id + len(ids),
    )


class Associate:
    """Keeps one TrackMemory per stream and folds `advance` over its frames.

    `of_network` is the rule that the network's file asks for; `config.rule` may name another.
    """

    def __init__(self, config: AssociateConfig, of_network: Rule = "cosine_iou") -> None:
        self.config = config
        self.rule = config.rule_for(of_network)
        self._memories: dict[str, TrackMemory | None] = {}
        self._last: dict[str, int] = {}

    def open(self, stream: str) -> None:
        refuse_open("associate", stream, self._memories, "it begins anew")
        self._memories[stream], self._last[stream] = None, -1

    def __call__(self, batch: list[FrameDetections]) -> list[FrameDetections]:
        return [replace(record, detections=self._one(record)) for record in batch]

    def _one(self, record: FrameDetections) -> Detections:
        info, found = record.info, record.detections.to("cpu")
        check_open("associate", info, self._memories)
        check_order("associate", info, self._last[info.stream])
        memory = self._memories[info.stream]
        if memory is None:                  # an empty memory is another matter: it knows which ids were given
            memory = TrackMemory.empty(found.embeddings.shape[1])
        if memory.embeddings.shape[1] != found.embeddings.shape[1]:
            raise StageError(
                f"associate, {info}: embeddings {tuple(found.embeddings.shape)}, memory "
                f"{tuple(memory.embeddings.shape)}. Restored from another network?"
            )
        memory, tracks = advance(memory, found, info.index, self.config, self.rule)
        self._memories[info.stream], self._last[info.stream] = memory, info.index
        return tracks

    def snapshot(self, stream: str) -> bytes:
        refuse_closed("associate", stream, self._memories)
        memory = self._memories[stream]
        known = None if memory is None else {"next_id": memory.next_id, **memory.tensors()}
        return pack({"rule": self.rule, "last": self._last[stream], "memory": known})

    def restore(self, stream: str, state: bytes) -> None:
        """Raises StageError for an open stream, a damaged snapshot, and one of another rule: its tracks would go on
        otherwise."""
        with unpacked(state, f"associate, stream '{stream}'") as content:
            known, last, rule = content["memory"], int(content["last"]), content["rule"]
            memory = None if known is None else TrackMemory(**known)
        if rule != self.rule:
            raise StageError(
                f"associate, stream '{stream}': the snapshot is of rule '{rule}', this stage follows '{self.rule}'. "
                "Restore it with the network and the `associate.rule` that it was made with."
            )
        refuse_open("associate", stream, self._memories, "it is restored")
        self._memories[stream], self._last[stream] = memory, last

    def close(self, stream: str) -> list[FrameDetections]:
        self._memories.pop(stream, None)
        self._last.pop(stream, None)
        return []
