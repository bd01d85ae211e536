"""Where a run stands, as an executor tells it while it works: at most twice a second, and once at the end.

In:     what each group of stages has waiting, under way and done
Out:    Status, for progress bars and metrics; frozen, small, of plain numbers
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from operators.records import FrameFault, FrameTracks, StreamEnd
from pipelines.graph import Graph
from pipelines.reports import Report

INTERVAL_S = 0.5
"""Shortest time between two Status."""


@dataclass(frozen=True)
class GroupStatus:
    """One placement group."""

    stages: tuple[str, ...]
    replicas: int
    waiting: int = 0
    """Frames that are ready for the group and in none of its calls."""
    under_way: int = 0
    """Frames in calls that are under way."""
    busy: float = 0.0
    """Share of the time since the Status before in which a replica worked, 0..1, mean over replicas."""
    frames: int = 0
    """Frames that left the group since the start; those made again after a death count again."""
    bytes: int = 0
    """Bytes of the records that left the group since the start."""
    restarts: int = 0
    """Replicas that had to be made anew."""


@dataclass(frozen=True)
class Status:
    """The whole run."""

    groups: tuple[GroupStatus, ...]
    streams_open: int = 0
    streams_done: int = 0
    """Streams whose end was given out, failed ones included."""
    streams_failed: int = 0
    frames: int = 0
    """Results given out: frames and faults."""
    faults: int = 0
    """Of these, frames that could not be decoded."""
    dropped: int = 0
    """Frames that a live source let go; with files none."""
    rewinds: int = 0
    """Times that a stream was restored from a snapshot and done again from there."""
    set_aside: int = 0
    """Streams that end at a frame which killed its worker process again and again."""


OnStatus = Callable[[Status], None]


class Ledger:
    """Adds up what groups did and what was given out; an executor keeps one for its Status."""

    def __init__(self, graph: Graph) -> None:
        self._placement = graph.placement
        self._seconds = [0.0] * len(graph.placement)
        self._frames, self._bytes = [0] * len(graph.placement), [0] * len(graph.placement)
        self._done = self._failed = self._given = self._faults = 0

    def add(self, group: int, report: Report) -> None:
        """The report of a call of a group, by its number."""
        last = self._placement[group].stages[-1]
        self._seconds[group] += sum(report.seconds.values())
        self._frames[group] += sum(report.streams.values())
        self._bytes[group] += report.bytes.get(last, 0)

    def gave(self, result: FrameTracks | FrameFault | StreamEnd) -> None:
        """A result was given out."""
        if isinstance(result, StreamEnd):
            self._done += 1
            self._failed += result.fatal
        else:
            self._given += 1
            self._faults += isinstance(result, FrameFault)

    def groups(self, passed_s: float) -> list[GroupStatus]:
        """What each group did, and how busy it was in the `passed_s` since this was asked last."""
        given = []
        for number, group in enumerate(self._placement):
            busy = self._seconds[number] / group.replicas / max(passed_s, 1e-9)
            self._seconds[number] = 0.0
            given.append(
                GroupStatus(
                    group.stages,
                    group.replicas,
                    busy=min(busy, 1.0),
                    frames=self._frames[number],
                    bytes=self._bytes[number],
                )
            )
        return given

    def status(
        self, groups: tuple[GroupStatus, ...], streams_open: int, rewinds: int = 0, set_aside: int = 0
    ) -> Status:
        given = (self._done, self._failed, self._given, self._faults)
        return Status(groups, streams_open, *given, rewinds=rewinds, set_aside=set_aside)


class Teller:
    """Calls `on_status` when it is time, with a Status that is made only then."""

    def __init__(self, on_status: OnStatus | None, make: Callable[[float], Status]) -> None:
        """`make` is given the seconds since the Status before."""
        self._on_status, self._make = on_status, make
        self._last = time.monotonic()

    def tell(self, now: bool = False) -> None:
        """A Status if INTERVAL_S has passed, or `now`."""
        passed = time.monotonic() - self._last
        if self._on_status is not None and (now or passed >= INTERVAL_S):
            self._last += passed
            self._on_status(self._make(passed))
