"""The loop of the executor in this process: ticks in, results out; and how all executors put results in order.

In:     a Schedule, and a Chain that runs ticks
Out:    FrameTracks and FrameFault of each stream in the order of its frames, then its StreamEnd
State:  per open stream the results that came before an earlier frame did
Limits: `in_flight` ticks under way; what waits is bounded by what the stages hold back

What a tick asks for depends on the results of the ticks up to `in_flight` before it, and never on time: what is run
here can be repeated to the last batch, and is what other executors are held against.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Protocol

from operators.records import FrameFault, FrameTracks, StreamEnd
from pipelines.batching import Schedule, Tick
from pipelines.reports import Failure, Report
from pipelines.status import Teller

Result = FrameTracks | FrameFault | StreamEnd
Watch = Callable[[Report], None]


class Chain(Protocol):
    """Runs ticks through all groups of a graph."""

    def submit(self, tick: Tick) -> Any:
        """Start a tick; ticks of one stream run in the order in which they are submitted. Gives a handle to it."""

    def collect(self, handle: Any) -> tuple[list[FrameTracks], list[Report]]:
        """Wait for a tick: what came out, and a report of every group's call."""


def drive(
    schedule: Schedule, chain: Chain, in_flight: int, watch: Watch | None = None, teller: Teller | None = None
) -> Iterator[Result]:
    """Run all of the schedule. `watch` sees every report, for progress and timing; `teller` has its turn each tick."""
    under_way: deque[tuple[Tick, Any]] = deque()
    results = InOrder()
    while True:
        tick = schedule.next() if len(under_way) < in_flight else None
        if tick is not None:
            under_way.append((tick, chain.submit(tick)))
            continue
        if not under_way:
            return
        tick, handle = under_way.popleft()
        records, reports = chain.collect(handle)
        for report in reports:
            if watch:
                watch(report)
            for event in (*report.events, *report.failures):
                yield from results.add(event)
                if not isinstance(event, FrameFault):
                    schedule.end(event.stream)
        for record in records:
            yield from results.add(record)
        for stream in tick.closing:
            yield from results.close(stream)
        if teller:
            teller.tell()


class InOrder:
    """Gives results out in the order of frame numbers, though a stage may hold frames back and faults overtake them."""

    def __init__(self) -> None:
        self._next: dict[str, int] = {}
        self._early: dict[str, dict[int, FrameTracks | FrameFault]] = {}
        self._ends: dict[str, StreamEnd | Failure] = {}

    def add(self, result: FrameTracks | FrameFault | StreamEnd | Failure) -> Iterator[FrameTracks | FrameFault]:
        """What can be given out now that this came; of an end, nothing before `close`."""
        if isinstance(result, (StreamEnd, Failure)):
            self._note_end(result)
            return
        stream = result.info.stream
        early = self._early.setdefault(stream, {})
        if result.info.index >= self._next.get(stream, 0):  # else it was given out, and was made again after a death
            early[result.info.index] = result
        while (expected := self._next.get(stream, 0)) in early:
            self._next[stream] = expected + 1
            yield early.pop(expected)

    def close(self, stream: str) -> Iterator[Result]:
        """The stream's end, and why; then it is forgotten.

        A failed stream ends before its first frame that is lost. That any other stream lost a frame is a fault of a
        stage, and makes it a failed one: every frame of a file is accounted for.
        """
        given = self._next.pop(stream, 0)
        early = self._early.pop(stream, {})
        end = self._ends.pop(stream)
        if isinstance(end, Failure):
            yield StreamEnd(stream, num_frames=given, error=end.reason, fatal=True)
        elif given != end.num_frames:
            lost = f"the source gave {end.num_frames} frames, the graph lost frame {given} ({len(early)} came after it)"
            yield replace(end, error=lost, fatal=True)
        else:
            yield end

    def _note_end(self, end: StreamEnd | Failure) -> None:
        """A failure outweighs an end, and the first failure all later ones."""
        if isinstance(end, Failure) and isinstance(self._ends.get(end.stream), Failure):
            return
        if isinstance(end, StreamEnd) and end.stream in self._ends:
            return
        self._ends[end.stream] = end
