"""The outcome of an ablation beside the paper's, as a table and as a picture.

In:     `AblationConfig`, and the scores of all runs that are done
Out:    results.json (each run), table.md, ablation.png
State:  none; rows without any run are left out of both

Mean and standard deviation are over seeds (of a sample: n - 1). The paper's figures are of another dataset and another
size of network, so only differences between rows can be compared: the picture gives both axes the same scale, and lays
the first rows side by side, or the first that the paper reports.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch

from operators.replacing import replacing
from trainers.ablation_config import AblationConfig, Row, Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

OURS, PAPER = "#08519c", "#d95f02"
MAX_BARS = 20
"""Of a row of panels: rows of its tables and the room between them. Wider pictures cannot be read on a page."""
HEADER = "| variant | AP | n | AP50 | AP75 | ID switches | against row 1 | AP of the paper | against row 1 |"


@dataclass(frozen=True)
class Line:
    """A row of a table with the runs that it stands for."""

    row: Row
    label: str
    scores: list[dict]

    def values(self, key: str) -> np.ndarray:
        """(n,) of each run; AP and its like in points of 100."""
        values = np.array([one[key] for one in self.scores], dtype=np.float64)
        return 100 * values if key.startswith("AP") else values

    @property
    def mean(self) -> float:
        return float(self.values("AP").mean())

    @property
    def std(self) -> float | None:
        """Of the sample; None for a single run."""
        return float(self.values("AP").std(ddof=1)) if len(self.scores) > 1 else None


def write_report(config: AblationConfig, scores: list[dict], out: Path, command: str) -> None:
    """results.json, table.md and ablation.png in `out`; without scores an empty list and no more."""
    out.mkdir(parents=True, exist_ok=True)
    _replace(out / "results.json", json.dumps(scores, indent=1) + "\n")
    tables = {name: (table, lines_of(config, table, scores)) for name, table in config.tables.items()}
    tables = {name: (table, lines) for name, (table, lines) in tables.items() if lines}
    if tables:
        text = [_origin(config, scores, command), *(markdown(table, lines) for table, lines in tables.values())]
        _replace(out / "table.md", "\n\n".join(text) + "\n")
        plot(list(tables.values()), out / "ablation.png")


def lines_of(config: AblationConfig, table: Table, scores: list[dict]) -> list[Line]:
    """The rows of a table that have a run, in their order."""
    lines = []
    for row in table.rows:
        of_row = [one for one in scores if one["variant"] == row.variant]
        if of_row:
            lines.append(Line(row, row.label or config.variants[row.variant].label, of_row))
    return lines


def markdown(table: Table, lines: list[Line]) -> str:
    """One table, its title above."""
    first = lines[0]
    whole = first.row is table.rows[0]          # else there is nothing to compare with
    text = [f"**{table.title}**", "", HEADER, "|---" * HEADER.count(" | ") + "|---|"]
    for line in lines:
        ours = "" if line is first or not whole else f"{line.mean - first.mean:+.1f}"
        told = None not in (line.row.paper, first.row.paper)
        theirs = "" if line is first or not (whole and told) else f"{line.row.paper - first.row.paper:+.1f}"
        paper = "" if line.row.paper is None else spread(line.row.paper, line.row.paper_std, digits=2)
        text.append(
            f"| {line.label} | {spread(line.mean, line.std)} | {len(line.scores)} | {line.values('AP50').mean():.1f} "
            f"| {line.values('AP75').mean():.1f} | {line.values('switches').mean():.0f} | {ours} "
            f"| {paper} | {theirs} |"
        )
    return "\n".join(text)


def spread(mean: float, std: float | None, digits: int = 1) -> str:
    """'34.8 ± 0.25', '34.8' without a spread."""
    return f"{mean:.1f}" if std is None else f"{mean:.1f} ± {std:.{digits}f}"


def _origin(config: AblationConfig, scores: list[dict], command: str) -> str:
    minutes = sum(one["training_s"] + one["evaluation_s"] for one in scores) / 60
    return (
        f"{config.held_out.clips} held-out clips, preset {config.held_out.preset}, seed {config.held_out.seed}; "
        f"{len(scores)} runs, {minutes:.0f} minutes in all; {datetime.date.today()}; {os.cpu_count()} x "
        f"{platform.machine()}, torch {torch.__version__}; `{command}`\n\n"
        "AP is the YouTube-VIS video-level mask AP in points of 100, mean ± standard deviation over n seeds."
    )


def plot(tables: list[tuple[Table, list[Line]]], path: Path) -> None:
    """A panel for each table: ours to the left, the paper's to the right, one AP point equally high on both axes."""
    shelves = in_rows([1 + len(lines) for _, lines in tables])
    widest = max(sum(1 + len(tables[i][1]) for i in shelf) for shelf in shelves)
    figure = plt.figure(figsize=(1.35 * widest, 4.6 * len(shelves)), constrained_layout=True)
    for part, shelf in zip(figure.subfigures(len(shelves), squeeze=False)[:, 0], shelves, strict=True):
        widths = [1 + len(tables[i][1]) for i in shelf]
        axes = part.subplots(1, len(shelf), squeeze=False, gridspec_kw={"width_ratios": widths})
        for axis, i in zip(axes[0], shelf, strict=True):
            _panel(axis, *tables[i])
    with replacing(path) as part:
        figure.savefig(part, dpi=120, format=path.suffix[1:])
    plt.close(figure)


