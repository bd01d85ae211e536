"""Step 5, backbone: ResNet, Caffe / MSRA or PyTorch style, of any depth and width.

In:     images (B, 3, H, W), H and W multiples of 32
Out:    C3, C4, C5: (B, 4m*2, H/8, W/8), (B, 4m*4, H/16, W/16), (B, 4m*8, H/32, W/32) with m = `mid_channels`; before
        them C2: (B, 4m, H/4, W/4), where asked for
State:  none, but for the running statistics of norms that train
Source: He et al., Deep Residual Learning, CVPR 2016, table 1; CrossVIS specification 2.2 and 5.2 for the styles: no
        bias in convolutions, the stride of a stage in the first 1x1 of its first block, or in its 3x3 (and in its
        shortcut either way).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.norms import NormName, make_norm

EXPANSION = 4

StrideIn = Literal["1x1", "3x3"]


@dataclass(frozen=True, kw_only=True)
class ResNetConfig:
    """The default is ResNet-50 as CrossVIS uses it: ImageNet weights, norms frozen, stem and res2 without gradients."""

    name: Literal["resnet"] = "resnet"
    """Tells a settings file's backbone from other kinds."""
    blocks: tuple[int, int, int, int] = (3, 4, 6, 3)
    """Bottleneck blocks of res2..res5. (3, 4, 23, 3) is ResNet-101."""
    stem_channels: int = 64
    mid_channels: int = 64
    """Width of the 3x3 in res2; doubles with every stage. Cost grows with its square."""
    stride_in: StrideIn = "1x1"
    """Which convolution of a stage's first block takes every second pixel: the first `1x1` (Caffe / MSRA weights,
    cheaper) or the `3x3` (PyTorch weights, looks at every pixel). Has to be that of the weights."""
    norm: NormName = "frozen"
    """`frozen` for ImageNet weights; `frozen_statistics` trains their weight and bias; `batch` learns statistics, for
    training from scratch; `sync` learns them over all workers."""
    frozen_stages: int = 2
    """0 trains all; 1 freezes the stem; 2 the stem and res2. Only right with pre-trained weights."""

    def __post_init__(self) -> None:
        if min(*self.blocks, self.stem_channels, self.mid_channels) < 1:
            raise ValueError("ResNet: blocks, stem_channels and mid_channels must be at least 1")
        if self.stride_in not in ("1x1", "3x3"):
            raise ValueError(f"ResNet: stride_in is {self.stride_in!r}, expected '1x1' (Caffe) or '3x3' (PyTorch)")
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
    """1x1, 3x3, 1x1, added to the shortcut; ReLU after the first two and after the sum.

    The stride is that of the first 1x1, or of the 3x3.
    """

    def __init__(self, inputs: int, mid: int, stride: int, norm: NormName, stride_in: StrideIn = "1x1") -> None:
        super().__init__()
        outputs = mid * EXPANSION
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        self.conv1 = ConvNorm(inputs, mid, 1, first, norm)
        self.conv2 = ConvNorm(mid, mid, 3, second, norm)
        self.conv3 = ConvNorm(mid, outputs, 1, 1, norm)
        self.shortcut = ConvNorm(inputs, outputs, 1, stride, norm) if stride > 1 or inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x))
        y = F.relu(self.conv2(y))
        return F.relu(self.conv3(y) + self.shortcut(x))


class ResNet(nn.Module):
    """Images -> (C{first_output}, .., C5). `channels` and `strides` tell what comes out.

    Raises ValueError when `first_output` is none of 2..5.
    """

    def __init__(self, config: ResNetConfig, first_output: int = 3) -> None:
        super().__init__()
        if not 2 <= first_output <= 5:
            raise ValueError(f"ResNet: first_output is {first_output}, expected 2..5: it gives C2 to C5")
        self.first_output = first_output
        mids = [config.mid_channels * 2**i for i in range(4)]
        self.channels = tuple(mid * EXPANSION for mid in mids)[first_output - 2 :]
        self.strides = (4, 8, 16, 32)[first_output - 2 :]
        self.stem = ConvNorm(3, config.stem_channels, 7, 2, config.norm)
        stages, inputs = [], config.stem_channels
        for i, (depth, mid) in enumerate(zip(config.blocks, mids, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(Bottleneck(inputs, mid, 2 if i > 0 and j == 0 else 1, config.norm, config.stride_in))
                inputs = mid * EXPANSION
            stages.append(nn.Sequential(*blocks))
        self.res2, self.res3, self.res4, self.res5 = stages
        for part in (self.stem, *stages)[: config.frozen_stages]:
            part.requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = F.relu(self.stem(images))                              # (B, S, H/2, W/2)
        x = F.max_pool2d(x, 3, stride=2, padding=1)                # (B, S, H/4, W/4)
        outputs = []
        for stage in (self.res2, self.res3, self.res4, self.res5):
            x = stage(x)
            outputs.append(x)
        return tuple(outputs[self.first_output - 2 :])
