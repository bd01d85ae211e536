"""The terminal's view of an ablation: how many runs are done, and how long the rest takes.

In:     the folders of the runs, which fill on whichever node of the cluster they are
Out:    a bar on the console, and a line for each run that ends
State:  the clock, and the steps that were done before
Limits: runs are looked at when `update` is called; of one that is being scored nothing is seen
"""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from trainers.ablation_config import Run
from trainers.curves import read_metrics
from trainers.job import METRICS_FILE


class Follow:
    """A bar over all runs by what they have written, and a line for each that ends.

    `steps` has the folder of each run with the steps that it is to make, 0 for one that is only scored; `last` is the
    file that a run writes last.
    """

    def __init__(self, steps: dict[Path, int], last: str, console: Console, what: str) -> None:
        self._steps, self._last, self._began = steps, last, time.perf_counter()
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
        self._bar = Progress(*columns, console=console)
        self._task = self._bar.add_task(what, total=len(steps), note="")
        self._at_first = self._steps_done()

    def __enter__(self) -> Follow:
        self._bar.start()
        self.update()
        return self

    def __exit__(self, *error: object) -> None:
        self.update()
        self._bar.stop()

    def update(self) -> None:
        self._bar.update(self._task, completed=self._runs_done(), note=self._left())

    def say(self, text: str) -> None:
        self._bar.console.print(text)

    def finished(self, run: Run, scores: dict) -> None:
        minutes = (scores["training_s"] + scores["evaluation_s"]) / 60
        self.say(f"{run.name}: AP {100 * scores['AP']:.1f}, {scores['switches']} ID switches, {minutes:.1f} min; "
                 f"{self._runs_done()} of {len(self._steps)}, {self._left()}")

    def _runs_done(self) -> int:
        return sum((folder / self._last).exists() for folder in self._steps)

    def _steps_done(self) -> int:
        return sum(self._steps_of(folder) for folder in self._steps)

    def _steps_of(self, folder: Path) -> int:
        if (folder / self._last).exists():
            return self._steps[folder]
        rows = read_metrics(folder / METRICS_FILE) if (folder / METRICS_FILE).exists() else []
        return int(rows[-1]["step"]) if rows else 0

    def _left(self) -> str:
        """Time to go at the pace since the start, scoring included."""
        done, total = self._steps_done(), sum(self._steps.values())
        pace = (done - self._at_first) / max(time.perf_counter() - self._began, 1e-9)
        return f"about {(total - done) / pace / 60:.0f} min left" if pace > 0 else ""
