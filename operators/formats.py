"""Step 8: results as others read them. What a frame is in tracks.jsonl stands in jsonl.py.

In:     FrameTracks of one stream, in order; the Categories of the network
Out:    YouTube-VIS result entries, label maps in the colours of DAVIS
State:  VideoTracks alone: every mask of the video as RLE until its results are asked for, because a YouTube-VIS entry
        holds a whole track. It grows with the length of the video (some 0.3 kB a mask): not for endless streams
Limits: indices of a label map are 1..254
Source: the layouts of YouTube-VIS results (score: mean over the track's records; `ranked`: IAI specification 4, "Video
        result") and of DAVIS 2017 annotations
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools import mask as coco

from operators.json_files import compact_json
from operators.records import FrameInfo, FrameTracks
from operators.replacing import replacing
from operators.youtube_vis_results import read_results

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
        part.write_text(_results_text([compact_json(entry) for entry in entries]), encoding="ascii")


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
                file.write(("," if count else "") + "\n" + compact_json(entry))
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


def _results_text(lines: list[str]) -> str:
    return "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n"


def _category_id(labels: list[int], categories: Categories, rule: CategoryRule) -> int:
    if rule == "first":
        return categories.ids[labels[0]]
    votes = Counter(categories.ids[label] for label in labels)
    return min(votes, key=lambda id_: (-votes[id_], id_))
