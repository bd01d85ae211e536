"""Step 8: results as others read them.

In:     FrameTracks and FrameFaults of one stream, in order; the Categories of the network
Out:    tracks.jsonl lines, YouTube-VIS result entries, label maps in the colours of DAVIS
State:  VideoTracks alone: every mask of the video as RLE until its results are asked for, because a YouTube-VIS entry
        holds a whole track. It grows with the length of the video (some 0.3 kB a mask): not for endless streams
Limits: sizes and line lengths of files that are read are bounded; indices of a label map are 1..254
Source: the layouts of YouTube-VIS results (score: mean over the track's records; `ranked`: IAI specification 4, "Video
        result") and of DAVIS 2017 annotations
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco

from operators.errors import DatasetError
from operators.records import ClipPlace, FrameFault, FrameInfo, FrameTracks
from operators.replacing import replacing
from operators.youtube_vis_results import read_results
from operators.youtube_vis_rle import check_compressed

MAX_LINE_BYTES = 64 << 20
"""A line of tracks.jsonl is a few kB; a longer one than this is no such file."""
MAX_SIDE = 16384
MAX_CLIP = 1 << 16
"""Frames of a clip."""
MAX_INDEX = 254
"""Largest object of a DAVIS label map: 0 is background, 255 void."""

CategoryRule = Literal["first", "majority", "ranked"]
"""Class of a whole track: of its first record, of most of them, or every class for itself, as `VideoTracks.results`
says."""


@dataclass(frozen=True)
class Categories:
    """The classes of a network: label k is called names[k], and ids[k] in files."""

    names: tuple[str, ...]
    ids: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.names) != len(self.ids) or len(set(self.ids)) != len(self.ids):
            raise ValueError(f"{len(self.names)} category names and ids {self.ids}: expected one id a name, none twice")

    @classmethod
    def numbered(cls, names: Iterable[str]) -> Categories:
        """Ids 1..K in the order of the names, as the YouTube-VIS sets and OVIS number theirs."""
        names = tuple(names)
        return cls(names, tuple(range(1, len(names) + 1)))

    def __len__(self) -> int:
        return len(self.names)


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
    return _json(_frame_fields(tracks.info) | place | {"instances": instances}) + "\n"


def fault_line(fault: FrameFault) -> str:
    """The line of a frame that could not be decoded: no instances, and "error": why."""
    return _json(_frame_fields(fault.info) | {"instances": [], "error": fault.reason}) + "\n"


def read_jsonl(path: Path | str, categories: Categories | None = None) -> Iterator[FrameTracks | FrameFault]:
    """The records of a tracks.jsonl, line by line; an empty file gives none.

    Labels are the places of the category ids in `categories`; without it they are category_id - 1, which is the same
    for categories numbered 1..K. Of a line that says "delay_frames" alone, as they were at first, each frame counts as
    a clip of its own. Raises DatasetError, naming file and line, for a file that is missing, cut within a
    line, or holds anything else than such records.
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


@dataclass
class _Track:
    """What VideoTracks keeps of one track: a mask a frame, and what score and category are made of."""

    labels: list[int] = field(default_factory=list)
    score_sum: float = 0.0
    masks: dict[int, dict] = field(default_factory=dict)
    class_sum: np.ndarray | float = 0.0
    """(K,) float64: its class vectors, added up; 0.0 for tracks without."""


class VideoTracks:
    """Folds the frames of one video into one YouTube-VIS entry a track; what it holds: see the top of this file."""

    def __init__(self) -> None:
        self.num_frames = 0
        """Frames up to the last one seen, those without a result included."""
        self._tracks: dict[int, _Track] = {}
        self._unshown: np.ndarray | float = 0.0

    def __len__(self) -> int:
        return len(self._tracks)

    def add(self, tracks: FrameTracks) -> None:
        """Take in the next frame. Track ids are unique within it."""
        self.skip(tracks.info)
        if tracks.unshown_scores is not None:
            self._unshown = self._unshown + tracks.unshown_scores.astype(np.float64)
        vectors = [0.0] * len(tracks) if tracks.class_scores is None else tracks.class_scores.astype(np.float64)
        for track_id, label, score, mask, vector in zip(
            tracks.track_ids.tolist(), tracks.labels.tolist(), tracks.scores.tolist(), tracks.masks, vectors,
            strict=True,
        ):  # fmt: skip
            track = self._tracks.setdefault(track_id, _Track())
            track.class_sum = track.class_sum + vector
            track.masks[tracks.info.index] = mask
            if tracks.clip is None or tracks.clip.number == 0 or not track.labels:
                track.labels.append(label)
                track.score_sum += score

    def skip(self, info: FrameInfo) -> None:
        """Count a frame that has no result: every track is absent from it."""
        self.num_frames = max(self.num_frames, info.index + 1)

    def results(
        self, video_id: int, categories: Categories, num_frames: int | None = None, category: CategoryRule = "first",
        most: int = 10, above: float = 0.05,
    ) -> list[dict[str, Any]]:
        """One entry a track, in the order in which they were first seen; no track gives [].

        score           plain mean over the frames that have a record of the track; of clips, over these
        category_id     that of the first record, or of most of them ("majority"; the lowest id where votes are equal)
        segmentations   `num_frames` items (default: up to the last frame seen): the frame's RLE, which may be all zero,
                        or None where the track has no record

        "ranked" (for tracks with class vectors) makes entries of pairs of track and class instead, the best first:

        score           class vectors summed, over all frames of the video; the `most` best, if `above`
        segmentations   None before the track's first record, an RLE without pixels where it has none later

        Unshown instances count together as one more track: pairs with it take places, and are None throughout.
        """
        length = self.num_frames if num_frames is None else max(num_frames, self.num_frames)
        if category == "ranked":
            return self._ranked(video_id, categories, length, most, above)
        return [
            {
                "video_id": video_id,
                "category_id": _category_id(track.labels, categories, category),
                "score": track.score_sum / len(track.labels),
                "segmentations": [track.masks.get(index) for index in range(length)],
            }
            for track in self._tracks.values()
        ]

    def _ranked(
        self, video_id: int, categories: Categories, length: int, most: int, above: float
    ) -> list[dict[str, Any]]:
        if any(isinstance(track.class_sum, float) for track in self._tracks.values()):
            raise ValueError("tracks without class vectors cannot be ranked by class; ask for 'first' or 'majority'")
        tracks = [*self._tracks.values(), _Track(class_sum=self._unshown)]
        sums = [np.broadcast_to(track.class_sum, len(categories)) for track in tracks]
        scores = np.stack(sums).ravel() / max(length, 1)                                    # track by track
        best = np.argsort(-scores, kind="stable")[:most]
        pairs = [divmod(int(pair), len(categories)) for pair in best if scores[pair] > above]
        return [
            {
                "video_id": video_id,
                "category_id": categories.ids[label],
                "score": float(scores[track * len(categories) + label]),
                "segmentations": _since_first(tracks[track].masks, length),
            }
            for track, label in pairs
        ]


