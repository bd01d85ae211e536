"""`maskstream demo`: the main job on a generated clip."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipelines.demo import DEMOS
from pipelines.demo import main as demo

HELP = "generate a clip, track it, and say where the video is"


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "where the clip and the results go (default: %(default)s)"
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help=text)
    text = "whose network tracks it, on a clip of the kind that it was trained for (default: %(default)s)"
    parser.add_argument("--system", choices=DEMOS, default=next(iter(DEMOS)), help=text)
    parser.add_argument("--animation", metavar="FILE", help="write the overlay as a small .webp or .gif too")


def execute(args: argparse.Namespace) -> int:
    return demo(Path(args.out), args.system, Path(args.animation) if args.animation else None)
