"""Step 2 of training, a frame of a draw before its image is decoded: its sizes, its boxes, its masks as bits.

In:     a draw, the network's input
Out:    `Prepared`; boxes (G, 4), and planes (h, w, P) or soft masks (h, w, G), as the graph and the network take them
State:  none
Source: CrossVIS specification 1.6: boxes scaled, mirrored (x -> w - x) and clipped, masks by nearest; 3.8: polygons
        rasterised at the resized size; TLTM specification 1.4: boxes of what moves; CiCo specification 1.1, 1.2, 1.6:
        boxes to their last pixel, frames fitted into a box, turned over; masks resized as the image
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from models.inputs import InputConfig
from operators.preprocess import resize_to
from operators.youtube_vis_data import Dataset
from operators.youtube_vis_rle import Where
from trainers.augment import UNCHANGED, Changes, move_boxes
from trainers.frames import FrameAnnotations
from trainers.planes import bounds_of, paint, paint_soft


class AnyDraw(Protocol):
    """T frames of one video, and what is done to each."""

    @property
    def frames(self) -> tuple[FrameAnnotations, ...]: ...

    @property
    def flips(self) -> tuple[bool, ...]: ...

    @property
    def scales(self) -> tuple[tuple[int, int], ...] | None:
        """(short, long) side of each; None: those of the network's input."""
        ...

    @property
    def changes(self) -> tuple[Changes, ...] | None: ...


@dataclass(frozen=True)
class SampleName:
    """What a sample of a batch was made of, for those who have to look it up."""

    video: str
    """Its id, and the name of its folder or file."""
    frames: tuple[int, ...]
    """Places in the video, from 0."""
    files: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """One frame of a draw, before its image is decoded."""

    frame: FrameAnnotations
    size: tuple[int, int]
    """(h, w) to resize to."""
    start: tuple[int, int]
    """(top, left) of the window of the resized frame that is kept."""
    kept: tuple[int, int]
    """(h, w) of that window; all of the resized frame unless it was enlarged."""
    sheet: tuple[int, int]
    """(h, w) of what it lies on, at the top left: larger than the window where the frame was shrunk."""
    flip: bool
    changes: Changes
    identity: Mapping[int, int]
    """Annotation id -> what the network is to know the instance by."""

    @property
    def stored(self) -> tuple[int, int]:
        """(H, W) of the stored frame."""
        return self.frame.video.height, self.frame.video.width


def prepare(draw: AnyDraw, t: int, cfg: InputConfig, identity: Mapping[int, int]) -> Prepared:
    """The t-th frame of a draw."""
    video, changes = draw.frames[t].video, UNCHANGED if draw.changes is None else draw.changes[t]
    sides = (cfg.short_side, cfg.long_side, cfg.fit) if draw.scales is None else draw.scales[t]
    size = resize_to(video.height, video.width, *sides)
    place = (size, (0, 0), size) if changes.window is None else changes.window.place(size)
    sheet = (cfg.short_side, cfg.long_side) if draw.scales is None and cfg.fit == "box" else size
    return Prepared(draw.frames[t], *place, sheet, draw.flips[t], changes, identity)


def name_of(draw: AnyDraw) -> SampleName:
    """The video and the frames of a draw."""
    video = draw.frames[0].video
    folder = Path(draw.frames[0].file_name).parent.name
    return SampleName(
        f"{video.id} ({folder})" if folder else str(video.id),
        tuple(f.frame for f in draw.frames), tuple(f.file_name for f in draw.frames),
    )  # fmt: skip


