"""Step 6, regions: each box read from the level that its share of the image asks for, and true masks inside boxes.

In:     P3..P5, R boxes in input pixels, in which image each lies, and how large that image is; masks in full resolution
Out:    features of each region (R, C, 14, 14); what each region's mask is to be (R, side, side)
State:  none
Limits: models/roi_align.py says how memory is bounded for boxes of any size; masks are read some regions at a time
Source: Lee and Park, CenterMask, CVPR 2020, equation 2; TLTM specification 2.6, 3.4. Half-pixel aligned, as many
        samples in a bin as it spans cells. Boxes are not clipped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from models.region_losses import Regions
from models.regions import features_of_levels
from models.roi_align import axis_taps

STRIDES = (8, 16, 32)
"""Of P3..P5."""
SIZE = 14
"""Side of a region's features."""
MOST_CELLS = 1 << 24
"""Pixels of masks that are read at once: 64 MB."""


def area_levels(boxes: Tensor, areas: Tensor) -> Tensor:
    """Which level each box is read from: 0 (P3) to 2 (P5).  (R, 4), (R,) of the boxes' images -> (R,) int64

    ceil(5 - log2(image / box)): P5 above half of the image, P4 above a quarter of it, else P3. No area: P3.
    """
    ratio = areas / (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return (5 - ratio.log2()).ceil().clamp(3, 5).long() - 3


def area_features(levels: tuple[Tensor, ...], boxes: Tensor, image: Tensor, areas: Tensor, size: int = SIZE) -> Tensor:
    """Each box from its own level.  -> (R, C, size, size); no boxes: (0, C, size, size)

    `levels` P3..P5 (B, C, h_l, w_l); boxes (R, 4), finite, image (R,); areas (B,): h x w of each image before padding.
    """
    level = area_levels(boxes, areas[image])
    return features_of_levels(levels, STRIDES, level, boxes, image, size, samples=0, half_pixel=True)


def aligned_masks(masks: list[Tensor], regions: Regions, side: int) -> Tensor:
    """What each positive region's mask is to be: (n, side, side) float32 of 0 and 1, from (G_b, Hp, Wp) of each image.

    The mean of bilinear samples in each cell of the box, from one half up.
    """
    begin = torch.tensor([0, *(len(m) for m in masks)], device=regions.boxes.device).cumsum(0)
    whose, table = begin[regions.image] + regions.instance, torch.cat(masks)
    if not len(whose):
        return torch.zeros(0, side, side, device=whose.device)
    height, width = table.shape[1:]
    across, wide = _axis(regions.boxes[:, 0::2], side, width)
    down, high = _axis(regions.boxes[:, 1::2], side, height)
    some = max(1, MOST_CELLS // (height * width))
    sums = [
        y @ table[rows].float() @ x.transpose(1, 2)                                               # (some, side, side)
        for rows, y, x in zip(whose.split(some), down.split(some), across.split(some), strict=True)
    ]
    return (torch.cat(sums) >= 0.5 * (wide * high)[:, None, None]).float()


def _axis(edges: Tensor, side: int, length: int) -> tuple[Tensor, Tensor]:
    """How much each of `length` pixels counts in each cell: (n, 2) -> (n, side, length), and what to divide by (n,)."""
    at = edges.float() - 0.5
    cells, weights, divisor = axis_taps(at[:, 0], at[:, 1] - at[:, 0], side, 0, length)
    return weights.new_zeros(len(edges), side, length).scatter_add_(2, cells, weights), divisor
