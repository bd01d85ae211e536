"""What a camera reads from, whatever it is made of: pictures one after the other, each with its time.

In:     an address that was allowed, settings, a Stop
Out:    Shot after Shot; None at a proper end; SourceError once it goes on no more
State:  of each feed its connection and its decoder
Limits: a read ends by the time it is told; frames of at most `max_pixels`
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np

from operators.errors import SourceError
from operators.live.states import CameraConfig
from operators.records import Frame, StreamEnd
from operators.sources import Source
from operators.video import VideoReader


class Shot(NamedTuple):
    """One picture of a source."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    media_s: float | None
    """Its time in its stream, from any start; None where the stream has no times."""
    arrived_at: float | None = None
    """Unix seconds; None for a recording, whose frames come when they are due."""


class Feed(Protocol):
    """One connection to a source. Used by one thread."""

    paced: bool
    """A recording: its frames are to be given at their own rate."""
    exact: bool
    """Its times are those that an offline run gives its frames, counted from 0."""
    ends: bool
    """After its proper end there is no more to come: the source ended, and is not to be connected to again."""
    patience_s: float
    """How long it may give nothing although all is well, where that is longer than the settings say."""
    damaged: int
    """Packets that could not be decoded and frames marked as damaged, so far."""
    lost: int
    """Those of them that gave no picture."""
    error: str | None
    """At a proper end: what was wrong on the way, if something was."""

    def read(self, until_s: float) -> list[Shot] | None:
        """The pictures of the next packet, often none; None at a proper end.

        Raises SourceError where it breaks off, gives nothing by `until_s` of the monotonic clock, or no longer decodes;
        Stopped when told to end.
        """
        ...

    def close(self) -> None:
        """Give back sockets, files and decoders. Closing twice is harmless."""
        ...


class FileFeed:
    """A video file, decoded as an offline run decodes it: same indices, times and pixels."""

    exact = True
    ends = True
    patience_s = 0.0

    def __init__(self, name: str, path: str, config: CameraConfig) -> None:
        """Raises SourceError where it does not open, or is too large."""
        self.paced = config.paced
        self.damaged = self.lost = 0
        self.error: str | None = None
        self._max_pixels = config.max_pixels
        self._reader = VideoReader(Source(name, "video", path), config.threads)

    def read(self, until_s: float) -> list[Shot] | None:
        (record,) = self._reader.read(1)
        if isinstance(record, StreamEnd):
            self.error, self.lost = record.error, record.num_skipped
            self.damaged = self.lost + self._reader.num_damaged
            return None
        assert isinstance(record, Frame)
        self.damaged = self._reader.num_damaged
        check_size(record.info.width, record.info.height, self._max_pixels)
        return [Shot(record.image, record.info.time_s)]

    def close(self) -> None:
        self._reader.close()


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises SourceError for frames that are too large."""
    if width * height > max_pixels:
        raise SourceError(f"Its frames of {width} x {height} have more than the {max_pixels} pixels of max_pixels.")
