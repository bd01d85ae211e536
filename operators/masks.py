"""Step 8, first half: low-resolution mask logits to masks of the original frame, as run lengths.

In:     FrameDetections  with track ids; mask_logits (N, Hp/4, Wp/4) on the device
Out:    FrameTracks      numpy arrays and COCO compressed RLE: a few kB, off the device
State:  none
Source: CrossVIS specification 4.1 step 5: sigmoid at stride 4, aligned x4, cut to the resized frame, ordinary bilinear
        to the original size, above 0.5. A mask without a pixel is kept, as an RLE of zeros.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import torch
from pycocotools import mask as coco
from torch import Tensor

from operators.records import FrameDetections, FrameTracks

MASK_STRIDE = 4
PIXELS_AT_ONCE = 1 << 20
"""Instances are painted in groups of about so many pixels: 4 MB of float32 stay in the cache, which halves the time."""


@functools.lru_cache(maxsize=64)
def axis_weights(cells: int, resized: int, size: int) -> Tensor:
    """How one axis of a low-resolution mask becomes pixels: (size, cells) float32, rows that sum to 1.

    Aligned x4 from `cells`, cut to the first `resized`, half-pixel bilinear to `size`. All three are linear and
    separable, so a mask is `rows @ mask @ columns.T`: two small products instead of two passes over full-size images.
    """
    enlarged = _lerp((torch.arange(resized, dtype=torch.float64) - MASK_STRIDE // 2) / MASK_STRIDE, cells)
    pixels = _lerp((torch.arange(size, dtype=torch.float64) + 0.5) * (resized / size) - 0.5, resized)
    return (pixels @ enlarged).float()


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


def full_size_masks(mask_logits: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """(N, Hp/4, Wp/4) logits -> (N, width, height) bool, column by column as run lengths count.

    The frame fills `size` (h, w) of the padded input.
    """
    probability = mask_logits.float().sigmoid().transpose(1, 2)                                  # (N, Wp/4, Hp/4)
    rows = axis_weights(mask_logits.shape[1], size[0], height).to(probability.device)            # (height, Hp/4)
    columns = axis_weights(mask_logits.shape[2], size[1], width).to(probability.device)          # (width, Wp/4)
    return (columns @ probability) @ rows.T > 0.5                 # in this order the second product is one large one


def encode_masks(masks: Tensor) -> tuple[dict, ...]:
    """(N, W, H) bool, on the CPU -> N COCO compressed RLEs with `counts` as text."""
    if not len(masks):
        return ()
    pixels = masks.contiguous().view(torch.uint8).numpy().transpose(2, 1, 0)                     # (H, W, N), no copy
    return tuple({"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in coco.encode(pixels))


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
        group = max(1, PIXELS_AT_ONCE // (info.height * info.width))
        masks: tuple[dict, ...] = ()
        for begin in range(0, len(found), group):
            logits = found.mask_logits[begin : begin + group]
            masks += encode_masks(full_size_masks(logits, record.size, info.height, info.width).cpu())
        return FrameTracks(
            info,
            track_ids=found.track_ids.cpu().numpy(),
            labels=found.labels.cpu().numpy(),
            scores=found.scores.cpu().numpy(),
            boxes=found.boxes.cpu().numpy(),
            masks=masks,
        )
