"""Step 6, clip-level mask head: the prototype maps that the masks of all tubes of a clip are made of.

In:     P3, P4, P5 of single frames (`merge`), then the merged maps of B clips of T frames
Out:    prototypes (B, H/4, W/4, T, k), not negative
State:  none. `merge` is of each frame alone, so a frame that two clips share need not be merged twice
Source: Li & Zhang, CiCo, 2022, 3.3; CiCo specification 2.6. Enlarging has no weights, as released; `deconv` is the
        paper's.
"""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.cico_heads import ClipConv, Dims, fold, unfold
from models.dynamic_mask import aligned_upsample
from models.yolact_fpn import xavier

Enlarge = Literal["interpolate", "deconv"]
TOWER_CONVS = 3


def conv_block(inputs: int, outputs: int, dims: Dims) -> nn.Sequential:
    """3x3 or 3x3x3 with a bias, batch norm, ReLU."""
    conv, norm = (ClipConv, nn.BatchNorm3d) if dims == "3d" else (nn.Conv2d, nn.BatchNorm2d)
    return nn.Sequential(xavier(conv(inputs, outputs, 3, padding=1)), norm(outputs), nn.ReLU())


class ClipPrototypes(nn.Module):
    """P3, P4, P5 -> one map a frame (`merge`); the maps of clips -> prototypes.

    `dims` 3d: the tower looks at neighbouring frames; before the first and behind the last lie zeros.
    """

    def __init__(
        self, channels: int, width: int, prototypes: int, frames: int, dims: Dims, enlarge: Enlarge
    ) -> None:  # fmt: skip
        super().__init__()
        self.frames, self.dims = frames, dims
        self.refine = nn.ModuleList(conv_block(channels, channels, "2d") for _ in range(3))
        inputs = (channels, *[width] * (TOWER_CONVS - 1))
        self.tower = nn.Sequential(*(conv_block(one, width, dims) for one in inputs))
        self.deconv = xavier(nn.ConvTranspose2d(width, width, 2, stride=2)) if enlarge == "deconv" else None
        self.last = conv_block(width, width, "2d")
        self.output = xavier(nn.Conv2d(width, prototypes, 1))

    def merge(self, p3: Tensor, p4: Tensor, p5: Tensor) -> Tensor:
        """(B, F, H/8, W/8), (B, F, H/16, W/16), (B, F, H/32, W/32) -> (B, F, H/8, W/8), B frames of any clips"""
        x = self.refine[0](p3)
        x = x + aligned_upsample(self.refine[1](p4), 2)
        return x + aligned_upsample(self.refine[2](p5), 4)

    def forward(self, merged: Tensor) -> Tensor:
        """(B * T, F, H/8, W/8), frames of a clip side by side -> (B, H/4, W/4, T, k)"""
        x = unfold(self.tower(fold(merged, self.frames))) if self.dims == "3d" else self.tower(merged)
        if self.deconv is None:
            x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        else:
            x = F.relu(self.deconv(x))
        x = F.relu(self.output(self.last(x)))                                           # (B * T, k, H/4, W/4)
        return fold(x, self.frames).permute(0, 3, 4, 2, 1)
