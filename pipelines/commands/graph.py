"""`maskstream graph`: a graph to look at, and the way of one frame through it."""

from __future__ import annotations

import argparse
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from operators.errors import ConfigError, GraphError
from operators.replacing import check_file
from pipelines.commands.shared import EXIT_CODES, add_debug, add_set, counting

if TYPE_CHECKING:
    from pipelines.graph import Graph, RunContext
    from pipelines.graph_bytes import Edge
    from pipelines.graph_show import GraphView

HELP = "draw a graph with its placement and what a frame carries; show one frame's way"
SHOW = """Draw a graph: its stages in order, the groups that share a process, what each group asks for, and on every
edge the bytes that a frame carries. For that a few frames of a generated clip really go through the stages, in this
process. A network without weights gets random ones, which find 10 instances a frame at most; the drawing says so."""
SHOW_EPILOG = """
examples:
  maskstream graph show configs/graphs/offline.yaml
  maskstream graph show configs/graphs/offline_iai.yaml --network configs/networks/iai_condinst_r50.yaml
  maskstream graph show mine.yaml --out mine.svg                   a picture; mine.png does too
  maskstream graph show mine.yaml --address auto                   does it fit the cluster?
  maskstream graph show mine.yaml --size 1920x1080                 of frames as large as yours
"""
TRACE = """Show how one frame went through the stages of a run that was traced (maskstream run ... --trace FILE): when
each call began, how long the frame had waited for it, and with how many others it shared it. Without --frame it is the
frame that took longest. The whole file is drawn by https://ui.perfetto.dev and chrome://tracing."""
TRACE_EPILOG = """
examples:
  maskstream run street.mp4 --trace trace.json && maskstream graph trace trace.json
  maskstream graph trace trace.json --frame street:41
"""

FORMATS = ("text", "svg", "png")
DEFAULT_WIDTH = 120


def arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    raw = argparse.RawDescriptionHelpFormatter
    text = "draw a graph with its placement, and the bytes that a frame carries on every edge"
    show = actions.add_parser("show", help=text, description=SHOW, epilog=SHOW_EPILOG + EXIT_CODES, formatter_class=raw)
    add = show.add_argument
    add("graph", metavar="GRAPH", help="a file of configs/graphs")
    add("--network", metavar="FILE", help="which network (default: a small one that fits the graph)")
    add("--format", choices=FORMATS, help="default: what --out ends in, else text")
    add("--out", metavar="FILE", type=Path, help="where it goes (default: the terminal)")
    add("--size", default="1280x720", metavar="WxH", help="of the clip's frames (default: %(default)s)")
    add("--frames", type=int, metavar="N", help="of the clip (default: 4; more where a stage looks at neighbours)")
    add("--no-bytes", action="store_true", help="draw what the file says alone, and run nothing")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one")
    add("--address", help="a Ray cluster: tell whether the placement fits it (exit code 2 if not)")
    add_set(show, "backbone.batch=8, or network.detect.max_per_frame=20")
    add_debug(show)
    show.set_defaults(command=_show)
    text = "one frame's way through the stages of a traced run"
    trace = actions.add_parser("trace", help=text, description=TRACE, epilog=TRACE_EPILOG + EXIT_CODES,
                               formatter_class=raw)                                                   # fmt: skip
    trace.add_argument("trace", metavar="TRACE", type=Path, help="a file that maskstream run --trace wrote")
    trace.add_argument("--frame", metavar="STREAM:N", help="which frame, as in street:41 (default: the slowest)")
    add_debug(trace)
    trace.set_defaults(command=_trace)


# -------------------------------------------------------------------------------------------------------------- show


def _show(args: argparse.Namespace) -> int:
    form = _format(args.format, args.out)
    _check_out(args)
    width, height = _size(args.size)

    from pipelines.commands.run import grouped
    from pipelines.graph import RunContext, load_graph
    from pipelines.graph_bytes import network_for
    from pipelines.graph_show import GraphView
    from pipelines.networks import read_network
    from pipelines.stages import STAGES, choose_device

    groups = grouped(args.overrides, ("network",))
    graph = load_graph(args.graph, STAGES, groups["graph"])
    network, changes = (args.network, ()) if args.network else network_for(graph)
    spec = read_network(network, (*changes, *groups["network"]))
    context = RunContext(spec, args.device)
    if not args.no_bytes:
        choose_device(args.device)
    graph, verdict, refusal = _fit(graph, context, args.address) if args.address else (graph, (), None)
    edges, note = ((), ()) if args.no_bytes else _measured(graph, context, (width, height), args.frames)
    _draw(GraphView(f"{args.graph} with {network}", graph, edges, (*note, *verdict)), form, args.out)
    if refusal:
        raise refusal
    return 0


