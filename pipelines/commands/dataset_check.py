"""`maskstream dataset check`: every fault of a dataset, and a repaired copy."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from operators.errors import ConfigError
from pipelines.commands.shared import counting

HELP = "find every fault of a dataset, and repair what can be repaired"
DESCRIPTION = """Report every fault of a dataset: file, video, annotation, frame, what was found and what was expected.

PATH is the JSON of a YouTube-VIS 2019 or 2021 or an OVIS set, or a DAVIS folder: one with Annotations/ and, for the
images, JPEGImages/, or one folder of label maps a sequence. What it is shows in its content.

  maskstream dataset check train.json                                    images beside it, or in JPEGImages/, if there
  maskstream dataset check train.json --images frames --json report.json
  maskstream dataset check train.json --images frames --fix fixed.json   the input is never changed
  maskstream dataset check DAVIS --decode
"""
EPILOG = """
what --fix does, and says that it did:
  boxes and areas that disagree with a sound mask are computed from it
  a damaged mask, or one of the wrong size, is taken out of its frame, with its box and area
  annotations that cannot be repaired are dropped: no pixel in any frame, of a video or category that the file does not
  list, lists of the wrong length unless the entries too many are all null, or the frames too few have no box
  duplicate ids are renumbered; an annotation of a duplicate video id stays where it fits one of the videos alone
  a video's size is corrected where all its masks and images agree on another
  frames whose image is missing, unreadable or of another size leave their video; videos without frames are dropped
Annotations that are null stay null. What comes out is checked again before it is written.

exit codes:
  0    no errors (there may be warnings)
  1    errors in what was checked, repaired or not
  2    it cannot be read at all, or the command line is wrong
  130  stopped by Ctrl-C
"""
MAX_KEPT = 100_000
"""Faults of a kind that --all holds in memory, some 100 MB. --json writes them as they come, without a limit."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("path", metavar="PATH", type=Path, help="an annotation JSON, or a DAVIS folder")
    add("--images", metavar="DIR", type=Path, help="the folder of images (default: where they are found beside PATH)")
    add("--layout", choices=("youtube-vis", "ovis", "davis"), help="take PATH for this, whatever it looks like")
    add("--decode", action="store_true", help="decode every image; without it headers and ends of files are looked at")
    add("--box-tolerance", type=float, default=2.0, metavar="PX", help="pixels that an edge of a box may lie off its "
        "mask (default: %(default)s)")  # fmt: skip
    add("--area-tolerance", type=float, default=0.01, metavar="SHARE", help="share by which an area may be off its "
        "mask; two pixels are always fine, polygons half their outline (default: %(default)s)")  # fmt: skip
    add("--show", type=int, default=5, metavar="N", help="faults to print of each kind (default: %(default)s)")
    add("--all", action="store_true", help=f"print all of them, up to {MAX_KEPT} of each kind")
    add("--json", metavar="OUT", type=Path, help="write every fault here, and all that was repaired")
    add("--fix", metavar="OUT", type=Path, help="write a repaired copy of an annotation JSON here")


def execute(args: argparse.Namespace) -> int:
    from operators.datasets.check import Tolerance, find_faults, open_dataset
    from operators.datasets.faults import Report
    from operators.datasets.fix import fix_dataset, write_fixed
    from pipelines.dataset_report import json_report, print_repairs, print_report

    tolerance = Tolerance(args.box_tolerance, args.area_tolerance)
    _check_outputs(args)
    dataset = open_dataset(args.path, args.layout, args.images)
    if args.fix is not None and dataset.layout == "davis":
        raise ConfigError(f"--fix {args.fix}: repairs annotation JSONs, and {args.path} is a DAVIS folder. "
                          f"`maskstream dataset convert` makes a JSON of it.")  # fmt: skip
    report, fixed = Report(keep=MAX_KEPT if args.all else max(args.show, 0)), None
    with ExitStack() as stack:
        out = stack.enter_context(json_report(args.json, dataset)) if args.json is not None else None
        with counting("tracks and images") as progress:
            for fault in find_faults(dataset, decode=args.decode, tolerance=tolerance, progress=progress):
                report.add(fault)
                if out is not None:
                    out.fault(fault)
        if args.fix is not None:
            with counting("repairs") as progress:
                fixed = fix_dataset(dataset, decode=args.decode, tolerance=tolerance, progress=progress)
            write_fixed(dataset, fixed, args.fix)
        if out is not None:
            out.end(report, fixed)
    elsewhere = f", in {args.json}" if args.json is not None else "; --json writes all" if args.all else "; see --all"
    print_report(dataset, report, elsewhere)
    if fixed is not None:
        print_repairs(fixed, args.fix, max(args.show, 0) if not args.all else MAX_KEPT)
    return 1 if report.total("error") else 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Before any work: outputs that are the input, or one another. Raises ConfigError."""
    from operators.datasets.files import check_output
    from operators.replacing import check_file

    for out in (args.json, args.fix):
        if out is not None:
            check_output(args.path, out)
            check_file(out, "--json" if out is args.json else "--fix")
    if args.json is not None and args.fix is not None and args.json.resolve() == args.fix.resolve():
        raise ConfigError(f"{args.fix}: is named for --json and for --fix; give them names of their own.")
