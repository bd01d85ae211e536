"""The way of frames through all stages, as a file that chrome://tracing and https://ui.perfetto.dev draw.

In:     the Reports of a traced run (`RunContext.trace`)
Out:    Chrome trace events: a slice for every call of a stage, in a row of its process and stage; an arrow for every
        frame from call to call. `slowest` and `way` read one frame's way back out of such a file
State:  the number of each stream and of each process
Limits: a file ends at MAX_BYTES, and says so; an event a line, so reading takes no more memory than its frames

    [
    {"ph": "X", "name": "heads", "ts": .., "dur": .., "pid": 2, "tid": 4, "args": {"frames": [["a", 0, 7]]}},
    {"ph": "t", "name": "frame", "id": .., "ts": .., "pid": 2, "tid": 4, ..},

It is written beside its place and put there at the end. Viewers also read the part that a killed run leaves: the list
need not be closed. Times are of each node's own clock.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from operators.errors import ConfigError
from pipelines.graph import Graph
from pipelines.reports import Report, Span

MAX_BYTES = 512 << 20
"""Some 600,000 frames of seven stages; viewers take about as much."""
FRAMES_A_STREAM = 1 << 32
"""An arrow's id is stream number x this + frame: whole in a double, as viewers read it, up to two million streams."""


class TraceWriter:
    """Writes what `watch` is given; `close`, or leaving the context however it ends, puts the file in its place."""

    def __init__(self, path: str | Path, graph: Graph) -> None:
        """Raises ConfigError where the file cannot be made: before any work."""
        self.path = Path(path)
        self.note: str | None = None
        """Why the file does not hold the whole run; None while it does."""
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._rows = {stage.name: number for number, stage in enumerate(graph.stages, start=1)}
        self._groups = {stage: "+".join(group.stages) for group in graph.placement for stage in group.stages}
        self._processes: dict[str, int] = {}
        self._told: dict[int, list[str]] = {}
        """Number of a process -> groups whose rows have titles: on Ray one, in this process all."""
        self._streams: dict[str, int] = {}
        self._bytes, self._watched = 0, False
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(self._part, "w", encoding="utf-8")
            self._file.write("[")
        except OSError as error:
            raise ConfigError(f"--trace {path}: cannot be written: {error.strerror}. Name another file.") from error

    def watch(self, report: Report) -> None:
        """Every call of the report, and what failed in it."""
        self._watched = True
        for span in report.spans:
            self._write(self._of_span(span))
        now = round(time.time() * 1e6)
        for failure in report.failures:
            told = {"stream": failure.stream, "reason": failure.reason}
            self._write([{"ph": "i", "s": "g", "name": "stream failed", "ts": now, "pid": 0, "tid": 0, "args": told}])

    def close(self) -> None:
        """Whole and in its place; where nothing was run, what was there stays. A second time: nothing."""
        if self._file.closed:
            return
        try:
            with self._file:
                self._file.write("\n]\n")
            if self._watched:
                os.replace(self._part, self.path)
            else:
                self._part.unlink()
                self.note = f"{self.path}: nothing was run, so nothing is written there."
        except OSError as error:
            self.note = f"{self.path}: the trace cannot be written: {error.strerror}."

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _of_span(self, span: Span) -> Iterator[dict[str, Any]]:
        """A slice, and an arrow's point for each of its frames."""
        pid, group = self._processes.setdefault(span.process, len(self._processes) + 1), self._groups[span.stage]
        if group not in self._told.setdefault(pid, []):
            self._told[pid].append(group)
            yield from self._titles(span.process, pid, group)
        place = {"pid": pid, "tid": self._rows[span.stage], "ts": round(span.start_s * 1e6)}
        duration = max(1, round(span.seconds * 1e6))
        args = {"frames": [list(frames) for frames in span.frames]}
        yield {"ph": "X", "cat": "stage", "name": span.stage, "dur": duration, "args": args, **place}
        point = {1: "s", len(self._rows): "f"}.get(self._rows[span.stage], "t")
        for stream, first, last in span.frames:
            number = self._streams.setdefault(stream, len(self._streams) + 1) * FRAMES_A_STREAM
            for index in range(first, last + 1):
                yield {"ph": point, "bp": "e", "cat": "frame", "name": "frame", "id": number + index, **place}

    def _titles(self, process: str, pid: int, group: str) -> Iterator[dict[str, Any]]:
        """What viewers write beside the rows of a process, when it turns out to hold this group (too)."""
        first = min(row for stage, row in self._rows.items() if self._groups[stage] in self._told[pid])
        name = f"{', '.join(self._told[pid])}: {process}"
        yield {"ph": "M", "name": "process_name", "pid": pid, "args": {"name": name}}
        yield {"ph": "M", "name": "process_sort_index", "pid": pid, "args": {"sort_index": first}}
        for stage in (stage for stage in self._rows if self._groups[stage] == group):
            yield {"ph": "M", "name": "thread_name", "pid": pid, "tid": self._rows[stage], "args": {"name": stage}}

    def _write(self, events: Iterable[dict[str, Any]]) -> None:
        """A trace that cannot go on ends here; the run does not."""
        for event in events:
            if self.note is not None:
                return
            text = ("\n" if self._bytes == 0 else ",\n") + json.dumps(event)  # ASCII: characters are bytes
            if self._bytes + len(text) > MAX_BYTES:
                self.note = f"{self.path}: the trace ends at {MAX_BYTES >> 20} MiB, before the run did."
                return
            try:
                self._file.write(text)
            except OSError as error:
                self.note = f"{self.path}: the trace cannot go on: {error.strerror}."
            self._bytes += len(text)


