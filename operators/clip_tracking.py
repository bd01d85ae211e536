"""Step 7 for clips: give every tube of a clip a track id, and carry on for a while those that were not found.

In:     `Tubes` of one clip, in falling score; which frames it shows; `paint`, which paints remembered tubes on its
        prototypes
Out:    `ClipTracks`: what the clip shows, in the order of memory, found or carried on
State:  `ClipMemory`, one per stream: of each of M tracks the latest tube, its age in clips, and its id
Limits: as released nothing is forgotten within a video, so M grows with every track ever started: right for files.
        `max_unseen` bounds it for endless streams; what comes back later gets a new id. A track takes T masks of bool:
        46 kB at T = 3. Drift: of a track that is not found, parameters and box stay those of the clip it was found in
Source: Li & Zhang, CiCo, 2022, equation 11; CiCo specification 4.4, as released. The paper remembers the previous clip
        alone: `coast` and `max_unseen` 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cico_anchors import iou
from models.cico_masks import Window
from models.cico_tubes import Tubes, mask_iou

Paint = Callable[[Tensor, Tensor, Tensor, Window], Tensor]
"""Parameters (M, k'), boxes (M, 4), levels (M,) and the window to cut at -> masks (M, T, h, w) on the clip at hand."""

NEW, LOST = -1, -2
"""Instead of a row of memory: a track begins; or a better tube has taken the track."""
BOTH_PIXELS = 2
"""Frames in which either mask has no more cells than this say nothing of a pair."""
SHOWN_PIXELS = 3
"""A track is shown if its mask has more cells than this in some frame."""


@dataclass(frozen=True, kw_only=True)
class ClipTrackConfig:
    """The defaults are CiCo as released."""

    new_score: float = 0.8
    """A tube whose best match scores no more than this and its margin begins a track. Higher: more new ids, fewer
    mixed-up tracks."""
    margin: float = 0.3
    """Added to it; twice where clips share frames."""
    small_margin: float = 0.15
    """The same for small tubes, whose boxes overlap less."""
    small_area: float = 0.1
    """Mean width times mean height, in shares of the input, below which a tube is small."""
    class_bonus: float = 0.3
    """Added to the score of a match of one class."""
    decay: float = 0.9
    """Per frame, of the score of a track that is not found."""
    enlarge: float = 1.2
    """The box in which such a track is painted, in sides of its own."""
    min_score: float = 0.1
    """A track is shown if its score is above this."""
    coast: int | None = None
    """Clips that a track is shown for without being found. null: as many as 15 frames make, but 3 at least. Higher:
    bridges longer occlusion, and shows what has left for longer."""
    max_unseen: int | None = None
    """Clips a track outlives being unseen. null: for ever, right for files. Higher: finds more again, holds more."""

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1 or self.enlarge <= 0:
            raise ValueError(f"decay is {self.decay}, enlarge {self.enlarge}: expected 0 to 1, and above 0")
        for name in ("coast", "max_unseen"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 or more, or null")

    def longest(self, frames: int) -> int:
        """Clips of so many frames that a track is shown for without being found."""
        return max(3, 15 // frames) if self.coast is None else self.coast


@dataclass(frozen=True)
class ClipMemory:
    """M tracks of one stream, in the order in which they began."""

    boxes: Tensor
    """(M, T, 4) of the latest clip with tubes; of a track not found there the last box, T times."""
    unions: Tensor
    """(M, 4): around all boxes of the clip it was found in; a clip later, its last box."""
    masks: Tensor
    """(M, T, h, w) bool, of that clip."""
    labels: Tensor
    scores: Tensor
    embeddings: Tensor
    """(M, D) of the clip it was found in, not averaged."""
    parameters: Tensor
    levels: Tensor
    ages: Tensor
    """(M,) int64: clips since it was found."""
    track_ids: Tensor
    """(M,) int64."""
    next_id: int = 0
    frames: tuple[int, ...] = ()
    """What the latest clip with tubes shows."""

    def __len__(self) -> int:
        return len(self.boxes)

    def tensors(self) -> dict[str, Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("next_id", "frames")}

    def __getitem__(self, index: Tensor) -> ClipMemory:
        return replace(self, **{name: value[index] for name, value in self.tensors().items()})

    @staticmethod
    def of(found: Tubes, next_id: int, frames: tuple[int, ...]) -> ClipMemory:
        """Tracks that begin with these tubes."""
        ids = torch.arange(len(found), device=found.boxes.device) + next_id
        return ClipMemory(
            found.boxes, found.unions, found.masks > 0.5, found.labels, found.scores, found.embeddings,
            found.parameters, found.levels, torch.zeros_like(ids), ids, next_id + len(ids), frames,
        )  # fmt: skip


@dataclass(frozen=True)
class ClipTracks:
    """What a clip shows: n tracks with boxes and masks of all T frames."""

    tubes: Tubes
    track_ids: Tensor
    """(n,) int64."""
    ages: Tensor
    """(n,) int64: 0 found in this clip, else how many clips ago."""

    def __len__(self) -> int:
        return len(self.tubes)


def advance(
    memory: ClipMemory | None, found: Tubes, frames: Sequence[int], paint: Paint, cfg: ClipTrackConfig
) -> tuple[ClipMemory, ClipTracks]:
    """One clip: carry on what is remembered, claim, refresh, begin new tracks. `memory` is None before the first clip.

    `frames` are the numbers of the clip's T frames in the stream, one of them several times where the last clip was
    filled up. A clip without tubes shows nothing, and what is remembered only ages. Without a track in memory all tubes
    begin one, and all are shown.
    """
    frames = tuple(frames)
    if memory is None:
        memory = ClipMemory.of(found[:0], 0, ())
    if cfg.max_unseen is not None:
        memory = memory[memory.ages <= cfg.max_unseen]
    if not len(found):
        return replace(memory, ages=memory.ages + 1), ClipTracks(found, memory.track_ids[:0], memory.ages[:0])
    if not len(memory):
        memory = ClipMemory.of(found, memory.next_id, frames)
        return memory, ClipTracks(found, memory.track_ids, memory.ages)
    shared = [(p, q) for p, a in enumerate(memory.frames) for q, b in enumerate(frames) if a == b]
    carried = carry_on(memory, paint, cfg)
    score = similarity(memory, carried.masks > 0.5, found, shared, cfg)
    row = claims(score, found, 2 if shared else 1, cfg)
    memory, tubes = _refreshed(memory, carried, found, row, frames)
    return memory, _shown(memory, tubes, cfg)


def carry_on(memory: ClipMemory, paint: Paint, cfg: ClipTrackConfig) -> Tubes:
    """What is remembered, as it would look in the clip at hand: the last box in all frames, the score decayed."""
    count = memory.boxes.shape[1]
    return Tubes(
        boxes=memory.boxes[:, -1:].expand(-1, count, -1),
        masks=paint(memory.parameters, memory.unions, memory.levels, Window(cfg.enlarge, least=0.0)),
        labels=memory.labels,
        scores=memory.scores * cfg.decay**count,
        embeddings=memory.embeddings,
        parameters=memory.parameters,
        levels=memory.levels,
    )


def similarity(
    memory: ClipMemory, carried: Tensor, found: Tubes, shared: list[tuple[int, int]], cfg: ClipTrackConfig
) -> Tensor:
    """How well tracks and tubes fit, (M, n): embeddings, masks, boxes, classes.

    Where the clip shares frames with the one remembered, (place there, place here), masks and boxes are held against
    each other in these and count twice. Else the track's last box against the tube's first, and the masks `carried`
    (M, T, h, w) bool into this clip against the tube's.
    """
    masks = found.masks > 0.5
    if shared:
        there, here = (torch.tensor(places, device=masks.device) for places in zip(*shared, strict=True))
        ours, theirs = memory.masks[:, there], masks[:, here]
        box_overlap = iou(memory.boxes[:, None, there], found.boxes[:, here])                   # (M, n, P)
    else:
        ours, theirs = carried, masks
        box_overlap = iou(memory.boxes[:, None, -1], found.boxes[:, 0])[..., None]
    both = (ours.sum((2, 3)) > BOTH_PIXELS)[:, None] & (theirs.sum((2, 3)) > BOTH_PIXELS)       # (M, n, P)
    mask_overlap = _mean(mask_iou(ours, theirs), both)
    box_overlap = _mean(box_overlap, both) if shared else box_overlap.squeeze(2)
    embeddings = F.normalize(memory.embeddings, dim=1) @ F.normalize(found.embeddings, dim=1).T
    same_class = (memory.labels[:, None] == found.labels).float()
    kappa = 2 if shared else 1
    return (embeddings + 1) / 2 + kappa * 0.5 * (mask_overlap + box_overlap) + cfg.class_bonus * same_class


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Over the last axis, of what counts; 0 for none."""
    return (values * counts).sum(-1) / counts.sum(-1).clamp(min=1)


def claims(score: Tensor, found: Tubes, kappa: int, cfg: ClipTrackConfig) -> Tensor:
    """For each tube the row of the track it takes, NEW or LOST.  (M, n), M at least 1 -> (n,) int64

    Each asks for its best track alone; of several the one with the best match takes it, its own score counting a
    little. No second choice.
    """
    best, row = score.max(0)
    sides = (found.boxes[..., 2:] - found.boxes[..., :2]).mean(1)                               # (n, 2)
    small = sides.prod(1) < cfg.small_area
    limit = cfg.new_score + kappa * torch.where(small, cfg.small_margin, cfg.margin)
    fits = best > limit
    order = (best + 0.1 * found.scores).masked_fill(~fits, -torch.inf).argsort(descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    first = torch.full((len(score),), len(order), device=order.device).scatter_reduce_(0, row, rank, "amin")
    taken = torch.where(first[row] == rank, row, LOST)
    return torch.where(fits, taken, NEW)


def _refreshed(
    memory: ClipMemory, carried: Tubes, found: Tubes, row: Tensor, frames: tuple[int, ...]
) -> tuple[ClipMemory, Tubes]:
    """Memory after the clip, and as `Tubes` what each of its tracks looks like in it."""
    matched, begun = (row >= 0).nonzero().squeeze(1), (row == NEW).nonzero().squeeze(1)
    source = torch.arange(len(carried), device=row.device).index_put((row[matched],), len(carried) + matched)
    source = torch.cat([source, len(carried) + begun])
    tubes = Tubes(**{
        f.name: torch.cat([getattr(carried, f.name), getattr(found, f.name)])[source] for f in fields(Tubes)
    })  # fmt: skip
    aged = source < len(carried)                                                # not found; their box is the last one
    ids = torch.cat([memory.track_ids, memory.next_id + torch.arange(len(begun), device=row.device)])
    ages = torch.where(aged, F.pad(memory.ages + 1, (0, len(begun))), 0)
    unions = torch.where(aged[:, None], tubes.boxes[:, -1], tubes.unions)
    memory = ClipMemory(
        tubes.boxes, unions, tubes.masks > 0.5, tubes.labels, tubes.scores, tubes.embeddings, tubes.parameters,
        tubes.levels, ages, ids, memory.next_id + len(begun), frames,
    )  # fmt: skip
    return memory, tubes


def _shown(memory: ClipMemory, tubes: Tubes, cfg: ClipTrackConfig) -> ClipTracks:
    pixels = memory.masks.sum((2, 3))                                                           # (M, T)
    shown = (memory.ages <= cfg.longest(pixels.shape[1])) & (memory.scores > cfg.min_score)
    shown = shown & (pixels > SHOWN_PIXELS).any(1)
    return ClipTracks(tubes[shown], memory.track_ids[shown], memory.ages[shown])
