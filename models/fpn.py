"""Step 5, neck: feature pyramid.

In:     C3, C4, C5 at strides 8, 16, 32
Out:    P3..P7: (B, C, H/8, W/8) .. (B, C, H/128, W/128); odd sizes round up at strides 64 and 128
Source: Lin et al., Feature Pyramid Networks, CVPR 2017; P6 and P7 as in RetinaNet, from P5 (specification 2.3).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32, 64, 128)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)
    return conv


class FPN(nn.Module):
    """Lateral 1x1, top-down nearest x2 and sum, 3x3 output; P6 = conv/2(P5), P7 = conv/2(ReLU(P6)). No norm."""

    def __init__(self, in_channels: tuple[int, int, int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(_conv(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, 3) for _ in in_channels)
        self.p6 = _conv(channels, channels, 3, stride=2)
        self.p7 = _conv(channels, channels, 3, stride=2)

    def forward(self, c3: Tensor, c4: Tensor, c5: Tensor) -> tuple[Tensor, ...]:
        x5 = self.lateral[2](c5)
        x4 = self.lateral[1](c4) + F.interpolate(x5, scale_factor=2, mode="nearest")
        x3 = self.lateral[0](c3) + F.interpolate(x4, scale_factor=2, mode="nearest")
        p3, p4, p5 = (conv(x) for conv, x in zip(self.output, (x3, x4, x5), strict=True))
        p6 = self.p6(p5)
        return p3, p4, p5, p6, self.p7(F.relu(p6))
