"""Step 8, first half: low-resolution mask logits to masks of the original frame, as run lengths.

In:     FrameDetections  with track ids; mask_logits on the device, (N, Hp/4, Wp/4) over the padded input or, of
                         two-stage networks, (N, Hm, Wm) over each instance's box; where they are `exclusive`, a pixel
                         is that of the first instance that claims it
Out:    FrameTracks      numpy arrays and COCO compressed RLE: a few kB, off the device; instances whose track id is
                         UNSHOWN are left out once they have claimed their pixels
State:  none
Source: CrossVIS specification 4.1 step 5: sigmoid at stride 4, aligned x4, cut to the resized frame, ordinary bilinear
        to the original size, above 0.5. A mask without a pixel is kept, as an RLE of zeros. For boxes He et al., Mask
        R-CNN, ICCV 2017, 3.1: the mask resized to its box, above 0.5; the specification (5.2) has no more to say.
        Exclusive masks: IAI specification 4 step 8, at the original size.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from operators.crossings import mask_runs, runs_of_spans
from operators.records import UNSHOWN, FrameDetections, FrameTracks

MASK_STRIDE = 4


def _lerp(positions: Tensor, cells: int) -> Tensor:
    """Linear interpolation at `positions` (n,), clamped to the first and last of `cells`, as a matrix (n, cells)."""
    positions = positions.clamp(0, cells - 1)
    low = positions.floor().long().clamp(max=max(cells - 2, 0))
    high = (low + 1).clamp(max=cells - 1)
    share = positions - low
    matrix = torch.zeros(len(positions), cells, dtype=torch.float64)
    rows = torch.arange(len(positions))
    matrix[rows, high] += share
    matrix[rows, low] += 1 - share
    return matrix


class _Canvas:
    """Which pixels of a frame have an owner, where masks exclude each other; else nothing."""

    def __init__(self, height: int, width: int, exclusive: bool) -> None:
        self._taken = np.zeros((width, height), bool) if exclusive else None

    def claim(self, window: np.ndarray, left: int, top: int) -> np.ndarray:
        """Of a mask's window (w, h) bool at (left, top) what no mask before it has."""
        if self._taken is None:
            return window
        taken = self._taken[left : left + window.shape[0], top : top + window.shape[1]]
        own = window & ~taken
        taken |= window
        return own


def encode_masks(
    mask_logits: Tensor, size: tuple[int, int], height: int, width: int, exclusive: bool = False
) -> tuple[dict, ...]:
    """(N, Hp/4, Wp/4) logits -> N COCO compressed RLEs of height x width, `counts` as text. No instance: ().

    The frame fills `size` (h, w) of the padded input. operators/crossings.py finds the runs from the outlines.
    `exclusive`: a pixel that several masks claim is the first one's.
    """
    probability = mask_logits.float().sigmoid().cpu().numpy()
    down = pixel_places(probability.shape[1], size[0], height)
    across = pixel_places(probability.shape[2], size[1], width)
    runs = mask_runs(probability, down, across)
    return _exclusive(runs, height, width) if exclusive else _compress(runs, height, width)


def _exclusive(runs: list[list[int]], height: int, width: int) -> tuple[dict, ...]:
    """Of each mask the pixels that none before it has. One by one: each waits for what those before it leave."""
    masks = _compress(runs, height, width)
    others = _compress([counts[1:] if counts[0] == 0 else [0, *counts] for counts in runs], height, width)
    own, (free,) = [], _compress([[0, height * width]], height, width)
    for mask, other in zip(masks, others, strict=True):
        own.append(_with_text(coco.merge([mask, free], intersect=True)))
        free = coco.merge([free, other], intersect=True)
    return tuple(own)


