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
from pipelines.group import Report, StageGroup


def run_local(
    graph: Graph, sources: Iterable[Source], context: RunContext, watch: Watch | None = None
) -> Iterator[Result]:
    """Results of all sources: per stream in order, its StreamEnd last. No sources: none.

    A stage's failure ends its stream (StreamEnd with `fatal`), the others go on. Replicas make no difference here.
    """
    num_gpus = torch.cuda.device_count() if context.device != "cpu" else 0
    chain = _LocalChain(graph.placed(usable_cpus(), num_gpus), context)
    return drive(Schedule(sources, graph.batching), chain, graph.batching.in_flight, watch)


def num_threads(num_cpus: float) -> int:
    """Torch threads of a replica: its CPUs, at least one, never more than its machine has.

    Every executor asks here: sums that are split over another number of threads may differ in the last bit.
    """
    return max(1, min(int(num_cpus), usable_cpus()))


class _LocalChain:
    """All groups one after the other, each tick to its end."""

    def __init__(self, graph: Graph, context: RunContext) -> None:
        self._groups = [StageGroup(graph.group(p), context, num_threads(p.num_cpus)) for p in graph.placement]

    def submit(self, tick: Tick) -> tuple[list[FrameTracks], list[Report]]:
        records: list = list(tick.pulls)
        reports = []
        for group in self._groups:
            records, report = group.process(records, streams=tick.streams, closing=tick.closing)
            reports.append(report)
        return records, reports

    def collect(self, handle: tuple[list[FrameTracks], list[Report]]) -> tuple[list[FrameTracks], list[Report]]:
        return handle
