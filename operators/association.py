"""Step 7: give every detection of a frame a track id.

In:     FrameDetections  N of a frame, in falling score: embeddings (N, D), boxes (N, 4) xyxy in original pixels
Out:    the same records with `track_ids` set; detections that lost their track to a better one are left out
State:  TrackMemory      one per stream: of each of M tracks the latest embedding, box and class, and when it was seen
Limits: the release forgets nothing within a video, so M grows with every track ever started: that is the default, right
        for files. `max_unseen` bounds it for endless streams: tracks not seen for that many frames are forgotten, and
        what comes back later gets a new id. Drift: none beyond the tracks themselves; nothing is averaged.
Source: CrossVIS specification 4.2 (mode A), as released; the paper says only "as MaskTrack R-CNN and CompFeat".
"""

from __future__ import annotations

import io
from dataclasses import dataclass, fields, replace
from pickle import UnpicklingError

import torch
import torch.nn.functional as F
from torch import Tensor

from models.outputs import Detections
from operators.boxes import EPS, box_iou
from operators.errors import StageError
from operators.records import FrameDetections

OTHER_CLASS = -1.0
"""Match of a detection with a track of another class: below every threshold."""


@dataclass(frozen=True, kw_only=True)
class AssociateConfig:
    """The defaults are CrossVIS as released."""

    min_match: float = 0.4
    """Smallest match that keeps an id; cosine + IoU lies in -1..2. Higher: fewer mixed-up tracks, more new ids."""
    embedding_weight: float = 1.0
    """Share of the embeddings' cosine in the match. 0 leaves box overlap alone to decide."""
    iou_weight: float = 1.0
    """Share of the box overlap with the track's last box. 0 leaves appearance alone to decide."""
    max_unseen: int | None = None
    """Frames a track outlives being unseen; null never forgets. Higher: longer occlusions survive, more memory."""

    def __post_init__(self) -> None:
        if self.min_match <= OTHER_CLASS:
            raise ValueError(f"min_match is {self.min_match}, above {OTHER_CLASS} is expected: what other classes get")
        if self.max_unseen is not None and self.max_unseen < 0:
            raise ValueError(f"max_unseen is {self.max_unseen}, expected 0 or more, or null")


@dataclass(frozen=True)
class TrackMemory:
    """What is known of M tracks, oldest first. A snapshot is these tensors and two numbers."""

    track_ids: Tensor
    """(M,) int64, rising."""
    embeddings: Tensor
    """(M, D) float32."""
    boxes: Tensor
    """(M, 4) float32 xyxy, original pixels."""
    labels: Tensor
    """(M,) int64."""
    last_seen: Tensor
    """(M,) int64 frame index."""
    next_id: int = 0

    @staticmethod
    def empty(dim: int) -> TrackMemory:
        ids = torch.zeros(0, dtype=torch.int64)
        return TrackMemory(ids, torch.zeros(0, dim), torch.zeros(0, 4), ids, ids)

    def __len__(self) -> int:
        return len(self.track_ids)

    def __getitem__(self, index: Tensor) -> TrackMemory:
        return replace(self, **{name: getattr(self, name)[index] for name in _TENSORS})


_TENSORS = tuple(f.name for f in fields(TrackMemory) if f.name != "next_id")


def match_scores(found: Detections, memory: TrackMemory, cfg: AssociateConfig) -> Tensor:
    """Cosine of the embeddings plus IoU of the boxes where the class is the same, else -1.  (N, M)"""
    cosine = F.normalize(found.embeddings, dim=1) @ F.normalize(memory.embeddings, dim=1).T
    overlap = box_iou(found.boxes, memory.boxes, eps=EPS)
    match = cfg.embedding_weight * cosine + cfg.iou_weight * overlap
    return torch.where(found.labels[:, None] == memory.labels[None], match, OTHER_CLASS)


