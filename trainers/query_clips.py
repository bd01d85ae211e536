"""Step 1 of training on clips around a query frame, as CiCo's: each annotated frame once an epoch, with its neighbours.

In:     `FrameIndex` (trainers/frames.py), by the rule `has_area`
Out:    `QueryClipSampler`: an endless, seeded sequence of `Draw`s, each a function of (seed, position) alone
State:  the position, one integer
Limits: a sample whose window shows no object is drawn anew MAX_REDRAWS times at most
Source: Li & Zhang, CiCo, 2022, 3.4 (`consecutive`); CiCo specification 1.4 to 1.6, its release's `around` too
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from trainers.augment import Augment, Look
from trainers.frames import Draw, EpochSampler, FrameAnnotations, FrameIndex, lying_or_standing
from trainers.prepared import Prepared, transform_boxes

QueryClips = Literal["consecutive", "around"]
MAX_REDRAWS = 50


class QueryClipSampler(EpochSampler[Draw]):
    """An epoch shows every usable frame once as the query. Augmentation is drawn once for a clip.

    `how`: `consecutive`, T frames in a row with the query in their middle, objects or not, shifted inward at the ends
    of a video; `around`, others of its usable frames within half a clip, as released. Where the window that is kept of
    enlarged frames shows no object in any of the T, another item is drawn. Raises ValueError for clips of no frame.
    """

    def __init__(
        self, index: FrameIndex, *, frames: int, how: QueryClips, augment: Augment, seed: int, rank: int = 0,
        world_size: int = 1, group: int | None = None,
    ) -> None:  # fmt: skip
        if frames < 1:
            raise ValueError(f"clips of {frames} frames, expected 1 or more")
        shapes = None if group is None else lying_or_standing(index, index.place)
        super().__init__(len(index), seed=seed, rank=rank, world_size=world_size, shapes=shapes, group=group or 1)
        self.index, self.frames, self.how, self.augment = index, frames, how, augment

    def _draw(self, item: int, rng: np.random.Generator) -> Draw:
        for _ in range(MAX_REDRAWS):
            video, place = self.index.place[item]
            query, usable = self.index.videos[video][place], self.index.videos[video]
            if self.how == "consecutive":
                frames = in_a_row(query, usable, self.frames)
            else:
                frames = around(query, usable, self.frames, rng)
            look = self.augment.draw(rng, self.frames)
            if shows_an_object(frames, look):
                break
            item = int(rng.integers(self.epoch_size))
        return Draw(frames, look.flips, look.scales, look.changes)


def in_a_row(query: FrameAnnotations, usable: list[FrameAnnotations], count: int) -> tuple[FrameAnnotations, ...]:
    """`count` consecutive frames of the query's video; of an even number one more lies before the query. A video
    that is shorter ends with its last frame again and again."""
    known = {frame.frame: frame for frame in usable}
    length = query.video.length
    first = min(max(query.frame - count // 2, 0), max(length - count, 0))
    times = [min(first + i, length - 1) for i in range(count)]
    return tuple(known.get(t, FrameAnnotations(query.video, t, ())) for t in times)


def around(
    query: FrameAnnotations, usable: list[FrameAnnotations], count: int, rng: np.random.Generator
) -> tuple[FrameAnnotations, ...]:
    """The query and `count` - 1 other usable frames of -ceil(count / 2) to ceil(count / 2) - 1 places from it, in order
    of time: for 3 frames two of those 2 before, 1 before and 1 behind. Where there are fewer they come again."""
    reach = -(-count // 2)
    near = [f for f in usable if -reach <= f.frame - query.frame < reach and f.frame != query.frame] or [query]
    order = np.resize(rng.permutation(len(near)), count - 1)
    return tuple(sorted([query, *(near[i] for i in order)], key=lambda frame: frame.frame))


def shows_an_object(frames: tuple[FrameAnnotations, ...], look: Look) -> bool:
    """Whether a box of any frame reaches into the window that is kept of it."""
    if look.changes is None or look.changes[0].window is None:      # of all frames alike: the query's objects are there
        return True
    stored = (frames[0].video.height, frames[0].video.width)
    place = look.changes[0].window.place(stored)
    kept = [transform_boxes(Prepared(frame, *place, stored, False, look.changes[0], {})) for frame in frames]
    return any(bool((boxes[:, 2:] > boxes[:, :2]).all(1).any()) for boxes in kept)
