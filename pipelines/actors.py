"""Runs a Graph on Ray: each placement group is a pool of actors, records go from actor to actor.

In:     Graph, sources, RunContext; the address of a cluster, or none: then a local one lives as long as the run
Out:    the results that `run_local` gives, equal to the last bit
State:  in the driver, which replica a stream is pinned to; all else lives in the actors
Limits: `in_flight` ticks under way; the driver fetches only the last group's records and the small reports

Every call gives two objects: records, which stay in the object store until the next group's actor takes them, and a
Report for the driver. Calls from one caller to one actor run in the order in which they were made: that alone keeps the
frames of a stream in order. A dead actor ends the run with one error.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import ray
import ray.exceptions
import torch
from torch import Tensor

from operators.errors import GraphError, MaskstreamError, StageError
from operators.records import FrameTracks
from operators.sources import Source
from pipelines.batching import Schedule, Tick
from pipelines.cluster import cluster
from pipelines.drive import Result, Watch, drive
from pipelines.graph import Graph, Placement, RunContext, StageSpec
from pipelines.group import Report, StageGroup
from pipelines.local import num_threads

START_TIMEOUT_S = 300.0
"""Longest wait for an actor to be there with its weights loaded: a busy cluster shall be an error, not a silence."""


def run_actors(
    graph: Graph,
    sources: Iterable[Source],
    context: RunContext,
    watch: Watch | None = None,
    address: str | None = None,
) -> Iterator[Result]:
    """Results of all sources: per stream in order, its StreamEnd last. No sources: none.

    Uses the cluster at `address`; without one, that which this process is connected to; without that, a local one which
    ends with the iterator. Closing the iterator early (Ctrl-C) ends actors and cluster too.
    Raises: GraphError if the placement wants more than the cluster has; StageError if an actor dies.
    """
    if context.network and context.network.weights:  # workers live in other folders
        context = replace(context, network=replace(context.network, weights=context.network.weights.absolute()))
    with cluster(address), _chain(graph, context) as chain:
        yield from drive(Schedule(sources, graph.batching), chain, graph.batching.in_flight, watch)


@contextmanager
def _chain(graph: Graph, context: RunContext) -> Iterator[_ActorChain]:
    """All actors started and their stages built; killed at the end, whatever the end is."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    placed = graph.placed(*_totals(nodes, context))
    check_demand(placed, nodes, context)
    pools: list[_Pool] = []
    try:
        for group in placed.placement:
            pools.append(_Pool(placed, group, context))
        _wait_until_built(pools)
        yield _ActorChain(pools)
    finally:
        for pool in pools:
            pool.kill()


def _totals(nodes: Sequence[dict[str, float]], context: RunContext) -> tuple[float, float]:
    """CPUs and GPUs to be shared out over 'auto' groups: the CPUs of one node, because an actor lives on one."""
    cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    gpus = 0.0 if context.device == "cpu" else sum(node.get("GPU", 0.0) for node in nodes)
    return cpus, gpus


def check_demand(graph: Graph, nodes: Sequence[dict[str, float]], context: RunContext) -> None:
    """Hold what the placement wants against what the cluster has. `nodes`: resources of each, as Ray counts them.

    Raises: GraphError that names the group, what it wants and what there is.
    """
    for resource, name in (("CPU", "num_cpus"), ("GPU", "num_gpus")):
        there = [node.get(resource, 0.0) for node in nodes]
        remedy = f"Lower replicas or {name}, or add a node."
        for group in graph.placement:
            wants = f"placement wants {getattr(group, name):g} {resource}s for '{', '.join(group.stages)}'"
            if getattr(group, name) > max(there, default=0.0):
                raise GraphError(f"{wants}, the largest node has {max(there, default=0.0):g}. {remedy}")
        total = sum(group.replicas * getattr(group, name) for group in graph.placement)
        if total > sum(there):
            sums = (f"{g.replicas} x {getattr(g, name):g} for '{', '.join(g.stages)}'" for g in graph.placement)
            wants = f"placement wants {total:g} {resource}s ({'; '.join(sums)})"
            raise GraphError(f"{wants}, the cluster has {sum(there):g}. {remedy}")
    if context.device == "cuda" and not any(node.get("GPU") for node in nodes):
        raise GraphError("the device is to be 'cuda', the cluster has no GPU. Use --device auto, or add a node.")


class Replica:
    """A StageGroup as an actor holds it. Plain Python: one line below makes an actor of it."""

    def __init__(self, specs: tuple[StageSpec, ...], context: RunContext, num_cpus: float) -> None:
        self._specs, self._context, self._num_cpus = specs, context, num_cpus
        self._group: StageGroup | None = None

    def build(self) -> None:
        """Build the stages; not in __init__, out of which Ray brings errors only as text."""
        self._group = StageGroup(self._specs, self._context, num_threads(self._num_cpus))

    def process(
        self, *parts: list[Any], streams: Sequence[str], closing: Sequence[str] = ()
    ) -> tuple[list[Any], Report]:
        """StageGroup.process; what leaves is on the host and carries no more than itself."""
        assert self._group is not None, "build() comes first"
        records, report = self._group.process(*parts, streams=streams, closing=closing)
        return [compact(record) for record in records], report


_Actor = ray.remote(Replica)


