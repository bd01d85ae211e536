"""What several commands say and do alike."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from operators.errors import ConfigError
from operators.replacing import check_file, check_folder

if TYPE_CHECKING:
    from pipelines.graph import Graph
    from pipelines.run import Observer

EXIT_CODES = """
exit codes:
  0    all was done
  1    a source failed, or was damaged and gave what could be decoded; all others were done
  2    the command line, a file of settings, weights or a dataset cannot be used
  130  stopped by Ctrl-C (143 by SIGTERM); what was written until then is valid
"""


def add_set(parser: argparse.ArgumentParser, example: str) -> None:
    """`--set KEY=VALUE`, as often as wanted, into `overrides`."""
    text = f"change one setting, as in {example}; may be given again"
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help=text)


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Of a command within a command: its parent has the line of help."""
    # suppressed: else it would take back what stood before the inner command
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)


def add_executor(parser: argparse.ArgumentParser) -> None:
    """`--graph`, `--executor`, `--address`, `--replicas` and `--device`, of commands that run a graph over files."""
    add = parser.add_argument
    add("--graph", metavar="FILE", help="which graph (default: that of configs/graphs which fits the network: "
        "offline_iai.yaml for IAI, offline_cico.yaml for CiCo, offline_tltm.yaml for TLTM, offline_centermask.yaml for "
        "CenterMask, else offline.yaml)")  # fmt: skip
    add("--executor", choices=("local", "ray"), default="local", help="this process, or Ray (default: %(default)s)")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the run")
    add("--replicas", type=int, metavar="N", help="with --executor ray: N times the processes of the graph, each with "
        "videos of its own (default: as the graph says)")  # fmt: skip
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one")


def cluster_address(args: argparse.Namespace) -> str | None:
    """Of the cluster to use, None for one of our own. Raises ConfigError for what needs Ray, where Ray is not used."""
    if args.executor == "ray":
        return args.address or os.environ.get("RAY_ADDRESS")  # which `ray job submit` sets
    if args.address:
        raise ConfigError(f"--address {args.address}: is of a Ray cluster, the executor is local. Add --executor ray.")
    if args.replicas is not None:
        raise ConfigError(f"--replicas {args.replicas}: are processes of Ray, the executor is local. Add --executor "
                          f"ray.")  # fmt: skip
    if args.metrics:
        raise ConfigError("--metrics: are exported by Ray, the executor is local. Add --executor ray.")
    return None


def add_watching(parser: argparse.ArgumentParser) -> None:
    """`--trace` and `--metrics`, of commands that run a graph."""
    parser.add_argument("--trace", metavar="FILE", help="write the way of every frame through all stages, for "
                        "chrome://tracing or ui.perfetto.dev")  # fmt: skip
    parser.add_argument("--metrics", action="store_true", help="with --executor ray: count and time all stages on "
                        "Ray's Prometheus port (docs/observability.md)")  # fmt: skip


def check_outputs(args: argparse.Namespace) -> None:
    """Of commands with `--out` and `--trace`: raises ConfigError, before any work, where they cannot be written."""
    check_folder(args.out, "--out")
    if args.trace is not None:
        check_file(args.trace, "--trace")


@dataclass(frozen=True)
class Looking:
    """What looks on while a graph runs."""

    view: Observer
    watches: tuple[Callable[[Any], None], ...]
    """Each is given every Report."""
    trace: bool
    """Reports need spans."""


@contextmanager
def watching(args: argparse.Namespace, graph: Graph) -> Iterator[Looking]:
    """The progress view, and what `add_watching` offers. Raises ConfigError before any work."""
    from pipelines.progress import View

    with ExitStack() as stack:
        watches, listeners = [], []
        if args.trace is not None:
            from pipelines.trace import TraceWriter

            writer = TraceWriter(args.trace, graph)
            stack.callback(lambda: _tell(writer.note or f"trace: {writer.path}, to be opened at https://ui.perfetto.dev"))
            watches.append(stack.enter_context(writer).watch)
        if args.metrics:
            from pipelines.metrics import RunMetrics

            metrics = RunMetrics(graph, _tell)
            watches.append(metrics.watch)
            listeners.append(metrics.on_status)
        view = stack.enter_context(View(listeners=listeners))
        yield Looking(view, tuple(watches), trace=bool(watches))


def _tell(text: str) -> None:
    print(text, file=sys.stderr)


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for functions that tell (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    # where there is no terminal it would leave an empty line behind
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
