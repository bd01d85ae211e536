"""What runs next, and what became of it: the logic of the executor on Ray, without Ray.

In:     sources; of every call that it gave out what became of it: finished, with an outcome, lost, or its actor died
Out:    calls to make, and results in order per stream
State:  the open streams; of each replica its queue and its calls under way. References alone, no data
Limits: `batching.in_flight` calls under way of a replica, and chunks of a stream before each group

A call takes what is ready of several streams, up to `batching.frames`, when it is full, or the first has waited for
`max_wait_s`, or nothing else can come. Streams are pinned to replicas that remember; a slow one waits alone. Chunks of
a stream are put in order before every group, so what comes out does not depend on who was faster.

What a death costs stands in pipelines/recovery.py.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from operators.records import FrameFault, FrameTracks
from operators.sources import Source
from pipelines.composing import Pulls, Takes
from pipelines.drive import InOrder, Result
from pipelines.graph import Graph
from pipelines.recovery import Recoverer
from pipelines.reports import Failure
from pipelines.snapshots import SnapshotStore
from pipelines.status import Ledger, Status
from pipelines.streams import (
    Attempt,
    Call,
    Chunk,
    Data,
    Outcome,
    Part,
    Place,
    Stream,
)

Clock = Callable[[], float]


class Flow:
    """Ask `calls` what to do, make the calls, tell `finished`, `lost` or `died`; `results` are to be given out."""

    def __init__(self, graph: Graph, sources: Iterable[Source], store: SnapshotStore, clock: Clock = time.monotonic):
        self._batching, self._clock, self._store = graph.batching, clock, store
        self._sources: Iterator[Source] | None = iter(sources)
        self.keyed = [graph.keyed(group) for group in graph.placement]
        assert self.keyed[0], "a stage that pulls knows where its sources stand"
        self.names = ["+".join(group.stages) for group in graph.placement]
        self._num_groups = len(graph.placement)
        self.places: list[list[Place]] = []
        for number, group in enumerate(graph.placement):
            shared: deque[Chunk] = deque()
            lanes = [deque() if self.keyed[number] else shared for _ in range(group.replicas)]
            self.places.append([Place(number, i, lane) for i, lane in enumerate(lanes)])
        self.open: dict[str, Stream] = {}
        self.results: deque[Result] = deque()
        self.outputs: deque[Chunk] = deque()
        """What came out of the last group, in order: fetch it, then tell `delivered`."""
        self._in_order = InOrder()
        self._ledger = Ledger(graph)
        self._pulls, self._takes = Pulls(graph), Takes(graph.batching)
        self._now = clock()
        self.recoverer = Recoverer(self, graph, store)

    # ------------------------------------------------------------------------------------------------- what to do next

    @property
    def done(self) -> bool:
        return self._sources is None and not self.open

    def calls(self) -> Iterator[Call]:
        """All calls that can be made now. Late groups first: they make room for the earlier ones."""
        self._admit()
        self._now = self._clock()
        for group in reversed(range(self._num_groups)):
            for depth in range(self._batching.in_flight):
                for place in self.places[group]:
                    if len(place.calls) <= depth and place.free(self._batching.in_flight):
                        call = self._call(place)
                        if call is not None:
                            place.calls.append(call)
                            yield call

    def wait_s(self) -> float | None:
        """Seconds from the last `calls` until one will be due that is not full; None if there is none."""
        waits = []
        for place in self._all_places():
            if place.lane and place.free(self._batching.in_flight):
                due = place.lane[0].since + self._batching.max_wait_s
                if due > self._now:  # else it waits for room, not for time
                    waits.append(due - self._now)
        return min(waits, default=None)

    def _admit(self) -> None:
        """Open streams while there is room for them."""
        while self._sources is not None and len(self.open) < self._batching.streams:
            source = next(self._sources, None)
            if source is None:
                self._sources = None
                return
            assert source.name not in self.open, f"names of open sources must be unique: {source.name}"
            stream = Stream(source, {})
            for group, places in enumerate(self.places):
                if self.keyed[group]:
                    alive = [place for place in places if place.live] or places
                    place = min(alive, key=lambda place: len(place.streams))  # fewest streams, then the first
                    stream.pins[group] = place.replica
                    place.streams.append(stream)
            stream.attempt = Attempt(stream, 0, 0, {}, self._num_groups)
            self.open[source.name] = stream

    def _call(self, place: Place) -> Call | None:
        if place.group == 0:
            parts, alone = self._pulls.of(place)
        else:
            earlier = (other for places in self.places[: place.group] for other in places)
            more = any(other.calls or other.lane for other in earlier)
            parts, alone = self._takes.of(place, self._now, more)
        for part in parts:
            part.first = place.group not in part.attempt.begun
            part.state = part.attempt.states.pop(self.names[place.group], None)
            part.attempt.begun.add(place.group)
            part.attempt.held[place.group + 1] += 1
        return Call(place.group, place.replica, parts, alone) if parts else None

    # ---------------------------------------------------------------------------------------------- what became of it

    def finished(self, call: Call, outcome: Outcome, data: Sequence[Data]) -> None:
        """The oldest call of its replica is done; `data` of each of its parts."""
        place = self.places[call.group][call.replica]
        assert place.calls and place.calls[0] is call, "calls of a replica finish in order"
        place.calls.popleft()
        for part in call.parts if call.alone else ():
            part.attempt.stream.survived(call.group, max(part.marks))
        self._ledger.add(call.group, outcome.report)
        parts = {part.attempt.stream.name: part for part in call.parts if not part.attempt.stale}
        for event in (*outcome.report.events, *outcome.report.failures):
            stream = event.info.stream if isinstance(event, FrameFault) else event.stream
            if stream in parts:
                self._note(event)
                if not isinstance(event, FrameFault):
                    parts[stream].attempt.ended = True
        for number, part in enumerate(call.parts):
            if not part.attempt.stale:
                self._pass_on(call.group, part, outcome, number, data[number])

    def _pass_on(self, group: int, part: Part, outcome: Outcome, number: int, data: Data) -> None:
        """One stream's part of a call came through: what it gave goes on."""
        attempt = part.attempt
        if part.count:
            self._count_pull(part, outcome.report.pulled.get(attempt.stream.name, 0))
        if outcome.states[number] is not None:
            attempt.taken[self.names[group]] = outcome.states[number]
        chunk = Chunk(
            attempt,
            part.begin,
            part.end,
            data,
            frames=outcome.frames[number],
            border=part.border,
            closing=part.closing,
            failed=any(failure.stream == attempt.stream.name for failure in outcome.report.failures),
        )
        attempt.early[group + 1][chunk.begin] = chunk
        self._release(attempt, group + 1)

    def _count_pull(self, part: Part, given: int) -> None:
        """A pull gave so many frames: now it is known where the stream stands, and its border."""
        attempt = part.attempt
        attempt.position += given
        attempt.asked -= part.count - given
        attempt.pulls -= 1
        attempt.idle = given == 0 and not attempt.ended
        if part.border is not None:
            part.border = attempt.border = attempt.due = attempt.position
        self.recoverer.stop_at_limit(attempt)

    def _release(self, attempt: Attempt, edge: int) -> None:
        """Let pass what is next in the stream's order."""
        while attempt.next[edge] in attempt.early[edge]:
            chunk = attempt.early[edge].pop(attempt.next[edge])
            attempt.next[edge] = chunk.end
            self._arrive(self._cut(chunk, edge - 1), edge)

    def _cut(self, chunk: Chunk, group: int) -> Chunk:
        """Without the frames that no later stage is to see: set aside, or after one that failed."""
        attempt = chunk.attempt
        frames = () if group in attempt.cut else chunk.frames
        if attempt.stream.limit is not None:
            frames = tuple(frame for frame in frames if frame < attempt.stream.limit)
        if chunk.failed and not self.keyed[group]:  # one that remembers drops them itself
            attempt.cut.add(group)
        return replace(chunk, frames=frames, since=self._clock(), data=chunk.data if frames else None)

    def _arrive(self, chunk: Chunk, edge: int) -> None:
        """Into the lane of its next group, or past it if there is nothing to be done."""
        attempt = chunk.attempt
        if edge == self._num_groups:
            self.outputs.append(chunk)
        elif chunk.frames or (self.keyed[edge] and (chunk.closing or chunk.border is not None)):
            self.places[edge][attempt.stream.pins.get(edge, 0)].lane.append(chunk)
        else:
            attempt.held[edge] -= 1
            attempt.held[edge + 1] += 1
            attempt.early[edge + 1][chunk.begin] = chunk
            self._release(attempt, edge + 1)

    def delivered(self, chunk: Chunk, records: Sequence[FrameTracks]) -> None:
        """What came out of the last group was fetched."""
        attempt = chunk.attempt
        if attempt.stale:
            return
        attempt.held[self._num_groups] -= 1
        for record in records:
            self._note(record)
        if chunk.border is not None:
            self.recoverer.commit(attempt)
        if chunk.closing:
            self.end(attempt.stream)

    def _note(self, event: Any) -> None:
        for result in self._in_order.add(event):
            self._ledger.gave(result)
            self.results.append(result)

    def fail(self, stream: Stream, reason: str) -> None:
        """The stream is to end with a failure, before the first frame that is lost."""
        self._note(Failure(stream.name, reason))

    def end(self, stream: Stream) -> None:
        """Give out the stream's end, and forget it."""
        for result in self._in_order.close(stream.name):
            self._ledger.gave(result)
            self.results.append(result)
        stream.attempt = None
        del self.open[stream.name]
        for group, replica in stream.pins.items():
            self.places[group][replica].streams.remove(stream)
        if stream.kept:
            self._store.forget(stream.name)

    # ------------------------------------------------------------------------------------------------- when things die

    def lost(self, call: Call) -> None:
        """What the oldest call of a replica was to take, or gave, is lost: its streams are done again."""
        self.places[call.group][call.replica].calls.popleft()
        for part in call.parts:
            if not part.attempt.stale:
                self.recoverer.rewind(part.attempt.stream)

    def died(self, group: int, replica: int, why: str, blame: bool = True) -> None:
        """A replica is gone, with all that it remembers. `blame`: what it worked on may be the reason."""
        self.recoverer.died(self.places[group][replica], why, blame)

    def torn(self) -> None:
        """All that was on its way between actors is lost: every stream is done again."""
        for stream in list(self.open.values()):
            self.recoverer.rewind(stream)

    def live(self, group: int, replica: int) -> None:
        """A replica is there, built and empty."""
        self.places[group][replica].live = True

    # ---------------------------------------------------------------------------------------------------- how it stands

    def drop_stale(self) -> None:
        """Let go of all that waits of attempts that are over."""
        for place in self._all_places():
            for _ in range(len(place.lane)):
                chunk = place.lane.popleft()
                if not chunk.attempt.stale:
                    place.lane.append(chunk)
        self.outputs = deque(chunk for chunk in self.outputs if not chunk.attempt.stale)

    def _all_places(self) -> Iterator[Place]:
        return (place for places in self.places for place in places)

    def status(self, passed_s: float) -> Status:
        """`passed_s`: since the one before."""
        groups = []
        for places, told in zip(self.places, self._ledger.groups(passed_s), strict=True):
            lanes = {id(place.lane): place.lane for place in places}.values()
            waiting = sum(len(chunk.frames) for lane in lanes for chunk in lane)
            under_way = sum(call.num_frames for place in places for call in place.calls)
            deaths = self.recoverer.deaths[places[0].group]
            groups.append(replace(told, waiting=waiting, under_way=under_way, restarts=deaths))
        return self._ledger.status(tuple(groups), len(self.open), self.recoverer.rewinds, self.recoverer.set_aside)
