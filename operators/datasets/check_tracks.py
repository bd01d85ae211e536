"""One annotation of a YouTube-VIS file against its video: every mask, box, area and label that is wrong.

In:     an annotation as it stands in the JSON, whatever it is; the length and size of its video, where they are known
Out:    its faults, in the order of the frames
State:  none
Limits: masks of one track are in memory at a time, checked as in youtube_vis_rle.py before pycocotools sees them
Source: CrossVIS specification 1.2 and 1.3; evaluation specification, YouTube-VIS 2 (what is false is no mask)

One fault is reported once: where a mask is damaged, its box and area are not compared with it, nor where a list has
another length than the video and so no entry has a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from operators.datasets.check_images import Size, Wrong
from operators.datasets.faults import Fault, Place, shown
from operators.errors import ConfigError, DatasetError
from operators.json_files import is_finite
from operators.youtube_vis_entries import OCCLUSION_LABELS
from operators.youtube_vis_rle import Rle, mask_areas, segmentations_to_rles

BOX = "[x, y, width, height] in pixels, or null"
AREA = "a number of pixels, or null"


@dataclass(frozen=True)
class Tolerance:
    """How far boxes and areas may be off before that is a fault. Published sets differ in how they round."""

    box_px: float = 2.0
    """Pixels between an edge of the box and that of its mask."""
    area_share: float = 0.01
    """Of the mask's pixels; two pixels are always fine, and of polygons half their outline, which rasterising moves."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{name.replace('_', ' ')} {value}: expected a number from 0 up.")


@dataclass(frozen=True)
class Masks:
    """The masks of a track over T frames.

    present  (T,) bool: frames with a sound mask, which may have no pixels
    damaged  frame -> what is wrong with its mask
    areas    (T,) int64 pixels, boxes (T, 4) float64 xywh; 0 where no sound mask is
    slack    (T,) float64: by how many pixels an area may be off, because it is that of a polygon
    """

    present: np.ndarray
    damaged: dict[int, Wrong]
    areas: np.ndarray
    boxes: np.ndarray
    slack: np.ndarray

    @classmethod
    def of(cls, segmentations: Sequence[Any], size: Size) -> Masks:
        rles, damaged = check_masks(segmentations, size)
        present = np.array([rle is not None for rle in rles], bool)
        areas, boxes, slack = np.zeros(len(rles), np.int64), np.zeros((len(rles), 4)), np.zeros(len(rles))
        if present.any():
            sound = [rle for rle in rles if rle is not None]
            areas[present], boxes[present] = mask_areas(sound), coco_mask.toBbox(sound)
            polygons = np.array([isinstance(entry, list) for entry in segmentations], bool)
            slack[polygons] = boxes[polygons, 2:].sum(axis=1)
        return cls(present, damaged, areas, boxes, slack)

    @property
    def empty(self) -> bool:
        """No pixel in any frame, and no damaged mask that may have meant some."""
        return not self.damaged and not self.areas.any()


def track_faults(
    raw: dict, place: Place, length: int | None, size: Size | None, *, ovis: bool, tolerance: Tolerance
) -> Iterator[Fault]:
    """The faults of an annotation's own lists. `length` and `size` None: the video's are unknown, less is checked."""
    yield from _size_copy(raw, place, length, size)
    iscrowd = raw.get("iscrowd", 0)
    if type(iscrowd) is not int or iscrowd not in (0, 1):
        yield place.fault("odd-iscrowd", f"iscrowd is {shown(iscrowd)}", "0 or 1")
    lists: dict[str, list | None] = {}
    for key in ("segmentations", "bboxes", "areas", *(["occlusion"] if ovis or "occlusion" in raw else [])):
        lists[key], fault = _frame_list(raw, key, place, length)
        if fault is not None:
            yield fault
    masks = None
    if size is not None and isinstance(raw.get("segmentations"), list):
        masks = Masks.of(raw["segmentations"], size)
        for frame, wrong in masks.damaged.items():
            yield place.fault(*wrong, frame=frame)
        if masks.empty and length:
            yield place.fault("empty-track", f"no pixel in {len(masks.areas)} frames", "a mask in one frame at least")
    if lists["segmentations"] is None:
        masks = None                            # damaged ones are told, but none has a frame to compare with
    for frame, box in enumerate(lists["bboxes"] or ()):
        if wrong := box_fault(box, masks, frame, tolerance):
            yield place.fault(*wrong, frame=frame)
    for frame, area in enumerate(lists["areas"] or ()):
        if wrong := area_fault(area, masks, frame, tolerance):
            yield place.fault(*wrong, frame=frame)
    for frame, label in enumerate(lists.get("occlusion") or ()):
        if label is not None and label not in OCCLUSION_LABELS:
            found = f"occlusion is {shown(label)}"
            yield place.fault("bad-occlusion", found, f"{', '.join(OCCLUSION_LABELS)} or null", frame=frame)


def check_masks(segmentations: Sequence[Any], size: Size) -> tuple[list[Rle | None], dict[int, Wrong]]:
    """Masks as compressed RLE, None where there is none or a damaged one; and what is wrong with those, by frame."""
    height, width = size
    damaged = {frame: wrong for frame, entry in enumerate(segmentations) if (wrong := _form_fault(entry, size))}
    entries = [None if frame in damaged else entry for frame, entry in enumerate(segmentations)]
    try:
        return segmentations_to_rles(entries, height, width, lambda _: "the mask"), damaged      # most are sound
    except DatasetError:
        rles: list[Rle | None] = []
        for frame, entry in enumerate(entries):
            try:
                rles += segmentations_to_rles([entry], height, width, lambda _: "the mask")
            except DatasetError as error:
                rles.append(None)
                damaged[frame] = _content_fault(entry, size, str(error).removeprefix("the mask: "))
        return rles, dict(sorted(damaged.items()))


