"""Step 2, ahead of being asked: a thread for a stream, which decodes while later stages work on what came before.

In:     how to open a stream's reader, and how many of its records to pass over
Out:    its records in order, each as soon as it is there
State:  the reader, which lives in the thread alone; up to `depth` records that nobody took yet
Limits: a thread and `depth` decoded frames for each stream (of 1080p 6 MB a frame); the thread waits while they lie
        there, and ends with the stream

Threads are enough: FFmpeg, DALI and decord let go of Python's lock while they decode.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Protocol

from operators.errors import SourceError
from operators.probe import VideoInfo
from operators.records import Frame, FrameFault, StreamEnd

Record = Frame | FrameFault | StreamEnd

SKIP_AT_ONCE = 16
"""Records passed over between two looks at whether the stream was closed meanwhile."""
JOIN_S = 5.0
"""Longest wait for a thread to end. One that hangs in a file system is left behind: it ends when that answers."""


class Reader(Protocol):
    """Reads one source from its start to its end."""

    info: VideoInfo

    def read(self, count: int) -> list[Record]:
        """The next `count` records, fewer at the end, where one StreamEnd follows; [] after that."""
        ...

    def skip(self, count: int) -> int:
        """Pass over the next `count` records as if they had been read, fewer at the end; says how many there were."""
        ...

    def close(self) -> None:
        """Give back files and decoders; closing twice is harmless. `read` gives [] after it."""


class Direct:
    """Records of a stream, decoded when they are taken and not before."""

    def __init__(self, stream: str, open_reader: Callable[[], Reader], skip: int) -> None:
        self._stream, self._open, self._count = stream, open_reader, skip
        self._reader: Reader | None = None

    ready = True
    """Taking does not wait for anybody else."""

    def take(self, count: int) -> list[Record]:
        """The next `count` records, fewer at the end, which is a StreamEnd: of a source that does not open or breaks
        off a fatal one. [] after it."""
        try:
            if self._reader is None:
                self._reader = self._open()
                self._reader.skip(self._count)
            records = self._reader.read(count)
        except SourceError as error:
            records = [_broken_off(self._stream, self._count, error)]
        self._count += len(records)
        return records

    def stop(self) -> None:
        """Nothing runs between two calls."""

    def close(self) -> None:
        """Close the reader; closing twice is harmless."""
        if self._reader is not None:
            self._reader.close()


class Prefetched:
    """Records of a stream, decoded by a thread that begins at once. `news` is notified of each."""

    def __init__(
        self, stream: str, open_reader: Callable[[], Reader], skip: int, depth: int, news: threading.Condition
    ) -> None:
        self._stream, self._open, self._count = stream, open_reader, skip
        self._news = news
        self._records: deque[Record] = deque()
        self._error: Exception | None = None
        self._room: SimpleQueue[bool] = SimpleQueue()      # its put may be called from anywhere, a finalizer too
        self._make_room(depth)
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name=f"decode {stream}", daemon=True)
        self._thread.start()

    @property
    def ready(self) -> bool:
        """Whether something can be taken, be it an error. Ask while holding `news`."""
        return bool(self._records) or self._error is not None

    def take(self, count: int) -> list[Record]:
        """Up to `count` records, those that are there. Raises what the decoder raised, once all before it were taken,
        and at every call from then on. Call it while holding `news`."""
        if self._error is not None and not self._records:
            raise self._error
        taken = [self._records.popleft() for _ in range(min(count, len(self._records)))]
        self._make_room(len(taken))
        return taken

    def stop(self) -> None:
        """Tell the thread to end, and do not wait for it."""
        self._stopped = True
        self._make_room(1)

    def close(self) -> None:
        """End the thread, which closes the reader; closing twice is harmless."""
        self.stop()
        self._thread.join(JOIN_S)
        self._records.clear()

    def _make_room(self, count: int) -> None:
        for _ in range(count):
            self._room.put(True)

    def _run(self) -> None:
        try:
            reader = self._open()
            try:
                self._read(reader)
            finally:
                reader.close()
        except SourceError as error:
            self._give(_broken_off(self._stream, self._count, error))
        except Exception as error:          # whatever it is, it belongs to who takes the next record
            with self._news:
                self._error = error
                self._news.notify_all()

    def _read(self, reader: Reader) -> None:
        left = self._count
        while left and not self._stopped and (passed := reader.skip(min(SKIP_AT_ONCE, left))):
            left -= passed
        while True:
            self._room.get()
            if self._stopped:
                return
            (record,) = reader.read(1)
            self._give(record)
            if isinstance(record, StreamEnd):
                return
            self._count += 1

    def _give(self, record: Record) -> None:
        with self._news:
            self._records.append(record)
            self._news.notify_all()


def _broken_off(stream: str, num_frames: int, error: SourceError) -> StreamEnd:
    return StreamEnd(stream, num_frames, error=str(error), fatal=True)
