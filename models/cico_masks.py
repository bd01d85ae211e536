"""Step 6, masks of tubes: a clip's prototypes, mixed by each tube's parameters, within a window around its boxes.

In:     prototypes (h, w, T, k) of one clip, h x w a quarter of the padded input; of m tubes the parameters (m, k'), the
        box around their T boxes (m, 4), xyxy in 0..1, and the pyramid level (m,)
Out:    masks (m, T, h, w), 0..1
State:  none
Limits: tubes are painted 32 at a time: CondInst's hidden maps of these take 47 MB at 96x160 and T = 3
Source: Li & Zhang, CiCo, 2022, equations 5 and 6; CiCo specification 2.7. Where the release crops CondInst's masks and
        the paper does not, and for the coordinates, both forms are settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.cico_anchors import to_center, to_corners

RelCoord = Literal["offset2", "gauss1"]
HIDDEN = 8
REACH = 16
"""Divisor of P3's relative coordinates, in cells of the masks; doubles with every level."""
SPREAD = 1.5
"""Standard deviation of the Gaussian coordinate, in sides of the box."""
CHUNK = 32


@dataclass(frozen=True, kw_only=True)
class MaskForm:
    """How parameters and prototypes make a mask."""

    kind: Literal["yolact", "condinst"] = "yolact"
    """`yolact`: a weighted sum. `condinst`: three small layers, told where in the tube's box they are."""
    prototypes: int = 32
    rel_coord: RelCoord = "offset2"
    """Of `condinst`: two offsets from the box's centre (paper); or one Gaussian around it (release)."""

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(out, in) of the layers of `condinst`."""
        coordinates = 2 if self.rel_coord == "offset2" else 1
        return (HIDDEN, self.prototypes + coordinates), (HIDDEN, HIDDEN), (1, HIDDEN)

    @property
    def num_parameters(self) -> int:
        """k': 32; 169 with two offsets and 161 with one Gaussian, for 8 prototypes."""
        if self.kind == "yolact":
            return self.prototypes
        return sum(o * i + o for o, i in self.shapes)


@dataclass(frozen=True)
class Window:
    """Where masks are cut: their box, enlarged about its centre."""

    factor: float
    least: float = 0.1
    """Sides of the enlarged box are at least this share of the input's."""


def paint(
    prototypes: Tensor, parameters: Tensor, unions: Tensor, levels: Tensor, form: MaskForm, window: Window | None
) -> Tensor:
    """Masks of m tubes, of all T frames: (m, T, h, w). No tube: (0, T, h, w). Without a window nothing is cut."""
    h, w, frames, _ = prototypes.shape
    if form.kind == "yolact":
        logits = (parameters @ prototypes.flatten(0, 2).T).unflatten(1, (h, w, frames)).permute(0, 3, 1, 2)
    else:
        chunks = zip(parameters.split(CHUNK), unions.split(CHUNK), levels.split(CHUNK), strict=True)
        logits = torch.cat([_dynamic(prototypes, *chunk, form) for chunk in chunks])    # (m, T, h, w)
    masks = logits.sigmoid()
    return masks if window is None else masks * inside(unions, window, h, w)[:, None]


def inside(boxes: Tensor, window: Window, height: int, width: int) -> Tensor:
    """Which cells lie in the windows around boxes: (m, 4) -> (m, height, width) bool.

    From the column before the one that the left edge lies in, to the one that the right edge lies in.
    """
    boxes = to_center(boxes.detach())
    sides = (boxes[:, 2:] * window.factor).clamp(min=window.least)
    x1, y1, x2, y2 = to_corners(torch.cat([boxes[:, :2], sides], dim=1)).clamp(0, 1).unbind(1)
    return _span(y1, y2, height)[:, :, None] & _span(x1, x2, width)[:, None]


def _span(low: Tensor, high: Tensor, cells: int) -> Tensor:
    """(m, cells) bool"""
    place = torch.arange(cells, device=low.device)
    return (place >= (low * cells).floor()[:, None] - 1) & (place < (high * cells).floor()[:, None] + 1)


def coordinates(unions: Tensor, levels: Tensor, height: int, width: int, rel_coord: RelCoord) -> Tensor:
    """What a tube's mask network is told of place: (m, 4), (m,) -> (m, 2, height, width), or of `gauss1` (m, 1, ..).

    Without gradient.
    """
    size = unions.new_tensor([width, height])
    boxes = to_center(unions.detach())
    center, sides = boxes[:, :2] * size, boxes[:, 2:] * size                            # (m, 2) in cells
    x = torch.arange(width, device=unions.device, dtype=unions.dtype)
    y = torch.arange(height, device=unions.device, dtype=unions.dtype)
    if rel_coord == "offset2":
        reach = REACH * 2.0 ** levels.to(unions.dtype)[:, None]
        dx, dy = (center[:, :1] - x - 0.5) / reach, (center[:, 1:] - y - 0.5) / reach   # (m, width), (m, height)
        return torch.stack(torch.broadcast_tensors(dx[:, None], dy[:, :, None]), dim=1)
    center, sigma = center.round(), (SPREAD * sides).clamp(min=1)
    dx, dy = (x - center[:, :1]) / sigma[:, :1], (y - center[:, 1:]) / sigma[:, 1:]
    return (-0.5 * (dx.square()[:, None] + dy.square()[:, :, None])).exp()[:, None]


def _dynamic(prototypes: Tensor, parameters: Tensor, unions: Tensor, levels: Tensor, form: MaskForm) -> Tensor:
    """The three layers of each tube: (m, T, h, w) logits.

    The first is linear, so what place and prototypes contribute is summed apart: places are alike in all frames, and
    the prototypes are mixed in one product for all tubes.
    """
    h, w, frames, k = prototypes.shape
    sizes = [o * i for o, i in form.shapes] + [o for o, _ in form.shapes]
    *weights, first_bias, bias, last_bias = parameters.split(sizes, dim=1)
    first, second, last = (x.reshape(-1, o, i) for x, (o, i) in zip(weights, form.shapes, strict=True))
    place = coordinates(unions, levels, h, w, form.rel_coord).to(parameters.dtype)      # (m, c, h, w)
    given = place.shape[1]
    here = torch.baddbmm(first_bias[:, :, None], first[:, :, :given], place.flatten(2))             # (m, 8, h * w)
    seen = first[:, :, given:] @ prototypes.permute(3, 2, 0, 1).reshape(k, -1)          # (m, 8, T * h * w)
    x = F.relu(seen.unflatten(2, (frames, h * w)) + here[:, :, None]).flatten(2)
    x = F.relu(torch.baddbmm(bias[:, :, None], second, x))
    x = torch.baddbmm(last_bias[:, :, None], last, x)                                   # (m, 1, T * h * w)
    return x.reshape(-1, frames, h, w)
