"""`maskstream ablate`: a paper's tables in miniature."""

from __future__ import annotations

import argparse
import shlex

from pipelines.commands.shared import add_set

HELP = "train what a paper compares, and set the outcome beside the paper's"
DESCRIPTION = """Train the variants that a paper compares on generated clips, with several seeds each, score them on
clips never seen, and write DIR/table.md and DIR/ablation.png beside the paper's figures. Runs go on in parallel on a
Ray cluster.

The same command goes on where it was cut: what is scored is kept, what was training goes on from its last checkpoint.
A run that fails is told at the end, with exit code 1; the others are done all the same."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", metavar="NAME", nargs="?", default="crossvis", help="of configs/ablations (default: %(default)s)")
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
    path = args.config or f"configs/ablations/{args.name}.yaml"
    words = [f"--config={args.config}"] if args.config else [args.name]
    command = shlex.join(["maskstream", "ablate", *words, *(f"--set={o}" for o in args.overrides)])
    failed = ablate(path, args.overrides, out=args.out, seeds=args.seeds, only=only, jobs=args.jobs,
                    address=args.address, command=command)  # fmt: skip
    return int(failed > 0)
