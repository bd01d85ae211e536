"""Step 5, backbone: Swin transformer, whose attention looks at windows of 7 x 7 tokens, every second time shifted by 3.

In:     images (B, 3, H, W), H and W multiples of 32
Out:    C3, C4, C5: (B, 2e, H/8, W/8), (B, 4e, H/16, W/16), (B, 8e, H/32, W/32) with e = `embed_dim`; before them
        C2: (B, e, H/4, W/4), where asked for. Each passed a norm of its own
State:  none
Limits: maps are padded with zeros to whole windows after the first norm of a block; what is padded is looked at, as
        released: it has a key and a value, those of the biases
Source: Liu et al., Swin Transformer, ICCV 2021, 3; CiCo specification 2.2. In the file a token is (.., C): channels
        last; L = 49 tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

MASKED = -100.0
"""Added to the attention of tokens that only the shift brought into one window: e^-100 is 0 in float32."""


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """The default is Swin-tiny."""

    name: Literal["swin"] = "swin"
    """Tells a settings file's backbone from other kinds."""
    embed_dim: int = 96
    """Width of the first stage; doubles with every stage. Cost grows with its square."""
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    """Blocks of the stages; even, so that each window is followed by a shifted one."""
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    """Attention heads of the stages; each divides its stage's width."""
    window: int = 7
    """Side of a window in tokens. Has to be that of the weights."""
    mlp_ratio: int = 4
    drop_path: float = 0.2
    """Share of images that skip the last block's branches in training; rises from 0 at the first block. Higher:
    regularises more, learns slower."""

    def __post_init__(self) -> None:
        if min(self.embed_dim, *self.depths, *self.heads, self.mlp_ratio) < 1 or self.window < 2:
            raise ValueError("Swin: embed_dim, depths, heads and mlp_ratio must be at least 1, window at least 2")
        widths = [self.embed_dim * 2**i for i in range(4)]
        if any(width % heads for width, heads in zip(widths, self.heads, strict=True)):
            raise ValueError(f"Swin: heads are {self.heads}, expected divisors of the widths {tuple(widths)}")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f"Swin: drop_path is {self.drop_path}, expected 0 to below 1")


def drop_path(x: Tensor, rate: float, training: bool) -> Tensor:
    """Images of the batch at random become 0, the others are scaled up so that the mean stays.  (B, ..) -> (B, ..)"""
    if rate == 0 or not training:
        return x
    kept = torch.rand(len(x), *[1] * (x.dim() - 1), device=x.device) >= rate
    return x * kept / (1 - rate)


