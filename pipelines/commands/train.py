"""`maskstream train`: a network from a file of configs/training."""

from __future__ import annotations

import argparse
from pathlib import Path

from operators.replacing import check_folder
from pipelines.commands.shared import add_set

HELP = "train a network from a file of configs/training"
DESCRIPTION = """Train a network. CONFIG names the network, its dataset, how long, and with how much of the cluster.

All that can be known to be wrong is told before training begins: settings, dataset, images, weights, room. In DIR are
then report.html (curves, scores, pictures; however the run ended), metrics.jsonl, tensorboard/, checkpoints/, and at
the end weights.safetensors. A run that was cut, by Ctrl-C too, goes on by --resume, and ends as it would have uncut."""
EPILOG = """
examples:
  maskstream shapes --out data/shapes-medium --preset medium --clips 400 --seed 1 --workers 2      its dataset
  maskstream train configs/training/tiny.yaml --preview samples.png          look at the first samples, train nothing
  maskstream train configs/training/tiny.yaml --out runs/tiny                then runs/tiny/report.html
  maskstream train configs/training/tiny.yaml --out runs/tiny --resume       go on where it was cut
  maskstream train my.yaml --set data.annotations=train.json --set data.image_root=JPEGImages --set steps=500
  maskstream train my.yaml --address auto --set workers.num_workers=8 --set workers.use_gpu=true     on a cluster
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("config", metavar="CONFIG", help="a file of configs/training, as configs/training/tiny.yaml")
    add("--out", default="runs/train", metavar="DIR",
        help="where report, curves, checkpoints and weights go (default: %(default)s)")
    one_of = parser.add_mutually_exclusive_group()
    one_of.add_argument("--resume", action="store_true", help="go on with the run in --out, from its last checkpoint")
    one_of.add_argument("--begin-or-resume", action="store_true",
                        help="go on where --out holds a run, else begin one: for whatever starts the command again")
    one_of.add_argument("--preview", type=Path, metavar="OUT.png",
        help="only draw the first samples as the network would get them, augmented, with masks and boxes")
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the run")
    add_set(parser, "optimizer.learning_rate=1e-3")


def execute(args: argparse.Namespace) -> int:
    if args.preview is not None:
        from trainers.preview import preview

        for row, name in enumerate(preview(args.config, args.overrides, args.preview), start=1):
            print(f"row {row}: video {name.video}, frames {', '.join(map(str, name.frames))}")
        print(args.preview)
        return 0
    check_folder(args.out, "--out")
    from trainers.train import holds_run, train

    resume = args.resume or args.begin_or_resume and holds_run(args.out)
    weights = train(args.config, args.overrides, out=args.out, resume=resume, address=args.address)
    print(weights)
    return 0
