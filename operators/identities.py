"""Steps 6 and 7 of IAI for one frame: instances, their place in the picture, and which output of the identity head each
gets.

In:     DenseOutputs with `identity_logits`, of a batch, one image at a time; the identities' masks of a frame, in rank
Out:    `Candidates` (find_identities; of two stages operators/identity_regions.py), who owns which pixel (overlap), a
        column for each (assign), the identity map that goes into memory (paint)
State:  none; which columns are taken by whom is in identity_slots.py, and what remembers, in identify.py
Limits: all masks of a frame at the size of the padded input at once: 10 of 384x640 are 10 MB, 50 are 50 MB
Source: IAI specification 4, steps 2 to 9 and 11, as released. I is the number of outputs of the identity head (the
        specification's N): columns 0..I-2 are identities, I-1 says "new".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from models.dynamic_mask import aligned_upsample
from operators.boxes import clip_boxes
from operators.detect import best_per_level, boxes_at
from operators.identity_slots import Mode
from operators.masks import MASK_STRIDE
from operators.nms import class_aware_nms
from operators.records import Features

NOTHING = -1
"""In an identity map: not even background."""


@dataclass(frozen=True, kw_only=True)
class CandidateConfig:
    """What any network with an identity head is asked for; the defaults are IAI CondInst R-50 for YouTube-VIS, as
    released."""

    min_class: float = 0.1
    """Smallest probability of the best class, centre-ness left out. Lower: more weak detections, which take identities
    from objects to come."""
    min_identity: float = 0.1
    """Smallest probability of the best identity, "new" included. Lower: the same."""
    max_iou: float = 0.5
    """Boxes that overlap a better one by more than this go, whatever their class. Higher: more duplicates, fewer lost
    neighbours."""
    max_per_frame: int = 10
    """Instances a frame gives. Higher: more masks to paint. OVIS has 50."""
    min_visible: float = 0.1
    """Smallest share of a mask that no better instance covers. Higher: fewer crumbs of a twice-found object, and fewer
    objects that are really hidden that far."""

    def __post_init__(self) -> None:
        for name in ("min_class", "min_identity", "max_iou", "min_visible"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if self.max_per_frame < 1:
            raise ValueError(f"max_per_frame is {self.max_per_frame}, expected at least 1")


@dataclass(frozen=True, kw_only=True)
class IdentityDetectConfig(CandidateConfig):
    """Of networks whose heads speak of locations."""

    max_per_level: int = 200
    """Locations a pyramid level may send into suppression. Higher: slower in clutter. R-101 has 1000."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_per_level < 1:
            raise ValueError(f"max_per_level is {self.max_per_level}, expected at least 1")


def rank_weights(mode: Mode, first: bool) -> tuple[float, float]:
    """Shares of best class and best identity in a frame's ranking; both are multiplied by the centre-ness.

    As released, a stream's first frame looks at classes and later ones at identities. The paper averages the two at
    every frame; that it multiplies by the centre-ness too is our reading.
    """
    if mode == "paper":
        return 0.5, 0.5
    return (1.0, 0.5) if first else (0.5, 1.0)


@dataclass(frozen=True)
class Candidates:
    """N instances of one frame, the best of rank first."""

    scores: Tensor
    """(N,) float32: what they were ranked by."""
    boxes: Tensor
    """(N, 4) float32 xyxy in pixels of the original frame, clipped to it."""
    classes: Tensor
    """(N, K) float32: class probabilities, times the centre-ness where there is one."""
    identities: Tensor
    """(N, I) float32: probabilities of identities 0..I-2, and of "new"; I = 0 without an identity head."""
    mask_logits: Tensor
    """(N, Hm, Wm) float32, for the picture, in the frame that `mask_frame` says (models/outputs.py)."""
    masks: Tensor
    """(N, Hp, Wp) bool, for the memory; need not be cut to the frame."""
    mask_frame: Literal["image", "box"] = "image"


def find_identities(
    network: Any, dense: Any, image: int, frame: Features, weights: tuple[float, float], cfg: IdentityDetectConfig
) -> Candidates:
    """The instances of one image of the batch. Nothing above the thresholds: N = 0.

    `weights` are the shares of best class and best identity in the rank; `frame` says which sizes it has. A network
    without an identity head (I = 0) ranks by class alone.
    """
    locations, scores, boxes = _ranked(dense, image, frame, weights, cfg)
    identities = dense.identity_logits
    quality = dense.centerness[image, locations].float().sigmoid()[:, None]
    logits = network.mask_logits(dense, image, locations).float()                               # (N, Hp/4, Wp/4)
    return Candidates(
        scores=scores,
        boxes=boxes,
        classes=dense.class_logits[image, locations].float().sigmoid() * quality,
        identities=quality[:, :0] if identities is None else identities[image, locations].float().sigmoid(),
        mask_logits=logits,
        masks=aligned_upsample(logits.sigmoid(), MASK_STRIDE) > 0.5,
    )


