"""A group of stages as an actor holds it: takes what it is told of each stream, gives records by stream and an Outcome.

In:     Orders, one for each stream of a call, and the answers of earlier calls in which their records are
Out:    of each order its records, as small as they can be sent; then the Outcome for the driver
State:  the StageGroup's; all of it can be made again from snapshots
Limits: calls come one after the other, in the order in which the driver made them

Plain Python: `pipelines/crew.py` makes actors of it, tests call it as it is.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from operators.records import Pull
from operators.sources import Source
from pipelines.graph import RunContext, StageSpec
from pipelines.group import StageGroup
from pipelines.local import num_threads
from pipelines.reports import Failure, Report, stream_of
from pipelines.streams import Outcome, Part
from pipelines.weight import compact


@dataclass(frozen=True)
class Order:
    """What to do of one stream. A Part, as it travels."""

    stream: str
    source: Source | None = None
    """With the first pull alone: a folder's list of files need not travel with every few frames."""
    count: int = 0
    """Frames to pull."""
    takes: tuple[tuple[int, int | None, int, int], ...] = ()
    """(which answer, which of its items or None for all of it, first record, behind the last record)."""
    first: bool = False
    """Forget what is known of the stream, and begin from `state`, or from nothing."""
    state: bytes | None = None
    snapshot: bool = False
    closing: bool = False


def orders_of(parts: Sequence[Part]) -> tuple[list[Order], list[Any]]:
    """The orders of a call, and references to the answers that they take from, each once."""
    references: dict[Any, int] = {}
    orders = []
    for part in parts:
        stream, takes = part.attempt.stream, []
        for chunk in part.chunks:
            if chunk.data is not None:
                number = references.setdefault(chunk.data.reference, len(references))
                takes.append((number, chunk.data.item, chunk.start, chunk.start + len(chunk.frames)))
        source = stream.source if part.first and part.count else None
        snapshot = part.border is not None
        orders.append(
            Order(stream.name, source, part.count, tuple(takes), part.first, part.state, snapshot, part.closing)
        )
    return orders, list(references)


class Replica:
    """One StageGroup and its streams."""

    def __init__(
        self, specs: tuple[StageSpec, ...], context: RunContext, num_cpus: float, keep_device: bool = False
    ) -> None:
        """`keep_device`: records leave on the device on which they were made; else on the host."""
        self._specs, self._context, self._num_cpus, self._keep_device = specs, context, num_cpus, keep_device
        self._keyed = any(spec.kind.stateful for spec in specs)
        self._group: StageGroup | None = None
        self._metrics: Any = None
        self._told: tuple[int, Outcome | Exception | None] = (-1, None)

    def build(self) -> None:
        """Build the stages; not in __init__, out of which Ray brings errors only as text."""
        self._group = StageGroup(self._specs, self._context, num_threads(self._num_cpus))
        if self._context.metrics:
            from pipelines.metrics import StageMetrics  # where it is used alone: it counts in this process

            self._metrics = StageMetrics([spec.name for spec in self._specs])

    def process(self, orders: Sequence[Order], *answers: Any) -> list[Any]:
        """[records of the first order, ... of the last, Outcome]."""
        assert self._group is not None, "build() comes first"
        streams = [order.stream for order in orders]
        # without memory nothing of a stream is to be kept from call to call, not even that it failed
        closing = [order.stream for order in orders if order.closing] if self._keyed else streams
        records, report = self._group.process(
            *(self._records(order, answers) for order in orders),
            streams=streams,
            closing=closing,
            begin={order.stream: order.state for order in orders if order.first},
        )
        given: dict[str, list[Any]] = defaultdict(list)
        for record in records:
            given[stream_of(record)].append(compact(record, self._keep_device))
        states, report = self._states(orders, report)
        if self._metrics is not None:
            self._metrics.observe(report)
        frames = tuple(tuple(record.info.index for record in given[stream]) for stream in streams)
        return [*(given[stream] for stream in streams), Outcome(report, frames, states)]

    def process_and_keep(self, number: int, orders: Sequence[Order], *answers: Any) -> list[Any]:
        """The records alone: with a tensor transport a call has one answer, whose tensors stay here until fetched."""
        try:
            *records, outcome = self.process(orders, *answers)
        except Exception as error:
            self._told = (number, error)
            raise
        self._told = (number, outcome)
        return records

    def told(self, number: int) -> Outcome | None:
        """The Outcome of the call before; None if that never began, because what it was to take is lost.

        Raises: what that raised.
        """
        last, outcome = self._told
        if isinstance(outcome, Exception):
            raise outcome
        return outcome if last == number else None

    def _records(self, order: Order, answers: Sequence[Any]) -> list[Any]:
        if order.count:
            return [Pull(order.source or order.stream, order.count)]
        found = []
        for number, item, start, stop in order.takes:
            answer = answers[number] if item is None else answers[number][item]
            found += answer[start:stop]
        return found

    def _states(self, orders: Sequence[Order], report: Report) -> tuple[tuple[bytes | None, ...], Report]:
        """The snapshots that were asked for; a stage that cannot give one fails on the stream."""
        states: list[bytes | None] = []
        failures, sizes = list(report.failures), defaultdict(int)
        for order in orders:
            states.append(None)
            if order.snapshot and self._keyed and not self._group.failed(order.stream):
                try:
                    states[-1] = self._group.snapshot(order.stream)
                except Exception as error:
                    stages = ", ".join(spec.name for spec in self._specs)
                    said = f"{stages}, stream '{order.stream}', when its state was to be kept: {error!r}"
                    failures.append(Failure(order.stream, said))
                    continue
                for stage, size in json.loads(states[-1].partition(b"\n")[0]):
                    sizes[stage] += size
        return tuple(states), replace(report, failures=tuple(failures), state_bytes=dict(sizes))
