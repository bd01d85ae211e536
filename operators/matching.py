"""Step 7, the rules: which known track each detection of a frame gets.

In:     Detections   N of a frame: embeddings (N, D), boxes (N, 4), scores (N,), labels (N,)
        TrackMemory  M tracks as they stood before the frame, at their latest record
Out:    (N,) int64   a row of the memory, NEW, or LOST: a better detection claimed the same track, so this one is out
State:  none
Limits: N x M numbers at once, in one piece: 100 detections and 1000 tracks are some milliseconds

Both rules let each detection claim its best track, the first of equals; of several claims on one track the largest
wins, the earlier of equals, and the losers are neither written out nor remembered. They differ in what "best" is:

cosine_iou  cosine of the embeddings + IoU of the boxes within a class; below `min_match` a new track (mode A)
masktrack   softmax over the embeddings' dot products and an implicit "new", with score, IoU and class (mode B)

Source: CrossVIS specification 4.2 (mode A, as released; the paper says only "as MaskTrack R-CNN and CompFeat") and 4.3
        (mode B). It leaves open in which pixels mode B's IoU is taken and whether 1e-5 is added to the union: here
        in original pixels as in mode A, and without. Sides are x2 - x1 in both modes; where a network counts a box's
        last pixel in, as MaskTrack R-CNN does, its boxes come here with x2 behind that pixel, which is the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.outputs import Detections
from operators.boxes import EPS, box_iou

Rule = Literal["cosine_iou", "masktrack"]
Association = Rule | Literal["identities", "edges", "boxes", "clips"]
"""What gives a network's detections their tracks: a rule of this file, identities that the network itself says
(operators/identify.py), or in operators/relate.py the edge scores of its object graph, or boxes alone; or tubes
of clips (operators/track_tubes.py)."""

NEW, LOST = -1, -2

OTHER_CLASS = -1.0
"""Mode A's match of a detection with a track of another class: below every threshold."""
NO_CLAIM = -100.0
"""Mode B's initial best of every track: a claim of this value or less loses though it is alone."""


@dataclass(frozen=True, kw_only=True)
class MaskTrackRuleConfig:
    """Weights of mode B; the defaults are MaskTrack R-CNN as released. They count against each other alone."""

    score_weight: float = 1.0
    """Share of the detection score's logarithm. It is the same for all tracks, so it decides between detections that
    claim one track. Higher: the surer detection wins more often, the better fit less often."""
    iou_weight: float = 2.0
    """Share of the box overlap. Higher: tracks hold better where things stand still, worse where they cross."""
    class_weight: float = 10.0
    """What an equal class is worth, and a new track. Higher: a detection of another class is rather a new track; 0
    lets looks and place decide alone, and a track survives that its class flickers."""

    def __post_init__(self) -> None:
        for name in ("score_weight", "iou_weight", "class_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more, and finite")


@dataclass(frozen=True, kw_only=True)
class AssociateConfig:
    """The defaults are CrossVIS as released. `min_match` and the two weights are mode A's alone."""

    rule: Rule | Literal["network"] = "network"
    """How detections find their tracks; `network` leaves it to `association` in the network's file, because a network
    is trained for one of the rules: under the other its tracks break."""
    min_match: float = 0.4
    """Smallest match that keeps an id; cosine + IoU lies in -1..2. Higher: fewer mixed-up tracks, more new ids."""
    embedding_weight: float = 1.0
    """Share of the embeddings' cosine in the match. 0 leaves box overlap alone to decide."""
    iou_weight: float = 1.0
    """Share of the box overlap with the track's last box. 0 leaves appearance alone to decide."""
    masktrack: MaskTrackRuleConfig = field(default_factory=MaskTrackRuleConfig)
    """Mode B's own."""
    max_unseen: int | None = None
    """Frames a track outlives being unseen; null never forgets. Higher: longer occlusions survive, more memory."""

    def __post_init__(self) -> None:
        if self.min_match <= OTHER_CLASS:
            raise ValueError(f"min_match is {self.min_match}, above {OTHER_CLASS} is expected: what other classes get")
        if self.max_unseen is not None and self.max_unseen < 0:
            raise ValueError(f"max_unseen is {self.max_unseen}, expected 0 or more, or null")

    def rule_for(self, of_network: Rule = "cosine_iou") -> Rule:
        """The rule in use with a network whose file says `of_network`."""
        return of_network if self.rule == "network" else self.rule


