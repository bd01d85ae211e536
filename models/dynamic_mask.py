"""Step 6, masks: a small convolution network per instance, its weights predicted by the heads.

In:     P3, P4, P5, and for each of N instances its 169 weights, its location and its level
Out:    mask logits (N, H/4, W/4)
State:  none, but for the running statistics of the mask branch's norms
Source: Tian et al., CondInst, ECCV 2020; CrossVIS specification 2.5 to 2.8. Inputs of the first layer are ordered
        (dx, dy, f1..f8): the release's order, not that of the paper's equation 1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fpn import STRIDES

MASK_CHANNELS = 8
HIDDEN = 8
LAYER_SHAPES = ((HIDDEN, MASK_CHANNELS + 2), (HIDDEN, HIDDEN), (1, HIDDEN))
"""(out, in) of the three 1x1 convolutions of the dynamic head."""
NUM_FILTER_VALUES = sum(o * i for o, i in LAYER_SHAPES) + sum(o for o, _ in LAYER_SHAPES)
"""152 weights and 17 biases: 169."""


def aligned_upsample(x: Tensor, factor: int) -> Tensor:
    """Enlarge by an integer: out[j] = in at clamp((j - factor // 2) / factor), linear.  (..., H, W) -> (..., fH, fW)

    Not the usual half-pixel bilinear: with factor 2, [0, 1, 2] becomes [0, 0, .5, 1, 1.5, 2]. Released weights have
    learnt the half-cell shift it leaves (specification 2.7). Done as align_corners bilinear of the map extended by one
    replicated row and column, whose samples lie exactly factor apart, then shifted.
    """
    *lead, h, w = x.shape
    x = x if x.dim() == 4 else x.reshape(-1, 1, h, w)                                  # channels-last maps stay so
    x = F.pad(x, (0, 1, 0, 1), mode="replicate")                                       # (.., H + 1, W + 1)
    x = F.interpolate(x, size=(factor * h + 1, factor * w + 1), mode="bilinear", align_corners=True)
    shift = factor // 2
    x = F.pad(x, (shift, 0, shift, 0), mode="replicate")[..., : factor * h, : factor * w]
    return x.reshape(*lead, factor * h, factor * w)


def _conv_block(inputs: int, outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


class MaskBranch(nn.Module):
    """P3, P4, P5 brought to stride 8, summed, refined.  (B, C, H/8, W/8), (B, C, H/16, W/16), .. -> (B, 8, H/8, W/8)"""

    def __init__(self, in_channels: int, channels: int, convs: int = 4) -> None:
        super().__init__()
        self.refine = nn.ModuleList(_conv_block(in_channels, channels) for _ in range(3))
        self.tower = nn.Sequential(*(_conv_block(channels, channels) for _ in range(convs)))
        self.output = nn.Conv2d(channels, MASK_CHANNELS, 1)

    def forward(self, p3: Tensor, p4: Tensor, p5: Tensor) -> Tensor:
        x = self.refine[0](p3)                                                         # (B, M, H/8, W/8)
        x = x + aligned_upsample(self.refine[1](p4), 2)
        x = x + aligned_upsample(self.refine[2](p5), 4)
        return self.output(self.tower(x))                                              # (B, 8, H/8, W/8)


def split_filters(filters: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """(N, 169) -> weights [(N, 8, 10), (N, 8, 8), (N, 1, 8)] and biases [(N, 8), (N, 8), (N, 1)]; weights are first."""
    sizes = [o * i for o, i in LAYER_SHAPES] + [o for o, _ in LAYER_SHAPES]
    parts = filters.split(sizes, dim=1)
    weights = [part.reshape(-1, o, i) for part, (o, i) in zip(parts, LAYER_SHAPES, strict=False)]
    return weights, list(parts[3:])


def relative_coordinates(points: Tensor, divisors: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
    """Instance minus pixel, over the divisor of its level: one number per column, and one per row.

    points (N, 2), divisors (N,) -> dx (N, W/8), dy (N, H/8)
    """
    stride = STRIDES[0]
    u = torch.arange(width, device=points.device, dtype=points.dtype) * stride + stride // 2
    v = torch.arange(height, device=points.device, dtype=points.dtype) * stride + stride // 2
    return (points[:, 0, None] - u) / divisors[:, None], (points[:, 1, None] - v) / divisors[:, None]


def dynamic_mask_logits(features: Tensor, filters: Tensor, points: Tensor, divisors: Tensor) -> Tensor:
    """Paint N instances.  features, filters (N, 169), points (N, 2), divisors (N,) -> (N, H/4, W/4)

    `features` are the mask features of the image they are painted in, (8, H/8, W/8), or in training, where there are
    several, (N, 8, H/8, W/8), of each its own. No instance: (0, H/4, W/4).

    The first layer is linear, so what its ten inputs contribute is summed apart: the features in one product for all
    instances, and the coordinates, which vary along one axis each, as a row and a column.
    """
    *_, h, w = features.shape
    (first, *weights), (bias, *biases) = split_filters(filters)
    dx, dy = relative_coordinates(points, divisors, h, w)
    row = first[:, :, 0, None] * dx[:, None]                                           # (N, 8, W/8)
    column = first[:, :, 1, None] * dy[:, None] + bias[:, :, None]                     # (N, 8, H/8)
    x = (first[:, :, 2:] @ features.flatten(-2)).unflatten(2, (h, w))                  # (N, 8, H/8, W/8)
    x = F.relu(x + row[:, :, None] + column[..., None]).flatten(2)                     # (N, 8, H/8 * W/8)
    x = F.relu(torch.baddbmm(biases[0][:, :, None], weights[0], x))
    x = torch.baddbmm(biases[1][:, :, None], weights[1], x)                            # (N, 1, H/8 * W/8)
    return aligned_upsample(x.reshape(-1, h, w), 2)
