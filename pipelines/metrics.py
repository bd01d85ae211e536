"""What a run on Ray counts and times, on the Prometheus port of every node of the cluster.

In:     the Report of every call, in the actor that made it; Status and Reports in the driver
Out:    the series of METRICS, which Ray exports under `ray_` and their names
State:  in an actor which streams have a series of their own; in the driver when the frames under way came in
Limits: MAX_STREAMS streams of an actor have series of their own, all later ones share OTHERS; MAX_OPEN are timed

Each update costs some microseconds; Ray brings new values to the port every ten seconds. Of a histogram it hands on how
many values fell into each bucket: `_sum` is made of the buckets' middles, so what is to be added up has a counter too.
What is done again after a death is counted again. docs/observability.md tells each series, and
configs/grafana/maskstream.json draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import ray
from ray.util.metrics import Counter, Gauge, Histogram

from operators.records import FrameFault
from pipelines.graph import Graph
from pipelines.reports import Report, Span
from pipelines.status import Status

MAX_STREAMS = 64
"""A series stays for as long as its actor. More: more streams are told apart, more series for Prometheus to hold."""
OTHERS = "(others)"
MAX_OPEN = 8192
MAX_TAG = 120
"""Characters of a tag's value."""

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
BATCHES = (1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0, 32.0, 64.0, 128.0)


@dataclass(frozen=True)
class Metric:
    """A family of series: one for each combination of its tags."""

    kind: Literal["counter", "gauge", "histogram"]
    tags: tuple[str, ...]
    help: str
    boundaries: tuple[float, ...] = ()
    """Of a histogram: upper ends of its buckets."""


METRICS = {
    "maskstream_stage_frames": Metric("counter", ("stage",), "Frames that a stage gave"),
    "maskstream_stage_bytes": Metric("counter", ("stage",), "Bytes of the records that a stage gave"),
    "maskstream_stage_seconds": Metric("histogram", ("stage",), "Wall time of one call of a stage", SECONDS),
    "maskstream_stage_busy_seconds": Metric("counter", ("stage",), "Wall time in a stage, all calls together"),
    "maskstream_stage_batch_frames": Metric("histogram", ("stage",), "Frames that one call of a stage gave", BATCHES),
    "maskstream_stage_state_bytes": Metric("gauge", ("stage",), "Size of the snapshots that were taken last"),
    "maskstream_stream_frames": Metric("counter", ("stage", "stream"), "Frames of a stream that left a group"),
    "maskstream_dropped_frames": Metric("counter", ("reason",), "Frames that did not come through"),
    "maskstream_failed_streams": Metric("counter", ("reason",), "Streams that ended before their last frame"),
    "maskstream_frame_seconds": Metric("histogram", (), "From decoding to the last stage's result, a frame", SECONDS),
    "maskstream_waiting_frames": Metric("gauge", ("group",), "Frames in the queue of a group of stages"),
    "maskstream_under_way_frames": Metric("gauge", ("group",), "Frames in calls of a group that are under way"),
    "maskstream_busy": Metric("gauge", ("group",), "Share of its time in which a replica worked, 0 to 1"),
    "maskstream_restarts": Metric("counter", ("group",), "Replicas that were made anew after a death"),
    "maskstream_rewinds": Metric("counter", (), "Streams that were restored and done again from a snapshot"),
    "maskstream_open_streams": Metric("gauge", (), "Streams under way"),
}
"""Name -> what it counts. `exported` has the names that Prometheus sees."""

UNDECODABLE, TORN_PACKET, LATE = "undecodable", "torn_packet", "queue_full"
"""Reasons of dropped frames: a frame that was reported, a packet that gave no frame, a live source's queue."""
SOURCE, STAGE, POISON = "source", "stage", "poison"
"""Reasons of failed streams: who failed, or that a frame killed its process again and again."""


class _Series:
    """The metrics of one process, each made when first needed: Ray may be connected later than this is made."""

    def __init__(self) -> None:
        self._made: dict[str, Counter | Gauge | Histogram] = {}

    def add(self, name: str, amount: float, **tags: str) -> None:
        if amount > 0:  # Ray refuses zero
            self._one(name).inc(amount, _ascii(tags))

    def set(self, name: str, value: float, **tags: str) -> None:
        self._one(name).set(value, _ascii(tags))

    def observe(self, name: str, value: float, **tags: str) -> None:
        self._one(name).observe(value, _ascii(tags))

    def _one(self, name: str) -> Counter | Gauge | Histogram:
        if name not in self._made:
            self._made[name] = _make(name, METRICS[name])
        return self._made[name]


