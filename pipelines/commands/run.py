"""`maskstream run`: videos and images through the graph."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from operators.addresses import is_address
from operators.errors import ConfigError, did_you_mean
from pipelines.commands.shared import add_executor, add_set, add_watching, check_outputs, cluster_address, watching

if TYPE_CHECKING:  # the help and a wrong word on the command line shall not wait for torch
    from operators.sinks import SinkConfig
    from operators.sources import Source, UnusableSource
    from pipelines.graph import Graph
    from pipelines.manifest import Manifest
    from pipelines.networks import NetworkSpec
    from pipelines.outputs import Outputs
    from pipelines.run import RunSummary

HELP = "run videos or images through the graph"
DESCRIPTION = """Run videos and images through the graph. A SOURCE is one of
  a video file        mp4, mkv, webm, avi, ts, mov; H.264, HEVC, VP9, AV1, MPEG-4, MJPEG; rotation is respected
  a folder            its images as one video, in natural order (frame2 before frame10): jpg, png, webp, bmp; a folder
                      without images: each of its videos
  a pattern           'day/**/*.mp4', in quotes: every video, and every folder of images, that matches
  an address          s3://bucket/day/*.mp4, gs://, https:// and whatever else fsspec has a driver for; a video is
                      copied into TMPDIR while it is read
  a YouTube-VIS JSON  all of its videos; images beside it, in JPEGImages/, or in --image-root

Every frame is processed exactly once. In DIR/<source name>/ you find
  tracks.jsonl   a line of JSON a frame: time, size, and each instance's track id, class, score, box, mask (COCO RLE)
  results.json   YouTube-VIS results, as the evaluation server takes them
  overlay.mp4    the video with masks, boxes, classes and ids in colours that stay with their tracks
  masks/         DAVIS palette PNGs, a frame each, pixel value track id + 1
  davis/         with --save davis: the same of a video's 20 best tracks, numbered from 1 and called as its images, as
                 the unsupervised task of DAVIS 2019 wants them
and beside these folders
  manifest.json  which videos are done, a line each; the same command goes on after a Ctrl-C, a crash or a kill where
                 it was, and its results are the same bytes. Videos that are done are not run again: see --fresh
  failed.json    which sources failed, at which frame and why; they are tried again next time. No such file: none
  unfinished/    what is not whole: of a run cut by Ctrl-C whole lines, a video that plays and valid JSON of the frames
                 so far. A video's outputs move from there to their place all at once, when they are whole
"""

EPILOG = """
examples:
  maskstream run street.mp4 market.mkv --out runs/today
  maskstream run frames/ --save jsonl,masks                   only these outputs
  maskstream run 'archive/**/*.mp4' --save jsonl --out runs/archive      thousands of videos; cut it, and go on
  maskstream run 's3://bucket/day/*.mp4' --executor ray --address auto --replicas 8     spread over a cluster
  maskstream run 'DAVIS/JPEGImages/480p/*' --save davis       proposals, for `maskstream evaluate davis`
  maskstream run a.mp4 --fresh                                make anew what is done, or was made with other settings
  maskstream run a.mp4 --set associate.min_match=0.5          a setting of a stage of the graph
  maskstream run a.mp4 --set network.detect.min_score=0.1     a setting of the network
  maskstream run a.mp4 --set sinks.min_score=0.5              calmer pictures: paint confident tracks alone
  maskstream run *.mp4 --set batching.streams=8               eight videos open at once
  maskstream run *.mp4 --executor ray                         stages as actors of a Ray cluster on this machine
  maskstream run *.mp4 --executor ray --address auto          of the cluster that this machine is part of
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("sources", nargs="+", metavar="SOURCE", help="videos, folders, patterns, addresses, YouTube-VIS JSONs")
    add("--network", default="configs/networks/tiny.yaml", metavar="FILE", help="which network (default: %(default)s)")
    add_executor(parser)
    add("--out", default="runs/run", metavar="DIR", help="where the results go (default: %(default)s)")
    add("--save", default="jsonl,ytvis,video,masks", metavar="KINDS", help="which outputs, of jsonl, ytvis, video, "
        "masks and davis (default: %(default)s)")  # fmt: skip
    add("--image-root", metavar="DIR", help="where the images of a YouTube-VIS JSON lie")
    add("--fresh", action="store_true", help="make all anew, also what is done or of other settings")
    add_watching(parser)
    add_set(parser, "associate.min_match=0.5 (see the examples)")


