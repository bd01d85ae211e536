"""Step 2: the first stage of every graph: asked for the next frames of a source, it decodes them.

In:     Pull        a source, and how many of its frames
Out:    Frame       (H, W, 3) uint8 RGB, upright; FrameFault for an image that cannot be decoded; one StreamEnd
State:  one reader per stream; its snapshot is the number of frames given, from which a restored one decodes on
Limits: no frame is decoded before it is asked for, so memory does not grow with the length of a video
Source: measured on the test media: PyAV alone is right for every file; tests compare the others with it

A source that does not open, or breaks off, ends its own stream with a StreamEnd that says why; the others go on.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from operators.backends import open_dali, open_decord, open_nvdec
from operators.errors import ConfigError, SourceError, StageError, did_you_mean
from operators.images import ImageReader
from operators.probe import VideoInfo
from operators.records import Frame, FrameFault, Pull, StreamEnd
from operators.sources import Source
from operators.video import VideoReader


class Reader(Protocol):
    """Reads one source from its start to its end."""

    info: VideoInfo

    def read(self, count: int) -> list[Frame | FrameFault | StreamEnd]:
        """The next `count` records, fewer at the end, where one StreamEnd follows; [] after that."""

    def skip(self, count: int) -> None:
        """Pass over `count` records as if they had been read."""

    def close(self) -> None:
        """Give back files and decoders; closing twice is harmless. `read` gives [] after it."""


BACKENDS: dict[str, Callable[[Source, int], Reader]] = {
    "pyav": VideoReader,
    "decord": open_decord,
    "dali": open_dali,
    "nvdec": open_nvdec,
}


@dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How videos are decoded. Images are decoded by DALI whatever stands here."""

    backend: str = "auto"
    """pyav reads everything. decord (whole MP4 and Matroska files), dali (VP8, VP9, Motion JPEG on the CPU) and nvdec
    (DALI on the GPU's video engine, not yet tried on one) refuse files on which they would be wrong. auto takes the one
    that is right for every file: pyav."""
    threads: int = 1
    """Decoding threads per video. More are faster where frames are coded in slices; with many streams they get in each
    other's way, and the pixels of damaged frames may then differ from run to run."""

    def __post_init__(self) -> None:
        if self.backend != "auto" and self.backend not in BACKENDS:
            raise ConfigError(f"decode.backend is '{self.backend}'.{did_you_mean(self.backend, ['auto', *BACKENDS])}")
        if not 1 <= self.threads <= 64:
            raise ConfigError(f"decode.threads is {self.threads}; expected 1 to 64.")


def open_reader(source: Source, backend: str = "auto", threads: int = 1) -> Reader:
    """A reader at the start of the source. Raises SourceError where it does not open, ConfigError for the backend."""
    if source.kind == "images":
        return ImageReader(source)
    if backend == "auto":
        backend = "pyav"
    if backend not in BACKENDS:
        raise ConfigError(f"There is no decode backend '{backend}'.{did_you_mean(backend, ['auto', *BACKENDS])}")
    return BACKENDS[backend](source, threads)


@dataclass
class _Stream:
    """Where one stream stands: `given` records came, the first `to_skip` of them before a restore."""

    given: int = 0
    to_skip: int = 0
    ended: bool = False
    source: Source | None = None
    reader: Reader | None = None


class Decode:
    """Gives the frames that are asked for. A reader opens with the first Pull of its stream, not before."""

    def __init__(self, config: DecodeConfig) -> None:
        self._config = config
        self._streams: dict[str, _Stream] = {}

    def __call__(self, batch: list[Pull]) -> list[Frame | FrameFault | StreamEnd]:
        """The frames of each Pull in turn. Raises StageError for a stream that is not open, or changed its source."""
        found: list[Frame | FrameFault | StreamEnd] = []
        for pull in batch:
            found += self._read(pull)
        return found

    def open(self, stream: str) -> None:
        """A stream begins. Raises StageError where it has begun already."""
        if stream in self._streams:
            raise StageError(f"decode, stream '{stream}': is open already; close it first.")
        self._streams[stream] = _Stream()

    def snapshot(self, stream: str) -> bytes:
        """How many frames of the stream were given, and whether its end was."""
        state = self._state(stream)
        return json.dumps({"given": state.given, "ended": state.ended}).encode()

    def restore(self, stream: str, state: bytes) -> None:
        """Go on after the frames that a snapshot counts. Raises StageError for bytes that no snapshot gave."""
        try:
            fields = json.loads(state)
            given, ended = int(fields["given"]), bool(fields["ended"])
        except (ValueError, TypeError, KeyError) as error:
            raise StageError(f"decode, stream '{stream}': {state[:40]!r} is no snapshot of this stage.") from error
        self.open(stream)
        self._streams[stream] = _Stream(given=given, to_skip=given, ended=ended)

    def close(self, stream: str) -> list[Frame | FrameFault | StreamEnd]:
        """Close the reader and forget the stream; nothing is ever held back. Closing a closed stream gives []."""
        state = self._streams.pop(stream, None)
        if state is not None and state.reader is not None:
            state.reader.close()
        return []

    def _state(self, stream: str) -> _Stream:
        if stream not in self._streams:
            raise StageError(f"decode, stream '{stream}': is not open. Call open or restore before its first frame.")
        return self._streams[stream]

    def _read(self, pull: Pull) -> list[Frame | FrameFault | StreamEnd]:
        state = self._state(pull.source.name)
        if state.source not in (None, pull.source):
            raise StageError(f"decode, stream '{pull.source.name}': was '{state.source.path}', and is now "
                             f"'{pull.source.path}'. Give each source a name of its own.")
        state.source = pull.source
        if state.ended or pull.count <= 0:
            return []
        try:
            records = self._reader(state, pull.source).read(pull.count)
        except SourceError as error:
            records = [StreamEnd(pull.source.name, state.given, error=str(error), fatal=True)]
        state.ended = bool(records) and isinstance(records[-1], StreamEnd)
        state.given += len(records) - state.ended
        if state.ended and state.reader is not None:
            state.reader.close()
            state.reader = None
        return records

    def _reader(self, state: _Stream, source: Source) -> Reader:
        if state.reader is None:
            state.reader = open_reader(source, self._config.backend, self._config.threads)
            state.reader.skip(state.to_skip)
        return state.reader
