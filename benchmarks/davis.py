"""How much faster `maskstream evaluate davis` is than the direct way, on one 480p sequence with 20 proposals.

    python -m benchmarks.davis [--frames 80] [--objects 3] [--proposals 20] [--turns 3] [--kind discs]

Writes a generated sequence as PNGs, then evaluates it in turns, by operators/davis.py and by the direct port in
tests/operators/davis_direct.py: masks, boundaries and two dilations (OpenCV's, as the official program has them) for
every pair of proposal and object in every frame. Both read the same PNGs, use one thread, and must give equal numbers.
Prints the times of all turns, medians and their ratio.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from operators.davis import METRICS, DavisScores, evaluate
from operators.davis_data import find_sequences
from tests.operators.davis_direct import direct, fast_boundary_map

HEIGHT, WIDTH = 480, 854


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=80)
    parser.add_argument("--objects", type=int, default=3)
    parser.add_argument("--proposals", type=int, default=20)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--kind", choices=("discs", "noise"), default="discs", help="noise: every pixel a boundary")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        truth, results = Path(folder, "truth"), Path(folder, "results")
        write_sequence(truth / "one", results / "one", args)
        times: dict[str, list[float]] = {"direct": [], "maskstream": []}
        for _ in range(args.turns):
            rows, seconds = timed(lambda: evaluate_direct(truth / "one", results / "one"))
            times["direct"].append(seconds)
            scores, seconds = timed(lambda: evaluate(find_sequences(truth, results)))
            times["maskstream"].append(seconds)
            check_equal(rows, scores)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    print(f"{args.kind}, {args.frames} frames of {WIDTH} x {HEIGHT}, {args.objects} objects, {args.proposals} "
          f"proposals; {os.cpu_count()} x {platform.machine()}, numpy {np.__version__}")  # fmt: skip
    for name, seconds in times.items():
        print(f"{name:11} median {medians[name]:7.3f} s   of {', '.join(f'{second:.3f}' for second in seconds)}")
    print(f"ratio       {medians['direct'] / medians['maskstream']:.1f}")
    return 0


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What `work` gives, and the seconds that it took."""
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def write_sequence(truth: Path, results: Path, args: argparse.Namespace) -> None:
    """Discs that move, the results a little beside them, with further proposals; a void rim round the first object."""
    truth.mkdir(parents=True)
    results.mkdir(parents=True)
    rng = np.random.default_rng(3)
    count = max(args.objects, args.proposals)
    middle, speed = rng.uniform(0, 1, (count, 2)) * (HEIGHT, WIDTH), rng.uniform(-2, 2, (count, 2))
    size = rng.uniform(30, 90, count)
    for frame in range(args.frames):
        at = middle + speed * frame
        if args.kind == "noise":
            maps = [rng.integers(0, most + 1, (HEIGHT, WIDTH)) for most in (args.objects, args.proposals)]
        else:
            beside = at[: args.proposals] + rng.normal(0, 3, 2)
            maps = [discs(at[: args.objects], size, rim=4), discs(beside, size * 1.05)]
        for folder, labels in zip((truth, results), maps, strict=True):
            Image.fromarray(labels.astype(np.uint8)).save(folder / f"{frame:05d}.png")


def discs(middles: np.ndarray, sizes: np.ndarray, rim: int = 0) -> np.ndarray:
    labels = np.zeros((HEIGHT, WIDTH), np.int64)
    rows, columns = np.ogrid[:HEIGHT, :WIDTH]
    for number, ((y, x), size) in enumerate(zip(middles, sizes, strict=False), start=1):
        distance = np.hypot(rows - y, columns - x)
        labels[distance <= size] = number
        if rim and number == 1:
            labels[(distance > size) & (distance <= size + rim)] = 255
    return labels


def evaluate_direct(truth: Path, results: Path) -> list[tuple]:
    frames = [[np.asarray(Image.open(path)) for path in sorted(folder.iterdir())] for folder in (truth, results)]
    return direct(*map(np.stack, frames), dilate=cv2_dilate, edges=fast_boundary_map)


def cv2_dilate(mask: np.ndarray, radius: int) -> np.ndarray:
    import cv2  # TrackEval brings it along; Maskstream itself does without

    cv2.setNumThreads(1)
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return cv2.dilate(mask.view(np.uint8), (x * x + y * y <= radius * radius).astype(np.uint8)).view(bool)


def check_equal(rows: list[tuple], scores: DavisScores) -> None:
    """End where the two ways do not agree."""
    (sequence,) = scores.per_sequence.values()
    for expected, one in zip(sorted(rows), sequence.objects, strict=True):
        found = [one.metrics[metric] for metric in METRICS[1:]]
        if expected[:2] != (one.object, one.proposal) or not np.allclose(expected[2:], found, rtol=0, atol=1e-12):
            sys.exit(f"object {one.object}: direct gives {expected}, Maskstream {one}")


if __name__ == "__main__":
    sys.exit(main())
