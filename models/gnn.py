"""Step 7, objects: which object of this frame is which one known before, by messages along a bipartite graph.

In:     vectors of N objects known before and of M of this frame, (.., N, D) and (.., M, D)
Out:    edge logits (.., N, M); their sigmoid is the probability that two are the same object
State:  none
Limits: N x M x 128 numbers at once: 26 MB for 50 objects and 1000 known ones
Source: TLTM specification 2.10. As released: messages go from the objects of this frame to those known before, are
        summed over all of them, and those known before alone are updated. The paper's equation 4 sums over i != j.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.losses import at_least_float32


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )


def of_pairs(layer: nn.Linear, a: Tensor, b: Tensor) -> Tensor:
    """`layer` of [a_i, b_j] for all pairs, at the price of N + M rows instead of N x M.
    (.., N, D), (.., M, D) -> (.., N, M, H)"""
    first, second = layer.weight.split([a.shape[-1], b.shape[-1]], dim=1)
    return F.linear(a, first)[..., :, None, :] + F.linear(b, second, layer.bias)[..., None, :, :]


class ObjectGraph(nn.Module):
    """Edges, nodes and scores by small networks; `rounds` of messages with the same weights."""

    def __init__(self, dim: int, hidden: int, rounds: int = 1) -> None:
        super().__init__()
        self.rounds = rounds
        self.edge_mlp = _mlp(2 * dim, hidden, hidden)
        self.node_mlp = _mlp(dim + hidden, hidden, dim)
        self.scorer = nn.Sequential(nn.Linear(2 * dim, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def forward(self, known: Tensor, current: Tensor, present: Tensor | None = None) -> Tensor:
        """(.., N, D), (.., M, D) -> logits (.., N, M).

        `present` (.., M) tells which of the M are objects, where rows of unequal length share a batch: the others send
        no message, and their columns say nothing. N or M may be 0.
        """
        nodes = known
        for _ in range(self.rounds):
            nodes = nodes + self.node_mlp(torch.cat([nodes, self._messages(nodes, current, present)], dim=-1))
        return self.scorer[1:](of_pairs(self.scorer[0], nodes, current)).squeeze(-1)

    def _messages(self, nodes: Tensor, current: Tensor, present: Tensor | None) -> Tensor:
        """What each of the N hears of the M: (.., N, H)."""
        edges = self.edge_mlp[1:](of_pairs(self.edge_mlp[0], nodes, current))                     # (.., N, M, H)
        if present is not None:
            edges = edges * present[..., None, :, None]
        return edges.sum(-2)


def side_by_side(rows: Tensor, image: Tensor, images: int) -> tuple[Tensor, Tensor]:
    """Rows of a list, each of one of `images`, as one table an image, filled up with zeros.

    (R, D), (R,) rising -> (images, most, D), and which of its rows are there (images, most).
    """
    count = torch.bincount(image, minlength=images)
    rank = torch.arange(len(rows), device=rows.device) - (count.cumsum(0) - count)[image]
    table = rows.new_zeros(images, int(count.max()), *rows.shape[1:])
    there = torch.arange(table.shape[1], device=rows.device) < count[:, None]
    return table.index_put((image, rank), rows), there


def edge_loss(logits: Tensor, same: Tensor, real: Tensor) -> Tensor:
    """Mean binary cross-entropy over the edges that are `real`, against whether both ends are the `same` object.
    (..) x3 -> (); 0 for no edge"""
    logits = at_least_float32(logits)
    losses = F.binary_cross_entropy_with_logits(logits, same.to(logits.dtype), reduction="none")
    return torch.where(real, losses, 0.0).sum() / real.sum().clamp(min=1)