@functools.lru_cache(maxsize=64)
def pixel_places(cells: int, resized: int, pixels: int) -> np.ndarray:
    """Where the pixels of one axis of a frame lie among the cells of its masks: (pixels,) float64, rising.

    The frame fills the first `resized` of 4 x `cells` input pixels; before it was resized it had `pixels`. Aligned x4,
    then half-pixel bilinear: the first is straight between any two input pixels, so the second samples it as it is.
    """
    resized_place = np.clip((np.arange(pixels) + 0.5) * (resized / pixels) - 0.5, 0, resized - 1)
    return np.clip((resized_place - MASK_STRIDE // 2) / MASK_STRIDE, 0, cells - 1)


def encode_box_masks(
    mask_logits: Tensor, boxes: Tensor, height: int, width: int, exclusive: bool = False
) -> tuple[dict, ...]:
    """(N, Hm, Wm) logits that fill boxes (N, 4), in pixels of a frame of height x width -> N RLEs. No instance: ().

    A pixel is the mask's if its centre lies in the box and the probability there, bilinear between the centres of the
    mask's cells, is above 0.5. Boxes may be of any size and reach out of the frame: only what lies in it is painted.
    `exclusive`: a pixel that several masks claim is the first one's.
    """
    probability = mask_logits.float().sigmoid().cpu()
    runs, canvas = [], _Canvas(height, width, exclusive)
    for mask, (x1, y1, x2, y2) in zip(probability, boxes.double().tolist(), strict=True):
        top, rows = _box_axis(y1, y2, mask.shape[0], height)
        left, columns = _box_axis(x1, x2, mask.shape[1], width)
        part = columns @ mask.T @ rows.T                                                 # (w, h) of the box
        runs.append(window_runs(canvas.claim((part > 0.5).numpy(), left, top), left, top, height, width))
    return _compress(runs, height, width)


def _box_axis(low: float, high: float, cells: int, pixels: int) -> tuple[int, Tensor]:
    """The first of `pixels` whose centre lies in low <= centre < high, and how it and those after it look at `cells`
    that fill low .. high: (n, cells) float32, rows sum to 1."""
    begin, end = (min(max(math.ceil(edge - 0.5), 0), pixels) for edge in (low, high))
    centers = torch.arange(begin, max(begin, end), dtype=torch.float64) + 0.5
    return begin, _lerp((centers - low) / (high - low) * cells - 0.5, cells).float()


def window_runs(window: np.ndarray, left: int, top: int, height: int, width: int) -> list[int]:
    """Run lengths, down the columns and background first, of a mask that is `window` (w, h) bool, column by column, at
    (left, top), and nothing elsewhere in height x width."""
    w, h = window.shape
    pixels = np.zeros(1 + w * (h + 1), bool)            # background before the first column, and after each
    pixels[1:].reshape(w, h + 1)[:, :h] = window
    change = np.flatnonzero(pixels[1:] != pixels[:-1])                                  # begin, end, begin, end, ...
    column, row = np.divmod(change, h + 1)
    place = (left + column) * height + top + row
    begin, end = place[0::2], place[1::2]
    return runs_of_spans(np.zeros(len(begin), np.int64), begin, end, 1, height * width)[0]


def _compress(runs: list[list[int]], height: int, width: int) -> tuple[dict, ...]:
    size = [height, width]
    rles = coco.frPyObjects([{"size": size, "counts": counts} for counts in runs], height, width) if runs else []
    return tuple(_with_text(rle) for rle in rles)


def _with_text(rle: dict) -> dict:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}


def decode_masks(rles: Sequence[dict | None], height: int, width: int) -> np.ndarray:
    """N RLEs of one size -> (height, width, N) uint8 of 0 and 1, row by row; None is a mask without pixels."""
    masks = np.zeros((height, width, len(rles)), np.uint8)
    present = [i for i, rle in enumerate(rles) if rle is not None]
    if present:
        masks[:, :, present] = coco.decode([rles[i] for i in present])
    return masks


class EncodeMasks:
    """FrameDetections -> FrameTracks: the end of the graph."""

    @torch.inference_mode()
    def __call__(self, batch: list[FrameDetections]) -> list[FrameTracks]:
        return [self._one(record) for record in batch]

    def _one(self, record: FrameDetections) -> FrameTracks:
        info, found = record.info, record.detections
        if found.track_ids is None:
            raise ValueError(f"{info}: the detections have no track ids; 'associate' must come before 'encode_masks'")
        shown = (found.track_ids != UNSHOWN).cpu().numpy()
        classes = None if found.class_scores is None else found.class_scores.cpu().numpy()
        return FrameTracks(
            info,
            track_ids=found.track_ids.cpu().numpy()[shown],
            labels=found.labels.cpu().numpy()[shown],
            scores=found.scores.cpu().numpy()[shown],
            boxes=found.boxes.cpu().numpy()[shown],
            masks=tuple(itertools.compress(_masks(record), shown)),
            class_scores=None if classes is None else classes[shown],
            unshown_scores=None if classes is None or shown.all() else classes[~shown][-1],
        )


def _masks(record: FrameDetections) -> tuple[dict, ...]:
    info, found = record.info, record.detections
    if found.mask_frame == "box":
        return encode_box_masks(found.mask_logits, found.boxes, info.height, info.width, found.exclusive)
    return encode_masks(found.mask_logits, record.size, info.height, info.width, found.exclusive)
