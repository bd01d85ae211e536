"""Step 6, tubes: where they start from, how their boxes are coded, and the overlaps of boxes and of unions.

A tube is one prediction for T frames: T boxes, one class vector, one embedding, one set of mask parameters.

In:     sizes of the maps P3..P7; boxes xyxy, divided by the padded width and height
Out:    `TubeAnchors`, N of them, the same for every time slot; deltas and boxes; circumscribed boxes; IoU, DIoU
State:  none
Source: Li & Zhang, CiCo, 2022, equation 4; CiCo specification 1.7, 2.4 (as released), 3.2. Yolact's anchors are other
        ones: fixed sizes in pixels, and square.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RATIOS = (1.0, 0.5, 2.0)
"""Width over height, in the order of a cell's anchors."""
CELLS = 3.0
"""Side of an anchor in cells of its level."""
VARIANCES = (0.1, 0.2)
"""Scale of the coded centre and of the coded ln of the sides."""


@dataclass(frozen=True)
class TubeAnchors:
    """All N anchors of one input size: level first, row by row, the ratios of a cell side by side. Not clipped."""

    boxes: Tensor
    """(N, 4) float32: centre x, y, width, height."""
    levels: Tensor
    """(N,) int64, 0 for P3."""

    @staticmethod
    def of(sizes: list[tuple[int, int]], device: torch.device) -> TubeAnchors:
        """`sizes`: (h, w) of the maps, finest first."""
        ratios = torch.tensor(RATIOS, device=device).sqrt()
        boxes, levels = [], []
        for level, (h, w) in enumerate(sizes):
            x = (torch.arange(w, device=device) + 0.5)[None, :, None] / w
            y = (torch.arange(h, device=device) + 0.5)[:, None, None] / h
            cell = torch.broadcast_tensors(x, y, CELLS * ratios / w, CELLS / ratios / h)
            boxes.append(torch.stack(cell, dim=-1).reshape(-1, 4))                      # (h * w * 3, 4)
            levels.append(torch.full((len(boxes[-1]),), level, device=device))
        return TubeAnchors(torch.cat(boxes), torch.cat(levels))


def to_center(boxes: Tensor) -> Tensor:
    """xyxy -> centre x, y, width, height.  (..., 4) -> (..., 4)"""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def to_corners(boxes: Tensor) -> Tensor:
    """Centre x, y, width, height -> xyxy.  (..., 4) -> (..., 4)"""
    center, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([center - half, center + half], dim=-1)


def encode(boxes: Tensor, anchors: Tensor) -> Tensor:
    """xyxy boxes against their anchors, whose shapes broadcast.  (..., 4), (..., 4) -> (..., 4)

    A box without area gives infinite numbers.
    """
    boxes = to_center(boxes)
    center = (boxes[..., :2] - anchors[..., :2]) / (VARIANCES[0] * anchors[..., 2:])
    return torch.cat([center, (boxes[..., 2:] / anchors[..., 2:]).log() / VARIANCES[1]], dim=-1)


def decode(deltas: Tensor, anchors: Tensor) -> Tensor:
    """The xyxy boxes that `encode` was given; wild deltas give infinite ones.  (..., 4), (..., 4) -> (..., 4)"""
    center = anchors[..., :2] + deltas[..., :2] * VARIANCES[0] * anchors[..., 2:]
    return to_corners(torch.cat([center, anchors[..., 2:] * (deltas[..., 2:] * VARIANCES[1]).exp()], dim=-1))


def union_box(boxes: Tensor) -> Tensor:
    """The box around the boxes of a tube (paper, equation 4).  (..., T, 4) -> (..., 4)"""
    return torch.cat([boxes[..., :2].amin(-2), boxes[..., 2:].amax(-2)], dim=-1)


def areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...); a box with a negative side has none."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of boxes side by side, whose shapes broadcast; 0 / 0 is 0.  (..., 4) x2 -> (...)"""
    low, high = torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:])
    intersection = (high - low).clamp(min=0).prod(-1)
    union = areas(a) + areas(b) - intersection
    return intersection / torch.where(union > 0, union, 1.0)


def diou(a: Tensor, b: Tensor) -> Tensor:
    """IoU - squared distance of the centres / squared diagonal of the hull.  (..., 4) x2, which broadcast, -> (...)

    Source: Zheng et al., Distance-IoU Loss, AAAI 2020.
    """
    hull = torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])
    diagonal = hull.square().sum(-1)
    distance = ((a[..., :2] + a[..., 2:] - b[..., :2] - b[..., 2:]) / 2).square().sum(-1)
    return iou(a, b) - distance / torch.where(diagonal > 0, diagonal, 1.0)
