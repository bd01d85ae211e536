"""Repairs of an annotation file: what can be put right is, what cannot is taken out, and all of it is told.

In:     JsonDataset, with its folder of images or without
Out:    Fixed: a file that has no errors any more, and a Repair for everything that was changed
State:  none; what was read is not changed
Limits: as check.py; images are looked at a second time
Source: CrossVIS specification 1.2; what is an error is what check.py says

Nothing is guessed: a repair follows from the rest of the file and its images, or the part at fault goes. In this order:
categories > videos (fix_videos.py) > annotations (fix_tracks.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from operators.datasets.check import TRACK_FIELDS, find_faults
from operators.datasets.check_file import TABLES, JsonDataset, mask_sizes, objects
from operators.datasets.check_tracks import Tolerance
from operators.datasets.faults import Repair, Report, shown, shown_id
from operators.datasets.files import check_output, new_json, write_json
from operators.datasets.fix_tracks import CannotRepair, choose_video, fix_track
from operators.datasets.fix_videos import FixedVideo, Ids, cleaned, fix_videos, whole
from operators.errors import DatasetError

Progress = Callable[[int, int], None]

_CLEANED = "numbers that are not finite, or nested too deep, set to null"


@dataclass(frozen=True)
class Fixed:
    """A repaired file, and what was done; no repairs where nothing had to be."""

    raw: dict = field(repr=False)
    repairs: tuple[Repair, ...]
    warnings: Report = field(repr=False)
    """What a check of it finds: warnings alone."""


def fix_dataset(
    dataset: JsonDataset, *, decode: bool = False, tolerance: Tolerance | None = None, progress: Progress | None = None
) -> Fixed:
    """Repair a dataset. Raises DatasetError where no video would be left: that is the wrong folder of images."""
    tolerance, progress = tolerance or Tolerance(), progress or (lambda done, total: None)
    repairs: list[Repair] = []
    others = cleaned(dataset.raw, TABLES, repairs, Repair(_CLEANED, place="the file"))
    categories = _fix_categories(dataset, repairs)
    videos = fix_videos(dataset, decode, repairs, progress)
    left = [video.raw for video in videos if video.raw is not None]
    if videos and not left:
        looked = f"the images in {dataset.images}" if dataset.images is not None else "its file names and sizes"
        raise DatasetError(f"{dataset.path}: no video can be kept, by {looked}. Is this the right folder of images? "
                           f"Nothing was written.")  # fmt: skip
    known = {category["id"] for category in categories}
    annotations = _fix_annotations(dataset, videos, known, tolerance, repairs, progress)
    raw = {**others, "videos": left, "categories": categories}
    if "annotations" in raw:
        raw["annotations"] = annotations
    fixed = Fixed(raw, tuple(repairs), Report(keep=3))
    for fault in find_faults(JsonDataset(dataset.path, raw, dataset.layout, None), tolerance=tolerance):
        fixed.warnings.add(fault)
        assert fault.severity == "warning", f"a repair left an error: {fault}"
    return fixed


def write_fixed(dataset: JsonDataset, fixed: Fixed, out: Path) -> None:
    """Write a repaired file, whole or not at all. Raises ConfigError for `out` that is the input or no file."""
    check_output(dataset.path, out)
    with new_json(out) as file:
        write_json(file, {key: iter(value) if key in TABLES and value else value for key, value in fixed.raw.items()})


def _fix_categories(dataset: JsonDataset, repairs: list[Repair]) -> list[dict]:
    if not isinstance(dataset.raw.get("categories"), list):
        used = sorted({number for raw in objects(dataset.annotations)
                       if (number := whole(raw.get("category_id"))) is not None})  # fmt: skip
        repairs.append(Repair(f"there is no list; {len(used)} made of the ids that are used", place="categories"))
        return [{"id": number, "name": f"category {number}"} for number in used]
    fixed: dict[int, dict] = {}
    for index, raw in enumerate(dataset.raw["categories"]):
        place = f"categories[{index}]"
        number = whole(raw.get("id")) if isinstance(raw, dict) else None
        if number is None or number in fixed:
            why = "it has no id" if number is None else f"id {shown(number)} is that of {shown(fixed[number]['name'])}"
            repairs.append(Repair(f"dropped, {why}", place=place))
            continue
        changes: dict[str, Any] = {} if type(raw["id"]) is int else {"id": number}
        changes |= {} if isinstance(raw.get("name"), str) else {"name": f"category {number}"}
        for key, value in changes.items():
            repairs.append(Repair(f"{key} {shown(raw.get(key))} set to {value!r}", place=place))
        fixed[number] = cleaned(raw, ("id", "name"), repairs, Repair(_CLEANED, place=place)) | changes
    return list(fixed.values())


def _fix_annotations(
    dataset: JsonDataset,
    videos: list[FixedVideo],
    categories: set[int],
    tolerance: Tolerance,
    repairs: list[Repair],
    progress: Progress,
) -> list[dict] | None:
    """Those that are left, in the order of the file; None where the file has none, which stays so."""
    if not isinstance(dataset.raw.get("annotations"), list):
        if dataset.raw.get("annotations") is not None:
            did = f"set to null, it is {shown(dataset.raw['annotations'])}"
            repairs.append(Repair(did, place="annotations"))
        return None
    by_id: dict[int, list[FixedVideo]] = {}
    for video in videos:
        if (number := whole(video.entry.raw.get("id"))) is not None:
            by_id.setdefault(number, []).append(video)
    ids, fixed = Ids(raw.get("id") for raw in objects(dataset.annotations)), []
    for index, raw in enumerate(dataset.annotations):
        try:
            done, track = _fix_annotation(dataset, raw, by_id, categories, tolerance)
        except CannotRepair as why:
            video_id, number = (shown_id(raw.get(key)) if isinstance(raw, dict) else None for key in ("video_id", "id"))
            repairs.append(Repair(f"dropped, {why}", video_id, number, place=f"annotations[{index}]"))
        else:
            track["id"] = ids.take(raw.get("id"))
            if type(raw.get("id")) is not int or raw["id"] != track["id"]:
                did = f"id {shown(raw.get('id'))} set to {track['id']}"
                repairs.append(Repair(did, shown_id(raw.get("video_id")), place=f"annotations[{index}]"))
            repairs += done
            fixed.append(track)
        progress(index + 1, len(dataset.annotations))
    return fixed


def _fix_annotation(
    dataset: JsonDataset, raw: Any, by_id: dict[int, list[FixedVideo]], categories: set[int], tolerance: Tolerance
) -> tuple[list[Repair], dict]:
    if not isinstance(raw, dict):
        raise CannotRepair(f"it is {shown(raw)}")
    category_id = whole(raw.get("category_id"))
    if category_id not in categories:
        raise CannotRepair(f"the file lists no category {shown(raw.get('category_id'))}")
    number = whole(raw.get("video_id"))
    video = choose_video(raw, by_id.get(number, []) if number is not None else [], mask_sizes(raw))
    track, done = fix_track(raw, video, dataset.layout == "ovis", tolerance)
    shown_as = {"video_id": shown_id(raw.get("video_id")), "annotation_id": shown_id(raw.get("id"))}
    for key, value in {"video_id": video.raw["id"], "category_id": category_id}.items():
        if type(raw.get(key)) is not int or raw[key] != value:
            done.append(Repair(f"{key} {shown(raw.get(key))} set to {value}", **shown_as))
        track[key] = value
    return done, cleaned(track, TRACK_FIELDS, done, Repair(_CLEANED, **shown_as))
