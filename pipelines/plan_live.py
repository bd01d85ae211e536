"""The live graph in this process with simulated cameras, and what its batches cost.

In:     a Graph, a RunContext, a short clip; how many cameras at which rate
Out:    Lab, in which they are run (plan_try.py); Service (plan_queue.py): what batches cost
State:  the Engine and its cameras, while a context lasts
Limits: a camera is a thread with one decoder and one frame; every measurement ends by a given time

A simulated camera plays the clip in a circle at its own rate: when a frame is due it is decoded, as that of a real
camera when its packet came, and put into the queue of its stream. Nothing else differs from what Ray Serve hosts: it
is the engine of pipelines/serving/engine.py.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

from operators.errors import StageError
from operators.formats import Categories
from operators.live.queue import LiveFrame, LiveQueue
from operators.live.states import SourceState
from operators.records import Frame, FrameInfo, FrameTracks, StreamEnd
from operators.sources import Source
from operators.video import VideoReader
from pipelines.graph import Graph, RunContext
from pipelines.plan_queue import Service, rates_of
from pipelines.reports import Report
from pipelines.serving.channel import Channel
from pipelines.serving.engine import Engine
from pipelines.serving.owned import Owned
from pipelines.serving.streams import Opening, Policy, StreamSpec

CLASSES = Categories.numbered(f"class {number}" for number in range(1000))
"""Nobody reads these results."""
PATIENCE_S = 120.0
"""Longest time for one batch, the first one's kernels and memory included."""


class SimulatedCamera:
    """A source for the engine: a clip in a circle, at `fps` frames a second, beginning at `phase` of a frame."""

    def __init__(self, name: str, clip: Source, fps: float, phase: float, queue: LiveQueue) -> None:
        self._name, self._clip, self._fps, self._phase, self._queue = name, clip, fps, phase, queue
        self._stopping = threading.Event()
        self._size = (0, 0)
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping.set()
        self._queue.close(discard=True)
        if self._thread.ident is not None and self._thread is not threading.current_thread():
            self._thread.join(5.0)

    def state(self) -> SourceState:
        return SourceState("stopped" if self._stopping.is_set() else "live", "", None, *self._size, self._fps, 0, 0)

    def _run(self) -> None:
        began, number = time.monotonic() + self._phase / self._fps, 0
        reader = VideoReader(self._clip)
        try:
            while not self._stopping.wait(max(0.0, began + number / self._fps - time.monotonic())):
                (record,) = reader.read(1)
                if isinstance(record, StreamEnd):
                    reader.close()
                    reader = VideoReader(self._clip)
                    continue
                due_at = time.time() - (time.monotonic() - began - number / self._fps)
                height, width, _ = record.image.shape
                self._size = width, height
                info = FrameInfo(self._name, number, number / self._fps, height, width)
                self._queue.put(LiveFrame(Frame(info, record.image), due_at))
                number += 1
        finally:
            reader.close()


class _ByHand:
    """A source that whoever measures fills."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def state(self) -> SourceState:
        return SourceState("live")


class _Noted(Channel):
    """Notes when results came, and how late; what a channel does beside that is a part of the cost."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(CLASSES, 0.5, 1280)
        self._lab = lab
        self.late_s: list[tuple[float, float]] = []
        """(when a result came, seconds after capture)."""

    def give(self, tracks: FrameTracks, captured_at: float | None, dropped: dict[str, int], frame: Frame | None
             ) -> None:  # fmt: skip
        super().give(tracks, captured_at, dropped, frame)
        self.late_s.append((time.time(), time.time() - (captured_at or time.time())))
        with self._lab.came:
            self._lab.num_results += 1
            self._lab.came.notify_all()


@dataclass
class _Costs:
    """Time of each stage in batches of one size."""

    frames: int = 0
    batches: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))


class Lab:
    """One engine, and what is asked of it. Made by `lab`."""

    def __init__(self, graph: Graph, context: RunContext, clip: Source) -> None:
        """All stages of `graph` are in its first group, whose amounts are known."""
        self.graph, self.clip = graph, clip
        self.cpus = float(graph.placement[0].num_cpus)
        self.came = threading.Condition()
        self.num_results = 0
        self.failure: str | None = None
        """What a stage failed of."""
        self.costs: dict[int, _Costs] = defaultdict(_Costs)
        self.engine = Engine(graph, context, CLASSES, lambda spec, queue: _ByHand(), watch=self._watch)
        self._channels: dict[str, _Noted] = {}
        self._serial, self._turns = itertools.count(), itertools.count()

    def new_name(self) -> str:
        """For a stream that none has had yet."""
        return f"stream-{next(self._serial)}"

    def turn(self) -> int:
        """0, 1, 2, ..."""
        return next(self._turns)

    def _watch(self, report: Report) -> None:
        if report.failures:
            self.failure = report.failures[0].reason
        frames = max(report.frames.values(), default=0)
        costs = self.costs[frames]
        costs.frames += frames
        costs.batches += 1
        for stage, seconds in report.seconds.items():
            costs.seconds[stage] += seconds

    def inside(self) -> dict[int, tuple[int, float]]:
        """Of batches since `costs` was cleared, by their frames: how many, and their mean time in the stages."""
        return {size: (costs.batches, sum(costs.seconds.values()) / costs.batches)
                for size, costs in dict(self.costs).items() if size and costs.batches}  # fmt: skip

    def open(self, name: str, queue: int, policy: Policy, camera: tuple[float, float] | None = None) -> Owned:
        """A stream; with `camera`, (rate, phase), one that plays the clip, else one that is filled by hand."""
        channel = self._channels[name] = _Noted(self)
        spec = StreamSpec(id=name, policy=policy, queue=queue)
        if camera is None:
            return self.engine.open(Opening(spec), channel=channel)
        return self.engine.open(
            Opening(spec), lambda spec, line: SimulatedCamera(name, self.clip, *camera, line), channel)

    def late_s(self, name: str) -> list[tuple[float, float]]:
        return self._channels[name].late_s

    def wait_for(self, num_results: int) -> None:
        """Raises StageError where the stages fail, or take for ever."""
        until = time.monotonic() + PATIENCE_S
        while self.num_results < num_results:
            with self.came:
                self.came.wait_for(lambda: self.num_results >= num_results, 0.5)
            failed = self.failure or self.engine.worker.error
            if failed:
                raise StageError(f"the stages failed while they were measured: {failed}")
            if time.monotonic() > until:
                raise StageError(f"no result of a batch within {PATIENCE_S:g} s: this graph is not for live streams "
                                 f"here.")  # fmt: skip


