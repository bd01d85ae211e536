"""The main job: sources through the graph into files, with a progress bar, a summary, and an orderly end.

In:     sources and the errors of those that are none, a Graph, and where and what to save
Out:    files in DIR/<source name>/; RunSummary: what became of every source, and where the time went
State:  the open outputs of the streams under way
Limits: at most `batching.streams` sources have open outputs at a time

A source that cannot be read, a stage that fails on it, or an output that cannot be written ends or marks that source;
the others finish. Ctrl-C and SIGTERM close all outputs: what was written until then stays valid.
"""

from __future__ import annotations

import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Literal

from operators.errors import SourceError
from operators.sources import Source, probe
from pipelines.drive import Result, Watch
from pipelines.graph import Graph, RunContext
from pipelines.group import Report
from pipelines.local import run_local
from pipelines.outputs import Files, Outputs, SourceSummary


@dataclass(frozen=True)
class RunSummary:
    sources: tuple[SourceSummary, ...]
    seconds: dict[str, float]
    """Busy time of each stage, summed over its replicas; 'outputs' is the writing of files."""
    frames: int
    start_s: float
    """Time until the first frame: the loading of weights, the start of a cluster."""
    wall_s: float
    """Time from the first frame to the end."""
    signal: int | None = None
    """The signal that cut the run short."""

    @property
    def exit_code(self) -> int:
        """0 when every source is done, 1 when one failed or was damaged, 128 + the signal of a run cut short."""
        if self.signal is not None:
            return 128 + self.signal
        return int(any(source.state != "done" for source in self.sources))


def run(
    sources: Sequence[Source],
    errors: Sequence[SourceError],
    graph: Graph,
    context: RunContext,
    outputs: Outputs,
    executor: Literal["local", "ray"] = "local",
    address: str | None = None,
    observer: Observer | None = None,
) -> RunSummary:
    """Run all sources; `errors` are those of arguments that were no source, and appear in the summary as failed.

    Raises: ConfigError, GraphError, CheckpointError before any work; StageError if a worker of the cluster dies, with
    all outputs closed.
    """
    observer = observer or Observer()
    usable, expected, failed = _probed(sources, errors, observer)
    start, meter, files, interrupts = _executor(executor, address), Meter(graph), Files(outputs, usable), Interrupts()
    if usable:
        observer.began(expected)
        with interrupts, closing(start(graph, usable, context, meter.add)) as results, files:
            try:
                for result in interrupts.each(results):
                    with meter.timed("outputs"):
                        files.take(result)
                    observer.saw(result, meter)
            except KeyboardInterrupt:
                pass  # the summary says so, and its exit code
    rows = (*failed, *files.summaries())
    frames = sum(row.frames + row.faults for row in rows)
    return RunSummary(rows, dict(meter.seconds), frames, meter.start_s, meter.wall_s, interrupts.number)


def _executor(name: str, address: str | None) -> Callable[..., Iterator[Result]]:
    if name == "local":
        return run_local
    # Here, because Ray takes two seconds to import; and before our signal handlers, because it brings its own.
    from pipelines.actors import run_actors

    def on_ray(graph: Graph, sources: Sequence[Source], context: RunContext, watch: Watch) -> Iterator[Result]:
        return run_actors(graph, sources, context, watch, address)

    return on_ray


def _probed(
    sources: Sequence[Source], errors: Sequence[SourceError], observer: Observer
) -> tuple[list[Source], int | None, list[SourceSummary]]:
    """Sources that open, how many frames they promise in all (None if one does not say), and the others as failed."""
    failed = [SourceSummary(getattr(error, "source", "?"), state="failed", note=str(error)) for error in errors]
    usable, expected = [], 0
    for source in sources:
        try:
            num_frames = probe(source).num_frames
        except SourceError as error:
            failed.append(SourceSummary(source.name, state="failed", note=str(error)))
        else:
            usable.append(source)
            expected = None if expected is None or num_frames is None else expected + num_frames
    for row in failed:
        observer.failed(row)
    return usable, expected, failed


class Observer:
    """What is shown while a run goes on; this one shows nothing."""

    def began(self, expected: int | None) -> None:
        """Work begins on so many frames; None if that is not known."""

    def failed(self, source: SourceSummary) -> None:
        """A source failed; the others go on."""

    def saw(self, result: Result, meter: Meter) -> None:
        """A result was written."""


class Meter:
    """Where the time goes: in all, and lately."""

    FADE = 0.9
    """Weight of the past at each report: some ten reports back count."""

    def __init__(self, graph: Graph) -> None:
        self._replicas = {name: group.replicas for group in graph.placement for name in group.stages}
        self._lately: dict[str, float] = {}
        self.seconds: dict[str, float] = defaultdict(float)
        self._made = time.perf_counter()
        self._first: float | None = None

    def add(self, report: Report) -> None:
        if self._first is None and report.seconds:
            self._first = time.perf_counter() - sum(report.seconds.values())
        for name, seconds in report.seconds.items():
            self._count(name, seconds)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._count(name, time.perf_counter() - start)

    def limiting(self) -> tuple[str, float]:
        """The stage that is busiest per replica lately, and its share of all busy time; ('', 0) before any report."""
        total = sum(self._lately.values())
        if not total:
            return "", 0.0
        name = max(self._lately, key=lambda stage: self._lately[stage])
        return name, self._lately[name] / total

    @property
    def start_s(self) -> float:
        return (self._first or time.perf_counter()) - self._made

    @property
    def wall_s(self) -> float:
        return time.perf_counter() - (self._first or time.perf_counter())

    def _count(self, name: str, seconds: float) -> None:
        self.seconds[name] += seconds
        share = seconds / self._replicas.get(name, 1)
        self._lately[name] = self.FADE * self._lately.get(name, 0.0) + (1 - self.FADE) * share


class Interrupts:
    """Ctrl-C and SIGTERM as KeyboardInterrupt, but only while results are waited for, never within a file's write.

    The first signal counts; later ones are let go, because what is left to do is to close files. In a thread other than
    the main one, where Python knows no signals, this does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None
        self._waiting = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def each(self, results: Iterator[Result]) -> Iterator[Result]:
        """The results, until a signal comes. Raises: KeyboardInterrupt then."""
        while True:
            self._waiting = True
            try:
                if self.number is not None:
                    raise KeyboardInterrupt
                result = next(results, None)
            finally:
                self._waiting = False
            if result is None:
                return
            yield result

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if self._waiting:
                raise KeyboardInterrupt
