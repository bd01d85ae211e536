"""The entries of a YouTube-VIS dataset file: a video, a category, an object track, each checked when it is parsed.

In:     an entry of the JSON as it was parsed, and where it stands, for messages
Out:    Video, Category, Annotation, frozen
State:  none
Limits: frames of at most MAX_PIXELS pixels. Of masks the kind and the size are checked; what is inside, when it is used
Source: CrossVIS specification 1.2 and 1.3
"""

from __future__ import annotations

import reprlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from operators.errors import DatasetError
from operators.json_files import is_finite
from operators.youtube_vis_rle import MAX_PIXELS, check_rle_size, check_size

OCCLUSION_LABELS = ("no_occlusion", "slight_occlusion", "severe_occlusion")


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
    """One class of objects, by the id that annotations name."""

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


def distinct_names(named: Iterable[Video | Category]) -> dict[int, str]:
    """Id -> name, with the id behind it where several share the name; in their order."""
    named = list(named)
    count = Counter(one.name for one in named)
    return {one.id: one.name if count[one.name] == 1 else f"{one.name} ({one.id})" for one in named}


def parse_video(raw: Any, index: int, where: str, for_evaluation: bool) -> Video:
    """An entry of `videos`. Raises DatasetError, opening with `where` and the place of the entry."""
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
    names = list_of(raw, "file_names", where)
    for frame, name in enumerate(names):
        if not isinstance(name, str) or not name or "\0" in name:
            raise DatasetError(f"{where}: file_names[{frame}] is {reprlib.repr(name)}; expected the path of an image.")
    length = _integer(raw, "length", where, least=1) if "length" in raw else len(names)
    if length != len(names) or not names:
        raise DatasetError(f"{where}: length is {length}, but file_names names {len(names)} frames.")
    return Video(video_id, width, height, length, tuple(names))


def parse_category(raw: Any, index: int, where: str, for_evaluation: bool) -> Category:
    """An entry of `categories`, as `parse_video`."""
    where = f"{where}: categories[{index}]"
    category_id = _integer(raw, "id", where)
    if for_evaluation and raw.get("name") is None:
        return Category(category_id, f"category {category_id}")
    if not isinstance(raw.get("name"), str):
        raise DatasetError(f"{where} (id {category_id}): name is {reprlib.repr(raw.get('name'))}; expected text.")
    return Category(category_id, raw["name"])


def parse_annotation(raw: Any, index: int, where: str, videos: dict[int, Video], for_evaluation: bool) -> Annotation:
    """An entry of `annotations`, of one of these videos, by their ids; as `parse_video`."""
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
        raise DatasetError(f"{where}: occlusion is {kind_of(labels)}; expected a list with a label for each frame.")
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
    return type(value) in (int, float) and is_finite(value) and value >= 0


def _is_box(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 4 or any(type(number) not in (int, float) for number in value):
        return False
    return all(map(is_finite, value)) and value[2] >= 0 and value[3] >= 0


def _integer(raw: Any, key: str, where: str, least: int | None = None) -> int:
    if not isinstance(raw, dict):
        raise DatasetError(f"{where}: is {kind_of(raw)}; expected an object with '{key}'.")
    value = raw.get(key)
    if type(value) is not int or (least is not None and value < least):
        limit = "" if least is None else f" of at least {least}"
        got = reprlib.repr(value) if key in raw else "missing"
        raise DatasetError(f"{where}: {key} is {got}; expected a whole number{limit}.")
    return value


def list_of(raw: dict, key: str, where: str) -> list:
    """The list under `key`. Raises DatasetError, opening with `where`, for anything else."""
    value = raw.get(key)
    if not isinstance(value, list):
        got = kind_of(value) if key in raw else "missing"
        raise DatasetError(f"{where}: {key} is {got}; expected a list.")
    return value


def _per_frame(raw: dict, key: str, length: int | None, where: str) -> list:
    values = list_of(raw, key, where)
    if length is not None and len(values) != length:
        raise DatasetError(f"{where}: {key} has {len(values)} entries, its video has {length} frames.")
    return values


def kind_of(value: Any) -> str:
    """What a value of JSON is, in words for messages."""
    names = {dict: "an object", list: "a list", str: "text", type(None): "null", bool: "true or false"}
    return names.get(type(value), "a number")
