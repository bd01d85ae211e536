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
        Exclusive masks: IAI specification 4 step 8, at the original size. Plain: CiCo specification 4.5.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from operators.crossings import Places, mask_runs
from operators.records import UNSHOWN, FrameDetections, FrameTracks
from operators.youtube_vis_rle import text_rle

MASK_STRIDE = 4


def encode_masks(
    mask_logits: Tensor, size: tuple[int, int], height: int, width: int, exclusive: bool = False, plain: bool = False
) -> tuple[dict, ...]:
    """(N, Hp/4, Wp/4) logits -> N COCO compressed RLEs of height x width, `counts` as text. No instance: ().

    The frame fills `size` (h, w) of the padded input. operators/crossings.py finds the runs from the outlines.
    `exclusive`: a pixel that several masks claim is the first one's. `plain`: in the manner of `plain_places`.
    """
    probability = mask_logits.float().sigmoid().cpu().numpy()
    n, rows, columns = probability.shape
    places = plain_places if plain else pixel_places
    down = Places.of_all(places(rows, size[0], height), n)
    across = Places.of_all(places(columns, size[1], width), n)
    return _compress(mask_runs(probability, down, across, height, width, exclusive), height, width)


@functools.lru_cache(maxsize=64)
def pixel_places(cells: int, resized: int, pixels: int) -> np.ndarray:
    """Where the pixels of one axis of a frame lie among the cells of its masks: (pixels,) float64, rising.

    The frame fills the first `resized` of 4 x `cells` input pixels; before it was resized it had `pixels`. Aligned x4,
    then half-pixel bilinear: the first is straight between any two input pixels, so the second samples it as it is.
    """
    resized_place = np.clip((np.arange(pixels) + 0.5) * (resized / pixels) - 0.5, 0, resized - 1)
    return np.clip((resized_place - MASK_STRIDE // 2) / MASK_STRIDE, 0, cells - 1)


@functools.lru_cache(maxsize=64)
def plain_places(cells: int, resized: int, pixels: int) -> np.ndarray:
    """The same where the cells that the frame fills, of those cut off whole ones, are enlarged to it in one half-pixel
    bilinear step, and those behind them play no part: (pixels,) float64, rising."""
    filled = min(max(resized // MASK_STRIDE, 1), cells)
    return np.clip((np.arange(pixels) + 0.5) * (filled / pixels) - 0.5, 0, filled - 1)


def encode_box_masks(
    mask_logits: Tensor, boxes: Tensor, height: int, width: int, exclusive: bool = False
) -> tuple[dict, ...]:
    """(N, Hm, Wm) logits that fill boxes (N, 4), in pixels of a frame of height x width -> N RLEs. No instance: ().

    A pixel is the mask's if its centre lies in the box and the probability there, bilinear between the centres of the
    mask's cells, is above 0.5. Boxes may be of any size and reach out of the frame: only what lies in it is painted,
    and nothing of a box that is not finite.
    `exclusive`: a pixel that several masks claim is the first one's.
    """
    probability = mask_logits.float().sigmoid().cpu().numpy()
    x1, y1, x2, y2 = boxes.double().cpu().numpy().T
    down = box_places(y1, y2, probability.shape[1], height)
    across = box_places(x1, x2, probability.shape[2], width)
    return _compress(mask_runs(probability, down, across, height, width, exclusive), height, width)


def box_places(low: np.ndarray, high: np.ndarray, cells: int, pixels: int) -> Places:
    """Where the pixels whose centre lies in low <= centre < high, (N,) of each, lie among `cells` that fill the box."""
    edges = np.stack([low, high])
    edges = np.where(np.isfinite(edges).all(0), edges, 0.0)
    begin, end = np.clip(np.ceil(edges - 0.5), 0, pixels).astype(np.int64)
    offsets = np.r_[0, np.maximum(end - begin, 0).cumsum()]
    box = np.repeat(np.arange(len(begin)), np.diff(offsets))
    center = np.arange(len(box)) + (begin - offsets[:-1])[box] + 0.5
    low, high = edges
    places = np.clip((center - low[box]) / (high - low)[box] * cells - 0.5, 0, cells - 1)
    return Places(places, offsets, np.arange(len(begin)), begin)


def _compress(runs: list[np.ndarray], height: int, width: int) -> tuple[dict, ...]:
    size = [height, width]
    rles = coco.frPyObjects([{"size": size, "counts": counts} for counts in runs], height, width) if runs else []
    return tuple(text_rle(rle) for rle in rles)


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
            clip=record.clip,
        )


def _masks(record: FrameDetections) -> tuple[dict, ...]:
    info, found = record.info, record.detections
    if found.mask_frame == "box":
        return encode_box_masks(found.mask_logits, found.boxes, info.height, info.width, found.exclusive)
    plain = found.mask_frame == "plain"
    return encode_masks(found.mask_logits, record.size, info.height, info.width, found.exclusive, plain)
