"""Step 6, association: one vector per location, trained to tell all identities of the training set apart.

In:     P3..P7 (B, C, h_l, w_l)
Out:    embeddings (B, D, h_l, w_l), not normalised; in training, one logit per training identity
Source: CrossVIS specification 2.9: `kappa * e / |e| . W + b` with kappa = sqrt(2) ln(M - 1), as released; the paper's
        equation 13 has the plain product.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from models.fcos import PRIOR_BIAS, FCOSConfig, init_head_conv, make_tower


class EmbeddingHead(nn.Module):
    """A third tower beside FCOS's two, then 1x1 and BatchNorm. One norm for all levels, applied level by level."""

    def __init__(self, channels: int, dim: int, config: FCOSConfig) -> None:
        super().__init__()
        self.tower = make_tower(channels, config.tower_convs, config.groups)
        self.project = init_head_conv(nn.Conv2d(channels, dim, 1))
        self.norm = nn.BatchNorm2d(dim)

    def forward(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        return [self.norm(self.project(self.tower(level))) for level in levels]


class IdentityProxies(nn.Module):
    """One learnt proxy per training identity; training only.  embeddings (N, D) -> logits (N, M)"""

    def __init__(self, dim: int, num_identities: int) -> None:
        super().__init__()
        if num_identities < 3:
            raise ValueError(f"the identity loss needs at least 3 training identities, got {num_identities}")
        self.scale = math.sqrt(2) * math.log(num_identities - 1)
        self.proxies = nn.Linear(dim, num_identities)
        nn.init.normal_(self.proxies.weight, std=0.01)
        nn.init.constant_(self.proxies.bias, PRIOR_BIAS)

    def forward(self, embeddings: Tensor) -> Tensor:
        return self.proxies(self.scale * F.normalize(embeddings, dim=1))
