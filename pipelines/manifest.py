"""What is done: DIR/manifest.json, by which a run that is made again goes on where it was cut, or killed.

In:     the mark of what results depend on, the sources of this run; an Entry for each video whose outputs are whole
Out:    which sources are done, under which names; the file, a line a video
State:  the file. It is JSON at any moment: a video is added by one call of the operating system, written over the end,
        so that a kill leaves the file as it was, or with the whole line. A line that a full disk cut is dropped
Limits: one run at a time in a folder (it is locked while its process lives); MAX_BYTES of a file that is read

A video is done when its line is there, the video has not changed since, and the outputs asked for exist. Lines are put
in the order of the sources at the end of a run, and hold no times of day: what was cut and went on is equal, byte for
byte, to what was never cut.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import json
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from operators.errors import ConfigError, StageError
from operators.folders import digest
from operators.replacing import replacing
from operators.sinks import SINKS
from operators.sources import RESERVED_NAMES, Source, free_name, safe_name, version_of

MANIFEST_FILE = "manifest.json"
MAX_BYTES = 1 << 30
_HEAD, _TAIL = '{"maskstream": 1, "mark": %s, "videos": [', "\n]}\n"

Mark = dict[str, str]
"""What results depend on, in parts, each by a digest: {"network": ..., "weights": ...}."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A video that is done."""

    video: str
    """Its name, and its folder in DIR."""
    source: str
    """Where it lies (`Source.place`)."""
    version: str
    """Of the source, as it was when it was run."""
    number: int
    """Its video_id in results.json."""
    save: tuple[str, ...]
    """The outputs that there are, of operators.sinks.SINKS."""
    state: Literal["done", "damaged"]
    frames: int
    tracks: int
    weak: int
    faults: int
    skipped: int
    note: str
    outputs: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.state not in ("done", "damaged"):
            raise ValueError(f"state is '{self.state}', expected done or damaged.")
        if safe_name(self.video) != self.video or self.video in RESERVED_NAMES:
            raise ValueError(f"video is '{self.video}', which is no name of a folder.")


class Manifest:
    """The videos of one folder that are done. A context manager: the folder is locked within."""

    def __init__(self, directory: Path, mark: Mark, fresh: bool = False) -> None:
        """Raises ConfigError for a folder that cannot be used, or has another mark unless `fresh`: then all that is
        known of it is only what to replace."""
        self.path = directory / MANIFEST_FILE
        self._mark, self._lock = mark, _locked(directory)
        self._end = 0
        try:
            saved, entries = _read_if_whole(self.path) if fresh else _read(self.path)
            if not fresh and entries and saved != mark:
                raise ConfigError(_other(directory, saved, mark))
            self.before = entries
            """What was known of the folder when the run began, of another mark too: files that may be replaced."""
            self.same_mark = saved == mark
            self._entries = {} if fresh else dict(entries)
            self._write(self._entries.values())
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> Manifest:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Put the lines in the order of the sources, and let the folder go; a second call does nothing."""
        if self._lock < 0:
            return
        try:
            entries = sorted(self._entries.values(), key=lambda entry: (entry.number, entry.video))
            if entries != list(self._entries.values()):
                self._write(entries)
        finally:
            os.close(self._lock)
            self._lock = -1

    def settled(self, sources: Sequence[Source]) -> list[tuple[int, Source]]:
        """The sources under the names and numbers that they have here; new ones get what is free, in their order.

        So a folder of videos may grow: another v.mp4 that is found first takes no name from the one that is done.
        """
        known = {entry.source: entry for entry in self._entries.values()}
        names = {*RESERVED_NAMES, *(entry.video.casefold() for entry in known.values())}
        numbers = {entry.number for entry in known.values()}
        free = itertools.count(max(len(sources), *numbers, 0) + 1)
        settled = []
        for position, (source, place) in enumerate(zip(sources, places(sources), strict=True), start=1):
            entry = known.get(place)
            name = free_name(source.name, names) if entry is None else entry.video
            if entry is not None:
                number = entry.number
            else:
                number = next(free) if position in numbers else position
            settled.append((number, replace(source, name=name)))
        return settled

    def done(self, source: Source, place: str, number: int, save: Sequence[str]) -> Entry | None:
        """The entry of a source that need not be run: it is unchanged, and all outputs of `save` are there."""
        entry = self._entries.get(source.name)
        if entry is None or (entry.source, entry.number) != (place, number) or not set(save) <= set(entry.save):
            return None
        # a video in which no picture could be drawn has no overlay
        needed = [kind for kind in save if kind != "video" or entry.frames]
        there = all((self.path.parent / source.name / SINKS[kind].file).exists() for kind in needed)
        return entry if there and entry.version == version_of(source) else None

    def drop(self, names: Iterable[str]) -> None:
        """Videos that will be run again are done no more, whenever this run is cut."""
        gone = [name for name in names if self._entries.pop(name, None) is not None]
        if gone:
            self._write(self._entries.values())

    def add(self, entry: Entry) -> None:
        """A video is done: its outputs are whole and in their places. Raises StageError for a full disk."""
        line = ("," if self._entries else "") + "\n" + _line(entry)
        data = (line + _TAIL).encode("ascii")
        try:
            with open(self.path, "r+b", buffering=0) as file:
                file.seek(self._end)
                written = file.write(data)
            if written != len(data):
                raise OSError(errno.ENOSPC, f"only {written} of {len(data)} bytes of a line were taken")
        except OSError as error:
            raise StageError(f"'{entry.video}' is done, but {self.path} cannot say so: {error.strerror}.") from error
        self._entries[entry.video] = entry
        self._end += len(line)

    def _write(self, entries: Iterable[Entry]) -> None:
        entries = list(entries)
        text = _HEAD % json.dumps(self._mark, sort_keys=True) + ",".join("\n" + _line(entry) for entry in entries)
        try:
            with replacing(self.path) as part:
                part.write_text(text + _TAIL, encoding="ascii")
        except OSError as error:
            raise ConfigError(f"{self.path} cannot be written: {error.strerror or error}.") from error
        self._entries = {entry.video: entry for entry in entries}
        self._end = len(text)


def places(sources: Iterable[Source]) -> list[str]:
    """Where each source lies; the second of one place has a number, for a file that is named twice."""
    seen: Counter[str] = Counter()
    found = []
    for source in sources:
        seen[source.place] += 1
        number = seen[source.place]
        found.append(source.place if number == 1 else f"{source.place} ({number})")
    return found


def digest_of(value: Any) -> str:
    """Of plain values, for a mark."""
    return digest([json.dumps(value, sort_keys=True, default=str)])


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry))


def _read(path: Path) -> tuple[Mark, dict[str, Entry]]:
    """The mark and the entries by video; ({}, {}) where there is no file. Raises ConfigError for a damaged one."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return {}, {}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}.") from error
    head, *lines = raw.decode("ascii", "replace").split("\n")
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; is this a manifest? Name another --out.")
    whole = lines[-2:] == ["]}", ""]
    entries: dict[str, Entry] = {}
    for number, line in enumerate(lines[:-2] if whole else lines, start=2):
        try:
            entry = _entry(json.loads(line.removesuffix(",")))
        except (ValueError, RecursionError) as error:
            if not whole:
                break  # a full disk cut it: this video is run again
            raise ConfigError(f"{path}, line {number}: damaged ({error}). Remove the file, or add --fresh, to run all "
                              f"videos anew.") from error  # fmt: skip
        entries[entry.video] = entry
    return _mark_in(head, path), entries


