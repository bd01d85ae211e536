"""Step 1 of training on pairs: which two frames are seen together.

In:     `FrameIndex` (trainers/frames.py)
Out:    `PairSampler`: an endless, seeded sequence of `PairDraw`, each sample a function of (seed, position) alone
State:  the position, one integer
Source: CrossVIS specification 1.5 (the reference within T frames).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from trainers.frames import EpochSampler, FrameAnnotations, FrameIndex


@dataclass(frozen=True)
class PairDraw:
    """One training sample: a key frame, its reference, and the draw both share."""

    frames: tuple[FrameAnnotations, FrameAnnotations]
    flip: bool

    @property
    def flips(self) -> tuple[bool, ...]:
        return self.flip, self.flip

    @property
    def scales(self) -> None:
        """As the network has its input in use."""
        return None


class PairSampler(EpochSampler[PairDraw]):
    """An epoch shows every usable frame once as the key frame.

    `max_interval` T: the reference lies at most T stored frames away, either side; None: anywhere in the video.
    """

    def __init__(
        self, index: FrameIndex, *, max_interval: int | None, flip: float, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        super().__init__(len(index), seed=seed, rank=rank, world_size=world_size)
        self.index = index
        self.max_interval = max_interval
        self.flip = flip

    def _draw(self, item: int, rng: np.random.Generator) -> PairDraw:
        video, i = self.index.place[item]
        usable = self.index.videos[video]
        low, high = self._reach(usable, i)
        if high - low == 1:
            j = i
        else:
            j = int(rng.integers(low, high - 1))
            j += j >= i                                     # any but the key frame itself
        return PairDraw((usable[i], usable[j]), bool(rng.random() < self.flip))

    def _reach(self, usable: list[FrameAnnotations], i: int) -> tuple[int, int]:
        """Half-open range of positions among the usable frames that are near enough to the i-th."""
        if self.max_interval is None:
            return 0, len(usable)
        times = np.array([f.frame for f in usable])
        t = usable[i].frame
        return (
            int(np.searchsorted(times, t - self.max_interval)),
            int(np.searchsorted(times, t + self.max_interval, side="right")),
        )
