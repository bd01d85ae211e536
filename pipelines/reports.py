"""What a group's call tells beside its records: events, failures, times and sizes; small, of plain values.

In:     what each stage of a group was called with and gave
Out:    Report, which goes to the driver, while the records go on to the next group
"""

from __future__ import annotations

import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from operators.records import FrameFault, Pull, StreamEnd
from pipelines.weight import num_bytes


@dataclass(frozen=True)
class Failure:
    """A stage failed on a stream: the stream is over, the others go on."""

    stream: str
    reason: str
    """Names stage, stream and frame, and what was wrong."""
    trace: str = ""
    """The traceback as text: exceptions lose their cause on the way between processes."""


@dataclass(frozen=True)
class Span:
    """One batch in one stage, for a trace."""

    stage: str
    process: str
    """Node and number of the process that did it."""
    start_s: float
    """Unix time."""
    seconds: float
    frames: tuple[tuple[str, int, int], ...]
    """(stream, first, last) of the frames that came out."""


@dataclass(frozen=True)
class Report:
    """What one call did, beside the records; a few hundred bytes. Of each stage by its name."""

    events: tuple[FrameFault | StreamEnd, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time inside each stage."""
    frames: dict[str, int] = field(default_factory=dict)
    """Records that each stage gave."""
    bytes: dict[str, int] = field(default_factory=dict)
    """Size of these records: arrays and tensors, and the text of masks."""
    calls: dict[str, int] = field(default_factory=dict)
    """Batches that each stage was called with."""
    streams: dict[str, int] = field(default_factory=dict)
    """Frames that left the group, of each stream by its name."""
    state_bytes: dict[str, int] = field(default_factory=dict)
    """Size of the state of each stage that remembers, when a snapshot was taken."""
    pulled: dict[str, int] = field(default_factory=dict)
    """Frames that the source of each stream gave, faulty ones among them; of the group that pulls."""
    spans: tuple[Span, ...] = ()
    """When each stage worked on what, if the run is traced (`RunContext.trace`)."""


class Tally:
    """A report in the making."""

    def __init__(self, trace: bool = False) -> None:
        self.events: list[FrameFault | StreamEnd] = []
        self.failures: list[Failure] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.frames: dict[str, int] = defaultdict(int)
        self.bytes: dict[str, int] = defaultdict(int)
        self.calls: dict[str, int] = defaultdict(int)
        self.pulled: dict[str, int] = defaultdict(int)
        self._spans: list[Span] = []
        self._trace = trace

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """The time within counts as the stage's, whatever happens there."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start

    def gave(self, stage: str, records: Sequence[Any]) -> None:
        """What a stage gave on to the next; call it right after `timed`."""
        self.frames[stage] += len(records)
        self.bytes[stage] += sum(map(num_bytes, records))

    def traced(self, stage: str, start_s: float, given: Sequence[Any]) -> None:
        """One batch, from `start_s` (Unix time) until now. Without `trace` nothing."""
        if self._trace:
            seconds = time.time() - start_s
            self._spans.append(Span(stage, _PROCESS, start_s, seconds, _ranges(given)))

    def report(self, given: Iterable[Any]) -> Report:
        """`given`: the records that leave the group."""
        return Report(
            events=tuple(self.events),
            failures=tuple(self.failures),
            seconds=dict(self.seconds),
            frames=dict(self.frames),
            bytes=dict(self.bytes),
            calls=dict(self.calls),
            streams=dict(Counter(stream_of(record) for record in given)),
            pulled=dict(self.pulled),
            spans=tuple(self._spans),
        )


def stream_of(record: Any) -> str:
    """The stream that any record belongs to."""
    if isinstance(record, Pull):
        return record.stream
    return record.stream if isinstance(record, StreamEnd) else record.info.stream


def _ranges(records: Sequence[Any]) -> tuple[tuple[str, int, int], ...]:
    """(stream, first, last) of frames that follow each other; a stream's end is no frame."""
    runs: dict[str, list[list[int]]] = defaultdict(list)
    for record in records:
        if not isinstance(record, StreamEnd):
            own, index = runs[record.info.stream], record.info.index
            if own and own[-1][1] == index - 1:
                own[-1][1] = index
            else:
                own.append([index, index])
    return tuple((stream, first, last) for stream, own in runs.items() for first, last in own)


_PROCESS = f"{socket.gethostname()} {os.getpid()}"
