"""Parts of a transformer block over the tokens of a map: positions, self-attention, gated feed-forward, token drop.

In, out: tokens (B, n, D) of maps of h x w, row by row
State:   none
Source:  IAI specification 2.3, 2.7. The gate is Gated Channel Transformation (Yang et al., CVPR 2020).
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.losses import at_least_float32

EPS = 1e-5


def linear(inputs: int, outputs: int) -> nn.Linear:
    """Xavier uniform weights (specification 2.7)."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight)
    return layer


def heads_of(x: Tensor, heads: int) -> Tensor:
    """(B, n, D) -> (B, heads, n, D / heads)"""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def drop_tokens(x: Tensor, rate: float) -> Tensor:
    """One draw per token position, shared by batch and channels: 0, or x / (1 - rate).  (B, n, D) -> (B, n, D)

    As released; stochastic depth usually draws per row of the batch.
    """
    kept = torch.rand(x.shape[1], 1, device=x.device) >= rate
    return x * (kept.to(x.dtype) / (1 - rate))


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)        # kept for training too, wherever it is first asked for
def sine_positions(h: int, w: int, dim: int, device: torch.device) -> Tensor:
    """(h * w, dim) float32: dim / 2 channels of the row, then of the column; sines at even, cosines at odd channels."""
    channel = torch.arange(dim // 2, device=device, dtype=torch.float64)
    period = 10000 ** (2 * (channel // 2) / (dim // 2))

    def along(count: int) -> Tensor:
        turn = 2 * math.pi * torch.arange(count, device=device, dtype=torch.float64) / (count - 1 + 1e-6)
        angle = turn[:, None] / period
        return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).float()                 # (count, dim / 2)

    rows, columns = along(h)[:, None].expand(-1, w, -1), along(w).expand(h, -1, -1)
    return torch.cat([rows, columns], dim=2).reshape(h * w, dim)


class SelfAttention(nn.Module):
    """Queries and keys see positions, values do not. z (B, n, D), positions (n, D) -> (B, n, D)"""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = linear(dim, dim), linear(dim, dim), linear(dim, dim)
        self.projection = linear(dim, dim)

    def forward(self, z: Tensor, positions: Tensor) -> Tensor:
        placed = z + positions
        parts = (self.query(placed), self.key(placed), self.value(z))
        out = F.scaled_dot_product_attention(*(heads_of(part, self.heads) for part in parts))  # (B, a, n, d)
        return self.projection(out.transpose(1, 2).flatten(2))


class ChannelGate(nn.Module):
    """Channels that compete by their norm: u * (1 + tanh(gamma * e / |e| + beta)), e = alpha * norm(u).  (B, C, h, w)

    Sums of squares are float32 at least: in half precision a thousand cells overflow.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.alpha, self.gamma, self.beta = (nn.Parameter(torch.empty(1, channels, 1, 1)) for _ in range(3))
        for parameter in self.parameters():       # the gate does not begin as identity: as released (2.7)
            nn.init.xavier_uniform_(parameter)

    def forward(self, u: Tensor) -> Tensor:
        e = self.alpha * (at_least_float32(u).square().sum((2, 3), keepdim=True) + EPS).sqrt()
        share = self.gamma * e / (e.square().mean(1, keepdim=True) + EPS).sqrt()
        return u * (1 + torch.tanh(share + self.beta)).to(u.dtype)


class GatedFeedForward(nn.Module):
    """Wider, GroupNorm, GELU, gate, depthwise 5x5, back.  tokens (B, n, D) of a map (h, w) -> (B, n, D)"""

    def __init__(self, dim: int, hidden: int, groups: int) -> None:
        super().__init__()
        self.expand, self.contract = linear(dim, hidden), linear(hidden, dim)
        self.norm, self.gate = nn.GroupNorm(groups, hidden), ChannelGate(hidden)
        self.mix = nn.Conv2d(hidden, hidden, 5, padding=2, groups=hidden, bias=False)
        nn.init.xavier_uniform_(self.mix.weight)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        u = self.expand(x).transpose(1, 2).unflatten(2, size)                                  # (B, F, h, w)
        u = self.mix(self.gate(F.gelu(self.norm(u))))
        return self.contract(u.flatten(2).transpose(1, 2))