_KINDS = {"str": (str, "a text"), "int": (int, "a whole number"), "tuple[str, ...]": (list, "a list of texts")}


def _entry(mapping: Any) -> Entry:
    """Checked by hand, because a manifest may have many thousands. Raises ValueError."""
    if not isinstance(mapping, dict):
        raise ValueError("it is no entry")
    values = dict(mapping)
    for each in fields(Entry):
        kind, expected = _KINDS.get(each.type, _KINDS["str"])
        value = values.get(each.name)
        if type(value) is not kind or (kind is list and any(type(item) is not str for item in value)):
            raise ValueError(f"{each.name} is {value!r:.60}, expected {expected}")
        if kind is list:
            values[each.name] = tuple(value)
    try:
        return Entry(**values)
    except TypeError as error:
        raise ValueError(f"it has a field of another version: {error}") from error


def _read_if_whole(path: Path) -> tuple[Mark, dict[str, Entry]]:
    """As `_read`; of a damaged file nothing, because all is made anew."""
    try:
        return _read(path)
    except ConfigError:
        return {}, {}


def _mark_in(head: str, path: Path) -> Mark:
    try:
        saved = json.loads(head + "]}")
        mark = {str(part): str(value) for part, value in saved["mark"].items()}
        if saved["maskstream"] != 1:
            raise ValueError(f"written by version {saved['maskstream']}")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ConfigError(f"{path}: its first line is damaged ({error}). Remove the file, or add --fresh, to run all "
                          f"videos anew.") from error  # fmt: skip
    return mark


_PARTS = {
    "graph": "another graph, or other settings of its stages",
    "network": "another network, or other settings of it",
    "sinks": "other settings of the outputs",
    "weights": "other weights",
    "dataset": "another dataset",
}


def _other(directory: Path, saved: Mark, mark: Mark) -> str:
    parts = [part for part in sorted({*saved, *mark}) if saved.get(part) != mark.get(part)]
    told = "; ".join(_PARTS.get(part, f"another {part}") for part in parts)
    return (f"{directory} holds results of {told} ({MANIFEST_FILE} there says so). Name another --out, or add --fresh "
            f"to make all anew there.")  # fmt: skip


def _locked(directory: Path) -> int:
    """A lock on the folder that ends with this process, however it ends. File systems without locks have none."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        handle = os.open(directory, os.O_RDONLY)
    except (FileExistsError, NotADirectoryError) as error:
        raise ConfigError(f"--out {directory}: cannot be made: a file stands in its way. Name a folder.") from error
    except OSError as error:
        raise ConfigError(f"--out {directory}: cannot be made: {error.strerror or error}.") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            os.close(handle)
            raise ConfigError(f"--out {directory}: another run is writing there. Wait for its end, or name another "
                              f"folder.") from error  # fmt: skip
    return handle
