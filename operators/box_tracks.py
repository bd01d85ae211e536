"""Step 7, the baseline: track ids by box overlap alone, SORT without its Kalman filter.

In:     boxes (N, 4) of a frame's detections, in any pixels
Out:    ids (N,) int64, -1 for a detection whose track is not shown yet
State:  BoxTracks  one per stream: of each of M tracks the last box, for how long unseen, how often found in a row
Limits: tracks end after `max_unseen` frames, so M stays within max_unseen + 1 frames' detections
Source: Bewley et al., Simple Online and Realtime Tracking, ICIP 2016; TLTM specification 5. A track's first detection
        does not count as a hit, as in SORT. Classes are not asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from operators.boxes import box_iou


@dataclass(frozen=True, kw_only=True)
class BoxTracksConfig:
    """The paper gives no values; these are what is suggested for average precision (specification 5)."""

    min_iou: float = 0.3
    """Smallest overlap with a track's last box. Higher: fewer mixed-up tracks, more new ids."""
    max_unseen: int = 5
    """Frames a track outlives being unseen. Higher: survives longer occlusion, where the object stays in place."""
    min_hits: int = 1
    """Times in a row that a track must be found again before it is shown; in a stream's first `min_hits` frames all
    are. Higher: fewer false tracks, later beginnings. 0 shows all."""

    def __post_init__(self) -> None:
        if not 0 < self.min_iou <= 1:
            raise ValueError(f"min_iou is {self.min_iou}, expected above 0 and at most 1")
        if min(self.max_unseen, self.min_hits) < 0:
            raise ValueError(f"max_unseen {self.max_unseen} and min_hits {self.min_hits} must be at least 0")


def _none() -> Tensor:
    return torch.zeros(0, dtype=torch.int64)


@dataclass(frozen=True)
class BoxTracks:
    """M tracks, oldest first. A stream begins with `BoxTracks()`."""

    track_ids: Tensor = field(default_factory=_none)
    """(M,) int64, rising."""
    boxes: Tensor = field(default_factory=lambda: torch.zeros(0, 4))
    """(M, 4) float32 xyxy: where each was last found."""
    unseen: Tensor = field(default_factory=_none)
    """(M,) int64: frames since then."""
    hits: Tensor = field(default_factory=_none)
    """(M,) int64: times found in a row, up to now, without the first."""
    next_id: int = 0
    frames: int = 0
    """Frames of the stream so far."""

    def __len__(self) -> int:
        return len(self.track_ids)


def match(overlap: Tensor, min_iou: float) -> tuple[Tensor, Tensor]:
    """Pair detections with tracks, one to one, for the largest total of overlap (N, M); then drop pairs below
    `min_iou`. Rows and columns of the pairs, (n,) int64 each."""
    from scipy.optimize import linear_sum_assignment  # here: 0.4 s of CPU that every replica would begin with

    values = overlap.double().cpu().numpy()
    rows, columns = linear_sum_assignment(values, maximize=True)
    kept = values[rows, columns] >= min_iou
    return torch.from_numpy(rows[kept]).long(), torch.from_numpy(columns[kept]).long()


def advance(tracks: BoxTracks, boxes: Tensor, cfg: BoxTracksConfig) -> tuple[BoxTracks, Tensor]:
    """One frame, which may be empty: match, refresh, start a track for each detection that is left, end old ones."""
    boxes, frames = boxes.float().cpu(), tracks.frames + 1
    found, row = match(box_iou(boxes, tracks.boxes), cfg.min_iou)
    places, unseen, hits = tracks.boxes.clone(), tracks.unseen + 1, tracks.hits.clone()
    hits[tracks.unseen > 0] = 0                             # the row is broken only once a frame has gone by
    places[row], unseen[row], hits[row] = boxes[found], 0, hits[row] + 1
    track = torch.full((len(boxes),), -1, dtype=torch.int64)
    track[found] = row
    new = (track < 0).nonzero().squeeze(1)
    track[new] = torch.arange(len(new)) + len(tracks)
    born = torch.zeros_like(new)
    ids = torch.cat([tracks.track_ids, torch.arange(len(new)) + tracks.next_id])
    places, unseen, hits = torch.cat([places, boxes[new]]), torch.cat([unseen, born]), torch.cat([hits, born])
    shown = (hits >= cfg.min_hits) | (frames <= cfg.min_hits)
    out = torch.where(shown[track], ids[track], -1)
    alive = unseen <= cfg.max_unseen
    after = BoxTracks(ids[alive], places[alive], unseen[alive], hits[alive], tracks.next_id + len(new), frames)
    return after, out
