"""`maskstream evaluate run`: a network over a dataset, then its scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.shared import add_debug, add_executor, add_set, add_watching, cluster_address, watching

HELP = "run a network over a dataset, then score it"
DESCRIPTION = """Run NETWORK over every video of DATASET through the graph, and score the results as the YouTube-VIS
evaluator does.

DATASET is a YouTube-VIS JSON with annotations, or a file of configs/datasets that says where one lies.
In DIR: <video>/results.json, results.json of all, as the evaluation server takes it, and scores.json. Results are there
before they are scored. The same command goes on where it was cut: videos that manifest.json says are done are not run
again; failed.json says which failed, and why."""
EPILOG = """
examples:
  maskstream evaluate run configs/networks/tiny.yaml configs/datasets/shapes_held_out.yaml
  maskstream evaluate run my.yaml valid.json --image-root valid/JPEGImages --executor ray --out runs/valid
  maskstream evaluate run my.yaml valid.json --set network.inference.form=fused --set associate.min_match=0.5
  maskstream evaluate run iai.yaml ovis.json --set sinks.max_per_video=50     as many tracks as OVIS is scored with
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("network", metavar="NETWORK", help="a file of configs/networks, with weights")
    add("dataset", metavar="DATASET", help="a YouTube-VIS JSON, or a file of configs/datasets")
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
    from pipelines.evaluation import EvaluationPlan, evaluate_network
    from pipelines.graph import load_graph
    from pipelines.networks import default_graph, read_network
    from pipelines.stages import STAGES
    from pipelines.youtube_vis_show import print_scores

    groups = grouped(args.overrides, ("network", "sinks"))
    spec = read_network(args.network, tuple(groups["network"]))
    data = read_dataset_file(args.dataset, args.image_root)
    graph = args.graph or default_graph(spec)
    address, sinks = cluster_address(args), sink_settings(groups["sinks"])
    with watching(args, load_graph(graph, STAGES, groups["graph"])) as looking:
        plan = EvaluationPlan(graph=graph, settings=tuple(groups["graph"]), executor=args.executor, address=address,
                              device=args.device, replicas=args.replicas, sinks=sinks, fresh=args.fresh,
                              trace=looking.trace, metrics=args.metrics)  # fmt: skip
        found = evaluate_network(spec, Path(data.annotations), data.images, Path(args.out), plan, looking.view,
                                 looking.watches)  # fmt: skip
    print_scores(found.detail)
    switches = found.switches
    rate = f"; {found.frames_per_s:.1f} frames/s" if found.frames_per_s else ""
    print(f"association: {found.association}; {switches.switches} ID switches; "
          f"{switches.matched} of {switches.visible} visible object frames matched{rate}")
    print(Path(args.out) / "scores.json")
    return 0
