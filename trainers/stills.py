"""Step 1 of training on stills: every usable frame by itself.

In:     `FrameIndex` (trainers/frames.py), of COCO images, each a video of one frame, or of the frames of videos
Out:    `StillSampler`: an endless, seeded sequence of `Draw`s of one frame, a function of (seed, position) alone
State:  the position, one integer
Source: CrossVIS specification 3.8 (pre-training on COCO)
"""

from __future__ import annotations

import numpy as np

from trainers.augment import Augment
from trainers.frames import Draw, EpochSampler, FrameIndex, lying_or_standing


class StillSampler(EpochSampler[Draw]):
    """An epoch shows every usable frame once. `group`: see EpochSampler."""

    def __init__(
        self, index: FrameIndex, *, augment: Augment, seed: int, rank: int = 0, world_size: int = 1,
        group: int | None = None,
    ) -> None:  # fmt: skip
        shapes = None if group is None else lying_or_standing(index, index.place)
        super().__init__(len(index), seed=seed, rank=rank, world_size=world_size, shapes=shapes, group=group or 1)
        self.index, self.augment = index, augment

    def _draw(self, item: int, rng: np.random.Generator) -> Draw:
        video, i = self.index.place[item]
        look = self.augment.draw(rng, frames=1)
        return Draw((self.index.videos[video][i],), look.flips, look.scales, look.changes)