# -------------------------------------------------------------------------------------------------- one frame's way


@dataclass(frozen=True)
class Step:
    """One frame in one call of a stage."""

    stage: str
    process: int
    start_s: float
    """Unix time."""
    seconds: float
    batch: int
    """Frames of the call."""


def way(path: str | Path, stream: str, frame: int) -> list[Step]:
    """The calls that a frame went through, by time; done again after a death, it has some twice.

    Raises ConfigError: a file that is no trace of ours, or has no such frame.
    """
    steps = [
        Step(event["name"], event["pid"], event["ts"] / 1e6, event["dur"] / 1e6, _size(event["args"]["frames"]))
        for event in _slices(path)
        if any(name == stream and first <= frame <= last for name, first, last in event["args"]["frames"])
    ]
    if not steps:
        raise ConfigError(f"{path}: has no frame {frame} of a stream '{stream}'.")
    return sorted(steps, key=lambda step: step.start_s)


def slowest(path: str | Path) -> tuple[str, int]:
    """(stream, frame) of the longest way from its first call's begin to its last one's end.

    Raises ConfigError: a file that is no trace of ours, or has no frame.
    """
    ways: dict[tuple[str, int], tuple[int, int]] = {}
    for event in _slices(path):
        start, end = event["ts"], event["ts"] + event["dur"]
        for stream, first, last in event["args"]["frames"]:
            for frame in range(first, last + 1):
                before = ways.get((stream, frame), (start, end))
                ways[stream, frame] = (min(start, before[0]), max(end, before[1]))
    if not ways:
        raise ConfigError(f"{path}: a trace without a frame.")
    return max(ways, key=lambda frame: ways[frame][1] - ways[frame][0])


def _slices(path: str | Path) -> Iterator[dict[str, Any]]:
    """The calls of stages in a trace, checked."""
    try:
        with open(path, encoding="utf-8") as file:
            if os.fstat(file.fileno()).st_size > MAX_BYTES + 1024:
                raise ConfigError(f"{path}: no trace of `maskstream run --trace`: larger than {MAX_BYTES >> 20} MiB.")
            for number, line in enumerate(file, start=1):
                event = _event(line, f"{path}: no trace of `maskstream run --trace`: line {number}")
                if event is not None:
                    yield event
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: no trace of `maskstream run --trace`: it is not text in UTF-8.") from error


def _event(line: str, where: str) -> dict[str, Any] | None:
    """The slice that a line holds; None for a bracket or another event."""
    if line.strip() in ("[", "]", ""):
        return None
    try:
        event = json.loads(line.rstrip().removesuffix(","))
        return _checked(event) if event["ph"] == "X" else None
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where} is not JSON.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{where}: {type(error).__name__}: {error}.") from error


def _checked(event: dict[str, Any]) -> dict[str, Any]:
    """Raises ValueError, KeyError or TypeError for what is no slice of ours."""
    frames = event["args"]["frames"]
    numbers = [event["ts"], event["dur"], event["pid"], *(number for _, *ends in frames for number in ends)]
    if not all(type(number) is int and 0 <= number < 1 << 53 for number in numbers):
        raise ValueError("a number is not whole, or out of range")
    if not all(type(text) is str for text in (event["name"], *(stream for stream, _, _ in frames))):
        raise ValueError("a name is no text")
    if not all(0 <= last - first < 1 << 20 for _, first, last in frames):
        raise ValueError("a range of frames that is empty, or holds more than a million")
    return event


def _size(frames: list[tuple[str, int, int]]) -> int:
    return sum(last - first + 1 for _, first, last in frames)