def claim(match: Tensor, min_match: float) -> Tensor:
    """Which track each detection gets: its row, -1 for a new one, -2 for one that lost its claim.  (N, M) -> (N,)

    Each detection claims its best track (the first of equals). Of several claims on one track the largest match wins,
    the earlier of equals; the losers are out: no second choice, no new track.
    """
    n, m = match.shape
    if m == 0:
        return torch.full((n,), -1, dtype=torch.int64)
    best, track = match.max(1)                                                # first maximum
    track = torch.where(best < min_match, -1, track)
    order = torch.argsort(best, descending=True, stable=True)                 # winners first, earlier of equals first
    claims = track[order]
    same = (claims[:, None] == claims[None]) & (claims[:, None] >= 0)         # (N, N)
    lost = same.tril(-1).any(1)                                               # somebody better claimed it before
    track[order[lost]] = -2
    return track


def advance(
    memory: TrackMemory, found: Detections, frame: int, cfg: AssociateConfig
) -> tuple[TrackMemory, Detections]:
    """One frame: claim, refresh what was seen, start new tracks, forget what was not seen for long.

    Returns the new memory and the detections that have a track, in their order, `track_ids` set.
    """
    if cfg.max_unseen is not None:
        memory = memory[frame - memory.last_seen - 1 <= cfg.max_unseen]
    track = claim(match_scores(found, memory, cfg), cfg.min_match)
    new, matched = track == -1, track >= 0
    started = torch.arange(int(new.sum())) + memory.next_id
    ids = torch.full((len(found),), -1, dtype=torch.int64)
    ids[new] = started
    ids[matched] = memory.track_ids[track[matched]]
    memory = _refresh(memory, track[matched], found[matched], frame)
    memory = _append(memory, started, found[new], frame)
    kept = track != -2
    return memory, found[kept].with_track_ids(ids[kept])


def _refresh(memory: TrackMemory, rows: Tensor, found: Detections, frame: int) -> TrackMemory:
    """The latest record replaces embedding and box; the class is equal by construction."""
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
    """Keeps one TrackMemory per stream and folds `advance` over its frames."""

    def __init__(self, config: AssociateConfig) -> None:
        self.config = config
        self._memories: dict[str, TrackMemory | None] = {}
        self._last: dict[str, int] = {}

    def open(self, stream: str) -> None:
        if stream in self._memories:
            raise StageError(f"associate: stream '{stream}' is open already. Close it before it begins anew.")
        self._memories[stream], self._last[stream] = None, -1

    def __call__(self, batch: list[FrameDetections]) -> list[FrameDetections]:
        return [replace(record, detections=self._one(record)) for record in batch]

    def _one(self, record: FrameDetections) -> Detections:
        info, found = record.info, record.detections.to("cpu")
        if info.stream not in self._memories:
            raise StageError(f"associate, {info}: the stream is not open.")
        if info.index <= self._last[info.stream]:
            last = self._last[info.stream]
            raise StageError(f"associate, {info}: came after frame {last}; frames must come in order.")
        memory = self._memories[info.stream]
        if memory is None:                  # an empty memory is another matter: it knows which ids were given
            memory = TrackMemory.empty(found.embeddings.shape[1])
        if memory.embeddings.shape[1] != found.embeddings.shape[1]:
            raise StageError(
                f"associate, {info}: embeddings {tuple(found.embeddings.shape)}, memory "
                f"{tuple(memory.embeddings.shape)}. Restored from another network?"
            )
        memory, tracks = advance(memory, found, info.index, self.config)
        self._memories[info.stream], self._last[info.stream] = memory, info.index
        return tracks

    def snapshot(self, stream: str) -> bytes:
        if stream not in self._memories:
            raise StageError(f"associate: stream '{stream}' is not open, so there is nothing to keep of it.")
        memory = self._memories[stream]
        state = {"last": self._last[stream], "memory": None if memory is None else {
            "next_id": memory.next_id, **{name: getattr(memory, name) for name in _TENSORS}}}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        return buffer.getvalue()

    def restore(self, stream: str, state: bytes) -> None:
        try:
            content = torch.load(io.BytesIO(state), weights_only=True)
            memory, last = content["memory"], int(content["last"])
            self._memories[stream] = None if memory is None else TrackMemory(**memory)
        except (RuntimeError, UnpicklingError, EOFError, KeyError, TypeError, ValueError) as error:
            raise StageError(f"associate, stream '{stream}': the snapshot is damaged: {error}") from error
        self._last[stream] = last

    def close(self, stream: str) -> list[FrameDetections]:
        self._memories.pop(stream, None)
        self._last.pop(stream, None)
        return []
