"""Normalisation layers by name.

frozen              nothing moves: ImageNet weights that stay as they are (Caffe / MSRA ResNets)
frozen_statistics   mean and variance stay, weight and bias train (two-stage baseline)
batch               each worker's own batch statistics: training from scratch
sync                batch statistics of all workers together: for few images per worker (DLA-34)

In, out: (B, C, H, W), any B of at least 1
State:   running mean and variance; `batch` and `sync` update them in training mode, the others never
Source:  CrossVIS specification 2.2, 5.2, 5.3
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

NormName = Literal["frozen", "frozen_statistics", "batch", "sync"]

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


class FrozenStatisticsNorm2d(nn.BatchNorm2d):
    """A BatchNorm that uses its running mean and variance in training too and leaves them; weight and bias train.

    Its state is that of BatchNorm2d, so weights pass from one to the other.  (B, C, H, W) -> (B, C, H, W)
    Source: CrossVIS specification 5.2.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)


class _SumOverWorkers(torch.autograd.Function):
    """The sum of a tensor over all workers, on each of them; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class SyncBatchNorm2d(nn.SyncBatchNorm):
    """BatchNorm over the batches of all workers of the default process group; one worker, or none: BatchNorm.

    PyTorch's kernels where the input lies on a GPU. They refuse a CPU, so there the same is done with two sums over the
    workers: of the values, then of the squares about the common mean, which in float32 loses less than E[x^2] - E[x]^2.
    Every worker has to take part in every training step.  (B, C, H, W) -> (B, C, H, W)
    """

    def forward(self, x: Tensor) -> Tensor:
        grouped = self.training and dist.is_available() and dist.is_initialized()
        return self._synchronised(x) if grouped and x.device.type == "cpu" else super().forward(x)

    def _synchronised(self, x: Tensor) -> Tensor:
        values = x.float()
        count = values.new_tensor([values[:, 0].numel()])
        sums = _SumOverWorkers.apply(torch.cat([values.sum((0, 2, 3)), count]))          # (C + 1,)
        count = sums[-1].detach()                                                       # workers' batches may differ
        mean = sums[:-1] / count
        centred = values - mean[:, None, None]
        var = _SumOverWorkers.apply(centred.square().sum((0, 2, 3))) / count             # (C,)
        with torch.no_grad():
            self.num_batches_tracked.add_(1)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * count / (count - 1).clamp(min=1), self.momentum)
        scale = self.weight * (var + self.eps).rsqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)


NORMS: dict[str, type[nn.Module]] = {
    "frozen": FrozenBatchNorm2d,
    "frozen_statistics": FrozenStatisticsNorm2d,
    "batch": nn.BatchNorm2d,
    "sync": SyncBatchNorm2d,
}


def make_norm(name: NormName, channels: int) -> nn.Module:
    """A 2-D norm over `channels`; raises KeyError for a name that is none of `NormName`."""
    return NORMS[name](channels)
