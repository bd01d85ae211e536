"""Non-maximum suppression: of boxes that overlap too much, the best-scored stays.

One function, so that a faster kernel can take its place; its core is shared with networks that propose regions.
Source: CrossVIS specification 4.1 step 3.
"""

from __future__ import annotations

from torch import Tensor

from models.nms import greedy_nms


def class_aware_nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, most: int) -> Tensor:
    """Indices of the survivors, best score first.  (N, 4), (N,), (N,) -> (n,) int64

    A box goes when its IoU with a kept, better one of its class is above `threshold`. Of equal scores the earlier wins.
    Keeps the best `most`, and those tied with the last of them. A box without area has IoU 0 with all: it removes
    nothing and stays. No boxes: (0,).
    """
    return greedy_nms(boxes, scores, labels, threshold, most)
