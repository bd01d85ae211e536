"""A YouTube-VIS dataset file: videos, categories and object tracks (youtube_vis_entries.py), checked when read.

In:     the JSON that training, validation and test sets of YouTube-VIS 2019, 2021 and OVIS come as
Out:    Dataset, frozen; its masks stay as they are in the file until asked for
State:  none
Limits: those of json_files.py and youtube_vis_entries.py. Masks are checked when they are used: a file of 3,500 tracks
        and 126,000 frames is read in 0.7 s, and checking every run would make that 2 s, or 7 s more for uncompressed
        ones
Source: CrossVIS specification 1.2 and 1.3
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from operators.errors import DatasetError
from operators.json_files import read_json
from operators.youtube_vis_entries import (
    Annotation,
    Category,
    Video,
    kind_of,
    list_of,
    parse_annotation,
    parse_category,
    parse_video,
)
from operators.youtube_vis_rle import Rle, segmentation_to_rle, segmentations_to_rles

__all__ = ["Annotation", "Category", "Dataset", "Video", "read_dataset"]


@dataclass(frozen=True)
class Dataset:
    """A whole file. Videos and categories by ascending id, annotations in the order of the file."""

    path: Path
    image_root: Path | None
    videos: tuple[Video, ...] = field(repr=False)
    categories: tuple[Category, ...] = field(repr=False)
    annotations: tuple[Annotation, ...] = field(repr=False)
    annotated: bool
    """False where the file has no annotations, or null, as those of validation and test sets."""
    num_left_out: int = 0
    """Annotations of categories that the file does not list; only a file read for evaluation may have them."""
    num_repeated: int = 0
    """Annotations whose id another one before them has; only in a file read for evaluation."""
    superseded: frozenset[int] = field(default=frozenset(), repr=False)
    """Ids whose last annotation was left out."""

    @cached_property
    def video_of(self) -> dict[int, Video]:
        return {video.id: video for video in self.videos}

    @cached_property
    def labels(self) -> dict[int, int]:
        """Category id -> 0-based class, in the order of the ids."""
        return {category.id: label for label, category in enumerate(self.categories)}

    @cached_property
    def annotations_of(self) -> dict[int, tuple[Annotation, ...]]:
        """Video id -> its annotations in file order, () for a video without any."""
        found: dict[int, list[Annotation]] = {video.id: [] for video in self.videos}
        for annotation in self.annotations:
            found[annotation.video_id].append(annotation)
        return {video_id: tuple(annotations) for video_id, annotations in found.items()}

    def frame_path(self, video: Video, frame: int) -> Path:
        """Where a frame's image lies. Raises DatasetError where the dataset was read without an image root."""
        if self.image_root is None:
            raise DatasetError(f"{self.path}: was read without its folder of images, which is needed here.")
        return self.image_root / video.file_names[frame]

    def mask(self, annotation: Annotation, frame: int) -> Rle | None:
        """The mask in one frame as compressed RLE, None where there is none. Raises DatasetError if it is damaged."""
        video = self.video_of[annotation.video_id]
        where = f"{self._where(annotation)}, frame {frame}"
        return segmentation_to_rle(annotation.segmentations[frame], video.height, video.width, where)

    def masks(self, annotation: Annotation) -> list[Rle | None]:
        """`mask` for all frames of the video."""
        video = self.video_of[annotation.video_id]
        where = self._where(annotation)
        return segmentations_to_rles(
            annotation.segmentations, video.height, video.width, lambda frame: f"{where}, frame {frame}"
        )

    def _where(self, annotation: Annotation) -> str:
        return f"{self.path}: video {annotation.video_id}, annotation {annotation.id}"


def read_dataset(path: Path | str, *, image_root: Path | str | None = None, for_evaluation: bool = False) -> Dataset:
    """Read and check a YouTube-VIS file; a file without annotations gives a Dataset without any.

    `image_root` is the folder that `file_names` are relative to; with it, the first frame of each video must be there.
    `for_evaluation` asks no more of a file than the official evaluator does: boxes are not looked at, names of files
    and categories may be missing, lists may be shorter or longer than the video, ids of annotations may be repeated,
    masks may have another size than the video, and annotations of categories that are not listed are left out. What of
    this bears on scores is counted. Without it all that is an error.
    Raises DatasetError naming file, video, annotation and frame.
    """
    path = Path(path)
    raw = read_json(path, "a YouTube-VIS annotation file")
    if not isinstance(raw, dict):
        raise DatasetError(f"{path}: holds {kind_of(raw)}; expected an object with videos, categories, annotations.")
    where = str(path)
    videos = [parse_video(entry, i, where, for_evaluation) for i, entry in enumerate(list_of(raw, "videos", where))]
    categories = [
        parse_category(entry, i, where, for_evaluation) for i, entry in enumerate(list_of(raw, "categories", where))
    ]
    _check_unique([video.id for video in videos], f"{path}: video id")
    _check_unique([category.id for category in categories], f"{path}: category id")
    by_id = {video.id: video for video in videos}
    annotated = raw.get("annotations") is not None
    entries = list_of(raw, "annotations", where) if annotated else []
    annotations = [parse_annotation(entry, i, where, by_id, for_evaluation) for i, entry in enumerate(entries)]
    if not for_evaluation:
        _check_unique([annotation.id for annotation in annotations], f"{path}: annotation id")
    dataset = Dataset(
        path=path,
        image_root=_checked_root(image_root, videos, path),
        videos=tuple(sorted(videos, key=lambda video: video.id)),
        categories=tuple(sorted(categories, key=lambda category: category.id)),
        annotations=tuple(annotations),
        annotated=annotated,
        num_repeated=len(annotations) - len({annotation.id for annotation in annotations}),
    )
    odd = [annotation for annotation in annotations if annotation.category_id not in dataset.labels]
    if not odd:
        return dataset
    if not for_evaluation:
        text = f"annotation {odd[0].id} has category_id {odd[0].category_id}, which no category has."
        raise DatasetError(f"{path}: {text}")
    return _without(dataset, odd)


def _without(dataset: Dataset, odd: Sequence[Annotation]) -> Dataset:
    last = {annotation.id: annotation for annotation in dataset.annotations}
    kept = tuple(annotation for annotation in dataset.annotations if annotation.category_id in dataset.labels)
    superseded = frozenset(annotation.id for annotation in odd if last[annotation.id] is annotation)
    return replace(dataset, annotations=kept, num_left_out=len(odd), superseded=superseded)


def _check_unique(ids: Sequence[int], what: str) -> None:
    seen: set[int] = set()
    for entry in ids:
        if entry in seen:
            raise DatasetError(f"{what} {entry} occurs more than once; ids must be unique.")
        seen.add(entry)


def _checked_root(image_root: Path | str | None, videos: Collection[Video], path: Path) -> Path | None:
    if image_root is None:
        return None
    root = Path(image_root)
    if not root.is_dir():
        raise DatasetError(f"{root}: is no folder; expected the images of {path}.")
    for video in videos:        # its first frame shows a wrong root; others are met when they are read
        if not video.file_names or not (root / video.file_names[0]).is_file():
            first = video.file_names[0] if video.file_names else "its first frame"
            raise DatasetError(f"{path}: video {video.id}: {first} is not in {root}. Is this the right image root?")
    return root