def execute(args: argparse.Namespace) -> int:
    from operators.formats import Categories
    from operators.sources import find_sources
    from pipelines.file_kinds import refuse_for_source
    from pipelines.graph import load_graph
    from pipelines.manifest import Manifest
    from pipelines.mark import mark_of
    from pipelines.networks import default_graph, read_checkpoint, read_network
    from pipelines.outputs import Outputs
    from pipelines.run import replicated
    from pipelines.show import print_summary
    from pipelines.stages import STAGES, association_of, choose_device

    address = cluster_address(args)
    check_outputs(args)
    for argument in args.sources:
        refuse_for_source(argument)
    groups = grouped(args.overrides, ("network", "sinks"))
    spec = read_network(args.network, tuple(groups["network"]))
    graph = replicated(load_graph(args.graph or default_graph(spec), STAGES, groups["graph"]), args.replicas)
    sinks = sink_settings(groups["sinks"])
    categories = Categories.numbered(read_checkpoint(spec).classes)
    outputs = Outputs(Path(args.out), _kinds(args.save), categories, sinks, association_of(graph, spec))
    if args.executor == "local":
        choose_device(args.device)
    sources, errors = find_sources(args.sources, image_root=args.image_root)
    refuse_inputs(sources, outputs.directory, args.trace)
    with Manifest(outputs.directory, mark_of(spec, graph, sinks), args.fresh) as manifest:
        summary = _watched(args, sources, errors, graph, spec, outputs, address, manifest)
    print_summary(summary, outputs)
    return summary.exit_code if sources else max(error.exit_code for error in errors)


def _watched(args: argparse.Namespace, sources: Sequence[Source], errors: Sequence[UnusableSource], graph: Graph,
             spec: NetworkSpec, outputs: Outputs, address: str | None, manifest: Manifest) -> RunSummary:  # fmt: skip
    """The run itself, with all that looks on."""
    from pipelines.graph import RunContext
    from pipelines.run import run

    with watching(args, graph) as looking:
        context = RunContext(spec, args.device, trace=looking.trace, metrics=args.metrics)
        return run(sources, errors, graph, context, outputs, args.executor, address, looking.view, manifest,
                   looking.watches)  # fmt: skip


def refuse_inputs(sources: Sequence[Source], directory: Path, trace: str | None) -> None:
    """Raises ConfigError where what is written would come among images that are read, or in the place of a video; and
    where outputs of an earlier run would be read."""
    from operators.sinks import SINKS
    from pipelines.manifest import MANIFEST_FILE
    from pipelines.outputs import UNFINISHED

    made = {sink.file for sink in SINKS.values()}
    homes = [directory.resolve(), (directory / UNFINISHED).resolve()] if (directory / MANIFEST_FILE).exists() else []
    for source in sources:
        if is_address(source.path):
            continue
        place = Path(source.place).resolve()
        read, folder = place.parent if source.files else place, (directory / source.name).resolve()
        if folder == read or folder == read.parent and read.name in made:
            raise ConfigError(f"--out {directory}: the outputs of {source.name} would come into {folder}, among what "
                              f"is read. Name another folder.")  # fmt: skip
        if read.name in made and read.parent.parent in homes:
            raise ConfigError(f"--out {directory}: {read} is an output of an earlier run into this folder, and would "
                              f"be run in its turn. Name another folder, or sources without it.")  # fmt: skip
        if trace and Path(trace).resolve() == read:
            raise ConfigError(f"--trace {trace}: is a source. Name another file.")


def sink_settings(overrides: Sequence[str]) -> SinkConfig:
    """The settings of `--set sinks.key=value`. Raises ConfigError."""
    from operators.sinks import SinkConfig
    from pipelines.config import apply_overrides, build

    return build(SinkConfig, apply_overrides({}, overrides, "--set"), "--set", "sinks")


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
    if not kinds:
        raise ConfigError(f"--save '{text}': names no output.{did_you_mean('', SINKS)}")
    for kind in kinds:
        if kind not in SINKS:
            raise ConfigError(f"--save {text}: no output is called '{kind}'.{did_you_mean(kind, SINKS)}")
    return kinds
