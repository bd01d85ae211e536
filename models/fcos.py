"""Step 6, detection: FCOS, one class vector, box and centre-ness per location of the pyramid.

In:     P3..P7 (B, C, h_l, w_l), or P3..P5 alone
Out:    per level: class logits (B, K, h, w), distances to the four sides (B, 4, h, w) in units of the stride,
        centre-ness logits (B, 1, h, w), and the box tower's features, on which the mask controller hangs too
State:  none
Source: Tian et al., FCOS, ICCV 2019; CrossVIS specification 2.1, 2.4; 5.3 for three levels. Distances pass a ReLU, not
        an exponential.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.fpn import STRIDES

PRIOR_BIAS = -math.log(99)
"""Start of the class bias: every location begins with probability 0.01, or the focal loss drowns in background."""


@dataclass(frozen=True, kw_only=True)
class FCOSConfig:
    """The defaults are CrossVIS as released."""

    tower_convs: int = 4
    """3x3 convolutions in each tower. More: larger receptive field, and most of the network's cost."""
    groups: int = 32
    """Groups of the GroupNorm in the towers; divides the channels."""
    tower_bias: bool = True
    """Whether the towers' convolutions have a bias before their norm. Only weights care: IAI's have none."""
    size_bounds: tuple[int, ...] = (64, 128, 256, 512)
    """Largest max(l, t, r, b) in input pixels that P3, P4, .. answer for; one level more takes the rest. Four bounds
    make five levels, two make three (CrossVIS-Lite): faster, worse on large objects. Halve for small inputs."""
    center_sampling: Literal["mask", "moments", "box"] = "mask"
    """What positives lie around: the centroid of the `mask`, which is on more of thin and bent objects, with the box's
    centre where a mask is empty; its `moments` as they are, (0, 0) for an empty mask (IAI); or the centre of the `box`,
    as in FCOS. Training alone looks at it."""

    def __post_init__(self) -> None:
        bounds = self.size_bounds
        if self.num_levels not in (3, 5):
            raise ValueError(f"FCOS: size_bounds are {bounds}, expected four (levels P3 to P7) or two (P3 to P5)")
        if list(bounds) != sorted(set(bounds)) or bounds[0] <= 0:
            raise ValueError(f"FCOS: size_bounds are {bounds}, expected positive, rising numbers")
        if self.center_sampling not in ("mask", "moments", "box"):
            raise ValueError(f"FCOS: center_sampling is {self.center_sampling!r}, expected 'mask', 'moments' or 'box'")

    @property
    def num_levels(self) -> int:
        """5, P3 to P7, or 3, P3 to P5."""
        return len(self.size_bounds) + 1

    @property
    def ranges(self) -> tuple[tuple[float, float], ...]:
        """(smallest, largest) max(l, t, r, b) per level, both inclusive."""
        return tuple(zip((-1, *self.size_bounds), (*self.size_bounds, math.inf), strict=True))

    @property
    def divisors(self) -> tuple[int, ...]:
        """What relative coordinates of the mask head are divided by, per level: the bounds, then twice the last."""
        return (*self.size_bounds, 2 * self.size_bounds[-1])


@dataclass(frozen=True)
class Locations:
    """The P cell points of all levels of one input size, level first, row by row."""

    points: Tensor
    """(P, 2) float32, (x, y) in input pixels: stride * index + stride / 2."""
    strides: Tensor
    """(P,) float32."""
    levels: Tensor
    """(P,) int64, 0 for P3."""

    @staticmethod
    def of(sizes: list[tuple[int, int]], device: torch.device) -> Locations:
        """`sizes`: (h, w) of the feature maps from P3 on, finest first. Raises ValueError for none, or more than 5."""
        if not 1 <= len(sizes) <= len(STRIDES):
            raise ValueError(f"FCOS: {len(sizes)} feature maps came, expected 1 to {len(STRIDES)}: P3 to P7")
        points, strides, levels = [], [], []
        for level, ((h, w), stride) in enumerate(zip(sizes, STRIDES, strict=False)):
            y, x = torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")
            points.append(torch.stack([x, y], dim=-1).reshape(-1, 2) * stride + stride // 2)      # (h*w, 2)
            strides.append(torch.full((h * w,), float(stride), device=device))
            levels.append(torch.full((h * w,), level, device=device))
        return Locations(torch.cat(points).float(), torch.cat(strides), torch.cat(levels))


def init_head_conv(conv: nn.Conv2d, bias: float = 0.0) -> nn.Conv2d:
    """N(0, 0.01^2) weights, constant bias: how every convolution of the heads starts (specification 2.10)."""
    nn.init.normal_(conv.weight, std=0.01)
    if conv.bias is not None:
        nn.init.constant_(conv.bias, bias)
    return conv


def make_tower(channels: int, convs: int, config: FCOSConfig) -> nn.Sequential:
    """`convs` x [3x3 convolution, GroupNorm, ReLU], width kept."""
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers.append(init_head_conv(nn.Conv2d(channels, channels, 3, padding=1, bias=config.tower_bias)))
        layers += [nn.GroupNorm(config.groups, channels), nn.ReLU()]
    return nn.Sequential(*layers)


class FCOSHead(nn.Module):
    """Class tower and box tower, shared by all levels; centre-ness hangs on the box tower."""

    def __init__(self, channels: int, num_classes: int, config: FCOSConfig) -> None:
        super().__init__()
        self.class_tower = make_tower(channels, config.tower_convs, config)
        self.box_tower = make_tower(channels, config.tower_convs, config)
        self.class_logits = init_head_conv(nn.Conv2d(channels, num_classes, 3, padding=1), PRIOR_BIAS)
        self.distances = init_head_conv(nn.Conv2d(channels, 4, 3, padding=1))
        self.centerness = init_head_conv(nn.Conv2d(channels, 1, 3, padding=1))
        self.scales = nn.Parameter(torch.ones(config.num_levels))

    def forward(self, levels: tuple[Tensor, ...]) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """Per level: class logits, distances, centre-ness, box tower features.

        Raises ValueError for another number of levels than built for.
        """
        if len(levels) != len(self.scales):
            raise ValueError(f"FCOS: {len(levels)} levels came, built for {len(self.scales)}; see size_bounds")
        outputs = []
        for level, scale in zip(levels, self.scales, strict=True):
            box = self.box_tower(level)
            distances = F.relu(self.distances(box) * scale)
            outputs.append((self.class_logits(self.class_tower(level)), distances, self.centerness(box), box))
        return outputs
