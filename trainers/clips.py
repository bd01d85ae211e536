"""Step 1 of training on clips: which T frames of a video are seen one after the other.

In:     `FrameIndex` (trainers/frames.py), by the rule `has_area`
Out:    `ClipSampler`: an endless, seeded sequence of `Draw`, each sample a function of (seed, position) alone
State:  the position, one integer
Source: IAI specification 1. A clip always goes forward in time. Of the release's grouping by orientation nothing is
        kept: it was in effect random (specification 8, 14), so clips lie in a batch as they are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from trainers.augment import Augment, ScaleConfig
from trainers.frames import Draw, EpochSampler, FrameAnnotations, FrameIndex, lying_or_standing

ITEMS_PER_VIDEO = 5
"""In an epoch; however long the video, however long the clips."""
MAX_GAP = 3
"""Places among the usable frames from one frame of a clip to the next."""


class ClipSampler(EpochSampler[Draw]):
    """An epoch has five items for every video with a usable frame.

    `flip` is the probability that a frame is mirrored: each for itself, as released, or all of a clip alike where
    `flip_sync`. All else is drawn once for a clip, as `augment` says, but sizes where `scale` wants them for each
    frame. Raises ValueError for clips of no frame.
    """

    def __init__(
        self, index: FrameIndex, *, frames: int, flip: float, flip_sync: bool, scale: ScaleConfig | None, seed: int,
        rank: int = 0, world_size: int = 1, augment: Augment | None = None, group: int | None = None,
    ) -> None:  # fmt: skip
        if frames < 1:
            raise ValueError(f"clips of {frames} frames, expected 1 or more")
        items = [(i % len(index.videos), 0) for i in range(ITEMS_PER_VIDEO * len(index.videos))]
        shapes = None if group is None else lying_or_standing(index, items)
        super().__init__(len(items), seed=seed, rank=rank, world_size=world_size, shapes=shapes, group=group or 1)
        self.index, self.frames = index, frames
        self.augment = replace(augment or Augment(flip=flip), flip=flip, flip_sync=flip_sync, scale=scale)

    def _draw(self, item: int, rng: np.random.Generator) -> Draw:
        usable = self.index.videos[item % len(self.index.videos)]
        frames = tuple(usable[place % len(usable)] for place in self._places(len(usable), rng))
        look = self.augment.draw(rng, self.frames)
        return Draw(frames, look.flips, look.scales, look.changes)

    def _places(self, length: int, rng: np.random.Generator) -> list[int]:
        """T rising places among `length` usable frames, repeated from the first on where they are fewer than T."""
        length = max(length, self.frames)
        places = [int(rng.integers(length - self.frames + 1))]
        for still in range(self.frames - 1, 0, -1):
            room = length - places[-1] - still              # so far that the frames still to come find theirs
            places.append(places[-1] + int(rng.integers(1, min(MAX_GAP, room), endpoint=True)))
        return places


def clip_identities(frames: Iterable[FrameAnnotations]) -> dict[int, int]:
    """Annotation id -> identity in the clip: those seen in any of its frames, by ascending id from 0."""
    return {id: rank for rank, id in enumerate(sorted({a.id for frame in frames for a in frame.annotations}))}