def compact(value: Any) -> Any:
    """The same record with tensors on the host that own exactly their bytes.

    A view travels with its whole storage: one image of a batch of eight would weigh as much as all eight.
    """
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        whole = value.untyped_storage().nbytes() == value.numel() * value.element_size()
        return value if whole else value.clone(memory_format=torch.contiguous_format)
    if isinstance(value, tuple):
        return tuple(compact(item) for item in value)
    if is_dataclass(value):
        return replace(value, **{item.name: compact(getattr(value, item.name)) for item in fields(value)})
    return value


@dataclass(frozen=True)
class _Handle:
    """A tick under way: references alone, no data."""

    records: list[ray.ObjectRef]
    reports: dict[str, list[ray.ObjectRef]]
    """Of each group, in the order in which records pass them: the first that fails is the one to name."""


class _Pool:
    """The replicas of one placement group, and which of them a stream is pinned to."""

    def __init__(self, graph: Graph, placement: Placement, context: RunContext) -> None:
        specs = graph.group(placement)
        self.name = f"'{', '.join(placement.stages)}'"
        self.demand = f"{placement.replicas} x {placement.num_cpus:g} CPUs, {placement.num_gpus:g} GPUs"
        self._keyed = graph.keyed(placement)
        self._pins: dict[str, int] = {}
        self._actors = []
        for number in range(placement.replicas):
            name = f"maskstream {uuid.uuid4().hex[:8]}: {'+'.join(placement.stages)} #{number}"
            make = _Actor.options(name=name, num_cpus=placement.num_cpus, num_gpus=placement.num_gpus)
            self._actors.append(make.remote(specs, context, placement.num_cpus))

    def build(self) -> list[ray.ObjectRef]:
        return [actor.build.remote() for actor in self._actors]

    def submit(self, tick: Tick, parts: Sequence[Any]) -> list[tuple[ray.ObjectRef, ray.ObjectRef]]:
        """Start the tick's calls in this group: (records, report) of each replica that has streams in it.

        Each gets all parts, and picks out its own streams.
        """
        calls = []
        for number, streams in self._shares(tick).items():
            closing = tuple(stream for stream in tick.closing if stream in streams)
            call = self._actors[number].process.options(num_returns=2)
            calls.append(tuple(call.remote(*parts, streams=streams, closing=closing)))
        return calls

    def kill(self) -> None:
        for actor in self._actors:
            ray.kill(actor)

    def _shares(self, tick: Tick) -> dict[int, tuple[str, ...]]:
        """Replica -> its streams of this tick. A group without memory takes turns: a tick is one replica's."""
        if not self._keyed:
            return {tick.number % len(self._actors): tick.streams}
        for stream in tick.streams:
            if stream not in self._pins:
                pinned = list(self._pins.values())
                self._pins[stream] = min(range(len(self._actors)), key=pinned.count)  # fewest streams, then the first
        shares: dict[int, tuple[str, ...]] = {}
        for stream in tick.streams:
            shares[self._pins[stream]] = (*shares.get(self._pins[stream], ()), stream)
        for stream in tick.closing:
            del self._pins[stream]
        return shares


class _ActorChain:
    """Ticks through the pools, by reference."""

    def __init__(self, pools: Sequence[_Pool]) -> None:
        self._pools = pools

    def submit(self, tick: Tick) -> _Handle:
        parts: list[Any] = [list(tick.pulls)]
        reports: dict[str, list[ray.ObjectRef]] = {}
        for pool in self._pools:
            calls = pool.submit(tick, parts)
            parts = [records for records, _ in calls]
            reports[pool.name] = [report for _, report in calls]
        return _Handle(parts, reports)

    def collect(self, handle: _Handle) -> tuple[list[FrameTracks], list[Report]]:
        reports = [report for name, references in handle.reports.items() for report in _get(references, name)]
        parts = _get(handle.records, self._pools[-1].name)
        return [record for part in parts for record in part], reports


def _wait_until_built(pools: Sequence[_Pool]) -> None:
    """Raises: the error with which a stage could not be built; GraphError if an actor gets no place in time."""
    waiting = {reference: pool for pool in pools for reference in pool.build()}
    while waiting:
        ready, _ = ray.wait(list(waiting), timeout=START_TIMEOUT_S)
        if not ready:
            pool = next(iter(waiting.values()))
            raise GraphError(
                f"the actors of {pool.name} ({pool.demand}) did not start within {START_TIMEOUT_S:g} s. "
                f"Is the cluster busy? Free now: {ray.available_resources().get('CPU', 0):g} CPUs."
            )
        for reference in ready:
            _get([reference], waiting.pop(reference).name)


def _get(references: list[ray.ObjectRef], group: str) -> list[Any]:
    """Objects, or the error that a worker of `group` ran into, as if it had been raised here."""
    try:
        return ray.get(references)
    except ray.exceptions.RayError as error:
        cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
        if isinstance(cause, MaskstreamError):
            raise cause from error
        if isinstance(cause, ray.exceptions.RayError):
            said = " ".join(str(cause).split())
            raise StageError(f"a worker process of {group} died, the run cannot go on: {said}") from error
        raise StageError(f"a worker of {group} failed: {type(cause).__name__}: {cause}") from error
