"""Step 6, masks: the head that looks where the region's own features say it should (SAG-mask).

In:     features of R regions (R, C, 14, 14)
Out:    mask logits (R, K, 28, 28), one mask for each class, or of each region's own class (R, 28, 28)
State:  none
Source: Lee and Park, CenterMask, CVPR 2020, 3.2; TLTM specification 2.7. Mean before maximum.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _msra(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


class SpatialAttention(nn.Module):
    """Every cell weighed by a number in 0..1, which mean and maximum over the channels around it give.
    (R, C, h, w) -> (R, C, h, w)"""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)
        _msra(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.stack([x.mean(1), x.amax(1)], dim=1)                                         # (R, 2, h, w)
        return x * self.conv(seen).sigmoid()


class SpatialMaskHead(nn.Module):
    """3x3 convolutions with ReLU, spatial attention, enlarged by two, and a mask for each class."""

    def __init__(self, channels: int, convs: int, num_classes: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.attention = SpatialAttention()
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes, 1)
        for layer in (*self.convs, self.upsample):
            _msra(layer)
        nn.init.normal_(self.logits.weight, std=0.001)
        nn.init.zeros_(self.logits.bias)

    def forward(self, regions: Tensor) -> Tensor:
        """(R, C, 14, 14) -> (R, K, 28, 28)."""
        x = regions
        for conv in self.convs:
            x = F.relu(conv(x))
        return self.logits(F.relu(self.upsample(self.attention(x))))

    def of_classes(self, regions: Tensor, labels: Tensor) -> Tensor:
        """(R, C, 14, 14), 0-based classes (R,) -> logits of each region's own class (R, 28, 28)."""
        return self(regions)[torch.arange(len(labels), device=labels.device), labels]
