"""Training of two stages: which boxes answer for which instance, and which few of them are looked at.

In:     overlaps of G instances with N boxes
Out:    the owner of each box; the positives and negatives drawn at random
State:  none; draws come from torch's global generator
Source: Ren et al., Faster R-CNN, NIPS 2015, 3.1.2; CrossVIS specification 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BACKGROUND, IGNORED = -1, -2
"""Owners of boxes that answer for no instance, and of boxes that are left out."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Which boxes are positive, and how many of an image are looked at."""

    count: int
    """Boxes of an image that the losses look at. Higher: steadier gradients, slower."""
    positive_share: float
    """At most this share of them positive. Higher: more is learnt of boxes and masks, less of the background."""
    positive_iou: float
    """Overlap with an instance from which a box answers for it. Higher: fewer, better placed positives."""
    negative_iou: float
    """Overlap with all instances below which a box is background; between the two it is left out."""
    least_best_iou: float
    """The best boxes of an instance answer for it from this overlap on. Lower: badly covered instances count too."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"sampling: count is {self.count}, expected at least 1")
        if not 0 <= self.positive_share <= 1:
            raise ValueError(f"sampling: positive_share is {self.positive_share}, expected 0..1")
        if not 0 < self.negative_iou <= self.positive_iou <= 1 or not 0 < self.least_best_iou <= 1:
            raise ValueError(
                f"sampling: negative_iou {self.negative_iou}, positive_iou {self.positive_iou} and least_best_iou "
                f"{self.least_best_iou} must be above 0 and at most 1, the first not above the second"
            )


def match_boxes(overlap: Tensor, cfg: SamplingConfig) -> Tensor:
    """(G, N) IoU -> (N,) int64: which instance each box answers for, BACKGROUND or IGNORED. No instance: background.

    A box answers for the instance it overlaps most, the first of equals. Beyond that, of each instance all boxes of its
    largest overlap answer for it, whatever else they overlap; where two instances claim one, it is the later's.
    """
    instances, boxes = overlap.shape
    if not instances:
        return torch.full((boxes,), BACKGROUND, dtype=torch.int64, device=overlap.device)
    best, owner = overlap.max(0)
    owner = torch.where(best >= cfg.positive_iou, owner, IGNORED)
    owner = torch.where(best < cfg.negative_iou, BACKGROUND, owner)
    if not boxes:
        return owner
    most = overlap.amax(1, keepdim=True)                                                          # (G, 1)
    claimed = (overlap == most) & (most >= cfg.least_best_iou)
    numbers = torch.arange(1, instances + 1, device=overlap.device)[:, None]
    claimant = (claimed * numbers).amax(0) - 1                                                    # (N,), -1 for none
    return torch.where(claimant >= 0, claimant, owner)


def sample(owner: Tensor, cfg: SamplingConfig) -> tuple[Tensor, Tensor]:
    """Places of the positives and of the negatives drawn, both in random order; fewer than asked where there are fewer.

    (N,) -> (n,), (m,) int64 with n at most `positive_share` of `count`, and m what is then missing from `count`.
    """
    positives = _draw(owner >= 0, int(cfg.count * cfg.positive_share))
    return positives, _draw(owner == BACKGROUND, cfg.count - len(positives))


def _draw(among: Tensor, most: int) -> Tensor:
    places = among.nonzero().squeeze(1)
    return places[torch.randperm(len(places), device=places.device)[:most]]
