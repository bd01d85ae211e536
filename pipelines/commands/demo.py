"""`maskstream demo`: the main job on a generated clip."""

from __future__ import annotations

import argparse
from pathlib import Path

from operators.errors import ConfigError
from operators.replacing import check_file, check_folder
from pipelines.demo import DEMOS
from pipelines.demo import main as demo

HELP = "generate a clip, track it, and say where the video is"
DESCRIPTION = """Generate a clip of moving shapes, track it by a shipped network, and say where the video with masks and
ids is. What is done are two commands, `maskstream shapes` and `maskstream run`, which are shown. Nothing is needed but
this checkout, and a minute."""
EPILOG = """
examples:
  maskstream demo                                then open runs/demo/clip_00000/overlay.mp4
  maskstream demo --system iai                   IAI in place of CrossVIS
  maskstream demo --animation demo.webp          a small moving picture too
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    text = "where the clip and the results go (default: %(default)s)"
    parser.add_argument("--out", default="runs/demo", metavar="DIR", help=text)
    text = "whose network tracks it, on a clip of the kind that it was trained for (default: %(default)s)"
    parser.add_argument("--system", choices=DEMOS, default=next(iter(DEMOS)), help=text)
    parser.add_argument("--animation", metavar="FILE", help="write the overlay as a small .webp or .gif too")


def execute(args: argparse.Namespace) -> int:
    check_folder(args.out, "--out")
    if args.animation is not None:
        check_file(args.animation, "--animation")
        if Path(args.animation).suffix.lower() not in (".webp", ".gif"):
            raise ConfigError(f"--animation {args.animation}: expected a name that ends in .webp or .gif.")
    return demo(Path(args.out), args.system, Path(args.animation) if args.animation else None)
