"""Step 2 of training: draws of encoded frames to tensors with their targets, by DALI, ahead of the network.

In:     draws (trainers/pairs.py, clips.py, stills.py, pseudo.py): which frames, and all that is done to each
Out:    `FrameLoader`: T image tensors (B, 3, Hp, Wp), all of one size, and `Loaded` frames, of which the kinds of
        trainers/data.py make their batches
State:  none but the sampler's position; nothing random happens in here, so the same draws give the same bits
Limits: three batches at a time: one ready, one with DALI, one being painted
Source: CrossVIS specification 1.6, 1.7: bilinear for the image (`antialias`), nearest for masks, annotated boxes
        scaled, mirrored with them and clipped; polygons are rasterised at the resized size (3.8). TLTM specification
        1.4: of frames that moved those stay whose moved box is not empty. CiCo specification 1.2: masks bilinear, as
        `masks` asks, and soft.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch
from nvidia.dali import types

from models.inputs import InputConfig
from models.targets import FrameTargets
from operators.errors import DatasetError
from operators.preprocess import pad_to
from trainers.frames import MIN_BOX_SIDE, FrameIndex
from trainers.pixels import Parts, change_inputs, frame_pipe
from trainers.planes import unpack, unpack_soft
from trainers.prepared import (
    AnyDraw,
    Prepared,
    SampleName,
    any_along,
    boxes_of,
    name_of,
    planes_of,
    prepare,
    soft_masks_of,
    transform_boxes,
)
from trainers.stored import FrameSource, ImageFiles

LINEAR, NEAREST = int(types.INTERP_LINEAR), int(types.INTERP_NN)

DrawT = TypeVar("DrawT", bound=AnyDraw)
BatchT = TypeVar("BatchT")
Made = TypeVar("Made")


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


@dataclass(frozen=True)
class Fed(Generic[DrawT]):
    """A batch as DALI is to have it, or has it in work."""

    draws: list[DrawT]
    together: list[Prepared]
    """Its frames, the first of all draws before the second of all."""
    inputs: dict[str, Any]


class FrameLoader(ABC, Generic[DrawT, BatchT]):
    """An endless stream of batches, prepared ahead in a thread of its own while the network works on the last: one
    stands ready, DALI works on the next, and of the one after it the masks are painted meanwhile.

    `frames` T is that of every draw. All frames of a batch go through DALI at once, so they share one padded size.
    `source` says where frames come from, files of images unless told; `parts` what draws may ask for besides resizing
    and mirroring; `boxes` whether they are the annotated ones, transformed, these up to their last pixel, or those of
    the masks that came out; `masks` whether these are resized by nearest, or bilinearly and soft.
    Raises DatasetError, where the batch is taken, for an image that is missing or cannot be decoded; ValueError for
    soft masks of frames that may move.
    """

    keep_emptied: bool
    """Whether instances stay that resizing leaves no box or no pixel of."""

    def __init__(
        self, draws: Iterator[DrawT], index: FrameIndex, cfg: InputConfig, *, batch: int, frames: int,
        device: torch.device, threads: int = 1, source: FrameSource | None = None, parts: Parts | None = None,
        boxes: Literal["annotated", "inclusive", "masks"] = "annotated",
        masks: Literal["nearest", "bilinear"] = "nearest",
    ) -> None:  # fmt: skip
        self.draws, self.index, self.cfg, self.batch = draws, index, cfg, batch
        self.device, self.boxes, self.soft = device, boxes, masks == "bilinear"
        self.source = source or ImageFiles(index.dataset)
        self.parts = replace(parts or Parts(), stored=self.source.stored)
        if self.soft and self.parts.motion:
            raise ValueError("masks of frames that move are moved by nearest; bilinear ones are of frames that do not")
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
        running = self._begun(_tried(self._feed))
        while not self._stopped.is_set():
            following = _tried(self._feed)              # masks are painted while DALI decodes ...
            found = running if isinstance(running, Exception) else _tried(self._outputs, running)
            if isinstance(found, Exception):            # handed to the one who takes the batch, with its cause
                self._ready.put(found)
                return
            done, running = running, self._begun(following)
            item = _tried(self._filled, done, *found)   # ... and unpacked while it decodes the next
            self._ready.put(item)
            if isinstance(item, Exception):
                return

    def _feed(self) -> Fed[DrawT]:
        """The next draws, with all that DALI is to be fed with."""
        draws = list(islice(self.draws, self.batch))
        slots = [[prepare(draw, t, self.cfg, self._identity(draw)) for draw in draws]
                 for t in range(len(draws[0].frames))]  # fmt: skip
        together = [prepared for slot in slots for prepared in slot]                              # frame-major: T x B
        heights, widths = zip(*(one.sheet for one in together), strict=True)
        canvas = pad_to(max(heights), max(widths), self.cfg.divisor)
        return Fed(draws, together, self.source.read([one.frame for one in together]) | self._inputs(together, canvas))

    def _begun(self, fed: Fed[DrawT] | Exception) -> Fed[DrawT] | Exception:
        """DALI is set to work on it, and not waited for. What could not be fed stays what it is."""
        return fed if isinstance(fed, Exception) else _tried(self._begin, fed)

    def _begin(self, fed: Fed[DrawT]) -> Fed[DrawT]:
        for name, value in fed.inputs.items():
            self.pipe.feed_input(name, value)
        self.pipe.schedule_run()
        return fed

    def _outputs(self, fed: Fed[DrawT]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What DALI made of it: padded images (T * B, 3, Hp, Wp), and of each frame the planes (P, Hp, Wp) uint8."""
        try:
            images, planes, shapes = self.pipe.outputs()
        except RuntimeError as error:
            names = ", ".join(one.frame.file_name for one in fed.together)
            raise DatasetError(f"one of these images cannot be decoded: {names}. {error}") from error
        for one, shape in zip(fed.together, np.array(shapes.as_tensor()), strict=True):
            if tuple(shape[:2]) != one.stored:
                raise DatasetError(
                    f"{one.frame.file_name}: {shape[1]}x{shape[0]} pixels, but the annotations say "
                    f"{one.stored[1]}x{one.stored[0]}: masks would not fit."
                )
        return torch.from_dlpack(images.as_tensor()), [torch.from_dlpack(planes[i]) for i in range(len(fed.together))]

    def _filled(
        self, fed: Fed[DrawT], images: torch.Tensor, planes: list[torch.Tensor]
    ) -> tuple[BatchT, tuple[SampleName, ...]]:
        """The batch with its targets, and the names of its samples."""
        loaded = [self._loaded(one, plane) for one, plane in zip(fed.together, planes, strict=True)]
        count = len(fed.draws)
        slots = [loaded[i : i + count] for i in range(0, len(loaded), count)]
        return self._batch(images.split(count), slots), tuple(name_of(draw) for draw in fed.draws)

    @abstractmethod
    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> BatchT:
        """T tensors (B, 3, Hp, Wp) and T x B frames."""

    @abstractmethod
    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        """Annotation id -> identity, of the annotations of a draw."""

    def _inputs(self, together: Sequence[Prepared], canvas: tuple[int, int]) -> dict[str, Any]:
        """What the graph is fed with beside the stored frames: an array of all, or of each where sizes differ."""
        how = [NEAREST if one.size == one.stored else LINEAR for one in together]
        fed: dict[str, Any] = {
            "planes": [(soft_masks_of if self.soft else planes_of)(self.index.dataset, one) for one in together],
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
        full = (unpack_soft if self.soft else unpack)(planes, len(one.frame.annotations))        # (G, Hp, Wp)
        shown = full > 0 if self.soft else full
        boxes = boxes_of(shown).numpy() if self.boxes == "masks" else transform_boxes(
            one, upside_down=self.parts.upside_down, inclusive=self.boxes == "inclusive")                # (G, 4)
        sides = (boxes[:, 2:] - boxes[:, :2]).min(1)
        seen = any_along(shown.flatten(1)).cpu().numpy() | (one.changes.motion is not None)
        alive = (sides > MIN_BOX_SIDE) & seen | self.keep_emptied
        kept = [a for a, keep in zip(one.frame.annotations, alive, strict=True) if keep]
        labels = torch.tensor([self.index.dataset.labels[a.category_id] for a in kept], dtype=torch.int64)
        identities = torch.tensor([one.identity[a.id] for a in kept], dtype=torch.int64)
        masks = full if alive.all() else full[torch.from_numpy(alive)]
        targets = FrameTargets(torch.from_numpy(boxes[alive]), labels, identities, masks)
        ids = np.array([a.id for a in kept], np.int64)
        return Loaded(targets.to(self.device), ids, one.kept, pad_to(*one.kept, self.cfg.divisor))


def _tried(step: Callable[..., Made], *given: Any) -> Made | Exception:
    """What a step gives, or what it raises: an error is due where its batch is taken, not where it is found."""
    try:
        return step(*given)
    except Exception as error:
        return error
