"""Step 6, regions: the boxes that the region proposal network starts from, and how boxes are told relative to others.

In:     sizes of the maps P2..P6; boxes (N, 4)
Out:    `Anchors`; deltas (N, 4), and boxes again
State:  none
Source: Ren et al., Faster R-CNN, NIPS 2015, 3.1.1 and 3.1.2; CrossVIS specification 5.2: base 4..64, scale 8, ratios
        0.5, 1, 2.

MaskTrack R-CNN counts a box's last pixel in: its sides are x2 - x1 + 1. Here a box's x2 is the edge behind that pixel,
as everywhere in Maskstream and in annotations (x + width). So sides are x2 - x1, and every size, overlap, delta and
region is the number that the inclusive form gives. What is left of it stands in this file: where anchors are rounded,
and that a clipped box keeps a pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDES = (4, 8, 16, 32, 64)
"""Of P2..P6, and the base side of the anchors of each."""
MAX_LOG_RATIO = -math.log(16 / 1000)
"""Largest |ln| of a side over its anchor's that a delta may ask for: exp() of a wild one would overflow. The
specification gives no bound; a factor of 62.5 is that of the detectors of the time."""


@dataclass(frozen=True)
class Anchors:
    """All A anchors of one input size: level first, row by row, the ratios of a cell side by side."""

    boxes: Tensor
    """(A, 4) float32 xyxy, whole numbers; some reach out of the image."""
    levels: Tensor
    """(A,) int64, 0 for P2."""
    counts: tuple[int, ...]
    """Anchors of each level."""

    @staticmethod
    def of(sizes: list[tuple[int, int]], scale: float, ratios: tuple[float, ...], device: torch.device) -> Anchors:
        """`sizes`: (h, w) of the five maps, finest first."""
        boxes, levels = [], []
        for level, ((h, w), stride) in enumerate(zip(sizes, STRIDES, strict=True)):
            y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
            shift = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4) * stride                  # (h*w, 1, 4)
            boxes.append((shift + cell_anchors(stride, scale, ratios).to(device)).reshape(-1, 4))
            levels.append(torch.full((len(boxes[-1]),), level, device=device))
        return Anchors(torch.cat(boxes), torch.cat(levels), tuple(len(b) for b in boxes))


def cell_anchors(base: int, scale: float, ratios: tuple[float, ...]) -> Tensor:
    """Anchors of the cell at (0, 0), one for each ratio of height to width, of equal area.  -> (len(ratios), 4)

    Centred at (base - 1) / 2; first and last pixel are rounded to whole ones, halves to even.
    """
    root = torch.tensor(ratios, dtype=torch.float64).sqrt()
    sides = base * scale * torch.stack([1 / root, root], dim=1)                                   # (., 2) width, height
    reach = (sides - 1) / 2
    center = (base - 1) / 2
    return torch.cat([(center - reach).round(), (center + reach).round() + 1], dim=1).float()


def encode_boxes(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Shift of the centre in sides of the anchor, and ln of the sides' ratio: (dx, dy, dw, dh).  (N, 4) x2 -> (N, 4)"""
    center, sides = _center_and_sides(boxes)
    from_center, from_sides = _center_and_sides(anchors)
    return torch.cat([(center - from_center) / from_sides, (sides / from_sides).log()], dim=1)


def decode_boxes(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The boxes that `encode_boxes` was given; sides change by a factor of 62.5 at most.  (N, 4) x2 -> (N, 4)"""
    from_center, from_sides = _center_and_sides(anchors)
    center = from_center + deltas[:, :2] * from_sides
    half = from_sides * deltas[:, 2:].clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp() / 2
    return torch.cat([center - half, center + half], dim=1)


def _center_and_sides(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]


def clip_to_image(boxes: Tensor, height: int, width: int) -> Tensor:
    """First and last pixel of each box brought into the image: what lay outside keeps a pixel.  (N, 4) -> (N, 4)"""
    limit = torch.tensor([width, height], dtype=boxes.dtype, device=boxes.device)
    low = boxes[:, :2].clamp(min=0).minimum(limit - 1)
    return torch.cat([low, boxes[:, 2:].clamp(min=1).minimum(limit)], dim=1)
