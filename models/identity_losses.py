"""The four forms of the embedding loss that CrossVIS's table 7 compares.

In:     slots after assignment, whose positives have embeddings (N, D)
Out:    one number
State:  none; draws come from torch's global generator
Source: CrossVIS specification 3.5 (global focal: CrossVIS itself, equations 13 and 14) and 5.1: global cross-entropy
        (equations 11 and 12), pair-wise cross-entropy (9 and 10), pair-wise focal. Unpublished, and chosen there: the
        embedding of a true instance is that of one of its positives, drawn uniformly; dot products are plain. Ours:
        a positive whose instance is in the other frame without a positive there is left out: neither known nor new.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from models.condinst import SlotOutputs
from models.crossover import draw_positives, partners
from models.embedding import IdentityProxies
from models.losses import at_least_float32, mean_or_zero, sigmoid_focal_loss

Loss = Literal["focal", "ce"]


def global_loss(slots: list[SlotOutputs], proxies: IdentityProxies, loss: Loss) -> Tensor:
    """Every positive of all slots against all M training identities: mean over positives of the sum over identities
    (focal), or of -ln softmax (ce). 0 without positives."""
    logits = proxies(torch.cat([embeddings_of(slot) for slot in slots]))                     # (N, M)
    labels = torch.cat([slot.of_instances("identities", _all(slot)) for slot in slots])              # (N,)
    if loss == "ce":
        return mean_or_zero(F.cross_entropy(logits, labels, reduction="none"))
    return sigmoid_focal_loss(logits, F.one_hot(labels, logits.shape[1])) / max(len(labels), 1)


def pairwise_loss(key: SlotOutputs, reference: SlotOutputs, counterparts: list[Tensor], loss: Loss) -> Tensor:
    """Every positive of `key` against one embedding of each instance of its own pair's reference frame.

    `ce`: softmax with an implicit zero for "new", mean of -ln p. `focal`: independent sigmoids, all targets 0 for a new
    instance, sum over instances, mean over positives. 0 without positives.
    """
    everyone = torch.arange(sum(len(t) for t in reference.targets), device=key.found.image.device)
    drawn, there = draw_positives(reference, _all(reference), everyone)                              # (G,)
    column = F.pad(there.cumsum(0), (0, 1))          # of an instance among the candidates, from 1; last, for -1: 0
    chosen = _all(key)
    wanted = partners(key, reference, counterparts, chosen)                                          # (N,), -1: new
    usable = F.pad(there, (0, 1), value=True)[wanted]
    chosen, labels = chosen[usable], column[wanted[usable]]
    candidates = embeddings_of(reference)[drawn[there]]                                      # (g, D)
    logits = embeddings_of(key)[chosen] @ candidates.T                                       # (N, g)
    same_pair = key.found.image[chosen][:, None] == reference.found.image[drawn[there]][None]        # (N, g)
    if loss == "ce":
        logits = F.pad(logits.masked_fill(~same_pair, -torch.inf), (1, 0))                           # (N, 1 + g)
        return mean_or_zero(F.cross_entropy(logits, labels, reduction="none"))
    truth = F.one_hot(labels, logits.shape[1] + 1)[:, 1:]
    return sigmoid_focal_loss(logits[same_pair], truth[same_pair]) / max(len(chosen), 1)


def embeddings_of(slot: SlotOutputs) -> Tensor:
    """(N, D) of all positives of a slot, in float32 at least: dot products of hundreds of terms follow."""
    return at_least_float32(slot.dense.embeddings[slot.found.image, slot.found.location])


def _all(slot: SlotOutputs) -> Tensor:
    return torch.arange(len(slot.found.image), device=slot.found.image.device)
