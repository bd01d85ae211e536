"""A Flow played with plain Replicas instead of actors: who is faster, what dies and what is lost goes by a seed.

Everything is real but for Ray: stages, groups, snapshots, orders and recovery. A thousand runs take seconds, so that
the logic meets orders of events that a cluster shows once a year.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from operators.sources import Source
from pipelines.drive import Result
from pipelines.flow import Flow
from pipelines.graph import Graph, RunContext
from pipelines.replica import Replica, orders_of
from pipelines.streams import Call, Data

LOST = object()


class Memory:
    """A store of snapshots in a dict."""

    def __init__(self) -> None:
        self.kept: dict[str, list[tuple[int, dict[str, bytes]]]] = {}

    def put(self, stream: str, frame: int, state: dict[str, bytes]) -> None:
        self.kept.setdefault(stream, []).append((frame, dict(state)))

    def latest(self, stream: str) -> tuple[int, dict[str, bytes]] | None:
        return self.kept[stream][-1] if stream in self.kept else None

    def forget(self, stream: str) -> None:
        self.kept.pop(stream, None)

    def close(self) -> None:
        self.kept.clear()


@dataclass(frozen=True)
class Odds:
    """Chances."""

    death: float = 0.0
    """Of a replica, at each step."""
    loss: float = 0.0
    """That records are lost after the call that gave them is done."""


class Player:
    """Plays a graph to its end. `poison`: (group, stream, frame) that kills each replica that has it in a call.

    `forever`: the dead do not come back.
    """

    def __init__(
        self,
        graph: Graph,
        sources: Iterable[Source],
        seed: int,
        odds: Odds = Odds(),
        poison: Sequence[tuple] = (),
        forever: bool = False,
    ) -> None:
        self.graph, self.random, self.odds, self.poison = graph, random.Random(seed), odds, set(poison)
        self.forever = forever
        self.now, self.steps, self.deaths = 0.0, 0, 0
        self.store = Memory()
        self.flow = Flow(graph, sources, self.store, clock=lambda: self.now)
        self.queues: dict[tuple[int, int], list[Call]] = {}
        self.answers: dict[int, Any] = {}
        self.replicas = {spot: self._made(spot) for spot in self._spots()}

    @classmethod
    def around(cls, flow: Flow, graph: Graph) -> Player:
        """Replicas for a flow that is there already."""
        player = cls(graph, [], seed=0)
        player.flow = flow
        return player

    def results(self) -> Iterator[Result]:
        flow = self.flow
        while not flow.done or flow.results:
            self.steps += 1
            assert self.steps < 200_000, "the run does not end"
            for call in flow.calls():
                self.queues.setdefault((call.group, call.replica), []).append(call)
            self._check_bounds()
            if flow.outputs:
                self._fetch()
                continue
            while flow.results:
                yield flow.results.popleft()
            if not flow.done:
                self._something_happens()

    def _spots(self) -> list[tuple[int, int]]:
        return [(g, i) for g, group in enumerate(self.graph.placement) for i in range(group.replicas)]

    def _made(self, spot: tuple[int, int]) -> Replica:
        replica = Replica(self.graph.group(self.graph.placement[spot[0]]), RunContext(device="cpu"), 1)
        replica.build()
        return replica

    def _something_happens(self) -> None:
        """One replica finishes its oldest call, or dies; one that is dead comes back; or only time passes."""
        self.now += self.random.choice((0.0, 0.001, 0.03))
        busy = [spot for spot, queue in self.queues.items() if queue]
        dead = [(p.group, p.replica) for places in self.flow.places for p in places if not (p.live or self.forever)]
        if self.random.random() < self.odds.death:
            self._die(self.random.choice(self._spots()), "kill -9")
        elif dead and (not busy or self.random.random() < 0.2):
            self._revive(self.random.choice(dead))
        elif busy:
            self._work(self.random.choice(busy))
        else:
            wait = self.flow.wait_s()
            assert wait is not None, "nothing is under way, nothing is due, and the run is not done"
            self.now += wait

    def _work(self, spot: tuple[int, int]) -> None:
        call = self.queues[spot].pop(0)
        orders, references = orders_of(call.parts)
        answers = [self.answers[reference] for reference in references]
        if any(answer is LOST for answer in answers):
            self.flow.lost(call)
            return
        if self._is_poisoned(call, orders):
            self.queues[spot].insert(0, call)
            self._die(spot, "poison")
            return
        *records, outcome = self.replicas[spot].process(orders, *answers)
        data = []
        for each in records:
            key = len(self.answers)
            self.answers[key] = LOST if self.random.random() < self.odds.loss else each
            data.append(Data(key))
        self.flow.finished(call, outcome, data)

    def _is_poisoned(self, call: Call, orders: Sequence[Any]) -> bool:
        for part in call.parts:
            frames = {frame for chunk in part.chunks for frame in chunk.frames}
            if part.count and not part.attempt.stale:
                frames |= set(range(part.attempt.position, part.attempt.position + part.count))
            if any((call.group, part.attempt.stream.name, frame) in self.poison for frame in frames):
                return True
        return False

    def _die(self, spot: tuple[int, int], why: str) -> None:
        place = self.flow.places[spot[0]][spot[1]]
        if not place.live:
            return
        self.deaths += 1
        self.queues[spot] = []
        del self.replicas[spot]
        self.flow.died(*spot, why)

    def _revive(self, spot: tuple[int, int]) -> None:
        self.replicas[spot] = self._made(spot)
        self.flow.live(*spot)

    def _fetch(self) -> None:
        chunks = list(self.flow.outputs)
        self.flow.outputs.clear()
        for chunk in chunks:
            records = [] if chunk.data is None else self.answers[chunk.data.reference]
            if records is not LOST:
                self.flow.delivered(chunk, records[chunk.start : chunk.start + len(chunk.frames)])
            elif not chunk.attempt.stale:
                self.flow.recoverer.rewind(chunk.attempt.stream)

    def _check_bounds(self) -> None:
        """No edge holds more than it may, and the counts are right."""
        for stream in self.flow.open.values():
            for edge, held in enumerate(stream.attempt.held):
                assert held >= 0, (stream.name, edge, held)