def in_rows(widths: list[int], most: int = MAX_BARS) -> list[list[int]]:
    """Places of panels, in order, as many in a row as go into `most`; at least one."""
    rows: list[list[int]] = []
    for i, width in enumerate(widths):
        if not rows or sum(widths[j] for j in rows[-1]) + width > most:
            rows.append([])
        rows[-1].append(i)
    return rows


def _panel(axis: plt.Axes, table: Table, lines: list[Line]) -> None:
    places = np.arange(len(lines))
    for x, line in zip(places, lines, strict=True):
        values = line.values("AP")
        axis.plot(np.full(len(values), x - 0.12), values, ".", color=OURS, alpha=0.35)
        axis.errorbar(x - 0.12, line.mean, line.std or 0.0, fmt="o", color=OURS, capsize=4, label="here")
    low, high = span(lines)
    axis.set_ylim(lines[0].mean + low, lines[0].mean + high)
    beside = lines[_beside(lines)]
    if beside.row.paper is not None:
        paper = axis.twinx()
        for x, line in zip(places, lines, strict=True):
            if line.row.paper is not None:
                paper.errorbar(x + 0.12, line.row.paper, line.row.paper_std or 0.0, fmt="D", color=PAPER, capsize=4)
        shift = lines[0].mean - beside.mean
        paper.set_ylim(beside.row.paper + shift + low, beside.row.paper + shift + high)
        paper.set_ylabel("AP of the paper", color=PAPER)
    axis.axhline(lines[0].mean, color="grey", linewidth=0.8, linestyle=":")
    axis.set_xticks(places, [_wrapped(line.label) for line in lines], fontsize=8)
    axis.set_xlim(-0.5, len(lines) - 0.5)
    axis.set_title(table.title, fontsize=10)
    axis.set_ylabel("AP here", color=OURS)


def _beside(lines: list[Line]) -> int:
    """The row whose two figures lie side by side: the first that the paper reports, or else the first."""
    return next((i for i, line in enumerate(lines) if line.row.paper is not None), 0)


def span(lines: list[Line]) -> tuple[float, float]:
    """How far the axes reach below and above the first row, so that all runs and the paper's rows are seen."""
    beside = lines[_beside(lines)]
    shift = beside.mean - lines[0].mean
    ours = np.concatenate([line.values("AP") for line in lines]) - lines[0].mean
    bars = [line.mean + sign * (line.std or 0.0) - lines[0].mean for line in lines for sign in (-1, 1)]
    theirs = [line.row.paper + sign * (line.row.paper_std or 0.0) - beside.row.paper + shift
              for line in lines for sign in (-1, 1) if line.row.paper is not None]
    everything = np.concatenate([ours, bars, theirs])
    room = 0.08 * (everything.max() - everything.min()) + 0.2
    return float(everything.min() - room), float(everything.max() + room)


def _wrapped(label: str) -> str:
    """On several short lines."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + len(word) > 12:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)


def _replace(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)
