"""`maskstream dataset show`: ground truth over its frames."""

from __future__ import annotations

import argparse
from pathlib import Path

from operators.errors import ConfigError
from pipelines.commands.shared import EXIT_CODES, counting

HELP = "draw ground truth over its frames, as a video or a contact sheet"
DESCRIPTION = """Draw masks, boxes, classes and track ids over the frames of a dataset. Colours stay with their tracks.

FILE.mp4 (or .mkv, .webm) shows every frame of the videos named, or of the first; FILE.png is a sheet, a row each for
the first videos, or filled with those named. A frame whose image is missing is grey and says its name."""
EPILOG = """
examples:
  maskstream dataset show train.json --out sheet.png --sheet 4x6
  maskstream dataset show train.json --video 3 0043f083b5 --out two.mp4
  maskstream dataset show DAVIS/ --from davis --video libby --out libby.mp4 --fps 24
""" + EXIT_CODES
FORMATS = ("youtube-vis", "ovis", "davis", "mots", "coco")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help="a dataset: a JSON or a folder")
    add("--out", required=True, type=Path, metavar="FILE", help=".mp4, .mkv or .webm, or .png for a sheet")
    add("--video", nargs="+", action="extend", default=[], metavar="NAME|ID", help="which videos, in this order")
    add("--images", "--image-root", dest="image_root", type=Path, metavar="DIR",
        help="where the images lie (default: looked for beside IN)")
    add("--sheet", default="4x6", metavar="ROWSxCOLS", help="of a .png (default: %(default)s)")
    add("--fps", type=float, default=6.0, metavar="N", help="of a video (default: %(default)s)")
    add("--from", dest="source_format", choices=FORMATS, help="what IN is (default: a JSON is youtube-vis, a folder "
        "with text files mots, another folder davis)")                                             # fmt: skip


def execute(args: argparse.Namespace) -> int:
    from operators.datasets.convert import ConvertOptions, guess_format, open_truth
    from operators.datasets.files import check_output
    from operators.datasets.show import choose_videos, parse_sheet, show_sheet, show_video
    from operators.replacing import check_file

    is_sheet = args.out.suffix.lower() == ".png"
    rows, columns = parse_sheet(args.sheet)
    if not 0.01 <= args.fps <= 1000:
        raise ConfigError(f"--fps {args.fps:g}: expected 0.01 to 1000 frames a second.")
    check_file(args.out, "--out")
    check_output(args.source, args.out)
    options = ConvertOptions(image_root=args.image_root)
    truth = open_truth(args.source, args.source_format or guess_format(args.source), options)
    chosen = choose_videos(truth, args.video, default=rows if is_sheet else 1)
    with counting("frames") as progress:
        if is_sheet:
            shown = show_sheet(truth, chosen, args.out, rows, columns, progress)
        else:
            shown = show_video(truth, chosen, args.out, args.fps, progress)
    print(f"{shown.path}: {shown.frames:,} frames of {shown.videos:,} of {truth.num_videos:,} videos")
    if shown.missing:
        print(f"{shown.missing:,} frames have no image and are grey, the first: {shown.first_missing}")
    if shown.resized:
        print(f"{shown.resized:,} images are of another size than their video, and were stretched to it")
    return 0
