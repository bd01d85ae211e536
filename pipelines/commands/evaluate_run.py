"""`maskstream evaluate run`: a network over a dataset, then its scores."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands.shared import (
    add_debug,
    add_executor,
    add_set,
    add_watching,
    check_outputs,
    cluster_address,
    counting,
    watching,
)

if TYPE_CHECKING:
    from pipelines.commands.shared import Looking
    from pipelines.datasets import DatasetFile
    from pipelines.evaluation import EvaluationPlan
    from pipelines.networks import NetworkSpec

HELP = "run a network over a dataset, then score it"
DESCRIPTION = """Run NETWORK over every video of DATASET through the graph, and score the results as the YouTube-VIS
evaluator does.

DATASET is a YouTube-VIS JSON with annotations, a DAVIS folder, or a file of configs/datasets that says where one lies.
Of DAVIS, J and F are scored as `maskstream evaluate davis` does it, whatever the classes: in DIR then lie
<sequence>/davis/<frame>.png, at most 20 proposals a sequence, and scores.json.
In DIR: <video>/results.json, results.json of all, as the evaluation server takes it, and scores.json. Results are there
before they are scored. The same command goes on where it was cut: videos that manifest.json says are done are not run
again; failed.json says which failed, and why."""
EPILOG = """
examples:
  maskstream evaluate run configs/networks/tiny.yaml configs/datasets/shapes_held_out.yaml
  maskstream evaluate run my.yaml valid.json --image-root valid/JPEGImages --executor ray --out runs/valid
  maskstream evaluate run my.yaml valid.json --set network.inference.form=fused --set associate.min_match=0.5
  maskstream evaluate run configs/networks/tltm_r101_davis.yaml configs/datasets/davis_2019.yaml \\
    --set network.weights=weights/tltm_r101.safetensors
  maskstream evaluate run my.yaml DAVIS/ --set sinks.davis.choice=first --set sinks.davis.on_top=worst
  maskstream evaluate run iai.yaml ovis.json --set sinks.max_per_video=50     as many tracks as OVIS is scored with
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("network", metavar="NETWORK", help="a file of configs/networks, with weights")
    add("dataset", metavar="DATASET", help="a YouTube-VIS JSON, a DAVIS folder, or a file of configs/datasets")
    add("--subset", default="val", help="the list in ImageSets of a DAVIS folder (default: %(default)s)")
    add("--image-root", metavar="DIR", help="where the images of a JSON lie (default: JPEGImages beside it)")
    add_executor(parser)
    add("--out", default="runs/evaluation", metavar="DIR", help="where results and scores go (default: %(default)s)")
    add("--fresh", action="store_true", help="run all videos anew, also those done, or of other settings")
    add_watching(parser)
    add_set(parser, "associate.min_match=0.5, network.detect.min_score=0.1 or sinks.max_per_video=50")
    add_debug(parser)
    parser.set_defaults(command=execute)


def execute(args: argparse.Namespace) -> int:
    from pipelines.commands.run import grouped, sink_settings
    from pipelines.datasets import read_dataset_file
    from pipelines.evaluation import EvaluationPlan
    from pipelines.graph import load_graph
    from pipelines.networks import default_graph, read_network
    from pipelines.stages import STAGES

    check_outputs(args)
    groups = grouped(args.overrides, ("network", "sinks"))
    spec = read_network(args.network, tuple(groups["network"]))
    data = read_dataset_file(args.dataset, args.image_root)
    graph = args.graph or default_graph(spec)
    address, sinks = cluster_address(args), sink_settings(groups["sinks"])
    with watching(args, load_graph(graph, STAGES, groups["graph"])) as looking:
        plan = EvaluationPlan(graph=graph, settings=tuple(groups["graph"]), executor=args.executor, address=address,
                              device=args.device, replicas=args.replicas, sinks=sinks, fresh=args.fresh,
                              trace=looking.trace, metrics=args.metrics)  # fmt: skip
        show = _davis if data.davis else _youtube_vis
        shown = show(args, spec, data, plan, looking)
    shown()
    print(Path(args.out) / "scores.json")
    return 0


def _youtube_vis(
    args: argparse.Namespace, spec: NetworkSpec, data: DatasetFile, plan: EvaluationPlan, looking: Looking
) -> Callable[[], None]:
    """Run and score; gives what prints the scores, once the progress view is gone."""
    from pipelines.evaluation import evaluate_network
    from pipelines.youtube_vis_show import print_scores

    found = evaluate_network(spec, Path(data.annotations), data.images, Path(args.out), plan, looking.view,
                             looking.watches)  # fmt: skip

    def shown() -> None:
        print_scores(found.detail)
        switches = found.switches
        print(f"association: {found.association}; {switches.switches} ID switches; "
              f"{switches.matched} of {switches.visible} visible object frames matched{_rate(found.frames_per_s)}")

    return shown


def _davis(
    args: argparse.Namespace, spec: NetworkSpec, data: DatasetFile, plan: EvaluationPlan, looking: Looking
) -> Callable[[], None]:
    """Run a DAVIS folder; gives what scores it, with a progress of its own, and prints the scores."""
    from operators.davis import format_table
    from pipelines.evaluation import run_davis, score_davis

    images = None if data.image_root is None else Path(data.image_root)
    ran = run_davis(spec, Path(data.annotations), images, Path(args.out), plan, looking.view, looking.watches,
                    subset=args.subset)  # fmt: skip

    def shown() -> None:
        with counting("frames") as progress:
            scores = score_davis(ran, progress)
        print(format_table(scores))
        print(f"association: {ran.association}{_rate(ran.frames_per_s)}")

    return shown


def _rate(frames_per_s: float) -> str:
    return f"; {frames_per_s:.1f} frames/s" if frames_per_s else ""