def transform_boxes(one: Prepared, *, upside_down: bool = False, inclusive: bool = False) -> np.ndarray:
    """Annotated boxes moved, scaled and cut as the frame, mirrored with it (x -> w - x), and clipped.  (G, 4) float32

    `upside_down`: it is turned over, not mirrored (y -> h - y). `inclusive`: boxes end at their last pixel.
    """
    (height, width), (top, left), (h, w) = one.stored, one.start, one.kept
    boxes = one.frame.boxes()
    boxes[:, 2:] -= float(inclusive)
    if one.changes.motion is not None:
        boxes = move_boxes(boxes, one.changes.motion, width, height)
    boxes = boxes * np.array([one.size[1] / width, one.size[0] / height] * 2, np.float32)
    boxes -= np.array([left, top] * 2, np.float32)
    if one.flip and upside_down:
        boxes[:, [1, 3]] = h - boxes[:, [3, 1]]
    elif one.flip:
        boxes[:, [0, 2]] = w - boxes[:, [2, 0]]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, w)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, h)
    return boxes


def planes_of(dataset: Dataset, one: Prepared) -> np.ndarray:
    """The masks of a frame, painted at the resized size, or of one that moves at the stored size: (h, w, P).

    Polygons are rasterised at that size, runs resized to it. Raises DatasetError naming the annotation.
    """
    size = one.size if one.changes.motion is None else one.stored
    given, where = _given(dataset, one.frame)
    outlines = [isinstance(segmentation, list) for segmentation in given]
    if not any(outlines):
        return paint(bounds_of(given, one.stored, where), one.stored, size, exclusive=one.changes.exclusive)
    down, across = size[0] / one.stored[0], size[1] / one.stored[1]
    runs = bounds_of([None if o else g for g, o in zip(given, outlines, strict=True)], one.stored, where)
    drawn = bounds_of([_scaled(g, across, down) if o else None for g, o in zip(given, outlines, strict=True)], size,
                      where)  # fmt: skip
    if size == one.stored:
        both = [drawn[g] if is_outline else runs[g] for g, is_outline in enumerate(outlines)]
        return paint(both, size, size, exclusive=one.changes.exclusive)
    assert not one.changes.exclusive, "only frames that move are painted so, and those at their stored size"
    return paint(runs, one.stored, size) | paint(drawn, size, size)


def soft_masks_of(dataset: Dataset, one: Prepared) -> np.ndarray:
    """The masks of a frame as 0/1 maps of the stored size, polygons too, resized as its image: (h, w, max(G, 1)) uint8,
    shares of FULL. Raises DatasetError naming the annotation."""
    given, where = _given(dataset, one.frame)
    return paint_soft(bounds_of(given, one.stored, where), one.stored, one.size)


def _given(dataset: Dataset, frame: FrameAnnotations) -> tuple[list[Any], Where]:
    """The masks of a frame as they stand in the file, and how to name one in an error."""
    def where(i: int) -> str:
        return f"{dataset.path}: video {frame.video.id}, annotation {frame.annotations[i].id}, frame {frame.frame}"

    return [a.segmentations[frame.frame] for a in frame.annotations], where


def _scaled(outlines: list, across: float, down: float) -> list:
    """Polygons brought to another size."""
    try:
        return [(np.array(ring, np.float64).reshape(-1, 2) * [across, down]).ravel().tolist() for ring in outlines]
    except (TypeError, ValueError):
        return outlines                     # no polygons: refused with their place where they are rasterised


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """The tight box of each mask (G, H, W) bool: (G, 4) float32 xyxy, whole pixels; zeros where a mask is empty."""
    found = []
    for axis in (1, 2):                                         # columns, then rows
        line = any_along(masks, axis)                                                             # (G, n)
        first = line.float().argmax(1)
        end = line.shape[1] - line.flip(1).float().argmax(1)
        found.append((first, torch.where(line.any(1), end, first)))
    (x1, x2), (y1, y2) = found
    return torch.stack([x1, y1, x2, y2], dim=1).float().cpu()


def any_along(masks: torch.Tensor, axis: int = 1) -> torch.Tensor:
    """`masks.any(axis)`, which takes thirty times as long as a maximum."""
    return masks.view(torch.uint8).amax(axis).bool()
