"""A YouTube-VIS dataset file: videos, categories and object tracks, checked when read.

In:     the JSON that training, validation and test sets of YouTube-VIS 2019, 2021 and OVIS come as
Out:    Dataset, frozen; its masks stay as they are in the file until asked for
State:  none
Limits: files of at most MAX_FILE_BYTES, frames of at most MAX_PIXELS pixels. Masks are checked when they are used: a
        file of 3,500 tracks and 126,000 frames is read in 0.7 s, and checking every run would make that 2 s, or 7 s
        more for uncompressed ones.
Source: CrossVIS specification 1.2 and 1.3
"""

from __future__ import annotations

import gc
import json
import math
import os
import reprlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from operators.errors import DatasetError
from operators.youtube_vis_rle import (
    MAX_PIXELS,
    Rle,
    check_rle_size,
    check_size,
    segmentation_to_rle,
    segmentations_to_rles,
)

MAX_FILE_BYTES = 1 << 30
"""Of a JSON file. Read, it takes about five times its bytes of memory; YouTube-VIS and OVIS stay well below this."""

OCCLUSION_LABELS = ("no_occlusion", "slight_occlusion", "severe_occlusion")

__all__ = ["Annotation", "Category", "Dataset", "Video", "read_dataset", "read_json", "segmentation_to_rle"]


@dataclass(frozen=True)
class Video:
    """One clip of `length` stored frames; 0 where a file read for evaluation does not say."""

    id: int
    width: int
    height: int
    length: int
    file_names: tuple[str, ...] = field(repr=False)
    """`length` paths relative to the image root; a file read for evaluation may name none, or more or fewer."""

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
    """One object track; all tuples have an entry per frame of its video, None where there is nothing.

    Read for evaluation they may have more or fewer entries.
    """

    id: int
    video_id: int
    category_id: int
    iscrowd: bool
    segmentations: tuple[dict | list | None, ...] = field(repr=False)
    """As in the file: RLE of either kind, or polygons. `Dataset.mask` gives them checked and compressed."""
    bboxes: tuple[list[float] | None, ...] = field(repr=False)
    """[x, y, width, height] in pixels; not None says that the object is in the frame (CrossVIS specification 1.3)."""
    areas: tuple[float | None, ...] = field(repr=False)
    occlusion: tuple[str | None, ...] | None = field(default=None, repr=False)
    """OVIS: OCCLUSION_LABELS, or None where there is none; taken from files that are read for evaluation alone."""


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
        raise DatasetError(f"{path}: holds {_kind(raw)}; expected an object with videos, categories, annotations.")
    where = str(path)
    videos = [_video(entry, i, where, for_evaluation) for i, entry in enumerate(_list(raw, "videos", where))]
    categories = [
        _category(entry, i, where, for_evaluation) for i, entry in enumerate(_list(raw, "categories", where))
    ]
    _check_unique([video.id for video in videos], f"{path}: video id")
    _check_unique([category.id for category in categories], f"{path}: category id")
    by_id = {video.id: video for video in videos}
    annotated = raw.get("annotations") is not None
    entries = _list(raw, "annotations", where) if annotated else []
    annotations = [_annotation(entry, i, where, by_id, for_evaluation) for i, entry in enumerate(entries)]
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


def read_json(path: Path, expected: str, *, constants: bool = False) -> Any:
    """A JSON file in which no key occurs twice in an object, and no NaN or infinity unless `constants` lets them pass.

    `expected` says what it should be. Raises DatasetError naming the file; for one of over MAX_FILE_BYTES before it is
    read.
    """
    try:
        with path.open("rb") as file:
            large = os.fstat(file.fileno()).st_size > MAX_FILE_BYTES        # 0 for a pipe: it shows when it is read
            content = b"" if large else file.read(MAX_FILE_BYTES + 1)
        if large or len(content) > MAX_FILE_BYTES:
            raise DatasetError(f"{path}: is over the limit of {MAX_FILE_BYTES >> 20} MiB; expected {expected}. "
                               "Write masks as compressed RLE, null where there is none, and of results the 100 best "
                               "of each video and category alone: more do not count.")  # fmt: skip
        with _no_garbage_collection():
            return json.loads(content, parse_constant=None if constants else _refuse_constant,
                              object_pairs_hook=_object)  # fmt: skip
    except FileNotFoundError:
        raise DatasetError(f"{path}: there is no such file; expected {expected}.") from None
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}); expected {expected}.") from error
    except _NoJsonOfOurs as error:
        raise DatasetError(f"{path}: {error}; expected {expected}.") from None
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: is not valid JSON ({error}); expected {expected}. Was it cut short?") from error