@contextmanager
def lab(graph: Graph, context: RunContext, clip: Source) -> Iterator[Lab]:
    """An engine with the first group of the graph, while the context lasts."""
    found = Lab(graph, context, clip)
    try:
        yield found
    finally:
        found.engine.stop()


# --------------------------------------------------------------------------------------------- what a batch costs


def frames_of(clip: Source) -> list[np.ndarray]:
    """All images of a clip."""
    reader, images = VideoReader(clip), []
    try:
        while not isinstance(record := reader.read(1)[0], StreamEnd):
            if isinstance(record, Frame):
                images.append(record.image)
    finally:
        reader.close()
    return images


def decode_seconds(clip: Source, repeats: int = 3) -> float:
    """CPU time of a frame in the thread that decodes it; the calmest of a few times."""
    times = []
    for _ in range(repeats):
        start = time.thread_time()
        frames = len(frames_of(clip))
        times.append((time.thread_time() - start) / max(frames, 1))
    return min(times)


def sizes_to_measure(most: int) -> list[int]:
    """Sizes of batches, the telling ones first: if time runs out, the others lie in between."""
    few = [1, most, max(most // 2, 1), 2, 4]
    return [size for size in dict.fromkeys([*few, *range(1, min(most, 16) + 1)]) if size <= most]


def measure(bench: Lab, seconds: float, cameras: int = 0, fps: float = 0.0) -> Service:
    """What batches of every size cost, turn about until the time is over; beside so many cameras that are decoded.

    At least one batch of 1 and a full one are measured, however long they take.
    """
    images, most = frames_of(bench.clip), bench.graph.batching.frames
    with ExitStack() as stack:
        streams = [bench.open(bench.new_name(), most, "drop_oldest") for _ in range(most)]
        for number, rate in enumerate(rates_of(cameras, fps) if cameras else ()):
            camera = SimulatedCamera(f"beside-{number}", bench.clip, rate, number / cameras, LiveQueue(1))
            stack.callback(camera.stop)
            camera.start()
        for stream in streams:
            stack.callback(bench.engine.remove, stream.id)
        times, busy, order = _turn_about(bench, streams, images, seconds)
    full = bench.costs[max(times)]
    stages = {stage: spent / full.frames for stage, spent in full.seconds.items()}
    inside = {size: seconds for size, (_, seconds) in bench.inside().items()}
    return Service(times, stages, decode_seconds(bench.clip), bench.cpus, busy, cameras, fps, inside, order)


def _turn_about(bench: Lab, streams: Sequence[Owned], images: list[np.ndarray], seconds: float
                ) -> tuple[dict[int, tuple[float, ...]], float, tuple[int, ...]]:  # fmt: skip
    """(times of batches by size, CPUs that were busy meanwhile, sizes in the order of measuring)."""
    sizes, most = sizes_to_measure(len(streams)), len(streams)
    feeder = _Feeder(bench, streams, images)
    for size in (1, most, 1):
        feeder.batch(size)                                      # kernels are chosen, memory is got
    bench.costs.clear()
    times: dict[int, list[float]] = defaultdict(list)
    order: list[int] = []
    until, wall, cpu = time.monotonic() + seconds, 0.0, 0.0
    while not times or time.monotonic() < until:
        for size in (each for other in sizes for each in dict.fromkeys((1, other))):    # few frames come together
            if len(times) >= min(2, len(sizes)) and time.monotonic() >= until:
                break
            start = time.process_time()
            spent = feeder.batch(size)
            times[size].append(spent)
            order.append(size)
            wall, cpu = wall + spent, cpu + time.process_time() - start
    return {size: tuple(own) for size, own in times.items()}, max(cpu / wall, 0.1), tuple(order)


class _Feeder:
    """Puts frames of several streams at hand at once."""

    def __init__(self, bench: Lab, streams: Sequence[Owned], images: list[np.ndarray]) -> None:
        self._bench, self._streams, self._images = bench, streams, images
        self._given = [0] * len(streams)
        self._turn = 0

    def batch(self, size: int) -> float:
        """Seconds until the last result of a batch of so many frames, one of each of so many streams."""
        before = self._bench.num_results
        with self._bench.engine.news:                           # the engine sees all of them, or none
            start = time.perf_counter()
            for _ in range(size):
                self._put(self._turn)
                self._turn = (self._turn + 1) % len(self._streams)
        self._bench.wait_for(before + size)
        return time.perf_counter() - start

    def _put(self, number: int) -> None:
        stream, index = self._streams[number], self._given[number]
        self._given[number] += 1
        image = self._images[(index + 5 * number) % len(self._images)]
        info = FrameInfo(stream.id, index, index / 10, *image.shape[:2])
        stream.queue.put(LiveFrame(Frame(info, image), time.time()))
