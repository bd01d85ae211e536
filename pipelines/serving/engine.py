"""All live streams of one replica, through its group of stages: who is worked on next, and what becomes of it.

In:     streams to open, to release and to remove; frames, from their queues
Out:    results into the streams' channels; what is to go on to later groups, by `onward`
State:  the open streams; the Worker with the same stages as on Ray actors and in one process
Limits: `batching.frames` frames a batch, dealt out evenly over the streams that have some waiting; `batching.in_flight`
        batches of a stream behind the first group

Plain Python, no Ray: `pipelines/serving/owner.py` makes a deployment of it. A batch takes what is at hand and waits for
nothing: under load batches fill by themselves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from operators.formats import Categories
from operators.live.queue import LiveQueue
from operators.records import FrameTracks
from pipelines.graph import Graph, RunContext
from pipelines.replica import Order, Replica
from pipelines.reports import Report
from pipelines.serving.channel import Channel
from pipelines.serving.owned import LiveSource, Owned
from pipelines.serving.streams import Opening, StreamSpec
from pipelines.serving.tap import Tap
from pipelines.serving.worker import Done, Task, Worker

IDLE_S = 0.5
"""The worker looks around so often when nothing comes."""

MakeSource = Callable[[StreamSpec, LiveQueue], LiveSource]


@dataclass(frozen=True)
class Batch:
    """What goes from group to group of one stream: records, and what was told on the way."""

    stream: str
    records: list[Any]
    begin: dict[str, bytes | None] = field(default_factory=dict)
    """Groups, by their names, that are to forget the stream and begin from this snapshot, or from nothing."""
    snapshot: bool = False
    states: dict[str, bytes] = field(default_factory=dict)
    """What the groups so far gave for the snapshot."""
    closing: bool = False
    failure: str | None = None
    lost: tuple[str, ...] = ()
    """Groups that do not know the stream any more: they began anew, or another replica was asked."""
    taken: int = 0
    """Frames that were taken from the stream's queue, with this batch and before."""
    behind: int = 0
    """Index behind the last of them."""


Onward = Callable[[Batch], None]


