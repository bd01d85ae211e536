"""A YouTube-VIS dataset file: videos, categories and object tracks, checked when read.

In:     the JSON that training, validation and test sets of YouTube-VIS 2019, 2021 and OVIS come as
Out:    Dataset, frozen; its masks stay as they are in the file until asked for
State:  none
Limits: frames of at most MAX_PIXELS pixels. Masks are checked when they are used: a file of 3,500 tracks and 126,000
        frames is read in 0.7 s, and checking every run would make that 2 s, or 7 s more for uncompressed ones.
Source: CrossVIS specification 1.2 and 1.3
"""

from __future__ import annotations

import json
import math
import reprlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from operators.errors import DatasetError
from operators.youtube_vis_rle import MAX_PIXELS, Rle, check_size, segmentation_to_rle, segmentations_to_rles

__all__ = ["Annotation", "Category", "Dataset", "Video", "read_dataset", "read_json", "segmentation_to_rle"]


@dataclass(frozen=True)
class Video:
    """One clip of `length` stored frames."""

    id: int
    width: int
    height: int
    length: int
    file_names: tuple[str, ...] = field(repr=False)
    """`length` paths relative to the image root; empty only where a file read for evaluation names none."""

    @property
    def name(self) -> str:
        """The folder of its frames, as the sets name their videos; 'video 7' where there is none."""
        folder = PurePosixPath(self.file_names[0]).parent.name if self.file_names else ""
        return folder or f"video {self.id}"


@dataclass(frozen=True)
class Category:
    id: int
    name: str


