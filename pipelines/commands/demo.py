"""`maskstream demo`: the main job on a generated clip."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "generate a clip, track it, and say where the video is"


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "where the clip and the results go (default: %(default)s)"
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help=text)
    parser.add_argument("--animation", metavar="FILE", help="write the overlay as a small .webp or .gif too")


def execute(args: argparse.Namespace) -> int:
    from pipelines.demo import main as demo

    return demo(Path(args.out), Path(args.animation) if args.animation else None)
