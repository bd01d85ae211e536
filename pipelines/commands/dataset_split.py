"""`maskstream dataset split`: parts of a dataset by video."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pipelines.commands.shared import EXIT_CODES, counting

if TYPE_CHECKING:
    from operators.datasets.split import Split

HELP = "train, validation and mini parts, by video, the same every time"
DESCRIPTION = """Split a YouTube-VIS or OVIS JSON by video into OUT_DIR/PART.json. Where a video goes follows from a
hash of the seed and the names of its images alone: neither the order of the file nor other videos matter, and a video
that is added later moves none of the others. Shares therefore hold on average, not exactly.

Categories are all kept; ids, names of images and everything else are as they were: where OUT_DIR is not the folder of
IN, name the folder of images with --image-root where they are needed. A file that is there and differs is an error."""
EPILOG = """
examples:
  maskstream dataset split train.json splits/ --parts train=0.8,val=0.2
  maskstream dataset split train.json splits/ --parts train=0.9,val=0.1 --mini 20     and 20 of train as mini.json
  maskstream dataset split train.json splits/ --parts train=0.8,val=0.2 --stratify    each category in both
""" + EXIT_CODES


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help="a YouTube-VIS or OVIS JSON")
    add("out_dir", metavar="OUT_DIR", help="where PART.json go")
    add("--parts", default="train=0.8,val=0.2", metavar="NAME=SHARE,...", help="(default: %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="another number, another split (default: %(default)s)")
    add("--mini", type=int, default=0, metavar="N", help="also write N videos of the first part as mini.json")
    add("--stratify", action="store_true",
        help="move videos until each part has each category where possible; adding a video may then move others")


def execute(args: argparse.Namespace) -> int:
    from operators.datasets.split import parse_parts, split
    from operators.replacing import check_folder

    parts = parse_parts(args.parts)
    check_folder(args.out_dir, "OUT_DIR")
    with counting("parts") as progress:
        done = split(args.source, args.out_dir, parts, seed=args.seed, mini=args.mini, stratified=args.stratify,
                     progress=progress)                                                            # fmt: skip
    print_split(done)
    return 0


def print_split(done: Split) -> None:
    """A row a part, a row a category that has annotations, and what should be known."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    counts = Table("part", "videos", "frames", "annotations", "file", box=None)
    for part in done.parts:
        counts.add_row(part.name, f"{part.videos:,}", f"{part.frames:,}", f"{part.annotations:,}", str(part.path))
    console.print(counts)
    categories = Table("annotations of", *(part.name for part in done.parts), box=None)
    for name in done.parts[0].per_category:
        row = [part.per_category[name] for part in done.parts]
        if any(row):
            categories.add_row(escape(name), *(f"{number:,}" for number in row))
    if categories.row_count:
        console.print()
        console.print(categories)
    for note in done.notes:
        print(note)
