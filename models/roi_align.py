"""Step 6, regions: what the pyramid says inside a box, brought to a square of fixed size.

In:     features (B, C, H, W), R boxes in input pixels, and in which image of the batch each lies
Out:    (R, C, size, size), differentiable to the features; boxes get no gradient
State:  none
Limits: indices and weights take 24 bytes for each bin and cell that it looks at: 8 MB for 100 regions of 14 x 14 at 2 x
        2 samples. `samples=0` needs more the larger the largest region is; then regions are taken some at a time, and
        samples that lie off the map are left out, so that boxes of any size need at most some 100 MB
Source: He et al., Mask R-CNN, ICCV 2017, section 3; CrossVIS specification 5.2 for the legacy form without a half-pixel
        shift, which is the default.

Bilinear interpolation is separable: a bin is a product of few rows with few columns, 4 x 4 cells for 2 x 2 samples. So
each bin is one weighted sum of 16 rows of the map seen as a table (cells, channels), which is what `embedding_bag`
does, forward and backward. 100 regions of 14 x 14 with 256 channels on a 48 x 80 map in channels-last order take 5 ms
on a core, 27 ms backward; with dense interpolation matrices 111 ms, by `grid_sample` 138 ms. A map in another order is
copied first, which adds 1 ms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor


def roi_align(
    features: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float, samples: int = 2, half_pixel: bool = False
) -> Tensor:
    """Mean of bilinear samples in each of size x size bins of a box.  (B, C, H, W), (R, 4), (R,) -> (R, C, size, size)

    `boxes` xyxy in pixels of the input, of which a cell of `features` covers 1 / scale. `samples` a bin and axis; 0
    takes one for each cell that a bin spans, rounded up. A sample more than a cell outside of the map is 0, one nearer
    is that of the rim. `half_pixel=False` puts cell (0, 0) at point (0, 0) and makes no region smaller than a cell;
    True puts it at (0.5, 0.5). Computed in float32 at least, given in the features' type. No boxes: (0, C, size, size).
    Raises ValueError for a size below 1 or samples below 0.
    """
    if size < 1 or samples < 0:
        raise ValueError(f"roi_align: size is {size}, samples are {samples}; expected at least 1 and at least 0")
    kernel = _torchvision() if features.is_cuda else None
    if kernel is None or (samples == 0 and _beyond(boxes, features, scale)):
        return plain_roi_align(features, boxes, image, size, scale, samples, half_pixel)
    regions = torch.cat([image[:, None].to(boxes), boxes], dim=1).to(features.dtype)               # (R, 5)
    return kernel(features, regions, size, scale, samples, half_pixel)


def _beyond(boxes: Tensor, features: Tensor, scale: float) -> bool:
    """Whether a box is so much larger than the map that one sample a cell would keep a GPU busy for minutes."""
    return bool(((boxes[:, 2:] - boxes[:, :2]) * scale > 8 * max(features.shape[-2:])).any())


MOST_TAPS = 1 << 22
"""Cells, over all bins, that are looked up at once: 100 MB."""


@functools.cache
def _torchvision() -> Callable[..., Tensor] | None:
    """torchvision's kernel, where there is one that fits the installed torch: the faster on a GPU alone."""
    try:
        from torchvision.ops import roi_align as kernel
    except (ImportError, RuntimeError):         # absent, or built for another torch
        return None
    return kernel


def plain_roi_align(
    features: Tensor, boxes: Tensor, image: Tensor, size: int, scale: float, samples: int = 2, half_pixel: bool = False
) -> Tensor:
    """`roi_align` in plain torch, on any device."""
    batch, channels, height, width = features.shape
    if not len(boxes):
        return features.new_zeros(0, channels, size, size)
    dtype = torch.promote_types(features.dtype, torch.float32)
    corners = boxes.detach().to(dtype) * scale - (0.5 if half_pixel else 0.0)
    begin, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not half_pixel:
        extent = extent.clamp(min=1)
    columns, across, wide = axis_taps(begin[:, 0], extent[:, 0], size, samples, width)             # (R, size, X) x2
    rows, down, high = axis_taps(begin[:, 1], extent[:, 1], size, samples, height)                 # (R, size, Y) x2
    rows = image[:, None, None] * height + rows
    down = down / (wide * high)[:, None, None]
    table = features.to(dtype).permute(0, 2, 3, 1).contiguous().view(-1, channels)                 # (B * H * W, C)
    some = max(1, MOST_TAPS // (size * size * rows.shape[2] * columns.shape[2]))
    parts = zip(*(x.split(some) for x in (rows, down, columns, across)), strict=True)
    bins = torch.cat([_bins(table, width, *part) for part in parts])                               # (R * y * x, C)
    return bins.view(-1, size, size, channels).permute(0, 3, 1, 2).to(features.dtype)


def _bins(table: Tensor, width: int, rows: Tensor, down: Tensor, columns: Tensor, across: Tensor) -> Tensor:
    """Weighted sums of the cells (R, y, Y) x (R, x, X).  -> (R * y * x, C)"""
    cells = rows[:, :, None, :, None] * width + columns[:, None, :, None, :]                       # (R, y, x, Y, X)
    weights = down[:, :, None, :, None] * across[:, None, :, None, :]
    taps = cells.shape[3] * cells.shape[4]
    return F.embedding_bag(cells.reshape(-1, taps), table, per_sample_weights=weights.reshape(-1, taps), mode="sum")


def axis_taps(begin: Tensor, extent: Tensor, size: int, samples: int, length: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which of `length` cells the bins of an axis look at, with which weights, and the number of samples to divide by.

    begin, extent (R,) in cells, finite -> int64 and weights (R, size, T), (R,) of at least 1. T = 2 x samples; with
    samples = 0 of the region that needs most, the others' surplus having weight 0. Samples of a bin lie half a cell or
    more apart where there are several, so 2 x length + 6 of them are all that can lie on the map.
    """
    span = extent / size                                                                           # (R,)
    count = torch.full_like(span, samples) if samples else span.ceil().clamp(min=0)
    divisor = count.clamp(min=1)
    most = samples or int(count.max().clamp(min=1, max=2 * length + 6))
    bins = torch.arange(size, device=begin.device, dtype=begin.dtype)
    k = torch.arange(most, device=begin.device, dtype=begin.dtype).expand(len(span), size, most)
    if count.max() > most:                                          # begin with the last sample before the map
        before = (-1 - begin[:, None] - bins * span[:, None]) * (divisor / span)[:, None] - 0.5    # (R, size)
        k = k + torch.where(count[:, None] > most, before.floor() - 1, 0.0).clamp(min=0)[:, :, None]
    at = (begin[:, None] + bins * span[:, None])[:, :, None]        # summed as torchvision does, to the same bits
    at = at + (k + 0.5) * span[:, None, None] / divisor[:, None, None]                             # (R, size, most)
    used = (k < count[:, None, None]) & (at >= -1) & (at <= length)
    at = at.clamp(0, length - 1)
    low = at.floor()
    share = at - low
    cells = torch.stack([low, (low + 1).clamp(max=length - 1)], dim=-1).long()                     # (R, size, most, 2)
    weights = torch.stack([1 - share, share], dim=-1) * used[..., None]
    return cells.flatten(2), weights.flatten(2), divisor
