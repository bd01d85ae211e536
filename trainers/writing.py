"""Files that a run goes on without: a disk that is full must not end a night's work.

In:     lines, TensorBoard events, sentences for people
Out:    `Lines`: a file that grows by whole records, or not at all; `Events`: TensorBoard's file; `notices.txt`
State:  how long the file was when its last record was whole
Limits: what could not be written is lost, but for the next record that can

tensorboardX writes from a thread: when that dies of a full disk, the queue behind it fills and training stands still
for ever. Here nothing waits.
"""

from __future__ import annotations

import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter
from tensorboardX.record_writer import masked_crc32c
from tensorboardX.writer import FileWriter

NOTICES_FILE = "notices.txt"
"""In a run's folder: what happened to it, a line each."""


def note(out: Path, text: str) -> bool:
    """Write a sentence down for whoever runs the run: `maskstream train` shows new lines of the file in `out`."""
    return Lines(out / NOTICES_FILE).append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())


def say(out: Path, text: str) -> None:
    """The same from a worker, whose log it stands in too, for the case that the disk is full."""
    print(text, file=sys.stderr, flush=True)
    note(out, text)


class Notices:
    """The lines of `notices.txt` that come in after now."""

    def __init__(self, out: Path) -> None:
        self._path = out / NOTICES_FILE
        self._read = self._path.stat().st_size if self._path.exists() else 0

    def new(self) -> list[str]:
        """Those since the last call; one that is being written just now comes with the next."""
        if not self._path.exists():
            return []
        with open(self._path, "rb") as file:
            file.seek(self._read)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._read += len(whole)
        return whole.decode("utf-8", "replace").splitlines()


class Lines:
    """A file to which whole records are appended. One process writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: bytes) -> bool:
        """Whether it could be written. If not, the file ends where it ended before."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError:
            return False
        try:
            before = os.fstat(handle).st_size
            try:
                written = os.write(handle, record)
            except OSError:
                written = -1
            if written != len(record):                  # a disk that fills up takes less than it is given at first
                os.ftruncate(handle, before)
            return written == len(record)
        finally:
            os.close(handle)


class Events(SummaryWriter):
    """tensorboardX's writer, with all its methods, that writes at once, or not at all where the disk is full."""

    def __init__(self, folder: Path) -> None:
        super().__init__(str(folder))

    def _get_file_writer(self) -> FileWriter:
        if self.all_writers is None or self.file_writer is None:
            self.file_writer = _AtOnce(self.logdir)
            self.all_writers = {self.logdir: self.file_writer}
        return self.file_writer


class _AtOnce(FileWriter):
    def __init__(self, folder: str) -> None:
        self.event_writer = _EventFile(folder)
        self._default_metadata: dict[str, Any] = {}


class _EventFile:
    """TensorBoard's format: length (8 bytes), its checksum (4), the event, its checksum (4)."""

    def __init__(self, folder: str) -> None:
        name = f"events.out.tfevents.{time.time():.0f}.{os.uname().nodename}.{os.getpid()}"
        self._folder, self._lines = folder, Lines(Path(folder) / name)
        self._lines.path.parent.mkdir(parents=True, exist_ok=True)

    def add_event(self, event: Any) -> None:
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        sums = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._lines.append(length + next(sums) + data + next(sums))

    def get_logdir(self) -> str:
        return self._folder

    def flush(self) -> None:
        """Nothing is held back."""

    def reopen(self) -> None:
        """Nothing is held open."""

    def close(self) -> None:
        """Nothing is held open."""
