"""What a clip teaches IAI of identities: the code of every instance in every frame, and the map painted into memory.

In:     the ground truth of T frames of B clips; identities count the instances of a clip from 0
Out:    the same with codes for identities (`coded`): N-1 where an instance is new, its own identity later;
        labels (B, Hp, Wp) of a finished frame (`memory_labels`)
State:  none
Limits: a clip has at most N-1 identities; instances beyond are left out of it altogether, in the release a case of its
        own identity N-1 colliding with "new"
Source: IAI specification 0, 1. New instances are found by position: the release looks them up by the order in which a
        set is iterated, which mislabels some (specification 8, row 12).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from models.targets import FrameTargets

Frames = Sequence[list[FrameTargets]]
"""T lists of B frames."""


def without_surplus(frames: Frames, num_slots: int) -> list[list[FrameTargets]]:
    """Without instances whose identity is none of 0..N-2."""
    return [[_chosen(one, one.identities < num_slots - 1) for one in frame] for frame in frames]


def _chosen(one: FrameTargets, kept: Tensor) -> FrameTargets:
    return FrameTargets(one.boxes[kept], one.labels[kept], one.identities[kept], one.masks[kept])


def coded(frames: Frames, num_slots: int) -> list[list[FrameTargets]]:
    """Codes for identities. An instance is new where the clip shows it first, so all of frame 1 are; after a gap it is
    itself. Identities must lie in 0..N-2."""
    rows = zip(*frames, strict=True)
    per_clip = [codes([one.identities for one in clip], num_slots) for clip in rows]               # B of T
    return [
        [FrameTargets(one.boxes, one.labels, clip[t], one.masks) for one, clip in zip(frame, per_clip, strict=True)]
        for t, frame in enumerate(frames)
    ]


def codes(identities: Sequence[Tensor], num_slots: int) -> list[Tensor]:
    """Of one clip: T of (G,) identities 0..N-2 -> T of (G,) codes, N-1 for new."""
    device = identities[0].device
    seen = torch.zeros(num_slots, dtype=torch.bool, device=device)
    new, out = torch.tensor(num_slots - 1, device=device), []
    for present in identities:
        out.append(torch.where(seen[present], present, new))
        seen = seen.index_fill(0, present, True)
    return out


def memory_labels(
    frame: Sequence[FrameTargets], num_slots: int, sizes: Sequence[tuple[int, int]] | None = None
) -> Tensor:
    """B frames of one padded size -> (B, Hp, Wp) int64: the identity of the instance there, N for none. Of several, the
    one with the smallest mask.

    With `sizes` (h, w), pixels beyond those of a frame become identity 0: a fault of the release, to repeat it.
    """
    labels = torch.stack([_painted(one, num_slots) for one in frame])
    for row, (h, w) in zip(labels, sizes or (), strict=False):
        row[h:] = 0
        row[:, w:] = 0
    return labels


def _painted(one: FrameTargets, background: int) -> Tensor:
    """(Hp, Wp)"""
    order = one.masks.sum((1, 2)).argsort(descending=True, stable=True)      # smallest last, to lie on top
    rank = torch.arange(1, len(one) + 1, device=order.device)[:, None, None]
    blank = torch.zeros(1, *one.masks.shape[1:], dtype=torch.int64, device=order.device)
    top = torch.cat([blank, one.masks[order] * rank]).amax(0)                # 0 where nobody is
    palette = torch.cat([order.new_full((1,), background), one.identities[order]])
    return palette[top]
