"""The actors of a run: made in one placement group, called by reference, made anew when they die.

In:     a Graph with all amounts known; calls
Out:    what became of each call, and of each actor
State:  handles of the actors, and references to what their calls will give
Limits: of a replica's calls the oldest alone is waited for: they finish in the order in which they were made

Calls from one caller to one actor run in the order in which they were made, and their answers belong to the driver,
though they lie where they were made. Ray does not make them again: what a death costs is decided in
pipelines/recovery.py.
"""

from __future__ import annotations

import itertools
import os
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from operators.errors import GraphError, StageError
from pipelines.demand import bundle
from pipelines.graph import Graph, RunContext
from pipelines.ray_errors import is_death, is_loss, line, of_node, told
from pipelines.replica import Replica, orders_of
from pipelines.streams import Call, Chunk, Data, Outcome
from pipelines.transport import connect, disconnect, joined

START_TIMEOUT_S = 300.0
"""Longest wait for an actor to be there with its weights loaded: a busy cluster shall be an error, not a silence."""
MOVE_AFTER_S = 20.0
"""A replica that is not back after this time has its streams taken by the others of its group."""
MAX_BUILDS = 5
"""An actor that dies so many times in a row before it is built ends the run."""
FETCH_TIMEOUT_S = 60.0

Spot = tuple[int, int]
"""Number of a group, and of its replica."""

_ONCE = {"max_restarts": 0, "max_task_retries": 0}
"""What is to be done again is decided here, not by Ray: it knows nothing of what a replica remembers."""
_Actor = ray.remote(**_ONCE)(Replica)
_JoinedActor = ray.remote(**_ONCE, enable_tensor_transport=True)(Replica)


@dataclass(frozen=True)
class Finished:
    call: Call
    outcome: Outcome
    data: list[Data]


@dataclass(frozen=True)
class Lost:
    """What the call was to take, or told, is nowhere any more; its actor lives."""

    call: Call


@dataclass(frozen=True)
class Died:
    spot: Spot
    why: str
    blame: bool
    """What it worked on may be the reason."""


@dataclass(frozen=True)
class Built:
    spot: Spot


@dataclass(frozen=True)
class Torn:
    """All that was on its way between actors is lost."""


Event = Finished | Lost | Died | Built | Torn


@dataclass
class _Building:
    since: float
    tries: int
    moved: bool = False


