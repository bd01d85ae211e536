"""How fast `maskstream evaluate youtube-vis` is, beside the official program's loops written out plainly.

    python -m benchmarks.evaluation [--cases dense,sparse,one] [--turns 5] [--workers N]

Makes datasets of moving ellipses, writes them as JSON files, and times both from reading the files to the numbers: ours
(operators/youtube_vis.py) and the direct port of the official loops that the tests hold ours against
(tests/operators/official_loops.py). They run in turns in one process; medians, and the largest difference of any of the
twelve numbers, are printed as a table in Markdown with the machine, the versions and the date beside it. `--cpu-time`
counts the seconds that this process ran in place of those on the clock: for machines that have other work to do.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycocotools.mask as coco_mask

from operators.youtube_vis import METRICS, main_evaluate
from tests.operators import official_loops


@dataclass(frozen=True)
class Case:
    """A dataset to make. Results are copies of objects, moved and scaled a little, or anywhere in the frame."""

    videos: int
    categories: int
    results: int
    """Of all videos."""
    objects: int
    """Of each video."""
    frames: int = 5
    height: int = 180
    width: int = 320
    near: float = 0.6
    """Share of results that are copies of an object."""
    encoding: str = "compressed"
    """Of the ground truth: compressed, uncompressed or polygons."""


CASES = {
    "dense": Case(videos=100, categories=3, results=10_000, objects=10),
    "dense-large": Case(videos=100, categories=3, results=10_000, objects=8, frames=12, height=360, width=640),
    "sparse": Case(videos=300, categories=40, results=3_000, objects=4, frames=20, height=360, width=640, near=0.8),
    "one": Case(videos=1, categories=1, results=1, objects=1, frames=10),
    "objects": Case(videos=100, categories=40, results=100, objects=10, frames=20, encoding="uncompressed"),
    "polygons": Case(videos=50, categories=10, results=1_000, objects=5, frames=20, encoding="polygons"),
}


def ellipse(row: float, column: float, radius: float, case: Case) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    points = np.stack([column + radius * np.cos(angles), row + radius * np.sin(angles)], axis=1)
    return [points.ravel().tolist()]


def compressed(polygons: list[list[float]], case: Case) -> dict:
    rle = coco_mask.merge(coco_mask.frPyObjects(polygons, case.height, case.width))
    return {"size": [case.height, case.width], "counts": rle["counts"].decode()}


def uncompressed(rle: dict) -> dict:
    pixels = coco_mask.decode(rle).T.ravel()
    bounds = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    return {"size": rle["size"], "counts": np.diff([0, *bounds, len(pixels)]).tolist()}


def generate(case: Case, seed: int = 0) -> tuple[dict, list[dict]]:
    """The ground truth and the results of a case, as their files hold them."""
    rng = np.random.default_rng(seed)
    frame = np.array([case.height, case.width])
    videos, annotations, results = [], [], []
    for video_id in range(1, case.videos + 1):
        videos.append({"id": video_id, "width": case.width, "height": case.height, "length": case.frames})
        paths = [(int(rng.integers(1, case.categories + 1)), rng.uniform(0.06, 0.25) * case.height,
                  rng.uniform(0, 1, 2) * frame, rng.normal(0, 0.01, 2) * frame)
                 for _ in range(case.objects)]  # fmt: skip
        for category_id, radius, place, speed in paths:
            outlines = _outlines(rng, case, place, speed, radius)
            masks = [outline and compressed(outline, case) for outline in outlines]
            kinds = {"compressed": masks, "polygons": outlines}
            if case.encoding == "uncompressed":
                kinds["uncompressed"] = [mask and uncompressed(mask) for mask in masks]
            annotations.append({
                "id": len(annotations) + 1, "video_id": video_id, "category_id": category_id, "iscrowd": 0,
                "segmentations": kinds[case.encoding],
                "areas": [mask and int(coco_mask.area(mask)) for mask in masks],
            })  # fmt: skip
        for _ in range(case.results // case.videos):
            category_id, radius, place, speed = paths[rng.integers(len(paths))]
            place, radius = place + rng.normal(0, 0.02, 2) * case.height, radius * rng.uniform(0.8, 1.2)
            if rng.random() >= case.near:
                category_id, place = int(rng.integers(1, case.categories + 1)), rng.uniform(0, 1, 2) * frame
            masks = [outline and compressed(outline, case) for outline in _outlines(rng, case, place, speed, radius)]
            results.append({"video_id": video_id, "category_id": category_id, "score": round(float(rng.random()), 3),
                            "segmentations": masks})  # fmt: skip
    categories = [{"id": k, "name": f"category {k}"} for k in range(1, case.categories + 1)]
    return {"videos": videos, "categories": categories, "annotations": annotations}, results


def _outlines(rng: np.random.Generator, case: Case, place: np.ndarray, speed: np.ndarray, radius: float) -> list:
    """One a frame, None in one of ten."""
    places = [np.clip(place + t * speed, 0, [case.height, case.width]) for t in range(case.frames)]
    return [None if rng.random() < 0.1 else ellipse(row, column, radius, case) for row, column in places]


def loops(truth: Path, results: Path) -> dict[str, float]:
    """The official program's way, from files to numbers."""
    return official_loops.evaluate(json.loads(truth.read_text()), json.loads(results.read_text()))


def measure(case: Case, turns: int, clock: Callable[[], float], workers: int | None) -> dict[str, float]:
    """Medians of seconds of both, in turns, and the largest difference of their numbers."""
    with tempfile.TemporaryDirectory() as folder:
        paths = Path(folder) / "truth.json", Path(folder) / "results.json"
        for path, content in zip(paths, generate(case), strict=True):
            path.write_text(json.dumps(content))
        seconds: dict[str, list[float]] = {"loops": [], "ours": []}
        found = {}
        for _ in range(turns):
            for name in seconds:
                start = clock()
                found[name] = loops(*paths) if name == "loops" else main_evaluate(*paths, workers=workers).overall
                seconds[name].append(clock() - start)
    difference = max(abs(found["loops"][metric] - found["ours"][metric]) for metric in METRICS)
    return {name: statistics.median(values) for name, values in seconds.items()} | {"difference": difference}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default=",".join(CASES), help="which of them (default: %(default)s)")
    parser.add_argument("--turns", type=int, default=5, help="runs of each, one after the other (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes of ours; by default as many as pay")
    parser.add_argument("--cpu-time", action="store_true", help="seconds of the CPU, not of the clock")
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    print(f"{datetime.date.today()}; {os.cpu_count()} x {platform.machine()}, Python {platform.python_version()}, "
          f"numpy {np.__version__}; {'CPU seconds' if args.cpu_time else 'seconds'}, medians of {args.turns}\n")
    print("| case | videos | categories | results | loops | ours | ratio | largest difference |")
    print("|---|---|---|---|---|---|---|---|")
    for name in args.cases.split(","):
        case = CASES[name]
        row = measure(case, args.turns, clock, args.workers)
        print(f"| {name} | {case.videos} | {case.categories} | {case.results} | {row['loops']:.4f} | {row['ours']:.4f} "
              f"| {row['loops'] / row['ours']:.2f} | {row['difference']:.1g} |", flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
