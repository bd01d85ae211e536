"""What simulated cameras at their own rates really give: to hold a forecast against, and for benchmarks.

In:     a Lab (plan_live.py); how many cameras, at which rate, for how long
Out:    LiveReading: rates, latencies, drops, and whether the counters add up
State:  none; cameras are removed again
Limits: a try ends after its warm-up and its seconds
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipelines.plan_live import Lab
from pipelines.plan_queue import Service, rates_of
from pipelines.serving.owned import Owned
from pipelines.serving.streams import Policy


@dataclass(frozen=True)
class LiveReading:
    """What so many simulated cameras gave, after the warm-up."""

    cameras: int
    seconds: float
    fps_in: float
    """Frames a second that came, of all cameras together."""
    fps_out: float
    p50_s: float
    p95_s: float
    dropped: float
    """Share of the frames that came."""
    worst_share: float
    """Of the camera that fared worst: its results over its part of all results."""
    add_up: bool
    """frames in = out + dropped + in flight, of every camera, whenever it was looked."""
    inside: Mapping[int, tuple[int, float]] = field(default_factory=dict)
    """Frames of a batch -> how many there were, and their mean time in the stages."""
    late_s: tuple[float, ...] = ()
    """Of every result, from capture."""

    def slowness(self, service: Service) -> float:
        """Time in the stages over what the same batches took when they were measured: 1.3 is a machine that had
        become slower by that; 1.0 where no batch can be compared."""
        pairs = [(count, took, service.inside_s[size]) for size, (count, took) in self.inside.items()
                 if size in service.inside_s]  # fmt: skip
        expected = sum(count * before for count, _, before in pairs)
        return sum(count * took for count, took, _ in pairs) / expected if expected else 1.0


def run_cameras(bench: Lab, cameras: int, fps: float, seconds: float, warm_s: float = 3.0, queue: int = 8,
                policy: Policy = "drop_oldest") -> LiveReading:  # fmt: skip
    """So many cameras at their own rates through the engine, for so long."""
    names = [bench.new_name() for _ in range(cameras)]
    rng = np.random.default_rng(bench.turn())                   # no two tries begin with the same order of frames
    owned = [bench.open(name, queue, policy, (rate, float(rng.random())))
             for name, rate in zip(names, rates_of(cameras, fps), strict=True)]  # fmt: skip
    try:
        bench.wait_for(bench.num_results + cameras)
        time.sleep(warm_s)
        bench.costs.clear()
        first, began = [stream.status()["frames"] for stream in owned], time.time()
        add_up = True
        while (left := began + seconds - time.time()) > 0:
            time.sleep(min(left, 0.5))
            add_up = add_up and all(_adds_up(stream) for stream in owned)
        last, ended = [stream.status()["frames"] for stream in owned], time.time()
        inside = bench.inside()
    finally:
        for name in names:
            bench.engine.remove(name)
    late = [[late for at, late in bench.late_s(name) if began <= at < ended] for name in names]
    came = sum(after["in"] - before["in"] for before, after in zip(first, last, strict=True))
    dropped = sum(_dropped(after) - _dropped(before) for before, after in zip(first, last, strict=True))
    out = sum(map(len, late))
    p50, p95 = np.quantile(np.concatenate(late), (0.5, 0.95)) if out else (np.inf, np.inf)
    return LiveReading(cameras, ended - began, came / (ended - began), out / (ended - began), float(p50), float(p95),
                       dropped / max(came, 1), min(map(len, late)) * cameras / max(out, 1), add_up, inside,
                       tuple(one for own in late for one in own))  # fmt: skip


def joined(readings: Sequence[LiveReading]) -> LiveReading:
    """Several tries of the same cameras as one."""
    seconds = sum(one.seconds for one in readings)
    came, out = (sum(getattr(one, name) * one.seconds for one in readings) for name in ("fps_in", "fps_out"))
    late = tuple(late for one in readings for late in one.late_s)
    p50, p95 = np.quantile(late, (0.5, 0.95)) if late else (np.inf, np.inf)
    lost = sum(one.dropped * one.fps_in * one.seconds for one in readings)
    return LiveReading(
        readings[0].cameras, seconds, came / seconds, out / seconds, float(p50), float(p95), lost / max(came, 1),
        min(one.worst_share for one in readings), all(one.add_up for one in readings),
        joined_means([one.inside for one in readings]), late,
    )  # fmt: skip


def joined_means(parts: Sequence[Mapping[int, tuple[int, float]]]) -> dict[int, tuple[int, float]]:
    """(count, mean) of each size, over all parts."""
    counts: dict[int, int] = defaultdict(int)
    sums: dict[int, float] = defaultdict(float)
    for part in parts:
        for size, (count, mean) in part.items():
            counts[size] += count
            sums[size] += count * mean
    return {size: (count, sums[size] / count) for size, count in counts.items() if count}


def _dropped(frames: dict) -> int:
    return sum(frames["dropped"].values())


def _adds_up(stream: Owned) -> bool:
    frames = stream.status()["frames"]
    return frames["in"] == frames["out"] + _dropped(frames) + frames["in_flight"] and frames["in_flight"] >= 0
