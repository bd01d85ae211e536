"""What tracking is hard at: objects that leave and come back, look-alikes that meet; and what became of their ids.

In:     Dataset        the ground truth (youtube_vis_data.py)
        results        tracks of one of its videos (youtube_vis_results.py)
Out:    Case           by the truth alone: which objects, of which video, the last good frame before and the first after
        Outcome        whether each object has the track after it that it had before
State:  none
Source: our own definitions. An object's track in a frame is the one of its category with the largest mask IoU there, at
        least MIN_IOU; REACH frames are looked at, outwards from the case, for one that has a track.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from operators.id_switches import frame_ious
from operators.youtube_vis_data import Annotation, Dataset, Video
from operators.youtube_vis_results import Result
from operators.youtube_vis_rle import MaskTrack

Kind = Literal["re-entry", "look-alikes"]
Outcome = Literal["kept", "swapped", "changed", "unseen"]
"""All ids as before; each other's; some other; no track before or after."""

MIN_GAP = 2
"""Frames out of view that make a re-entry."""
MIN_SHARE = 0.5
"""Of an object's largest area: from here on it is well in view."""
BORDER = 1.0
"""Pixels from the frame's edge at which a box touches it."""
MIN_IOU, REACH = 0.5, 5


@dataclass(frozen=True)
class Case:
    """One thing that happens to one object, or to two of one category."""

    kind: Kind
    video: Video
    objects: tuple[Annotation, ...]
    before: int
    """The last frame before it in which all are well in view, and apart."""
    after: int
    """The first such frame after it."""

    @property
    def size(self) -> float:
        """Pixels of the smallest object, before or after."""
        return min(one.areas[frame] or 0.0 for one in self.objects for frame in (self.before, self.after))


def find_cases(dataset: Dataset) -> list[Case]:
    """All cases of a dataset, video by video; crowds have none. Frames are those that `bboxes` and `areas` tell of."""
    found: list[Case] = []
    for video in dataset.videos:
        objects = [a for a in dataset.annotations_of[video.id] if not a.iscrowd]
        for one in objects:
            found += _re_entries(video, one)
        for pair in combinations(objects, 2):
            if pair[0].category_id == pair[1].category_id:
                found += _meetings(video, pair)
    return found


def _re_entries(video: Video, one: Annotation) -> Iterator[Case]:
    seen = np.flatnonzero([bool(area) for area in one.areas])
    well = _well_in_view(one)
    for last, first in zip(seen[:-1].tolist(), seen[1:].tolist(), strict=True):
        leaves = all(touches_border(one.bboxes[frame], video) for frame in (last, first))
        if first - last > MIN_GAP and leaves:
            yield from _case("re-entry", video, (one,), well, last, first)


def _meetings(video: Video, pair: tuple[Annotation, Annotation]) -> Iterator[Case]:
    """From the first frame in which their boxes overlap to the last before they are well in view and apart again."""
    touching = [_overlap(pair[0].bboxes[t], pair[1].bboxes[t]) for t in range(video.length)]
    apart = _well_in_view(pair[0]) & _well_in_view(pair[1]) & ~np.array(touching, bool)
    frame = 0
    while frame < video.length:
        if not touching[frame]:
            frame += 1
            continue
        later = np.flatnonzero(apart[frame:])
        end = frame + int(later[0]) if len(later) else video.length
        yield from _case("look-alikes", video, pair, apart, frame, end)
        frame = end + 1


def _case(
    kind: Kind, video: Video, objects: tuple[Annotation, ...], good: np.ndarray, last: int, first: int
) -> Iterator[Case]:
    """The case, or nothing where there is no good frame on one of its sides."""
    before, after = np.flatnonzero(good[: last + 1]), first + np.flatnonzero(good[first:])
    if len(before) and len(after):
        yield Case(kind, video, objects, int(before[-1]), int(after[0]))


def _well_in_view(one: Annotation) -> np.ndarray:
    """(T,) bool."""
    areas = np.array([area or 0.0 for area in one.areas])
    return (areas > 0) & (areas >= MIN_SHARE * areas.max(initial=0.0))


def touches_border(box: Sequence[float] | None, video: Video) -> bool:
    """Whether a box [x, y, w, h] comes within BORDER of an edge of the frame; None is not there, and touches none."""
    if box is None:
        return False
    x, y, w, h = box
    return min(x, y, video.width - x - w, video.height - y - h) <= BORDER


def _overlap(a: Sequence[float] | None, b: Sequence[float] | None) -> bool:
    """Whether two boxes [x, y, w, h] have area in common; None has none."""
    if a is None or b is None:
        return False
    return all(min(a[k] + a[k + 2], b[k] + b[k + 2]) > max(a[k], b[k]) for k in (0, 1))


def track_at(dataset: Dataset, one: Annotation, tracks: dict[int, MaskTrack], frame: int) -> int | None:
    """Which of the tracks, of the object's category, shows it in a frame; None: none. The first of equals."""
    truth = MaskTrack.of([dataset.mask(one, frame)])
    at = [MaskTrack.of(list(track.masks[frame : frame + 1])) for track in tracks.values()]
    ious = frame_ious([truth], at, 0)[0]
    best = int(ious.argmax()) if len(ious) else 0
    return list(tracks)[best] if len(ious) and ious[best] >= MIN_IOU else None


def judge(dataset: Dataset, case: Case, results: Sequence[Result]) -> Outcome:
    """What became of the ids of a case's objects. `results` may be of any videos; their `index` is the id."""
    before, after = ids_of(dataset, case, results)
    if None in before or None in after:
        return "unseen"
    if before == after:
        return "kept"
    return "swapped" if len(before) == 2 and after == before[::-1] else "changed"


def ids_of(
    dataset: Dataset, case: Case, results: Sequence[Result]
) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
    """The track of each object before the case and after it."""
    own = [r for r in results if r.video_id == case.video.id]
    before, after = [], []
    for one in case.objects:
        tracks = {r.index: r.track() for r in own if r.category_id == one.category_id}

        def at(frame: int, one: Annotation = one, tracks: dict[int, MaskTrack] = tracks) -> int | None:
            return track_at(dataset, one, tracks, frame) if one.areas[frame] else None

        before.append(_first(at, range(case.before, max(case.before - REACH, -1), -1)))
        after.append(_first(at, range(case.after, min(case.after + REACH, case.video.length))))
    return tuple(before), tuple(after)


def _first(at: Callable[[int], int | None], frames: range) -> int | None:
    return next((track for frame in frames if (track := at(frame)) is not None), None)