def to_windows(x: Tensor, side: int) -> Tensor:
    """(B, H, W, C), whole windows -> (B * windows, side * side, C), windows and tokens row by row."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // side, side, w // side, side, c).transpose(2, 3)                # (B, rows, cols, s, s, C)
    return x.reshape(-1, side * side, c)


def from_windows(x: Tensor, side: int, height: int, width: int) -> Tensor:
    """The inverse of `to_windows`: (B * windows, side * side, C) -> (B, height, width, C)."""
    x = x.reshape(-1, height // side, width // side, side, side, x.shape[-1]).transpose(2, 3)
    return x.reshape(len(x), height, width, -1)


def relative_index(side: int) -> Tensor:
    """(L, L) int64: row of the bias table for a query and a key of one window.

    Their offset (dy, dx) from key to query, both counted from -(side - 1): (2 side - 1) dy + dx.
    """
    place = torch.arange(side * side, device="cpu")             # numbers, even of a network built of shapes alone
    y, x = place // side, place % side
    return (y[:, None] - y + side - 1) * (2 * side - 1) + (x[:, None] - x + side - 1)


def shift_mask(height: int, width: int, side: int, shift: int, device: torch.device) -> Tensor:
    """(windows, L, L): 0 where two tokens of a window were neighbours before the map was rolled by `shift`."""
    def region(length: int) -> Tensor:
        place = torch.arange(length, device=device)
        return (place >= length - side).int() + (place >= length - shift)               # (length,) 0, 1 or 2

    regions = 3 * region(height)[:, None] + region(width)                               # (height, width)
    tokens = to_windows(regions[None, :, :, None], side).squeeze(2)                     # (windows, L)
    return torch.where(tokens[:, :, None] == tokens[:, None], 0.0, MASKED)


class WindowAttention(nn.Module):
    """Attention among the tokens of each window, with a bias per head and offset.  (n, L, C) -> (n, L, C)"""

    def __init__(self, channels: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.relative_bias = nn.Parameter(torch.empty((2 * side - 1) ** 2, heads))
        self.register_buffer("index", relative_index(side).flatten(), persistent=False)
        nn.init.normal_(self.relative_bias, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        n, tokens, c = x.shape
        q, k, v = self.qkv(x).reshape(n, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (n, heads, L, C/h)
        bias = self.relative_bias[self.index].T.reshape(1, self.heads, tokens, tokens)
        if mask is not None:
            bias = (bias + mask[:, None]).repeat(n // len(mask), 1, 1, 1)               # (n, heads, L, L)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
        return self.proj(out.transpose(1, 2).reshape(n, tokens, c))


class SwinBlock(nn.Module):
    """Attention in windows, shifted or not, then a feed-forward part; each behind a norm and beside a shortcut.

    (B, H, W, C) -> (B, H, W, C), any H and W.
    """

    def __init__(self, channels: int, heads: int, shifted: bool, drop: float, config: SwinConfig) -> None:
        super().__init__()
        self.side, self.drop = config.window, drop
        self.shift = config.window // 2 if shifted else 0
        self.norm1 = nn.LayerNorm(channels)
        self.attention = WindowAttention(channels, heads, config.window)
        self.norm2 = nn.LayerNorm(channels)
        self.expand = nn.Linear(channels, config.mlp_ratio * channels)
        self.contract = nn.Linear(config.mlp_ratio * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + drop_path(self._attended(self.norm1(x)), self.drop, self.training)
        return x + drop_path(self.contract(F.gelu(self.expand(self.norm2(x)))), self.drop, self.training)

    def _attended(self, x: Tensor) -> Tensor:
        _, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, -w % self.side, 0, -h % self.side))
        height, width = x.shape[1:3]
        mask = None
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
            mask = shift_mask(height, width, self.side, self.shift, x.device)
        x = from_windows(self.attention(to_windows(x, self.side), mask), self.side, height, width)
        if self.shift:
            x = x.roll((self.shift, self.shift), (1, 2))
        return x[:, :h, :w]


class PatchMerging(nn.Module):
    """Each 2 x 2 tokens joined, normed, and narrowed.  (B, H, W, C) -> (B, H/2, W/2, 2C), H and W even"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]                    # down first, as released
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Swin(nn.Module):
    """Images -> (C{first_output}, .., C5). `channels` and `strides` tell what comes out.

    Every stage has its output's norm, so that weights keep their places; those before `first_output` are not read, and
    do not train.
    Raises ValueError when `first_output` is none of 2..5.
    """

    def __init__(self, config: SwinConfig, first_output: int = 3) -> None:
        super().__init__()
        if not 2 <= first_output <= 5:
            raise ValueError(f"Swin: first_output is {first_output}, expected 2..5: it gives C2 to C5")
        widths = [config.embed_dim * 2**i for i in range(4)]
        self.first_output = first_output
        self.channels = tuple(widths[first_output - 2 :])
        self.strides = (4, 8, 16, 32)[first_output - 2 :]
        self.embed = nn.Conv2d(3, config.embed_dim, 4, stride=4)
        self.embed_norm = nn.LayerNorm(config.embed_dim)
        rates = iter(torch.linspace(0, config.drop_path, sum(config.depths), device="cpu").tolist())
        self.stages = nn.ModuleList(
            nn.ModuleList(SwinBlock(width, heads, bool(j % 2), next(rates), config) for j in range(depth))
            for width, heads, depth in zip(widths, config.heads, config.depths, strict=True)
        )
        self.merges = nn.ModuleList(PatchMerging(width) for width in widths[:-1])
        self.norms = nn.ModuleList(nn.LayerNorm(width) for width in widths)
        self.norms[: first_output - 2].requires_grad_(False)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        x = self.embed_norm(self.embed(images).permute(0, 2, 3, 1))                     # (B, H/4, W/4, e)
        outputs = []
        for i, stage in enumerate(self.stages):
            if i:
                x = self.merges[i - 1](x)
            for block in stage:
                x = block(x)
            if i >= self.first_output - 2:
                outputs.append(self.norms[i](x).permute(0, 3, 1, 2).contiguous())
        return tuple(outputs)
