"""One annotation, repaired: masks that can be read, boxes and areas that are theirs.

In:     an annotation that is an object; its video, repaired; the categories that are left
Out:    the repaired annotation, or None and the reason why it cannot be repaired
State:  none
Limits: as check_tracks.py
Source: CrossVIS specification 1.2 and 1.3

Masks are the truth: they are kept as they are written, or taken out; boxes and areas follow from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from operators.datasets.check_tracks import (
    Masks,
    Tolerance,
    area_fault,
    box_fault,
    is_frame_list,
    video_fields,
)
from operators.datasets.faults import Repair, shown, shown_id
from operators.datasets.fix_videos import FixedVideo, whole
from operators.youtube_vis_entries import OCCLUSION_LABELS


class CannotRepair(Exception):
    """Why an annotation has to go, as the end of a sentence."""


def fix_track(raw: dict, video: FixedVideo, ovis: bool, tolerance: Tolerance) -> tuple[dict, list[Repair]]:
    """The lists, sizes and iscrowd of an annotation made right, and what was done; ids are not touched.

    Frames that left the video leave its lists. Raises CannotRepair.
    """
    segmentations = [entry or None for entry in _aligned(raw, video.length)]
    done = _lengths_told(raw, video.length)
    segmentations = [segmentations[frame] for frame in video.kept]
    masks, boxes, areas = Masks.of(segmentations, video.size), _kept(raw, "bboxes", video), _kept(raw, "areas", video)
    if masks.damaged:
        done["damaged masks taken out, with their boxes and areas"] = list(masks.damaged)
        for frame in masks.damaged:
            segmentations[frame] = boxes[frame] = areas[frame] = None
        masks = replace(masks, damaged={})
    if masks.empty:
        raise CannotRepair("no frame is left in which it has a pixel")
    for frame in range(len(segmentations)):
        area, (x, y, width, height) = int(masks.areas[frame]), masks.boxes[frame].astype(int).tolist()
        if box_fault(boxes[frame], masks, frame, tolerance):
            boxes[frame] = [x, y, width, height] if area else None
            done.setdefault("boxes computed from the masks", []).append(frame)
        if area_fault(areas[frame], masks, frame, tolerance):
            areas[frame] = area or None
            done.setdefault("areas computed from the masks", []).append(frame)
    fixed = {**raw, "segmentations": segmentations, "bboxes": boxes, "areas": areas}
    if ovis or "occlusion" in raw:
        fixed["occlusion"] = _occlusion(raw, video, done)
    fixed |= _numbers(raw, video, done)
    return fixed, [_repair(raw, did, frames, video.kept) for did, frames in done.items()]


def choose_video(raw: dict, candidates: Sequence[FixedVideo], sizes: set[tuple[int, int]]) -> FixedVideo:
    """The video that an annotation is of; of several with its id the one that its masks fit. Raises CannotRepair."""
    if not candidates:
        raise CannotRepair(f"the file lists no video {shown(raw.get('video_id'))}")
    left = [video for video in candidates if video.raw is not None]
    if not left:
        raise CannotRepair("its video was dropped")
    if len(candidates) > 1:
        left = [v for v in left if is_frame_list(raw, "segmentations", v.length) and sizes <= {v.size}]
        if len(left) != 1:
            raise CannotRepair(f"it fits {len(left)} of {len(candidates)} videos that share its video_id")
    return left[0]


def _aligned(raw: dict, length: int) -> list:
    """Its masks, one for each of `length` frames. Raises CannotRepair where nothing tells which frames they are of."""
    masks = raw.get("segmentations")
    if not isinstance(masks, list):
        raise CannotRepair("it has no list of segmentations")
    if not any(masks[length:]):
        masks = masks[:length]
    boxes = raw.get("bboxes")
    # a frame without a box is one that the object is not in, so no mask is missing there
    if len(masks) < length and is_frame_list(raw, "bboxes", length) and not any(boxes[len(masks) :]):
        masks = masks + [None] * (length - len(masks))
    if len(masks) != length:
        raise CannotRepair(f"it has {len(masks)} segmentations for {length} frames, and nothing tells which are whose")
    return masks


def _lengths_told(raw: dict, length: int) -> dict[str, list[int]]:
    found = len(raw["segmentations"])
    if found == length:
        return {}
    how = "those too many were null" if found > length else "there is no box in those too few"
    return {f"{found} segmentations made {length}: {how}": []}


def _kept(raw: dict, key: str, video: FixedVideo) -> list:
    """The entries of the frames that are left; null where the list is of no use."""
    values = raw[key] if is_frame_list(raw, key, video.length) else [None] * video.length
    return [values[frame] for frame in video.kept]


def _occlusion(raw: dict, video: FixedVideo, done: dict[str, list[int]]) -> list[str | None]:
    if not is_frame_list(raw, "occlusion", video.length):
        done["occlusion is no list of an entry a frame; set to null in all"] = []
    labels = _kept(raw, "occlusion", video)
    odd = [frame for frame, label in enumerate(labels) if label is not None and label not in OCCLUSION_LABELS]
    if odd:
        done["occlusion labels that OVIS does not have set to null"] = odd
    return [None if label not in OCCLUSION_LABELS else label for label in labels]


def _numbers(raw: dict, video: FixedVideo, done: dict[str, list[int]]) -> dict[str, Any]:
    """iscrowd, and what it repeats of its video."""
    changed = {key: value for key, value in video_fields(len(video.kept), video.size).items()
               if key in raw and raw[key] != value}  # fmt: skip
    for key, value in changed.items():
        done[f"{key} {shown(raw[key])} set to {value}, its video's"] = []
    iscrowd = raw.get("iscrowd", 0)
    if type(iscrowd) is not int or iscrowd not in (0, 1):
        # anything but 0 keeps an object out of training (CrossVIS specification 1.3)
        changed["iscrowd"] = 1 if iscrowd and whole(iscrowd) != 0 else 0
        done[f"iscrowd {shown(iscrowd)} set to {changed['iscrowd']}"] = []
    return changed


def _repair(raw: dict, did: str, frames: list[int], kept: Sequence[int]) -> Repair:
    old = tuple(kept[frame] for frame in frames)
    return Repair(did, shown_id(raw.get("video_id")), shown_id(raw.get("id")), old)