class StageMetrics:
    """Counts what one group of stages does. One in each actor."""

    def __init__(self, stages: Sequence[str]) -> None:
        """`stages`: the names of the group's, in order."""
        self._last = stages[-1]
        self._series = _Series()
        self._streams: set[str] = set()

    def observe(self, report: Report) -> None:
        """One call's report. An empty one changes nothing."""
        for stage, calls in report.calls.items():
            self._calls(stage, calls, report)
        for stage, size in report.state_bytes.items():
            self._series.set("maskstream_stage_state_bytes", size, stage=stage)
        for stream, frames in report.streams.items():
            self._series.add("maskstream_stream_frames", frames, stage=self._last, stream=self._stream(stream))
        for event in report.events:
            if isinstance(event, FrameFault):
                self._series.add("maskstream_dropped_frames", 1, reason=UNDECODABLE)
            else:
                self._series.add("maskstream_dropped_frames", event.num_skipped, reason=TORN_PACKET)
                self._series.add("maskstream_failed_streams", int(event.fatal), reason=SOURCE)
        self._series.add("maskstream_failed_streams", len(report.failures), reason=STAGE)

    def _calls(self, stage: str, calls: int, report: Report) -> None:
        """A report sums over its calls, mostly one; of several each counts as their mean."""
        frames = report.frames.get(stage, 0)
        self._series.add("maskstream_stage_frames", frames, stage=stage)
        self._series.add("maskstream_stage_bytes", report.bytes.get(stage, 0), stage=stage)
        self._series.add("maskstream_stage_busy_seconds", report.seconds.get(stage, 0.0), stage=stage)
        for _ in range(calls):
            self._series.observe("maskstream_stage_seconds", report.seconds.get(stage, 0.0) / calls, stage=stage)
            self._series.observe("maskstream_stage_batch_frames", frames / calls, stage=stage)

    def _stream(self, stream: str) -> str:
        if stream not in self._streams and len(self._streams) >= MAX_STREAMS:
            return OTHERS
        self._streams.add(stream)
        return stream


class RunMetrics:
    """Counts what only the driver of a run sees: queues, deaths, and how long frames are under way.

    `watch` and `on_status` are what an executor takes. The former needs spans, that is `RunContext.trace`; times of
    different nodes are compared as their clocks are.
    """

    def __init__(self, graph: Graph, tell: Callable[[str], None] | None = None) -> None:
        """`tell` is told once, when the run has its cluster, where the metrics are."""
        self._tell = tell
        self._first, self._last = graph.stages[0].name, graph.stages[-1].name
        self._came_in: dict[str, dict[int, float]] = {}
        self._told = Status(())
        self._series = _Series()

    def watch(self, report: Report) -> None:
        """Note the frames that came in, and time those that came out."""
        for span in report.spans:
            if span.stage == self._first:
                self._note(span)
        for event in report.events:
            if isinstance(event, FrameFault):
                self._came_in.get(event.info.stream, {}).pop(event.info.index, None)
        for span in report.spans:
            if span.stage == self._last:
                self._time(span)
        for failure in report.failures:
            self._came_in.pop(failure.stream, None)

    def on_status(self, status: Status) -> None:
        """Where the run stands."""
        if self._tell:
            self._tell("metrics: " + " ".join(addresses()))
            self._tell = None
        series, before = self._series, {group.stages: group.restarts for group in self._told.groups}
        for group in status.groups:
            name = "+".join(group.stages)
            series.set("maskstream_waiting_frames", group.waiting, group=name)
            series.set("maskstream_under_way_frames", group.under_way, group=name)
            series.set("maskstream_busy", group.busy, group=name)
            series.add("maskstream_restarts", group.restarts - before.get(group.stages, 0), group=name)
        series.set("maskstream_open_streams", status.streams_open)
        series.add("maskstream_rewinds", status.rewinds - self._told.rewinds)
        series.add("maskstream_dropped_frames", status.dropped - self._told.dropped, reason=LATE)
        series.add("maskstream_failed_streams", status.set_aside - self._told.set_aside, reason=POISON)
        self._told = status

    def _note(self, span: Span) -> None:
        for stream, first, last in span.frames:
            if stream not in self._came_in and len(self._came_in) >= MAX_OPEN:
                self._came_in.pop(next(iter(self._came_in)))
            frames = self._came_in.setdefault(stream, {})
            for index in range(first, last + 1):
                frames.setdefault(index, span.start_s)  # of a frame that is done again the first time counts

    def _time(self, span: Span) -> None:
        for stream, first, last in span.frames:
            frames = self._came_in.get(stream, {})
            for index in range(first, last + 1):
                if (start_s := frames.pop(index, None)) is not None:
                    seconds = max(0.0, span.start_s + span.seconds - start_s)
                    self._series.observe("maskstream_frame_seconds", seconds)
            if not frames:
                self._came_in.pop(stream, None)


def addresses() -> list[str]:
    """Where the living nodes of the connected cluster export: ['http://10.0.0.4:8080/metrics', ...]."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    return [f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics" for node in nodes]


def exported(name: str) -> tuple[str, ...]:
    """The names under which Prometheus sees a metric of ours."""
    ends = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
    return tuple(f"ray_{name}{end}" for end in ends[METRICS[name].kind])


def _ascii(tags: dict[str, str]) -> dict[str, str]:
    """Values as Ray takes them, which is ASCII alone, and shortened: é is written \\xe9."""
    return {key: value.encode("ascii", "backslashreplace").decode()[:MAX_TAG] for key, value in tags.items()}


def _make(name: str, metric: Metric) -> Counter | Gauge | Histogram:
    if metric.kind == "histogram":
        return Histogram(name, metric.help, list(metric.boundaries), metric.tags)
    return {"counter": Counter, "gauge": Gauge}[metric.kind](name, metric.help, metric.tags)
