"""`maskstream dataset stats`: what a dataset is made of."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.commands.shared import EXIT_CODES, counting

if TYPE_CHECKING:
    from operators.datasets.stats import Stats

HELP = "count and plot instances, lengths, sizes, occlusion, speed"
DESCRIPTION = """Count and measure a dataset: videos, frames, tracks of each category, how long tracks are seen and how
often they come back, how large masks are, how fast they move, how much they cover each other.

Occlusion is that of OVIS's labels where the file has them. Without labels the overlap of boxes stands in: of the area
that the boxes of a frame cover, the share that several cover (the OVIS paper's bounding-box occlusion rate)."""
EPILOG = """
examples:
  maskstream dataset stats train.json --plots plots/
  maskstream dataset stats DAVIS/ --from davis --json davis.json
""" + EXIT_CODES
FORMATS = ("youtube-vis", "ovis", "davis", "mots", "coco")


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("source", metavar="IN", help="a dataset: a JSON or a folder")
    add("--from", dest="source_format", choices=FORMATS, help="what IN is (default: a JSON is youtube-vis, a folder "
        "with text files mots, another folder davis)")                                             # fmt: skip
    add("--plots", metavar="DIR", help="draw histograms.png and categories.png here")
    add("--json", type=Path, metavar="OUT", help="write the numbers here too")


def execute(args: argparse.Namespace) -> int:
    from operators.datasets.convert import guess_format, open_truth
    from operators.datasets.files import check_output, new_json, write_json
    from operators.datasets.stats import collect
    from operators.replacing import check_file, check_folder

    if args.json:
        check_output(args.source, args.json)
        check_file(args.json, "--json")
    if args.plots is not None:
        check_folder(args.plots, "--plots")
    truth = open_truth(args.source, args.source_format or guess_format(args.source))
    with counting("videos") as progress:
        stats = collect(truth, progress)
    print_stats(stats)
    if args.json:
        with new_json(args.json) as file:
            write_json(file, stats.as_json())
    if args.plots:
        from operators.datasets.plots import write_plots

        print("plots: " + ", ".join(map(str, write_plots(stats, args.plots))))
    return 0


def print_stats(stats: Stats) -> None:
    """Counts, a row a distribution, a row a category, and what should be known."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from operators.datasets.stats import DISTRIBUTIONS, summary

    console = Console(highlight=False)
    counts = Table("", "", box=None, show_header=False)
    for name, number in stats.counts.items():
        counts.add_row(f"{number:,}", name.replace("_", " "))
    for name, number in stats.area_classes.items():
        counts.add_row(f"{number:,}", f"tracks of a {name} mean area")
    for level, number in (stats.occlusion or {}).items():
        counts.add_row(f"{number:,}", f"masks labelled {level.replace('_', ' ')}")
    counts.columns[0].justify = "right"
    console.print(counts)
    measured = Table("", *("n", "mean", "min", "median", "90 %", "max"), box=None)
    for column in measured.columns[1:]:
        column.justify = "right"
    for name, values in stats.distributions.items():
        n, *numbers = summary(values).values()
        measured.add_row(DISTRIBUTIONS[name], f"{n:,}", *("-" if v is None else f"{v:.4g}" for v in numbers))
    console.print()
    console.print(measured)
    categories = Table("category", "tracks", "masks", "videos", "frames a track", "median size", box=None)
    for column in categories.columns[1:]:
        column.justify = "right"
    for name, row in stats.per_category.items():
        categories.add_row(escape(name), f"{row.tracks:,}", f"{row.masks:,}", f"{row.videos:,}",
                           f"{row.mean_length:.1f}", f"{row.median_size:.2%}")                     # fmt: skip
    console.print()
    console.print(categories)
    if stats.unused:
        console.print(f"Categories without tracks: {len(stats.unused)}.")
    if stats.occlusion is None:
        console.print("No occlusion labels: the overlap of boxes stands in for them.")
    for note in stats.notes:
        print(note)
