"""Non-maximum suppression: of boxes that overlap too much, the best-scored stays.

Plain numpy, one vectorised row per kept box; a faster kernel can take its place behind `class_aware_nms`.
Source: CrossVIS specification 4.1 step 3.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def class_aware_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, most: int) -> Tensor:
    """Indices of the survivors, best score first.  (N, 4), (N,), (N,) -> (n,) int64

    A box goes when its IoU with a kept, better one of its class is above `threshold`. Of equal scores the earlier wins.
    Keeps the best `most`, and those tied with the last of them. A box without area has IoU 0 with all: it removes
    nothing and stays. No boxes: (0,).
    """
    order = torch.argsort(scores, descending=True, stable=True)
    b = boxes[order].cpu().numpy().astype(np.float32)
    s, k = scores[order].cpu().numpy(), labels[order].cpu().numpy()
    area = np.clip(b[:, 2] - b[:, 0], 0, None) * np.clip(b[:, 3] - b[:, 1], 0, None)
    alive = np.ones(len(b), bool)
    kept: list[int] = []
    for i in range(len(b)):
        if not alive[i]:
            continue
        if len(kept) >= most and s[i] < s[kept[most - 1]]:
            break
        kept.append(i)
        rest = slice(i + 1, None)
        width = np.minimum(b[rest, 2], b[i, 2]) - np.maximum(b[rest, 0], b[i, 0])
        height = np.minimum(b[rest, 3], b[i, 3]) - np.maximum(b[rest, 1], b[i, 1])
        intersection = np.clip(width, 0, None) * np.clip(height, 0, None)
        union = area[rest] + area[i] - intersection
        alive[rest] &= ~((intersection > threshold * union) & (k[rest] == k[i]))
    return order[torch.tensor(kept, dtype=torch.int64, device=order.device)]
