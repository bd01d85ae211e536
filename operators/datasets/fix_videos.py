"""Videos of an annotation file, repaired: ids of their own, sizes that are right, frames that can be read.

In:     JsonDataset, with its folder of images or without
Out:    FixedVideo for each, which says what became of it and of its frames
State:  none
Limits: as check_images.py
Source: CrossVIS specification 1.2

Which size is right: where images are looked at, the one that all of them have, if no mask contradicts it; else the
stated one, unless that is unusable, or is that of all masks with width and height exchanged.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from operators.datasets.check_file import JsonDataset, VideoEntry, mask_sizes, objects
from operators.datasets.check_images import Seen, Size, name_fault, see_images
from operators.datasets.check_tables import MAX_DEPTH, VIDEO_FIELDS, value_faults
from operators.datasets.faults import Place, Repair, shown, shown_id

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FixedVideo:
    """A video of the file and what became of it."""

    entry: VideoEntry = field(repr=False)
    raw: dict | None = field(repr=False)
    """The repaired entry; None where the video was dropped."""
    size: Size | None = None
    kept: tuple[int, ...] = field(default=(), repr=False)
    """Those of its frames that are left, by their old index."""

    @property
    def length(self) -> int:
        """Its number of frames before."""
        return len(self.entry.names or ())


class Ids:
    """Gives every entry an id of its own: the one that it has, if that is free, else one above all others."""

    def __init__(self, values: Iterable[Any]) -> None:
        self._next = max((number for value in values if (number := whole(value)) is not None), default=0)
        self._taken: set[int] = set()

    def take(self, value: Any) -> int:
        number = whole(value)
        if number is None or number in self._taken:
            self._next = max(self._next, 0) + 1
            number = self._next
        self._taken.add(number)
        return number


def fix_videos(dataset: JsonDataset, decode: bool, repairs: list[Repair], progress: Progress) -> list[FixedVideo]:
    """Every video that is an object, in the order of the file. What was done is added to `repairs`."""
    for index, raw in enumerate(dataset.raw["videos"]):
        if not isinstance(raw, dict):
            repairs.append(Repair(f"dropped, it is {shown(raw)}", place=f"videos[{index}]"))
    sizes: dict[int, set[Size]] = {}
    for raw in objects(dataset.annotations):
        if (number := whole(raw.get("video_id"))) is not None:
            sizes.setdefault(number, set()).update(mask_sizes(raw))
    ids, first, fixed = Ids(video.raw.get("id") for video in dataset.videos), {}, []
    for done, video in enumerate(dataset.videos, start=1):
        number = whole(video.raw.get("id"))
        twin = first.setdefault(number, video) if number is not None else video
        if twin is not video and (twin.names, twin.size) == (video.names, video.size):
            repairs.append(Repair(f"dropped, it repeats videos[{twin.index}]", number, place=f"videos[{video.index}]"))
        else:
            fixed.append(_fix_video(dataset, video, ids, sizes.get(number, set()), decode, repairs))
        progress(done, len(dataset.videos))
    return fixed


def whole(value: Any) -> int | None:
    """The whole number that an id means: 7, 7.0 and "7" are 7; None for what means none."""
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer() and abs(value) < 1 << 53:
        return int(value)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    return None


def cleaned(raw: dict, apart: Iterable[str], repairs: list[Repair], repair: Repair) -> dict:
    """`raw` with null in place of numbers that are not finite and of nesting without end, but for the fields `apart`.

    Where something changed, `repair` is added to `repairs`.
    """
    apart = set(apart)
    if next(value_faults(raw, apart, Place("")), None) is None:
        return dict(raw)
    repairs.append(repair)
    return {key: value if key in apart else _clean(value, 1) for key, value in raw.items()}


def _clean(value: Any, depth: int) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, (dict, list)) and depth >= MAX_DEPTH:
        return None
    if isinstance(value, dict):
        return {key: _clean(inner, depth + 1) for key, inner in value.items()}
    return [_clean(inner, depth + 1) for inner in value] if isinstance(value, list) else value


def _fix_video(
    dataset: JsonDataset, video: VideoEntry, ids: Ids, masks: set[Size], decode: bool, repairs: list[Repair]
) -> FixedVideo:
    shown_as, where = shown_id(video.raw.get("id")), f"videos[{video.index}]"
    names = [_inside(name, dataset.images) for name in video.names or ()]
    seen = list(see_images(dataset.images, names, decode)) if dataset.images is not None else None
    size = _right_size(video, masks, seen)
    out = _frames_out(video, names, seen, size)
    kept = tuple(frame for frame in range(len(names)) if frame not in out)
    if size is None or not kept:
        why = "no usable width and height" if size is None else "no frame that can be used"
        repairs.append(Repair(f"dropped, it has {why}", shown_as, place=where))
        return FixedVideo(video, None)
    note = Repair("numbers that are not finite, or nested too deep, set to null", shown_as, place=where)
    raw = cleaned(video.raw, VIDEO_FIELDS, repairs, note)
    changes = {"id": ids.take(raw.get("id")), "height": size[0], "width": size[1], "length": len(kept)}
    for key, value in changes.items():
        if (key != "length" or "length" in raw) and (type(raw.get(key)) is not int or raw[key] != value):
            repairs.append(Repair(f"{key} {shown(raw.get(key))} set to {value}", shown_as, place=where))
        raw |= {key: value} if key != "length" or "length" in raw else {}
    for why in dict.fromkeys(out.values()):
        frames = tuple(frame for frame, reason in out.items() if reason == why)
        repairs.append(Repair(f"frames taken out, {why}", shown_as, frames=frames, place=where))
    moved = tuple(frame for frame in kept if names[frame] != video.names[frame])
    if moved:
        repairs.append(Repair("file names written as paths inside the folder", shown_as, frames=moved, place=where))
    return FixedVideo(video, raw | {"file_names": [names[frame] for frame in kept]}, size, kept)


def _inside(name: Any, root: Path | None) -> str | None:
    """The name as a path inside the folder of images; None for one that leads elsewhere, or is none."""
    kind = name_fault(name)
    if kind != "file-name-leaves-root":
        return None if kind else name
    name = posixpath.normpath(name.replace("\\", "/"))
    path = PurePosixPath(name)
    if root is not None and path.is_absolute() and path.is_relative_to(root.resolve()):
        name = str(path.relative_to(root.resolve()))
    return name if name_fault(name) is None else None


def _right_size(video: VideoEntry, masks: set[Size], seen: list[Seen | None] | None) -> Size | None:
    if seen is not None:
        images = {image.size for image in seen if image is not None and image.wrong is None}
        if len(images) == 1 and masks <= images:
            return images.pop()
    if len(masks) == 1 and (video.size is None or masks == {video.size[::-1]}) and seen is None:
        return next(iter(masks))
    return video.size


def _frames_out(
    video: VideoEntry, names: list[str | None], seen: list[Seen | None] | None, size: Size | None
) -> dict[int, str]:
    """Frames that cannot be kept, and why."""
    out = {frame: "their file names lead elsewhere or are none" for frame, name in enumerate(names) if name is None}
    for frame, image in enumerate(seen or ()):
        if image is None:
            continue
        if image.wrong is not None:
            out[frame] = "their images are missing" if image.wrong[0] == "image-missing" else "their images are damaged"
        elif image.size != size:
            out[frame] = "their images are of another size"
    return dict(sorted(out.items()))
