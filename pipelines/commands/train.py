"""`maskstream train`: a network from a file of configs/training."""

from __future__ import annotations

import argparse

from pipelines.commands.shared import add_set

HELP = "train a network from a file of configs/training"


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a file of configs/training, as configs/training/tiny.yaml")
    add("--out", default="runs/train", metavar="DIR", help="where curves, checkpoints and weights go")
    add("--resume", action="store_true", help="go on with the run in --out")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the run")
    add_set(parser, "optimizer.learning_rate=1e-3")


def execute(args: argparse.Namespace) -> int:
    from trainers.train import train

    weights = train(args.config, args.overrides, out=args.out, resume=args.resume, address=args.address)
    print(weights)
    return 0
