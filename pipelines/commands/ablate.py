"""`maskstream ablate`: a paper's tables in miniature."""

from __future__ import annotations

import argparse
import shlex

from operators.errors import ConfigError
from operators.replacing import check_folder
from pipelines.commands.shared import add_set

HELP = "train what a paper compares, and set the outcome beside the paper's"
DESCRIPTION = """Train the variants that a paper compares on generated clips, with several seeds each, score them on
clips never seen, and write DIR/table.md and DIR/ablation.png beside the paper's figures. Runs go on in parallel on a
Ray cluster.

The same command goes on where it was cut: what is scored is kept, what was training goes on from its last checkpoint.
A run that fails is told at the end, with exit code 1; the others are done all the same."""
EPILOG = """
examples:
  maskstream ablate crossvis                                  all variants, as many seeds as the file says: hours
  maskstream ablate iai --only none,both --seeds 1            two variants, one seed: a first look
  maskstream ablate crossvis --set training.steps=50 --seeds 1 --out runs/try      does it all go through?
  maskstream ablate --config mine.yaml --jobs 4 --address auto                     four runs at a time, on a cluster
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", nargs="?", help="of configs/ablations: cico, crossvis, iai, tltm (default: crossvis)")
    add("--config", metavar="FILE", help="another file of that kind, in place of NAME")
    add("--out", default="runs/ablation", metavar="DIR", help="where runs, table and picture go (default: %(default)s)")
    add("--seeds", type=int, metavar="N", help="runs of each variant, in place of the file's")
    add("--only", default="", metavar="NAME,...", help="only these variants, or those of these tables")
    add("--jobs", type=int, metavar="N", help="runs at a time (default: as many as the cluster has CPUs or GPUs for)")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the command")
    add_set(parser, "training.steps=1000, pretraining.steps=5000 or network.model.channels=64")


def execute(args: argparse.Namespace) -> int:
    from trainers.ablate import ablate

    only = [name.strip() for name in args.only.split(",") if name.strip()]
    if args.config and args.name:
        raise ConfigError(f"{args.name} and --config {args.config}: two ablations are named; give one of them.")
    if args.name and args.name.endswith((".yaml", ".yml")):
        raise ConfigError(f"{args.name}: NAME is that of a file in configs/ablations, without folder and ending, as "
                          f"iai. For a file write --config {args.name}.")  # fmt: skip
    name = args.name or "crossvis"
    path = args.config or f"configs/ablations/{name}.yaml"
    words = [f"--config={args.config}"] if args.config else [name]
    command = shlex.join(["maskstream", "ablate", *words, *(f"--set={o}" for o in args.overrides)])
    check_folder(args.out, "--out")
    failed = ablate(path, args.overrides, out=args.out, seeds=args.seeds, only=only, jobs=args.jobs,
                    address=args.address, command=command)  # fmt: skip
    return int(failed > 0)
