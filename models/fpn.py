"""Step 5, neck: feature pyramid.

In:     maps of the backbone, finest first, each half the size of the one before: C3, C4, C5, or C2, .., C5
Out:    as many maps of C channels and the same sizes; behind them, as `extra` asks,
            p6p7        P6, P7 at strides 64, 128, by convolutions; odd sizes round up
            none        nothing: P3, P4, P5 (CrossVIS-Lite)
            subsample   P6, every second cell of P5 (Mask R-CNN); odd sizes round up
State:  none
Source: Lin et al., Feature Pyramid Networks, CVPR 2017; P6 and P7 as in RetinaNet, from P5 (CrossVIS specification
        2.3); the other two: 5.3, 5.2.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32, 64, 128)
"""Of P3..P7."""

Extra = Literal["p6p7", "none", "subsample"]


def channels_last(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """The same maps, the C numbers of a cell side by side in memory: for reading cell by cell, and for oneDNN."""
    return tuple(level.contiguous(memory_format=torch.channels_last) for level in levels)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2)
    nn.init.kaiming_uniform_(conv.weight, a=1)
    nn.init.zeros_(conv.bias)
    return conv


class FPN(nn.Module):
    """Lateral 1x1, top-down nearest x2 and sum, 3x3 output; P6 = conv/2(P5), P7 = conv/2(ReLU(P6)). No norm.

    Raises ValueError for no input, an unknown `extra`, and in `forward` for another number of maps than built for.
    """

    def __init__(self, in_channels: tuple[int, ...], channels: int, extra: Extra = "p6p7") -> None:
        super().__init__()
        if not in_channels:
            raise ValueError("FPN: in_channels is empty, expected the channels of at least one map")
        if extra not in get_args(Extra):
            raise ValueError(f"FPN: extra is {extra!r}, expected one of {', '.join(get_args(Extra))}")
        self.extra = extra
        self.lateral = nn.ModuleList(_conv(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, 3) for _ in in_channels)
        if extra == "p6p7":
            self.p6 = _conv(channels, channels, 3, stride=2)
            self.p7 = _conv(channels, channels, 3, stride=2)

    def forward(self, *maps: Tensor) -> tuple[Tensor, ...]:
        if len(maps) != len(self.lateral):
            raise ValueError(f"FPN: {len(maps)} maps came, built for {len(self.lateral)}")
        merged = [self.lateral[-1](maps[-1])]                                          # coarsest first
        for lateral, x in zip(reversed(self.lateral[:-1]), reversed(maps[:-1]), strict=True):
            merged.append(lateral(x) + F.interpolate(merged[-1], scale_factor=2, mode="nearest"))
        levels = [conv(x) for conv, x in zip(self.output, reversed(merged), strict=True)]
        return tuple(levels + self._coarser(levels[-1]))

    def _coarser(self, p5: Tensor) -> list[Tensor]:
        if self.extra == "none":
            return []
        if self.extra == "subsample":
            return [F.max_pool2d(p5, kernel_size=1, stride=2)]
        p6 = self.p6(p5)
        return [p6, self.p7(F.relu(p6))]
