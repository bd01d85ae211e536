"""Step 2 of training, in DALI: stored frames to network input. One definition for both devices and all kinds of data.

In:     JPEGs, frames decoded elsewhere, or encoded videos; painted masks (trainers/planes.py); sizes and draws
Out:    image (3, Hp, Wp) float32, planes of masks (P, Hp, Wp) uint8, the stored frame's own size
State:  none; nothing random happens in here
Source: CrossVIS specification 1.6; TLTM specification 1.4 for the order of colour, motion and blur

On a GPU JPEGs are decoded by `mixed` and all after runs there. What a run's settings never ask for is not in its graph,
and what a frame does not ask for is left out for that frame: DALI's affine warp takes 55 ms of a 1280 x 720 frame on
one core, all the rest 8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from nvidia.dali import fn, pipeline_def, types

from models.inputs import InputConfig
from trainers.augment import Changes, blur_kernel

Stored = Literal["jpeg", "frame", "video"]
"""How frames come in: files of images; RGB (H, W, 3); whole video files and which frame of each."""

NO_MOTION = np.eye(2, 3, dtype=np.float32)
NO_BLUR = np.ones((1, 1), np.float32)
NO_COLOUR = np.eye(3, 4, dtype=np.float32)


@dataclass(frozen=True)
class Parts:
    """What a graph can do beside resizing, mirroring and normalising."""

    stored: Stored = "jpeg"
    colour: bool = False
    motion: bool = False
    """And blur."""
    window: bool = False
    upside_down: bool = False
    """Frames are turned over, rows in the other order, where others are mirrored."""


@pipeline_def(enable_conditionals=True, exec_dynamic=True, prefetch_queue_depth=1)
def frame_pipe(cfg: InputConfig, parts: Parts, device: str):
    """The graph of the frames of a batch; `FrameLoader` knows what it is fed with."""
    planes = fn.external_source(name="planes", dtype=types.UINT8, ndim=3, layout="HWC")
    size = fn.external_source(name="size", dtype=types.FLOAT, ndim=1)
    how = fn.external_source(name="how", dtype=types.INT32, ndim=0)
    flip = fn.external_source(name="flip", dtype=types.INT32, ndim=0)
    canvas = fn.external_source(name="canvas", dtype=types.FLOAT, ndim=1)
    image, shape = _stored(parts.stored, device)
    if device == "gpu":
        planes = planes.gpu()
    if parts.colour:
        image = _coloured(image)
    if parts.motion:
        image, planes = _moved(image, planes, size)
    # RGB as far as here: DALI decodes to BGR in three times the time. A frame of its own size is copied by nearest.
    image = fn.resize(image, size=size, interp_type=fn.cast(how, dtype=types.INTERP_TYPE), antialias=cfg.antialias)
    if cfg.channel_order == "bgr":
        image = fn.color_space_conversion(image, image_type=types.RGB, output_type=types.BGR)
    if parts.window:
        image, planes = _windowed(image, planes)
    mirror = flip
    if parts.upside_down:
        image, planes = (fn.flip(x, horizontal=0, vertical=flip) for x in (image, planes))
        mirror = flip * 0
    # Cutting, mirroring, normalising and padding in one pass. What is mirrored is padded at its left, to have it right.
    padded = {"crop": canvas, "crop_pos_x": fn.cast(mirror, dtype=types.FLOAT), "crop_pos_y": 0.0, "mirror": mirror,
              "out_of_bounds_policy": "pad", "fill_values": 0.0, "output_layout": "CHW"}  # fmt: skip
    image = fn.crop_mirror_normalize(image, dtype=types.FLOAT, mean=list(cfg.mean), std=list(cfg.std), **padded)
    return image, fn.crop_mirror_normalize(planes, dtype=types.UINT8, **padded), shape


def _stored(stored: str, device: str):
    """Image (H, W, 3) uint8 RGB on the device, and its shape on the CPU."""
    decoder = "mixed" if device == "gpu" else "cpu"
    if stored == "jpeg":
        encoded = fn.external_source(name="jpeg", dtype=types.UINT8, ndim=1)
        return fn.decoders.image(encoded, device=decoder, output_type=types.RGB), fn.peek_image_shape(encoded)
    if stored == "video":
        encoded = fn.external_source(name="video", dtype=types.UINT8, ndim=1)
        wanted = fn.external_source(name="wanted", dtype=types.INT32, ndim=1)
        image = fn.decoders.video(encoded, device=decoder, frames=wanted)                       # (1, H, W, 3)
        image = fn.squeeze(image, axes=[0])
        return image, image.shape()
    image = fn.external_source(name="frame", dtype=types.UINT8, ndim=3, layout="HWC")
    shape = image.shape()
    return (image.gpu() if device == "gpu" else image), shape


def _coloured(image):
    is_coloured = fn.external_source(name="is_coloured", dtype=types.BOOL, ndim=0)
    matrix = fn.external_source(name="colour", dtype=types.FLOAT, ndim=2)
    offset = fn.external_source(name="offset", dtype=types.FLOAT, ndim=1)
    if is_coloured:
        image = fn.coord_transform(image, M=matrix, T=offset, dtype=types.UINT8)
    return image


def _moved(image, planes, size):
    """What moves has its masks painted at the stored size: they are resized after it."""
    is_moved = fn.external_source(name="is_moved", dtype=types.BOOL, ndim=0)
    is_blurred = fn.external_source(name="is_blurred", dtype=types.BOOL, ndim=0)
    matrix = fn.external_source(name="motion", dtype=types.FLOAT, ndim=2)
    kernel = fn.external_source(name="kernel", dtype=types.FLOAT, ndim=2)
    if is_moved:
        image = fn.warp_affine(image, matrix=matrix, inverse_map=False, fill_value=0)
        planes = fn.warp_affine(
            planes, matrix=matrix, inverse_map=False, fill_value=0, interp_type=types.INTERP_NN)
        planes = fn.resize(planes, size=size, interp_type=types.INTERP_NN)
    if is_blurred:
        image = fn.filter(image, kernel)
    return image, planes


def _windowed(image, planes):
    start = fn.external_source(name="start", dtype=types.INT32, ndim=1)
    shape = fn.external_source(name="shape", dtype=types.INT32, ndim=1)
    return tuple(fn.slice(x, start=start, shape=shape, axes=[0, 1]) for x in (image, planes))


def change_inputs(changes: list[Changes], parts: Parts) -> dict[str, list[np.ndarray]]:
    """What `frame_pipe` is to be fed with of each frame's changes."""
    fed: dict[str, list[np.ndarray]] = {}
    if parts.colour:
        colours = [NO_COLOUR if one.colour is None else np.reshape(one.colour, (3, 4)) for one in changes]
        fed["is_coloured"] = [np.array(one.colour is not None) for one in changes]
        fed["colour"] = [np.ascontiguousarray(matrix[:, :3], np.float32) for matrix in colours]
        fed["offset"] = [np.ascontiguousarray(matrix[:, 3], np.float32) for matrix in colours]
    if parts.motion:
        fed["is_moved"] = [np.array(one.motion is not None) for one in changes]
        fed["is_blurred"] = [np.array(one.blur is not None) for one in changes]
        fed["motion"] = [NO_MOTION if one.motion is None else np.reshape(one.motion, (2, 3)).astype(np.float32)
                         for one in changes]  # fmt: skip
        fed["kernel"] = [NO_BLUR if one.blur is None else blur_kernel(one.blur) for one in changes]
    return fed
