"""Normalisation layers by name: `frozen` for ImageNet weights that are not to move, `batch` to train from scratch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

NormName = Literal["frozen", "batch"]

BATCH_NORM_EPS = 1e-5


class FrozenBatchNorm2d(nn.Module):
    """y = (x - m) * w / sqrt(v + 1e-5) + b with w, b, m, v as buffers: never trained, never updated.

    Caffe-origin weights carry w and b alone; then m = 0 and v = 1 - 1e-5.  (B, C, H, W) -> (B, C, H, W)
    Source: CrossVIS specification 2.2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels) - BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + BATCH_NORM_EPS).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


def make_norm(name: NormName, channels: int) -> nn.Module:
    """A 2-D norm over `channels`; raises KeyError for a name that is none of `NormName`."""
    return {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d}[name](channels)
