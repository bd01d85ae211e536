"""What a graph costs beside the network it carries: frames/s, overhead, latency and bytes moved, way by way.

    python -m benchmarks.graph [--network configs/networks/crossvis_r50.yaml] [--graph configs/graphs/offline.yaml]
                               [--frames 96] [--streams 1,4,16] [--turns 3] [--ways bare,local,fused,split]
                               [--size 360x640] [--threads 2] [--device auto]

The same generated video goes through the same stages in one run of this command, way after way, turn after turn, so
that a busy machine slows all alike:

    bare loop           the stages called one after the other, nothing else: what the network costs by itself
    in-process          `run_local`, as `maskstream run` does
    Ray, fused          one actor holds all stages
    Ray, split after X  two actors; what X gives travels from one to the other. One for each edge of the graph

`--frames` are those of one run, shared out over its streams. Rates are taken after the first quarter, when actors are
up and kernels made; latency is from the call that decodes a frame to its result; overhead is against the bare loop of
the same turn. Medians over the turns. Every actor has `--threads` torch threads, also where two of them share the
machine's CPUs: that is what a split on one machine is. Weights are random where the network's file names none.
Bytes are those of the records that went from one process to another; the memory of a stream is what its snapshot holds.
"""

from __future__ import annotations

import argparse
import datetime
import logging
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as pipelines/cli.py, and for all actors

import numpy as np  # noqa: E402
import torch  # noqa: E402

from benchmarks.network import processor  # noqa: E402
from operators.cpus import usable_cpus  # noqa: E402
from operators.records import Frame, FrameFault, FrameTracks, Pull, StreamEnd  # noqa: E402
from operators.shapes import ShapesConfig, generate_clip  # noqa: E402
from operators.sources import Source  # noqa: E402
from operators.video_writer import write_video  # noqa: E402
from pipelines.drive import Result, Watch  # noqa: E402
from pipelines.graph import Graph, RunContext, load_graph  # noqa: E402
from pipelines.graph_bytes import some_weights  # noqa: E402
from pipelines.local import run_local  # noqa: E402
from pipelines.networks import read_network  # noqa: E402
from pipelines.placement import Placement  # noqa: E402
from pipelines.reports import Report, Span  # noqa: E402
from pipelines.stage import Stage  # noqa: E402
from pipelines.stages import STAGES  # noqa: E402

WAYS = ("bare", "local", "fused", "split")
BATCH = 8
"""Frames of a call; with more streams one of each."""
BARE = "bare loop"
Executor = Callable[[Graph, Sequence[Source], RunContext, Watch], Iterator[Result]]


@dataclass(frozen=True)
class Way:
    """One way to run the graph."""

    name: str
    graph: Graph
    start: Executor


@dataclass
class Reading:
    """What one run of one way gave."""

    rate: float
    """Frames/s."""
    latencies: list[float]
    """Seconds, of the frames that count."""
    bytes: float
    """Of a frame, between processes."""
    state: dict[str, int] = field(default_factory=dict)
    """Stage -> bytes of its snapshot of one stream; of the bare loop alone."""


