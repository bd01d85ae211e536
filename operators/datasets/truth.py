"""Ground truth of any format as one stream of videos: what `dataset convert`, `stats` and `show` work on.

In:     a YouTube-VIS or OVIS JSON here; DAVIS, MOTS and COCO in the modules named after them
Out:    Truth: the categories, and one VideoTruth after the other, its masks checked and compressed
State:  Notes alone: what a format could not say or hold, counted
Limits: a JSON is in memory as a whole, as it must be; of the masks made from it, those of one video
Source: CrossVIS specification 1.1 and 1.2
"""

from __future__ import annotations

import json
import os
import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pycocotools import mask as coco

from operators.errors import DatasetError
from operators.folders import is_inside
from operators.sources import free_name
from operators.youtube_vis_data import Annotation, Category, Dataset, Video, read_dataset
from operators.youtube_vis_entries import OCCLUSION_LABELS
from operators.youtube_vis_rle import MaskTrack, Rle

Progress = Callable[[int, int], None]


class Notes:
    """What a reader of the outcome should know: plain sentences, and kinds of loss with their number."""

    def __init__(self) -> None:
        self._sentences: dict[str, None] = {}
        self._counts: dict[str, tuple[int, str]] = {}

    def say(self, sentence: str) -> None:
        """Told once, however often it is said."""
        self._sentences[sentence] = None

    def count(self, what: str, where: str, number: int = 1) -> None:
        """Told as 'what: 12 (the first: where)'; a number of 0 is not told."""
        if number:
            so_far, first = self._counts.get(what, (0, where))
            self._counts[what] = so_far + number, first

    def number(self, what: str) -> int:
        return self._counts.get(what, (0, ""))[0]

    def lines(self) -> list[str]:
        return [*self._sentences, *(f"{what}: {n:,} (the first: {at})." for what, (n, at) in self._counts.items())]


@dataclass(frozen=True)
class TrackTruth:
    """One object over the T frames of its video; every tuple has T entries, None where the object is not there."""

    id: int
    """Unique over all videos of a Truth."""
    category_id: int
    iscrowd: bool
    masks: tuple[Rle | None, ...] = field(repr=False)
    """Compressed RLE of the video's size; may have no pixel."""
    bboxes: tuple[list[float] | None, ...] = field(repr=False)
    """[x, y, width, height] in pixels, as annotated where the format has boxes."""
    areas: tuple[float | None, ...] = field(repr=False)
    occlusion: tuple[str | None, ...] | None = field(default=None, repr=False)
    """OCCLUSION_LABELS; None where nobody labelled them."""

    @classmethod
    def of(cls, track_id: int, category_id: int, iscrowd: bool, masks: Sequence[Rle | None]) -> TrackTruth:
        """With the tight boxes and the areas of the masks; None for a mask without pixels."""
        bboxes: list[list[float] | None] = [None] * len(masks)
        areas: list[float | None] = [None] * len(masks)
        present = [frame for frame, mask in enumerate(masks) if mask is not None]
        if present:
            pixels = MaskTrack.of(masks).areas.tolist()
            for frame, box in zip(present, coco.toBbox([masks[frame] for frame in present]).tolist(), strict=True):
                if pixels[frame]:
                    bboxes[frame], areas[frame] = box, pixels[frame]
        return cls(track_id, category_id, iscrowd, tuple(masks), tuple(bboxes), tuple(areas))


@dataclass(frozen=True)
class VideoTruth:
    """One video of T frames and its tracks, in the order of the file."""

    id: int
    name: str
    """Safe as the name of a folder, and unlike that of every other video of the Truth."""
    width: int
    height: int
    file_names: tuple[str, ...] = field(repr=False)
    """T paths relative to `Truth.image_root`, whether or not there are such files."""
    tracks: tuple[TrackTruth, ...] = field(repr=False)

    @property
    def length(self) -> int:
        return len(self.file_names)


Read = Callable[[Collection[int] | None], Iterator[VideoTruth]]
"""The videos of these ids, in the order of the dataset; of None, all."""


@dataclass
class Truth:
    """An opened dataset. Iterating reads it, video by video; `notes` are complete when that is over."""

    path: Path
    categories: tuple[Category, ...]
    num_videos: int
    image_root: Path | None
    """Where images were found; None where none were."""
    read: Read = field(repr=False)
    notes: Notes = field(default_factory=Notes, repr=False)
    names: dict[int, str] = field(default_factory=dict, repr=False)
    """Video id -> VideoTruth.name, of all videos in the order in which they come."""

    def __iter__(self) -> Iterator[VideoTruth]:
        return self.read(None)

    def only(self, video_ids: Collection[int]) -> Iterator[VideoTruth]:
        """These videos alone, the others being passed over. Where ids of tracks are made up, they begin with these."""
        return self.read(video_ids)

    def each(self, progress: Progress | None = None) -> Iterator[VideoTruth]:
        """The videos; `progress` is called with those done and all of them."""
        for done, video in enumerate(self, start=1):
            yield video
            if progress:
                progress(done, self.num_videos)

    def image(self, video: VideoTruth, frame: int) -> Path | None:
        """Where a frame's image should lie; None where the images were not found.

        Raises DatasetError for a name that leads out of the folder of images.
        """
        name = video.file_names[frame]
        if not is_inside(name):
            raise DatasetError(f"{self.path}: video {video.id}, frame {frame} names the image {reprlib.repr(name)}, "
                               f"which leaves the folder of images; expected a path inside it.")  # fmt: skip
        return None if self.image_root is None else self.image_root / name


