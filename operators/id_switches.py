"""How often tracks change hands: ID switches of mask tracks, after CLEAR MOT.

In:     Dataset        the ground truth (youtube_vis_data.py)
        results        a list of tracks as the evaluation server takes it (youtube_vis_results.py)
Out:    SwitchCount    of every video, and their sum
State:  none

What is counted. Results of the category of an object and with a score of at least `min_score` are its candidates; the
track's identity is its place in the results. In every frame, objects and candidates whose masks there have an IoU of
at least `min_iou` are paired, one to one, in two turns, each from the highest IoU down:

1. an object with the track that it had at its last matched frame, however long ago;
2. the objects and tracks that are left. At equal IoU the earlier object, then the earlier track of the file goes first.

An object paired with another track than at its last matched frame is one switch. An object's first track is none, and
neither is a gap after which the same track goes on. Crowds are not objects; an object without pixels is
not in a frame.

Source: K. Bernardin and R. Stiefelhagen, "Evaluating Multiple Object Tracking Performance: The CLEAR MOT Metrics",
        2008, section 2: correspondences that still hold are kept before new ones are sought, and a mismatch is counted
        against the last known correspondence; here that outlives a gap. There the rest is paired for the best total;
        as masks of objects do not overlap, at most one of them has an IoU above 0.5 with a track, and at the default
        `min_iou` both ways give the same number of pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from pycocotools import mask as coco_mask

from operators.errors import DatasetError
from operators.youtube_vis_data import Annotation, Dataset
from operators.youtube_vis_results import Result, parse_results
from operators.youtube_vis_rle import MaskTrack


@dataclass(frozen=True, kw_only=True)
class SwitchConfig:
    """What counts as found."""

    min_score: float = 0.3
    """Smallest score of a track, 0..1. Higher: fewer tracks to switch to, but more objects without any."""
    min_iou: float = 0.5
    """Smallest mask IoU of a pair, above 0. Higher: poor masks are no longer matched, so cannot switch either."""


@dataclass(frozen=True)
class SwitchCount:
    """Read `switches` beside `matched`: who finds nothing never switches."""

    switches: int = 0
    matched: int = 0
    """Frames of objects that a track was paired with."""
    visible: int = 0
    """Frames of objects in all, those with pixels."""

    def __add__(self, other: SwitchCount) -> SwitchCount:
        return SwitchCount(
            self.switches + other.switches, self.matched + other.matched, self.visible + other.visible
        )  # fmt: skip


@dataclass(frozen=True)
class Switches:
    """The count over all videos, and of each by its id."""

    total: SwitchCount
    per_video: dict[int, SwitchCount]


def count_switches(
    dataset: Dataset,
    results: list[dict],
    config: SwitchConfig = SwitchConfig(),  # noqa: B008  frozen
    progress: Callable[[int, int], None] | None = None,
) -> Switches:
    """ID switches by the definition above; without results nothing is matched, and nothing switches.

    `progress` is called with videos done and videos in all. Raises DatasetError for a result that is malformed,
    damaged, or of a video that the dataset does not have.
    """
    found: dict[int, list[Result]] = {video.id: [] for video in dataset.videos}
    for result in parse_results(results):
        if result.video_id not in found:
            raise DatasetError(f"{result.where}: {dataset.path} has no video {result.video_id}.")
        if result.score >= config.min_score:
            found[result.video_id].append(result)
    per_video = {}
    for done, video in enumerate(dataset.videos, start=1):
        objects = [a for a in dataset.annotations_of[video.id] if not a.iscrowd]
        per_video[video.id] = switches_of_video(dataset, objects, found[video.id], config.min_iou)
        if progress:
            progress(done, len(dataset.videos))
    return Switches(sum(per_video.values(), SwitchCount()), per_video)


def switches_of_video(
    dataset: Dataset, objects: Sequence[Annotation], results: Sequence[Result], min_iou: float
) -> SwitchCount:
    """The count of one video: its objects and tracks folded through `pair`, frame by frame."""
    truths = [MaskTrack.of(dataset.masks(annotation)) for annotation in objects]
    tracks = [result.track() for result in results]
    same = np.array([[o.category_id == r.category_id for r in results] for o in objects], dtype=bool)
    same = same.reshape(len(objects), len(results))
    held: dict[int, int] = {}
    switches = matched = 0
    for frame in range(max((len(truth.masks) for truth in truths), default=0)):
        pairs = pair(np.where(same, frame_ious(truths, tracks, frame), 0.0), held, min_iou)
        switches += sum(held.get(g, track) != track for g, track in pairs.items())
        matched += len(pairs)
        held |= pairs
    visible = sum(int(np.count_nonzero(truth.areas)) for truth in truths)
    return SwitchCount(switches, matched, visible)


def pair(ious: np.ndarray, held: Mapping[int, int], min_iou: float) -> dict[int, int]:
    """Object -> track in one frame, one to one.  ious (G, D), and the track that each object had last, if any."""
    candidates = [(int(g), int(d)) for g, d in np.argwhere((ious >= min_iou) & (ious > 0))]
    # those that keep their track first; a stable sort, so at equal IoU the earlier of the file stays in front
    candidates.sort(key=lambda gd: (held.get(gd[0]) != gd[1], -ious[gd]))
    pairs: dict[int, int] = {}
    taken: set[int] = set()
    for g, track in candidates:
        if g not in pairs and track not in taken:
            pairs[g] = track
            taken.add(track)
    return pairs


def frame_ious(truths: Sequence[MaskTrack], tracks: Sequence[MaskTrack], frame: int) -> np.ndarray:
    """Mask IoU in one frame (G, D); 0 where one side has no mask, has ended, or is of another size."""
    ious = np.zeros((len(truths), len(tracks)))
    rows = [g for g, truth in enumerate(truths) if frame < len(truth.masks) and truth.areas[frame]]
    cols = [d for d, track in enumerate(tracks) if frame < len(track.masks) and track.areas[frame]]
    if rows and cols:
        found = coco_mask.iou(
            [truths[g].masks[frame] for g in rows], [tracks[d].masks[frame] for d in cols], [False] * len(cols)
        )
        ious[np.ix_(rows, cols)] = np.maximum(found, 0.0)      # COCO gives -1 for masks of different size
    return ious
