"""Step 2 of training, where stored frames come from: files of images, or whatever else keeps to `FrameSource`.

In:     frames of a dataset
Out:    what the graph (trainers/pixels.py) is fed with for each of them
State:  none of image files; trainers/videos.py keeps some videos open
Limits: image files of at most MAX_IMAGE_BYTES
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from operators.errors import DatasetError
from operators.youtube_vis_data import Dataset
from trainers.frames import FrameAnnotations
from trainers.pixels import Stored

MAX_IMAGE_BYTES = 64 << 20


class FrameSource(Protocol):
    """Where stored frames come from."""

    stored: Stored
    """As what the graph is to take them."""

    def read(self, frames: Sequence[FrameAnnotations]) -> dict[str, list[np.ndarray]]:
        """What the graph is to be fed with for each frame. Raises DatasetError naming the file."""
        ...

    def close(self) -> None:
        """Give back what is open; harmless when repeated."""
        ...


class ImageFiles:
    """A file for each frame, in whatever form DALI reads: JPEG, PNG, WebP, BMP."""

    stored: Stored = "jpeg"

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def read(self, frames: Sequence[FrameAnnotations]) -> dict[str, list[np.ndarray]]:
        return {"jpeg": [read_bytes(self.dataset.frame_path(f.video, f.frame), MAX_IMAGE_BYTES) for f in frames]}

    def close(self) -> None:
        """Nothing is open between two reads."""


def read_bytes(path: Path, most: int) -> np.ndarray:
    """A file of 1 to `most` bytes, (n,) uint8. Raises DatasetError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}.") from error
    if not 0 < len(data) <= most:
        raise DatasetError(f"{path}: {len(data)} bytes, expected an image of 1 to {most}.")
    return np.frombuffer(data, np.uint8)
