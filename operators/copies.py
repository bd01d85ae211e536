"""Step 2, of addresses: a copy on this machine of what lies elsewhere, for as long as somebody reads it.

In:     a Source whose path is an address (addresses.py)
Out:    the same Source with a path on this machine; CopiedReader, which has that copy while it is open
State:  a folder of this process in the system's folder for temporary files (TMPDIR); copies in use, by address
Limits: a copy for each stream that is open, shared within the process; RESERVE bytes of the disk stay free

Copies, not a decoder that reads through the network: a damaged file is told from a whole one by its structure and read
in three places at once (outline, first frame, frames), MP4s have their index at the end, and a stream that is restored
or drawn on reads from the start again. A copy is one pass over the network, and every decoder and every message then is
the one of local files. A process that was killed leaves its folder unlocked, and the next process removes it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from operators.addresses import open_filesystem, unreadable
from operators.errors import SourceError
from operators.sources import Source

CHUNK = 8 << 20
RESERVE = 256 << 20


@dataclass
class _Copy:
    """One copy, or one in the making: `lock` is held until it is whole."""

    folder: Path
    users: int = 0
    whole: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


_lock = threading.Lock()
_copies: dict[Source, _Copy] = {}
_folder: Path | None = None


@contextmanager
def copied(source: Source) -> Iterator[Source]:
    """The source with its path on this machine, while the context lasts. Raises SourceError."""
    local = acquire(source)
    try:
        yield local
    finally:
        release(source)


def acquire(source: Source) -> Source:
    """The source with its path on this machine, until `release` was called as often. Raises SourceError."""
    with _lock:
        if source not in _copies:
            _copies[source] = _Copy(Path(tempfile.mkdtemp(dir=_own_folder())))
        copy = _copies[source]
        copy.users += 1
    try:
        with copy.lock:
            if not copy.whole:
                _fetch(source, copy.folder)
                copy.whole = True
    except BaseException:
        release(source)
        raise
    return replace(source, path=str(copy.folder if source.kind == "images" else copy.folder / _file_name(source.path)))


def release(source: Source) -> None:
    """One reader less; the last one's copy is removed."""
    with _lock:
        copy = _copies[source]
        copy.users -= 1
        if not copy.users:
            del _copies[source]
            shutil.rmtree(copy.folder, ignore_errors=True)


class CopiedReader:
    """A reader of a copy, which is made when it opens and goes when it closes. Messages name the address."""

    def __init__(self, source: Source, open_reader: Callable[[Source], Any]) -> None:
        self._source, self._local = source, acquire(source)
        self._open = True
        try:
            with self._named():
                self._reader = open_reader(self._local)
                self.info = self._reader.info
        except BaseException:
            release(source)
            raise

    def read(self, count: int) -> list[Any]:
        """The next `count` records, fewer at the end, where one StreamEnd follows; [] after that."""
        with self._named():
            records = self._reader.read(count)
        if records and getattr(records[-1], "error", None):
            records[-1] = replace(records[-1], error=self._told(records[-1].error))
        return records

    def skip(self, count: int) -> int:
        """Pass over the next `count` records as if they had been read, fewer at the end; says how many there were."""
        with self._named():
            return self._reader.skip(count)

    def close(self) -> None:
        """Close the reader and let go of the copy; closing twice is harmless."""
        self._reader.close()
        if self._open:
            self._open = False
            release(self._source)

    @contextmanager
    def _named(self) -> Iterator[None]:
        try:
            yield
        except SourceError as error:
            raise SourceError(self._told(str(error))) from error

    def _told(self, message: str) -> str:
        return message.replace(self._local.path, self._source.path)


def _file_name(address: str) -> str:
    """Of the copy: its suffix is the address's, so that a reader that goes by suffixes is not misled."""
    suffix = PurePosixPath(address.partition("?")[0]).suffix
    return "video" + (suffix if suffix[1:].isalnum() else "")


def _fetch(source: Source, folder: Path) -> None:
    if source.kind == "video":
        _copy(source.path, folder / _file_name(source.path))
        return
    for file in source.files:
        target = folder / file
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(f"{source.path.rstrip('/')}/{file}", target)


def _copy(address: str, target: Path) -> None:
    """Raises SourceError where it cannot be read, is not whole, or the disk is full."""
    files, path = open_filesystem(address)
    try:
        with files.open(path, "rb") as there, target.open("wb") as here:
            while chunk := there.read(CHUNK):
                if shutil.disk_usage(target.parent).free < RESERVE + len(chunk):
                    raise SourceError(f"'{address}': no room for a copy in {target.parent.parent}: less than "
                                      f"{RESERVE >> 20} MiB are free after {here.tell()} bytes. Set TMPDIR to a larger "
                                      f"disk, or open fewer streams at once.")
                here.write(chunk)
            num_bytes, expected = here.tell(), getattr(there, "size", None)
    except SourceError:
        raise
    except Exception as error:  # every driver has errors of its own kind
        raise unreadable(address, error) from error
    if isinstance(expected, int) and num_bytes != expected:
        raise SourceError(f"'{address}': {num_bytes} of {expected} bytes came. Is the connection stable? Run again.")


def _own_folder() -> Path:
    """This process's folder of copies; it stays locked until the process ends, however it ends."""
    global _folder
    if _folder is None:
        root = Path(tempfile.gettempdir(), f"maskstream-copies-{os.getuid()}")
        root.mkdir(mode=0o700, exist_ok=True)
        if root.stat().st_uid != os.getuid():
            raise SourceError(f"{root} belongs to somebody else; set TMPDIR to a folder of your own.")
        with _locked(root):  # a folder is made and locked before anybody may take it for a leftover
            _remove_leftovers(root)
            _folder = Path(tempfile.mkdtemp(dir=root))
            fcntl.flock(os.open(_folder, os.O_RDONLY), fcntl.LOCK_EX)  # held, with its descriptor, until the end
        atexit.register(_remove, _folder, os.getpid())
    return _folder


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not in a fork
        shutil.rmtree(folder, ignore_errors=True)


def _remove_leftovers(root: Path) -> None:
    for folder in root.iterdir():
        try:
            handle = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue  # its process ended meanwhile, and took it along
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # its process lives
        else:
            shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(handle)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
