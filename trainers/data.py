"""Step 2 of training: pairs and clips of encoded frames to tensors, by DALI.

In:     `PairDraw`s (trainers/pairs.py) or `ClipDraw`s (trainers/clips.py): which frames, mirrored or not, how large
Out:    `PairBatch` or `ClipBatch` (models/targets.py): T image tensors (B, 3, Hp, Wp), all of one size, targets per
        frame; of pairs also counterparts
State:  none but the sampler's position; nothing random happens in here, so the same draws give the same bits
Source: CrossVIS specification 1.6, 1.7: bilinear for the image (`antialias`), nearest for masks, annotated boxes
        scaled, mirrored with them and clipped; of pairs, instances are dropped whose box or resized mask is empty. IAI
        specification 1: those of clips stay, and their identities count from 0 in each clip.

One definition serves both devices: on a GPU JPEGs are decoded by `mixed` and all after runs there.
"""

from __future__ import annotations

import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, Protocol, TypeVar

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from models.inputs import InputConfig
from models.targets import ClipBatch, FrameTargets, PairBatch
from operators.errors import DatasetError
from operators.masks import decode_masks
from operators.preprocess import pad_to, resize_to
from trainers.clips import ClipDraw, clip_identities
from trainers.frames import FrameAnnotations, FrameIndex
from trainers.pairs import PairDraw

MIN_BOX_SIDE = 1e-5
MAX_JPEG_BYTES = 64 << 20


class Draw(Protocol):
    """T frames of one video, and what is done to each."""

    @property
    def frames(self) -> tuple[FrameAnnotations, ...]: ...

    @property
    def flips(self) -> tuple[bool, ...]: ...

    @property
    def scales(self) -> tuple[tuple[int, int], ...] | None:
        """(short, long) side of each; None: those of the network's input."""
        ...


DrawT = TypeVar("DrawT", bound=Draw)
BatchT = TypeVar("BatchT")


@dataclass(frozen=True)
class Prepared:
    """One frame of a draw, before its image is decoded."""

    frame: FrameAnnotations
    size: tuple[int, int]
    """(h, w) to resize to."""
    flip: bool
    identity: Mapping[int, int]
    """Annotation id -> what the network is to know the instance by."""


@dataclass(frozen=True)
class Loaded:
    """The same frame as the network gets it."""

    targets: FrameTargets
    ids: np.ndarray
    """(G,) int64 annotation ids of the targets."""
    padded: tuple[int, int]
    """(h, w) of the frame on its own: padded to multiples of the divisor, not yet to the largest of the batch."""


def frame_pipe(batch: int, cfg: InputConfig, *, device: str, device_id: int | None, threads: int) -> Pipeline:
    """DALI graph of the frames of a batch.

    In:  JPEG bytes, masks (H, W, G), size (h, w), whether to mirror
    Out: image (3, Hp, Wp), masks (h, w, G), the size of the JPEG itself (H, W, 3)
    """
    pipe = Pipeline(batch, threads, device_id, prefetch_queue_depth=1, exec_dynamic=True)
    order = types.BGR if cfg.channel_order == "bgr" else types.RGB
    with pipe:
        encoded = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1)
        masks = fn.external_source(name="masks", dtype=types.UINT8, ndim=3, layout="HWC")
        size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
        flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
        image = fn.decoders.image(encoded, device="mixed" if device == "gpu" else "cpu", output_type=order)
        if device == "gpu":
            masks = masks.gpu()
        image = fn.flip(fn.resize(image, size=size, antialias=cfg.antialias), horizontal=flip)
        masks = fn.flip(fn.resize(masks, size=size, interp_type=types.INTERP_NN), horizontal=flip)
        image = fn.crop_mirror_normalize(
            image, dtype=types.FLOAT, mean=list(cfg.mean), std=list(cfg.std), output_layout="CHW"
        )
        pipe.set_outputs(fn.pad(image, axis_names="HW", align=[cfg.divisor] * 2), masks, fn.peek_image_shape(encoded))
    return pipe


