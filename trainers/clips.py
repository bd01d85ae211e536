"""Step 1 of training on clips: which T frames of a video are seen one after the other.

In:     `FrameIndex` (trainers/frames.py), by the rule `has_area`
Out:    `ClipSampler`: an endless, seeded sequence of `ClipDraw`, each sample a function of (seed, position) alone
State:  the position, one integer
Source: IAI specification 1. A clip always goes forward in time. Of the release's grouping by orientation nothing is
        kept: it was in effect random (specification 8, 14), so clips lie in a batch as they are drawn.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from trainers.frames import EpochSampler, FrameAnnotations, FrameIndex

ITEMS_PER_VIDEO = 5
"""In an epoch; however long the video, however long the clips."""
MAX_GAP = 3
"""Places among the usable frames from one frame of a clip to the next."""


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Sizes of the resized frame, both sides drawn evenly from whole numbers, either end included, and independently.
    The defaults are IAI's as released."""

    short_side: tuple[int, int] = (360, 480)
    """Smallest and largest; `model.input` says the size in use. A wider range: calmer towards object size; cost grows
    with the square."""
    long_side: tuple[int, int] = (649, 960)
    """Of the limit of the long side."""
    each: Literal["clip", "frame"] = "clip"
    """What is drawn for. `frame`: an object changes its size from frame to frame, as in IAI's settings for OVIS."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("short_side", self.short_side), ("long_side", self.long_side)):
            if not 1 <= low <= high:
                raise ValueError(f"{name} is {[low, high]}, expected the smallest and the largest, from 1 on")

    def draw(self, rng: np.random.Generator, frames: int) -> tuple[tuple[int, int], ...]:
        """(short, long) of every frame of a clip."""
        times = 1 if self.each == "clip" else frames
        drawn = [(int(rng.integers(*self.short_side, endpoint=True)), int(rng.integers(*self.long_side, endpoint=True)))
                 for _ in range(times)]
        return tuple(drawn * (frames // times))


@dataclass(frozen=True)
class ClipDraw:
    """One training sample: T frames of a video in order, and what is done to each."""

    frames: tuple[FrameAnnotations, ...]
    flips: tuple[bool, ...]
    """T: whether the frame is mirrored."""
    scales: tuple[tuple[int, int], ...] | None
    """T: (short, long) side to resize to; None: as the network has its input in use."""


class ClipSampler(EpochSampler[ClipDraw]):
    """An epoch has five items for every video with a usable frame.

    `flip` is the probability that a frame is mirrored: each for itself, as released, or all of a clip alike where
    `flip_sync`. Raises ValueError for clips of no frame.
    """

    def __init__(
        self, index: FrameIndex, *, frames: int, flip: float, flip_sync: bool, scale: ScaleConfig | None, seed: int,
        rank: int = 0, world_size: int = 1,
    ) -> None:  # fmt: skip
        if frames < 1:
            raise ValueError(f"clips of {frames} frames, expected 1 or more")
        super().__init__(ITEMS_PER_VIDEO * len(index.videos), seed=seed, rank=rank, world_size=world_size)
        self.index, self.frames = index, frames
        self.flip, self.flip_sync = flip, flip_sync
        self.scale = scale

    def _draw(self, item: int, rng: np.random.Generator) -> ClipDraw:
        usable = self.index.videos[item % len(self.index.videos)]
        frames = tuple(usable[place % len(usable)] for place in self._places(len(usable), rng))
        flips = rng.random(1 if self.flip_sync else self.frames) < self.flip
        scales = None if self.scale is None else self.scale.draw(rng, self.frames)
        return ClipDraw(frames, tuple(np.broadcast_to(flips, self.frames).tolist()), scales)

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
