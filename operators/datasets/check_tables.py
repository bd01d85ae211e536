"""The tables of an annotation file: its videos, its categories, the ids of its annotations.

In:     JsonDataset
Out:    the faults of each table, in the order of the file
State:  none
Limits: values nested deeper than MAX_DEPTH, in fields that the format does not know, are a fault themselves
Source: CrossVIS specification 1.2 and 1.4 (identities are annotation ids, 1..M)
"""

from __future__ import annotations

import math
import posixpath
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from operators.datasets.check_file import TABLES, JsonDataset, VideoEntry, place_of
from operators.datasets.check_images import name_fault
from operators.datasets.faults import Fault, Place, printable, shown
from operators.youtube_vis_rle import MAX_PIXELS

MAX_DEPTH = 32
VIDEO_FIELDS = ("id", "width", "height", "length", "file_names")
"""What is checked by itself."""


def table_faults(dataset: JsonDataset) -> Iterator[Fault]:
    """The faults of everything but what an annotation holds and of the images."""
    top = Place(str(dataset.path))
    for key in TABLES:
        if not (isinstance(dataset.raw.get(key), list) or (key == "annotations" and dataset.raw.get(key) is None)):
            found = f"{key} is {shown(dataset.raw[key])}" if key in dataset.raw else f"no {key}"
            yield top.fault("structure", found, "a list")
    yield from value_faults(dataset.raw, TABLES, top)
    yield from _videos(dataset, top)
    yield from _categories(dataset, top)
    ids = dataset.indices_of
    if ids and len(ids) == len(dataset.annotations):        # else there are other faults of ids to be told
        yield from _gap(ids, "annotation-ids", top)


def _videos(dataset: JsonDataset, top: Place) -> Iterator[Fault]:
    if not dataset.raw["videos"]:
        yield top.fault("no-videos", "no videos", "at least one")
    for index, raw in enumerate(dataset.raw["videos"]):
        if not isinstance(raw, dict):
            yield Place(top.file, place=f"videos[{index}]").fault("structure", shown(raw), "an object")
    used: dict[str, tuple[Place, int]] = {}
    for video in dataset.videos:
        place, raw = place_of(dataset, video), video.raw
        if video.id is None:
            yield place.fault("bad-video-id", f"id is {shown(raw['id'])}" if "id" in raw else "no id", "a whole number")
        elif (first := dataset.videos_of[video.id][0]) is not video:
            found = f"id {shown(video.id)}, as videos[{first.index}]"
            yield place.fault("duplicate-video-id", found, "an id of its own")
        if video.size is None:
            found = f"width {shown(raw.get('width'))}, height {shown(raw.get('height'))}"
            yield place.fault("bad-video-size", found, f"whole numbers from 1 up, at most {MAX_PIXELS} pixels")
        yield from _frames(video, place, used)
        yield from value_faults(raw, VIDEO_FIELDS, place)


def _frames(video: VideoEntry, place: Place, used: dict[str, tuple[Place, int]]) -> Iterator[Fault]:
    """`used` takes in the images that are named, and where they were first."""
    if not video.names:
        found = f"file_names is {shown(video.raw['file_names'])}" if "file_names" in video.raw else "no file_names"
        yield place.fault("video-without-frames", found, "the path of an image for each frame")
        return
    length = video.raw.get("length", video.length)
    if type(length) is not int or length != video.length:
        yield place.fault("video-length", f"length is {shown(length)}", f"{video.length}, as many as file_names")
    for frame, name in enumerate(video.names):
        kind = name_fault(name)
        if kind is not None:
            expected = "the path of an image" if kind == "bad-file-name" else "a path inside the folder of images"
            yield place.fault(kind, f"file name {shown(name)}", expected, frame)
            continue
        before, at = used.setdefault(posixpath.normpath(name), (place, frame))
        if before is not place or at != frame:
            found = f"{printable(name)}, which is frame {at} of video {before.video_id} too"
            yield place.fault("frame-used-twice", found, "each image once", frame)


def _categories(dataset: JsonDataset, top: Place) -> Iterator[Fault]:
    categories = dataset.raw.get("categories")
    ids: dict[int, int] = {}
    names, odd = set(), False
    for index, raw in enumerate(categories if isinstance(categories, list) else []):
        place = Place(top.file, place=f"categories[{index}]")
        category_id, name = (raw.get("id"), raw.get("name")) if isinstance(raw, dict) else (None, None)
        if type(category_id) is not int or not isinstance(name, str):
            odd = True
            yield place.fault("bad-category", shown(raw), 'an object {"id": whole number, "name": text}')
        elif ids.setdefault(category_id, index) != index:
            odd = True
            found = f"id {shown(category_id)} ({printable(name, 60)}), as categories[{ids[category_id]}]"
            yield place.fault("duplicate-category-id", found, "an id of its own")
        elif name in names:
            yield place.fault("duplicate-category-name", f"name {printable(name, 60)}", "a name of its own")
        names |= {name} if isinstance(name, str) else set()
        yield from value_faults(raw, ("id", "name"), place)
    if ids and not odd:
        yield from _gap(ids, "category-gaps", top)


def _gap(ids: Mapping[int, Any], kind: str, top: Place) -> Iterator[Fault]:
    gap = next((number for number in range(1, len(ids) + 1) if number not in ids), None)
    if gap is not None:
        yield top.fault(kind, f"{len(ids)} ids, {gap} not among them", f"1..{len(ids)}")


def value_faults(raw: Any, apart: Collection[str], place: Place) -> Iterator[Fault]:
    """Numbers that are not finite, and nesting without end, in the fields of `raw` but for those `apart`."""
    if not isinstance(raw, dict):
        return
    levels: list[tuple[str, Iterator]] = [("", ((key, raw[key]) for key in raw if key not in apart))]
    while levels:
        name, entries = levels[-1]
        key, value = next(entries, (None, None))
        if key is None:
            levels.pop()
            continue
        inner = f"{name}[{key}]" if type(key) is int else f"{name}{'.' if name else ''}{printable(key, 40)}"
        if isinstance(value, float) and not math.isfinite(value):
            yield place.fault("non-finite", f"{inner} is {value}", "a number that JSON has, or null")
        elif isinstance(value, (dict, list)) and len(levels) == MAX_DEPTH:
            yield place.fault("structure", f"{inner} is nested more than {MAX_DEPTH} deep", "a flatter value")
        elif isinstance(value, (dict, list)):
            levels.append((inner, iter(value.items()) if isinstance(value, dict) else enumerate(value)))
