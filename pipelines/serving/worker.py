"""The thread in which a group of stages works: the same Replica as on Ray actors, asked for one batch after the other.

In:     Tasks, one for each stream of a batch, from `compose`, which waits for them
Out:    of each task what came of it, told to `task.done` in this thread
State:  the Replica's; since when the batch under way is worked on
Limits: one batch at a time
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from operators.records import FrameFault, StreamEnd
from pipelines.replica import Order, Replica
from pipelines.reports import Report, stream_of

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Done:
    """What came of a task."""

    records: list[Any]
    state: bytes | None = None
    """The snapshot that was asked for."""
    ended: StreamEnd | None = None
    """The source gave its last frame."""
    faults: tuple[FrameFault, ...] = ()
    failure: str | None = None
    """A stage failed on the stream: what it remembers is worth nothing."""


@dataclass(frozen=True)
class Task:
    """One stream's part of a batch."""

    order: Order
    records: Sequence[Any] = ()
    """What a later group takes; the first one pulls."""
    done: Callable[[Done], None] = lambda done: None


class Worker:
    """Build it, `start` it, `stop` it. One that is broken says so in `error`, and does nothing more."""

    def __init__(
        self, replica: Replica, compose: Callable[[], Sequence[Task]], watch: Callable[[Report], None]
    ) -> None:
        """`compose` gives the tasks of the next batch, at most one a stream; none after a while without any."""
        self._replica, self._compose, self._watch = replica, compose, watch
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maskstream-stages", daemon=True)
        self.busy_since: float | None = None
        """Monotonic time at which the batch under way began."""
        self.batches = 0
        self.seconds = 0.0
        """Time spent on them."""
        self.error: Exception | None = None

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """After the batch under way."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                tasks = self._compose()
                if tasks:
                    self.busy_since = time.monotonic()
                    self._batch(tasks)
                    self.seconds += time.monotonic() - self.busy_since
                    self.busy_since = None
                    self.batches += 1
        except Exception as error:              # nothing that a stream can cause: the process is to be replaced
            log.exception("the stages cannot go on")
            self.error = error

    def _batch(self, tasks: Sequence[Task]) -> None:
        orders, answers = [], []
        for task in tasks:
            if task.records:
                taken = (len(answers), None, 0, len(task.records))
                orders.append(_taking(task.order, taken))
                answers.append(task.records)
            else:
                orders.append(task.order)
        *records, outcome = self._replica.process(orders, *answers)
        self._watch(outcome.report)
        for number, task in enumerate(tasks):
            task.done(_done(task.order.stream, records[number], outcome.states[number], outcome.report))


def _taking(order: Order, taken: tuple[int, int | None, int, int]) -> Order:
    return replace(order, takes=(taken,))


def _done(stream: str, records: list[Any], state: bytes | None, report: Report) -> Done:
    events = [event for event in report.events if stream_of(event) == stream]
    failures = [failure for failure in report.failures if failure.stream == stream]
    for failure in failures:
        log.error("%s\n%s", failure.reason, failure.trace)
    return Done(
        records,
        state,
        ended=next((event for event in events if isinstance(event, StreamEnd)), None),
        faults=tuple(event for event in events if isinstance(event, FrameFault)),
        failure=failures[0].reason if failures else None,
    )
