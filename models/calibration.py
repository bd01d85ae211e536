"""Between neck and heads: what a neighbouring frame still shows is warped onto the current frame and added.

In:     a pyramid (B, C, h_l, w_l) of current frames, and one of reference frames of the same video and size
Out:    the calibrated pyramid, same shapes: where the current frame lost cues to occlusion, the reference lends its own
State:  none; which frames are references is decided in operators/neighbours.py
Limits: the samples of the deformable convolution are nine times the map: 35 MB a frame on P3 of 384x640 in float32
Source: the OVIS paper's temporal feature calibration (CrossVIS specification 5.4, 8.2 item 11). One weight set serves
        all levels. Sub-module names are those of released files (specification 6.4), so that they map one to one. All
        convolutions start by torch's default, the offsets too: they are not zero at first.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.1
"""Slope of the activation after the correlation, below zero."""
KERNEL = 3
NUM_CONVS = 3
MAX_DISPLACEMENTS = 1024


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The defaults are the OVIS paper's: displacements -15, -13, .., 15 cells in both directions, 256 in all."""

    reach: int = 15
    """Largest displacement looked at, in cells of each level. Larger: faster motion is found, more to compute."""
    step: int = 2
    """Cells between two displacements. Larger: cheaper and coarser. With an odd reach and step 2, standing still is not
    among the displacements: that is the release's grid."""

    def __post_init__(self) -> None:
        if self.reach < 1 or self.step < 1 or 2 * self.reach % self.step:
            raise ValueError(
                f"calibration: reach {self.reach} and step {self.step}: expected at least 1, and a step that divides "
                f"twice the reach, so that the displacements run from -reach to reach"
            )
        if self.displacements > MAX_DISPLACEMENTS:
            raise ValueError(f"calibration: {self.displacements} displacements, expected at most {MAX_DISPLACEMENTS}")

    @property
    def displacements(self) -> int:
        """How many there are, rows times columns: the channels of the correlation."""
        return (2 * self.reach // self.step + 1) ** 2


def correlation(current: Tensor, reference: Tensor, reach: int = 15, step: int = 2) -> Tensor:
    """<X(p), R(p + d)> / C for every displacement d = (dy, dx) of the grid.  (B, C, H, W) x2 -> (B, n * n, H, W)

    dy and dx run over -reach, -reach + step, .., reach: n values each; channel n * row + column holds the row-th dy and
    the column-th dx. The reference is 0 outside of its map. C is 256 in the specification; at other widths the sum is
    divided by the width too, so that its size stays. Raises ValueError for maps of two shapes.

    Displacements of equal remainder meet cells of equal remainder, so the map falls into step x step sub-maps, in which
    the grid is dense. There, row k of the grid is one batch of matrix products, every cell of a row with every cell of
    the reference's row k further down, and the wanted cells are a band of each product. It computes 3.4 times what is
    needed at 48x80, in 16 calls instead of 256, and keeps no product of whole maps for the gradient.
    """
    if current.shape != reference.shape:
        raise ValueError(f"correlation: maps of {tuple(current.shape)} and {tuple(reference.shape)}, expected equal")
    b, c, height, width = current.shape
    n, h, w = 2 * reach // step + 1, -(-height // step), -(-width // step)
    x = F.pad(current, (0, w * step - width, 0, h * step - height))
    x = x.view(b, c, h, step, w, step).permute(2, 0, 3, 5, 4, 1).flatten(1, 3)               # (h, N, w, C)
    below, right = (h + n - 1) * step - reach - height, (w + n - 1) * step - reach - width       # >= reach
    r = F.pad(reference, (reach, right, reach, below))
    r = r.view(b, c, h + n - 1, step, w + n - 1, step).permute(2, 0, 3, 5, 1, 4).flatten(1, 3)   # (h + n - 1, N, C, ..)
    bands = [_band(torch.bmm(x.flatten(0, 1), r[k : k + h].flatten(0, 1))) for k in range(n)]    # n x (h * N, w, n)
    out = torch.stack(bands).view(n, h, b, step, step, w, n).permute(2, 0, 6, 1, 3, 5, 4)
    return out.reshape(b, n * n, h * step, w * step)[..., :height, :width] / c


def _band(product: Tensor) -> Tensor:
    """out[:, i, j] = product[:, i, i + j]: the diagonals, set upright.  (N, w, w + n - 1) -> (N, w, n)"""
    count, w, wide = product.shape
    return F.pad(product.flatten(1), (0, w)).view(count, w, wide + 1)[..., : wide + 1 - w]


def deformable_conv(x: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """A k x k convolution, stride 1, whose taps look where they are sent (Dai et al., ICCV 2017; no modulation).

    x (B, C, H, W), offsets (B, 2 * k * k, H, W) in cells, weight (O, C, k, k) with odd k -> (B, O, H, W). Offsets come
    as (dy, dx) of each tap, taps row by row, and are added to the tap's usual place; one group, shared by all channels.
    Samples are bilinear; a cell outside of the map counts 0, and so does a sample beyond (-1, H) or (-1, W). Positions
    are computed in float32 at least. Raises ValueError if offsets and kernel do not fit.
    """
    k, (b, _, h, w) = weight.shape[-1], x.shape
    if offsets.shape != (b, 2 * k * k, h, w):
        raise ValueError(f"deformable_conv: offsets are {tuple(offsets.shape)}, expected {(b, 2 * k * k, h, w)}")
    sampled = _sample(x, offsets.view(b, k * k, 2, h, w), k)                                     # (B, C, k * k, H * W)
    out = weight.reshape(len(weight), -1) @ sampled.to(weight.dtype).flatten(1, 2)                # (B, O, H * W)
    return out.view(b, -1, h, w)


def _sample(x: Tensor, offsets: Tensor, k: int) -> Tensor:
    """Each tap's sample, all taps in one call.  (B, C, H, W), (B, k * k, 2, H, W) -> (B, C, k * k, H * W)"""
    (b, c, h, w), dtype = x.shape, torch.promote_types(x.dtype, torch.float32)
    taps = torch.arange(k * k, device=x.device)
    rows = (taps // k - k // 2)[:, None, None] + torch.arange(h, device=x.device)[:, None]       # (k * k, H, 1)
    columns = (taps % k - k // 2)[:, None, None] + torch.arange(w, device=x.device)              # (k * k, 1, W)
    # beyond -2 and H + 1 all is 0 alike; further out the sampler's whole numbers overflow
    y = (rows + offsets[:, :, 0].to(dtype)).clamp(-2, h + 1)                                     # (B, k * k, H, W)
    x_ = (columns + offsets[:, :, 1].to(dtype)).clamp(-2, w + 1)
    grid = torch.stack([(2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1], dim=-1).flatten(1, 2)        # (B, k * k * H, W, 2)
    sampled = F.grid_sample(x.to(dtype), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return sampled.view(b, c, k * k, h * w)


class _ConvReLU(nn.Module):
    """3x3 convolution with bias, ReLU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, KERNEL, padding=KERNEL // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(x))


class _DeformableConv(nn.Module):
    """`deformable_conv` with weights of its own, no bias."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.Conv2d(channels, channels, KERNEL, bias=False).weight.detach())

    def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
        return deformable_conv(x, offsets, self.weight)


class FeatureCalibration(nn.Module):
    """Correlation -> offsets -> deformable convolution of the reference, added to the current map; level by level."""

    def __init__(self, channels: int, config: CalibrationConfig) -> None:
        super().__init__()
        self.config = config
        widths = (config.displacements, *[channels] * NUM_CONVS)
        self.offset_convs = nn.Sequential(*(_ConvReLU(i, o) for i, o in zip(widths, widths[1:], strict=False)))
        self.conv_offset = nn.Conv2d(channels, 2 * KERNEL * KERNEL, KERNEL, padding=KERNEL // 2)
        self.dconv_featureflow = _DeformableConv(channels)

    def forward(self, levels: tuple[Tensor, ...], reference: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """(B, C, h_l, w_l) of the current frames and of one reference each -> the calibrated maps.

        Raises ValueError if the two differ in a shape.
        """
        return tuple(self._level(x, r) for x, r in zip(levels, reference, strict=True))

    def _level(self, x: Tensor, reference: Tensor) -> Tensor:
        similar = F.leaky_relu(correlation(x, reference, self.config.reach, self.config.step), LEAK)
        offsets = self.conv_offset(self.offset_convs(similar))                                   # (B, 18, h, w)
        return x + self.dconv_featureflow(reference, offsets)
