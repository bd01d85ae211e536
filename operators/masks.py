"""Step 8, first half: low-resolution mask logits to masks of the original frame, as run lengths.

In:     FrameDetections  with track ids; mask_logits (N, Hp/4, Wp/4) on the device
Out:    FrameTracks      numpy arrays and COCO compressed RLE: a few kB, off the device
State:  none
Source: CrossVIS specification 4.1 step 5: sigmoid at stride 4, aligned x4, cut to the resized frame, ordinary bilinear to
        the original size, above 0.5. A mask without a pixel is kept, as an RLE of zeros.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from pycocotools import mask as coco
from torch import Tensor

from models.dynamic_mask import aligned_upsample
from operators.records import FrameDetections, FrameTracks

MASK_STRIDE = 4
MAX_PIXELS_AT_ONCE = 1 << 25
"""Instances are painted in groups of so many pixels in all: 128 MB of float32, however many instances a frame has."""


def full_size_masks(mask_logits: Tensor, size: tuple[int, int], height: int, width: int) -> Tensor:
    """(N, Hp/4, Wp/4) logits -> (N, height, width) bool; the frame fills `size` (h, w) of the padded input."""
    probability = aligned_upsample(mask_logits.float().sigmoid(), MASK_STRIDE)[:, : size[0], : size[1]]
    probability = F.interpolate(probability[None], size=(height, width), mode="bilinear", align_corners=False)
    return probability[0] > 0.5


def encode_masks(masks: Tensor | np.ndarray) -> tuple[dict, ...]:
    """(N, H, W) bool -> N COCO compressed RLEs with `counts` as text."""
    columns_first = np.asfortranarray(np.asarray(masks, dtype=np.uint8).transpose(1, 2, 0))          # (H, W, N)
    if columns_first.shape[2] == 0:
        return ()
    return tuple({"size": rle["size"], "counts": rle["counts"].decode("ascii")} for rle in coco.encode(columns_first))


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
        group = max(1, MAX_PIXELS_AT_ONCE // (info.height * info.width))
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