class Crew:
    """All actors of a run. `close` ends them, whatever happened."""

    def __init__(self, graph: Graph, context: RunContext) -> None:
        # Nobody fetches what a failed call would have given: Ray would print each as an error that was not handled.
        os.environ.setdefault("RAY_IGNORE_UNHANDLED_ERRORS", "1")
        self._graph, self._context = graph, context
        self._run = uuid.uuid4().hex[:8]
        self._spots = [(g, i) for g, group in enumerate(graph.placement) for i in range(group.replicas)]
        bundles = [bundle(graph.placement[group]) for group, _ in self._spots]
        self._group = placement_group(bundles, strategy=graph.strategy.upper(), name=f"maskstream {self._run}")
        self._actors: dict[Spot, Any] = {}
        self._building: dict[Spot, _Building] = {}
        self._builds: dict[Spot, ray.ObjectRef] = {}
        self._calls: dict[Spot, deque[tuple[Call, list[Data], ray.ObjectRef]]] = {}
        groups = joined(graph)
        self._joined = {name: [spot for spot in self._spots if spot[0] in numbers] for name, numbers in groups.items()}
        self._bound = {spot for spots in self._joined.values() for spot in spots}
        """Actors that tensors go between: they live and die together."""
        self._communicators: list[Any] = []
        self._numbers = itertools.count()

    def start(self) -> None:
        """All actors there and built. Raises: GraphError if they get no place in time; what a stage raised."""
        if not self._group.wait(START_TIMEOUT_S):
            raise GraphError(f"the cluster has no room for {self._demand()} within {START_TIMEOUT_S:g} s. {_is_busy()}")
        for spot in self._spots:
            self._make(spot, tries=1)
        while self._building:
            list(self.wait(START_TIMEOUT_S))
            self._check_overdue()

    def submit(self, call: Call) -> None:
        """Start a call; what becomes of it comes out of `wait`."""
        spot = (call.group, call.replica)
        orders, references = orders_of(call.parts)
        actor, transport = self._actors[spot], self._graph.placement[call.group].transport
        if transport == "object_store":
            *records, report = actor.process.options(num_returns=len(orders) + 1).remote(orders, *references)
            data = [Data(reference) for reference in records]
        else:
            number = next(self._numbers)
            answer = actor.process_and_keep.options(tensor_transport=transport).remote(number, orders, *references)
            report = actor.told.remote(number)
            data = [Data(answer, item) for item in range(len(orders))]
        self._calls[spot].append((call, data, report))

    def wait(self, timeout_s: float) -> Iterator[Event]:
        """What happened; nothing if nothing happens in time. Nothing under way: at once."""
        oldest = {calls[0][2]: spot for spot, calls in self._calls.items() if calls}
        oldest |= {reference: spot for spot, reference in self._builds.items()}
        if not oldest:
            return
        references = list(oldest)
        ready, _ = ray.wait(references, timeout=timeout_s)
        if ready and len(references) > 1:
            ready, _ = ray.wait(references, num_returns=len(references), timeout=0)
        for reference in ready:
            spot = oldest[reference]
            if self._builds.get(spot) == reference:
                yield from self._built(spot, reference)
            elif self._calls.get(spot) and self._calls[spot][0][2] == reference:
                yield from self._finished(spot)

    def fetch(self, chunks: Sequence[Chunk]) -> list[list[Any] | None]:
        """The records of each chunk; None where they are lost."""
        references = list({chunk.data.reference for chunk in chunks if chunk.data is not None})
        try:
            found = dict(zip(references, ray.get(references, timeout=FETCH_TIMEOUT_S), strict=True))
        except ray.exceptions.RayError:
            found = {reference: _one(reference) for reference in references}
        return [_share(chunk, found) for chunk in chunks]

    def overdue(self) -> Iterator[Spot]:
        """Each replica, once, that has been away for so long that its streams had better go to others.

        Raises: GraphError when a group has no replica for START_TIMEOUT_S.
        """
        self._check_overdue()
        for spot, building in self._building.items():
            if not building.moved and time.monotonic() - building.since > MOVE_AFTER_S:
                building.moved = True
                yield spot

    def close(self) -> None:
        """End all actors; what they held is given back."""
        for actor in self._actors.values():
            ray.kill(actor)
        for communicator in self._communicators:
            disconnect(communicator)
        remove_placement_group(self._group)
        for kept in (self._actors, self._building, self._builds, self._calls):
            kept.clear()

    def _make(self, spot: Spot, tries: int, since: float | None = None) -> None:
        group, number = self._graph.placement[spot[0]], spot[1]
        name = f"maskstream {self._run}: {'+'.join(group.stages)} #{number} ({uuid.uuid4().hex[:4]})"
        where = PlacementGroupSchedulingStrategy(
            placement_group=self._group, placement_group_bundle_index=self._spots.index(spot)
        )
        options = {"num_cpus": group.num_cpus, "num_gpus": group.num_gpus, "resources": dict(group.resources)}
        kind = _JoinedActor if spot in self._bound else _Actor
        make = kind.options(name=name, scheduling_strategy=where, **options)
        keep_device = group.transport == "nccl"
        self._actors[spot] = make.remote(self._graph.group(group), self._context, group.num_cpus, keep_device)
        self._calls[spot] = deque()
        self._building[spot] = _Building(time.monotonic() if since is None else since, tries)
        self._builds[spot] = self._actors[spot].build.remote()

    def _built(self, spot: Spot, reference: ray.ObjectRef) -> Iterator[Event]:
        building = self._building[spot]
        del self._builds[spot]
        try:
            ray.get(reference)
        except ray.exceptions.RayError as error:
            if not is_death(error):
                raise told(error, self._name(spot)) from error
            if building.tries >= MAX_BUILDS:
                raise StageError(
                    f"a worker process of {self._name(spot)} died {MAX_BUILDS} times before it was built, the run "
                    f"cannot go on: {line(error)}"
                ) from error
            yield from self._made_again(spot, line(error), blame=False, tries=building.tries + 1)
            return
        if spot not in self._bound:
            del self._building[spot]
            yield Built(spot)
        elif not self._bound & self._builds.keys():  # it was the last of them
            yield from self._connected()

    def _connected(self) -> Iterator[Event]:
        """Join the actors between which tensors go; only then they count as built."""
        tries = max(self._building[spot].tries for spot in self._bound)
        try:
            for backend, spots in self._joined.items():
                self._communicators.append(connect([self._actors[spot] for spot in spots], backend))
        except ray.exceptions.RayError as error:
            if tries >= MAX_BUILDS:
                raise StageError(f"the actors between which tensors go cannot be joined: {line(error)}") from error
            yield from self._made_again(self._joined[backend][0], line(error), blame=False, tries=tries + 1)
            return
        for spot in self._bound:
            del self._building[spot]
            yield Built(spot)

    def _made_again(self, spot: Spot, why: str, blame: bool, tries: int = 1) -> Iterator[Event]:
        """End an actor that is dead to us, and all that cannot live without it; make them anew."""
        spots = self._bound if spot in self._bound else {spot}
        for each in spots:
            building = self._building.get(each)
            ray.kill(self._actors[each])
            self._make(each, tries, building and building.since)
            if building is None:
                yield Died(each, why, blame and each == spot)
        if spot in self._bound:
            for communicator in self._communicators:
                disconnect(communicator)
            self._communicators.clear()
            yield Torn()

    def _finished(self, spot: Spot) -> Iterator[Event]:
        call, data, report = self._calls[spot].popleft()
        try:
            outcome = ray.get(report)
        except ray.exceptions.RayError as error:
            if is_loss(error):
                yield Lost(call)
            elif is_death(error):
                yield from self._made_again(spot, line(error), not of_node(error))
            else:
                raise told(error, self._name(spot)) from error
        else:
            yield Lost(call) if outcome is None else Finished(call, outcome, data)

    def _check_overdue(self) -> None:
        for spot, building in self._building.items():
            alive = any(other[0] == spot[0] and other not in self._building for other in self._spots)
            if not alive and time.monotonic() - building.since > START_TIMEOUT_S:
                raise GraphError(f"no actor of {self._name(spot)} started within {START_TIMEOUT_S:g} s. {_is_busy()}")

    def _name(self, spot: Spot) -> str:
        return f"'{', '.join(self._graph.placement[spot[0]].stages)}'"

    def _demand(self) -> str:
        groups = self._graph.placement
        return "; ".join(f"{g.replicas} x {bundle(g)} for '{', '.join(g.stages)}'" for g in groups)


def _is_busy() -> str:
    return f"Is it busy? Free now: {ray.available_resources().get('CPU', 0):g} CPUs."


def _one(reference: ray.ObjectRef) -> Any:
    try:
        return ray.get(reference, timeout=FETCH_TIMEOUT_S)
    except ray.exceptions.RayError:
        return None


def _share(chunk: Chunk, found: dict[ray.ObjectRef, Any]) -> list[Any] | None:
    if chunk.data is None:
        return []
    answer = found[chunk.data.reference]
    if answer is None:
        return None
    records = answer if chunk.data.item is None else answer[chunk.data.item]
    return records[chunk.start : chunk.start + len(chunk.frames)]
