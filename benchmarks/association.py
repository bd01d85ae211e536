"""What the embedding buys: AP and ID switches of one network under several rules of association.

    python -m benchmarks.association [--network configs/networks/tiny.yaml] [--clips 40] [--seed 2] [--preset medium]

Generates held-out clips (a seed that training never saw), runs `maskstream run` over them once for each rule, evaluates
by the YouTube-VIS protocol, counts ID switches (operators/id_switches.py), and prints a table in Markdown with the
machine, the versions and the date beside it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from pathlib import Path

import torch

from operators.id_switches import count_switches
from operators.youtube_vis import evaluate
from operators.youtube_vis_data import read_dataset
from operators.youtube_vis_results import read_results
from pipelines.cli import main as maskstream

RULES = {
    "embedding + box IoU": (),
    "box IoU alone": ("associate.embedding_weight=0",),
    "embedding alone": ("associate.iou_weight=0",),
}
"""Rule -> settings of the graph. All three keep the class gate and the threshold of 0.4."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="configs/networks/tiny.yaml")
    parser.add_argument("--preset", default="medium")
    parser.add_argument("--clips", type=int, default=40)
    parser.add_argument("--seed", type=int, default=2, help="2 by default; the shipped weights were trained on 1")
    parser.add_argument("--out", type=Path, default=Path("runs/association"))
    args = parser.parse_args()
    data = args.out / f"{args.preset}-{args.seed}-{args.clips}"
    maskstream_or_exit(["shapes", "--out", str(data), "--preset", args.preset, "--seed", str(args.seed),
                        "--clips", str(args.clips), "--workers", str(os.cpu_count() or 1)])
    dataset = read_dataset(data / "instances.json")
    rows = []
    for number, (rule, settings) in enumerate(RULES.items()):
        out = args.out / f"rule-{number}"
        overrides = [word for setting in settings for word in ("--set", setting)]
        maskstream_or_exit(["run", str(data / "instances.json"), "--image-root", str(data / "JPEGImages"),
                            "--network", args.network, "--save", "ytvis", "--out", str(out), *overrides])
        results = read_results(out / "results.json")
        scores, switches = evaluate(dataset, results), count_switches(dataset, results).total
        rows.append({"rule": rule, **scores.overall, "switches": switches.switches, "matched": switches.matched,
                     "visible": switches.visible})
    print(table(rows, args))
    (args.out / "association.json").write_text(json.dumps(rows, indent=1))
    return 0


def maskstream_or_exit(arguments: list[str]) -> None:
    """Run a command of ours in this process; end with its exit code where it fails."""
    if code := maskstream(arguments):
        sys.exit(code)


def table(rows: list[dict], args: argparse.Namespace) -> str:
    lines = [
        f"{args.clips} held-out clips, preset {args.preset}, seed {args.seed}; {args.network}; "
        f"{datetime.date.today()}; {os.cpu_count()} x {platform.machine()}, torch {torch.__version__}",
        "",
        "| association | AP | AP50 | AP75 | AR10 | ID switches | matched / visible object frames |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {row['rule']} | {row['AP']:.3f} | {row['AP50']:.3f} | {row['AP75']:.3f} | {row['AR10']:.3f} "
            f"| {row['switches']} | {row['matched']} / {row['visible']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
