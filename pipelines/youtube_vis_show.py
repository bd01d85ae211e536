"""What the terminal shows of AP and AR: `maskstream evaluate youtube-vis`.

In:     Scores
Out:    a table of the categories, one of the levels of occlusion where there are such, notes; on stdout
State:  none
Limits: what does not fit the width of a terminal is left out, and told; a file or a pipe gets all
"""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from operators.youtube_vis import METRICS, Scores, short_name

MAX_NAME = 28
BY_AREA = (("ARs", "ARm", "ARl"), ("APs", "APm", "APl"))
"""What is left out of a table that is too wide, in this order."""


def print_scores(scores: Scores, console: Console | None = None) -> None:
    """Print all there is to say; '-' stands for -1, which is nothing to evaluate."""
    console = console or Console(highlight=False)
    table, left_out = _categories(scores, console.width if console.is_terminal else None)
    needed = max(console.width, table.columns[0].width or 0, console.measure(table).maximum)
    console.print(table, width=None if console.is_terminal else needed, crop=False, no_wrap=True)
    without = sum(row["AP"] < 0 for row in scores.per_category.values())
    if without:
        console.print(f"{without} of {len(scores.per_category)} categories have no objects and are in no mean.")
    if left_out:
        console.print(f"Not shown for want of width: {', '.join(left_out)}. --json writes all numbers.")
    if scores.occlusion:
        console.print(_levels(scores))
    for note in scores.notes:
        console.print(Text(f"note: {note}"), soft_wrap=True)


def _categories(scores: Scores, width: int | None) -> tuple[Table, list[str]]:
    """The table no wider than `width`, and the metrics left out for that."""
    rows = {name: row for name, row in scores.per_category.items() if row["AP"] >= 0}
    name_width = max(map(len, ["all categories", *(short_name(name, MAX_NAME) for name in rows)]))
    left_out: list[str] = []
    for group in BY_AREA:
        if width is not None and name_width + 2 + 7 * (len(METRICS) - len(left_out)) > width:
            left_out += group
    metrics = [metric for metric in METRICS if metric not in left_out]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    table.add_column("category", min_width=name_width, no_wrap=True)
    for metric in metrics:
        table.add_column(metric, justify="right", min_width=5, no_wrap=True)
    for name, row in rows.items():
        table.add_row(Text(short_name(name, MAX_NAME)), *(_cell(row[metric]) for metric in metrics))
    if rows:
        table.add_section()
    table.add_row("all categories", *(_cell(scores[metric]) for metric in metrics), style="bold")
    return table, left_out


def _levels(scores: Scores) -> Table:
    metrics = list(next(iter(scores.occlusion.values())))
    table = Table("occlusion", box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=True)
    for metric in metrics:
        table.add_column(metric, justify="right", min_width=5)
    for level, row in scores.occlusion.items():
        table.add_row(level, *(str(row[metric]) if metric == "objects" else _cell(row[metric]) for metric in metrics))
    return table


def _cell(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"