class _NoJsonOfOurs(Exception):
    """What the parser takes and we do not."""


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """JSON has no cycles: looking for them as its objects come into being takes half of the time that reading takes."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _NoJsonOfOurs(f"an object has the key {reprlib.repr(twice)} more than once, {reprlib.repr(found)}")
    return found


def _refuse_constant(name: str) -> None:
    raise _NoJsonOfOurs(f"holds {name}, which is no number in JSON")


def _video(raw: Any, index: int, where: str, for_evaluation: bool) -> Video:
    where = f"{where}: videos[{index}]"
    video_id = _integer(raw, "id", where)
    where = f"{where} (id {video_id})"
    width, height = _integer(raw, "width", where, least=1), _integer(raw, "height", where, least=1)
    if width * height > MAX_PIXELS:
        raise DatasetError(f"{where}: {width} x {height} are more than the {MAX_PIXELS} pixels that are supported.")
    if for_evaluation:
        names = raw.get("file_names") if isinstance(raw.get("file_names"), list) else []
        length = _integer(raw, "length", where, least=0) if raw.get("length") is not None else len(names)
        return Video(video_id, width, height, length, tuple(name for name in names if isinstance(name, str)))
    names = _list(raw, "file_names", where)
    for frame, name in enumerate(names):
        if not isinstance(name, str) or not name or "\0" in name:
            raise DatasetError(f"{where}: file_names[{frame}] is {reprlib.repr(name)}; expected the path of an image.")
    length = _integer(raw, "length", where, least=1) if "length" in raw else len(names)
    if length != len(names) or not names:
        raise DatasetError(f"{where}: length is {length}, but file_names names {len(names)} frames.")
    return Video(video_id, width, height, length, tuple(names))


def _category(raw: Any, index: int, where: str, for_evaluation: bool) -> Category:
    where = f"{where}: categories[{index}]"
    category_id = _integer(raw, "id", where)
    if for_evaluation and raw.get("name") is None:
        return Category(category_id, f"category {category_id}")
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
    length = None if for_evaluation else video.length
    segmentations = _per_frame(raw, "segmentations", length, place)
    areas = _per_frame(raw, "areas", length, place)
    bboxes = [] if for_evaluation else _per_frame(raw, "bboxes", length, place)
    _check_segmentations(segmentations, video, place, any_size=for_evaluation)
    _check_numbers(bboxes, _is_box, place, "bboxes", "[x, y, width, height] in pixels, or null")
    _check_numbers(areas, _is_area, place, "areas", "a number of pixels, or null")
    return Annotation(
        annotation_id, video_id, _integer(raw, "category_id", place), bool(iscrowd),
        tuple(entry or None for entry in segmentations), tuple(bboxes), tuple(areas),
        _occlusion(raw.get("occlusion"), place) if for_evaluation else None,
    )  # fmt: skip


def _check_segmentations(segmentations: list, video: Video, where: str, *, any_size: bool) -> None:
    """Kind and size of each mask; what is inside is checked when it is used."""
    size = [video.height, video.width]
    present = [entry for entry in segmentations if entry]
    if {*map(type, present)} == {dict}:                                 # the usual case at once
        counts = {type(entry.get("counts")) for entry in present}
        if counts <= {str, list} and [entry.get("size") for entry in present].count(size) == len(present):
            return
    for frame, entry in enumerate(segmentations):
        if not entry or isinstance(entry, list):
            continue
        if not isinstance(entry, dict) or not isinstance(entry.get("counts"), (str, list)):
            raise DatasetError(f"{where}, frame {frame}: {reprlib.repr(entry)} is neither RLE nor polygons nor null.")
        if entry.get("size") == size:
            continue
        if any_size:
            check_rle_size(entry, f"{where}, frame {frame}")
        else:
            check_size(entry, video.height, video.width, f"{where}, frame {frame}")


def _occlusion(labels: Any, where: str) -> tuple[str | None, ...] | None:
    if labels is None:
        return None
    if not isinstance(labels, list):
        raise DatasetError(f"{where}: occlusion is {_kind(labels)}; expected a list with a label for each frame.")
    for frame, label in enumerate(labels):
        if label is not None and label not in OCCLUSION_LABELS:
            raise DatasetError(f"{where}, frame {frame}: occlusion is {reprlib.repr(label)}; "
                               f"expected {', '.join(OCCLUSION_LABELS)} or null.")  # fmt: skip
    return tuple(labels)


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


def _per_frame(raw: dict, key: str, length: int | None, where: str) -> list:
    values = _list(raw, key, where)
    if length is not None and len(values) != length:
        raise DatasetError(f"{where}: {key} has {len(values)} entries, its video has {length} frames.")
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
