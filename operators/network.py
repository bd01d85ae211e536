"""Steps 5 and 6: the network's two stages around the features.

In:     Image            for `Backbone`; Features for `Heads`
Out:    Features         pyramid of each frame; FrameDetections: instances in pixels of the original frame
State:  none: any frames may share a batch

A network sees batches of exactly `batch` images of one size; the last is filled up with zeros. So its kernels always
run on the same shape, and a frame's result does not depend on which frames, and how many, happened to come with it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from models.crossvis import CrossVIS, DenseOutputs
from models.outputs import Detections
from operators.boxes import clip_boxes, is_empty
from operators.detect import DetectConfig, select
from operators.records import Features, FrameDetections, Image

Record = TypeVar("Record", Image, Features)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many frames go through the network at once."""

    batch: int = 1
    """Frames of a network call. Higher: better use of a GPU, more memory, more waste when frames do not fill it."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 1024:
            raise ValueError(f"batch is {self.batch}, expected 1..1024")


def _chunks(records: list[Record], size: int, padded: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
    """Places of records that can share a call: equal padded size, at most `size` of them, in order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i in range(len(records)):
        groups.setdefault(padded[i], []).append(i)
    for places in groups.values():
        for begin in range(0, len(places), size):
            yield places[begin : begin + size]


def _stack(tensors: list[Tensor], size: int) -> Tensor:
    """(size, ...) with zeros behind the tensors given."""
    stacked = torch.stack(tensors)
    if len(tensors) < size:
        filler = stacked.new_zeros(size - len(tensors), *stacked.shape[1:])
        stacked = torch.cat([stacked, filler])
    return stacked


class Backbone:
    """Images -> Features."""

    def __init__(self, network: CrossVIS, config: BatchConfig, device: torch.device) -> None:
        self.network, self.batch, self.device = network, config.batch, device

    @torch.inference_mode()
    def __call__(self, batch: list[Image]) -> list[Features]:
        padded = {i: tuple(image.pixels.shape[-2:]) for i, image in enumerate(batch)}
        out: list[Features | None] = [None] * len(batch)
        for places in _chunks(batch, self.batch, padded):
            images = _stack([batch[i].pixels.to(self.device) for i in places], self.batch)
            levels = self.network.features(images)
            for row, i in enumerate(places):
                out[i] = Features(batch[i].info, tuple(level[row] for level in levels), batch[i].size, padded[i])
        return out


class Heads:
    """Features -> FrameDetections; boxes in pixels of the original frame, clipped, empty ones dropped."""

    def __init__(self, network: CrossVIS, config: BatchConfig, detect: DetectConfig, device: torch.device) -> None:
        self.network, self.batch, self.detect, self.device = network, config.batch, detect, device

    @torch.inference_mode()
    def __call__(self, batch: list[Features]) -> list[FrameDetections]:
        out: list[FrameDetections | None] = [None] * len(batch)
        for places in _chunks(batch, self.batch, {i: f.padded for i, f in enumerate(batch)}):
            maps = zip(*(batch[i].levels for i in places), strict=True)
            dense = self.network.heads(tuple(_stack([m.to(self.device) for m in level], self.batch) for level in maps))
            for row, i in enumerate(places):
                found = self._detections(dense, row, batch[i])
                out[i] = FrameDetections(batch[i].info, found, batch[i].size, batch[i].padded)
        return out

    def _detections(self, dense: DenseOutputs, row: int, features: Features) -> Detections:
        found = select(dense, row, self.detect)
        info, (h, w) = features.info, features.size
        scale = torch.tensor([info.width / w, info.height / h] * 2, device=found.boxes.device)
        boxes = clip_boxes(found.boxes * scale, info.height, info.width)
        kept = ~is_empty(boxes)
        locations = found.locations[kept]
        return Detections(
            boxes=boxes[kept],
            scores=found.scores[kept],
            labels=found.labels[kept],
            embeddings=dense.embeddings[row, locations].float(),
            mask_logits=self.network.mask_logits(dense, row, locations).float(),
        )
