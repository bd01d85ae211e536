"""What the terminal shows of a run when it is over: what became of each source, where time went, where results are.

It goes to stdout; what is shown while the run goes on (progress.py) goes to stderr: a script can take either alone.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.outputs import FAILED_FILE, UNFINISHED, Outputs
from pipelines.run import RunSummary
from pipelines.stream_outputs import SourceSummary

STYLES = {"done": "green", "damaged": "yellow", "failed": "red", "cut": "yellow"}
MAX_ROWS = 40
"""Of more sources only those are listed that are not done, and of these the first MAX_ROWS."""


def print_summary(summary: RunSummary, outputs: Outputs, console: Console | None = None) -> None:
    """What became of every source, where the time went, and where the results are."""
    console = console or Console(highlight=False)
    rows = _listed(summary.sources)
    if rows:
        console.print(_sources(rows))
    if len(rows) < len(summary.sources):
        console.print(_counts(summary.sources))
    for source in rows:
        if source.note:
            console.print(Text(f"{source.name}: {source.note}"), soft_wrap=True)
    if summary.signal is not None:
        console.print(f"Stopped early, by {signal.Signals(summary.signal).name}. The same command goes on from there.")
    if summary.seconds:
        console.print(_stages(summary))
        rate = f"{summary.frames / summary.wall_s:.1f} frames/s, after {summary.start_s:.1f} s to start"
        console.print(f"{summary.frames} frames in {summary.wall_s:.1f} s: {rate}")
    if rule := outputs.association:
        console.print(f"association: {rule}; class of a whole track: {outputs.config.category_rule(rule)}")
    _print_places(summary, rows, outputs, console)


def _print_places(
    summary: RunSummary, rows: Sequence[SourceSummary], outputs: Outputs, console: Console
) -> None:
    """Where the files are."""
    directory = outputs.directory
    for source in rows:
        for output in source.outputs:
            console.print(Text(f"{directory / source.folder}/{output}"), soft_wrap=True)
    if len(rows) < len(summary.sources):
        console.print(Text(f"results: {directory}/<source>/"), soft_wrap=True)
    if any(source.state == "cut" and source.outputs for source in summary.sources):
        console.print(Text(f"cut: {directory / UNFINISHED}/<source>/"), soft_wrap=True)
    if any(source.state == "failed" for source in summary.sources):
        console.print(Text(f"failed: {directory / FAILED_FILE}"), soft_wrap=True)


def _listed(sources: Sequence[SourceSummary]) -> Sequence[SourceSummary]:
    """All rows where they are few; else the first of those that are not as they should be."""
    if len(sources) <= MAX_ROWS:
        return sources
    return [source for source in sources if source.state in ("failed", "damaged")][:MAX_ROWS]


def _counts(sources: Sequence[SourceSummary]) -> str:
    """'1000 sources: 937 done (900 of them before), 1 failed'."""
    states = Counter(source.state for source in sources)
    before = sum(source.before for source in sources)
    parts = [f"{states[state]} {state}" for state in STYLES if states[state]]
    parts[0] += f" ({before} before this run)" if before else ""
    return f"{len(sources)} sources: {', '.join(parts)}"


def _sources(rows: Sequence[SourceSummary]) -> Table:
    table = Table("source", "state", title=None)
    for column in ("frames", "tracks", "weak tracks", "faulty", "skipped"):
        table.add_column(column, justify="right")
    for row in rows:
        counts = (row.frames, row.tracks, row.weak, row.faults, row.skipped)
        state = Text(f"{row.state} before" if row.before else row.state, style=STYLES[row.state])
        table.add_row(Text(row.name), state, *map(str, counts))
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