@dataclass(frozen=True)
class Annotation:
    """One object track; all three tuples have an entry per frame of its video, None where there is nothing."""

    id: int
    video_id: int
    category_id: int
    iscrowd: bool
    segmentations: tuple[dict | list | None, ...] = field(repr=False)
    """As in the file: RLE of either kind, or polygons. `Dataset.mask` gives them checked and compressed."""
    bboxes: tuple[list[float] | None, ...] = field(repr=False)
    """[x, y, width, height] in pixels; not None says that the object is in the frame (CrossVIS specification 1.3)."""
    areas: tuple[float | None, ...] = field(repr=False)


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
    `for_evaluation` asks no more of a file than the official evaluator does: `file_names` and `bboxes` may be missing,
    and annotations of categories that are not listed are left out, and counted. Without it they are errors.
    Raises DatasetError naming file, video, annotation and frame.
    """
    path = Path(path)
    raw = read_json(path, "a YouTube-VIS annotation file")
    if not isinstance(raw, dict):
        raise DatasetError(f"{path}: holds {_kind(raw)}; expected an object with videos, categories, annotations.")
    where = str(path)
    videos = [_video(entry, i, where, for_evaluation) for i, entry in enumerate(_list(raw, "videos", where))]
    categories = [_category(entry, i, where) for i, entry in enumerate(_list(raw, "categories", where))]
    _check_unique([video.id for video in videos], f"{path}: video id")
    _check_unique([category.id for category in categories], f"{path}: category id")
    by_id = {video.id: video for video in videos}
    known = {category.id for category in categories}
    annotated = raw.get("annotations") is not None
    entries = _list(raw, "annotations", where) if annotated else []
    annotations = [_annotation(entry, i, where, by_id, for_evaluation) for i, entry in enumerate(entries)]
    _check_unique([annotation.id for annotation in annotations], f"{path}: annotation id")
    kept = tuple(annotation for annotation in annotations if annotation.category_id in known)
    if len(kept) < len(annotations) and not for_evaluation:
        odd = next(annotation for annotation in annotations if annotation.category_id not in known)
        raise DatasetError(f"{path}: annotation {odd.id} has category_id {odd.category_id}, which no category has.")
    return Dataset(
        path=path,
        image_root=_checked_root(image_root, videos, path),
        videos=tuple(sorted(videos, key=lambda video: video.id)),
        categories=tuple(sorted(categories, key=lambda category: category.id)),
        annotations=kept,
        annotated=annotated,
        num_left_out=len(annotations) - len(kept),
    )


def read_json(path: Path, expected: str) -> Any:
    """A JSON file without NaN and infinity. `expected` says what it should be. Raises DatasetError naming the file."""
    try:
        return json.loads(path.read_bytes(), parse_constant=_refuse_constant)
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file; expected {expected}.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); expected {expected}.") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is not valid JSON ({error}); expected {expected}. Was it cut short?") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"it holds {name}, which is no number in JSON")


def _video(raw: Any, index: int, where: str, for_evaluation: bool) -> Video:
    where = f"{where}: videos[{index}]"
    video_id = _integer(raw, "id", where)
    where = f"{where} (id {video_id})"
    width, height = _integer(raw, "width", where, least=1), _integer(raw, "height", where, least=1)
    if width * height > MAX_PIXELS:
        raise DatasetError(f"{where}: {width} x {height} are more than the {MAX_PIXELS} pixels that are supported.")
    if for_evaluation and raw.get("file_names") is None:
        return Video(video_id, width, height, _integer(raw, "length", where, least=1), ())
    names = _list(raw, "file_names", where)
    for frame, name in enumerate(names):
        if not isinstance(name, str) or not name or "\0" in name:
            raise DatasetError(f"{where}: file_names[{frame}] is {reprlib.repr(name)}; expected the path of an image.")
    length = _integer(raw, "length", where, least=1) if "length" in raw else len(names)
    if length != len(names) or not names:
        raise DatasetError(f"{where}: length is {length}, but file_names names {len(names)} frames.")
    return Video(video_id, width, height, length, tuple(names))


def _category(raw: Any, index: int, where: str) -> Category:
    where = f"{where}: categories[{index}]"
    category_id = _integer(raw, "id", where)
    if not isinstance(raw.get("name"), str):
        raise DatasetError(f"{where} (id {category_id}): name is {reprlib.repr(raw.get('name'))}; expected text.")
    return Category(category_id, raw["name"])


def _annotation(raw: Any, index: int, where: str, videos: dict[int, Video], for_evaluation: bool) -> Annotation:
    place = f"{where}: annotations[{index}]"
    annotation_id, video_id = _integer(raw, "id", place), _integer(raw, "video_id", place)
    place = f"{where}: video {video_id}, annotation {annotation_id}"
    video = videos.get(video_id)
    if video is None:
        raise DatasetError(f"{place}: no video has this id; the file lists {len(videos)} videos.")
    iscrowd = raw.get("iscrowd", 0)
    if iscrowd not in (0, 1):
        raise DatasetError(f"{place}: iscrowd is {reprlib.repr(iscrowd)}; expected 0 or 1.")
    without_boxes = for_evaluation and raw.get("bboxes") is None
    bboxes = [None] * video.length if without_boxes else _per_frame(raw, "bboxes", video, place)
    areas = _per_frame(raw, "areas", video, place)
    segmentations = _per_frame(raw, "segmentations", video, place)
    _check_segmentations(segmentations, video, place)
    _check_numbers(bboxes, _is_box, place, "bboxes", "[x, y, width, height] in pixels, or null")
    _check_numbers(areas, _is_area, place, "areas", "a number of pixels, or null")
    return Annotation(
        annotation_id, video_id, _integer(raw, "category_id", place), bool(iscrowd),
        tuple(entry or None for entry in segmentations), tuple(bboxes), tuple(areas),
    )  # fmt: skip


def _check_segmentations(segmentations: list, video: Video, where: str) -> None:
    """Kind and size of each mask; what is inside is checked when it is used."""
    size = [video.height, video.width]
    for frame, entry in enumerate(segmentations):
        if not entry or isinstance(entry, list):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("counts"), (str, list)):
            raise DatasetError(f"{where}, frame {frame}: {reprlib.repr(entry)} is neither RLE nor polygons nor null.")
        if entry.get("size") != size:
            check_size(entry, video.height, video.width, f"{where}, frame {frame}")


def _check_numbers(values: list, fits: Any, where: str, name: str, expected: str) -> None:
    """Boxes (4 numbers) or areas (one) of all frames at once; only where something is odd is each looked at."""
    present = [value for value in values if value is not None]
    if not present:
        return
    try:
        array = np.asarray(present)
    except ValueError:          # lists of different lengths
        array = np.zeros(0, dtype=object)
    lengths = array[..., 2:] if array.ndim == 2 else array
    shape = (len(present), 4) if fits is _is_box else (len(present),)
    if array.shape == shape and array.dtype.kind in "if" and np.isfinite(array).all() and (lengths >= 0).all():
        return
    for frame, value in enumerate(values):
        if value is not None and not fits(value):
            raise DatasetError(f"{where}, frame {frame}: {name} is {reprlib.repr(value)}; expected {expected}.")


def _is_area(value: Any) -> bool:
    try:
        return type(value) in (int, float) and 0 <= value and math.isfinite(value)
    except OverflowError:       # a whole number beyond every float
        return False


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or any(type(number) not in (int, float) for number in value):
        return False
    return all(_is_area(abs(number)) for number in value) and value[2] >= 0 and value[3] >= 0


def _integer(raw: Any, key: str, where: str, least: int | None = None) -> int:
    if not isinstance(raw, dict):
        raise DatasetError(f"{where}: is {_kind(raw)}; expected an object with '{key}'.")
    value = raw.get(key)
    if type(value) is not int or (least is not None and value < least):
        limit = "" if least is None else f" of at least {least}"
        got = reprlib.repr(value) if key in raw else "missing"
        raise DatasetError(f"{where}: {key} is {got}; expected a whole number{limit}.")
    return value


def _list(raw: dict, key: str, where: str) -> list:
    value = raw.get(key)
    if not isinstance(value, list):
        got = _kind(value) if key in raw else "missing"
        raise DatasetError(f"{where}: {key} is {got}; expected a list.")
    return value


def _per_frame(raw: dict, key: str, video: Video, where: str) -> list:
    values = _list(raw, key, where)
    if len(values) != video.length:
        raise DatasetError(f"{where}: {key} has {len(values)} entries, its video has {video.length} frames.")
    return values


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


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
