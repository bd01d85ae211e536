"""Step 5, backbone: ResNet, Caffe / MSRA style, of any depth and width.

In:     images (B, 3, H, W), H and W multiples of 32
Out:    C3, C4, C5: (B, 4m*2, H/8, W/8), (B, 4m*4, H/16, W/16), (B, 4m*8, H/32, W/32) with m = `mid_channels`
Source: He et al., Deep Residual Learning, CVPR 2016, table 1; CrossVIS specification 2.2 for the style: no bias in
        convolutions, the stride of a stage in the first 1x1 of its first block (and in its shortcut).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from models.norms import NormName, make_norm

EXPANSION = 4


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The default is ResNet-50 as CrossVIS uses it: ImageNet weights, norms frozen, stem and res2 without gradients."""

    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks of res2..res5. (3, 4, 23, 3) is ResNet-101."""
    stem_channels: int = 64
    mid_channels: int = 64
    """Width of the 3x3 in res2; doubles with every stage. Cost grows with its square."""
    norm: NormName = "frozen"
    """`frozen` for ImageNet weights; `batch` learns statistics, for training from scratch."""
    frozen_stages: int = 2
    """0 trains all; 1 freezes the stem; 2 the stem and res2. Only right with pre-trained weights."""

    def __post_init__(self) -> None:
        if min(*self.blocks, self.stem_channels, self.mid_channels) < 1:
            raise ValueError("ResNet: blocks, stem_channels and mid_channels must be at least 1")
        if not 0 <= self.frozen_stages <= 5:
            raise ValueError(f"ResNet: frozen_stages is {self.frozen_stages}, expected 0..5")


class ConvNorm(nn.Module):
    """Convolution without bias, then a norm; padding keeps the size at stride 1."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, norm: NormName) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
        self.norm = make_norm(norm, outputs)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Bottleneck(nn.Module):
    """1x1 (with the stride), 3x3, 1x1, added to the shortcut; ReLU after the first two and after the sum."""

    def __init__(self, inputs: int, mid: int, stride: int, norm: NormName) -> None:
        super().__init__()
        outputs = mid * EXPANSION
        self.conv1 = ConvNorm(inputs, mid, 1, stride, norm)
        self.conv2 = ConvNorm(mid, mid, 3, 1, norm)
        self.conv3 = ConvNorm(mid, outputs, 1, 1, norm)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, norm) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        y = F.relu(self.conv2(y))
        return F.relu(self.conv3(y) + self.shortcut(x))


class ResNet(nn.Module):
    """Images -> (C3, C4, C5). `channels` and `strides` tell what comes out."""

    strides = (8, 16, 32)

    def __init__(self, config: ResNetConfig) -> None:
        super().__init__()
        mids = [config.mid_channels * 2**i for i in range(4)]
        self.channels = tuple(mid * EXPANSION for mid in mids[1:])
        self.stem = ConvNorm(3, config.stem_channels, 7, 2, config.norm)
        stages, inputs = [], config.stem_channels
        for i, (depth, mid) in enumerate(zip(config.blocks, mids, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(inputs, mid, 2 if i > 0 and j == 0 else 1, config.norm))
                inputs = mid * EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.res2, self.res3, self.res4, self.res5 = stages
        for part in (self.stem, *stages)[: config.frozen_stages]:
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = F.relu(self.stem(images))                              # (B, S, H/2, W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)                # (B, S, H/4, W/4)
        c3 = self.res3(self.res2(x))
        c4 = self.res4(c3)
        return c3, c4, self.res5(c4)