def unique_names(names: Sequence[str]) -> list[str]:
    """Names made safe for folders; the second of one name, capitals apart, is `name-2`."""
    taken: set[str] = set()
    return [free_name(name, taken) for name in names]


def open_youtube_vis(path: Path, image_root: Path | None = None) -> Truth:
    """A YouTube-VIS 2019 or 2021 JSON, or one of OVIS; without annotations, its videos have no tracks.

    Images are looked for in `image_root`, else beside the file, else in JPEGImages/ beside it; not finding any is no
    error here. Raises DatasetError naming file, video, annotation and frame; for damaged masks, while iterating.
    """
    dataset = read_dataset(path)
    levels = read_occlusion(dataset)
    names = dict(zip(dataset.video_of, unique_names([video.name for video in dataset.videos]), strict=True))
    root = find_images(path, [video.file_names[0] for video in dataset.videos], image_root)

    def videos(wanted: Collection[int] | None) -> Iterator[VideoTruth]:
        for video in dataset.videos:
            if wanted is not None and video.id not in wanted:
                continue
            tracks = tuple(_track(dataset, a, levels.get(a.id)) for a in dataset.annotations_of[video.id])
            yield VideoTruth(video.id, names[video.id], video.width, video.height, video.file_names, tracks)

    truth = Truth(Path(path), dataset.categories, len(dataset.videos), root, videos, names=names)
    if not dataset.annotated:
        truth.notes.say(f"{path} has no annotations, as validation and test files of YouTube-VIS.")
    return truth


def find_images(path: Path, firsts: Sequence[str], image_root: Path | None) -> Path | None:
    """The folder in which one of the files `firsts` lies: `image_root`, or else that of `path` or JPEGImages/ in it.

    `image_root` is taken as it is. Raises DatasetError where it is no folder.
    """
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise DatasetError(f"{image_root}: is no folder; expected the images of {path}.")
        return Path(image_root)
    beside = Path(path) if Path(path).is_dir() else Path(path).parent
    roots = (beside, beside / "JPEGImages")
    return next((root for root in roots if any(is_inside(n) and (root / n).is_file() for n in firsts)), None)


def read_occlusion(dataset: Dataset) -> dict[int, tuple[str | None, ...]]:
    """Annotation id -> OCCLUSION_LABELS of its frames; {} where the file of `dataset` has none, as YouTube-VIS.

    The file is read once more, all else in it being dropped at once. Raises DatasetError naming the annotation.
    """
    try:
        data = dataset.path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{dataset.path}: cannot be read ({error.strerror}).") from error
    if b'"occlusion"' not in data:
        return {}
    found: dict[int, Any] = {}

    def keep(entry: dict) -> None:
        """Nothing of an object is kept but this; a file that could be read once has its ids checked."""
        if entry.get("occlusion") is not None and type(entry.get("id")) is int and "segmentations" in entry:
            found[entry["id"]] = entry["occlusion"]

    json.loads(data, object_hook=keep)
    return {a.id: _levels(found[a.id], dataset.video_of[a.video_id], a, dataset.path)
            for a in dataset.annotations if a.id in found}  # fmt: skip


def _levels(levels: Any, video: Video, annotation: Annotation, path: Path) -> tuple[str | None, ...]:
    where = f"{path}: video {video.id}, annotation {annotation.id}"
    if not isinstance(levels, list) or len(levels) != video.length:
        raise DatasetError(f"{where}: occlusion is {reprlib.repr(levels)}; expected a list with an entry for each of "
                           f"the {video.length} frames.")  # fmt: skip
    for frame, level in enumerate(levels):
        if level is not None and level not in OCCLUSION_LABELS:
            raise DatasetError(f"{where}, frame {frame}: occlusion is {reprlib.repr(level)}; expected null or one of "
                               f"{', '.join(OCCLUSION_LABELS)}.")  # fmt: skip
    return tuple(levels)


def _track(dataset: Dataset, annotation: Annotation, levels: tuple[str | None, ...] | None) -> TrackTruth:
    return TrackTruth(
        annotation.id, annotation.category_id, annotation.iscrowd, tuple(dataset.masks(annotation)), annotation.bboxes,
        annotation.areas, levels,
    )  # fmt: skip


def relative_to(path: Path, folder: Path) -> str | None:
    """`path` as seen from `folder`, which it lies in or is; None where it does not."""
    path, folder = Path(os.path.abspath(path)), Path(os.path.abspath(folder))
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else None
