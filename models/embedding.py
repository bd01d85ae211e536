"""Step 6, association: one vector per location, trained to tell all identities of the training set apart.

In:     P3..P7 (B, C, h_l, w_l)
Out:    embeddings (B, D, h_l, w_l), not normalised; in training, one logit per training identity
State:  none, but for the running statistics of the norm
Source: CrossVIS specification 2.9: `kappa * e / |e| . W + b` with kappa = sqrt(2) ln(M - 1), as released; the paper's
        equation 13 has the plain product `e . W`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.fcos import PRIOR_BIAS, FCOSConfig, init_head_conv, make_tower

Logits = Literal["scaled", "plain"]


@dataclass(frozen=True, kw_only=True)
class IdentityConfig:
    """What embeddings are trained on. The default is CrossVIS's global balanced embedding, as released."""

    targets: Literal["global", "pairwise"] = "global"
    """`global`: all identities of the training set, by a proxy each; steadier, needs the set's identities. `pairwise`:
    those of the other frame of the pair, as MaskTrack R-CNN; such networks associate by its rule."""
    loss: Literal["focal", "ce"] = "focal"
    """`focal` weighs the few positives against the many negatives; `ce` is a softmax over them."""
    logits: Logits = "scaled"
    """Of the proxies: `scaled` and biased as released, or the `plain` product of the paper's equation 13."""


class EmbeddingHead(nn.Module):
    """A third tower beside FCOS's two, then 1x1 and BatchNorm. One norm for all levels, applied level by level."""

    def __init__(self, channels: int, dim: int, config: FCOSConfig) -> None:
        super().__init__()
        self.tower = make_tower(channels, config.tower_convs, config)
        self.project = init_head_conv(nn.Conv2d(channels, dim, 1))
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        return [self.norm(self.project(self.tower(level))) for level in levels]


class IdentityProxies(nn.Module):
    """One learnt proxy per training identity; training only.  embeddings (N, D) -> logits (N, M)"""

    def __init__(self, dim: int, num_identities: int, logits: Logits = "scaled") -> None:
        super().__init__()
        if num_identities < 3:
            raise ValueError(f"the identity loss needs at least 3 training identities, got {num_identities}")
        scaled = logits == "scaled"
        self.scale = math.sqrt(2) * math.log(num_identities - 1) if scaled else None
        self.proxies = nn.Linear(dim, num_identities, bias=scaled)
        nn.init.normal_(self.proxies.weight, std=0.01)
        if scaled:
            nn.init.constant_(self.proxies.bias, PRIOR_BIAS)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.proxies(embeddings if self.scale is None else self.scale * F.normalize(embeddings, dim=1))
