"""An executor that does everything at random, for property tests: what a graph gives must not depend on any of it.

Chunks of each stream wait before each group, as on actors. A step takes some chunks of some streams on one replica,
in one call. Who is called when, with how much, of how many streams, on which replica, when a stream begins, and whether
it is moved to another replica half-way by its snapshot: all is drawn.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from typing import Any

from operators.records import FrameFault, FrameTracks, Pull, StreamEnd
from operators.sources import Source
from pipelines.graph import Graph, RunContext
from pipelines.group import StageGroup
from pipelines.reports import stream_of

CLOSE = "close"


class Shuffled:
    """A graph in this process, each group of its placement as often as `replicas` says."""

    def __init__(self, graph: Graph, context: RunContext, rng: random.Random) -> None:
        self._rng = rng
        self._keyed = [graph.keyed(placement) for placement in graph.placement]
        self._groups = [
            [StageGroup(graph.group(placement), context, 1) for _ in range(placement.replicas)]
            for placement in graph.placement
        ]
        self._waiting: list[dict[str, deque]] = [{} for _ in self._groups]
        """Per group and stream: chunks, which are lists of records, and CLOSE at last."""
        self._pins: list[dict[str, int]] = [{} for _ in self._groups]
        self._opened: list[set[str]] = [set() for _ in self._groups]
        self._pulling: dict[str, Source] = {}
        self.results: dict[str, dict[int, FrameTracks | FrameFault]] = {}
        self.ends: dict[str, StreamEnd] = {}
        self.most_together = 0
        self.moves = 0

    def run(self, sources: Sequence[Source], most_open: int) -> None:
        """All sources to their ends; `results` and `ends` say what came."""
        waiting = deque(sources)
        while waiting or self._busy():
            open_now = {stream for queues in self._waiting for stream in queues} | self._pulling.keys()
            if waiting and (not open_now or (len(open_now) < most_open and self._rng.random() < 0.2)):
                self._start(waiting.popleft())
            elif self._pulling and self._rng.random() < 0.4:
                stream = self._rng.choice(sorted(self._pulling))
                self._put(0, stream, [Pull(self._pulling[stream], self._rng.randint(1, 4))])
            elif self._rng.random() < 0.1:
                self._move()
            else:
                self._step()

    def _busy(self) -> bool:
        return bool(self._pulling) or any(self._waiting)

    def _start(self, source: Source) -> None:
        self._pulling[source.name] = source
        self.results[source.name] = {}
        for pins, replicas in zip(self._pins, self._groups, strict=True):
            pins[source.name] = self._rng.randrange(len(replicas))

    def _put(self, group: int, stream: str, chunk: Any) -> None:
        self._waiting[group].setdefault(stream, deque()).append(chunk)

    def _step(self) -> None:
        groups = [number for number, queues in enumerate(self._waiting) if queues]
        if not groups:
            return
        number = self._rng.choice(groups)
        streams = sorted(self._waiting[number])
        replica = self._pins[number][self._rng.choice(streams)]
        if self._keyed[number]:
            streams = [stream for stream in streams if self._pins[number][stream] == replica]
        self._rng.shuffle(streams)
        streams = streams[: self._rng.randint(1, len(streams))]
        records, closing = self._taken(number, streams)
        self.most_together = max(self.most_together, len(streams))
        self._opened[number] |= set(streams)
        given, report = self._groups[number][replica].process(*records, streams=streams, closing=closing)
        assert report.failures == (), report.failures
        for event in report.events:
            self._event(event)
        for stream in streams:
            self._pass_on(number, stream, [record for record in given if stream_of(record) == stream])
            if stream in closing:
                self._close(number, stream)

    def _taken(self, number: int, streams: Sequence[str]) -> tuple[list[list[Any]], list[str]]:
        """Some of what waits of each stream: parts in any order, though each stream's own in its order."""
        parts, closing = [], []
        for stream in streams:
            queue = self._waiting[number][stream]
            for _ in range(self._rng.randint(1, 3)):
                if queue and queue[0] is not CLOSE:
                    parts.append(queue.popleft())
            if queue and queue[0] is CLOSE and self._rng.random() < 0.5:
                queue.popleft()
                closing.append(stream)
            if not queue:
                del self._waiting[number][stream]
        return parts, closing

    def _pass_on(self, number: int, stream: str, records: list[Any]) -> None:
        if number + 1 == len(self._groups):
            for record in records:
                assert record.info.index not in self.results[stream], f"{record.info} came twice"
                self.results[stream][record.info.index] = record
            return
        while records:                                      # in chunks other than those in which they came
            size = self._rng.randint(1, len(records))
            self._put(number + 1, stream, records[:size])
            records = records[size:]

    def _close(self, number: int, stream: str) -> None:
        del self._pins[number][stream]
        self._opened[number].discard(stream)
        if number + 1 < len(self._groups):
            self._put(number + 1, stream, CLOSE)

    def _event(self, event: FrameFault | StreamEnd) -> None:
        if isinstance(event, FrameFault):
            self.results[event.info.stream][event.info.index] = event
            return
        assert self.ends.setdefault(event.stream, event) == event   # of a stream moved after its end it may come again
        if self._pulling.pop(event.stream, None) is not None:
            self._put(0, event.stream, CLOSE)

    def _move(self) -> None:
        """A stream's state goes to another replica of a group, where it goes on."""
        number = self._rng.randrange(len(self._groups))
        replicas, pins = self._groups[number], self._pins[number]
        if not self._keyed[number] or not self._opened[number]:
            return
        stream = self._rng.choice(sorted(self._opened[number]))
        old, new = replicas[pins[stream]], self._rng.randrange(len(replicas))
        state = old.snapshot(stream)
        old.close(stream)
        replicas[new].restore(stream, state)
        pins[stream] = new
        self.moves += 1
