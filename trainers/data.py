"""Step 2 of training: draws of encoded frames to batches of tensors, by DALI.

In:     draws (trainers/pairs.py, clips.py, stills.py, pseudo.py): which frames, and all that is done to each
Out:    `PairBatch`, `ClipBatch` or `StillBatch` (models/targets.py): T image tensors (B, 3, Hp, Wp), all of one size,
        targets per frame; of pairs also counterparts
State:  none but the sampler's position; nothing random happens in here, so the same draws give the same bits
Source: CrossVIS specification 1.6, 1.7: bilinear for the image (`antialias`), nearest for masks, annotated boxes
        scaled, mirrored with them and clipped; of pairs and stills, instances are dropped whose box or resized mask is
        empty; polygons are rasterised at the resized size (3.8). IAI specification 1: instances of clips stay, and
        their identities count from 0 in each clip. TLTM specification 1.4: of frames that moved those stay whose moved
        box is not empty.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from nvidia.dali import types

from models.inputs import InputConfig
from models.targets import ClipBatch, FrameTargets, PairBatch, StillBatch
from operators.errors import DatasetError
from operators.preprocess import pad_to
from trainers.clips import clip_identities
from trainers.frames import MIN_BOX_SIDE, FrameIndex
from trainers.pixels import Parts, change_inputs, frame_pipe
from trainers.planes import unpack
from trainers.prepared import (
    AnyDraw,
    Prepared,
    SampleName,
    any_along,
    boxes_of,
    name_of,
    planes_of,
    prepare,
    transform_boxes,
)
from trainers.stored import FrameSource, ImageFiles

LINEAR, NEAREST = int(types.INTERP_LINEAR), int(types.INTERP_NN)

DrawT = TypeVar("DrawT", bound=AnyDraw)
BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Loaded:
    """The same frame as the network gets it."""

    targets: FrameTargets
    ids: np.ndarray
    """(G,) int64 annotation ids of the targets."""
    kept: tuple[int, int]
    """(h, w) of the frame before any padding."""
    padded: tuple[int, int]
    """(h, w) of the frame on its own: padded to multiples of the divisor, not yet to the largest of the batch."""


class FrameLoader(ABC, Generic[DrawT, BatchT]):
    """An endless stream of batches, one prepared ahead in a thread of its own while the network works on the last.

    `frames` T is that of every draw. All frames of a batch go through DALI at once, so they share one padded size.
    `source` says where frames come from, files of images unless told; `parts` what draws may ask for besides resizing
    and mirroring; `boxes` whether they are the annotated ones, transformed, these up to their last pixel, or those of
    the masks that came out.
    Raises DatasetError, where the batch is taken, for an image that is missing or cannot be decoded.
    """

    keep_emptied: bool
    """Whether instances stay that resizing leaves no box or no pixel of."""

    def __init__(
        self, draws: Iterator[DrawT], index: FrameIndex, cfg: InputConfig, *, batch: int, frames: int,
        device: torch.device, threads: int = 1, source: FrameSource | None = None, parts: Parts | None = None,
        boxes: Literal["annotated", "inclusive", "masks"] = "annotated",
    ) -> None:  # fmt: skip
        self.draws, self.index, self.cfg, self.batch = draws, index, cfg, batch
        self.device, self.boxes = device, boxes
        self.source = source or ImageFiles(index.dataset)
        self.parts = replace(parts or Parts(), stored=self.source.stored)
        kind, number = ("gpu", device.index or 0) if device.type == "cuda" else ("cpu", None)
        self.pipe = frame_pipe(cfg, self.parts, kind, batch_size=batch * frames, num_threads=threads, device_id=number)
        self.names: tuple[SampleName, ...] = ()
        """Of the batch last taken, sample by sample; empty before the first."""
        self._ready: queue.Queue[tuple[BatchT, tuple[SampleName, ...]] | Exception] = queue.Queue(maxsize=1)
        self._over: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="frame-loader", daemon=True)
        self._thread.start()

    def __next__(self) -> BatchT:
        if self._over is not None:
            raise self._over
        item = self._ready.get()
        if isinstance(item, Exception):
            self._over = item               # the thread is gone: to wait for it again would be for ever
            raise item
        batch, self.names = item
        return batch

    def close(self) -> None:
        """Stop the thread; harmless when repeated. Batches cannot be taken any more."""
        self._over = self._over or RuntimeError("the loader is closed")
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.1)
            except queue.Empty:
                continue
        self.source.close()

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                draws = list(islice(self.draws, self.batch))
                item = self.load(draws), tuple(name_of(draw) for draw in draws)
            except Exception as error:      # handed to the one who takes the batch, with its cause
                item = error
            self._ready.put(item)
            if isinstance(item, Exception):
                return

    def load(self, draws: list[DrawT]) -> BatchT:
        """The batch of these draws."""
        slots = [[prepare(draw, t, self.cfg, self._identity(draw)) for draw in draws]
                 for t in range(len(draws[0].frames))]  # fmt: skip
        together = [prepared for slot in slots for prepared in slot]                              # frame-major: T x B
        images, planes = self._run(together)                                                      # (T * B, 3, Hp, Wp)
        loaded = [self._loaded(one, plane) for one, plane in zip(together, planes, strict=True)]
        count = len(draws)
        return self._batch(images.split(count), [loaded[i : i + count] for i in range(0, len(loaded), count)])

    @abstractmethod
    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> BatchT:
        """T tensors (B, 3, Hp, Wp) and T x B frames."""

    @abstractmethod
    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        """Annotation id -> identity, of the annotations of a draw."""

    def _run(self, together: Sequence[Prepared]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Padded images (B, 3, Hp, Wp), and per frame the planes of its masks (P, Hp, Wp) uint8."""
        frames = [one.frame for one in together]
        heights, widths = zip(*(one.sheet for one in together), strict=True)
        canvas = pad_to(max(heights), max(widths), self.cfg.divisor)
        fed = self.source.read(frames) | self._inputs(together, canvas)
        try:
            images, planes, shapes = self.pipe.run(**fed)
        except RuntimeError as error:
            names = ", ".join(f.file_name for f in frames)
            raise DatasetError(f"one of these images cannot be decoded: {names}. {error}") from error
        for one, shape in zip(together, np.array(shapes.as_tensor()), strict=True):
            if tuple(shape[:2]) != one.stored:
                raise DatasetError(
                    f"{one.frame.file_name}: {shape[1]}x{shape[0]} pixels, but the annotations say "
                    f"{one.stored[1]}x{one.stored[0]}: masks would not fit."
                )
        return torch.from_dlpack(images.as_tensor()), [torch.from_dlpack(planes[i]) for i in range(len(frames))]

    def _inputs(self, together: Sequence[Prepared], canvas: tuple[int, int]) -> dict[str, Any]:
        """What the graph is fed with beside the stored frames: an array of all, or of each where sizes differ."""
        how = [NEAREST if one.size == one.stored else LINEAR for one in together]
        fed: dict[str, Any] = {
            "planes": [planes_of(self.index.dataset, one) for one in together],
            "size": np.array([one.size for one in together], np.float32),
            "how": np.array(how, np.int32),
            "flip": np.array([one.flip for one in together], np.int32),
            "canvas": np.array([canvas] * len(together), np.float32),
        }
        if self.parts.window:
            fed["start"] = np.array([one.start for one in together], np.int32)
            fed["shape"] = np.array([one.kept for one in together], np.int32)
        return fed | change_inputs([one.changes for one in together], self.parts)

    def _loaded(self, one: Prepared, planes: torch.Tensor) -> Loaded:
        """Targets of one frame, and the annotation ids of the instances that stay."""
        full = unpack(planes, len(one.frame.annotations))                                        # (G, Hp, Wp)
        boxes = boxes_of(full) if self.boxes == "masks" else torch.from_numpy(transform_boxes(
            one, upside_down=self.parts.upside_down, inclusive=self.boxes == "inclusive"))  # fmt: skip
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(1)
        seen = any_along(full.flatten(1)).cpu() | (one.changes.motion is not None)
        alive = ((sides > MIN_BOX_SIDE) & seen).numpy() | self.keep_emptied
        kept = [a for a, keep in zip(one.frame.annotations, alive, strict=True) if keep]
        labels = torch.tensor([self.index.dataset.labels[a.category_id] for a in kept], dtype=torch.int64)
        identities = torch.tensor([one.identity[a.id] for a in kept], dtype=torch.int64)
        masks = full if alive.all() else full[torch.from_numpy(alive)]
        targets = FrameTargets(boxes[alive], labels, identities, masks)
        ids = np.array([a.id for a in kept], np.int64)
        return Loaded(targets.to(self.device), ids, one.kept, pad_to(*one.kept, self.cfg.divisor))


