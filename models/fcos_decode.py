"""Step 6, FCOS: from what is said of every location to boxes with a class and a score.

In:     class logits, distances and centre-ness of all P locations of a batch (`Dense`), one image at a time
Out:    `Selected`, best first; boxes in pixels of the network input, not clipped
State:  none
Limits: `max_per_level` candidates a level enter suppression, whatever the frame shows
Source: TLTM specification 2.5. The threshold is held against the class probability alone; networks that hold it against
        class x centre-ness select in operators/detect.py, by the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from models.fcos import Locations
from models.nms import greedy_nms


class Dense(Protocol):
    """What is asked of a network's outputs, as `models.condinst.DenseOutputs` has it."""

    class_logits: Tensor
    distances: Tensor
    centerness: Tensor
    at: Locations


@dataclass(frozen=True, kw_only=True)
class FCOSDecodeConfig:
    """The defaults are TLTM's and CenterMask's on YouTube-VIS, in inference."""

    min_class: float = 0.05
    """Smallest class probability, before centre-ness. Lower: more weak detections, more tracks. 0.25 for DAVIS."""
    max_per_level: int = 1000
    """Candidates a pyramid level may send into suppression. Higher: slower in clutter."""
    max_iou: float = 0.6
    """Boxes of a class that overlap a better one by more than this go. Higher: more duplicates, fewer lost
    neighbours."""
    max_per_frame: int = 50
    """Instances a frame gives, and those tied with the last of them. Higher: more masks and edges to compute."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_class <= 1 or not 0 <= self.max_iou <= 1:
            raise ValueError(f"min_class {self.min_class} and max_iou {self.max_iou} must lie between 0 and 1")
        if min(self.max_per_level, self.max_per_frame) < 1:
            raise ValueError("max_per_level and max_per_frame must be at least 1")


@dataclass(frozen=True)
class Selected:
    """N instances of one image, best first."""

    locations: Tensor
    """(N,) int64: which of the P locations."""
    labels: Tensor
    """(N,) int64."""
    scores: Tensor
    """(N,) float32: square root of class probability x centre-ness."""
    boxes: Tensor
    """(N, 4) float32 xyxy in pixels of the network input, unclipped."""


def decode(dense: Dense, image: int, cfg: FCOSDecodeConfig) -> Selected:
    """The instances of one image of the batch. None above the threshold: N = 0.

    A location may give several classes. What is not finite (weights that blew up) is left out.
    """
    classes = dense.class_logits[image].float().sigmoid()
    locations, labels = (classes > cfg.min_class).nonzero(as_tuple=True)
    scores = classes[locations, labels] * dense.centerness[image, locations].float().sigmoid()       # (n,)
    boxes = boxes_at(dense, image, locations)
    usable = boxes.isfinite().all(1) & scores.isfinite()
    locations, labels, scores, boxes = locations[usable], labels[usable], scores[usable], boxes[usable]
    best = best_per_level(scores, dense.at.levels[locations], cfg.max_per_level)
    locations, labels, scores, boxes = locations[best], labels[best], scores[best].sqrt(), boxes[best]
    kept = greedy_nms(boxes, scores, labels, cfg.max_iou, cfg.max_per_frame)
    return Selected(locations[kept], labels[kept], scores[kept], boxes[kept])


def best_per_level(scores: Tensor, levels: Tensor, most: int) -> Tensor:
    """Indices of the best `most` of every level, levels in order, best first within one."""
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[torch.argsort(levels[order], stable=True)]                # by level, then by falling score
    counts = torch.bincount(levels, minlength=1)
    begin = counts.cumsum(0) - counts
    rank = torch.arange(len(order), device=order.device) - begin[levels[order]]
    return order[rank < most]


def boxes_at(dense: Dense, image: int, locations: Tensor) -> Tensor:
    """Boxes of the instances at `locations` (n,) of one image, in pixels of the network input, unclipped.  (n, 4)"""
    points, strides = dense.at.points[locations], dense.at.strides[locations]
    sides = dense.distances[image, locations].float() * strides[:, None]                        # (n, 4) l t r b
    return torch.cat([points - sides[:, :2], points + sides[:, 2:]], dim=1)
