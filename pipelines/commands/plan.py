"""`maskstream plan`: how many cameras this machine can serve, and which stage limits."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from operators.errors import ConfigError
from operators.replacing import check_file
from pipelines.commands.shared import add_set

if TYPE_CHECKING:
    from pipelines.graph import Graph, RunContext
    from pipelines.plan import Plan, PlanConfig, Progress
    from pipelines.serving.config import ServeConfig

HELP = "how many cameras this machine can serve, and which stage limits"
DESCRIPTION = """Measure how long the live graph takes for batches of every size on this machine, play the queue of
arriving frames through on paper, and say how many cameras fit: 95 frames in 100 have their result within --p95 of
their capture, none is dropped, and a quarter of the machine stays free. A generated clip stands for the cameras,
decoded at their rate beside the measurement. With --verify as many simulated cameras are then served, and the forecast
is held against what they gave. Other work on the machine counts: measure when it is as busy as it will be."""

EPILOG = """
examples:
  maskstream plan                                              cameras of 640x360 and 10 frames/s, within 500 ms
  maskstream plan --size 1920x1080 --fps 25 --p95 200ms --verify
  maskstream plan --network configs/networks/crossvis_r50.yaml --seconds 60
  maskstream plan --set backbone.batch=1 --set heads.batch=1   does it fit better so?
  maskstream plan --replicas 2                                 two processes, each with half of the CPUs
  maskstream plan --address auto                               on a cluster: a process on it is measured, and counted
  maskstream plan --json runs/plan.json                        for a program
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--size", default="640x360", metavar="WxH", help="of the cameras' frames (default: %(default)s)")
    add("--fps", type=float, default=10.0, help="frames a second of each camera (default: %(default)s)")
    add("--p95", default="500ms", metavar="TIME", help="latest result of 95 frames in 100, as in 500ms or 1.5s "
        "(default: %(default)s)")  # fmt: skip
    add("--network", default="configs/networks/tiny.yaml", metavar="FILE", help="which network (default: %(default)s)")
    add("--graph", metavar="FILE", help="which graph (default: the one that `maskstream serve` takes)")
    add("--replicas", type=int, default=1, metavar="N", help="N times the processes of the graph, as of `maskstream "
        "serve`: one is measured, on its share of the CPUs (default: 1)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one")
    add("--seconds", type=float, default=30.0, help="how long to measure (default: %(default)s)")
    add("--verify", action="store_true", help="serve the forecast number of simulated cameras, as long and turn about "
        "with measuring again, and hold the forecast against what they gave")  # fmt: skip
    add("--address", help="a Ray cluster: measure one process there, and count how many it has room for")
    add("--json", type=Path, metavar="FILE", help="write the plan there too")
    add_set(parser, "backbone.batch=1, or network.detect.max_per_frame=20")


def execute(args: argparse.Namespace) -> int:
    width, height = _size(args.size)
    if args.json is not None:
        check_file(args.json, "--json")         # not after minutes of measuring
    p95_s = _seconds(args.p95)

    import torch

    from operators.cpus import usable_cpus
    from pipelines.demand import check_demand
    from pipelines.plan import PlanConfig, as_json
    from pipelines.serving.config import read_config
    from pipelines.serving.deployed import deployed
    from pipelines.stages import choose_device

    config = PlanConfig(width=width, height=height, fps=args.fps, p95_s=p95_s, seconds=args.seconds, verify=args.verify)
    if args.address and args.verify:
        raise ConfigError("--verify: tries cameras on this machine; it cannot be had together with --address.")
    serving = read_config({"network": args.network, "graph": args.graph, "device": args.device,
                           "set": args.overrides, "replicas": args.replicas}, "the command line")  # fmt: skip
    found = deployed(serving, usable_cpus(), 0)     # settings are checked before a cluster is asked for
    if args.address:
        result = _on_cluster(serving, config, args.address)
    else:
        device = choose_device(args.device)
        there = {"CPU": float(usable_cpus()), "GPU": float(torch.cuda.device_count() if device.type == "cuda" else 0)}
        check_demand(found.graph, [there], found.context)
        result = _here(found.graph, found.context, config)
    show(result)
    if args.json:
        _write(args.json, as_json(result))
    return 0


def _here(graph: Graph, context: RunContext, config: PlanConfig) -> Plan:
    from pipelines.plan import plan

    with telling() as tell:
        return plan(graph, context, config, tell)


def _on_cluster(serving: ServeConfig, config: PlanConfig, address: str) -> Plan:
    from pipelines.cluster import cluster
    from pipelines.plan_cluster import plan_on_cluster

    with telling() as tell, cluster(address):
        return plan_on_cluster(serving, config, tell)


@contextmanager
def telling() -> Iterator[Progress]:
    """What is being done: a spinner on a terminal, lines elsewhere."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    with console.status("") if console.is_terminal else nullcontext() as spinner:
        yield spinner.update if spinner else console.print


def show(plan: Plan) -> None:
    """The plan, to be read."""
    from rich.console import Console

    from pipelines.plan_show import text_of

    Console(highlight=False, soft_wrap=True).print(text_of(plan), markup=False, end="")


def _write(path: Path, content: object) -> None:
    from operators.replacing import replacing

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as part:
            part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--json {path}: cannot be written: {error.strerror}.") from error


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,5})[xX]([0-9]{1,5})", text)
    if match is None:
        raise ConfigError(f"--size {text[:40]}: expected WIDTHxHEIGHT in pixels, as in 640x360.")
    return int(match[1]), int(match[2])


def _seconds(text: str) -> float:
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?) ?(ms|s)", text)
    if match is None:
        raise ConfigError(f"--p95 {text[:40]}: expected a time, as in 500ms or 1.5s.")
    return float(match[1]) / (1000 if match[2] == "ms" else 1)
