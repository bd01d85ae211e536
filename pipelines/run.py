"""The main job: sources through the graph into files, with progress, a summary, and an orderly end.

In:     sources and the errors of those that are none, a Graph, where and what to save, and what was done before
Out:    files in DIR/<source name>/; RunSummary: what became of every source, and where the time went
State:  the open outputs of the streams under way; on the disk the manifest of what is done
Limits: at most `batching.streams` sources are open at a time, and only they have been looked into

A source that cannot be read, a stage that fails on it, or an output that cannot be written ends or marks that source;
the others finish. Ctrl-C and SIGTERM close all outputs: what was written until then stays valid, in DIR/unfinished/.
Killed outright at any moment and run again, it leaves the same bytes as if it had never been killed (manifest.py).
"""

from __future__ import annotations

import re
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from operators.errors import ConfigError, SourceError
from operators.live.stage import LiveConfig
from operators.replacing import replacing
from operators.sources import Source
from pipelines.drive import Result, Watch
from pipelines.graph import Graph, RunContext
from pipelines.interrupts import Interrupts
from pipelines.local import run_local
from pipelines.manifest import Manifest
from pipelines.outputs import Files, Outputs
from pipelines.reports import Report
from pipelines.status import OnStatus, Status
from pipelines.stream_outputs import SourceSummary

MARK_FILE = ".snapshots"
"""In the folder of a run on Ray whose snapshots outlive it: under which name they lie."""


@dataclass(frozen=True)
class RunSummary:
    sources: tuple[SourceSummary, ...]
    seconds: dict[str, float]
    """Busy time of each stage, summed over its replicas; 'outputs' is the writing of files."""
    frames: int
    """Of the sources that were run now."""
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
    manifest: Manifest | None = None,
    watches: Sequence[Watch] = (),
) -> RunSummary:
    """Run all sources that `manifest` does not say are done; `errors` are those of arguments that were no source, and
    appear in the summary as failed. Every report of a stage goes to `watches` too.

    Raises: ConfigError, GraphError, CheckpointError before any work; StageError if the run cannot go on, with all
    outputs closed.
    """
    refuse_live(graph)
    graph.check(context)
    observer = observer or Observer()
    unusable = [SourceSummary(getattr(error, "source", "?"), state="failed", note=str(error)) for error in errors]
    start, meter, interrupts = _executor(executor, address), Meter(graph), Interrupts()
    files = Files(outputs, sources, manifest, unusable)
    observer.began(files.remaining, files.summaries())
    each = _each_report((meter.add, *watches))
    with _mark_of_snapshots(outputs.directory, graph, executor) as mark:
        results = start(graph, _handed_out(files, observer), replace(context, mark=mark), each, observer.status)
        if not files.remaining:
            results = (result for result in ())  # no weights are loaded, no cluster is started
        with interrupts, closing(results), files:  # files first: actors and clusters take their time
            _write(interrupts.each(results), files, observer, meter)
    rows = files.summaries()
    frames = sum(row.frames + row.faults for row in rows if not row.before)
    return RunSummary(rows, dict(meter.seconds), frames, meter.start_s, meter.wall_s, interrupts.number)


def refuse_live(graph: Graph) -> None:
    """Raises ConfigError for a graph of cameras: over files its first stage would wait for ever."""
    first = graph.stages[0]
    if isinstance(first.settings, LiveConfig):
        raise ConfigError(f"stage '{first.name}' receives frames of cameras, which `maskstream serve` connects; over "
                          f"files the graph has to begin with 'decode'. Take --graph configs/graphs/offline.yaml, or "
                          f"leave --graph out.")  # fmt: skip


def replicated(graph: Graph, replicas: int | None) -> Graph:
    """The graph with so many times the replicas in every group, and as many more streams open: whole videos side by
    side. None: as it is. Raises ConfigError for none, or more than a graph may have."""
    if replicas is None:
        return graph
    try:
        placement = tuple(replace(group, replicas=group.replicas * replicas) for group in graph.placement)
        batching = replace(graph.batching, streams=graph.batching.streams * replicas)
    except ValueError as error:
        raise ConfigError(f"--replicas {replicas}: {error}") from error
    return replace(graph, placement=placement, batching=batching)


@contextmanager
def _mark_of_snapshots(directory: Path, graph: Graph, executor: str) -> Iterator[str | None]:
    """Under which name the run keeps snapshots where they outlive it: that of the run before into this folder if it was
    killed, so that what it left is removed with what this one leaves."""
    if executor != "ray" or graph.recovery.store == "object_store":
        yield None
        return
    path = directory / MARK_FILE
    try:
        found = path.read_text(encoding="ascii", errors="replace") if path.exists() else ""
        mark = found if re.fullmatch(r"[0-9a-f]{32}", found) else uuid.uuid4().hex
        with replacing(path) as part:
            part.write_text(mark, encoding="ascii")
    except OSError as error:
        raise ConfigError(f"'{path}' cannot be written: {error.strerror}.") from error
    try:
        yield mark
    finally:
        path.unlink(missing_ok=True)


def _handed_out(files: Files, observer: Observer) -> Iterator[Source]:
    """The sources, when the executor has room for them."""
    for source in files.remaining:
        files.begins(source)
        observer.begins(source)
        yield source


def _write(results: Iterator[Result], files: Files, observer: Observer, meter: Meter) -> None:
    try:
        for result in results:
            with meter.timed("outputs"):
                files.take(result)
            observer.saw(result, meter)
    except KeyboardInterrupt:
        pass  # the summary says so, and its exit code


def _each_report(watches: Sequence[Watch]) -> Watch:
    def watch(report: Report) -> None:
        for each in watches:
            each(report)

    return watch


def _executor(name: str, address: str | None) -> Callable[..., Iterator[Result]]:
    if name == "local":
        return run_local
    # Here, because Ray takes two seconds to import; and before our signal handlers, because it brings its own.
    from pipelines.actors import run_actors

    def on_ray(
        graph: Graph, sources: Iterable[Source], context: RunContext, watch: Watch, on_status: OnStatus
    ) -> Iterator[Result]:
        return run_actors(graph, sources, context, watch, address, on_status)

    return on_ray


class Observer:
    """What is shown while a run goes on; this one shows nothing."""

    def began(self, sources: Sequence[Source], told: Sequence[SourceSummary]) -> None:
        """Work begins on `sources`; `told` has a row for each argument, and says which failed or were done before."""

    def begins(self, source: Source) -> None:
        """A source is about to be opened."""

    def saw(self, result: Result, meter: Meter) -> None:
        """A result was written."""

    def status(self, status: Status) -> None:
        """Where the executor stands, now and then."""


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

    def limiting(self, stages: Sequence[str] | None = None) -> tuple[str, float]:
        """The stage that is busiest per replica lately, of `stages` or of all, and its share of all busy time; ('', 0)
        before any report."""
        total = sum(self._lately.values())
        known = [name for name in self._lately if stages is None or name in stages]
        if not total or not known:
            return "", 0.0
        name = max(known, key=lambda stage: self._lately[stage])
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
