"""Step 3: decoded frames to network input, by DALI.

In:     Frame   images (H, W, 3) uint8 RGB, of any sizes
Out:    Image   pixels (3, Hp, Wp) float32: resized as `antialias` asks and rounded to 8 bits, mean subtracted, divided
                by `std`, padded with zeros at the right and bottom to a multiple of `divisor`; with `fit: box` to the
                whole box
State:  none
Limits: frames of more than MAX_PIXELS are refused with a ValueError, which names the frame
Source: CrossVIS specification 1.6, CiCo specification 1.2. `resize_to` is the one rule of size for inference and
        training; the nodes of the training pipeline (trainers/pixels.py) are the same operators, and a test holds the
        two equal.
"""

from __future__ import annotations

import numpy as np
import nvidia.dali.experimental.dynamic as ndd
import torch
from nvidia.dali import types
from torch import Tensor

from models.inputs import Fit, InputConfig
from operators.probe import MAX_PIXELS
from operators.records import Frame, Image


def resize_to(height: int, width: int, short_side: int, long_side: int, fit: Fit = "short_side") -> tuple[int, int]:
    """(h, w) of a frame brought to `short_side`, aspect kept, no side above `long_side`; halves round up.

    With `fit` box: as large as it fits into `short_side` rows of `long_side` pixels; what is left over is dropped.

    >>> resize_to(720, 1280, 360, 640)
    (360, 640)
    >>> resize_to(1280, 720, 384, 640, "box")
    (384, 216)
    """
    if fit == "box":
        if height * long_side < short_side * width:
            return max(height * long_side // width, 1), long_side
        return short_side, max(width * short_side // height, 1)
    scale = short_side / min(height, width)
    if scale * max(height, width) > long_side:
        scale = long_side / max(height, width)
    return max(int(scale * height + 0.5), 1), max(int(scale * width + 0.5), 1)


def pad_to(height: int, width: int, divisor: int) -> tuple[int, int]:
    """Both sides rounded up to a multiple of `divisor`."""
    return -(-height // divisor) * divisor, -(-width // divisor) * divisor


class Preprocess:
    """Frames -> Images. Frames of equal size are resized together; the order of the batch is kept."""

    def __init__(self, config: InputConfig, device: str = "cpu", threads: int = 1) -> None:
        self.config = config
        self.device = "gpu" if torch.device(device).type == "cuda" else "cpu"
        ndd.set_num_threads(threads)

    def __call__(self, batch: list[Frame]) -> list[Image]:
        images: list[Image | None] = [None] * len(batch)
        for places in _by_size(batch):
            for place, image in zip(places, self._together([batch[i] for i in places]), strict=True):
                images[place] = image
        return images

    def _together(self, frames: list[Frame]) -> list[Image]:
        info, cfg = frames[0].info, self.config
        if info.height * info.width > MAX_PIXELS:
            raise ValueError(f"{info}: {info.width}x{info.height} has more than {MAX_PIXELS} pixels")
        size = resize_to(info.height, info.width, cfg.short_side, cfg.long_side, cfg.fit)
        pixels = to_network_input([frame.image for frame in frames], size, cfg, self.device)       # (B, 3, Hp, Wp)
        return [Image(frame.info, pixels[i], size) for i, frame in enumerate(frames)]


def to_network_input(images: list[np.ndarray], size: tuple[int, int], cfg: InputConfig, device: str) -> Tensor:
    """RGB images of one size (H, W, 3) uint8 -> (B, 3, Hp, Wp) float32, in the network's channel order."""
    x = ndd.as_batch([np.ascontiguousarray(image) for image in images], layout="HWC")
    if device == "gpu":
        x = x.gpu()
    x = ndd.resize(x, size=list(size), antialias=cfg.antialias)
    if cfg.channel_order == "bgr":
        x = ndd.color_space_conversion(x, image_type=types.RGB, output_type=types.BGR)
    x = ndd.crop_mirror_normalize(x, dtype=ndd.float32, mean=list(cfg.mean), std=list(cfg.std), output_layout="CHW")
    least = [cfg.short_side, cfg.long_side] if cfg.fit == "box" else list(size)
    return ndd.pad(x, axis_names="HW", align=[cfg.divisor, cfg.divisor], shape=least).torch()


def _by_size(batch: list[Frame]) -> list[list[int]]:
    """Places in the batch, grouped by frame size, in order of first appearance."""
    groups: dict[tuple[int, int], list[int]] = {}
    for i, frame in enumerate(batch):
        groups.setdefault((frame.info.height, frame.info.width), []).append(i)
    return list(groups.values())