class Clock:
    """Times of results, and of the calls that decoded them."""

    def __init__(self, graph: Graph) -> None:
        self._first = graph.stages[0].name
        self._edges = {group.stages[-1] for group in graph.placement[:-1]}
        self._begun: dict[tuple[str, int], float] = {}
        self._bytes = 0
        self.times: list[float] = []
        self.latencies: list[float] = []
        self.state: dict[str, int] = {}

    def watch(self, report: Report) -> None:
        self._bytes += sum(size for stage, size in report.bytes.items() if stage in self._edges)
        for span in report.spans:
            if span.stage == self._first:
                for stream, first, last in span.frames:
                    self._begun |= {(stream, index): span.start_s for index in range(first, last + 1)}
        self.state |= report.state_bytes

    def saw(self, result: Result) -> None:
        if isinstance(result, FrameTracks):
            now = time.time()
            self.times.append(now)
            self.latencies.append(now - self._begun.pop((result.info.stream, result.info.index), now))

    def reading(self) -> Reading:
        """Without the first quarter. Raises ValueError for less than two frames that count."""
        count = len(self.times)
        warm = max(count // 4, 1)
        if count - warm < 2:
            raise ValueError(f"{count} frames came out, too few to measure; take more --frames")
        rate = (count - warm) / (self.times[-1] - self.times[warm - 1])
        return Reading(rate, self.latencies[warm:], self._bytes / count, self.state)


def bare_loop(graph: Graph, sources: Sequence[Source], context: RunContext, watch: Watch) -> Iterator[Result]:
    """Every stage called with a few frames of each stream, until all have ended."""
    stages = [spec.kind.build(spec.settings, context) for spec in graph.stages]
    keyed = [number for number, spec in enumerate(graph.stages) if spec.kind.stateful]
    for source in sources:
        for number in keyed:
            stages[number].open(source.name)
    running = {source.name: source for source in sources}
    while running:
        start_s = time.time()
        share = max(graph.batching.frames // len(running), 1)
        given = stages[0]([Pull(source, share) for source in running.values()])
        frames = tuple((one.info.stream, one.info.index, one.info.index) for one in given if isinstance(one, Frame))
        watch(Report(spans=(Span(graph.stages[0].name, "", start_s, 0.0, frames),)))
        yield from _through(stages[1:], given)
        for end in (one for one in given if isinstance(one, StreamEnd)):
            sizes = {graph.stages[number].name: len(stages[number].snapshot(end.stream)) for number in keyed}
            watch(Report(state_bytes=sizes))
            for number in keyed:
                yield from _through(stages[number + 1 :], stages[number].close(end.stream))
            del running[end.stream]


def _through(stages: Sequence[Stage], records: list[Any]) -> list[Any]:
    """The records after these stages; faults and ends are left out."""
    records = [record for record in records if not isinstance(record, (FrameFault, StreamEnd))]
    for stage in stages if records else ():
        records = stage(records)
    return records


def ways(graph: Graph, names: Sequence[str], threads: int) -> list[Way]:
    """Those that are asked for, in the order in which they are told; the bare loop always, to compare with."""
    stages = tuple(stage.name for stage in graph.stages)

    def placed(*groups: tuple[str, ...]) -> Graph:
        return replace(graph, placement=tuple(Placement(stages=group, num_cpus=float(threads)) for group in groups))

    found = [Way(BARE, placed(stages), bare_loop)]
    if "local" in names:
        found.append(Way("in-process", placed(stages), run_local))
    if "fused" in names:
        found.append(Way("Ray, fused", placed(stages), _on_ray))
    if "split" in names:
        found += [
            Way(f"Ray, split after {stages[i - 1]}", placed(stages[:i], stages[i:]), _on_ray)
            for i in range(1, len(stages))
        ]
    return found


def _on_ray(graph: Graph, sources: Sequence[Source], context: RunContext, watch: Watch) -> Iterator[Result]:
    from pipelines.actors import run_actors

    return run_actors(graph, sources, context, watch)


def measure(way: Way, sources: Sequence[Source], context: RunContext) -> Reading:
    clock = Clock(way.graph)
    with closing(way.start(way.graph, sources, replace(context, trace=True), clock.watch)) as results:
        for result in results:
            if isinstance(result, StreamEnd) and result.error:
                raise ValueError(f"{way.name}, stream '{result.stream}': {result.error}")
            clock.saw(result)
    return clock.reading()


def table(readings: dict[str, list[Reading]]) -> str:
    """Markdown, a row for each way; the first is what the others are held against."""
    base = next(iter(readings.values()))
    lines = [
        "| way | frames/s | of the bare loop | overhead, ms a frame | latency p50 / p95 / p99, ms | moved, MB/frame |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, turns in readings.items():
        pairs = list(zip(turns, base, strict=True))
        share = statistics.median(one.rate / bare.rate for one, bare in pairs)
        overhead = statistics.median(1000 / one.rate - 1000 / bare.rate for one, bare in pairs)
        waits = np.percentile([1000 * wait for one in turns for wait in one.latencies], (50, 95, 99))
        rate = statistics.median(one.rate for one in turns)
        moved = statistics.median(one.bytes for one in turns) / 1e6
        latency = " / ".join(f"{wait:.0f}" for wait in waits)
        lines.append(f"| {name} | {rate:.2f} | {share:.1%} | {overhead:+.2f} | {latency} | {moved:.3f} |")
    return "\n".join(lines)


def memory(readings: dict[str, list[Reading]]) -> str:
    """What is kept of one stream, stage by stage."""
    state = readings[BARE][0].state
    parts = ", ".join(f"{stage} {size:,} bytes" for stage, size in state.items())
    return f"memory of one stream (its snapshot): {sum(state.values()):,} bytes ({parts or 'no stage remembers'})"


@contextmanager
def clips(frames: int, streams: Sequence[int], size: tuple[int, int]) -> Iterator[dict[int, list[Source]]]:
    """For each number of streams its sources: one video, as often as there are streams."""
    height, width = size
    with tempfile.TemporaryDirectory(prefix="maskstream-") as folder:
        found = {}
        for count in streams:
            config = ShapesConfig(width=width, height=height, num_frames=max(frames // count, 4), full_occlusions=0,
                                  re_entries=0)  # fmt: skip
            path = write_video(Path(folder) / f"{count}.mp4", generate_clip(config, 7, 0).frames, config.fps)
            found[count] = [Source(f"stream-{i}", "video", str(path)) for i in range(count)]
        yield found


@contextmanager
def _cluster(needed: bool, cpus: int) -> Iterator[str]:
    """A local Ray for all runs; gives its version. Ray's own start is no part of what is measured."""
    if not needed:
        yield "without Ray"
        return
    import ray

    ray.init(address="local", num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR,
             _system_config={"worker_niceness": 0})  # fmt: skip
    try:
        yield f"Ray {ray.__version__}"
    finally:
        ray.shutdown()


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="configs/networks/crossvis_r50.yaml")
    parser.add_argument("--graph", default="configs/graphs/offline.yaml")
    parser.add_argument("--frames", type=int, default=96, help="of one run, all streams together")
    parser.add_argument("--streams", default="1,4,16", help="how many, one table each")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ways", default=",".join(WAYS), help="which to run beside the bare loop (default: all)")
    parser.add_argument("--size", default="360x640", help="height x width of the video")
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of torch, in each process")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    args = parser.parse_args(words)
    args.size = size_of(parser, args.size)
    try:
        args.streams = tuple(int(count) for count in args.streams.split(","))
    except ValueError:
        parser.error("--streams: expected numbers, as in 1,4,16")
    args.ways = tuple(args.ways.split(","))
    if unknown := set(args.ways) - set(WAYS):
        parser.error(f"--ways: unknown are {', '.join(sorted(unknown))}; expected some of {', '.join(WAYS)}")
    if not all(1 <= count <= 256 for count in args.streams) or args.turns < 1 or args.threads < 1:
        parser.error("expected 1 to 256 streams, at least one turn and one thread")
    if not 4 <= args.frames <= 10_000:
        parser.error("--frames: expected 4 to 10000")
    return args


def size_of(parser: argparse.ArgumentParser, text: str) -> tuple[int, int]:
    """Height and width. Ends the program for anything else."""
    sides = text.split("x")
    if len(sides) != 2 or not all(side.isascii() and side.isdigit() and 64 <= int(side[:5]) <= 4096 for side in sides):
        parser.error("--size: expected height x width, two sides of 64 to 4096 pixels, as in 360x640")
    return int(sides[0]), int(sides[1])


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    torch.set_num_threads(args.threads)
    graph = load_graph(args.graph, STAGES)
    names, on_ray = set(args.ways), {"fused", "split"} & set(args.ways)
    with (
        some_weights(read_network(args.network)) as spec,
        clips(args.frames, args.streams, args.size) as sources,
        _cluster(bool(on_ray), 2 * args.threads) as ray_version,
    ):
        print(
            f"{args.network}, {args.graph}, video {args.size[0]}x{args.size[1]}, {args.frames} frames a run, medians "
            f"of {args.turns} turns; {datetime.date.today()}; {processor()}, {args.threads} threads, Python "
            f"{platform.python_version()}, torch {torch.__version__}, {ray_version}"
        )
        for count in args.streams:
            batching = replace(graph.batching, streams=count, frames=max(BATCH, count))
            chosen = ways(replace(graph, batching=batching), tuple(names), args.threads)
            readings = _turns(chosen, sources[count], RunContext(spec, args.device), args.turns)
            print(f"\n## {count} stream{'s' * (count > 1)}\n\n{table(readings)}\n\n{memory(readings)}", flush=True)
    return 0


def _turns(
    chosen: Sequence[Way], sources: Sequence[Source], context: RunContext, turns: int
) -> dict[str, list[Reading]]:
    readings: dict[str, list[Reading]] = {way.name: [] for way in chosen}
    for turn in range(turns):
        for way in chosen:
            said = f"{len(sources)} streams, turn {turn + 1} of {turns}: {way.name}"
            print(f"\r{said:<70}", end="", file=sys.stderr, flush=True)
            readings[way.name].append(measure(way, sources, context))
    print(file=sys.stderr)
    return readings


if __name__ == "__main__":
    sys.exit(main())
