"""`maskstream chaos`: the user's own graph while its replicas, workers and nodes are killed."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from pipelines.commands.run import grouped
from pipelines.commands.shared import add_set

if TYPE_CHECKING:
    from operators.sources import Source
    from pipelines.chaos_scenario import Scenario
    from pipelines.graph import Graph, RunContext

COUNTING = "counting frames"
"""As pipelines/chaos.py calls it."""
HELP = "kill parts of a graph while it runs, and see whether anything is lost"
DESCRIPTION = """Run GRAPH over the SOURCEs twice on a cluster of simulated nodes that lives as long as the command:
once in calm, once while replicas, worker processes and whole nodes are killed, stages stop, and frames are corrupted,
as a scenario says (the corruption is the same in both runs). Then the two are compared. It passes, with exit code 0, if
  frames      every frame is accounted for: in = out + dropped + failed, each by its reason
  order       every frame came once, in its place
  streams     every stream ends as in calm
  ids         track ids and classes are those of the calm run
  results     masks, boxes and scores too, to the last bit
  recovery    no stream was silent for longer than limits.recovery_s after a blow
  leftovers   no actor, process, placement group or object is left
  memory      the driver has not grown by more than limits.memory_mb
  blows, end  what was to be killed was killed, and the run came to its end all the same
and fails, with exit code 1, if one of these does not hold.

Sources are read three times, and nothing but the report is written:
  DIR/chaos.md, chaos.json, chaos.png   figures, the same for programs, frames given out over time
  DIR/ray.log                           what Ray had to say of the dying
"""

EPILOG = """
scenarios (configs/chaos/):
  calm-check.yaml         no blow at all: two calm runs, which must be equal
  kills.yaml              replicas and worker processes die, again and again
  node-loss.yaml          whole nodes go, and others come
  slow-and-corrupt.yaml   stages that stop, frames that are damaged, worker processes that die
  poison.yaml             a frame that kills the process that touches it, every time

examples:
  maskstream chaos configs/graphs/offline.yaml a.mp4 b.mp4
  maskstream chaos mine.yaml 'clips/*.mp4' --network mine_net.yaml --scenario configs/chaos/node-loss.yaml --seed 7
  maskstream chaos mine.yaml a.mp4 --set recovery.snapshot_every=32 --set scenario.nodes.count=4
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("graph", metavar="GRAPH", help="the graph, as configs/graphs/offline.yaml")
    add("sources", nargs="+", metavar="SOURCE", help="videos, folders, patterns, addresses, YouTube-VIS JSONs")
    add("--scenario", default="configs/chaos/kills.yaml", metavar="FILE", help="what is done (default: %(default)s)")
    add("--seed", type=int, help="of the scenario: what is hit, and when (default: the file's own)")
    add("--network", default="configs/networks/tiny.yaml", metavar="FILE", help="which network (default: %(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one")
    add("--out", default="runs/chaos", metavar="DIR", help="where the report goes (default: %(default)s)")
    add("--image-root", metavar="DIR", help="where the images of a YouTube-VIS JSON lie")
    add_set(parser, "batching.frames=4, of the graph, network.KEY or scenario.KEY")


def execute(args: argparse.Namespace) -> int:
    from operators.replacing import check_folder
    from operators.sources import find_sources
    from pipelines.chaos_scenario import check_scenario, load_scenario
    from pipelines.file_kinds import refuse_for_source
    from pipelines.graph import RunContext, load_graph
    from pipelines.networks import read_checkpoint, read_network
    from pipelines.run import refuse_live
    from pipelines.stages import STAGES, choose_device

    check_folder(args.out, "--out")
    for argument in args.sources:
        refuse_for_source(argument)
    groups = grouped(args.overrides, ("network", "scenario"))
    spec = read_network(args.network, tuple(groups["network"]))
    graph = load_graph(args.graph, STAGES, groups["graph"])
    refuse_live(graph)
    scenario = load_scenario(args.scenario, groups["scenario"], args.seed)
    check_scenario(scenario, graph, args.scenario)
    read_checkpoint(spec)
    choose_device(args.device)
    check_stages(graph, RunContext(spec, "cpu"))
    sources, errors = find_sources(args.sources, image_root=args.image_root)
    if errors:
        raise errors[0]  # a run goes on without it; a proof says what it was made of
    title = f"`{args.graph}`, network `{args.network}`, scenario `{args.scenario}`, seed {scenario.seed}"
    title += f", {len(sources)} sources"
    return _tried(args, graph, sources, RunContext(spec, args.device), scenario, title)


def check_stages(graph: Graph, context: RunContext) -> None:
    """Build every stage once, in this process: what cannot be built is told before nodes are started, and by its own
    error. Raises GraphError, ConfigError, CheckpointError."""
    from pipelines.networks import load_network

    for stage in graph.stages:
        stage.kind.build(stage.settings, context)
    load_network.cache_clear()      # the workers have their own


def _tried(args: argparse.Namespace, graph: Graph, sources: Sequence[Source], context: RunContext,
           scenario: Scenario, title: str) -> int:  # fmt: skip
    """Both runs, the verdict and the report; gives the exit code."""
    from pipelines.chaos import trial
    from pipelines.chaos_cluster import simulated
    from pipelines.chaos_report import print_verdict, write_report
    from pipelines.chaos_verdict import judge
    from pipelines.interrupts import Interrupts

    out = Path(args.out)
    interrupts = Interrupts()
    try:
        with _quiet(out) as terminal, progress(terminal) as tell, interrupts:
            tell("starting nodes", 0)
            with simulated(scenario.nodes, graph, args.device) as nodes:
                done = trial(graph, sources, context, scenario, nodes, tell, interrupts)
    except KeyboardInterrupt:
        print("stopped; all that was started is ended, there is no verdict.", file=sys.stderr)
        return 128 + (interrupts.number or 2)
    verdict = judge(done)
    print_verdict(verdict, write_report(done, verdict, title, out))
    return int(not verdict.passed)


@contextmanager
def progress(terminal: TextIO) -> Iterator[Callable[[str, int], None]]:
    """A bar for each part of the work, its whole what was counted before; where there is no terminal, a line."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console, known, counted = Console(file=terminal), {}, 0
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:

        def tell(what: str, done: int) -> None:
            nonlocal counted
            if what not in known:
                known[what] = bar.add_task(what, total=counted or None)
                if not console.is_terminal:
                    console.print(f"{what} ({counted} frames) ..." if counted else f"{what} ...")
            counted = done if what == COUNTING else counted
            bar.update(known[what], completed=done)

        yield tell


@contextmanager
def _quiet(folder: Path) -> Iterator[TextIO]:
    """What Ray prints of each death goes to a file, there are many, and all are meant: also what it prints past Python.

    Gives standard error as it was.
    """
    from operators.errors import ConfigError

    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "ray.log").open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {folder}: nothing can be written there ({error.strerror or error}).") from error
    sys.stderr.flush()
    with file, os.fdopen(os.dup(2), "w", encoding="utf-8", errors="replace") as terminal:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file), contextlib.redirect_stdout(file):
                yield terminal
        finally:
            file.flush()
            os.dup2(terminal.fileno(), 2)
