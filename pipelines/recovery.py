"""What a death costs: time, never a frame; and who is to blame if it comes again.

In:     which replica died or what was lost, and where each stream stands
Out:    streams that begin again from their last snapshot (rewound), chunks that wait again, streams that are set aside
State:  of each stream which frames may have killed an actor; how often what died
Limits: snapshots are `recovery.snapshot_every` frames apart: so much is done again at most, beside what is held back

A replica without memory loses nothing but its calls: their chunks wait again, by the same references. One that
remembers takes its streams with it: every group forgets them and begins again where the last snapshot was taken, behind
the same frame in all groups. What was given out already is not given twice (`InOrder`). All that is still under way of
an earlier attempt is dropped when it comes: it may have passed a replica that had lost what came before it.

The frames of the call that died are sent again alone. A frame that is alone in an actor when it dies, `max_kills` times
and with no progress in between, is poison: its stream is done again up to it, and ends there with a failure.
"""

from __future__ import annotations

import warnings
from collections import deque
from typing import TYPE_CHECKING

from pipelines.graph import Graph
from pipelines.snapshots import SnapshotError, SnapshotStore
from pipelines.streams import CLOSING, NEVER, Attempt, Call, Place, Stream

if TYPE_CHECKING:
    from pipelines.flow import Flow


class Recoverer:
    """The part of a Flow that is asked when something died."""

    def __init__(self, flow: Flow, graph: Graph, store: SnapshotStore) -> None:
        self._flow, self._graph, self._store = flow, graph, store
        self.deaths = [0] * len(graph.placement)
        """Of each group."""
        self.rewinds = 0
        self.set_aside = 0
        """Streams that end at a frame which kills."""

    def died(self, place: Place, why: str, blame: bool) -> None:
        """A replica is gone. `blame`: what it worked on may be the reason."""
        place.live = False
        self.deaths[place.group] += 1
        calls = list(place.calls)
        place.calls.clear()
        poisoned = self._judge(calls[0], why) if blame and calls else None
        if self._flow.keyed[place.group]:
            for stream in [each for each in place.streams if place.group in each.attempt.begun]:
                self.rewind(stream)
        else:
            self._put_back(place, calls)
            if poisoned is not None:
                self.rewind(poisoned)

    def rewind(self, stream: Stream) -> None:
        """The stream begins again from its last snapshot, in all groups."""
        frame, states = self._last_snapshot(stream)
        stream.attempt = Attempt(stream, stream.attempt.number + 1, frame, states, len(self._flow.places))
        self.rewinds += 1
        self._flow.drop_stale()
        self.stop_at_limit(stream.attempt)

    def commit(self, attempt: Attempt) -> None:
        """All that comes before the border was given out, and every group gave its state: from here it may go on."""
        frame, attempt.border = attempt.border, None
        states, attempt.taken = attempt.taken, {}
        names = {name for name, keyed in zip(self._flow.names, self._flow.keyed, strict=True) if keyed}
        if attempt.ended or states.keys() != names:  # the end is not told twice, and a failed stage has no state
            return
        try:
            self._store.put(attempt.stream.name, frame, states)
            attempt.stream.kept = True
        except SnapshotError as error:
            warnings.warn(f"{error} A death would cost more time.", stacklevel=1)

    def stop_at_limit(self, attempt: Attempt) -> None:
        """End the stream where it has come to a frame that is set aside."""
        stream = attempt.stream
        reached = stream.limit is not None and attempt.position >= stream.limit
        if reached and not attempt.pulls and not attempt.ended:
            self._flow.fail(stream, stream.verdict)
            attempt.ended = True

    def move(self, place: Place) -> None:
        """The streams of a replica that does not come back go to those that are there. Without any, nothing."""
        places = [each for each in self._flow.places[place.group] if each.live]
        if not self._flow.keyed[place.group] or not places:
            return
        for stream in place.streams:
            to = min(places, key=lambda each: len(each.streams))
            to.streams.append(stream)
            stream.pins[place.group] = to.replica
        place.streams.clear()
        while place.lane:
            chunk = place.lane.popleft()
            self._flow.places[place.group][chunk.attempt.stream.pins[place.group]].lane.append(chunk)

    def _last_snapshot(self, stream: Stream) -> tuple[int, dict[str, bytes]]:
        if stream.kept:
            try:
                return self._store.latest(stream.name) or (0, {})
            except SnapshotError as error:
                warnings.warn(f"{error} The stream is done again from its start.", stacklevel=1)
        return 0, {}

    def _put_back(self, place: Place, calls: list[Call]) -> None:
        """The chunks of these calls wait again, in their order, before all others."""
        waiting = deque()
        for part in (part for call in calls for part in call.parts if not part.attempt.stale):
            part.attempt.held[place.group + 1] -= 1
            part.attempt.held[place.group] += len(part.chunks)
            waiting += part.chunks
        place.lane.extendleft(reversed(waiting))

    def _judge(self, call: Call, why: str) -> Stream | None:
        """What the actor may have died of. Gives the stream that is set aside for it, if one is."""
        for part in call.parts:
            marks, stream = part.marks, part.attempt.stream
            if part.attempt.stale or not marks:
                continue
            if not call.alone:
                stream.suspect(call.group, marks[0], marks[-1])
            elif stream.killed(call.group, marks[0]) >= self._graph.recovery.max_kills:
                return self._set_aside(stream, call.group, marks[0], why)
        return None

    def _set_aside(self, stream: Stream, group: int, mark: int, why: str) -> Stream | None:
        """Do the stream again up to this frame. If that is no help either, it ends here."""
        stages = ", ".join(self._graph.placement[group].stages)
        where = "when it closed" if mark >= CLOSING else f"frame {mark}"
        deaths = f"its worker process died {stream.kills[2]} times, each time with nothing else at work"
        reason = f"'{stages}', stream '{stream.name}', {where}: {deaths}: {why}"
        self.set_aside += stream.limit is None
        if stream.limit is None and mark < CLOSING:
            stream.limit, stream.verdict, stream.kills = mark, reason, NEVER
            return stream
        self._flow.fail(stream, stream.verdict or reason)
        self._flow.end(stream)
        return None
