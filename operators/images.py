"""Step 2, of images: the files of a folder, in order, to frames.

In:     a Source of kind "images"
Out:    Frame (H, W, 3) uint8 RGB, upright by its EXIF orientation; FrameFault for a file that cannot be decoded
State:  the number of images given
Limits: images of at most MAX_PIXELS, files of at most MAX_IMAGE_BYTES; one image in memory at a time
Source: DALI `decoders.image` on the CPU. What is inside counts, not the suffix: a PNG named .jpg is a PNG

Pillow reads headers, to bound what DALI is asked to decode; all pixels come from DALI. Transparency is dropped, 16 bits
become 8, and of an animation the first picture is taken.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from operators.probe import image_size, probe_images, read_image_file
from operators.records import Frame, FrameFault, FrameInfo, StreamEnd
from operators.sources import Source


def decode_image(data: bytes) -> np.ndarray:
    """Encoded JPEG, PNG, WebP or BMP -> (H, W, 3) uint8 RGB, upright. Raises ValueError with the reason."""
    import nvidia.dali.experimental.dynamic as ndd  # here, because it takes over a second and videos do without
    from nvidia.dali import types

    image_size(data)
    try:
        encoded = ndd.as_tensor(np.frombuffer(data, np.uint8))
        return np.array(ndd.decoders.image(encoded, output_type=types.RGB, adjust_orientation=True))   # (H, W, 3)
    except RuntimeError as error:
        raise ValueError("is damaged or cut short: its header is whole, its pixels are not") from error


class ImageReader:
    """Gives every image of a source once, in order; a bad one as a fault, and goes on.

    `FrameInfo.time_s` is index / fps. The size in a fault's FrameInfo is that of its header where this can be read,
    else that of the image before it, else 0 x 0.
    """

    def __init__(self, source: Source) -> None:
        self.info = probe_images(source.path, source.files, source.fps)
        self._source = source
        self._next = 0
        self._num_bad = 0
        self._size = (0, 0)
        self._ended = False

    def read(self, count: int) -> list[Frame | FrameFault | StreamEnd]:
        """The next `count` images, fewer at the end, where one StreamEnd follows; [] after that."""
        stop = min(self._next + max(0, count), len(self._source.files))
        found: list[Frame | FrameFault | StreamEnd] = [self._read(index) for index in range(self._next, stop)]
        self._next = stop
        if len(found) < count and not self._ended:
            self._ended = True
            found.append(self._end())
        return found

    def skip(self, count: int) -> int:
        """Pass over `count` images as if they had been read: decoded too, so that the bad ones are counted. Says how
        many there were, fewer at the end."""
        start, stop = self._next, min(self._next + max(0, count), len(self._source.files))
        for index in range(start, stop):
            self._read(index)
            self._next = index + 1
        return stop - start

    def close(self) -> None:
        """Nothing is held open between two reads; closing twice is harmless."""
        self._ended, self._next = True, len(self._source.files)

    def _read(self, index: int) -> Frame | FrameFault:
        file = self._source.files[index]
        time_s = index / self._source.fps
        try:
            data = read_image_file(Path(self._source.path, file))
            self._size = image_size(data)
            image = decode_image(data)
        except ValueError as error:
            self._num_bad += 1
            return FrameFault(FrameInfo(self._source.name, index, time_s, *self._size), f"'{file}' {error}.")
        return Frame(FrameInfo(self._source.name, index, time_s, *image.shape[:2]), image)

    def _end(self) -> StreamEnd:
        num_frames = len(self._source.files)
        if not self._num_bad:
            return StreamEnd(self._source.name, num_frames)
        error = f"'{self._source.path}': {self._num_bad} of {num_frames} images could not be decoded."
        return StreamEnd(self._source.name, num_frames, error=error, fatal=self._num_bad == num_frames)
