"""Arithmetic on boxes, xyxy: what selection, association and metrics share. Widths are x2 - x1, never + 1."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5


def box_area(boxes: Tensor) -> Tensor:
    """(N, 4) -> (N,); a box with a negative side counts as empty."""
    return (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)


def box_iou(a: Tensor, b: Tensor, eps: float = 0.0) -> Tensor:
    """Intersection over union of all pairs: (N, 4), (M, 4) -> (N, M). `eps` is added to the union; 0 / 0 is 0."""
    low = torch.maximum(a[:, None, :2], b[None, :, :2])                       # (N, M, 2)
    high = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(2)                          # (N, M)
    union = box_area(a)[:, None] + box_area(b)[None] - intersection + eps
    return torch.where(union > 0, intersection / union, 0.0)


def clip_boxes(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes cut to [0, width] x [0, height].  (N, 4) -> (N, 4)"""
    limit = torch.tensor([width, height, width, height], dtype=boxes.dtype, device=boxes.device)
    return torch.minimum(boxes.clamp(min=0), limit)


def is_empty(boxes: Tensor) -> Tensor:
    """(N, 4) -> (N,) bool: a side is not positive."""
    return (boxes[:, 2:] <= boxes[:, :2]).any(1)
