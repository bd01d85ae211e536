"""Step 6, before the heads: each level of the pyramid corrected by the same level of the frame before (ResFuser).

In:     P3..P7 of a frame and of its reference, raw: (B, C, h_l, w_l) each
Out:    as many maps of the same sizes
State:  none; whoever calls keeps the reference, raw, or the network would become one that it was not trained to be
Limits: the form `correlated` holds PATCH x PATCH numbers a cell at once: 16.5 MB for P3 of a 750x1333 frame, as much as
        the map itself
Source: TLTM specification 2.3. The release knows the forms `twice` (V2) and `correlated` (V3) too, and none of its
        settings selects them: where a ReLU stands in them, the scale of the correlation and the order of its channels
        are our reading.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FuserForm = Literal["plain", "twice", "correlated"]
PATCH = 16
"""Cells across the square in which `correlated` compares: 7 before to 8 behind."""


class ResFuser(nn.Module):
    """The frame's map and what two convolutions make of [reference, frame].  (B, C, h, w) x2 -> (B, C, h, w)"""

    added = 0
    """Channels that `_joined` has beside those of the two maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2 * channels + self.added, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, reference: Tensor, current: Tensor) -> Tensor:
        return current + self.conv2(F.relu(self.conv1(self._joined(reference, current))))

    def _joined(self, reference: Tensor, current: Tensor) -> Tensor:
        """(B, C, h, w) x2 -> (B, 2C + added, h, w)"""
        return torch.cat([reference, current], dim=1)


class TwiceResFuser(ResFuser):
    """With one more convolution of both maps before, applied twice."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.conv0 = nn.Conv2d(2 * channels, 2 * channels, 3, padding=1)

    def _joined(self, reference: Tensor, current: Tensor) -> Tensor:
        return F.relu(self.conv0(F.relu(self.conv0(super()._joined(reference, current)))))


class CorrelatedResFuser(ResFuser):
    """Between the two maps stands where the frame resembles which places around in the reference."""

    added = PATCH * PATCH

    def _joined(self, reference: Tensor, current: Tensor) -> Tensor:
        return torch.cat([reference, correlation(reference, current, PATCH), current], dim=1)


def correlation(reference: Tensor, current: Tensor, patch: int) -> Tensor:
    """Mean over the channels of each cell's product with each cell of a square of the reference around it; 0 outside.

    (B, C, h, w) x2 -> (B, patch^2, h, w): row by row the shifts (dy, dx) from -(patch - 1) // 2 on.
    """
    h, w = current.shape[-2:]
    before, behind = (patch - 1) // 2, patch // 2
    padded = F.pad(reference, (before, behind, before, behind))
    shifts = [(dy, dx) for dy in range(patch) for dx in range(patch)]
    return torch.stack([(current * padded[..., dy : dy + h, dx : dx + w]).mean(1) for dy, dx in shifts], dim=1)


FORMS: dict[FuserForm, type[ResFuser]] = {
    "plain": ResFuser, "twice": TwiceResFuser, "correlated": CorrelatedResFuser,
}  # fmt: skip


class PyramidFuser(nn.Module):
    """A ResFuser of its own for every level."""

    def __init__(self, channels: int, levels: int = 5, form: FuserForm = "plain") -> None:
        super().__init__()
        self.levels = nn.ModuleList(FORMS[form](channels) for _ in range(levels))

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