@dataclass(frozen=True)
class TrackMemory:
    """What is known of M tracks, oldest first. A snapshot is these tensors and a few numbers."""

    track_ids: Tensor
    """(M,) int64, rising."""
    embeddings: Tensor
    """(M, D) float32, as the network gave them."""
    boxes: Tensor
    """(M, 4) float32 xyxy, original pixels."""
    labels: Tensor
    """(M,) int64: of the first record. Later ones have the same in mode A, not always in mode B."""
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
        return replace(self, **{name: value[index] for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "next_id"}


def claims(found: Detections, memory: TrackMemory, cfg: AssociateConfig, rule: Rule) -> Tensor:
    """Which track each detection gets: its row of the memory, NEW or LOST.  (N,) int64; no detections give (0,)."""
    if rule == "cosine_iou":
        return claim(match_scores(found, memory, cfg), cfg.min_match)
    best, column = masktrack_values(found, memory, cfg.masktrack).max(1)                # first maximum
    return settle(column - 1, best, NO_CLAIM)                                           # column 0 is NEW


def match_scores(found: Detections, memory: TrackMemory, cfg: AssociateConfig) -> Tensor:
    """Cosine of the embeddings plus IoU of the boxes where the class is the same, else -1.  (N, M)"""
    cosine = F.normalize(found.embeddings, dim=1) @ F.normalize(memory.embeddings, dim=1).T
    overlap = box_iou(found.boxes, memory.boxes, eps=EPS)
    match = cfg.embedding_weight * cosine + cfg.iou_weight * overlap
    return torch.where(found.labels[:, None] == memory.labels[None], match, OTHER_CLASS)


def masktrack_values(found: Detections, memory: TrackMemory, cfg: MaskTrackRuleConfig) -> Tensor:
    """ln p + weighted ln(score), IoU and class, p a softmax of [0, dot products].  (N, 1 + M) float64

    Column 0 is a new track, with no overlap and an equal class. All is finite where scores are above 0; a score of 0
    gives -inf in its whole row, of which column 0 is the first.
    """
    # float64, because dot products are not bounded, and of the logarithm, because a p may be 0 in any precision
    dots = found.embeddings.double() @ memory.embeddings.double().T                     # (N, M)
    log_p = F.pad(dots, (1, 0)).log_softmax(1)                                          # (N, 1 + M)
    overlap = box_iou(found.boxes.double(), memory.boxes.double())
    same = (found.labels[:, None] == memory.labels[None]).double()
    place = F.pad(cfg.iou_weight * overlap, (1, 0)) + cfg.class_weight * F.pad(same, (1, 0), value=1.0)
    return log_p + torch.xlogy(cfg.score_weight, found.scores.double())[:, None] + place


def claim(match: Tensor, min_match: float) -> Tensor:
    """Mode A's claims: each on its best track, the first of equals; NEW below `min_match`.  (N, M) -> (N,)"""
    n, m = match.shape
    if m == 0:
        return torch.full((n,), NEW, dtype=torch.int64)
    best, track = match.max(1)                                                          # first maximum
    return settle(torch.where(best < min_match, NEW, track), best)


def settle(track: Tensor, value: Tensor, floor: float = -math.inf) -> Tensor:
    """Of several claims on one track the largest wins, the earlier of equals; LOST for the others.  (N,), (N,) -> (N,)

    A claim of `floor` or less is lost even where it is alone. There is no second choice, and a loser is no new track.
    """
    track = torch.where((track >= 0) & (value <= floor), LOST, track)
    order = torch.argsort(value, descending=True, stable=True)                          # winners, earlier ones first
    ordered = track[order]
    same = (ordered[:, None] == ordered[None]) & (ordered[:, None] >= 0)                # (N, N)
    beaten = same.tril(-1).any(1)                                                       # somebody better came before
    track[order[beaten]] = LOST
    return track
