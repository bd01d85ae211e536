"""Step 1 of training, what all samplers share: which frames can be seen at all, and in which order samples come.

In:     a YouTube-VIS dataset, and a rule that says when an object can be learnt from
Out:    `FrameIndex`: the usable frames of every video; `EpochSampler`: reshuffled epochs, sharded over workers
State:  the position, one integer: what a checkpoint keeps, so that a resumed run sees the same samples in order
Source: CrossVIS specification 1.3 (`has_box`), 1.4 (identities over a whole set); IAI specification 1 (`has_area`)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from operators.errors import DatasetError
from operators.youtube_vis_data import Annotation, Dataset, Video

Draw = TypeVar("Draw")

Usable = Callable[[Annotation, int], bool]
"""Whether a track, crowds aside, can be learnt from in one frame of its video."""

MIN_SIDE = 1
"""Pixels of a box's sides under `has_area`."""


def has_box(annotation: Annotation, frame: int) -> bool:
    """The rule of CrossVIS."""
    return annotation.bboxes[frame] is not None


def has_area(annotation: Annotation, frame: int) -> bool:
    """The rule of IAI: a box of at least one pixel either way, and an area above 0."""
    box, area = annotation.bboxes[frame], annotation.areas[frame]
    return box is not None and area is not None and area > 0 and min(box[2:]) >= MIN_SIDE


@dataclass(frozen=True)
class FrameAnnotations:
    """What is true of one usable frame, in pixels of the stored frame."""

    video: Video
    frame: int
    annotations: tuple[Annotation, ...]
    """Non-crowd, usable in this frame, in the order of the file."""

    @property
    def file_name(self) -> str:
        return self.video.file_names[self.frame]

    def boxes(self) -> np.ndarray:
        """(G, 4) float32 xyxy: the annotated boxes, not recomputed from masks."""
        boxes = np.array([a.bboxes[self.frame] for a in self.annotations], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        return boxes


class FrameIndex:
    """All usable frames of a dataset, grouped by video, and the label space of identities.

    Identities are all annotation tracks of the file, by rank of their ids (CrossVIS specification 1.4);
    `identity[id]` from 0. Raises DatasetError when no frame is usable.
    """

    def __init__(self, dataset: Dataset, usable: Usable = has_box) -> None:
        self.dataset = dataset
        self.identity = {id: rank for rank, id in enumerate(sorted(a.id for a in dataset.annotations))}
        self.videos = [
            frames
            for video in dataset.videos
            if (frames := _usable_frames(video, [a for a in dataset.annotations_of[video.id] if not a.iscrowd], usable))
        ]
        """Videos with a usable frame, by ascending id; their usable frames in order."""
        if not self.videos:
            raise DatasetError("the dataset has no frame with an annotation: nothing to train on.")
        sizes = [len(usable) for usable in self.videos]
        self.place = [(v, i) for v, size in enumerate(sizes) for i in range(size)]
        """Every usable frame: (video, position among its usable frames)."""

    def __len__(self) -> int:
        return len(self.place)


def _usable_frames(video: Video, annotations: list[Annotation], usable: Usable) -> list[FrameAnnotations]:
    frames = []
    for t in range(video.length):
        present = tuple(a for a in annotations if usable(a, t))
        if present:
            frames.append(FrameAnnotations(video, t, present))
    return frames


class EpochSampler(Generic[Draw]):
    """Reshuffled epochs over `epoch_size` items, sharded over workers by rank without overlap: an endless, seeded
    sequence in which each sample is a function of (seed, position) alone."""

    def __init__(self, epoch_size: int, *, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.epoch_size = epoch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size

    def draws(self, position: int) -> Iterator[Draw]:
        """Samples of this worker from its `position`-th on, for ever."""
        while True:
            overall = position * self.world_size + self.rank
            epoch, within = divmod(overall, self.epoch_size)
            order = np.random.default_rng([self.seed, epoch]).permutation(self.epoch_size)
            while within < len(order):
                yield self._draw(int(order[within]), np.random.default_rng([self.seed, 1, overall]))
                position += 1
                overall += self.world_size
                within += self.world_size

    def _draw(self, item: int, rng: np.random.Generator) -> Draw:
        """The sample of an item, 0 to epoch_size - 1; `rng` is this sample's own."""
        raise NotImplementedError
