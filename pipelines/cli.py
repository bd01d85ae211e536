"""The command `maskstream`: what the user types, to settings, to work, to an exit code.

Heavy imports (torch, DALI, Ray) stand inside the commands, so that `maskstream --help` answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from operators.errors import ConfigError, MaskstreamError, did_you_mean

EXIT_CODES = """
exit codes:
  0    all was done
  1    a source failed, or was damaged and gave what could be decoded; all others were done
  2    the command line, a file of settings, weights or a dataset cannot be used
  130  stopped by Ctrl-C (143 by SIGTERM); what was written until then is valid
"""

DESCRIPTION = """Online video instance segmentation: every object gets a mask, and keeps its id.

  maskstream demo                  a generated clip, tracked by the shipped network, in a minute
  maskstream run street.mp4        a video to masks with ids; results in runs/run/street/
  maskstream run --help            outputs, settings, executors
"""

RUN_DESCRIPTION = """Run videos and images through the graph. A SOURCE is one of
  a video file        mp4, mkv, webm, avi, ts, mov; H.264, HEVC, VP9, AV1, MPEG-4, MJPEG; rotation is respected
  a folder of images  jpg, png, webp, bmp, in natural order (frame2 before frame10)
  a YouTube-VIS JSON  all of its videos; images beside it, in JPEGImages/, or in --image-root

Every frame is processed exactly once. In DIR/<source name>/ you find
  tracks.jsonl   a line of JSON a frame: time, size, and each instance's track id, class, score, box, mask (COCO RLE)
  results.json   YouTube-VIS results, as the evaluation server takes them
  overlay.mp4    the video with masks, boxes, classes and ids in colours that stay with their tracks
  masks/         DAVIS palette PNGs, a frame each, pixel value track id + 1
"""

RUN_EXAMPLES = """
examples:
  maskstream run street.mp4 market.mkv --out runs/today
  maskstream run frames/ --save jsonl,masks                   only these outputs
  maskstream run a.mp4 --set associate.min_match=0.5          a setting of a stage of the graph
  maskstream run a.mp4 --set network.detect.min_score=0.1     a setting of the network
  maskstream run a.mp4 --set sinks.min_score=0.5              calmer pictures: paint confident tracks alone
  maskstream run *.mp4 --set batching.streams=8               eight videos open at once
  maskstream run *.mp4 --executor ray                         stages as actors of a Ray cluster on this machine
  maskstream run *.mp4 --executor ray --address auto          of the cluster that this machine is part of
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit code."""
    # Torch's threads wait for each other some hundred times a frame. Spinning as they do by default, they take from a
    # busy machine the very time that they wait for: 1000 ms a frame in place of 22, measured with one other process on
    # two cores. Asleep they lose nothing that shows. It counts only before torch is loaded; actors inherit it.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        args = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse's own way out, of --help too
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return args.command(args)
    except MaskstreamError as error:
        if args.debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("stopped.", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("maskstream", description=DESCRIPTION, epilog=EXIT_CODES, formatter_class=raw)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")

    def add(name: str, run: Callable, help: str, description: str = "", epilog: str = "") -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=description or help,
            epilog=epilog + EXIT_CODES,
            parents=[common],
            formatter_class=raw,
        )
        command.set_defaults(command=run)
        return command

    _add_run(add("run", _run, "run videos or images through the graph", RUN_DESCRIPTION, RUN_EXAMPLES))
    _add_shapes(add("shapes", _shapes, "generate clips of moving shapes with exact masks and ids"))
    _add_train(add("train", _train, "train a network from a file of configs/training"))
    _add_evaluate(add("evaluate", _evaluate, "score results against ground truth"))
    _add_demo(add("demo", _demo, "generate a clip, track it, and say where the video is"))
    return parser


def _add_set(parser: argparse.ArgumentParser, example: str) -> None:
    text = f"change one setting, as in {example}; may be given again"
    parser.add_argument("--set", dest="overrides", metavar="KEY=VALUE", action="append", default=[], help=text)


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="a video file, a folder of images, or a YouTube-VIS JSON")
    add("--network", default="configs/networks/tiny.yaml", metavar="FILE", help="which network (default: %(default)s)")
    add("--graph", default="configs/graphs/offline.yaml", metavar="FILE", help="which graph (default: %(default)s)")
    add("--executor", choices=("local", "ray"), default="local", help="this process, or Ray (default: %(default)s)")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the run")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one")
    add("--out", default="runs/run", metavar="DIR", help="where the results go (default: %(default)s)")
    add("--save", default="jsonl,ytvis,video,masks", metavar="KINDS", help="which outputs (default: %(default)s)")
    add("--image-root", metavar="DIR", help="where the images of a YouTube-VIS JSON lie")
    _add_set(parser, "associate.min_match=0.5 (see the examples)")


def _run(args: argparse.Namespace) -> int:
    from operators.formats import Categories
    from operators.sinks import SinkConfig
    from operators.sources import find_sources
    from pipelines.config import apply_overrides, build
    from pipelines.graph import RunContext, load_graph
    from pipelines.networks import read_checkpoint, read_network
    from pipelines.outputs import Outputs
    from pipelines.run import run
    from pipelines.show import Bar, print_summary
    from pipelines.stages import STAGES, choose_device

    address = _address(args)
    groups = _grouped(args.overrides)
    spec = read_network(args.network, tuple(groups["network"]))
    graph = load_graph(args.graph, STAGES, groups["graph"])
    sinks = build(SinkConfig, apply_overrides({}, groups["sinks"], "--set"), "--set", "sinks")
    categories = Categories.numbered(read_checkpoint(spec).classes)
    outputs = Outputs(Path(args.out), _kinds(args.save), categories, sinks)
    if args.executor == "local":
        choose_device(args.device)
    sources, errors = find_sources(args.sources, image_root=args.image_root)
    with Bar() as bar:
        context = RunContext(spec, args.device)
        summary = run(sources, errors, graph, context, outputs, args.executor, address, bar)
    print_summary(summary, outputs)
    return summary.exit_code if sources else max(error.exit_code for error in errors)


def _address(args: argparse.Namespace) -> str | None:
    if args.executor == "ray":
        return args.address or os.environ.get("RAY_ADDRESS")  # which `ray job submit` sets
    if args.address:
        raise ConfigError(f"--address {args.address}: is of a Ray cluster, the executor is local. Add --executor ray.")
    return None


def _grouped(overrides: Sequence[str]) -> dict[str, list[str]]:
    """Overrides of the network and of the sinks without their prefix; all others are the graph's."""
    groups: dict[str, list[str]] = {"network": [], "sinks": [], "graph": []}
    for override in overrides:
        group, dot, rest = override.strip().partition(".")
        if dot and group in ("network", "sinks"):
            groups[group].append(rest)
        else:
            groups["graph"].append(override)
    return groups


