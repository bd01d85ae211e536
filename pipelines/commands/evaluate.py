"""`maskstream evaluate`: results against ground truth."""

from __future__ import annotations

import argparse
import math

from operators.errors import ConfigError
from pipelines.commands import evaluate_run
from pipelines.commands.shared import EXIT_CODES, add_debug, counting

HELP = "score results against ground truth"
YOUTUBE_VIS = """AP and AR of YouTube-VIS and OVIS, as the official evaluator computes them.

GT is an annotation file of YouTube-VIS or OVIS; those of validation and test sets have no annotations to score against.
RESULTS is what `maskstream run --save ytvis` writes and the evaluation server takes: a list of video_id, category_id,
score, segmentations. Of a video and category the 100 best count. IoU is that of whole tracks: pixels in common over
pixels in either, summed over all frames.

AP is the mean over categories and the IoU thresholds 0.50, 0.55, ... 0.95; AP50 and AP75 are at one of them; AR1, AR10
and AR100 are the recall of so many results a video. s, m and l: objects of a mean area up to 128 x 128 pixels, up to
256 x 256, and above. All go from 0 to 1; -, in the JSON -1, where no object is. Annotations with labels of occlusion
(OVIS) are split by it too: no_occlusion is 0, slight_occlusion 0.25, severe_occlusion 0.75; the mean of the more
occluded half of an object's frames is up to 0.25 light, up to 0.5 medium, and above heavy.
"""
YOUTUBE_VIS_EPILOG = """
examples:
  maskstream evaluate youtube-vis instances.json results.json
  maskstream evaluate youtube-vis instances.json results.json --json scores.json --plots plots/
"""
DAVIS = """J and F of DAVIS 2019, unsupervised task, as the official toolkit computes them.

GT is a DAVIS folder (Annotations_unsupervised/480p, ImageSets/2017/val.txt) or a folder of SEQUENCE/00000.png.
RESULTS is a folder of SEQUENCE/00000.png, or what `maskstream run --save davis` leaves (`maskstream evaluate run` makes
and scores it in one command; of `--save masks` ids beyond 19 are too many). All are PNGs of labels (with a
palette, not RGB): 0 background, 255 in GT void, 1 to 20 the proposals. Every frame of GT needs its result; others are
not looked at. Proposals go to objects for the best mean of J and F over the sequence."""
DAVIS_EPILOG = """
examples:
  maskstream run 'DAVIS/JPEGImages/480p/*' --save davis --out runs/davis
  maskstream evaluate davis DAVIS runs/davis --json scores.json
"""
MOT = """HOTA, IDF1, MOTA and ID switches of mask tracks, by TrackEval.

GT is a YouTube-VIS JSON with annotations; `maskstream dataset convert` makes one of MOTS and DAVIS folders.
RESULTS is results.json, or the folder of a run with VIDEO/tracks.jsonl.

Matched twice: class-agnostic, and within each category. Frames where a track has no mask, or one without pixels, are
frames without it. Masks may overlap, each counts for itself. Crowds are regions to be ignored, as in MOTS."""
MOT_EPILOG = """
examples:
  maskstream evaluate mot instances.json runs/run/street/results.json
  maskstream evaluate mot instances.json runs/run --min-score 0.5 --json scores.json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    _add_youtube_vis(benchmarks)
    _add_davis(benchmarks)
    _add_mot(benchmarks)
    raw = argparse.RawDescriptionHelpFormatter
    run = benchmarks.add_parser("run", help=evaluate_run.HELP, description=evaluate_run.DESCRIPTION,
                                epilog=evaluate_run.EPILOG + EXIT_CODES, formatter_class=raw)    # fmt: skip
    evaluate_run.arguments(run)


def _add_youtube_vis(benchmarks: argparse._SubParsersAction) -> None:
    text = "AP and AR of YouTube-VIS and OVIS, as the official evaluator computes them"
    raw = argparse.RawDescriptionHelpFormatter
    youtube_vis = benchmarks.add_parser("youtube-vis", help=text, description=YOUTUBE_VIS,
                                        epilog=YOUTUBE_VIS_EPILOG + EXIT_CODES, formatter_class=raw)    # fmt: skip
    add = youtube_vis.add_argument
    add("truth", metavar="GT", help="annotations, a YouTube-VIS JSON")
    add("results", metavar="RESULTS", help="results.json of one video, or of all")
    add("--json", metavar="OUT", help="write the numbers here too")
    add("--plots", metavar="DIR", help="draw precision over recall, and a bar for each category, into this folder")
    add("--workers", type=int, metavar="N", help="processes; by default one, more where there is enough to do for them")
    faults = "refuse an empty list of results, and take a match with annotation id 0 for none"
    add("--official-faults", action="store_true", help=faults)
    add_debug(youtube_vis)
    youtube_vis.set_defaults(command=_youtube_vis)


def _youtube_vis(args: argparse.Namespace) -> int:
    from operators.youtube_vis import main_evaluate
    from pipelines.youtube_vis_show import print_scores

    _check_outputs(args)
    with counting("videos") as progress:
        scores = main_evaluate(args.truth, args.results, args.json, plots=args.plots, workers=args.workers,
                               official_faults=args.official_faults, progress=progress)    # fmt: skip
    print_scores(scores)
    return 0


def _check_outputs(args: argparse.Namespace) -> None:
    """Raises ConfigError, before anything is read, for outputs that cannot be written, or are an input."""
    from operators.datasets.files import check_output
    from operators.replacing import check_file, check_folder

    if args.json is not None:
        check_file(args.json, "--json")
        for source in (args.truth, args.results):
            check_output(source, args.json)
    if getattr(args, "plots", None) is not None:
        check_folder(args.plots, "--plots")


def _add_davis(benchmarks: argparse._SubParsersAction) -> None:
    text = "J and F of DAVIS 2019, unsupervised task, as the official toolkit computes them"
    raw = argparse.RawDescriptionHelpFormatter
    davis = benchmarks.add_parser("davis", help=text, description=DAVIS, epilog=DAVIS_EPILOG + EXIT_CODES,
                                  formatter_class=raw)                                                  # fmt: skip
    add = davis.add_argument
    add("truth", metavar="GT", help="the folder of the ground truth")
    add("results", metavar="RESULTS", help="the folder of the results")
    add("--json", metavar="OUT", help="write the numbers here too")
    add("--subset", default="val", help="the list in ImageSets of a DAVIS folder (default: %(default)s)")
    faults = "name rows by the proposals' order, and keep the quarters of the decay in 8 bits (NaN from 257 frames on)"
    add("--official-faults", action="store_true", help=faults)
    add_debug(davis)
    davis.set_defaults(command=_davis)


def _davis(args: argparse.Namespace) -> int:
    from operators.davis import format_table, main_evaluate

    _check_outputs(args)
    with counting("frames") as progress:
        scores = main_evaluate(args.truth, args.results, args.json, subset=args.subset,
                               official_faults=args.official_faults, progress=progress)    # fmt: skip
    print(format_table(scores))
    return 0


def _add_mot(benchmarks: argparse._SubParsersAction) -> None:
    text = "HOTA, IDF1, MOTA and ID switches of mask tracks, by TrackEval"
    raw = argparse.RawDescriptionHelpFormatter
    mot = benchmarks.add_parser("mot", help=text, description=MOT, epilog=MOT_EPILOG + EXIT_CODES,
                                  formatter_class=raw)                                                  # fmt: skip
    add = mot.add_argument
    add("truth", metavar="GT", help="annotations, a YouTube-VIS JSON")
    add("results", metavar="RESULTS", help="results.json, or a folder of VIDEO/tracks.jsonl")
    add("--json", metavar="OUT", help="write the numbers here too")
    add("--min-score", type=float, default=0.0, metavar="S", help="leave tracks of a lower score out (default: none)")
    add_debug(mot)
    mot.set_defaults(command=_mot)


def _mot(args: argparse.Namespace) -> int:
    from operators.mot import format_table, main_evaluate

    if not math.isfinite(args.min_score):
        raise ConfigError(f"--min-score {args.min_score}: expected a score, as 0.5.")
    _check_outputs(args)
    with counting("videos") as progress:
        scores = main_evaluate(args.truth, args.results, args.json, min_score=args.min_score, progress=progress)
    print(format_table(scores))
    return 0
