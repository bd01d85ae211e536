"""Attention of every token to a square window around its place in another frame, with learnt relative positions.

In:     queries, keys, values (B, n, D) of maps of h x w tokens, row by row
Out:    (B, n, D)
State:  none
Source: IAI specification 2.3, step 2, local. Per head, for query p and offset o = key - query of the window:
            logit = q_p . k_{p+o} / sqrt(d) + w_o . q_p + b_o        the relative term takes q unscaled
            out_p = sum_o softmax(logit)_o (v_{p+o} + r_o)           offsets outside of the map do not count

Keys are not gathered, which would take n x 225 x D numbers: all n x n products are one matrix product, of which each
query's window is looked up, and softmax weights are laid back into n x n for the values. One frame, D = 256, one core
of an EPYC: 2.0 ms for 12 x 20 tokens, 4.4 ms for 15 x 27, where gathering takes 203 and 397 ms.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor, nn

from models.losses import at_least_float32
from models.transformer import heads_of


class LocalAttention(nn.Module):
    """`heads` heads, windows of (2 `radius` + 1)^2, an output projection."""

    def __init__(self, dim: int, heads: int, radius: int) -> None:
        super().__init__()
        self.heads, self.radius = heads, radius
        width, offsets = dim // heads, (2 * radius + 1) ** 2
        self.relative_keys = nn.Parameter(torch.empty(heads, offsets, width))
        self.relative_bias = nn.Parameter(torch.empty(heads, offsets))
        self.relative_values = nn.Parameter(torch.empty(heads, offsets, width))
        self.projection = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.projection.weight)
        # Xavier's bounds for the shapes that the release keeps these in (specification 2.7): the keys as a 1x1
        # convolution of `width` inputs and `heads * offsets` outputs, the values as (1, heads, width, offsets, 1).
        bound = math.sqrt(6 / (width + heads * offsets))
        nn.init.uniform_(self.relative_keys, -bound, bound)
        nn.init.uniform_(self.relative_bias, -(width**-0.5), width**-0.5)
        bound = math.sqrt(6 / ((heads + 1) * width * offsets))
        nn.init.uniform_(self.relative_values, -bound, bound)

    def forward(self, queries: Tensor, keys: Tensor, values: Tensor, size: tuple[int, int]) -> Tensor:
        """`size` is (h, w). Softmax is computed in float32 at least."""
        q, k, v = (heads_of(x, self.heads) for x in (queries, keys, values))                     # (B, a, n, d)
        places, inside = window(*size, self.radius, queries.device)                            # (n, o) each
        places = places.expand(*q.shape[:2], -1, -1)                                           # (B, a, n, o)
        scores = (q @ k.transpose(2, 3)).gather(3, places) / math.sqrt(q.shape[3])
        scores = scores + (q @ self.relative_keys.transpose(1, 2) + self.relative_bias[:, None])
        weights = at_least_float32(scores).masked_fill(~inside, -torch.inf).softmax(3).to(v.dtype)
        spread = weights.new_zeros(*q.shape[:3], k.shape[2]).scatter_add(3, places, weights)   # (B, a, n, n)
        out = spread @ v + weights @ self.relative_values                                      # (B, a, n, d)
        return self.projection(out.transpose(1, 2).flatten(2))


@functools.lru_cache(maxsize=16)
@torch.inference_mode(False)        # kept for training too, wherever it is first asked for
def window(h: int, w: int, radius: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Each token's window: token at each of its offsets (n, o) int64, and whether that is on the map (n, o) bool.

    Offset (dy, dx) is column (dy + radius) * (2 radius + 1) + dx + radius. Off the map stands some token of the map.
    """
    step = torch.arange(-radius, radius + 1, device=device)
    y = torch.arange(h, device=device)[:, None, None, None] + step[:, None]                    # (h, 1, s, 1)
    x = torch.arange(w, device=device)[:, None, None] + step                                   # (w, 1, s)
    inside = (y >= 0) & (y < h) & (x >= 0) & (x < w)                                           # (h, w, s, s)
    places = y.clamp(0, h - 1) * w + x.clamp(0, w - 1)
    return places.reshape(h * w, -1), inside.reshape(h * w, -1)
