"""Step 8: a frame's result as a line of JSON, written and read back: tracks.jsonl, and what the server sends.

In:     FrameTracks and FrameFaults of one stream, in order; the Categories of the network
Out:    a line a frame; or the records again
State:  none
Limits: lines of at most MAX_LINE_BYTES, frames with sides of at most MAX_SIDE, clips of at most MAX_CLIP frames
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from operators.errors import DatasetError
from operators.formats import Categories
from operators.json_files import compact_json
from operators.records import ClipPlace, FrameFault, FrameInfo, FrameTracks
from operators.youtube_vis_rle import check_compressed

MAX_LINE_BYTES = 64 << 20
"""A line of tracks.jsonl is a few kB; a longer one than this is no such file."""
MAX_SIDE = 16384
MAX_CLIP = 1 << 16
"""Frames of a clip."""


def track_line(tracks: FrameTracks, categories: Categories) -> str:
    """One line of tracks.jsonl, newline included; a frame without instances has "instances": [].

    time_s is rounded to 1e-6 s, scores to 1e-4, boxes to 0.01 pixels: a third of the bytes of full float32 numbers.
    Of networks that see clips, "delay_frames" says how many later frames this one had to wait for, "clip_frame" its
    place in its clip, from 0: scores and classes are the clip's, so they count at 0 alone.
    """
    scores = np.round(tracks.scores.astype(np.float64), 4).tolist()
    boxes = np.round(tracks.boxes.astype(np.float64), 2).tolist()
    instances = [
        {
            "track_id": track_id,
            "category": categories.names[label],
            "category_id": categories.ids[label],
            "score": score,
            "box": box,
            "segmentation": mask,
        }
        for track_id, label, score, box, mask in zip(
            tracks.track_ids.tolist(), tracks.labels.tolist(), scores, boxes, tracks.masks, strict=True
        )
    ]
    place = {} if tracks.clip is None else {"delay_frames": tracks.clip.delay, "clip_frame": tracks.clip.number}
    return compact_json(_frame_fields(tracks.info) | place | {"instances": instances}) + "\n"


def fault_line(fault: FrameFault) -> str:
    """The line of a frame that could not be decoded: no instances, and "error": why."""
    return compact_json(_frame_fields(fault.info) | {"instances": [], "error": fault.reason}) + "\n"


def read_jsonl(path: Path | str, categories: Categories | None = None) -> Iterator[FrameTracks | FrameFault]:
    """The records of a tracks.jsonl, line by line; an empty file gives none.

    Labels are the places of the category ids in `categories`; without it they are category_id - 1, which is the same
    for categories numbered 1..K. Of a line that says "delay_frames" alone, as they were at first, each frame counts as
    a clip of its own. Raises DatasetError, naming file and line, for a file that is missing, cut within a line, or
    holds anything else than such records.
    """
    labels = None if categories is None else {id_: label for label, id_ in enumerate(categories.ids)}
    try:
        with open(path, "rb") as file:
            number = 0
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if not line.endswith(b"\n"):
                    why = f"longer than {MAX_LINE_BYTES} bytes" if len(line) > MAX_LINE_BYTES else "has no end"
                    raise DatasetError(f"{path}, line {number}: {why}. The file was cut or is no tracks.jsonl.")
                yield _parse_line(line, labels, f"{path}, line {number}")
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror or error}.") from error


def _frame_fields(info: FrameInfo) -> dict[str, Any]:
    time_s = round(info.time_s, 6)
    return {"stream": info.stream, "frame": info.index, "time_s": time_s, "width": info.width, "height": info.height}


def _parse_line(line: bytes, labels: dict[int, int] | None, where: str) -> FrameTracks | FrameFault:
    try:
        record = _parse_record(json.loads(line), labels)
    except KeyError as error:
        raise DatasetError(f"{where}: no {error}. Expected a line of tracks.jsonl, of the same categories.") from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise DatasetError(f"{where}: {error}. Expected a line of tracks.jsonl.") from error
    if isinstance(record, FrameTracks):
        check_compressed(record.masks, lambda i: f"{where}, instance {i}")
    return record


def _parse_record(fields: dict[str, Any], labels: dict[int, int] | None) -> FrameTracks | FrameFault:
    info = _parse_info(fields)
    if "error" in fields:
        return FrameFault(info, str(fields["error"]))
    return replace(_parse_tracks(info, fields["instances"], labels), clip=_parse_place(fields))


def _parse_place(fields: dict[str, Any]) -> ClipPlace | None:
    if "delay_frames" not in fields:
        return None
    delay, number = fields["delay_frames"], fields.get("clip_frame", 0)
    for name, value in (("delay_frames", delay), ("clip_frame", number)):
        if type(value) is not int or not 0 <= value <= MAX_CLIP:
            raise ValueError(f"{name} is {value!r}, expected a whole number of frames, 0 to {MAX_CLIP}")
    return ClipPlace(number, delay)


def _parse_info(fields: dict[str, Any]) -> FrameInfo:
    stream, time_s = fields["stream"], float(fields["time_s"])
    index, height, width = (int(fields[key]) for key in ("frame", "height", "width"))
    if not isinstance(stream, str) or not math.isfinite(time_s) or index < 0:
        raise ValueError(f"stream {stream!r}, frame {index} at {time_s} s is none")
    if not (0 <= height <= MAX_SIDE and 0 <= width <= MAX_SIDE):
        raise ValueError(f"a frame of {width} x {height} pixels, expected sides of at most {MAX_SIDE}")
    return FrameInfo(stream, index, time_s, height, width)


def _parse_tracks(info: FrameInfo, instances: list[dict[str, Any]], labels: dict[int, int] | None) -> FrameTracks:
    count, ids = len(instances), [instance["category_id"] for instance in instances]
    track_ids = np.array([instance["track_id"] for instance in instances], np.int64).reshape(count)
    numbers = np.array([id_ - 1 if labels is None else labels[id_] for id_ in ids], np.int64).reshape(count)
    if len(set(track_ids.tolist())) != count or (numbers < 0).any():
        raise ValueError("a track id stands here twice, or a category id is below 1")
    scores = np.array([instance["score"] for instance in instances], np.float32).reshape(count)
    boxes = np.array([instance["box"] for instance in instances], np.float32).reshape(count, 4)
    if not (np.isfinite(scores).all() and np.isfinite(boxes).all()):
        raise ValueError("a score or a box is no number")
    masks = [instance["segmentation"] for instance in instances]
    for mask in masks:
        if mask["size"] != [info.height, info.width] or not isinstance(mask["counts"], str):
            raise ValueError(f"a mask is no compressed RLE of {info.height} x {info.width} pixels")
    return FrameTracks(info, track_ids, numbers, scores, boxes, tuple(masks))
