"""What live streams get: frames/s, latency and drops of 1 to 16 cameras at their own rates.

    python -m benchmarks.live [--network configs/networks/tiny.yaml] [--cameras 1,2,4,8,16] [--size 640x360] [--fps 10]
                              [--seconds 20] [--turns 3] [--policy drop_oldest] [--queue 8] [--set backbone.batch=1]
                              [--device auto]

Simulated cameras play a generated clip, each in a thread that decodes it at its own rate, into the engine that Ray
Serve hosts, in this process: no HTTP and no network is in the numbers. Latency is from capture to result. The numbers
of cameras are taken turn about, so that a busy machine slows all alike; told are medians over the turns. `worst` is the
camera that got least, over its fair share. `maskstream plan` says beforehand how many fit.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import get_args

from benchmarks.network import processor
from operators.cpus import usable_cpus
from pipelines.graph_bytes import generated_clip, some_weights
from pipelines.plan import CLIP_FRAMES, fused
from pipelines.plan_live import Lab, lab
from pipelines.plan_try import LiveReading, run_cameras
from pipelines.serving.config import ServeConfig
from pipelines.serving.deployed import deployed
from pipelines.serving.streams import Policy


def table(readings: Mapping[int, Sequence[LiveReading]]) -> str:
    """Markdown, a row for each number of cameras."""
    lines = [
        "| cameras | in, frames/s | out, frames/s | latency p50 / p95, ms | dropped | worst | counters add up |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for cameras, turns in readings.items():
        middle = {name: statistics.median(getattr(one, name) for one in turns)
                  for name in ("fps_in", "fps_out", "p50_s", "p95_s", "dropped", "worst_share")}  # fmt: skip
        latency = f"{1000 * middle['p50_s']:.0f} / {1000 * middle['p95_s']:.0f}"
        lines.append(
            f"| {cameras} | {middle['fps_in']:.1f} | {middle['fps_out']:.1f} | {latency} | {middle['dropped']:.1%} | "
            f"{middle['worst_share']:.0%} | {'yes' if all(one.add_up for one in turns) else 'NO'} |"
        )
    return "\n".join(lines)


def measured(bench: Lab, args: argparse.Namespace) -> dict[int, list[LiveReading]]:
    """Turn after turn, every number of cameras in each."""
    readings: dict[int, list[LiveReading]] = {cameras: [] for cameras in args.cameras}
    for turn in range(args.turns):
        for cameras in args.cameras:
            print(f"\r{f'turn {turn + 1} of {args.turns}: {cameras} cameras':<50}", end="", file=sys.stderr, flush=True)
            readings[cameras].append(run_cameras(bench, cameras, args.fps, args.seconds, min(3.0, args.seconds),
                                                 args.queue, args.policy))  # fmt: skip
    print(file=sys.stderr)
    return readings


def parse(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="configs/networks/tiny.yaml")
    parser.add_argument("--graph", help="default: the one that `maskstream serve` takes")
    parser.add_argument("--cameras", default="1,2,4,8,16", help="how many, a row each")
    parser.add_argument("--size", default="640x360", help="width x height of their frames")
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each turn, after up to three to warm up")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--policy", default="drop_oldest", choices=get_args(Policy))
    parser.add_argument("--queue", type=int, default=8)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args(words)
    try:
        args.size = tuple(int(side) for side in args.size.split("x"))
        args.cameras = tuple(int(count) for count in args.cameras.split(","))
    except ValueError:
        parser.error("--size is width x height, as in 640x360, --cameras numbers, as in 1,4,16")
    if len(args.size) != 2 or not all(64 <= side <= 4096 for side in args.size):
        parser.error("--size: expected two sides of 64 to 4096 pixels, as in 640x360")
    if not all(1 <= count <= 256 for count in args.cameras) or args.turns < 1 or not 1 <= args.queue <= 4096:
        parser.error("expected 1 to 256 cameras, at least one turn, and a queue of 1 to 4096")
    if not 0.1 <= args.fps <= 1000 or not 0.5 <= args.seconds <= 3600:
        parser.error("--fps: expected 0.1 to 1000, --seconds: 0.5 to 3600")
    return args


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    serving = ServeConfig(network=args.network, graph=args.graph, device=args.device, set=tuple(args.overrides))
    found = deployed(serving, 1, 0)
    graph = fused(found.graph, usable_cpus())
    with some_weights(found.context.network) as spec, generated_clip(*args.size, CLIP_FRAMES) as clip:
        context = type(found.context)(spec, args.device)
        with lab(graph, context, clip) as bench:
            readings = measured(bench, args)
    import torch

    print(
        f"{args.network}, cameras of {args.size[0]}x{args.size[1]} and {args.fps:g} frames/s, {args.policy}, queue "
        f"{args.queue}, {args.seconds:g} s a turn, medians of {args.turns} turns; {datetime.date.today()}; "
        f"{processor()}, {usable_cpus()} CPUs, load {os.getloadavg()[0]:.1f} at the end, "
        f"Python {platform.python_version()}, torch {torch.__version__}"
    )
    print(f"\n{table(readings)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
