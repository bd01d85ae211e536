"""The terminal's view of a training run: a bar, the parts of the loss, and what the last evaluation said.

In:     metrics.jsonl and evaluations.jsonl of the run's folder: worker 0 writes them, wherever it runs
Out:    a live view on stderr's console; where that is no terminal, a line every LINE_EVERY_S seconds
State:  none but the clock
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from trainers.curves import read_metrics
from trainers.evaluating import read_evaluations
from trainers.job import METRICS_FILE, Job
from trainers.writing import Notices

REFRESH_S = 1.0
LINE_EVERY_S = 30.0
TIMES = ("learning_rate", "data_wait_s", "step_s", "samples_per_s", "gpu_memory_gb", "step", "gradient_norm")


@contextmanager
def following(job: Job, console: Console | None = None) -> Iterator[None]:
    """Show the run while the block lasts."""
    console = console or Console(stderr=True)
    done = threading.Event()
    show = _live if console.is_terminal else _lines
    thread = threading.Thread(target=show, args=(job, console, done), name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _live(job: Job, console: Console, done: threading.Event) -> None:
    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[left]}"),
               TimeElapsedColumn())
    bar = Progress(*columns, console=console)
    task = bar.add_task("train", total=_steps(job), left="starting the workers")
    notices = Notices(job.out)
    with Live(bar, console=console, refresh_per_second=2) as live:
        ended = False
        while not ended:
            ended = done.wait(REFRESH_S)        # once more after the end: the last step shall be seen
            rows, scores = _read(job)
            for line in notices.new():
                live.console.print(line, soft_wrap=True, highlight=False)
            if rows:
                bar.update(task, completed=rows[-1]["step"], left=time_left(rows, _steps(job)))
                live.update(Group(bar, losses(rows[-1]), Text(summary(rows[-1], scores))))


def _lines(job: Job, console: Console, done: threading.Event) -> None:
    shown, told, notices, ended = 0, time.monotonic(), Notices(job.out), False
    while not ended:
        ended = done.wait(REFRESH_S)
        for line in notices.new():
            console.print(line, soft_wrap=True, highlight=False)
        if time.monotonic() - told < LINE_EVERY_S:
            continue
        rows, scores = _read(job)
        told = time.monotonic()
        if rows and rows[-1]["step"] != shown:
            shown = rows[-1]["step"]
            left = time_left(rows, _steps(job))
            console.print(f"step {shown} of {_steps(job)}, loss {rows[-1]['total']:.3f}, "
                          f"{summary(rows[-1], scores)}, {left}", soft_wrap=True, highlight=False)


def _steps(job: Job) -> int:
    return job.config.steps_of(job.config.workers.num_workers)


def _read(job: Job) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    path = job.out / METRICS_FILE
    return read_metrics(path) if path.exists() else [], read_evaluations(job.out)


def losses(row: dict[str, float]) -> Table:
    """The parts of the loss, and their total, side by side."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in [name for name in row if name not in (*TIMES, "total")] + ["total"]:
        table.add_column(name, justify="right", style="bold" if name == "total" else "")
    table.add_row(*(f"{row[column.header]:.3f}" for column in table.columns))
    return table


def summary(row: dict[str, float], scores: list[dict[str, float]]) -> str:
    """Rate, speed, the share of time that data is waited for, the GPU's memory, the last AP and the best."""
    wait = row["data_wait_s"] / max(row["step_s"], 1e-9)
    parts = [f"learning rate {row['learning_rate']:.2g}", f"{row['samples_per_s']:.1f} samples/s",
             f"{wait:.0%} waiting for data"]
    if row.get("gpu_memory_gb"):
        parts.append(f"{row['gpu_memory_gb']:.1f} GB on the GPU")
    if scores:
        best = max(scores, key=lambda one: one["AP"])
        parts.append(f"AP {100 * scores[-1]['AP']:.1f} at step {scores[-1]['step']:.0f}, best "
                     f"{100 * best['AP']:.1f} at {best['step']:.0f}")
    return ", ".join(parts)


def time_left(rows: list[dict[str, float]], steps: int) -> str:
    """At the pace of the last ten lines; evaluations and checkpoints come on top."""
    pace = sum(row["step_s"] for row in rows[-10:]) / len(rows[-10:])
    seconds = (steps - rows[-1]["step"]) * pace
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min left" if hours else f"{minutes} min left" if seconds > 90 else (
        f"{seconds:.0f} s left")
