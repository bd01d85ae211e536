"""What `maskstream chaos` leaves behind and shows: a report to read, one for programs, and a picture of both runs.

In:     Trial and Verdict
Out:    DIR/chaos.md, DIR/chaos.json, DIR/chaos.png; a table on the terminal
State:  none
Limits: MAX_HITS blows are listed; the picture has them all
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import ray
import torch

from operators.errors import ConfigError
from operators.replacing import replacing
from pipelines.chaos import Run, Trial, frames_hit
from pipelines.chaos_record import Record
from pipelines.chaos_verdict import Verdict

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from rich.text import Text  # noqa: E402

MAX_HITS = 200
COLORS = {"actor": "#e6550d", "process": "#a50f15", "node": "#54278f"}
CALM, WILD = "#969696", "#08519c"


def write_report(trial: Trial, verdict: Verdict, title: str, folder: Path) -> list[Path]:
    """All three files; gives their paths. `title` says which graph, network and scenario it was.

    Raises ConfigError where they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = [folder / name for name in ("chaos.md", "chaos.json", "chaos.png")]
        with replacing(paths[0]) as part:
            part.write_text(markdown(trial, verdict, title), encoding="utf-8")
        with replacing(paths[1]) as part:
            part.write_text(json.dumps(figures(trial, verdict, title), indent=1) + "\n", encoding="utf-8")
        with replacing(paths[2]) as part:
            _picture(trial, verdict, part)
    except OSError as error:
        raise ConfigError(f"{folder}: the report cannot be written there ({error.strerror or error}).") from error
    return paths


def word(verdict: Verdict) -> str:
    return "PASS" if verdict.passed else "FAIL"


def print_verdict(verdict: Verdict, paths: Sequence[Path], console: Console | None = None) -> None:
    """The checks, the verdict, and where the report is."""
    console = console or Console(highlight=False)
    table = Table("check", "", "figures")
    for check in verdict.checks:
        passed = Text("pass", style="green") if check.passed else Text("FAIL", style="bold red")
        table.add_row(check.name, passed, Text(check.said))
    console.print(table)
    console.print(Text(word(verdict), style="bold green" if verdict.passed else "bold red"))
    for path in paths:
        console.print(Text(str(path)), soft_wrap=True)


def markdown(trial: Trial, verdict: Verdict, title: str) -> str:
    lines = [f"# Chaos: {word(verdict)}", "", f"{title}. {machine()}.", "", "| check | | figures |", "|---|---|---|"]
    for check in verdict.checks:
        lines.append(f"| {check.name} | {'pass' if check.passed else '**FAIL**'} | {_cell(check.said)} |")
    lines += ["", "![frames given out over time](chaos.png)", "", "| | calm | under blows |", "|---|---:|---:|"]
    runs = (trial.calm, trial.wild)
    lines += _row("seconds", [f"{run.wall_s:.1f}" for run in runs])
    lines += _row("frames given out", [str(run.record.frames) for run in runs])
    lines += _row("frames/s", [f"{run.record.frames / max(run.wall_s, 1e-9):.2f}" for run in runs])
    lines += _row("replicas made anew", [str(run.restarts) for run in runs])
    lines += _row("streams taken up from a snapshot or the start", [str(_rewinds(run)) for run in runs])
    lines += _row("memory of the driver after it, MB", [f"{run.leftovers.memory_mb:.0f}" for run in runs])
    for how, count in frames_hit(trial.scenario, trial.given).items():
        lines += _row(f"frames corrupted: {how}", [str(count)] * 2)
    if trial.wild.hits:
        lines += ["", "| blow | of | frames out | at, s | silence, s | landed |", "|---|---|---:|---:|---:|---|"]
    for hit, silence in list(zip(trial.wild.hits, verdict.recoveries, strict=True))[:MAX_HITS]:
        cells = (hit.kind, _cell(hit.target), str(hit.frame), f"{hit.at_s:.1f}", f"{silence:.2f}")
        lines.append(f"| {' | '.join(cells)} | {'yes' if hit.landed else 'no'} |")
    return "\n".join(lines) + "\n"


def figures(trial: Trial, verdict: Verdict, title: str) -> dict[str, Any]:
    """All of it as plain values."""
    runs = {
        name: {
            "seconds": run.wall_s, "frames": run.record.frames, "restarts": run.restarts, "rewinds": _rewinds(run),
            "leftovers": asdict(run.leftovers), "account": asdict(accounted), "error": run.error,
        }
        for name, run, accounted in (("calm", trial.calm, verdict.calm), ("under_blows", trial.wild, verdict.wild))
    }  # fmt: skip
    hits = zip(trial.wild.hits, verdict.recoveries, strict=True)
    return {
        "passed": verdict.passed, "title": title, "machine": machine(), "scenario": asdict(trial.scenario),
        "checks": [asdict(check) for check in verdict.checks], "frames_in": trial.given, "runs": runs,
        "blows": [asdict(hit) | {"recovery_s": silence} for hit, silence in hits],
        "corrupted": frames_hit(trial.scenario, trial.given),
    }  # fmt: skip


def machine() -> str:
    versions = f"Ray {ray.__version__}, torch {torch.__version__}, Python {platform.python_version()}"
    return f"{torch.get_num_threads()} CPUs, {versions}, {time.strftime('%Y-%m-%d')}"


def _rewinds(run: Run) -> int:
    return 0 if run.status is None else run.status.rewinds


def _row(name: str, cells: Sequence[str]) -> list[str]:
    return [f"| {name} | {' | '.join(cells)} |"]


def _cell(said: str) -> str:
    return " ".join(said.split()).replace("|", "\\|")


def _picture(trial: Trial, verdict: Verdict, path: Path) -> None:
    """Frames given out over time, in calm and under blows; each blow a line."""
    figure, axis = plt.subplots(figsize=(11, 4.5), constrained_layout=True)
    begin_s = _times(trial.wild.record)[:1].sum()
    for kind, color in COLORS.items():
        times = [hit.at_s - begin_s for hit in trial.wild.hits if hit.kind == kind]
        for number, at_s in enumerate(times):
            axis.axvline(at_s, color=color, linewidth=1, alpha=0.6, label=f"{kind} killed" if not number else None)
    for run, color, label in ((trial.calm, CALM, "calm"), (trial.wild, WILD, "under blows")):
        times = _times(run.record)
        axis.plot(times - times[:1].sum(), np.arange(1, len(times) + 1), color=color, linewidth=2, label=label)
    axis.set_xlabel("seconds since the first frame")
    axis.set_ylabel("frames given out")
    axis.set_title(f"{word(verdict)}: {verdict.wild}"[:140], fontsize=10)
    axis.legend(loc="lower right")
    axis.grid(alpha=0.3)
    figure.savefig(path, dpi=110, format="png")
    plt.close(figure)


def _times(record: Record) -> np.ndarray:
    """When frames came, of all streams."""
    times = [stream.times[: len(stream.indices)] for stream in record.streams.values()]
    return np.sort(np.concatenate([np.empty(0), *times]))
