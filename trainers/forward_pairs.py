"""Step 1 of training on pairs that go forward in time: which frame follows which, and what a still's next one is.

In:     `FrameIndex` (trainers/frames.py) of videos, of stills, or of both (trainers/mixture.py)
Out:    `ForwardPairSampler`: an endless, seeded sequence of `PairDraw`, each a function of (seed, position) alone
State:  the position, one integer
Source: TLTM specification 1.2 (the later frame among the next three, those without objects left out), 1.4 (a still's
        later frame is the still moved). The later frame comes first in a draw: the network detects in it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from operators.errors import DatasetError
from trainers.augment import Augment
from trainers.frames import EpochSampler, FrameAnnotations, FrameIndex, lying_or_standing
from trainers.pairs import PairDraw
from trainers.pseudo import PseudoConfig, PseudoSampler


class ForwardPairSampler(EpochSampler[PairDraw]):
    """An epoch shows every usable frame as the earlier of a pair, as often as the index repeats it.

    Of videos, the later one is drawn evenly from the usable frames at most `max_interval` stored frames on (None: to
    the video's end); frames that none follows so near are no item. The index's stills, or without any all frames where
    `pseudo` is set, are moved instead. Both frames look alike: `augment` is drawn once. `group`: see EpochSampler.
    Raises DatasetError where there is no pair at all, ValueError for stills without `pseudo`.
    """

    def __init__(
        self, index: FrameIndex, *, max_interval: int | None, pseudo: PseudoConfig | None, augment: Augment, seed: int,
        rank: int = 0, world_size: int = 1, group: int | None = None,
    ) -> None:  # fmt: skip
        if index.stills and pseudo is None:
            raise ValueError("stills move by pseudo, expected settings of it")
        self.index, self.max_interval, self.augment = index, max_interval, replace(augment, flip_sync=True)
        self._motion = None
        if pseudo is not None:
            self._motion = PseudoSampler(index, frames=2, pseudo=pseudo, augment=self.augment, seed=seed)
        self._times = [np.array([frame.frame for frame in usable]) for usable in index.videos]
        self._items = [(v, i) for v, i in index.place if self._moves(v) or self._last(v, i) > i]
        if not self._items:
            raise DatasetError(f"{index.dataset.path}: no frame with objects has another at most {max_interval} frames "
                               "after it: no pair to train on. Raise data.max_interval.")  # fmt: skip
        shapes = None if group is None else lying_or_standing(index, self._items)
        super().__init__(
            len(self._items), seed=seed, rank=rank, world_size=world_size, shapes=shapes, group=group or 1
        )

    def _draw(self, item: int, rng: np.random.Generator) -> PairDraw:
        video, i = self._items[item]
        usable = self.index.videos[video]
        if self._moves(video):
            return self._moved(usable[i], rng)
        j = int(rng.integers(i + 1, self._last(video, i), endpoint=True))
        look = self.augment.draw(rng, frames=2)
        return PairDraw((usable[j], usable[i]), look.flips[0], look.scales, look.changes)

    def _moved(self, still: FrameAnnotations, rng: np.random.Generator) -> PairDraw:
        drawn = self._motion.of(still, rng)
        before, after = drawn.frames
        return PairDraw((after, before), drawn.flips[0], drawn.scales, drawn.changes[::-1])

    def _moves(self, video: int) -> bool:
        """Whether frames of this video are moved, not followed."""
        if not self.index.stills:
            return self._motion is not None
        return self.index.videos[video][0].video.id in self.index.stills

    def _last(self, video: int, i: int) -> int:
        """Position among the usable frames of the last that is near enough after the i-th; i where there is none."""
        times = self._times[video]
        if self.max_interval is None:
            return len(times) - 1
        return int(np.searchsorted(times, times[i] + self.max_interval, side="right")) - 1
