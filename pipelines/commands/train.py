"""`maskstream train`: a network from a file of configs/training."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.commands.shared import add_set

HELP = "train a network from a file of configs/training"


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a file of configs/training, as configs/training/tiny.yaml")
    add("--out", default="runs/train", metavar="DIR", help="where report, curves, checkpoints and weights go")
    going_on = parser.add_mutually_exclusive_group()
    going_on.add_argument("--resume", action="store_true", help="go on with the run in --out, from its last checkpoint")
    going_on.add_argument("--begin-or-resume", action="store_true",
                          help="go on where --out holds a run, else begin one: for whatever starts the command again")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the run")
    add("--preview", type=Path, metavar="OUT.png",
        help="only draw the first samples as the network would get them, augmented, with masks and boxes")
    add_set(parser, "optimizer.learning_rate=1e-3")


def execute(args: argparse.Namespace) -> int:
    if args.preview is not None:
        from trainers.preview import preview

        for row, name in enumerate(preview(args.config, args.overrides, args.preview), start=1):
            print(f"row {row}: video {name.video}, frames {', '.join(map(str, name.frames))}")
        print(args.preview)
        return 0
    from trainers.train import holds_run, train

    resume = args.resume or args.begin_or_resume and holds_run(args.out)
    weights = train(args.config, args.overrides, out=args.out, resume=resume, address=args.address)
    print(weights)
    return 0