class Engine:
    """Streams in, results in their channels. Its methods may be called from any thread."""

    def __init__(
        self, graph: Graph, context: RunContext, categories: Categories, make_source: MakeSource, *,
        min_score: float = 0.5, max_width: int = 1280, onward: Onward | None = None,
        changed: Callable[[], None] = lambda: None, watch: Callable[[Report], None] = lambda report: None,
    ) -> None:
        """The first group of `graph`, whose amounts are known, in this process. `onward` takes batches to the others;
        `changed` is told when there is something new to see. Both are called in the worker's thread."""
        self._graph, self._categories, self._make_source = graph, categories, make_source
        self._min_score, self._max_width, self._onward, self._changed = min_score, max_width, onward, changed
        group = graph.placement[0]
        self.names = ["+".join(each.stages) for each in graph.placement]
        self._keyed = tuple(name for name, each in zip(self.names, graph.placement, strict=True) if graph.keyed(each))
        self._tap = Tap()
        first, *others = graph.group(group)
        kept = 2 * graph.batching.frames * (graph.batching.in_flight + 1)
        replica = Replica((self._tap.on(first, kept), *others), context, group.num_cpus)
        replica.build()
        self.news = threading.Condition()
        self._streams: dict[str, Owned] = {}
        self._turn = 0
        self.worker = Worker(replica, self._compose, watch)
        self.worker.start()

    # -------------------------------------------------------------------------------------------------------- streams

    def open(self, opening: Opening, make_source: MakeSource | None = None, channel: Channel | None = None) -> Owned:
        """Begin a stream; one that is open is left alone. Its source starts as soon as the stages know of it.

        Raises: what making the source raises, ConfigError or NotAllowed.
        """
        with self.news:
            stream = self._streams.get(opening.spec.id)
            if stream is not None and stream.phase != "over":
                return stream
            channel = channel or Channel(self._categories, self._min_score, self._max_width)
            if opening.tail:
                channel.begin_with(opening.tail)
            stream = Owned(opening, channel, self.news, self._keyed)
            stream.source = (make_source or self._make_source)(stream.spec, stream.queue)
            self._streams[stream.id] = stream
            self.news.notify_all()
            return stream

    def release(self, stream: str) -> None:
        """Let come out what is under way, take a snapshot, and let go: afterwards `released` is true."""
        self._leave(stream, "leaving")

    def remove(self, stream: str) -> None:
        """Close a stream for ever."""
        self._leave(stream, "closing")

    def forget(self, stream: str) -> Owned | None:
        """Take a stream that is over off the list."""
        with self.news:
            return self._streams.pop(stream, None)

    def streams(self) -> list[Owned]:
        with self.news:
            return list(self._streams.values())

    def get(self, stream: str) -> Owned | None:
        with self.news:
            return self._streams.get(stream)

    def stop(self) -> None:
        """End all sources and the worker; nothing more is given out."""
        for stream in self.streams():
            stream.source.stop()
        self.worker.stop()

    def _leave(self, name: str, phase: str) -> None:
        with self.news:
            stream = self._streams.get(name)
            if stream is None or stream.phase in ("closing", "over"):
                return
            if stream.phase != phase:
                stream.phase, stream.announced = phase, False
            if phase == "closing":
                stream.verdict = stream.verdict or ("ended", "it was removed")
            self.news.notify_all()
        stream.source.stop()        # out of the lock: it waits for the source's thread

    # --------------------------------------------------------------------------------------------- what to do next

    def _compose(self) -> Sequence[Task]:
        """The next batch; none if nothing comes for a while."""
        with self.news:
            self.news.wait_for(lambda: any(map(self._wants, self._streams.values())), IDLE_S)
            wanting = [stream for stream in self._streams.values() if self._wants(stream)]
            ready = [stream for stream in wanting if stream.phase == "live"]
            tasks = [self._step(stream) for stream in wanting if stream.phase != "live"]
            return [*tasks, *(self._pull(stream, count) for stream, count in self._dealt(ready))]

    def _wants(self, stream: Owned) -> bool:
        if stream.phase == "over" or stream.announced:
            return False
        if stream.phase == "new":
            return not stream.under_way and time.monotonic() >= stream.not_before
        if stream.phase == "live":
            has_some = stream.queue.counts().waiting or stream.queue.ended
            return bool(has_some) and stream.under_way < self._graph.batching.in_flight
        return not stream.under_way

    def _dealt(self, ready: list[Owned]) -> list[tuple[Owned, int]]:
        """Frames dealt like cards over the streams that have some; the next batch goes on behind the last one served.

        So a camera of 60 frames a second takes none from one of 5.
        """
        if not ready:
            return []
        self._turn %= len(ready)
        order = ready[self._turn :] + ready[: self._turn]
        waiting = [max(stream.queue.counts().waiting, 1) for stream in order]   # 1: to be given its end
        counts, left = [0] * len(order), self._graph.batching.frames
        while left > 0 and any(have > got for have, got in zip(waiting, counts, strict=True)):
            for number, have in enumerate(waiting):
                if left > 0 and have > counts[number]:
                    counts[number] += 1
                    left -= 1
        self._turn += sum(counts)
        return [(stream, count) for stream, count in zip(order, counts, strict=True) if count]

    def _pull(self, stream: Owned, count: int) -> Task:
        stream.under_way += 1
        snapshot = stream.since_snapshot >= self._graph.recovery.snapshot_every
        if snapshot:
            stream.since_snapshot = 0
        order = Order(stream.id, count=count, snapshot=snapshot)
        return Task(order, done=lambda done: self._passed(stream, done, snapshot))

    def _step(self, stream: Owned) -> Task:
        """Begin, hand over, or close."""
        stream.under_way += 1
        if stream.phase == "new":
            if stream.started:
                self._tap.kept.add(stream.id)
            order = Order(stream.id, first=True, state=stream.begin.pop(self.names[0], None), snapshot=True)
            return Task(order, done=lambda done: self._began(stream, done))
        stream.announced = True
        if stream.phase == "leaving":
            return Task(Order(stream.id, snapshot=True), done=lambda done: self._passed(stream, done, True))
        return Task(Order(stream.id, closing=True), done=lambda done: self._passed(stream, done, False, closing=True))

    # -------------------------------------------------------------------------------------------- what became of it

    def _began(self, stream: Owned, done: Done) -> None:
        """The stages know the stream: its frames may come."""
        with self.news:
            stream.under_way -= 1
            if done.failure is not None:
                stream.states.pop(self.names[0], None)      # a snapshot of other stages is of no use again
                stream.stumbled(done.failure)
                return
            if stream.phase != "new":
                return                      # it was removed meanwhile
            stream.phase = "live"
            if stream.started:
                return
            stream.started = True
            if stream.base.next_index:
                self._tap.stage.skip_to(stream.id, stream.base.next_index, "restarted")
            self._tap.stage.attach(stream.id, stream.queue)
        stream.source.start()

    def _passed(self, stream: Owned, done: Done, snapshot: bool, closing: bool = False) -> None:
        """A batch came through the first group."""
        states = {} if done.state is None else {self.names[0]: done.state}
        begin, stream.begin = (stream.begin, {}) if self._onward else ({}, stream.begin)
        taken, behind = stream.queue.counts().taken, self._tap.behind(stream.id)
        batch = Batch(stream.id, done.records, begin, snapshot, states, closing, done.failure, (), taken, behind)
        if done.ended is not None:
            with self.news:
                error = done.ended.error
                stream.verdict = stream.verdict or (("failed", error) if done.ended.fatal else ("ended", error or ""))
        if self._onward is None or not (done.records or snapshot or closing or begin):
            self.arrived(batch)
        else:
            self._onward(batch)

    def arrived(self, batch: Batch) -> None:
        """A batch came out of the last group, or was lost on the way (`failure`)."""
        with self.news:
            stream = self._streams.get(batch.stream)
            if stream is None:
                return
            for record in () if stream.released else batch.records:     # its next owner gives what was held back
                self._give(stream, record)
            stream.under_way -= 1
            if batch.snapshot and batch.states.keys() >= set(self._keyed):
                stream.states = stream.untold_states = dict(batch.states)
            for group in batch.lost:
                stream.begin[group] = stream.states.get(group)
            if batch.lost:
                stream.lose(batch.taken, batch.behind, "restarted")
            elif batch.failure is not None or (stream.phase == "new" and stream.started):
                stream.lose(batch.taken, batch.behind, "failed")
            if batch.failure is not None and stream.phase == "live":
                stream.stumbled(batch.failure)
            elif stream.phase == "live" and stream.verdict is not None:
                stream.phase, stream.announced = "closing", False
            elif stream.announced:
                self._ended(stream, batch)
            stream.settle()
            self.news.notify_all()
        if stream.phase == "over":
            stream.source.stop()
        self._changed()

    def _give(self, stream: Owned, tracks: FrameTracks) -> None:
        index = tracks.info.index
        if index < stream.floor:
            return              # it was held back when a snapshot was taken, and came out, or counts as lost, since
        frame, captured_at = self._tap.taken(stream.id, index)
        stream.out += 1
        stream.since_snapshot += 1
        stream.good_frames += 1
        stream.next_index = max(stream.next_index, index + 1)
        stream.channel.give(tracks, captured_at, stream.dropped(), frame)

    def _ended(self, stream: Owned, batch: Batch) -> None:
        if stream.phase == "leaving" and not batch.closing:
            stream.released = True          # its state is whole; now the stages may forget it
            stream.phase, stream.announced = "closing", False
            return
        if not stream.released:
            stream.to_settle = stream.to_settle or "failed"
        stream.phase, stream.over_at = "over", time.monotonic()
