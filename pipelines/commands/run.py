"""`maskstream run`: videos and images through the graph."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from operators.errors import ConfigError, did_you_mean
from pipelines.commands.shared import add_set

HELP = "run videos or images through the graph"
DESCRIPTION = """Run videos and images through the graph. A SOURCE is one of
  a video file        mp4, mkv, webm, avi, ts, mov; H.264, HEVC, VP9, AV1, MPEG-4, MJPEG; rotation is respected
  a folder of images  jpg, png, webp, bmp, in natural order (frame2 before frame10)
  a YouTube-VIS JSON  all of its videos; images beside it, in JPEGImages/, or in --image-root

Every frame is processed exactly once. In DIR/<source name>/ you find
  tracks.jsonl   a line of JSON a frame: time, size, and each instance's track id, class, score, box, mask (COCO RLE)
  results.json   YouTube-VIS results, as the evaluation server takes them
  overlay.mp4    the video with masks, boxes, classes and ids in colours that stay with their tracks
  masks/         DAVIS palette PNGs, a frame each, pixel value track id + 1
"""

EPILOG = """
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


def arguments(parser: argparse.ArgumentParser) -> None:
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
    add_set(parser, "associate.min_match=0.5 (see the examples)")


def execute(args: argparse.Namespace) -> int:
    from operators.formats import Categories
    from operators.sinks import SinkConfig
    from operators.sources import find_sources
    from pipelines.config import apply_overrides, build
    from pipelines.graph import RunContext, load_graph
    from pipelines.networks import read_checkpoint, read_network
    from pipelines.outputs import Outputs
    from pipelines.run import run
    from pipelines.show import Bar, print_summary
    from pipelines.stages import STAGES, association_of, choose_device

    address = cluster_address(args)
    groups = grouped(args.overrides, ("network", "sinks"))
    spec = read_network(args.network, tuple(groups["network"]))
    graph = load_graph(args.graph, STAGES, groups["graph"])
    sinks = build(SinkConfig, apply_overrides({}, groups["sinks"], "--set"), "--set", "sinks")
    categories = Categories.numbered(read_checkpoint(spec).classes)
    outputs = Outputs(Path(args.out), _kinds(args.save), categories, sinks, association_of(graph, spec))
    if args.executor == "local":
        choose_device(args.device)
    sources, errors = find_sources(args.sources, image_root=args.image_root)
    with Bar() as bar:
        context = RunContext(spec, args.device)
        summary = run(sources, errors, graph, context, outputs, args.executor, address, bar)
    print_summary(summary, outputs)
    return summary.exit_code if sources else max(error.exit_code for error in errors)


def cluster_address(args: argparse.Namespace) -> str | None:
    """Of the cluster to use, None for one of our own. Raises ConfigError for an address without the Ray executor."""
    if args.executor == "ray":
        return args.address or os.environ.get("RAY_ADDRESS")  # which `ray job submit` sets
    if args.address:
        raise ConfigError(f"--address {args.address}: is of a Ray cluster, the executor is local. Add --executor ray.")
    return None


def grouped(overrides: Sequence[str], prefixes: Sequence[str]) -> dict[str, list[str]]:
    """Overrides by their first word where that is one of `prefixes`, without it; all others are the graph's."""
    groups: dict[str, list[str]] = {**{prefix: [] for prefix in prefixes}, "graph": []}
    for override in overrides:
        group, dot, rest = override.strip().partition(".")
        if dot and group in prefixes:
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
