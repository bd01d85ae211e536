"""`maskstream evaluate`: results against ground truth."""

from __future__ import annotations

import argparse

from pipelines.commands.shared import add_debug, counting

HELP = "score results against ground truth"


def arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    text = "AP and AR of YouTube-VIS and OVIS, as the official evaluator computes them"
    youtube_vis = benchmarks.add_parser("youtube-vis", help=text, description=text)
    youtube_vis.add_argument("truth", metavar="GT", help="annotations, a YouTube-VIS JSON")
    youtube_vis.add_argument("results", metavar="RESULTS", help="results.json of one video, or of all")
    youtube_vis.add_argument("--json", metavar="OUT", help="write the numbers here too")
    add_debug(youtube_vis)
    youtube_vis.set_defaults(command=_youtube_vis)


def _youtube_vis(args: argparse.Namespace) -> int:
    from operators.youtube_vis import format_table, main_evaluate

    with counting("videos") as progress:
        scores = main_evaluate(args.truth, args.results, args.json, progress=progress)
    print(format_table(scores))
    return 0
