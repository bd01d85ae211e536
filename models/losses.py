"""Every loss as a function of tensors, in float32 at least, whatever the network ran in.

In:     what was said, and what is true
Out:    one number each, or one per instance
State:  none
Source: CrossVIS specification 3.3 to 3.5; each function names its formula

All give 0, still joined to the graph, where there is nothing to sum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def at_least_float32(x: Tensor) -> Tensor:
    """Half precision becomes float32: sums of thousands of terms need it. float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def sigmoid_focal_loss(logits: Tensor, targets: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """Sum of -alpha_t (1 - p_t)^gamma ln p_t.  logits, targets (...) of equal shape, targets 0 or 1 -> ()

    Source: Lin et al., Focal Loss, ICCV 2017, equation 5.
    """
    logits = at_least_float32(logits)
    targets = targets.to(logits.dtype)
    cross_entropy = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    p = logits.sigmoid()
    p_t = p * targets + (1 - p) * (1 - targets)
    alpha_t = alpha * targets + (1 - alpha) * (1 - targets)
    return (alpha_t * (1 - p_t) ** gamma * cross_entropy).sum()


def giou_loss(
    pred: Tensor, target: Tensor, weights: Tensor, added: float = 1.0, epsilon: float = 1e-7
) -> Tensor:  # fmt: skip
    """Sum of weight * (1 - GIoU) over boxes, given as distances (l, t, r, b) from a point, in strides.  (N, 4) x2 -> ()

    IoU = (I + added) / (U + added): 1 squared cell as CrossVIS, 0 as IAI (3.3 of either specification). `epsilon` is
    the least area divided by.
    """
    pred = at_least_float32(pred)
    target = target.to(pred.dtype)
    area_pred = (pred[:, 0] + pred[:, 2]) * (pred[:, 1] + pred[:, 3])
    area_target = (target[:, 0] + target[:, 2]) * (target[:, 1] + target[:, 3])
    small, large = torch.minimum(pred, target), torch.maximum(pred, target)
    intersection = (small[:, 0] + small[:, 2]) * (small[:, 1] + small[:, 3])
    hull = (large[:, 0] + large[:, 2]) * (large[:, 1] + large[:, 3])
    union = area_pred + area_target - intersection
    iou = (intersection + added) / (union + added).clamp(min=epsilon)
    giou = iou - (hull - union) / hull.clamp(min=epsilon)
    return (weights * (1 - giou)).sum()


def dice_loss(logits: Tensor, targets: Tensor, epsilon: float = 1e-5) -> Tensor:
    """1 - 2 sum(m m*) / (sum m^2 + sum m*^2 + epsilon) per instance, m = sigmoid(logits).  (N, h, w) x2 -> (N,)

    Source: CrossVIS equation 8, which has no epsilon; 1e-5 is the release's.
    """
    m = at_least_float32(logits).sigmoid().flatten(1)
    t = targets.to(m.dtype).flatten(1)
    return 1 - 2 * (m * t).sum(1) / ((m * m).sum(1) + (t * t).sum(1) + epsilon)


def centerness_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum of binary cross-entropies.  (N,) x2 -> ()"""
    logits = at_least_float32(logits)
    return F.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype), reduction="sum")


def mean_or_zero(values: Tensor) -> Tensor:
    """Mean of (N,), and 0 for N = 0, without leaving the graph."""
    return values.sum() / max(values.numel(), 1)
