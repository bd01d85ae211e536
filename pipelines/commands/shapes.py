"""`maskstream shapes`: the generated dataset."""

from __future__ import annotations

import argparse
from dataclasses import asdict

from operators.errors import ConfigError, did_you_mean
from operators.replacing import check_folder
from pipelines.commands.shared import add_set, counting

HELP = "generate clips of moving shapes with exact masks and ids"
DESCRIPTION = """Generate clips of moving shapes with exact masks and ids: a YouTube-VIS dataset (DIR/instances.json and
DIR/JPEGImages/), or encoded videos. The same command gives the same bytes; one that was cut is taken up by the same."""
EPILOG = """
examples:
  maskstream shapes --out data/few --clips 20 --preset easy
  maskstream shapes --out data/shapes-medium --preset medium --seed 1 --clips 400 --workers 2     what tiny.yaml learnt
  maskstream shapes --out clips --clips 3 --video h264 --set width=1920 --set height=1080 --set num_frames=120
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--out", required=True, metavar="DIR", help="where instances.json and JPEGImages/, or the videos, go")
    add("--preset", default="medium", help="easy, medium or hard (default: %(default)s)")
    add("--seed", type=int, default=0, help="the same seed gives the same bytes (default: %(default)s)")
    add("--clips", type=int, default=10, help="how many (default: %(default)s)")
    add("--first", type=int, default=0, help="number of the first clip, of an endless series (default: %(default)s)")
    add("--video", choices=("h264", "vp9"), help="encoded videos in place of a YouTube-VIS dataset")
    add("--workers", type=int, default=1, help="processes (default: %(default)s)")
    add_set(parser, "num_frames=60")


def execute(args: argparse.Namespace) -> int:
    from operators.shapes import PRESETS, ShapesConfig, write_videos, write_youtube_vis
    from pipelines.config import apply_overrides, build

    check_folder(args.out, "--out")
    if args.preset not in PRESETS:
        raise ConfigError(f"--preset {args.preset}: no such preset.{did_you_mean(args.preset, PRESETS)}")
    settings = apply_overrides(asdict(PRESETS[args.preset]), args.overrides, "--set")
    config = build(ShapesConfig, settings, "--set")
    with counting("clips") as progress:
        common = {"first": args.first, "workers": args.workers, "progress": progress}
        if args.video:
            written = write_videos(args.out, config, args.seed, args.clips, args.video, **common)
            made = f"{len(written)} video{'s' * (len(written) != 1)} in {args.out}"
        else:
            made = str(write_youtube_vis(args.out, config, args.seed, args.clips, **common))
    print(made)
    return 0
