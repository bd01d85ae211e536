"""Step 7, TLTM: a track id for every detection, by the graph's edge scores, boxes and classes.

In:     Detections   N of a frame, in falling score: embeddings (N, D), boxes (N, 4) in pixels of the network input, not
                     clipped; `relate`, the network's edge logits of them and known objects
Out:    the same with `track_ids`; detections that lost their track to a better one are left out
State:  TrackMemory  one per stream, of all tracks ever started: latest vector and box (in input pixels here), class of
                     the first record, when it was seen. A frame without detections leaves it as it is
Limits: nothing is forgotten by default, right for files; `max_unseen` and `max_tracks` bound it for endless streams
Source: TLTM specification 4.1 to 4.5. Its release forgets by a count of all misses since birth, and then mistakes rows
        for ids; here it is consecutive frames, and ids are kept.

What the rule comes to while a0 + a2 < a3 and the gate holds (specification 4.5): a detection goes on with a track
exactly if some track of its class overlaps it by `min_iou` or more, the one with the largest a0 s + a2 IoU.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.outputs import Detections
from operators.association import remember, without_forgotten
from operators.boxes import box_iou
from operators.matching import NO_CLAIM, TrackMemory, settle

Relate = Callable[[Tensor, Tensor], Tensor]
"""Vectors of M known objects (M, D), of N of this frame (N, D) -> edge logits (N, M); `models.tltm.TLTM.edges`."""

OUT_OF_REACH = -10000.0
"""What a track counts whose box overlaps too little: less than a new track, whatever else speaks for it."""


@dataclass(frozen=True, kw_only=True)
class ObjectGraphConfig:
    """The defaults are TLTM R-50 as released for YouTube-VIS. The weights count against each other alone."""

    edge_weight: float = 0.5
    """a0, share of the edge score. Higher: looks decide more among tracks that overlap, place less. 0: no graph."""
    score_weight: float = 1.5
    """a1, share of the detection score's logarithm. It is the same for all tracks, so it decides between detections
    that claim one track alone."""
    iou_weight: float = 2.5
    """a2, share of the box overlap. Higher: tracks hold better where things stand still, worse where they cross."""
    class_weight: float = 10.0
    """a3, what an equal class is worth, and a new track."""
    edge_term: Literal["probability", "logit"] = "probability"
    """What the softmax over "new" and the tracks is taken of: the edges' probabilities, as released, which tell
    little more than ties apart; or their logits, which may also say "new"."""
    min_iou: float | None = 0.3
    """Smallest overlap with a track's last box. null: any, so that what left the view may come back elsewhere; only
    with `logit`, since under probabilities no track of a class could ever begin beside another."""
    max_unseen: int | None = None
    """Frames a track outlives being unseen; null never forgets. Higher: longer occlusions survive, more memory."""
    max_tracks: int | None = None
    """Tracks kept after a frame at most; null: all. Those unseen longest go first, of equals the oldest. Higher: more
    memory, and graph cost that grows with tracks x detections; set it above the instances that a frame may have."""

    def __post_init__(self) -> None:
        for name in ("edge_weight", "score_weight", "iou_weight", "class_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more, and finite")
        if self.edge_term not in ("probability", "logit"):
            raise ValueError(f"edge_term is {self.edge_term!r}, expected 'probability' or 'logit'")
        if self.min_iou is not None and not 0 < self.min_iou <= 1:
            raise ValueError(f"min_iou is {self.min_iou}, expected above 0 and at most 1, or null")
        if self.min_iou is None and self.edge_term == "probability":
            raise ValueError("min_iou is null, expected a number with edge_term: probability, or edge_term: logit")
        if self.max_unseen is not None and self.max_unseen < 0:
            raise ValueError(f"max_unseen is {self.max_unseen}, expected 0 or more, or null")
        if self.max_tracks is not None and self.max_tracks < 1:
            raise ValueError(f"max_tracks is {self.max_tracks}, expected 1 or more, or null")


PRESETS = {
    "base": ObjectGraphConfig(edge_weight=1.0, score_weight=1.0, iou_weight=2.0),
    "r50": ObjectGraphConfig(edge_weight=0.5, score_weight=1.5, iou_weight=2.5),
    "r101": ObjectGraphConfig(edge_weight=1.25, score_weight=1.0, iou_weight=2.5),
    "r101_davis": ObjectGraphConfig(edge_weight=1.25, score_weight=1.0, iou_weight=2.0),
    "score_a0_zero": ObjectGraphConfig(edge_weight=0.0, score_weight=1.5, iou_weight=2.5),
}
"""The released settings' weights (specification 4.3). The last is the baseline's, without fuser and graph."""


def advance(
    memory: TrackMemory, found: Detections, frame: int, relate: Relate, cfg: ObjectGraphConfig
) -> tuple[TrackMemory, Detections]:
    """One frame: claim, refresh what was seen, start new tracks, forget what was not seen for long.

    Returns the new memory and the detections that have a track, in their order, `track_ids` set. Begin a stream with
    `TrackMemory.empty(D)`.
    """
    if not len(found):
        return memory, found.with_track_ids(torch.zeros(0, dtype=torch.int64))
    memory = without_forgotten(memory, frame, cfg.max_unseen)
    best, column = edge_values(found, memory, relate(memory.embeddings, found.embeddings), cfg).max(1)
    memory, tracks = remember(memory, found, settle(column - 1, best, NO_CLAIM), frame)   # column 0 is NEW
    return _latest(memory, cfg.max_tracks), tracks


def _latest(memory: TrackMemory, most: int | None) -> TrackMemory:
    """The `most` tracks that were seen last, of equals the youngest, in their order; None: all."""
    if most is None or len(memory) <= most:
        return memory
    return memory[torch.argsort(memory.last_seen, stable=True)[-most:].sort().values]


def edge_values(found: Detections, memory: TrackMemory, logits: Tensor, cfg: ObjectGraphConfig) -> Tensor:
    """What each track speaks for, to each detection: edge logits (N, M) -> (N, 1 + M) float64.

    Column 0 is a new track: edge score 0, no overlap, an equal class. A detection score of 0 makes its row -inf.
    """
    edges = logits.double().to(found.boxes.device)
    log_p = F.pad(edges.sigmoid() if cfg.edge_term == "probability" else edges, (1, 0)).log_softmax(1)
    overlap = inclusive_iou(found.boxes.double(), memory.boxes.double())
    if cfg.min_iou is not None:
        overlap = torch.where(overlap >= cfg.min_iou, overlap, OUT_OF_REACH)
    same = (found.labels[:, None] == memory.labels[None]).double()
    place = F.pad(cfg.iou_weight * overlap, (1, 0)) + cfg.class_weight * F.pad(same, (1, 0), value=1.0)
    return cfg.edge_weight * log_p + torch.xlogy(cfg.score_weight, found.scores.double())[:, None] + place


def inclusive_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of all pairs, a box's last pixel counted in: sides are x2 - x1 + 1.  (N, M)"""
    last = torch.tensor([0, 0, 1, 1], dtype=a.dtype, device=a.device)
    return box_iou(a + last, b + last)
