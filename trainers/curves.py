"""The curves of a run as a picture, from `metrics.jsonl`."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib
import numpy as np

from operators.replacing import replacing
from trainers.job import LAST_STEPS_FILE, METRICS_FILE

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

PARTS = ("class", "box", "centerness", "mask", "crossover", "identity", "edge")


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a run in order of their steps; after a resume the later line of a step counts. A torn last line,
    of a run cut while writing, is left out."""
    by_step: dict[int, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        by_step[row["step"]] = row
    return [by_step[step] for step in sorted(by_step)]


def read_curves(out: Path) -> list[dict[str, float]]:
    """The lines of a run's folder by step, and after them the single steps that it ended with; [] without any."""
    rows, last = (read_metrics(out / name) if (out / name).exists() else [] for name in (METRICS_FILE, LAST_STEPS_FILE))
    logged = rows[-1]["step"] if rows else 0
    return rows + [row for row in last if row["step"] > logged]


def plot_losses(rows: list[dict[str, float]], path: Path) -> None:
    """One small panel for each part of the loss, the total, and the learning rate."""
    names = [name for name in (*PARTS, "total", "learning_rate") if name in rows[0]]
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(2, -(-len(names) // 2), figsize=(13, 5), constrained_layout=True, squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        values = np.array([row[name] for row in rows])
        axis.plot(steps, values, color="#9ecae1", linewidth=0.8)
        axis.plot(steps, _smooth(values), color="#08519c", linewidth=1.6)
        axis.set_title(name.replace("_", " "), fontsize=10)
        axis.grid(alpha=0.3)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    for axis in axes.flat[len(names):]:
        axis.set_visible(False)
    with replacing(path) as part:
        figure.savefig(part, dpi=110, format="png")
    plt.close(figure)


def _smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Running mean, narrower at the ends."""
    width = min(width, len(values))
    ones = np.ones(width)
    return np.convolve(values, ones, "same") / np.convolve(np.ones_like(values), ones, "same")
