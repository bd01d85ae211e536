"""Step 6, clip-level prediction heads: what is said at every anchor of every time slot of a clip.

In:     P3..P7 of B clips of T frames, (B * T, F, h_l, w_l), the frames of a clip side by side
Out:    `TubeMaps` for S slots and N anchors
State:  none
Source: Li & Zhang, CiCo, 2022, 3.3; CiCo specification 2.5. Boxes, mask parameters and embeddings come of towers that
        look at neighbouring frames; classes of the slot's own frame alone, for looking further costs 1.3 AP (table 1b).
        The last convolutions look at each frame alone, as released; for slots of several frames at these.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.cico_anchors import RATIOS
from models.cico_slots import Slots
from models.fcos import PRIOR_BIAS
from models.yolact_fpn import xavier

Dims = Literal["2d", "3d"]
"""Whether convolutions look at neighbouring frames too."""
ANCHORS = len(RATIOS)


@dataclass(frozen=True)
class TubeMaps:
    """What the heads say; S time slots, mostly T, and N anchors, at each of which a tube of T frames begins."""

    deltas: Tensor
    """(B, S, N, T, 4): T boxes, coded against one anchor."""
    centerness: Tensor
    """(B, S, N) logits: how well the boxes fit."""
    class_logits: Tensor
    """(B, S, N, K), or with the background first (B, S, N, K + 1)."""
    embeddings: Tensor
    """(B, S, N, D) of length 1; D = 0 without tracking."""
    parameters: Tensor
    """(B, S, N, k') mask parameters, in -1..1."""


def fold(x: Tensor, frames: int) -> Tensor:
    """Frames of clips side by side -> clips.  (B * T, C, h, w) -> (B, C, T, h, w)"""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


def unfold(x: Tensor) -> Tensor:
    """(B, C, T, h, w) -> (B * T, C, h, w)"""
    return x.transpose(1, 2).flatten(0, 1)


class ClipConv(nn.Conv3d):
    """Over neighbouring frames too.  (B, C, T, h, w)

    Trained on a CPU over two frames, in float32 whatever is asked: there the gradient in bfloat16 reads memory that
    nobody wrote (torch 2.13, kernel 3; other numbers of frames are right).
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type == "cpu" and x.shape[2] == 2 and torch.is_grad_enabled():
            with torch.autocast("cpu", enabled=False):
                return super().forward(x.to(self.weight.dtype))
        return super().forward(x)


class Tower(nn.Module):
    """Convolutions 3x3 or 3x3x3, each before a ReLU; width and times kept.  (B * T, F, h, w) -> (B * T, F, h, w)

    Before the first and behind the last frame lie zeros.
    """

    def __init__(self, channels: int, convs: int, dims: Dims, frames: int) -> None:
        super().__init__()
        self.frames = frames if dims == "3d" else None
        kind = ClipConv if dims == "3d" else nn.Conv2d
        self.convs = nn.ModuleList(xavier(kind(channels, channels, 3, padding=1)) for _ in range(convs))

    def forward(self, x: Tensor) -> Tensor:
        if self.frames is not None:
            x = fold(x, self.frames)                                                    # (B, F, T, h, w)
        for conv in self.convs:
            x = F.relu(conv(x))
        return x if self.frames is None else unfold(x)


@dataclass(frozen=True, kw_only=True)
class HeadWidths:
    """How many numbers an anchor of a slot gives."""

    frames: int
    classes: int
    """Classes, the background included where it is one."""
    embedding: int
    """0: without a tracking tower."""
    parameters: int
    slots: Slots | None = None
    """None: one a frame."""


class SlotConv(nn.Conv3d):
    """3x3 over the frames of each slot, nothing before the first or behind the last.  (B * T, F, h, w) -> (B * S, C, h,
    w)"""

    def __init__(self, channels: int, outputs: int, slots: Slots) -> None:
        size = (slots.kernel, 3, 3)
        super().__init__(channels, outputs, size, stride=(slots.stride, 1, 1), padding=(0, 1, 1))
        self.frames = slots.frames

    def forward(self, x: Tensor) -> Tensor:
        return unfold(super().forward(fold(x, self.frames)))


class ClipHeads(nn.Module):
    """Three towers and their outputs, shared by all levels.

    Source: CiCo specification 2.5 and 2.9: `prior` starts the class bias at a probability of 0.01.
    """

    def __init__(
        self, channels: int, widths: HeadWidths, convs: int, box: Dims, track: Dims, classes: Dims, prior: bool
    ) -> None:
        super().__init__()
        self.widths, self.slots = widths, widths.slots or Slots(widths.frames)
        self.box_tower = Tower(channels, convs, box, widths.frames)
        self.class_tower = Tower(channels, convs, classes, widths.frames)
        self.boxes = self._output(channels, 4 * widths.frames)
        self.centerness = self._output(channels, 1)
        self.mask_parameters = self._output(channels, widths.parameters)
        self.class_logits = self._output(channels, widths.classes)
        if prior:
            nn.init.constant_(self.class_logits.bias, PRIOR_BIAS)
        self.track_tower = None
        if widths.embedding:
            self.track_tower = Tower(channels, convs, track, widths.frames)
            self.embeddings = self._output(channels, widths.embedding)

    def _output(self, channels: int, width: int) -> nn.Module:
        if self.slots.kernel == 1:
            return xavier(nn.Conv2d(channels, ANCHORS * width, 3, padding=1))
        return xavier(SlotConv(channels, ANCHORS * width, self.slots))

    def forward(self, levels: tuple[Tensor, ...]) -> TubeMaps:
        per_level = [self._level(level) for level in levels]
        joined = (torch.cat([getattr(maps, f.name) for maps in per_level], dim=2) for f in fields(TubeMaps))
        return TubeMaps(*joined)

    def _level(self, x: Tensor) -> TubeMaps:
        frames = self.widths.frames
        box, classes = self.box_tower(x), self.class_tower(x)
        if self.track_tower is None:
            embeddings = x.new_zeros(len(x) // frames, self.slots.count, ANCHORS * x.shape[-2] * x.shape[-1], 0)
        else:
            embeddings = F.normalize(self._flat(self.embeddings(self.track_tower(x))), dim=-1)
        return TubeMaps(
            deltas=self._flat(self.boxes(box)).unflatten(-1, (frames, 4)),
            centerness=self._flat(self.centerness(box)).squeeze(-1),
            class_logits=self._flat(self.class_logits(classes)),
            embeddings=embeddings,
            parameters=self._flat(self.mask_parameters(box)).tanh(),
        )

    def _flat(self, x: Tensor) -> Tensor:
        """(B * S, 3 * c, h, w) -> (B, S, h * w * 3, c)"""
        x = x.unflatten(0, (-1, self.slots.count)).permute(0, 1, 3, 4, 2)               # (B, S, h, w, 3 * c)
        return x.unflatten(-1, (ANCHORS, -1)).flatten(2, 4)
