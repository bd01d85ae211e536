"""What each anchor of each time slot of a clip is to learn: which object it answers for, or background, or neither.

In:     ground truth of the T frames of a clip (`FrameTargets`, identities count its objects), anchors
Out:    `ClipTargets`, whose objects have T boxes each; the owner of every anchor (S, N) of S slots
State:  none
Limits: rounds of forced matching are as many as the clip has objects, each over all slots at once
Source: Li & Zhang, CiCo, 2022, 3.3; CiCo specification 1.5, 1.7, 3.1. n objects of a clip, N anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cico_anchors import TubeAnchors, areas, diou, iou, to_corners, union_box
from models.cico_slots import Slots
from models.sampling import BACKGROUND, IGNORED
from models.targets import FrameTargets

MatchBox = Literal["current", "union3", "union3_unguarded"]
NEIGHBOUR_IOU = 0.5
SMALL_AREA = 0.01
SMALL_GAIN = 1.05
FORCED = 2.0
"""Overlap of an anchor that was forced to an object."""


@dataclass(frozen=True, kw_only=True)
class MatchConfig:
    """Which anchors answer for which object."""

    box: MatchBox = "union3"
    """What anchors are held against: the object's box in the slot's frame (`current`; as released up to 5 frames); the
    box around those of the frames before, at and behind, of neighbours that overlap by half (`union3`; as released
    beyond); or of all three (`union3_unguarded`, paper). Unions help with long clips: 1.8 AP at 7 frames."""
    overlap: Literal["iou", "diou"] = "iou"
    """`diou` as the release trains on stills."""
    positive: float = 0.5
    """Overlap above which an anchor answers for its best object. Higher: fewer, better placed positives."""
    negative: float = 0.4
    """Overlap below which an anchor is background; between the two it is left out."""
    gain: Literal["small", "all"] = "small"
    """Whose overlaps count 5 % more: of objects under a hundredth of the frame; or, a slip of the release, of all where
    anchors are held against one frame alone."""

    def __post_init__(self) -> None:
        if not 0 < self.negative <= self.positive < 1:
            raise ValueError(f"matching: negative {self.negative}, positive {self.positive}; expected 0 < both < 1")

    @property
    def neutral(self) -> float:
        """Overlap given to an anchor that two objects claim: between the two."""
        return (self.positive + self.negative) / 2


@dataclass(frozen=True)
class ClipTargets:
    """Ground truth of one clip: n objects that are visible in at least one of its frames."""

    boxes: Tensor
    """(n, T, 4) float32 xyxy, divided by the padded width and height; where the object is absent, the box of the
    nearest frame in which it is visible, of two the earlier."""
    labels: Tensor
    """(n,) int64, 0-based: the most frequent of its frames."""
    masks: Tensor
    """(n, T, Hp/4, Wp/4) float32, 0 or 1; 0 where the object is absent."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def unions(self) -> Tensor:
        """(n, 4)"""
        return union_box(self.boxes)


