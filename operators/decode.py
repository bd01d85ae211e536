"""Step 2: the first stage of every graph: asked for the next frames of a source, it decodes them.

In:     Pull        a source, and how many of its frames
Out:    Frame       (H, W, 3) uint8 RGB, upright; FrameFault for an image that cannot be decoded; one StreamEnd
State:  one reader per stream; its snapshot is the number of frames given, from which a restored one decodes on
Limits: at most `prefetch` frames of a stream are decoded before they are asked for, so memory does not grow with the
        length of a video
Source: measured on the test media: PyAV alone is right for every file; tests compare the others with it

A source that does not open, or breaks off, ends its own stream with a StreamEnd that says why; the others go on.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from operators.addresses import is_address
from operators.backends import open_dali, open_decord, open_nvdec
from operators.copies import CopiedReader
from operators.errors import ConfigError, StageError, did_you_mean
from operators.images import ImageReader
from operators.prefetch import Direct, Prefetched, Reader, Record
from operators.records import Pull, StreamEnd
from operators.sources import Source
from operators.states import pack, unpacked
from operators.video import VideoReader

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
    prefetch: int = 0
    """Frames of each stream that a thread of its own decodes ahead, while later stages work; 0 decodes when asked, in
    turn. More: the network waits less for decoders, and a slow source holds up no other of its process; more memory.
    Frames stay the same, only how many come together then depends on time."""

    def __post_init__(self) -> None:
        if self.backend != "auto" and self.backend not in BACKENDS:
            raise ConfigError(f"decode.backend is '{self.backend}'.{did_you_mean(self.backend, ['auto', *BACKENDS])}")
        if not 1 <= self.threads <= 64:
            raise ConfigError(f"decode.threads is {self.threads}; expected 1 to 64.")
        if not 0 <= self.prefetch <= 1024:
            raise ConfigError(f"decode.prefetch is {self.prefetch}; expected 0 to 1024.")


def open_reader(source: Source, backend: str = "auto", threads: int = 1) -> Reader:
    """A reader at the start of the source. Raises SourceError where it does not open, ConfigError for the backend."""
    if is_address(source.path):
        return CopiedReader(source, lambda local: open_reader(local, backend, threads))
    if source.kind == "images":
        return ImageReader(source)
    if backend == "auto":
        backend = "pyav"
    if backend not in BACKENDS:
        raise ConfigError(f"There is no decode backend '{backend}'.{did_you_mean(backend, ['auto', *BACKENDS])}")
    return BACKENDS[backend](source, threads)


@dataclass
class _Stream:
    """Where one stream stands: `given` records came, or were given before a restore."""

    given: int = 0
    ended: bool = False
    source: Source | None = None
    records: Direct | Prefetched | None = None
    returned: deque[Record] = field(default_factory=deque)
    """Taken in a call that failed, and to be given in the next."""

    @property
    def ready(self) -> bool:
        return bool(self.returned) or self.records.ready

    def take(self, count: int) -> list[Record]:
        taken = [self.returned.popleft() for _ in range(min(count, len(self.returned)))]
        return taken or self.records.take(count)


class Decode:
    """Gives the frames that are asked for. A source opens with the first Pull of its stream, not before."""

    def __init__(self, config: DecodeConfig) -> None:
        self._config = config
        self._streams: dict[str, _Stream] = {}
        self._news = threading.Condition()
        weakref.finalize(self, _stop_all, self._streams)       # a run that is given up leaves no thread behind

    def __call__(self, batch: list[Pull]) -> list[Record]:
        """The frames of each Pull in turn: all that it asks for, up to the end; with `prefetch` those that are there,
        at least one record of one of the streams. A stream that gave its end, and a Pull of none, add nothing.

        Raises StageError for a stream that is not open, changed its source, or never told it; and whatever else a
        decoder raises. A call that raises gives nothing away: the next gives what this one would have given.
        """
        asked = [(self._told(pull), pull.count) for pull in batch]
        asked = [(state, count) for state, count in asked if count > 0 and not state.ended]
        for state in {id(state): state for state, _ in asked}.values():
            state.records = state.records or self._begun(state)
        with self._news:
            self._news.wait_for(lambda: not asked or any(state.ready for state, _ in asked))
            taken = _take_all(asked)
        for state, records in taken:
            state.ended = state.ended or bool(records) and isinstance(records[-1], StreamEnd)
            state.given += sum(not isinstance(record, StreamEnd) for record in records)
            if state.ended and state.records is not None:
                state.records.close()
                state.records = None
        return [record for _, records in taken for record in records]

    def open(self, stream: str) -> None:
        """A stream begins. Raises StageError where it has begun already."""
        if stream in self._streams:
            raise StageError(f"decode, stream '{stream}': is open already; close it first.")
        self._streams[stream] = _Stream()

    def snapshot(self, stream: str) -> bytes:
        """How many frames of the stream were given, and whether its end was; not those that were only decoded."""
        state = self._state(stream)
        return pack({"given": state.given, "ended": state.ended})

    def restore(self, stream: str, state: bytes) -> None:
        """Go on after the frames that a snapshot counts. Raises StageError for bytes that no snapshot gave."""
        with unpacked(state, f"decode, stream '{stream}'") as content:
            given, ended = content["given"], content["ended"]
            if type(given) is not int or given < 0 or type(ended) is not bool:
                raise ValueError(f"{given!r} frames given, ended: {ended!r}")
        self.open(stream)
        self._streams[stream] = _Stream(given=given, ended=ended)

    def close(self, stream: str) -> list[Record]:
        """Close the reader and forget the stream; nothing is ever held back. Closing a closed stream gives []."""
        state = self._streams.pop(stream, None)
        if state is not None and state.records is not None:
            state.records.close()
        return []

    def _state(self, stream: str) -> _Stream:
        if stream not in self._streams:
            raise StageError(f"decode, stream '{stream}': is not open. Call open or restore before its first frame.")
        return self._streams[stream]

    def _told(self, pull: Pull) -> _Stream:
        """The stream that is asked for, which knows its source from now on."""
        state, source = self._state(pull.stream), pull.source
        if isinstance(source, str):
            source = state.source
        if source is None:
            raise StageError(f"decode, stream '{pull.stream}': its first pull names no source. Give the source with "
                             f"the first pull after open or restore.")
        if state.source not in (None, source):
            raise StageError(f"decode, stream '{pull.stream}': was '{state.source.path}', and is now "
                             f"'{source.path}'. Give each source a name of its own.")
        state.source = source
        return state

    def _begun(self, state: _Stream) -> Direct | Prefetched:
        cfg = self._config
        opening = partial(open_reader, state.source, cfg.backend, cfg.threads)
        if cfg.prefetch:
            return Prefetched(state.source.name, opening, state.given, cfg.prefetch, self._news)
        return Direct(state.source.name, opening, state.given)


def _take_all(asked: list[tuple[_Stream, int]]) -> list[tuple[_Stream, list[Record]]]:
    """What each stream has, or nothing of any if one raises: then all is given back."""
    taken: list[tuple[_Stream, list[Record]]] = []
    try:
        for state, count in asked:
            taken.append((state, state.take(count)))
    except Exception:
        for state, records in reversed(taken):
            state.returned.extendleft(reversed(records))
        raise
    return taken


def _stop_all(streams: dict[str, _Stream]) -> None:
    for state in streams.values():
        if state.records is not None:
            state.records.stop()
