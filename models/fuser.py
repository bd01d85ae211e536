"""Step 6, before the heads: each level of the pyramid corrected by the same level of the frame before (ResFuser).

In:     P3..P7 of a frame and of its reference, raw: (B, C, h_l, w_l) each
Out:    as many maps of the same sizes
State:  none; whoever calls keeps the reference, raw, or the network would become one that it was not trained to be
Source: TLTM specification 2.3. The release knows two more forms that none of its settings select; they are not here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ResFuser(nn.Module):
    """The frame's map and what two convolutions make of [reference, frame].  (B, C, h, w) x2 -> (B, C, h, w)"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, reference: Tensor, current: Tensor) -> Tensor:
        joined = torch.cat([reference, current], dim=1)                                           # (B, 2C, h, w)
        return current + self.conv2(F.relu(self.conv1(joined)))


class PyramidFuser(nn.Module):
    """A ResFuser of its own for every level."""

    def __init__(self, channels: int, levels: int = 5) -> None:
        super().__init__()
        self.levels = nn.ModuleList(ResFuser(channels) for _ in range(levels))

    def forward(self, reference: tuple[Tensor, ...], current: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Raises ValueError for another number of levels than built for, or where the two differ in size."""
        if not len(reference) == len(current) == len(self.levels):
            raise ValueError(
                f"PyramidFuser: {len(reference)} levels of the reference and {len(current)} of the frame came, built "
                f"for {len(self.levels)}"
            )
        for before, now in zip(reference, current, strict=True):
            if before.shape != now.shape:
                raise ValueError(
                    f"PyramidFuser: a level of the reference is {tuple(before.shape)}, of the frame "
                    f"{tuple(now.shape)}; a stream's frames must be of one size"
                )
        return tuple(fuse(*pair) for fuse, *pair in zip(self.levels, reference, current, strict=True))