def clip_targets(frames: Sequence[FrameTargets]) -> ClipTargets:
    """The objects of a clip's frames, by ascending identity. Boxes without area count as absent. No object: n = 0.

    Raises ValueError where a frame has an identity twice.
    """
    height, width = frames[0].masks.shape[-2:]
    boxes, labels, identities = (torch.cat([getattr(f, k) for f in frames]) for k in ("boxes", "labels", "identities"))
    counts = torch.tensor([len(f) for f in frames], device=boxes.device)
    times = torch.arange(len(frames), device=boxes.device).repeat_interleave(counts)
    shown = (areas(boxes) > 0).nonzero().squeeze(1)
    known, row = identities[shown].unique(return_inverse=True)
    places, labels = (row, times[shown]), labels[shown]
    visible = torch.zeros(len(known), len(frames), dtype=torch.int64, device=boxes.device)
    visible.index_put_(places, torch.ones_like(row), accumulate=True)
    if (visible > 1).any():
        raise ValueError("clip targets: a frame has an identity twice; identities must tell a clip's objects apart")
    votes = torch.zeros(len(known), int(labels.max()) + 1 if len(labels) else 1, device=boxes.device)
    votes.index_put_((row, labels), votes.new_ones(()), accumulate=True)
    all_boxes = boxes.new_zeros(len(known), len(frames), 4)
    all_boxes[places] = boxes[shown] / boxes.new_tensor([width, height, width, height])
    masks = torch.cat([f.masks for f in frames])[shown]
    small = boxes.new_zeros(len(known), len(frames), height // 4, width // 4)
    small[places] = quarter(masks)
    return ClipTargets(filled(all_boxes, visible > 0), votes.argmax(1), small)


def quarter(masks: Tensor) -> Tensor:
    """Masks at a quarter of their size: bilinear, above a half.  (G, H, W) bool, or shares -> (G, H/4, W/4) float32"""
    g, h, w = masks.shape
    if not g:
        return torch.zeros(0, h // 4, w // 4, device=masks.device)
    x = F.interpolate(masks[:, None].float(), size=(h // 4, w // 4), mode="bilinear", align_corners=False)
    return (x.squeeze(1) > 0.5).float()


def filled(boxes: Tensor, visible: Tensor) -> Tensor:
    """Where an object is absent, its box of the nearest frame where it is visible, of two the earlier.

    (n, T, 4), (n, T) bool with one True in each row -> (n, T, 4)
    """
    time = torch.arange(boxes.shape[1], device=boxes.device)
    away = 2 * (time[:, None] - time).abs() + (time > time[:, None])                    # (T, T) from row to column
    cost = torch.where(visible[:, None], away, 2 * len(time) + 2)                       # (n, T, T)
    source = cost.argmin(2)
    return boxes.gather(1, source[..., None].expand_as(boxes))


def matching_boxes(boxes: Tensor, how: MatchBox) -> tuple[Tensor, Tensor]:
    """What anchors of each slot are held against, and whether the object is small in a frame that took part.

    (n, T, 4) -> (T, n, 4), (T, n) bool
    """
    boxes = boxes.transpose(0, 1)                                                       # (T, n, 4)
    joined, small = boxes, areas(boxes) < SMALL_AREA
    if how == "current":
        return joined, small
    for step in (1, -1):                                                                # the frame before, the next
        beside, exists = boxes.roll(step, 0), torch.ones(len(boxes), 1, dtype=torch.bool, device=boxes.device)
        exists[0 if step == 1 else -1] = False
        takes_part = exists.expand(boxes.shape[:2])
        if how == "union3":
            takes_part = takes_part & (iou(joined, beside) > NEIGHBOUR_IOU)
        joined = torch.where(takes_part[..., None], union_box(torch.stack([joined, beside], dim=2)), joined)
        small = small | (takes_part & (areas(beside) < SMALL_AREA))
    return joined, small


def slot_boxes(boxes: Tensor, slots: Slots) -> tuple[Tensor, Tensor]:
    """The same for slots of several frames: the box around those of all of them.  (n, T, 4) -> (S, n, 4), (S, n) bool
    """
    groups = boxes.unfold(1, slots.kernel, slots.stride).permute(1, 0, 3, 2)            # (S, n, kernel, 4)
    return union_box(groups), (areas(groups) < SMALL_AREA).any(2)


@torch.no_grad()
def match(targets: ClipTargets, anchors: TubeAnchors, cfg: MatchConfig, slots: Slots | None = None) -> Tensor:
    """The owner of every anchor of every slot: an object, BACKGROUND or IGNORED.  -> (S, N) int64

    A clip without objects gives no negatives: all IGNORED. `slots` None: one a frame. For slots of several frames
    `cfg.box` has no say: anchors are held against the box around all of them.
    """
    slots = slots or Slots(targets.boxes.shape[1])
    if not len(targets):
        return torch.full((slots.count, len(anchors.boxes)), IGNORED, device=anchors.boxes.device)
    single = slots.kernel == 1
    boxes, small = matching_boxes(targets.boxes, cfg.box) if single else slot_boxes(targets.boxes, slots)
    measure = iou if cfg.overlap == "iou" else diou
    overlaps = measure(boxes[:, :, None], to_corners(anchors.boxes))                    # (S, n, N)
    best, owner = overlaps.max(1)                                                       # (S, N)
    best = best.masked_fill((overlaps > cfg.positive).sum(1) > 1, cfg.neutral)
    best, owner = forced(overlaps, best, owner, cfg)
    if cfg.gain == "all" and single and (cfg.box == "current" or slots.count == 1):
        small = torch.ones_like(small)
    best = torch.where(small.gather(1, owner), best * SMALL_GAIN, best)
    owner = owner.masked_fill(best <= cfg.positive, IGNORED)
    return owner.masked_fill(best < cfg.negative, BACKGROUND)


def forced(overlaps: Tensor, best: Tensor, owner: Tensor, cfg: MatchConfig) -> tuple[Tensor, Tensor]:
    """Give objects the anchor that fits them best, the best pair first, as long as anchors fit somewhat.

    (T, n, N), (T, N), (T, N) -> `best`, FORCED at such anchors, and `owner`. Each slot for itself: a round takes the
    best pair of an object and an anchor that are not used yet. It is accepted if the anchor's best overlap is at least
    half of what is neutral, or while no anchor of the slot is positive; the first that is not ends the slot's rounds.
    """
    slots, objects, count = overlaps.shape
    overlaps, best, owner = overlaps.clone(), best.clone(), owner.clone()
    slot = torch.arange(slots, device=best.device)
    going = torch.ones(slots, dtype=torch.bool, device=best.device)
    for _ in range(objects):
        pair = overlaps.flatten(1).argmax(1)                                            # (T,)
        item, anchor = pair // count, pair % count
        fits = (best[slot, anchor] >= cfg.neutral / 2) | ~(best > cfg.positive).any(1)
        going = going & fits
        best[slot, anchor] = torch.where(going, FORCED, best[slot, anchor])
        owner[slot, anchor] = torch.where(going, item, owner[slot, anchor])
        overlaps[slot, item] = -torch.inf
        overlaps[slot, :, anchor] = -torch.inf
    return best, owner
