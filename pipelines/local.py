"""Runs a Graph in this process: the default for files on one machine, and what the other executors are held against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from operators.cpus import usable_cpus
from operators.records import FrameTracks
from operators.sources import Source
from pipelines.batching import Schedule, Tick
from pipelines.drive import Result, Watch, drive
from pipelines.graph import Graph, RunContext
from pipelines.group import StageGroup
from pipelines.reports import Report
from pipelines.status import Ledger, OnStatus, Teller


def run_local(
    graph: Graph,
    sources: Iterable[Source],
    context: RunContext,
    watch: Watch | None = None,
    on_status: OnStatus | None = None,
) -> Iterator[Result]:
    """Results of all sources: per stream in order, its StreamEnd last. No sources: none.

    Sources are taken from their iterable when there is room for them. A stage's failure ends its stream (StreamEnd with
    `fatal`), the others go on. Replicas make no difference here.
    """
    num_gpus = torch.cuda.device_count() if context.device != "cpu" else 0
    placed = graph.placed(usable_cpus(), num_gpus)
    return _told(placed, Schedule(sources, graph.batching), _LocalChain(placed, context), watch, on_status)


def _told(
    graph: Graph, schedule: Schedule, chain: _LocalChain, watch: Watch | None, on_status: OnStatus | None
) -> Iterator[Result]:
    """The results, and where the run stands meanwhile."""
    ledger = chain.ledger
    teller = Teller(on_status, lambda passed_s: ledger.status(tuple(ledger.groups(passed_s)), schedule.num_open))
    for result in drive(schedule, chain, graph.batching.in_flight, watch, teller):
        ledger.gave(result)
        yield result
    teller.tell(now=True)


def num_threads(num_cpus: float) -> int:
    """Torch threads of a replica: its CPUs, at least one, never more than its machine has.

    Every executor asks here: sums that are split over another number of threads may differ in the last bit.
    """
    return max(1, min(int(num_cpus), usable_cpus()))


class _LocalChain:
    """All groups one after the other, each tick to its end."""

    def __init__(self, graph: Graph, context: RunContext) -> None:
        self._groups = [StageGroup(graph.group(p), context, num_threads(p.num_cpus)) for p in graph.placement]
        self.ledger = Ledger(graph)

    def submit(self, tick: Tick) -> tuple[list[FrameTracks], list[Report]]:
        records: list = list(tick.pulls)
        reports = []
        for number, group in enumerate(self._groups):
            records, report = group.process(records, streams=tick.streams, closing=tick.closing)
            self.ledger.add(number, report)
            reports.append(report)
        return records, reports

    def collect(self, handle: tuple[list[FrameTracks], list[Report]]) -> tuple[list[FrameTracks], list[Report]]:
        return handle
