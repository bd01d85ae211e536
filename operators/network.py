"""Steps 5 and 6: the network's two stages around the features.

In:     Image            for `Backbone`; Features for `Heads`
Out:    Features         pyramid of each frame; FrameDetections: instances in pixels of the original frame
State:  none: any frames may share a batch

A network sees batches of exactly `batch` images of one size; the last is filled up with zeros. So its kernels always
run on the same shape, and a frame's result does not depend on which frames, and how many, happened to come with it.
That is dear where frames come one by one: with `least` a CPU fills up to that number only. Its kernels sum in the same
order for two images as for more, so the bits are the same, which tests/operators/test_network.py checks where it runs;
for one image alone torch takes other kernels, but for the fused form (models/fused.py), whose are always the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from models.outputs import Detections
from operators.boxes import clip_boxes, is_empty
from operators.records import ClipFeatures, Features, FrameDetections, Image

Record = TypeVar("Record", Image, Features, ClipFeatures)


class Network(Protocol):
    """What the two stages ask of a network. Both calls are stateless, and keep the images of a batch apart."""

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> maps of B rows each."""
        ...

    def heads(self, levels: tuple[Tensor, ...]) -> Any:
        """The maps -> what the network's own detector reads (operators/detectors.py). A network with calibration takes
        `references` and `counts` too (models/crossvis.py); they are given only where frames have references."""
        ...


Detect = Callable[[Network, Any, int, tuple[int, int]], Detections]
"""(network, what its heads said, which image of the batch, its size (h, w) before padding) -> instances in pixels of
the network input, best score first."""


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How many frames go through the network at once."""

    batch: int = 1
    """Frames of a network call. Higher: better use of a GPU, more memory, more waste when frames do not fill it."""
    least: int | None = None
    """On a CPU: frames of the smallest call; fewer are filled up to it. Lower: a frame that comes alone is done sooner.
    2 gives the bits of full batches, 1 does in the fused form alone. null: all are filled up to `batch`, as always on a
    GPU, whose kernels are chosen by the number of frames."""

    def __post_init__(self) -> None:
        if not 1 <= self.batch <= 1024:
            raise ValueError(f"batch is {self.batch}, expected 1..1024")
        if self.least is not None and not 1 <= self.least <= 1024:
            raise ValueError(f"least is {self.least}, expected 1..1024, or null")

    def rows(self, frames: int, device: torch.device) -> int:
        """Rows of the call in which so many frames go through the network; `batch` of them at most."""
        if self.least is None or device.type != "cpu":
            return self.batch
        return min(max(frames, self.least), self.batch)


def chunks(records: list[Record], size: int, padded: dict[int, tuple[int, int]]) -> Iterator[list[int]]:
    """Places of records that can share a call: equal padded size, at most `size` of them, in order."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i in range(len(records)):
        groups.setdefault(padded[i], []).append(i)
    for places in groups.values():
        for begin in range(0, len(places), size):
            yield places[begin : begin + size]


def stack(tensors: list[Tensor], size: int) -> Tensor:
    """(size, ...) with zeros behind the tensors given."""
    stacked = torch.stack(tensors)
    if len(tensors) < size:
        filler = stacked.new_zeros(size - len(tensors), *stacked.shape[1:])
        stacked = torch.cat([stacked, filler])
    return stacked


class Backbone:
    """Images -> Features."""

    def __init__(self, network: Network, config: BatchConfig, device: torch.device) -> None:
        self.network, self.config, self.device = network, config, device

    @torch.inference_mode()
    def __call__(self, batch: list[Image]) -> list[Features]:
        padded = {i: tuple(image.pixels.shape[-2:]) for i, image in enumerate(batch)}
        out: list[Features | None] = [None] * len(batch)
        for places in chunks(batch, self.config.batch, padded):
            rows = self.config.rows(len(places), self.device)
            images = stack([batch[i].pixels.to(self.device) for i in places], rows)
            levels = self.network.features(images)
            for row, i in enumerate(places):
                out[i] = Features(batch[i].info, tuple(level[row] for level in levels), batch[i].size, padded[i])
        return out


class Heads:
    """Features -> FrameDetections; boxes in pixels of the original frame, clipped, empty ones dropped."""

    def __init__(self, network: Network, config: BatchConfig, detect: Detect, device: torch.device) -> None:
        self.network, self.config, self.detect, self.device = network, config, detect, device

    @torch.inference_mode()
    def __call__(self, batch: list[Features]) -> list[FrameDetections]:
        return [
            FrameDetections(frame.info, to_original(found, frame), frame.size, frame.padded)
            for frame, found in zip(batch, self.found(batch), strict=True)
        ]

    def found(self, batch: list[Features]) -> list[Detections]:
        """The instances of each frame as the detector gives them: boxes in pixels of the network input."""
        out: list[Detections | None] = [None] * len(batch)
        for places in chunks(batch, self.config.batch, {i: f.padded for i, f in enumerate(batch)}):
            dense = self._dense([batch[i] for i in places])
            for row, i in enumerate(places):
                out[i] = self.detect(self.network, dense, row, batch[i].size)
        return out

    def _dense(self, frames: list[Features]) -> Any:
        """One call of the network; of fewer references than another frame's, the rest is filled and not looked at."""
        rows = self.config.rows(len(frames), self.device)
        levels = self._stacked([frame.levels for frame in frames], rows)
        if not any(frame.references for frame in frames):
            return self.network.heads(levels)
        owned = [frame.references or (frame.levels,) for frame in frames]
        most = max(len(references) for references in owned)
        slots = [[references[min(r, len(references) - 1)] for references in owned] for r in range(most)]
        counts = [len(references) for references in owned] + [1] * (rows - len(frames))
        references = tuple(self._stacked(slot, rows) for slot in slots)
        return self.network.heads(levels, references, torch.tensor(counts, device=self.device))

    def _stacked(self, pyramids: list[tuple[Tensor, ...]], rows: int) -> tuple[Tensor, ...]:
        """Pyramids of single frames -> one of so many rows."""
        maps = zip(*pyramids, strict=True)
        return tuple(stack([m.to(self.device) for m in level], rows) for level in maps)


def to_original(found: Detections, features: Features) -> Detections:
    """Boxes in pixels of the original frame, clipped; instances whose box is then empty are dropped."""
    info, (h, w) = features.info, features.size
    scale = torch.tensor([info.width / w, info.height / h] * 2, device=found.boxes.device)
    boxes = clip_boxes(found.boxes * scale, info.height, info.width)
    return replace(found, boxes=boxes)[~is_empty(boxes)]
