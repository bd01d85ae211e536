"""Step 2 of training: pairs of encoded frames to tensors, by DALI.

In:     `PairDraw`s (trainers/pairs.py): which frames, and whether they are mirrored
Out:    `PairBatch` (models/crossvis.py): two image tensors (B, 3, Hp, Wp), targets per frame, counterparts
State:  none but the sampler's position; nothing random happens in here, so the same draws give the same bits
Source: CrossVIS specification 1.6, 1.7: antialiased resize of the image, nearest for masks, annotated boxes scaled and
        mirrored with them, both frames of a pair alike; instances dropped whose box or resized mask is empty.

One definition serves both devices: on a GPU JPEGs are decoded by `mixed` and all after runs there.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from nvidia.dali import Pipeline, fn, types

from models.inputs import InputConfig
from models.targets import FrameTargets, PairBatch
from operators.errors import DatasetError
from operators.masks import decode_masks
from operators.preprocess import pad_to, resize_to
from trainers.pairs import FrameAnnotations, FrameIndex, PairDraw

MIN_BOX_SIDE = 1e-5
MAX_JPEG_BYTES = 64 << 20


def frame_pipe(batch: int, cfg: InputConfig, *, device: str, device_id: int | None, threads: int) -> Pipeline:
    """DALI graph of one slot.

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
        image = fn.flip(fn.resize(image, size=size, antialias=True), horizontal=flip)
        masks = fn.flip(fn.resize(masks, size=size, interp_type=types.INTERP_NN), horizontal=flip)
        image = fn.crop_mirror_normalize(
            image, dtype=types.FLOAT, mean=list(cfg.mean), std=list(cfg.std), output_layout="CHW"
        )
        pipe.set_outputs(fn.pad(image, axis_names="HW", align=[cfg.divisor] * 2), masks, fn.peek_image_shape(encoded))
    return pipe


class PairLoader:
    """An endless stream of batches, one prepared ahead in a thread of its own while the network works on the last.

    `position` counts the samples handed out: with it a new loader goes on where this one stood.
    Raises DatasetError, where the batch is taken, for an image that is missing or cannot be decoded.
    """

    def __init__(
        self, draws: Iterator[PairDraw], index: FrameIndex, cfg: InputConfig, *, batch: int, device: torch.device,
        threads: int = 1,
    ) -> None:
        self.draws, self.index, self.cfg, self.batch = draws, index, cfg, batch
        self.device = device
        dali = {"device": "gpu", "device_id": device.index or 0} if device.type == "cuda" else {
            "device": "cpu", "device_id": None}
        self.pipe = frame_pipe(batch, cfg, threads=threads, **dali)
        self._ready: queue.Queue[PairBatch | Exception] = queue.Queue(maxsize=1)
        self._over: Exception | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name="pair-loader", daemon=True)
        self._thread.start()

    def __next__(self) -> PairBatch:
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
                item: PairBatch | Exception = self.load(list(islice(self.draws, self.batch)))
            except Exception as error:      # handed to the one who takes the batch, with its cause
                item = error
            self._ready.put(item)
            if isinstance(item, Exception):
                return

    def load(self, draws: list[PairDraw]) -> PairBatch:
        """The batch of these draws."""
        slots = [self._load_slot([d.frames[s] for d in draws], [d.flip for d in draws]) for s in (0, 1)]
        images, targets, ids = zip(*slots, strict=True)
        forward = [_counterparts(a, b).to(self.device) for a, b in zip(*ids, strict=True)]
        backward = [_counterparts(b, a).to(self.device) for a, b in zip(*ids, strict=True)]
        return PairBatch(images, targets, (forward, backward))

    def _load_slot(
        self, frames: list[FrameAnnotations], flips: list[bool]
    ) -> tuple[torch.Tensor, list[FrameTargets], list[np.ndarray]]:
        cfg = self.cfg
        sizes = [resize_to(f.video.height, f.video.width, cfg.short_side, cfg.long_side) for f in frames]
        images, masks = self._run(frames, sizes, flips)
        padded = tuple(images.shape[-2:])
        targets, ids = [], []
        for frame, size, flip, mask in zip(frames, sizes, flips, masks, strict=True):
            one, track_ids = self._targets(frame, size, flip, mask, padded)
            targets.append(one)
            ids.append(track_ids)
        return images, targets, ids

    def _run(
        self, frames: list[FrameAnnotations], sizes: list[tuple[int, int]], flips: list[bool]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Padded images (B, 3, Hp, Wp), and per frame the resized masks (h, w, G) uint8."""
        try:
            images, masks, shapes = self.pipe.run(
                jpeg=[_read_jpeg(self.index.dataset.frame_path(f.video, f.frame)) for f in frames],
                masks=[self._masks(f) for f in frames],
                size=[np.array(size, np.float32) for size in sizes],
                flip=[np.array(flip, np.int32) for flip in flips],
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
        wanted = pad_to(max(h for h, _ in sizes), max(w for _, w in sizes), self.cfg.divisor)
        assert tuple(stacked.shape[-2:]) == wanted, f"DALI padded to {tuple(stacked.shape)}, expected {wanted}"
        return stacked, [torch.from_dlpack(masks[i]) for i in range(len(frames))]

    def _masks(self, frame: FrameAnnotations) -> np.ndarray:
        rles = [self.index.dataset.mask(a, frame.frame) for a in frame.annotations]
        return decode_masks(rles, frame.video.height, frame.video.width)

    def _targets(
        self, frame: FrameAnnotations, size: tuple[int, int], flip: bool, masks: torch.Tensor, padded: tuple[int, int]
    ) -> tuple[FrameTargets, np.ndarray]:
        """Targets of one frame, and the annotation ids of the instances that survived."""
        h, w = size
        boxes = torch.from_numpy(_transform_boxes(frame, size, flip))
        full = torch.zeros(masks.shape[2], *padded, dtype=torch.bool, device=masks.device)       # (G, Hp, Wp)
        full[:, :h, :w] = masks.permute(2, 0, 1) > 0
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(1)
        alive = ((sides > MIN_BOX_SIDE) & full.flatten(1).any(1).cpu()).numpy()
        kept = [a for a, keep in zip(frame.annotations, alive, strict=True) if keep]
        labels = torch.tensor([self.index.dataset.labels[a.category_id] for a in kept], dtype=torch.int64)
        identities = torch.tensor([self.index.identity[a.id] for a in kept], dtype=torch.int64)
        targets = FrameTargets(boxes[alive], labels, identities, full[torch.from_numpy(alive)])
        return targets.to(self.device), np.array([a.id for a in kept], np.int64)


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
