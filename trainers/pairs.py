"""Step 1 of training: which pairs of frames are seen, in which order.

In:     a YouTube-VIS dataset
Out:    `PairSampler`: an endless, seeded sequence of `PairDraw`, each sample a function of (seed, position) alone
State:  the position, one integer: what a checkpoint keeps, so that a resumed run sees the same samples in order
Source: CrossVIS specification 1.3 (which frames are usable), 1.4 (identities), 1.5 (the reference within T frames).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from operators.errors import DatasetError
from operators.youtube_vis_data import Annotation, Dataset, Video


@dataclass(frozen=True)
class FrameAnnotations:
    """What is true of one usable frame, in pixels of the stored frame."""

    video: Video
    frame: int
    annotations: tuple[Annotation, ...]
    """Non-crowd, with a box in this frame."""

    @property
    def file_name(self) -> str:
        return self.video.file_names[self.frame]

    def boxes(self) -> np.ndarray:
        """(G, 4) float32 xyxy: the annotated boxes, not recomputed from masks."""
        boxes = np.array([a.bboxes[self.frame] for a in self.annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


@dataclass(frozen=True)
class PairDraw:
    """One training sample: a key frame, its reference, and the draw both share."""

    frames: tuple[FrameAnnotations, FrameAnnotations]
    flip: bool


class FrameIndex:
    """All usable frames of a dataset, grouped by video, and the label space of identities.

    Identities are all annotation tracks of the file, by rank of their ids (specification 1.4); `identity[id]` from 0.
    Raises DatasetError when no frame is usable.
    """

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.identity = {id: rank for rank, id in enumerate(sorted(a.id for a in dataset.annotations))}
        self.videos = [
            usable
            for video in dataset.videos
            if (usable := _usable_frames(video, [a for a in dataset.annotations_of[video.id] if not a.iscrowd]))
        ]
        if not self.videos:
            raise DatasetError("the dataset has no frame with an annotation: nothing to train on.")
        sizes = [len(usable) for usable in self.videos]
        self.place = [(v, i) for v, size in enumerate(sizes) for i in range(size)]
        """Sample list: (video, position among its usable frames)."""

    def __len__(self) -> int:
        return len(self.place)


def _usable_frames(video: Video, annotations: list[Annotation]) -> list[FrameAnnotations]:
    frames = []
    for t in range(video.length):
        present = tuple(a for a in annotations if a.bboxes[t] is not None)
        if present:
            frames.append(FrameAnnotations(video, t, present))
    return frames


class PairSampler:
    """Reshuffled epochs over all usable frames, sharded over workers by rank without overlap.

    `max_interval` T: the reference lies at most T stored frames away, either side; None: anywhere in the video.
    """

    def __init__(
        self, index: FrameIndex, *, max_interval: int | None, flip: float, seed: int, rank: int = 0, world_size: int = 1
    ) -> None:
        self.index = index
        self.max_interval = max_interval
        self.flip = flip
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def draws(self, position: int) -> Iterator[PairDraw]:
        """Samples of this worker from its `position`-th on, for ever."""
        while True:
            overall = position * self.world_size + self.rank
            epoch, within = divmod(overall, len(self.index))
            order = np.random.default_rng([self.seed, epoch]).permutation(len(self.index))
            while within < len(order):
                yield self._draw(int(order[within]), overall)
                position += 1
                overall += self.world_size
                within += self.world_size

    def _draw(self, place: int, overall: int) -> PairDraw:
        rng = np.random.default_rng([self.seed, 1, overall])
        video, i = self.index.place[place]
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
