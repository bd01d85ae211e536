"""Overlap of boxes, and suppression: of boxes that overlap too much, the best-scored stays.

In:     boxes (N, 4) xyxy, sides x2 - x1
Out:    indices of the survivors, best score first
State:  none
Limits: exact, whatever N; a chunk is compared with all that are kept, so time grows with N x survivors
Source: CrossVIS specification 4.1 step 3; 5.2 for proposals, level by level.
"""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK = 128
"""Boxes that are settled at once. Larger: fewer steps, more pairs of boxes that need not be compared."""


def greedy_nms(boxes: Tensor, scores: Tensor, groups: Tensor, threshold: float, most: int) -> Tensor:
    """Indices of the survivors, best score first.  (N, 4), (N,), (N,) -> (n,) int64

    A box goes when its IoU with a kept, better one of its group (class, level) is above `threshold`. Of equal scores
    the earlier wins. Keeps the best `most`, and those tied with the last of them. A box without area has IoU 0 with
    all: it removes nothing and stays. No boxes: (0,).
    """
    order = torch.argsort(scores, descending=True, stable=True)
    b, s, g = boxes[order].float(), scores[order], groups[order]
    kept = order.new_zeros(0)                                           # places in the order
    for begin in range(0, len(order), CHUNK):
        if len(kept) >= most and s[begin] < s[kept[most - 1]]:
            break
        chunk = torch.arange(begin, min(begin + CHUNK, len(order)), device=order.device)
        free = chunk[~_removes(b, g, kept, chunk, threshold).any(0)]
        kept = torch.cat([kept, free[_settle(_removes(b, g, free, free, threshold).triu(1))]])
    if len(kept) > most:
        kept = kept[s[kept] >= s[kept[most - 1]]]
    return order[kept]


def _removes(boxes: Tensor, groups: Tensor, these: Tensor, those: Tensor, threshold: float) -> Tensor:
    """Whether a box of `these` (n,) would remove one of `those` (m,): (n, m) bool."""
    intersection, union = _overlap(boxes[these], boxes[those])
    return (intersection > threshold * union) & (groups[these][:, None] == groups[those])


def _settle(removes: Tensor) -> Tensor:
    """Who stays, where each may be removed by earlier ones that stay themselves.  (n, n) bool, above the diagonal, ->
    (n,) bool

    Begins with all; after k rounds the first k are right for good, and when a round changes nothing, all are.
    """
    stays = removes.new_ones(len(removes))
    while True:
        after = ~(removes & stays[:, None]).any(0)
        if torch.equal(after, stays):
            return stays
        stays = after


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of all pairs; 0 / 0 is 0.  (N, 4), (M, 4) -> (N, M)"""
    intersection, union = _overlap(a, b)
    return torch.where(union > 0, intersection / union, 0.0)


def _overlap(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas of intersection and union of all pairs: (N, M) each."""
    width = torch.minimum(a[:, None, 2], b[:, 2]) - torch.maximum(a[:, None, 0], b[:, 0])
    height = torch.minimum(a[:, None, 3], b[:, 3]) - torch.maximum(a[:, None, 1], b[:, 1])
    intersection = width.clamp_(min=0) * height.clamp_(min=0)
    areas = [(x[:, 2:] - x[:, :2]).clamp(min=0).prod(1) for x in (a, b)]
    return intersection, areas[0][:, None] + areas[1] - intersection
