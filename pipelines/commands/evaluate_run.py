"""`maskstream evaluate run`: a network over a dataset, then its scores."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.shared import add_debug, add_set

HELP = "run a network over a dataset, then score it"
DESCRIPTION = """Run NETWORK over every video of DATASET through the graph, and score the results as the YouTube-VIS
evaluator does.

DATASET is a YouTube-VIS JSON with annotations, or a file of configs/datasets that says where one lies.
In DIR: <video>/results.json, results.json of all, as the evaluation server takes it, and scores.json. Results are there
before they are scored. The same command goes on where it was cut: videos that are done are not run again."""
EPILOG = """
examples:
  maskstream evaluate run configs/networks/tiny.yaml configs/datasets/shapes_held_out.yaml
  maskstream evaluate run my.yaml valid.json --image-root valid/JPEGImages --executor ray --out runs/valid
  maskstream evaluate run my.yaml valid.json --set network.inference.form=fused --set associate.min_match=0.5
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("network", metavar="NETWORK", help="a file of configs/networks, with weights")
    add("dataset", metavar="DATASET", help="a YouTube-VIS JSON, or a file of configs/datasets")
    add("--image-root", metavar="DIR", help="where the images of a JSON lie (default: JPEGImages beside it)")
    add("--graph", default="configs/graphs/offline.yaml", metavar="FILE", help="which graph (default: %(default)s)")
    add("--executor", choices=("local", "ray"), default="local", help="this process, or Ray (default: %(default)s)")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the run")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one")
    add("--out", default="runs/evaluation", metavar="DIR", help="where results and scores go (default: %(default)s)")
    add_set(parser, "associate.min_match=0.5 or network.detect.min_score=0.1")
    add_debug(parser)
    parser.set_defaults(command=execute)


def execute(args: argparse.Namespace) -> int:
    from pipelines.commands.run import cluster_address, grouped
    from pipelines.datasets import read_dataset_file
    from pipelines.evaluation import EvaluationPlan, evaluate_network
    from pipelines.networks import read_network
    from pipelines.show import Bar
    from pipelines.youtube_vis_show import print_scores

    groups = grouped(args.overrides, ("network",))
    spec = read_network(args.network, tuple(groups["network"]))
    data = read_dataset_file(args.dataset, args.image_root)
    plan = EvaluationPlan(graph=args.graph, settings=tuple(groups["graph"]), executor=args.executor,
                          address=cluster_address(args), device=args.device)  # fmt: skip
    with Bar() as bar:
        found = evaluate_network(spec, Path(data.annotations), data.images, Path(args.out), plan, bar)
    print_scores(found.detail)
    switches = found.switches
    rate = f"; {found.frames_per_s:.1f} frames/s" if found.frames_per_s else ""
    print(f"association: {found.association}; {switches.switches} ID switches; "
          f"{switches.matched} of {switches.visible} visible object frames matched{rate}")
    print(Path(args.out) / "scores.json")
    return 0