def _ranked(
    dense: Any, image: int, frame: Features, weights: tuple[float, float], cfg: IdentityDetectConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Which of the P locations (N,), their rank (N,) and boxes (N, 4), best first."""
    everywhere = torch.arange(len(dense.at.levels), device=dense.at.levels.device)
    quality = dense.centerness[image, everywhere].float().sigmoid()                             # (P,)
    classes = dense.class_logits[image].float().sigmoid().amax(1)
    identities = None if dense.identity_logits is None else dense.identity_logits[image].float().sigmoid().amax(1)
    at = best_per_level(classes * quality, dense.at.levels, cfg.max_per_level)                  # (n,)
    identities = None if identities is None else identities[at]
    passing, scores = ranked(classes[at], identities, weights, cfg)
    at, scores = at[passing], scores[passing] * quality[at[passing]]
    boxes = to_original(boxes_at(dense, image, at), frame)
    kept = distinct(boxes, scores, cfg)
    return at[kept], scores[kept], boxes[kept]


def ranked(
    classes: Tensor, identities: Tensor | None, weights: tuple[float, float], cfg: CandidateConfig
) -> tuple[Tensor, Tensor]:
    """Who passes both thresholds, (n,) bool, and everybody's rank (n,), from the probabilities (n,) of the best class
    and the best identity; without identities by class alone."""
    if identities is None:
        return classes > cfg.min_class, classes
    passing = (classes > cfg.min_class) & (identities > cfg.min_identity)
    return passing, weights[0] * classes + weights[1] * identities


def distinct(boxes: Tensor, scores: Tensor, cfg: CandidateConfig) -> Tensor:
    """Indices of the best that do not overlap too much, whatever their class, best first.  (n, 4), (n,) -> (m,)"""
    one_class = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    return class_aware_nms(boxes, scores, one_class, cfg.max_iou, cfg.max_per_frame)[: cfg.max_per_frame]


def to_original(boxes: Tensor, frame: Features) -> Tensor:
    """Clipped to the resized frame, then in pixels of the original; boxes without area stay.  (n, 4) -> (n, 4)"""
    info, (h, w) = frame.info, frame.size
    scale = torch.tensor([w / info.width, h / info.height] * 2, device=boxes.device)
    return clip_boxes(boxes, h, w) / scale


@dataclass(frozen=True)
class Overlap:
    """Who has which pixel, when the better instance takes all it claims."""

    owner: Tensor
    """(Hp, Wp) int64: the first of the N masks that has the pixel; N where none has."""
    area: Tensor
    """(N,) int64: pixels of each mask."""
    visible: Tensor
    """(N,) int64: pixels that it owns."""


def overlap(masks: Tensor) -> Overlap:
    """Exclusive masks in rank order, all at once: mask n owns what no mask before it has.  (N, Hp, Wp) bool

    The specification goes through them one by one, `visible = mask & free; free -= visible`, where `free` loses the
    pixels of rejected masks too: so what mask n finds taken is the union of all before it, rejected or not.
    """
    count = len(masks)
    if count == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=masks.device)
        return Overlap(torch.zeros(masks.shape[1:], dtype=torch.int64, device=masks.device), nothing, nothing)
    # the largest of N, N - 1, .. 1 where masks are: thirty times as fast on a CPU as looking for the first one
    falling = torch.arange(count, 0, -1, device=masks.device, dtype=torch.uint8 if count < 256 else torch.int16)
    ones = masks.to(falling.dtype)
    owner = count - (ones * falling[:, None, None]).amax(0).long()                              # (Hp, Wp)
    visible = torch.bincount(owner.flatten(), minlength=count + 1)[:count]
    return Overlap(owner, ones.sum(1, dtype=torch.int32).sum(1), visible)


def seen(area: np.ndarray, visible: np.ndarray, min_visible: float) -> np.ndarray:
    """Which instances stay: they have a mask, and enough of it is uncovered.  (N,), (N,) -> (N,) bool

    Divided in float32 as the release does: exactly `min_visible` stays.
    """
    share = visible.astype(np.float32) / np.maximum(area, 1).astype(np.float32)
    return (area > 0) & ~(share < np.float32(min_visible))


def assign(identities: np.ndarray) -> np.ndarray:
    """The column that each of N instances gets, one to one, for the largest total.  (N, I) -> (N,) int64

    After the I columns of the head come a column of zeros and N - 1 copies of the last, "new", so that all may be new
    at once: columns I - 1 to I + N - 1 all mean that no known identity is claimed. No instance gives (0,).
    """
    from scipy.optimize import linear_sum_assignment  # here: 0.4 s of CPU that every replica would begin with

    count = len(identities)
    new = np.repeat(identities[:, -1:], max(count - 1, 0), axis=1)
    _, columns = linear_sum_assignment(np.hstack([identities, np.zeros((count, 1)), new]), maximize=True)
    return columns


def paint(owner: Tensor, codes: Tensor) -> Tensor:
    """The identity map of a frame.  owner (Hp, Wp) of N instances, codes (N + 1,) int8 -> (Hp, Wp) int8

    codes[n] is what instance n writes where it owns a pixel, and codes[N] what stands where nobody does: background.
    """
    return codes[owner]
