"""Step 5, neck: Yolact's feature pyramid.

In:     C3, C4, C5 of the backbone
Out:    P3..P7, (B, C, H/8, W/8) and on; odd sizes round up
State:  none
Source: Bolya et al., YOLACT, ICCV 2019; CiCo specification 2.3. It differs from models/fpn.py: sums are brought to the
        finer map's exact size bilinearly, P3, P4 and P5 pass a ReLU, and P6 and P7 are made of P5 without one.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def xavier(conv: nn.Module) -> nn.Module:
    """Xavier-uniform weights, zero bias: how all convolutions behind the backbone start (specification 2.9)."""
    nn.init.xavier_uniform_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class YolactFPN(nn.Module):
    """Lateral 1x1, top-down bilinear sum, 3x3 and ReLU; P6 and P7 by 3x3 of stride 2. Lists begin at the finest."""

    def __init__(self, in_channels: tuple[int, ...], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(xavier(nn.Conv2d(c, channels, 1)) for c in in_channels)
        self.output = nn.ModuleList(xavier(nn.Conv2d(channels, channels, 3, padding=1)) for _ in in_channels)
        self.p6 = xavier(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
        self.p7 = xavier(nn.Conv2d(channels, channels, 3, stride=2, padding=1))

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        """Raises ValueError for another number of maps than built for."""
        if len(maps) != len(self.lateral):
            raise ValueError(f"YolactFPN: {len(maps)} maps came, built for {len(self.lateral)}")
        sums = [self.lateral[-1](maps[-1])]                                             # coarsest first
        for lateral, x in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            above = F.interpolate(sums[-1], size=x.shape[-2:], mode="bilinear", align_corners=False)
            sums.append(lateral(x) + above)
        levels = [F.relu(conv(x)) for conv, x in zip(self.output, reversed(sums), strict=True)]
        p6 = self.p6(levels[-1])
        return (*levels, p6, self.p7(p6))