def _kinds(text: str) -> tuple[str, ...]:
    from operators.sinks import SINKS

    kinds = tuple(dict.fromkeys(kind.strip() for kind in text.split(",") if kind.strip()))
    for kind in kinds:
        if kind not in SINKS:
            raise ConfigError(f"--save {text}: no output is called '{kind}'.{did_you_mean(kind, SINKS)}")
    return kinds


def _add_shapes(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="where instances.json and JPEGImages/, or the videos, go")
    add("--preset", default="medium", help="degree of difficulty (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes (default: %(default)s)")
    add("--clips", type=int, default=10, help="how many (default: %(default)s)")
    add("--first", type=int, default=0, help="number of the first clip, of an endless series (default: %(default)s)")
    add("--video", choices=("h264", "vp9"), help="encoded videos in place of a YouTube-VIS dataset")
    add("--workers", type=int, default=1, help="processes (default: %(default)s)")
    _add_set(parser, "num_frames=60")


def _shapes(args: argparse.Namespace) -> int:
    from operators.shapes import PRESETS, ShapesConfig, write_videos, write_youtube_vis
    from pipelines.config import apply_overrides, build

    if args.preset not in PRESETS:
        raise ConfigError(f"--preset {args.preset}: no such preset.{did_you_mean(args.preset, PRESETS)}")
    settings = apply_overrides(asdict(PRESETS[args.preset]), args.overrides, "--set")
    config = build(ShapesConfig, settings, "--set")
    with _counting("clips") as progress:
        common = {"first": args.first, "workers": args.workers, "progress": progress}
        if args.video:
            written = write_videos(args.out, config, args.seed, args.clips, args.video, **common)
            made = f"{len(written)} videos in {args.out}"
        else:
            made = str(write_youtube_vis(args.out, config, args.seed, args.clips, **common))
    print(made)
    return 0


@contextmanager
def _counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for functions that tell (done, total)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _add_train(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a file of configs/training, as configs/training/tiny.yaml")
    add("--out", default="runs/train", metavar="DIR", help="where curves, checkpoints and weights go")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the run")
    _add_set(parser, "optimizer.learning_rate=1e-3")


def _train(args: argparse.Namespace) -> int:
    from trainers.train import train

    weights = train(args.config, args.overrides, out=args.out, resume=args.resume, address=args.address)
    print(weights)
    return 0


def _add_evaluate(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    text = "AP and AR of YouTube-VIS and OVIS, as the official evaluator computes them"
    youtube_vis = benchmarks.add_parser("youtube-vis", help=text, description=text)
    youtube_vis.add_argument("truth", metavar="GT", help="annotations, a YouTube-VIS JSON")
    youtube_vis.add_argument("results", metavar="RESULTS", help="results.json of one video, or of all")
    youtube_vis.add_argument("--json", metavar="OUT", help="write the numbers here too")
    youtube_vis.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)


def _evaluate(args: argparse.Namespace) -> int:
    from operators.youtube_vis import format_table, main_evaluate

    with _counting("videos") as progress:
        scores = main_evaluate(args.truth, args.results, args.json, progress=progress)
    print(format_table(scores))
    return 0


def _add_demo(parser: argparse.ArgumentParser) -> None:
    text = "where the clip and the results go (default: %(default)s)"
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help=text)
    parser.add_argument("--animation", metavar="FILE", help="write the overlay as a small .webp or .gif too")


def _demo(args: argparse.Namespace) -> int:
    from pipelines.demo import main as demo

    return demo(Path(args.out), Path(args.animation) if args.animation else None)


if __name__ == "__main__":
    sys.exit(main())
