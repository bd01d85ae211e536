"""What the terminal shows of a run: a bar while it goes on, tables when it is over.

Progress and errors go to stderr, the summary to stdout: a script can take either alone.
"""

from __future__ import annotations

import signal

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from operators.records import StreamEnd
from pipelines.drive import Result
from pipelines.outputs import Outputs, SourceSummary
from pipelines.run import Meter, Observer, RunSummary

STYLES = {"done": "green", "damaged": "yellow", "failed": "red", "cut": "yellow"}


class Bar(Observer):
    """Frames, frames/s, and the stage that limits right now. Names are shown as they are: '[x]' is no markup."""

    def __init__(self, console: Console | None = None) -> None:
        console = console or Console(stderr=True, highlight=False)
        columns = (
            TextColumn("{task.completed:>6} frames", markup=False),
            BarColumn(),
            TextColumn("{task.fields[rate]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[limit]}", markup=False),
        )
        self._progress = Progress(*columns, console=console, refresh_per_second=5)
        self._task = self._progress.add_task("frames", total=None, rate="", limit="starting")

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()

    def began(self, expected: int | None) -> None:
        self._progress.update(self._task, total=expected)
        self._progress.start()

    def failed(self, source: SourceSummary) -> None:
        self._print(f"error: {source.note}")

    def saw(self, result: Result, meter: Meter) -> None:
        if isinstance(result, StreamEnd):
            if result.error:
                self._print(f"{'error' if result.fatal else 'warning'}: {result.stream}: {result.error}")
            return
        stage, share = meter.limiting()
        done = self._progress.tasks[0].completed + 1
        rate = f"{done / meter.wall_s:.1f} frames/s" if meter.wall_s > 0 else ""
        self._progress.update(self._task, completed=done, rate=rate, limit=f"{stage} limits ({share:.0%})")

    def _print(self, line: str) -> None:
        self._progress.console.print(Text(line), soft_wrap=True)


def print_summary(summary: RunSummary, outputs: Outputs, console: Console | None = None) -> None:
    """What became of every source, where the time went, and where the results are."""
    console = console or Console(highlight=False)
    console.print(_sources(summary))
    for source in summary.sources:
        if source.note:
            console.print(Text(f"{source.name}: {source.note}"), soft_wrap=True)
    if summary.signal is not None:
        console.print(f"Stopped early, by {signal.Signals(summary.signal).name}.")
    if summary.seconds:
        console.print(_stages(summary))
        rate = f"{summary.frames / summary.wall_s:.1f} frames/s, after {summary.start_s:.1f} s to start"
        console.print(f"{summary.frames} frames in {summary.wall_s:.1f} s: {rate}")
    if rule := outputs.association:
        console.print(f"association: {rule}; class of a whole track: {outputs.config.category_rule(rule)}")
    for source in summary.sources:
        for output in source.outputs:
            console.print(Text(f"{outputs.directory / source.name}/{output}"), soft_wrap=True)


def _sources(summary: RunSummary) -> Table:
    table = Table("source", "state", title=None)
    for column in ("frames", "tracks", "weak tracks", "faulty", "skipped"):
        table.add_column(column, justify="right")
    for row in summary.sources:
        counts = (row.frames, row.tracks, row.weak, row.faults, row.skipped)
        table.add_row(Text(row.name), Text(row.state, style=STYLES[row.state]), *map(str, counts))
    return table


def _stages(summary: RunSummary) -> Table:
    """Busy time of each stage; stages in different processes overlap, so the sum may exceed the wall time."""
    table = Table("stage")
    for column in ("seconds", "ms a frame", "share"):
        table.add_column(column, justify="right")
    total = sum(summary.seconds.values())
    for name, seconds in summary.seconds.items():
        per_frame = 1000 * seconds / max(summary.frames, 1)
        table.add_row(name, f"{seconds:.2f}", f"{per_frame:.1f}", f"{seconds / max(total, 1e-9):.0%}")
    return table
