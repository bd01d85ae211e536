"""Where the states of streams are kept, so that they outlive the actors that made them.

In:     of a stream, after a frame: the bytes that each keyed group gave for it (`StageGroup.snapshot`)
Out:    the latest of them that is whole, with its frame
State:  the last KEEP snapshots of each stream. In Ray's object store, as objects that the driver owns: they outlive
        actors, workers and nodes, not the driver. In a directory or behind an fsspec URL (memory://, s3://): they
        outlive the driver too, under the run's mark
Limits: snapshots of at most MAX_BYTES; one that is larger, or cannot be written, is refused, and those before it stay
Source: fsspec's file systems; any that can write, list, read and remove will do

A directory is laid out so, and a run's folder goes when the run closes its store:

    <where>/<mark>/<name of the stream, made safe>-<digest of its name>/<frame, 12 digits>.snapshot
    a snapshot: one line of JSON with stream, frame, groups and checksum, then the groups' bytes one after the other
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import fsspec
import ray
import ray.exceptions
from fsspec.implementations.local import LocalFileSystem

from operators.errors import ConfigError, StageError
from operators.replacing import replacing
from operators.sources import safe_name

KEEP = 2
"""Snapshots of a stream: should the last be damaged, the one before it costs only a longer replay."""
MAX_BYTES = 1 << 30
"""Of one snapshot, all groups together. The largest of a stage that is bounded is some 50 MB."""
MAX_HEAD_BYTES = 1 << 16
GET_TIMEOUT_S = 60.0
"""Longest wait for an object of the store: one whose node is gone shall be told, not waited for."""

State = Mapping[str, bytes]
"""Name of a keyed group -> what its `snapshot` gave."""
Tell = Callable[[str], None]


class SnapshotError(StageError):
    """A snapshot was not stored. The stream can go on: those before it are as they were, a replay is only longer."""


class SnapshotStore(Protocol):
    """Keeps the last states of each stream. One per run; the driver alone calls it."""

    def put(self, stream: str, frame: int, state: State) -> None:
        """Keep a stream's state after `frame` frames, and drop all but the last KEEP. A frame put again replaces its
        snapshot. Raises SnapshotError where it is too large or cannot be written; then nothing has changed."""

    def latest(self, stream: str) -> tuple[int, dict[str, bytes]] | None:
        """The latest state that is whole and its frame; None if there is none. Damaged ones are told, and passed over.
        Raises SnapshotError if the store itself cannot be read: then the stream may have a state."""

    def forget(self, stream: str) -> None:
        """Drop all of a stream: when it ends, and before it starts from its first frame, so that nothing of an earlier
        run is taken up. Forgetting an unknown stream is harmless."""

    def close(self) -> None:
        """Drop all of this run. Closing twice is harmless."""


def open_store(where: str, mark: str | None = None, tell: Tell = warnings.warn) -> SnapshotStore:
    """The store that `recovery.store` names: 'object_store' (Ray must be connected), a directory, or an fsspec URL.

    Stores of one mark in one place share what they keep: a mark made of the job (its network, graph, settings and
    outputs) lets a driver that starts again take up what the killed one left. Without one, nobody else finds it.
    `tell` hears of damaged snapshots and of files that could not be removed.
    Raises: ConfigError for a place that cannot be used: it is written to before any work. A directory is made, a bucket
    of an object store is not.
    """
    if where == "object_store":
        return ObjectStore(tell)
    mark = uuid.uuid4().hex if mark is None else mark
    if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}", mark):
        raise ConfigError(f"the mark '{mark}' of a store of snapshots is no name of a folder; expected up to 100 "
                          f"letters, digits, '.', '_' and '-'.")
    if not where or "\0" in where:
        raise ConfigError(f"recovery.store: {where!r} is no place; expected object_store, a directory, or a URL such "
                          f"as s3://bucket/folder.")
    if "://" not in where:
        return _in_directory(Path(where).absolute(), mark, tell)
    try:
        files, root = fsspec.core.url_to_fs(where)
    except (ImportError, ValueError) as error:      # a known kind of address whose library is absent, or an unknown one
        raise ConfigError(f"recovery.store: '{where}' cannot be used: {error}.") from error
    if not root.strip("/"):
        raise ConfigError(f"recovery.store: '{where}' names no folder; expected one, such as {where}snapshots.")
    if isinstance(files, LocalFileSystem):
        return _in_directory(Path(root), mark, tell)
    store = Files(files, f"{root.rstrip('/')}/{mark}", tell)
    try:
        store.try_out()
    except Exception as error:                      # of whatever type the library behind the file system likes
        raise ConfigError(f"recovery.store: '{where}' cannot be written to: {_line(error)}.") from error
    return store


def _in_directory(directory: Path, mark: str, tell: Tell) -> Files:
    try:
        (directory / mark).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"recovery.store: '{directory}' cannot be made or written to: {error.strerror}.") from error
    return Files(LocalFileSystem(), str(directory / mark), tell)


class ObjectStore:
    """Snapshots as Ray objects. This process owns them: they lie on its node, and go when it ends."""

    def __init__(self, tell: Tell = warnings.warn) -> None:
        self._tell = tell
        self._kept: dict[str, dict[int, ray.ObjectRef]] = defaultdict(dict)

    def put(self, stream: str, frame: int, state: State) -> None:
        _check(stream, frame, state)
        try:
            reference = ray.put(dict(state))
        except ray.exceptions.RayError as error:
            raise _not_stored(stream, frame, error) from error
        self._kept[stream][frame] = reference
        for old in sorted(self._kept[stream])[:-KEEP]:
            del self._kept[stream][old]

    def latest(self, stream: str) -> tuple[int, dict[str, bytes]] | None:
        for frame in sorted(self._kept.get(stream, ()), reverse=True):
            try:
                return frame, ray.get(self._kept[stream][frame], timeout=GET_TIMEOUT_S)
            except ray.exceptions.RayError as error:
                self._tell(f"stream '{stream}': the snapshot after {frame} frames is lost ({_line(error)}); the one "
                           f"before it is taken.")
        return None

    def forget(self, stream: str) -> None:
        self._kept.pop(stream, None)

    def close(self) -> None:
        self._kept.clear()


class Files:
    """Snapshots as files of any file system that fsspec knows, in the folder `root`, which is this run's own."""

    def __init__(self, files: fsspec.AbstractFileSystem, root: str, tell: Tell = warnings.warn) -> None:
        self._files, self._root, self._tell = files, root, tell
        self._frames: dict[str, set[int]] = {}

    def put(self, stream: str, frame: int, state: State) -> None:
        _check(stream, frame, state)
        try:
            frames = self._found(stream)
            self._write(self._path(stream, frame), _to_bytes(stream, frame, state))
        except Exception as error:          # of whatever type the library behind the file system likes
            raise _not_stored(stream, frame, error) from error
        frames.add(frame)
        for old in sorted(frames)[:-KEEP]:
            self._remove(self._path(stream, old))
            frames.discard(old)

    def latest(self, stream: str) -> tuple[int, dict[str, bytes]] | None:
        try:
            frames = sorted(self._found(stream), reverse=True)
        except Exception as error:
            raise SnapshotError(f"stream '{stream}': its snapshots in '{self._root}' cannot be listed: "
                                f"{_line(error)}.") from error
        for frame in frames:
            path = self._path(stream, frame)
            try:
                return frame, _from_bytes(self._read(path), stream, frame)
            except FileNotFoundError:
                said = "is gone"
            except ValueError as error:
                said = f"is damaged: {error}"
            except Exception as error:
                raise SnapshotError(f"stream '{stream}': '{path}' cannot be read: {_line(error)}.") from error
            self._tell(f"stream '{stream}': the snapshot '{path}' {said}; the one before it is taken.")
        return None

    def forget(self, stream: str) -> None:
        self._frames.pop(stream, None)
        self._remove(self._folder(stream), recursive=True)

    def close(self) -> None:
        self._frames.clear()
        self._remove(self._root, recursive=True)

    def try_out(self) -> None:
        """Write a file and remove it. Raises what the file system says: no such bucket, no credentials, no network."""
        path = f"{self._root}/probe"
        self._pipe(path, b"")
        self._files.rm(path)

    def _found(self, stream: str) -> set[int]:
        """The frames of which there are snapshots; listed once, then remembered: listing is slow on remote stores."""
        if stream not in self._frames:
            folder, frames = self._folder(stream), set()
            self._files.invalidate_cache(folder)
            try:
                paths = self._files.ls(folder, detail=False)
            except FileNotFoundError:
                paths = []
            for path in paths:
                name = re.fullmatch(r"([0-9]{12})\.snapshot", path.rsplit("/", 1)[-1])
                frames |= {int(name[1])} if name else set()
            self._frames[stream] = frames
        return self._frames[stream]

    def _folder(self, stream: str) -> str:
        """Two names that become one when they are made safe, or that differ in capitals alone, stay apart."""
        digest = hashlib.sha256(stream.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return f"{self._root}/{safe_name(stream)}-{digest}"

    def _path(self, stream: str, frame: int) -> str:
        return f"{self._folder(stream)}/{frame:012d}.snapshot"

    def _write(self, path: str, data: bytes) -> None:
        """Whole or not at all. Object stores write so by themselves; where others do not, the checksum finds it out."""
        if not isinstance(self._files, LocalFileSystem):
            self._pipe(path, data)
            return
        self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        with replacing(path) as part:
            part.write_bytes(data)

    def _pipe(self, path: str, data: bytes) -> None:
        """Object stores have no folders; to make one first costs a request, and may make a bucket that is misspelt."""
        try:
            self._files.pipe_file(path, data)
        except FileNotFoundError:
            if not self._files.exists(path[: path.find("/", 1)]):
                raise                       # no such bucket, or no such place at all
            self._files.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
            self._files.pipe_file(path, data)

    def _read(self, path: str) -> bytes:
        """Raises ValueError for a file larger than any snapshot, before a byte of it is read."""
        size = self._files.size(path)
        if size is not None and size > MAX_BYTES + MAX_HEAD_BYTES:
            raise ValueError(f"it has {size} bytes, a snapshot at most {MAX_BYTES}")
        return self._files.cat_file(path)

    def _remove(self, path: str, recursive: bool = False) -> None:
        try:
            self._files.invalidate_cache()
            self._files.rm(path, recursive=recursive)
        except FileNotFoundError:
            pass                            # as it should be
        except Exception as error:
            self._tell(f"'{path}' could not be removed ({_line(error)}); it may be deleted by hand.")


def _check(stream: str, frame: int, state: State) -> None:
    if not 0 <= frame < 10**12:
        raise SnapshotError(f"stream '{stream}': a snapshot after {frame} frames; expected 0 or more, below 10^12.")
    num_bytes = sum(len(part) for part in state.values())
    if num_bytes > MAX_BYTES:
        largest = max(state, key=lambda name: len(state[name]))
        raise SnapshotError(
            f"stream '{stream}', after {frame} frames: its state has {num_bytes} bytes, {len(state[largest])} of them "
            f"in '{largest}'; a snapshot may have {MAX_BYTES}. Bound what its stages remember (associate.max_unseen, "
            f"identify.max_stored), or take no snapshots."
        )


def _not_stored(stream: str, frame: int, error: Exception) -> SnapshotError:
    return SnapshotError(f"stream '{stream}': its snapshot after {frame} frames could not be stored: {_line(error)}.")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


# ---------------------------------------------------------------------------------------------------------- as bytes


def _to_bytes(stream: str, frame: int, state: State) -> bytes:
    body = b"".join(state.values())
    groups = [[name, len(part)] for name, part in state.items()]
    head = {"snapshot": 1, "stream": stream, "frame": frame, "groups": groups, "crc32": zlib.crc32(body)}
    line = json.dumps(head).encode() + b"\n"
    if len(line) > MAX_HEAD_BYTES:
        raise ValueError(f"the names of its stream and groups take {len(line)} bytes, {MAX_HEAD_BYTES} are allowed")
    return line + body


def _from_bytes(data: bytes, stream: str, frame: int) -> dict[str, bytes]:
    """What `_to_bytes` was given. Raises ValueError that says what is wrong with other bytes."""
    end = data.find(b"\n", 0, MAX_HEAD_BYTES)
    if end < 0:
        raise ValueError(f"it has no head ({len(data)} bytes)")
    try:
        head = json.loads(data[:end])
        told = (head["snapshot"], head["stream"], head["frame"], head["crc32"])
        groups = [(_text(name), _length(length)) for name, length in head["groups"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"its head cannot be read ({type(error).__name__})") from error
    body = memoryview(data)[end + 1 :]
    if told[:3] != (1, stream, frame):
        raise ValueError(f"it is of format {told[0]!r}, stream {told[1]!r}, frame {told[2]!r}")
    if sum(length for _, length in groups) != len(body):
        raise ValueError(f"{sum(length for _, length in groups)} bytes are announced, {len(body)} are there")
    if zlib.crc32(body) != told[3]:
        raise ValueError("its bytes do not give its checksum")
    state, start = {}, 0
    for name, length in groups:
        state[name] = bytes(body[start : start + length])
        start += length
    return state


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _length(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value
