"""Losses of clips, each a function of tensors, in float32 at least.

In:     what was said of tubes, and what is true of them
Out:    one number each
State:  none
Source: Li & Zhang, CiCo, 2022, equations 7 to 9; CiCo specification 3.2. n positives of a batch, p of a clip

Where there is nothing to sum a loss is 0, still joined to the graph.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.losses import at_least_float32, mean_or_zero, sigmoid_focal_loss

ClassLoss = Literal["focal", "ohem", "ce"]
NEGATIVES = 3
"""Hard negatives for each positive."""
LEAST_PROBABILITY = 1e-10


def focal_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Sum over samples and classes, over the number of positives.  (M, K), (M,) with -1 for background -> ()"""
    truth = torch.zeros_like(logits, dtype=torch.float32)
    positive = (labels >= 0).nonzero().squeeze(1)
    truth[positive, labels[positive]] = 1
    return sigmoid_focal_loss(logits, truth) / max(len(positive), 1)


def hard_negative_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of the positives and of the negatives that look least like background, three for each
    positive.  (M, K + 1) with the background first, (M,) with -1 for background -> ()"""
    logp = at_least_float32(logits).log_softmax(1)
    losses = -logp.gather(1, labels[:, None] + 1).squeeze(1)                            # (M,)
    background = (labels < 0).nonzero().squeeze(1)
    positives = len(labels) - len(background)
    wanted = min(NEGATIVES * positives, len(background))
    hardest = background[(-logp[background, 0].detach()).topk(wanted).indices]
    return torch.cat([losses[labels >= 0], losses[hardest]]).sum() / max(positives + wanted, 1)


def cross_entropy_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over all samples, the paper's equation 7.  (M, K + 1), (M,) with -1 for background -> ()"""
    logits = at_least_float32(logits)
    return F.cross_entropy(logits, labels + 1, reduction="sum") / max(len(labels), 1)


CLASS_LOSSES = {"focal": focal_loss, "ohem": hard_negative_loss, "ce": cross_entropy_loss}


def box_loss(deltas: Tensor, truth: Tensor, divisor: float) -> Tensor:
    """Smooth L1 (beta 1) summed over all numbers, over `divisor` boxes.  (n, T, 4) x2 -> ()"""
    deltas = at_least_float32(deltas)
    return F.smooth_l1_loss(deltas, truth.to(deltas.dtype), reduction="sum") / max(divisor, 1)


def quality_losses(logits: Tensor, overlaps: Tensor) -> tuple[Tensor, Tensor]:
    """Of the DIoU (n, T) of decoded boxes: the mean of 1 - DIoU; and the binary cross-entropy of the centre-ness logits
    (n,) against its mean over the tube, brought to 0..1.  -> (), ()"""
    logits, overlaps = at_least_float32(logits), at_least_float32(overlaps)
    truth = overlaps.detach().mean(1).clamp(0, 1).to(logits.dtype)
    entropies = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return mean_or_zero(1 - overlaps.mean(1)), mean_or_zero(entropies)


def mask_loss(masks: Tensor, truth: Tensor, unions: Tensor, slots: Tensor, decay: float = 0.9) -> Tensor:
    """Mean over the p tubes of one clip of their masks' binary cross-entropy in cells, over the cells of the true box.

    (p, T, h, w) 0..1 x2, (p, 4) xyxy in 0..1, (p,) -> (). Frames count decay^|t - slot|, the slot told as the middle of
    its frames; one in which the object is absent has an empty truth and counts too.
    """
    frames, h, w = masks.shape[1:]
    masks = at_least_float32(masks)
    cells = F.binary_cross_entropy(masks, truth.to(masks.dtype), reduction="none").sum((2, 3))      # (p, T)
    size = unions.new_tensor([w, h])
    area = ((unions[:, 2:] - unions[:, :2]) * size).floor().clamp(min=1).prod(1)
    weights = decay ** (torch.arange(frames, device=masks.device) - slots[:, None]).abs().to(masks.dtype)
    return mean_or_zero((cells / area[:, None] * weights).sum(1) / weights.sum(1))


def tracking_loss(embeddings: Tensor, objects: Tensor) -> Tensor:
    """Mean over all pairs of a clip's tubes, each with itself too: -ln s where they are of one object, -ln(1 - s) where
    not, s = (cosine + 1) / 2.  (p, D) of length 1, (p,) -> ()"""
    embeddings = at_least_float32(embeddings)
    similarity = (embeddings @ embeddings.T + 1) / 2
    same = objects[:, None] == objects
    return mean_or_zero(-torch.where(same, similarity, 1 - similarity).clamp(min=LEAST_PROBABILITY).log())
