"""Step 8, DAVIS 2019 unsupervised: at most 20 of a video's tracks as numbered proposals, whatever their classes.

In:     FrameTracks and FrameFaults of one video, in order
Out:    a label map (H, W) uint8 of every frame: 0 background, 1 and on the proposals
State:  every mask of the video as RLE, because which tracks are best is known at its end: not for endless streams
Limits: `max_proposals`; a larger number is refused by the official program
Source: TLTM specification 4.7. As released (`choice: first`, `on_top: worst`) the first 20 tracks that began are kept,
        and the lowest score of a frame is painted last; its polygons, which fill holes and lose crumbs, are not
        followed. Proposals that match no object cost nothing in the metric, but the pixels that they take.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from operators.formats import cropped_mask, painting_order
from operators.records import FrameFault, FrameInfo, FrameTracks


@dataclass(frozen=True, kw_only=True)
class ProposalsConfig:
    """Which tracks become proposals, and which of them shows where several claim a pixel."""

    choice: Literal["best", "first"] = "best"
    """Which tracks, where there are more: those whose scores over all frames sum to most, or as released those of the
    lowest ids, the first to begin; an id is then the proposal's number less one."""
    on_top: Literal["best", "worst"] = "best"
    """Which mask has a pixel that several claim: that of the best score in the frame, or as released of the worst."""
    max_proposals: int = 20
    """Higher: more chances for every object, up to the 20 that DAVIS allows."""
    min_score: float = 0.0
    """Instances of a lower score in a frame are left out, 0..1. Higher: fewer weak masks; more frames without any."""

    def __post_init__(self) -> None:
        if not 1 <= self.max_proposals <= 20:
            raise ValueError(f"max_proposals is {self.max_proposals}, expected 1 to 20: DAVIS takes no more.")
        if not 0 <= self.min_score <= 1:
            raise ValueError(f"min_score is {self.min_score}, expected 0 to 1.")


class Proposals:
    """Folds the frames of one video; `maps` tells them once all have come."""

    def __init__(self, config: ProposalsConfig) -> None:
        self.config = config
        self._frames: list[FrameTracks | FrameFault] = []
        self._sums: dict[int, float] = defaultdict(float)

    def __len__(self) -> int:
        """Tracks so far."""
        return len(self._sums)

    def add(self, frame: FrameTracks | FrameFault) -> None:
        self._frames.append(frame)
        if isinstance(frame, FrameTracks):
            for track_id, score in zip(frame.track_ids.tolist(), frame.scores.tolist(), strict=True):
                if score >= self.config.min_score:
                    self._sums[track_id] += score

    def numbers(self) -> dict[int, int]:
        """Track id -> number of the proposal, 1 to at most `max_proposals`; no track: {}. Of equal sums the earlier."""
        most = self.config.max_proposals
        if self.config.choice == "first":
            return {track_id: track_id + 1 for track_id in sorted(self._sums) if 0 <= track_id < most}
        ranked = sorted(self._sums, key=lambda track_id: (-self._sums[track_id], track_id))
        return {track_id: number for number, track_id in enumerate(ranked[:most], start=1)}

    def maps(self) -> Iterator[tuple[FrameInfo, np.ndarray]]:
        """Every frame's label map, in order; a faulty one's is empty. Where no frame has a size there is none."""
        numbers, size = self.numbers(), self._first_size()
        for frame in self._frames:
            size = _size(frame) or size
            if size is not None:
                yield frame.info, self._map(frame, numbers, size)

    def _first_size(self) -> tuple[int, int] | None:
        return next((size for frame in self._frames if (size := _size(frame))), None)

    def _map(self, frame: FrameTracks | FrameFault, numbers: dict[int, int], size: tuple[int, int]) -> np.ndarray:
        labels = np.zeros(size, np.uint8)
        if isinstance(frame, FrameFault):
            return labels
        order = painting_order(frame, self.config.min_score)
        for i in order if self.config.on_top == "best" else reversed(order):
            number = numbers.get(int(frame.track_ids[i]))
            if number is not None:
                rows, columns, mask = cropped_mask(frame.masks[i])
                labels[rows, columns][mask] = number
        return labels


def _size(frame: FrameTracks | FrameFault) -> tuple[int, int] | None:
    info = frame.info
    return (info.height, info.width) if info.height and info.width else None