def write_results(path: Path | str, entries: Sequence[dict[str, Any]]) -> None:
    """Write YouTube-VIS results, an entry a line; the file is there whole or not at all. No entry gives []."""
    with replacing(path) as part:
        part.write_text(_results_text([_json(entry) for entry in entries]), encoding="ascii")


def merge_results(paths: Iterable[Path | str], out: Path | str) -> int:
    """Join the results.json of several videos into one for the evaluation server; gives the number of entries.

    One video is in memory at a time. `out` is replaced only when all went well; no paths give a file with [].
    Raises DatasetError for a file that is missing or holds no results.
    """
    count = 0
    with replacing(out) as part, part.open("w", encoding="ascii") as file:
        file.write("[")
        for path in paths:
            for entry in read_results(path):
                file.write(("," if count else "") + "\n" + _json(entry))
                count += 1
        file.write("\n]\n" if count else "]\n")
    return count


def davis_palette() -> np.ndarray:
    """The colours of DAVIS and VOC label maps, (256, 3) uint8: index bits 0, 3, 6 make red, 1, 4, 7 green, 2, 5 blue.

    The lowest bit taken becomes the highest bit of the channel: 1 is (128, 0, 0), 8 is (64, 0, 0).
    """
    index = np.arange(256)[:, None]  # (256, 1)
    channel = np.arange(3)[None]  # (1, 3)
    colors = np.zeros((256, 3), np.int64)
    for k in range(3):
        colors |= (index >> (3 * k + channel) & 1) << (7 - k)
    return colors.astype(np.uint8)


def painting_order(tracks: FrameTracks, min_score: float) -> list[int]:
    """Which instances to paint, one over the other: those of `min_score` and more, the best last, so that it shows.

    Of equal scores the one found first shows.
    """
    best_first = np.argsort(-tracks.scores, kind="stable")
    return [i for i in best_first[::-1].tolist() if tracks.scores[i] >= min_score]


def label_map(tracks: FrameTracks, min_score: float = 0.0) -> tuple[np.ndarray, list[int]]:
    """The frame as one map (H, W) uint8, 0 background, track_id + 1 where a track is; no tracks give zeros.

    Where masks overlap, the higher score is on top. Gives also the ids of tracks that do not fit into 1..254.
    """
    info = tracks.info
    labels = np.zeros((info.height, info.width), np.uint8)
    dropped = []
    for i in painting_order(tracks, min_score):
        track_id = int(tracks.track_ids[i])
        if not 0 <= track_id < MAX_INDEX:
            dropped.append(track_id)
            continue
        rows, columns, mask = cropped_mask(tracks.masks[i])
        labels[rows, columns][mask] = track_id + 1
    return labels, dropped


def cropped_mask(rle: dict[str, Any]) -> tuple[slice, slice, np.ndarray]:
    """Rows and columns within which a mask has pixels, and the mask there (h, w) bool; all empty for an empty mask."""
    x, y, w, h = (int(side) for side in coco.toBbox(rle))
    rows, columns = slice(y, y + h), slice(x, x + w)
    # pycocotools decodes column by column; images lie row by row, and indexing across costs cache misses
    return rows, columns, np.ascontiguousarray(coco.decode(rle)[rows, columns]).view(bool)


def _since_first(masks: dict[int, dict], length: int) -> list[dict | None]:
    """A mask a frame: None before the first, one without pixels where there is none later; no masks give all None."""
    if not masks:
        return [None] * length
    first, size = min(masks), next(iter(masks.values()))["size"]
    encoded = coco.encode(np.zeros(size, np.uint8, order="F"))
    empty = {"size": size, "counts": encoded["counts"].decode("ascii")}
    return [None] * first + [masks.get(index, empty) for index in range(first, length)]


def _frame_fields(info: FrameInfo) -> dict[str, Any]:
    time_s = round(info.time_s, 6)
    return {"stream": info.stream, "frame": info.index, "time_s": time_s, "width": info.width, "height": info.height}


def _json(value: Any) -> str:
    # ASCII, so that a file name that is not UTF-8 survives; NaN would not be JSON
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _results_text(lines: list[str]) -> str:
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"


def _category_id(labels: list[int], categories: Categories, rule: CategoryRule) -> int:
    if rule == "first":
        return categories.ids[labels[0]]
    votes = Counter(categories.ids[label] for label in labels)
    return min(votes, key=lambda id_: (-votes[id_], id_))


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
