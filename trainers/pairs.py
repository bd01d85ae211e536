"""Step 1 of training on pairs: which two frames are seen together.

In:     `FrameIndex` (trainers/frames.py)
Out:    `PairSampler`: an endless, seeded sequence of `PairDraw`, each sample a function of (seed, position) alone
State:  the position, one integer
Source: CrossVIS specification 1.5 (the reference within T frames), 1.6 (identical parameters for both).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from trainers.augment import Augment, Changes
from trainers.frames import EpochSampler, FrameAnnotations, FrameIndex, lying_or_standing


@dataclass(frozen=True)
class PairDraw:
    """One training sample: a key frame, its reference, and the draw both share."""

    frames: tuple[FrameAnnotations, FrameAnnotations]
    flip: bool
    scales: tuple[tuple[int, int], ...] | None = None
    """(short, long) side to resize each to, alike; None: as the network has its input in use."""
    changes: tuple[Changes, ...] | None = None
    """Of each, alike; None: none."""

    @property
    def flips(self) -> tuple[bool, ...]:
        return self.flip, self.flip


class PairSampler(EpochSampler[PairDraw]):
    """An epoch shows every usable frame once as the key frame.

    `max_interval` T: the reference lies at most T stored frames away, either side; None: anywhere in the video. Both
    frames look alike: `augment` is drawn once, its own `flip` and `flip_sync` aside. `group`: see EpochSampler.
    """

    def __init__(
        self, index: FrameIndex, *, max_interval: int | None, flip: float, seed: int, rank: int = 0,
        world_size: int = 1, augment: Augment | None = None, group: int | None = None,
    ) -> None:  # fmt: skip
        shapes = None if group is None else lying_or_standing(index, index.place)
        super().__init__(len(index), seed=seed, rank=rank, world_size=world_size, shapes=shapes, group=group or 1)
        self.index = index
        self.max_interval = max_interval
        self.augment = replace(augment or Augment(flip=flip), flip=flip, flip_sync=True)
        self._times = [np.array([frame.frame for frame in usable]) for usable in index.videos]

    def _draw(self, item: int, rng: np.random.Generator) -> PairDraw:
        video, i = self.index.place[item]
        usable = self.index.videos[video]
        low, high = self._reach(video, i)
        if high - low == 1:
            j = i
        else:
            j = int(rng.integers(low, high - 1))
            j += j >= i                                     # any but the key frame itself
        look = self.augment.draw(rng, frames=2)
        return PairDraw((usable[i], usable[j]), look.flips[0], look.scales, look.changes)

    def _reach(self, video: int, i: int) -> tuple[int, int]:
        """Half-open range of positions among the usable frames that are near enough to the i-th."""
        times = self._times[video]
        if self.max_interval is None:
            return 0, len(times)
        return (
            int(np.searchsorted(times, times[i] - self.max_interval)),
            int(np.searchsorted(times, times[i] + self.max_interval, side="right")),
        )