def _check_out(args: argparse.Namespace) -> None:
    """Raises ConfigError, before any work, for a drawing that cannot be written, or would replace what is drawn."""
    from operators.datasets.files import check_output
    from pipelines.config import resolve

    if args.out is None:
        return
    check_file(args.out, "--out")
    for source in filter(None, (args.graph, args.network)):
        check_output(resolve(source), args.out)


def _measured(
    graph: Graph, context: RunContext, size: tuple[int, int], frames: int | None
) -> tuple[tuple[Edge, ...], tuple[str, ...]]:
    """Edges, and a sentence that says of what."""
    from dataclasses import replace

    from pipelines.graph_bytes import RANDOM_INSTANCES, frames_for, generated_clip, measure, some_weights

    frames = frames_for(graph) if frames is None else frames
    with ExitStack() as stack:
        progress = stack.enter_context(counting("stages"))
        source = stack.enter_context(generated_clip(*size, frames))
        spec = stack.enter_context(some_weights(context.network))
        edges = measure(graph, replace(context, network=spec), source, progress)
    own = context.network.weights is not None
    weights = "its own weights" if own else f"random weights, so with {RANDOM_INSTANCES} instances a frame at most"
    clip = f"{frames} frame{'s' * (frames > 1)} of {size[0]}x{size[1]} of a generated clip"
    return edges, (f"Bytes are those of {clip}, in the mean, run with {weights}.",)


def _fit(graph: Graph, context: RunContext, address: str) -> tuple[Graph, tuple[str, ...], GraphError | None]:
    """The graph as the cluster would run it, a sentence on whether it fits, and the error if it does not."""
    import ray

    from pipelines.cluster import cluster
    from pipelines.demand import check_demand, totals

    with cluster(address):
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    placed = graph.placed(*totals(nodes, context))
    cpus, gpus = (sum(node.get(name, 0.0) for node in nodes) for name in ("CPU", "GPU"))
    there = f"The cluster has {len(nodes)} node{'s' * (len(nodes) != 1)}, {cpus:g} CPUs and {gpus:g} GPUs"
    try:
        check_demand(placed, nodes, context)
    except GraphError as error:
        return placed, (f"{there}: this does NOT fit.",), error
    return placed, (f"{there}: this fits.",), None


def _draw(view: GraphView, form: str, out: Path | None) -> None:
    from rich.console import Console

    from operators.replacing import replacing
    from pipelines.graph_picture import as_image, as_svg
    from pipelines.graph_show import text_of

    if form == "png":
        picture = as_image(view)
    else:
        text = as_svg(view) if form == "svg" else text_of(view, DEFAULT_WIDTH if out else Console().width)
    if out is None:
        print(text, end="")
        return
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            picture.save(part, "PNG") if form == "png" else part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be written: {error.strerror}.") from error
    print(out)


def _format(form: str | None, out: Path | None) -> str:
    """Raises ConfigError for a PNG without a file, or a file that ends in another format's letters."""
    suffix = out.suffix.lower().lstrip(".") if out else ""
    if form is None:
        return suffix if suffix in FORMATS else "text"
    if form == "png" and out is None:
        raise ConfigError("--format png: a picture needs a file. Add --out graph.png.")
    if suffix in FORMATS and suffix != form:
        raise ConfigError(f"--out {out}: ends in .{suffix}, but the format is {form}. Take the one or the other.")
    return form


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and len(text) < 12):
        raise ConfigError(f"--size {text}: expected WIDTHxHEIGHT in pixels, as in 1280x720.")
    return int(width), int(height)


# ------------------------------------------------------------------------------------------------------------- trace


def _trace(args: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.status import Status

    from pipelines.trace import slowest, way
    from pipelines.trace_show import print_way

    errors = Console(stderr=True)
    with Status(f"reading {args.trace}", console=errors) if errors.is_terminal else nullcontext():
        stream, frame = _frame(args.frame) if args.frame is not None else slowest(args.trace)
        steps = way(args.trace, stream, frame)
    print_way(stream, frame, steps)
    return 0


def _frame(text: str) -> tuple[str, int]:
    stream, _, number = text.rpartition(":")
    if not stream or not (number.isdecimal() and len(number) < 16):
        raise ConfigError(f"--frame {text}: expected STREAM:NUMBER, as in street:41.")
    return stream, int(number)
