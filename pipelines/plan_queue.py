"""How late frames come out if so many cameras are served: the queue in front of the graph, played through on paper.

In:     Service: how long the graph takes for a batch of each size, as measured; cameras and their rate
Out:    Forecast: latency, frames dropped, load
State:  none; random draws are seeded, so the same measurement gives the same forecast
Limits: MAX_FRAMES frames are played through

The model is the engine of pipelines/serving/engine.py: whenever the graph is free it takes the frames at hand of all
cameras, dealt out evenly, `batching.frames` at most; that takes the usual time of a batch of this size, times how much
longer or shorter measured batches took than the usual ones of theirs; a camera's queue that is full drops its oldest
frame. These factors come in the order in which they were measured, from somewhere in it: what slows a machine down
holds for many batches in a row, and a queue that has grown meanwhile is still there afterwards. Latency is from capture
to result. Cameras run on their own clocks: rates differ by DRIFT, so every order in which frames of two cameras can
come does come.

Decoding goes on beside the graph and takes CPU from it. The graph keeps `busy_cpus` of `cpus` busy; N cameras take
N * fps * decode_s; where that is more than there is, batches take longer by what is missing:

    stretch(N) = max(1, busy_cpus / (cpus - N * fps * decode_s))

A Service says beside how many cameras it was measured, so that only the difference is computed.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

DRIFT = 0.02
MAX_FRAMES = 40_000
MAX_S = 40.0
"""Seconds of each play; PLAYS of them, with other beginnings."""
PLAYS = 4
LEAST_FREE = 0.05
"""Of a CPU; where cameras leave less, nothing can be said but that it is too much."""


@dataclass(frozen=True)
class Service:
    """What was measured of the graph in one process."""

    seconds: Mapping[int, tuple[float, ...]]
    """Frames of a batch -> how long such batches took, from the frames at hand to their results."""
    stages_s: Mapping[str, float]
    """Time of one frame in each stage, in full batches."""
    decode_s: float
    """CPU time of one frame in its camera's thread."""
    cpus: float
    """CPUs that the process may use."""
    busy_cpus: float
    """How many of them a batch keeps busy, in the mean."""
    beside: int = 0
    """Cameras that were decoded while it was measured,"""
    beside_fps: float = 0.0
    """at this rate each."""
    inside_s: Mapping[int, float] = field(default_factory=dict)
    """Frames of a batch -> time in the stages alone, in the mean: to be compared with what a try took there."""
    order: tuple[int, ...] = ()
    """Frames of every batch, in the order of measuring: the n-th of a size is the n-th in `seconds`. () if unknown."""

    def stretch(self, cameras: float, fps: float) -> float:
        """How much longer a batch takes beside so many cameras than it did when it was measured."""
        return self._slowness(cameras * fps) / self._slowness(self.beside * self.beside_fps)

    def _slowness(self, decoded_fps: float) -> float:
        free = max(self.cpus - decoded_fps * self.decode_s, LEAST_FREE)
        return max(1.0, self.busy_cpus / free)

    def usual_s(self, frames: int) -> float:
        """The median of a batch of this size, measured or between two that were."""
        return float(np.median(samples_of(self.seconds, frames)))

    def slower(self, factor: float) -> Service:
        """The same where every batch takes `factor` times as long."""
        return replace(self, seconds={
            size: tuple(factor * one for one in times) for size, times in self.seconds.items()
        })  # fmt: skip

    def spread(self) -> np.ndarray:
        """Times of batches over the median of their size, in the order of measuring; of all sizes together, as a
        machine with other work holds up one batch as the next, and of each size alone there are few. Sizes with fewer
        than three are left out; [1] where nothing can be said; in no order where none is known."""
        own = {size: iter(np.asarray(times) / np.median(times)) for size, times in self.seconds.items()
               if len(times) >= 3}  # fmt: skip
        if not own:
            return np.ones(1)
        if self.order:
            return np.asarray([next(own[size]) for size in self.order if size in own])
        return np.random.default_rng(0).permutation(np.concatenate([list(ratios) for ratios in own.values()]))

    def capacity(self, most: int) -> float:
        """Frames a second at most, in batches of up to `most`, beside the cameras that were there."""
        return max(frames / self.usual_s(frames) for frames in range(1, most + 1))


def joined_services(services: Sequence[Service]) -> Service:
    """Several measurements of the same graph beside the same cameras as one; the last one's where they cannot be."""
    sizes = sorted({size for one in services for size in one.seconds})
    seconds = {size: tuple(took for one in services for took in one.seconds.get(size, ())) for size in sizes}
    inside = {
        size: float(np.mean([one.inside_s[size] for one in services if size in one.inside_s]))
        for size in sizes if any(size in one.inside_s for one in services)
    }  # fmt: skip
    busy = float(np.mean([one.busy_cpus for one in services]))
    order = tuple(size for one in services for size in one.order) if all(one.order for one in services) else ()
    return replace(services[-1], seconds=seconds, inside_s=inside, busy_cpus=busy, order=order)


@dataclass(frozen=True)
class Forecast:
    """What is expected of so many cameras."""

    cameras: int
    load: float
    """Frames that come, over the most that can be worked on: above 1 the queues stay full."""
    fps_out: float
    """Results a second, of all cameras together."""
    p50_s: float
    p95_s: float
    dropped: float
    """Share of the frames."""
    batch: float
    """Frames of a batch, in the mean."""

    def fits(self, p95_s: float, most_load: float) -> bool:
        return self.p95_s <= p95_s and self.load <= most_load and self.dropped <= 0.001


