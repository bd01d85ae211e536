"""Step 1 of training, what all samplers share: which frames can be seen at all, and in which order samples come.

In:     a YouTube-VIS dataset, and a rule that says when an object can be learnt from
Out:    `FrameIndex`: the usable frames of every video; `EpochSampler`: reshuffled epochs, sharded over workers
State:  the position, one integer: what a checkpoint keeps, so that a resumed run sees the same samples in order
Source: CrossVIS specification 1.3 (`has_box`), 1.4 (identities over a whole set), 1.6 (frames grouped by shape); IAI
        specification 1 (`has_area`); TLTM specification 1.2 (`has_mask`; samples repeated by their source)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from operators.errors import DatasetError
from operators.youtube_vis_data import Annotation, Dataset, Video
from trainers.augment import Changes

Drawn = TypeVar("Drawn")

Usable = Callable[[Annotation, int], bool]
"""Whether a track, crowds aside, can be learnt from in one frame of its video."""

MIN_SIDE = 1
"""Pixels of a box's sides under `has_area`."""
MIN_BOX_SIDE = 1e-5
"""Pixels that a side of a box must be longer than once it is transformed."""


def has_box(annotation: Annotation, frame: int) -> bool:
    """The rule of CrossVIS."""
    return annotation.bboxes[frame] is not None


def has_area(annotation: Annotation, frame: int) -> bool:
    """The rule of IAI: a box of at least one pixel either way, and an area above 0."""
    box, area = annotation.bboxes[frame], annotation.areas[frame]
    return box is not None and area is not None and area > 0 and min(box[2:]) >= MIN_SIDE


def has_mask(annotation: Annotation, frame: int) -> bool:
    """The rule of TLTM."""
    return annotation.segmentations[frame] is not None and annotation.bboxes[frame] is not None


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


@dataclass(frozen=True)
class Draw:
    """One training sample: T frames of a video in order, and what is done to each."""

    frames: tuple[FrameAnnotations, ...]
    flips: tuple[bool, ...]
    """T: whether the frame is mirrored."""
    scales: tuple[tuple[int, int], ...] | None = None
    """T: (short, long) side to resize to; None: as the network has its input in use."""
    changes: tuple[Changes, ...] | None = None
    """T; None: none of any frame."""


class FrameIndex:
    """All usable frames of a dataset, grouped by video, and the label space of identities.

    Identities are all annotation tracks of the file, by rank of their ids (CrossVIS specification 1.4);
    `identity[id]` from 0. `repeats` says of videos, by id, how often an epoch shows each of their frames, once unless
    told; `stills` which are frames that no other follows. Raises DatasetError when no frame is usable.
    """

    def __init__(
        self, dataset: Dataset, usable: Usable = has_box, *, repeats: Mapping[int, int] | None = None,
        stills: frozenset[int] = frozenset(),
    ) -> None:  # fmt: skip
        self.dataset, self.stills = dataset, stills
        self.identity = {id: rank for rank, id in enumerate(sorted(a.id for a in dataset.annotations))}
        self.videos = [
            frames
            for video in dataset.videos
            if (frames := _usable_frames(video, [a for a in dataset.annotations_of[video.id] if not a.iscrowd], usable))
        ]
        """Videos with a usable frame, by ascending id; their usable frames in order."""
        if not self.videos:
            raise DatasetError("the dataset has no frame with an annotation: nothing to train on.")
        times = [(repeats or {}).get(seen[0].video.id, 1) for seen in self.videos]
        self.place = [(v, i) for v, seen in enumerate(self.videos) for i in range(len(seen)) for _ in range(times[v])]
        """Every usable frame as often as it is repeated: (video, position among its usable frames)."""

    def __len__(self) -> int:
        return len(self.place)


def _usable_frames(video: Video, annotations: list[Annotation], usable: Usable) -> list[FrameAnnotations]:
    frames = []
    for t in range(video.length):
        present = tuple(a for a in annotations if usable(a, t))
        if present:
            frames.append(FrameAnnotations(video, t, present))
    return frames


class EpochSampler(Generic[Drawn]):
    """Reshuffled epochs over `epoch_size` items, sharded over workers by rank without overlap: an endless, seeded
    sequence in which each sample is a function of (seed, position) alone.

    `shapes` (epoch_size,) int: the samples of a step, `group` over all workers, are of items of one shape, so that
    little is padded; but for the rest of each shape, at an epoch's end. None: as the shuffle has them.
    """

    def __init__(
        self, epoch_size: int, *, seed: int, rank: int = 0, world_size: int = 1, shapes: np.ndarray | None = None,
        group: int = 1,
    ) -> None:  # fmt: skip
        self.epoch_size = epoch_size
        self.seed, self.rank, self.world_size = seed, rank, world_size
        self.shapes, self.group = shapes, group

    def draws(self, position: int) -> Iterator[Drawn]:
        """Samples of this worker from its `position`-th on, for ever."""
        while True:
            overall = position * self.world_size + self.rank
            epoch, within = divmod(overall, self.epoch_size)
            order = self._order(epoch)
            while within < len(order):
                yield self._draw(int(order[within]), np.random.default_rng([self.seed, 1, overall]))
                position += 1
                overall += self.world_size
                within += self.world_size

    def _order(self, epoch: int) -> np.ndarray:
        """The items of an epoch as they are seen, (epoch_size,) int64."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.epoch_size)
        if self.shapes is None:
            return order
        begun = -epoch * self.epoch_size % self.group       # samples that the last step of the epoch before still takes
        rest = order[begun:]
        return np.concatenate([order[:begun], _grouped(rest, self.shapes[rest], self.group)])

    def _draw(self, item: int, rng: np.random.Generator) -> Drawn:
        """The sample of an item, 0 to epoch_size - 1; `rng` is this sample's own."""
        raise NotImplementedError


def lying_or_standing(index: FrameIndex, items: list[tuple[int, int]]) -> np.ndarray:
    """1 where the frame of an item (video, place) is wider than high, else 0.  (n,) int64"""
    return np.array([index.videos[v][i].video.width > index.videos[v][i].video.height for v, i in items], np.int64)


def _grouped(order: np.ndarray, shapes: np.ndarray, group: int) -> np.ndarray:
    """Items gathered into groups of one shape, each group where its last item stood; what fills none comes last.

    order (n,), shapes (n,) of each item in that order -> (n,)
    """
    ends = np.full(len(order), len(order))
    for shape in np.unique(shapes):
        places = np.flatnonzero(shapes == shape)
        whole = len(places) // group * group
        ends[places[:whole]] = np.repeat(places[group - 1 : whole : group], group)
    return order[np.argsort(ends, kind="stable")]
