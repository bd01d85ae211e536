"""Which location of the other frame stands in for an instance: what crossover and pair-wise losses draw.

In:     the two slots of a batch of pairs, after assignment
Out:    indices of positives
State:  none; draws come from torch's global generator
Source: CrossVIS specification 3.4 steps 1 and 2; 5.1 ("one positive location of GT n, drawn uniformly")

Positives sorted by instance make each instance's a run; a place within the run is a draw.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from models.condinst import SlotOutputs

Place = Literal["random", "center"]


def draw_positives(slot: SlotOutputs, among: Tensor, wanted: Tensor, place: Place = "random") -> tuple[Tensor, Tensor]:
    """For each wanted instance (n,), counted over all images of `slot`, one of its positives among `among` (m,).

    Returns (n,) positives and (n,) bool, False where the instance has none (the positive is then meaningless).
    Draws are independent: two equal wishes may get different positives. `center` takes the most central one instead.
    """
    if not len(among) or not len(wanted):
        return torch.zeros_like(wanted), torch.zeros_like(wanted, dtype=torch.bool)
    if place == "center":
        among = among[torch.argsort(slot.found.centerness[among], descending=True, stable=True)]
    keys = slot.instances(among)
    order = torch.argsort(keys, stable=True)
    first = torch.searchsorted(keys[order], wanted)
    count = torch.searchsorted(keys[order], wanted, right=True) - first
    share = torch.rand(len(wanted), device=wanted.device) if place == "random" else torch.zeros_like(wanted)
    draw = (share * count).long().minimum(count - 1).clamp(min=0)
    return among[order[(first + draw).clamp(max=len(order) - 1)]], count > 0


def partners(source: SlotOutputs, other: SlotOutputs, counterparts: list[Tensor], chosen: Tensor) -> Tensor:
    """The instance of `other`, counted over all its images, that each positive of `source` shows; -1 for none.  (n,)"""
    theirs = torch.cat(counterparts)[source.instances(chosen)]
    return torch.where(theirs >= 0, theirs + other.offsets()[source.found.image[chosen]], -1)


def draw_partners(
    source: SlotOutputs, other: SlotOutputs, counterparts: list[Tensor], place: Place = "random"
) -> tuple[Tensor, Tensor]:
    """For each kept positive of `source` whose instance has kept positives in `other`: itself, and one of those.

    Two of (n,), indices of positives of `source` and of `other`; empty where no instance is in both.
    """
    wanted = partners(source, other, counterparts, source.kept)
    drawn, there = draw_positives(other, other.kept, wanted, place)
    return source.kept[there], drawn[there]