class FrameLoader(ABC, Generic[DrawT, BatchT]):
    """An endless stream of batches, one prepared ahead in a thread of its own while the network works on the last.

    `frames` T is that of every draw. All frames of a batch go through DALI at once, so they share one padded size.
    Raises DatasetError, where the batch is taken, for an image that is missing or cannot be decoded.
    """

    keep_emptied: bool
    """Whether instances stay that resizing leaves no box or no pixel of."""

    def __init__(
        self, draws: Iterator[DrawT], index: FrameIndex, cfg: InputConfig, *, batch: int, frames: int,
        device: torch.device, threads: int = 1,
    ) -> None:  # fmt: skip
        self.draws, self.index, self.cfg, self.batch = draws, index, cfg, batch
        self.device = device
        dali = {"device": "gpu", "device_id": device.index or 0} if device.type == "cuda" else {
            "device": "cpu", "device_id": None}
        self.pipe = frame_pipe(batch * frames, cfg, threads=threads, **dali)
        self._ready: queue.Queue[BatchT | Exception] = queue.Queue(maxsize=1)
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
        return item

    def close(self) -> None:
        """Stop the thread; harmless when repeated. Batches cannot be taken any more."""
        self._over = self._over or RuntimeError("the loader is closed")
        self._stopped.set()
        while self._thread.is_alive():
            try:
                self._ready.get(timeout=0.1)
            except queue.Empty:
                continue

    def _work(self) -> None:
        while not self._stopped.is_set():
            try:
                item: BatchT | Exception = self.load(list(islice(self.draws, self.batch)))
            except Exception as error:      # handed to the one who takes the batch, with its cause
                item = error
            self._ready.put(item)
            if isinstance(item, Exception):
                return

    def load(self, draws: list[DrawT]) -> BatchT:
        """The batch of these draws."""
        slots = [[self._prepared(draw, t) for draw in draws] for t in range(len(draws[0].frames))]
        together = [prepared for slot in slots for prepared in slot]                              # frame-major: T x B
        images, masks = self._run(together)                                                       # (T * B, 3, Hp, Wp)
        padded = tuple(images.shape[-2:])
        loaded = [self._loaded(one, mask, padded) for one, mask in zip(together, masks, strict=True)]
        count = len(draws)
        return self._batch(images.split(count), [loaded[i : i + count] for i in range(0, len(loaded), count)])

    @abstractmethod
    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> BatchT:
        """T tensors (B, 3, Hp, Wp) and T x B frames."""

    @abstractmethod
    def _identity(self, draw: DrawT) -> Mapping[int, int]:
        """Annotation id -> identity, of the annotations of a draw."""

    def _prepared(self, draw: DrawT, t: int) -> Prepared:
        video = draw.frames[t].video
        short, long = (self.cfg.short_side, self.cfg.long_side) if draw.scales is None else draw.scales[t]
        size = resize_to(video.height, video.width, short, long)
        return Prepared(draw.frames[t], size, draw.flips[t], self._identity(draw))

    def _run(self, together: Sequence[Prepared]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Padded images (B, 3, Hp, Wp), and per frame the resized masks (h, w, G) uint8."""
        frames = [one.frame for one in together]
        try:
            images, masks, shapes = self.pipe.run(
                jpeg=[_read_jpeg(self.index.dataset.frame_path(f.video, f.frame)) for f in frames],
                masks=[self._masks(f) for f in frames],
                size=[np.array(one.size, np.float32) for one in together],
                flip=[np.array(one.flip, np.int32) for one in together],
            )
        except RuntimeError as error:
            names = ", ".join(f.file_name for f in frames)
            raise DatasetError(f"one of these images cannot be decoded: {names}. {error}") from error
        for frame, shape in zip(frames, np.array(shapes.as_tensor()), strict=True):
            if tuple(shape[:2]) != (frame.video.height, frame.video.width):
                raise DatasetError(
                    f"{frame.file_name}: {shape[1]}x{shape[0]} pixels, but the annotations say "
                    f"{frame.video.width}x{frame.video.height}: masks would not fit."
                )
        stacked = torch.from_dlpack(images.as_tensor())
        heights, widths = zip(*(one.size for one in together), strict=True)
        wanted = pad_to(max(heights), max(widths), self.cfg.divisor)
        assert tuple(stacked.shape[-2:]) == wanted, f"DALI padded to {tuple(stacked.shape)}, expected {wanted}"
        return stacked, [torch.from_dlpack(masks[i]) for i in range(len(frames))]

    def _masks(self, frame: FrameAnnotations) -> np.ndarray:
        rles = [self.index.dataset.mask(a, frame.frame) for a in frame.annotations]
        return decode_masks(rles, frame.video.height, frame.video.width)

    def _loaded(self, one: Prepared, masks: torch.Tensor, padded: tuple[int, int]) -> Loaded:
        """Targets of one frame, and the annotation ids of the instances that stay."""
        h, w = one.size
        boxes = torch.from_numpy(_transform_boxes(one.frame, one.size, one.flip))
        full = torch.zeros(masks.shape[2], *padded, dtype=torch.bool, device=masks.device)       # (G, Hp, Wp)
        full[:, :h, :w] = masks.permute(2, 0, 1) > 0
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(1)
        alive = ((sides > MIN_BOX_SIDE) & full.flatten(1).any(1).cpu()).numpy() | self.keep_emptied
        kept = [a for a, keep in zip(one.frame.annotations, alive, strict=True) if keep]
        labels = torch.tensor([self.index.dataset.labels[a.category_id] for a in kept], dtype=torch.int64)
        identities = torch.tensor([one.identity[a.id] for a in kept], dtype=torch.int64)
        targets = FrameTargets(boxes[alive], labels, identities, full[torch.from_numpy(alive)])
        ids = np.array([a.id for a in kept], np.int64)
        return Loaded(targets.to(self.device), ids, pad_to(h, w, self.cfg.divisor))


class PairLoader(FrameLoader[PairDraw, PairBatch]):
    """Identities are those of the whole set."""

    keep_emptied = False

    def __init__(
        self, draws: Iterator[PairDraw], index: FrameIndex, cfg: InputConfig, *, batch: int, device: torch.device,
        threads: int = 1,
    ) -> None:  # fmt: skip
        super().__init__(draws, index, cfg, batch=batch, frames=2, device=device, threads=threads)

    def _identity(self, draw: PairDraw) -> Mapping[int, int]:
        return self.index.identity

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> PairBatch:
        counterparts = [
            [_counterparts(one.ids, other.ids).to(self.device) for one, other in zip(slot, others, strict=True)]
            for slot, others in (slots, slots[::-1])
        ]
        return PairBatch(tuple(images), _targets_of(slots), tuple(counterparts))


class ClipLoader(FrameLoader[ClipDraw, ClipBatch]):
    """Identities are those of each clip. As released, an instance that resizing leaves nothing of stays, so that a
    frame does not forget who was in it."""

    keep_emptied = True

    def _identity(self, draw: ClipDraw) -> Mapping[int, int]:
        return clip_identities(draw.frames)

    def _batch(self, images: tuple[torch.Tensor, ...], slots: list[list[Loaded]]) -> ClipBatch:
        return ClipBatch(tuple(images), _targets_of(slots), tuple([one.padded for one in slot] for slot in slots))


def _targets_of(slots: list[list[Loaded]]) -> tuple[list[FrameTargets], ...]:
    return tuple([one.targets for one in slot] for slot in slots)


def _read_jpeg(path: Path) -> np.ndarray:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}.") from error
    if not 0 < len(data) <= MAX_JPEG_BYTES:
        raise DatasetError(f"{path}: {len(data)} bytes, expected an image of 1 to {MAX_JPEG_BYTES}.")
    return np.frombuffer(data, np.uint8)


def _transform_boxes(frame: FrameAnnotations, size: tuple[int, int], flip: bool) -> np.ndarray:
    """Annotated boxes scaled to the resized frame, mirrored with it (x -> w - x) and clipped.  (G, 4) float32"""
    h, w = size
    boxes = frame.boxes() * np.array([w / frame.video.width, h / frame.video.height] * 2, np.float32)
    if flip:
        boxes[:, [0, 2]] = w - boxes[:, [2, 0]]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, w)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, h)
    return boxes


def _counterparts(ids: np.ndarray, others: np.ndarray) -> torch.Tensor:
    """Where each of `ids` stands among `others`, -1 where it does not.  (G,) int64"""
    same = ids[:, None] == others[None]                                                           # (G, G')
    found = np.where(same.any(1), same.argmax(1), -1) if same.size else np.full(len(ids), -1)
    return torch.from_numpy(found.astype(np.int64))