def box_fault(box: Any, masks: Masks | None, frame: int, tolerance: Tolerance) -> Wrong | None:
    """What is wrong with the box of a frame; None for masks: they cannot be compared."""
    if box is not None and (wrong := _box_form_fault(box)):
        return wrong
    if masks is None or frame in masks.damaged:
        return None
    area, around = int(masks.areas[frame]), masks.boxes[frame].tolist()
    if box is None:
        return ("mask-without-box", f"no box, a mask of {area} pixels", f"{_numbers(around)}") if area else None
    if not masks.present[frame]:
        return "box-without-mask", f"box {_numbers(box)}, no mask", "both or neither"
    if not area:
        is_empty = box[2] == 0 or box[3] == 0
        return None if is_empty else ("box-off-mask", f"box {_numbers(box)}, a mask without pixels", "null")
    edges = zip(_edges(box), _edges(around), strict=True)
    off = max(abs(edge - of_mask) for edge, of_mask in edges)
    if off <= tolerance.box_px:
        return None
    return "box-off-mask", f"box {_numbers(box)}, an edge {off:.4g} pixels off its mask", f"{_numbers(around)}"


def area_fault(area: Any, masks: Masks | None, frame: int, tolerance: Tolerance) -> Wrong | None:
    """What is wrong with the area of a frame; None for masks: they cannot be compared."""
    if area is not None and (type(area) not in (int, float) or (is_finite(area) and area < 0)):
        return "bad-area", f"area is {shown(area)}", AREA
    if area is not None and not is_finite(area):
        return "non-finite", f"area is {shown(area)}", AREA
    if masks is None or frame in masks.damaged:
        return None
    pixels = int(masks.areas[frame])
    if area is None:
        return ("area-disagrees", "no area", f"{pixels}, the mask's pixels") if pixels else None
    if abs(area - pixels) <= max(2.0, tolerance.area_share * pixels) + float(masks.slack[frame]):
        return None
    return "area-disagrees", f"area {area:.10g}", f"{pixels}, the mask's pixels" if masks.present[frame] else "no area"


def is_frame_list(raw: dict, key: str, length: int | None) -> bool:
    """Is there a list with an entry for each frame?"""
    return isinstance(raw.get(key), list) and (length is None or len(raw[key]) == length)


def _frame_list(raw: dict, key: str, place: Place, length: int | None) -> tuple[list | None, Fault | None]:
    if is_frame_list(raw, key, length):
        return raw[key], None
    if not isinstance(raw.get(key), list):
        found = f"{key} is {shown(raw[key])}" if key in raw else f"no {key}"
        return None, place.fault("structure", found, "a list with an entry for each frame")
    found = f"{key} has {len(raw[key])} entries"
    return None, place.fault("wrong-length", found, f"{length}, one for each frame of the video")


def _size_copy(raw: dict, place: Place, length: int | None, size: Size | None) -> Iterator[Fault]:
    for key, own in video_fields(length, size).items():
        if key in raw and raw[key] != own:
            yield place.fault("size-copy", f"{key} is {shown(raw[key])}", f"{own}, its video's")


def video_fields(length: int | None, size: Size | None) -> dict[str, int]:
    """The fields of a video that an annotation may repeat, as far as they are known."""
    fields = {} if size is None else {"height": size[0], "width": size[1]}
    return fields if length is None else {**fields, "length": length}


def _form_fault(entry: Any, size: Size) -> Wrong | None:
    """What can be told of a mask without looking into it."""
    if not entry or isinstance(entry, list):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("counts"), (str, list)):
        return "not-a-mask", f"mask is {shown(entry)}", "RLE, polygons or null"
    if entry.get("size") != list(size):
        return "rle-size", f"size {shown(entry.get('size'))}", f"{list(size)}, height and width of the video"
    return None


def _content_fault(entry: Any, size: Size, why: str) -> Wrong:
    if isinstance(entry, list):
        return "bad-polygon", why.rstrip("."), "rings x1, y1, x2, y2, ... in and about the frame"
    counts, pixels = entry["counts"], size[0] * size[1]
    found = f"counts {shown(counts)}"
    if isinstance(counts, list) and all(type(run) is int for run in counts):
        lowest = f", one of them {min(counts)}" if counts and min(counts) < 0 else ""
        found += f" with a sum of {shown(sum(counts))}{lowest}"
    return "rle-counts", found, f"runs from 0 up that sum up to {size[0]} x {size[1]} = {pixels}"


def _box_form_fault(box: Any) -> Wrong | None:
    if not isinstance(box, list) or len(box) != 4 or any(type(number) not in (int, float) for number in box):
        return "bad-box", f"box is {shown(box)}", BOX
    if not all(map(is_finite, box)):
        return "non-finite", f"box is {shown(box)}", BOX
    return ("bad-box", f"box is {shown(box)}", "a width and height from 0 up") if min(box[2:]) < 0 else None


def _edges(box: Sequence[float]) -> tuple[float, ...]:
    x, y, width, height = map(float, box)
    return x, y, x + width, y + height


def _numbers(box: Sequence[float]) -> str:
    return f"[{', '.join(f'{float(number):.6g}' for number in box)}]"