def samples_of(seconds: Mapping[int, tuple[float, ...]], frames: int) -> np.ndarray:
    """Times of batches of this size; of one that was not measured, its neighbours' quantiles, in between or beyond."""
    sizes = sorted(seconds)
    if frames in seconds:
        return np.asarray(seconds[frames])
    at = bisect.bisect_left(sizes, frames)
    low, high = (sizes[at - 1], sizes[at]) if 0 < at < len(sizes) else (sizes[0], sizes[-1])
    quantiles = np.linspace(0.05, 0.95, 10)
    first, last = (np.quantile(seconds[size], quantiles) for size in (low, high))
    if low == high:
        return first * frames / low
    return np.maximum(first + (last - first) * (frames - low) / (high - low), 1e-6)


def rates_of(cameras: int, fps: float) -> list[float]:
    """Each camera's own rate, within DRIFT of `fps`; their mean is `fps`."""
    if cameras == 1:
        return [fps]
    return [fps * (1 + DRIFT * (2 * number / (cameras - 1) - 1)) for number in range(cameras)]


def forecast(service: Service, cameras: int, fps: float, most: int, queue: int) -> Forecast:
    """What is expected of `cameras` of `fps` frames/s, in batches of up to `most`, each with a queue of `queue`."""
    slower = service.slower(service.stretch(cameras, fps))
    usual, spread = [slower.usual_s(size) for size in range(1, most + 1)], slower.spread()
    seconds = min(MAX_S, max(4 / fps, MAX_FRAMES / PLAYS / (cameras * fps)))
    plays = [_play(usual, spread, rates_of(cameras, fps), queue, seconds, seed) for seed in range(PLAYS)]
    latencies = np.concatenate([play.latencies for play in plays])
    p50, p95 = np.quantile(latencies, (0.5, 0.95)) if len(latencies) else (math.inf, math.inf)
    came = sum(play.came for play in plays)
    return Forecast(
        cameras=cameras,
        load=cameras * fps / slower.capacity(most),
        fps_out=len(latencies) / sum(play.seconds for play in plays),
        p50_s=float(p50),
        p95_s=float(p95),
        dropped=sum(play.dropped for play in plays) / max(came, 1),
        batch=len(latencies) / max(sum(play.batches for play in plays), 1),
    )


def most_that_fit(service: Service, fps: float, p95_s: float, most: int, queue: int, most_load: float,
                  most_cameras: int) -> int:  # fmt: skip
    """The largest number of cameras that fits, found by doubling and halving; 0 if not even one does."""

    def fits(cameras: int) -> bool:
        return forecast(service, cameras, fps, most, queue).fits(p95_s, most_load)

    good, bad = 0, 1
    while bad <= most_cameras and fits(bad):
        good, bad = bad, 2 * bad
    bad = min(bad, most_cameras + 1)
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


# ------------------------------------------------------------------------------------------------------------- a play


@dataclass(frozen=True)
class _Played:
    latencies: np.ndarray
    came: int
    dropped: int
    batches: int
    seconds: float


def _play(usual: list[float], spread: np.ndarray, rates: list[float], limit: int, seconds: float, seed: int
          ) -> _Played:  # fmt: skip
    """One run of so many seconds of capture; its first tenth is left out of the latencies.

    `usual`: seconds of a batch of 1, 2, ... frames; `spread`: factors for one batch after the other, in a circle. Each
    of PLAYS seeds begins in another part of it.
    """
    rng = np.random.default_rng(seed)
    factors = itertools.cycle(np.roll(spread, -(len(spread) * seed // PLAYS)).tolist())
    arrivals = _arrivals(rates, seconds, rng)
    queues: list[deque[float]] = [deque() for _ in rates]
    latencies: list[float] = []
    warm_s = seconds / 10
    now = 0.0
    at = dropped = batches = turn = came = waiting = 0
    while at < len(arrivals) or waiting:
        if not waiting:
            now = max(now, arrivals[at][0])
        while at < len(arrivals) and arrivals[at][0] <= now:
            when, camera = arrivals[at]
            queues[camera].append(when)
            if len(queues[camera]) > limit:
                queues[camera].popleft()
                dropped += when >= warm_s
                waiting -= 1
            at, waiting, came = at + 1, waiting + 1, came + (when >= warm_s)
        taken, turn = _dealt(queues, turn, len(usual))
        waiting -= len(taken)
        now += usual[len(taken) - 1] * next(factors)
        kept = [now - when for when in taken if when >= warm_s]
        batches += bool(kept)
        latencies += kept
    return _Played(np.asarray(latencies), came, dropped, batches, max(now, seconds) - warm_s)


def _arrivals(rates: list[float], seconds: float, rng: np.random.Generator) -> list[tuple[float, int]]:
    """(when, which camera) of every frame, in order of time."""
    phases = rng.random(len(rates))
    return sorted(
        ((phase + number) / rate, camera)
        for camera, (phase, rate) in enumerate(zip(phases, rates, strict=True))
        for number in range(max(int(seconds * rate), 1))
    )


def _dealt(queues: list[deque[float]], turn: int, most: int) -> tuple[list[float], int]:
    """Up to `most` frames, dealt out over the cameras that have some; and the camera that is first next time."""
    taken: list[float] = []
    order = [number % len(queues) for number in range(turn, turn + len(queues))]
    served: set[int] = set()
    while len(taken) < most:
        ready = [camera for camera in order if queues[camera]]
        if not ready:
            break
        for camera in ready[: most - len(taken)]:
            taken.append(queues[camera].popleft())
            served.add(camera)
    return taken, (turn + len(served)) % len(queues)
