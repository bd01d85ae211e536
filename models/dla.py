"""Step 5, backbone: DLA-34, deep layer aggregation, of any depth and width.

In:     images (B, 3, H, W), H and W multiples of 32
Out:    level3, level4, level5: (B, 128, H/8, W/8), (B, 256, H/16, W/16), (B, 512, H/32, W/32); before them level2,
        (B, 64, H/4, W/4), where asked for
State:  none, but for the running statistics of the norms
Source: Yu et al., Deep Layer Aggregation, CVPR 2018; CrossVIS specification 2.2, 5.3, 6.4. Parts bear the names of the
        public ImageNet files. Those carry `level3.project` and `level4.project` too, which nothing reads: the trees one
        deeper have projections of their own. They are kept, without gradients, because the specification's counts
        (15,270,832 here, 27.4 M in CrossVIS-Lite; 27.3 M without) have them, and files then load to the last key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.norms import NormName, make_norm


@dataclass(frozen=True, kw_only=True)
class DLAConfig:
    """The default is DLA-34 as CrossVIS-Lite uses it: ImageNet weights, norms synchronised, nothing frozen."""

    name: Literal["dla34"] = "dla34"
    """Tells a settings file's backbone from other kinds."""
    widths: tuple[int, int, int, int, int, int] = (16, 32, 64, 128, 256, 512)
    """Channels of level0..level5, whose strides are 1, 2, 4, 8, 16, 32. Cost grows with their squares; level0 and
    level1 are dear, their maps are the largest."""
    depths: tuple[int, int, int, int] = (1, 2, 2, 1)
    """Depth of the trees of level2..level5: a tree of depth d has 2**d blocks."""
    norm: NormName = "sync"
    """`sync` learns statistics over the images of all workers; `batch` over a worker's own, worse when those are few;
    `frozen_statistics` and `frozen` hold those of the weights."""

    def __post_init__(self) -> None:
        if min(self.widths) < 1:
            raise ValueError(f"DLA: widths are {self.widths}, expected six of at least 1")
        if not all(1 <= depth <= 6 for depth in self.depths):
            raise ValueError(f"DLA: depths are {self.depths}, expected four of 1..6: a tree has 2**depth blocks")


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _conv_level(inputs: int, outputs: int, kernel: int, stride: int, norm: NormName) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, kernel, stride), make_norm(norm, outputs), nn.ReLU())


class BasicBlock(nn.Module):
    """Two 3x3, the stride in the first; the residual is added before the last ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: NormName) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(inputs, outputs, 3, stride), make_norm(norm, outputs)
        self.conv2, self.bn2 = _conv(outputs, outputs, 3), make_norm(norm, outputs)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + residual)


class Root(nn.Module):
    """1x1 over the maps of a tree side by side. No residual."""

    def __init__(self, inputs: int, outputs: int, norm: NormName) -> None:
        super().__init__()
        self.conv, self.bn = _conv(inputs, outputs, 1), make_norm(norm, outputs)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return F.relu(self.bn(self.conv(torch.cat(maps, dim=1))))


class Tree(nn.Module):
    """Two subtrees, one after the other, and a root over what came of them.  (B, in, H, W) -> (B, out, H/s, W/s)

    At depth 1 the subtrees are blocks and the root takes [second, first, *earlier]; `earlier` are the maps handed down.
    Deeper, the second subtree's root is the tree's own: it is handed [*earlier, first]. With `level_root` the input
    itself, pooled to the new size, is the first of the earlier maps.
    """

    def __init__(
        self, depth: int, inputs: int, outputs: int, stride: int, norm: NormName,
        level_root: bool = False, earlier: int = 0,
    ) -> None:
        """`earlier` counts the channels of the maps handed to `forward`."""
        super().__init__()
        self.depth, self.stride, self.level_root = depth, stride, level_root
        earlier += inputs if level_root else 0
        if depth == 1:
            self.tree1 = BasicBlock(inputs, outputs, stride, norm)
            self.tree2 = BasicBlock(outputs, outputs, 1, norm)
            self.root = Root(2 * outputs + earlier, outputs, norm)
        else:
            self.tree1 = Tree(depth - 1, inputs, outputs, stride, norm)
            self.tree2 = Tree(depth - 1, outputs, outputs, 1, norm, earlier=earlier + outputs)
        if inputs != outputs:
            self.project = nn.Sequential(_conv(inputs, outputs, 1), make_norm(norm, outputs))
            self.project.requires_grad_(depth == 1)              # of a deeper tree, nothing reads it
        else:
            self.project = nn.Identity()

    def forward(self, x: Tensor, earlier: tuple[Tensor, ...] = ()) -> Tensor:
        pooled = F.max_pool2d(x, self.stride) if self.stride > 1 else x
        if self.level_root:
            earlier = (*earlier, pooled)
        if self.depth > 1:
            first = self.tree1(x)
            return self.tree2(first, (*earlier, first))
        first = self.tree1(x, self.project(pooled))
        second = self.tree2(first, first)
        return self.root([second, first, *earlier])


class DLA(nn.Module):
    """Images -> (level{first_output}, .., level5). `channels` and `strides` tell what comes out.

    Raises ValueError when `first_output` is none of 2..5.
    """

    def __init__(self, config: DLAConfig, first_output: int = 3) -> None:
        super().__init__()
        if not 2 <= first_output <= 5:
            raise ValueError(f"DLA: first_output is {first_output}, expected 2..5: it gives level2 to level5")
        self.first_output = first_output
        widths, depths, norm = config.widths, config.depths, config.norm
        self.channels = widths[first_output:]
        self.strides = (4, 8, 16, 32)[first_output - 2 :]
        self.base_layer = _conv_level(3, widths[0], 7, 1, norm)
        self.level0 = _conv_level(widths[0], widths[0], 3, 1, norm)
        self.level1 = _conv_level(widths[0], widths[1], 3, 2, norm)
        self.level2 = Tree(depths[0], widths[1], widths[2], 2, norm)
        self.level3 = Tree(depths[1], widths[2], widths[3], 2, norm, level_root=True)
        self.level4 = Tree(depths[2], widths[3], widths[4], 2, norm, level_root=True)
        self.level5 = Tree(depths[3], widths[4], widths[5], 2, norm, level_root=True)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.level1(self.level0(self.base_layer(images)))            # (B, w1, H/2, W/2)
        outputs = []
        for level in (self.level2, self.level3, self.level4, self.level5):
            x = level(x)
            outputs.append(x)
        return tuple(outputs[self.first_output - 2 :])
