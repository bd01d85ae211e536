"""Runs a Graph on Ray: each placement group is a pool of actors, records go from actor to actor.

In:     Graph, sources, RunContext; the address of a cluster, or none: then a local one lives as long as the run
Out:    the results that `run_local` gives, equal to the last bit, whatever dies on the way
State:  in the driver references and numbers (pipelines/flow.py); all else lives in the actors, and in snapshots
Limits: `in_flight` calls of each replica under way; the driver fetches only the last group's records and the small
        reports. The driver's own death ends the run

Every call gives the records of each stream, which stay in the object store until the next group's actor takes them, and
an Outcome for the driver. Nothing is asked for again and again: the driver sleeps until Ray says that a call is done.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import ray

from operators.sources import Source
from pipelines.cluster import cluster
from pipelines.crew import Built, Crew, Died, Event, Finished, Lost
from pipelines.demand import check_demand, totals
from pipelines.drive import Result, Watch
from pipelines.flow import Flow
from pipelines.graph import Graph, RunContext
from pipelines.snapshots import SnapshotStore, open_store
from pipelines.status import INTERVAL_S, OnStatus, Teller
from pipelines.transport import check_transports


def run_actors(
    graph: Graph,
    sources: Iterable[Source],
    context: RunContext,
    watch: Watch | None = None,
    address: str | None = None,
    on_status: OnStatus | None = None,
) -> Iterator[Result]:
    """Results of all sources: per stream in order, its StreamEnd last. No sources: none.

    Uses the cluster at `address`; without one, that which this process is connected to; without that, a local one which
    ends with the iterator. Closing the iterator early (Ctrl-C) ends actors and cluster too. Sources are taken from
    their iterable when there is room for them. `watch` sees every call's report.
    Raises: GraphError if the placement wants more than the cluster has; StageError if an actor cannot be made again.
    """
    if context.network and context.network.weights:  # workers live in other folders
        context = replace(context, network=replace(context.network, weights=context.network.weights.absolute()))
    with cluster(address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        placed = graph.placed(*totals(nodes, context))
        check_demand(placed, nodes, context)
        check_transports(placed)
        with _store(placed, context.mark) as store, _crew(placed, context) as crew:
            yield from _run(Flow(placed, sources, store), crew, watch, on_status)


@contextmanager
def _store(graph: Graph, mark: str | None) -> Iterator[SnapshotStore]:
    store = open_store(graph.recovery.store, mark)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def _crew(graph: Graph, context: RunContext) -> Iterator[Crew]:
    """All actors started and their stages built; killed at the end, whatever the end is."""
    crew = Crew(graph, context)
    try:
        crew.start()
        yield crew
    finally:
        crew.close()


def _run(flow: Flow, crew: Crew, watch: Watch | None, on_status: OnStatus | None) -> Iterator[Result]:
    teller = Teller(on_status, flow.status)
    while not flow.done or flow.results:
        for call in flow.calls():
            crew.submit(call)
        if flow.outputs:
            _fetch(flow, crew)
            continue  # there is room for other calls now: they come first
        while flow.results:
            yield flow.results.popleft()
        if not flow.done:
            due = flow.wait_s()
            for event in crew.wait(INTERVAL_S if due is None else min(due, INTERVAL_S)):
                _take(event, flow, watch)
            for group, replica in crew.overdue():
                flow.recoverer.move(flow.places[group][replica])
        teller.tell()
    teller.tell(now=True)


def _fetch(flow: Flow, crew: Crew) -> None:
    """What came out of the last group, here; what is lost is done again."""
    chunks, flow.outputs = list(flow.outputs), type(flow.outputs)()
    for chunk, records in zip(chunks, crew.fetch(chunks), strict=True):
        if records is not None:
            flow.delivered(chunk, records)
        elif not chunk.attempt.stale:
            flow.recoverer.rewind(chunk.attempt.stream)


def _take(event: Event, flow: Flow, watch: Watch | None) -> None:
    if isinstance(event, Finished):
        if watch:
            watch(event.outcome.report)
        flow.finished(event.call, event.outcome, event.data)
    elif isinstance(event, Built):
        flow.live(*event.spot)
    elif isinstance(event, Died):
        flow.died(*event.spot, event.why, event.blame)
    elif isinstance(event, Lost):
        flow.lost(event.call)
    else:
        flow.torn()
