"""The four systems beside each other: size, speed, memory of a stream, and AP on generated clips.

    python -m benchmarks.systems [--systems CrossVIS,TLTM,IAI,CiCo] [--frames 16] [--turns 3] [--threads 2]
                                 [--size 360x640] [--device auto] [--clips 10] [--weights TLTM=FILE ...]

Two rows of figures of each system: its R-50 network as published, with random weights, for size and speed; and its
small network, where there are weights for it, for AP. Every network runs on the graph that it runs on by default.

Frames/s are those of the bare loop over the graph's stages, decoding and masks included, without the first quarter;
systems take turns, so that a busy machine slows all alike; medians. CiCo's are new frames, each counted once. The
memory of a stream is its snapshot at the end of the run, with the settings for files, of which not all are bounded.
AP is the YouTube-VIS video-level mask AP over `--clips` generated clips of two or three large objects, which no shipped
weights were trained on (seed 12); 0 clips leave it out.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch, as pipelines/cli.py

import torch  # noqa: E402

from benchmarks.graph import Reading, Way, bare_loop, clips, measure, size_of  # noqa: E402
from benchmarks.network import processor  # noqa: E402
from models import NETWORKS  # noqa: E402
from operators.cpus import usable_cpus  # noqa: E402
from operators.shapes import write_youtube_vis  # noqa: E402
from operators.shapes_config import ShapesConfig  # noqa: E402
from pipelines.evaluation import Evaluation, EvaluationPlan, evaluate_network  # noqa: E402
from pipelines.graph import RunContext, load_graph  # noqa: E402
from pipelines.graph_bytes import some_weights  # noqa: E402
from pipelines.networks import NetworkSpec, default_graph, read_network  # noqa: E402
from pipelines.stages import STAGES  # noqa: E402

SYSTEMS = {
    "CrossVIS": ("configs/networks/crossvis_r50.yaml", "configs/networks/tiny.yaml"),
    "TLTM": ("configs/networks/tltm_r50.yaml", "configs/networks/mini_tltm.yaml"),
    "IAI": ("configs/networks/iai_condinst_r50.yaml", "configs/networks/iai_tiny.yaml"),
    "CiCo": ("configs/networks/cico_condinst_r50.yaml", "configs/networks/mini_cico.yaml"),
}
"""The network as published, and a small one."""
SEED = 12
HELD_OUT = ShapesConfig(width=256, height=160, min_objects=2, max_objects=3, min_classes=1, num_twins=0,
                        full_occlusions=0, re_entries=1, min_size=0.4, max_size=0.65)  # fmt: skip
"""Of configs/ablations/iai.yaml."""


@dataclass
class Row:
    """What is known of one system."""

    parameters: float
    """Millions."""
    readings: list[Reading] = field(default_factory=list)
    found: Evaluation | None = None
    """Of its small network; None where that has no weights."""


def main(words: list[str] | None = None) -> int:
    args = parse(words)
    torch.set_num_threads(args.threads)
    rows = speeds(args)
    if args.clips:
        with tempfile.TemporaryDirectory(prefix="maskstream-") as folder:
            score(rows, args, Path(folder))
    print(f"video {args.size[0]}x{args.size[1]}, {args.frames} frames a run, medians of {args.turns} turns; "
          f"{args.clips} clips scored; {datetime.date.today()}; {processor()}, {args.threads} threads, Python "
          f"{platform.python_version()}, torch {torch.__version__}\n\n{table(rows)}")  # fmt: skip
    return 0


def speeds(args: argparse.Namespace) -> dict[str, Row]:
    """Every network as published, turn after turn."""
    with ExitStack() as stack:
        specs = {name: stack.enter_context(some_weights(read_network(SYSTEMS[name][0]))) for name in args.systems}
        sources = stack.enter_context(clips(args.frames, (1,), args.size))[1]
        rows = {name: Row(_millions(spec)) for name, spec in specs.items()}
        for turn in range(args.turns):
            for name, spec in specs.items():
                _say(f"turn {turn + 1} of {args.turns}: {Path(spec.where).stem}")
                graph = load_graph(default_graph(spec), STAGES)
                graph = replace(graph, batching=replace(graph.batching, streams=1))
                rows[name].readings.append(measure(Way(name, graph, bare_loop), sources, RunContext(spec, args.device)))
    return rows


def score(rows: dict[str, Row], args: argparse.Namespace, folder: Path) -> None:
    """Every small network that has weights, on the same clips."""
    _say("making clips")
    write_youtube_vis(folder / "clips", HELD_OUT, SEED, args.clips)
    for name, row in rows.items():
        spec = read_network(SYSTEMS[name][1], (f"weights={args.weights[name]}",) if name in args.weights else ())
        if spec.weights is None:
            continue
        _say(f"{args.clips} clips: {Path(spec.where).stem}")
        row.found = evaluate_network(spec, folder / "clips" / "instances.json", folder / "clips" / "JPEGImages",
                                     folder / name, EvaluationPlan(device=args.device))  # fmt: skip


def table(rows: dict[str, Row]) -> str:
    """Markdown."""
    lines = [
        "| system | network | parameters, M | frames/s | MB of a stream | small network | AP | AP50 | ID switches |",
        "|---|---|---:|---:|---:|---|---:|---:|---:|",
    ]
    for name, row in rows.items():
        network, small = (Path(path).stem for path in SYSTEMS[name])
        rate = statistics.median(reading.rate for reading in row.readings)
        state = sum(row.readings[0].state.values()) / 1e6
        scored = "not scored: no weights | | |"
        if row.found is not None:
            scores = row.found.scores
            scored = f"{100 * scores['AP']:.1f} | {100 * scores['AP50']:.1f} | {row.found.switches.switches} |"
        lines.append(f"| {name} | `{network}` | {row.parameters:.1f} | {rate:.2f} | {state:.3f} | `{small}` | {scored}")
    return "\n".join(lines)


def parse(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="which, in this order (default: all)")
    parser.add_argument("--frames", type=int, default=16, help="of one run")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=usable_cpus(), help="of torch")
    parser.add_argument("--size", default="360x640", help="height x width of the video")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--clips", type=int, default=10, help="to score the small networks on; 0: none")
    parser.add_argument("--weights", action="append", default=[], metavar="SYSTEM=FILE",
                        help="of a small network that comes without, or in place of the shipped ones")  # fmt: skip
    args = parser.parse_args(words)
    args.systems, args.size = args.systems.split(","), size_of(parser, args.size)
    pairs = [pair.partition("=") for pair in args.weights]
    args.weights = {name: file for name, _, file in pairs}
    if unknown := ({*args.systems, *args.weights} - SYSTEMS.keys()):
        parser.error(f"unknown are {', '.join(sorted(unknown))}; expected some of {', '.join(SYSTEMS)}")
    if missing := [file for file in args.weights.values() if not Path(file).is_file()]:
        parser.error(f"--weights: '{missing[0]}' does not exist; expected SYSTEM=FILE")
    if args.turns < 1 or args.threads < 1 or not 8 <= args.frames <= 10_000 or not 0 <= args.clips <= 1000:
        parser.error("expected at least one turn and one thread, 8 to 10000 frames, 0 to 1000 clips")
    return args


def _millions(spec: NetworkSpec) -> float:
    return sum(part.numel() for part in NETWORKS[spec.name][0](spec.config).parameters()) / 1e6


def _say(text: str) -> None:
    print(f"\r{text:<70}", end="\n" if not sys.stderr.isatty() else "", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
