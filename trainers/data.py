"""Step 2 of training, its end: loaded frames to the batches that networks learn from.

In:     of `FrameLoader` (trainers/frame_loader.py) T image tensors (B, 3, Hp, Wp), all of one size, and T x B frames
Out:    `PairBatch`, `ClipBatch` or `StillBatch` (models/targets.py): images, targets per frame; of pairs also
        counterparts
State:  none of its own
Source: CrossVIS specification 1.6, 1.7: of pairs and stills, instances are dropped whose box or resized mask is empty.
        IAI specification 1: instances of clips stay, and their identities count from 0 in each clip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from models.inputs import InputConfig
from models.targets import ClipBatch, FrameTargets, PairBatch, StillBatch
from trainers.clips import clip_identities
from trainers.frame_loader import DrawT, FrameLoader, Loaded
from trainers.frames import FrameIndex


class PairLoader(FrameLoader[DrawT, PairBatch]):
    """Identities are those of the whole set."""

    keep_emptied = False

    def __init__(
        self, draws: Iterator[DrawT], index: FrameIndex, cfg: InputConfig, *, batch: int, device: torch.device,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(draws, index, cfg, batch=batch, frames=2, device=device, **settings)

    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        return self.index.identity

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> PairBatch:
        counterparts = [
            [_counterparts(one.ids, other.ids).to(self.device) for one, other in zip(slot, others, strict=True)]
            for slot, others in (slots, slots[::-1])
        ]
        return PairBatch(tuple(images), _targets_of(slots), tuple(counterparts), _sizes_of(slots))


class ClipLoader(FrameLoader[DrawT, ClipBatch]):
    """Identities are those of each clip. As released, an instance that resizing leaves nothing of stays, so that a
    frame does not forget who was in it."""

    keep_emptied = True

    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        return clip_identities(draw.frames)

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> ClipBatch:
        return ClipBatch(tuple(images), _targets_of(slots), tuple([one.padded for one in slot] for slot in slots))


class StillLoader(FrameLoader[DrawT, StillBatch]):
    """Draws of one frame. Identities are those of the whole set."""

    keep_emptied = False

    def __init__(
        self, draws: Iterator[DrawT], index: FrameIndex, cfg: InputConfig, *, batch: int, device: torch.device,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(draws, index, cfg, batch=batch, frames=1, device=device, **settings)

    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        return self.index.identity

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> StillBatch:
        return StillBatch(images[0], _targets_of(slots)[0], _sizes_of(slots))


def _targets_of(slots: list[list[Loaded]]) -> tuple[list[FrameTargets], ...]:
    return tuple([one.targets for one in slot] for slot in slots)


def _sizes_of(slots: list[list[Loaded]]) -> tuple[list[tuple[int, int]], ...]:
    """Before padding: which level a region is read from depends on its share of the image (models/area_regions.py)."""
    return tuple([one.kept for one in slot] for slot in slots)


def _counterparts(ids: np.ndarray, others: np.ndarray) -> torch.Tensor:
    """Where each of `ids` stands among `others`, -1 where it does not.  (G,) int64"""
    same = ids[:, None] == others[None]                                                           # (G, G')
    found = np.where(same.any(1), same.argmax(1), -1) if same.size else np.full(len(ids), -1)
    return torch.from_numpy(found.astype(np.int64))