class PairLoader(FrameLoader[DrawT, PairBatch]):
    """Identities are those of the whole set."""

    keep_emptied = False

    def __init__(
        self, draws: Iterator[DrawT], index: FrameIndex, cfg: InputConfig, *, batch: int, device: torch.device,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(draws, index, cfg, batch=batch, frames=2, device=device, **settings)

    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        return self.index.identity

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> PairBatch:
        counterparts = [
            [_counterparts(one.ids, other.ids).to(self.device) for one, other in zip(slot, others, strict=True)]
            for slot, others in (slots, slots[::-1])
        ]
        return PairBatch(tuple(images), _targets_of(slots), tuple(counterparts), _sizes_of(slots))


class ClipLoader(FrameLoader[DrawT, ClipBatch]):
    """Identities are those of each clip. As released, an instance that resizing leaves nothing of stays, so that a
    frame does not forget who was in it."""

    keep_emptied = True

    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        return clip_identities(draw.frames)

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> ClipBatch:
        return ClipBatch(tuple(images), _targets_of(slots), tuple([one.padded for one in slot] for slot in slots))


class StillLoader(FrameLoader[DrawT, StillBatch]):
    """Draws of one frame. Identities are those of the whole set."""

    keep_emptied = False

    def __init__(
        self, draws: Iterator[DrawT], index: FrameIndex, cfg: InputConfig, *, batch: int, device: torch.device,
        **settings: Any,
    ) -> None:  # fmt: skip
        super().__init__(draws, index, cfg, batch=batch, frames=1, device=device, **settings)

    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        return self.index.identity

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> StillBatch:
        return StillBatch(images[0], _targets_of(slots)[0], _sizes_of(slots))


def _targets_of(slots: list[list[Loaded]]) -> tuple[list[FrameTargets], ...]:
    return tuple([one.targets for one in slot] for slot in slots)


def _sizes_of(slots: list[list[Loaded]]) -> tuple[list[tuple[int, int]], ...]:
    """Before padding: which level a region is read from depends on its share of the image (models/area_regions.py)."""
    return tuple([one.kept for one in slot] for slot in slots)


def _counterparts(ids: np.ndarray, others: np.ndarray) -> torch.Tensor:
    """Where each of `ids` stands among `others`, -1 where it does not.  (G,) int64"""
    same = ids[:, None] == others[None]                                                           # (G, G')
    found = np.where(same.any(1), same.argmax(1), -1) if same.size else np.full(len(ids), -1)
    return torch.from_numpy(found.astype(np.int64))
