"""What `maskstream dataset check` found and repaired: on the terminal, and as JSON.

The JSON holds path, layout, summary; faults, each with kind, severity, file, video_id, video, annotation_id, frame,
place, found, expected (what does not apply is left out); counts by kind, errors, warnings; repairs, null without --fix.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.table import Table

from operators.datasets.check import Checked
from operators.datasets.faults import KINDS, Fault, Repair, Report, printable
from operators.datasets.files import new_json
from operators.datasets.fix import Fixed
from operators.json_files import compact_json

COLORS = {"error": "red", "warning": "yellow"}


class JsonReport:
    """Writes the report to an open file while the check goes on."""

    def __init__(self, file: IO[str], dataset: Checked) -> None:
        self._file, self._count = file, 0
        head = {"path": str(dataset.path), "layout": dataset.layout, "summary": dataset.summary}
        file.write(compact_json(head)[:-1] + ',\n"faults": [')

    def fault(self, fault: Fault) -> None:
        self._file.write(("," if self._count else "") + "\n" + compact_json(fault.as_json()))
        self._count += 1

    def end(self, report: Report, fixed: Fixed | None) -> None:
        """What can be said at the end alone."""
        repairs = None if fixed is None else [repair.as_json() for repair in fixed.repairs]
        totals = {"errors": report.total("error"), "warnings": report.total("warning")}
        tail = {"counts": {kind: report.counts[kind] for kind in report.kinds}, **totals, "repairs": repairs}
        self._file.write(("\n" if self._count else "") + "],\n" + compact_json(tail)[1:] + "\n")


@contextmanager
def json_report(path: Path, dataset: Checked) -> Iterator[JsonReport]:
    """A report that takes the place of `path` when it is complete. Raises ConfigError where it cannot be written."""
    with new_json(path) as file:
        yield JsonReport(file, dataset)


def print_report(dataset: Checked, report: Report, more: str) -> None:
    """The counts of each kind, and those faults that were kept. `more` says how to see the others."""
    console = Console()
    say(console, printable(f"{dataset.path}: {dataset.summary}", 1000))
    if not report.counts:
        say(console, "no faults", "green")
        return
    for kind in report.kinds:
        severity, title = KINDS[kind]
        say(console, f"\n{severity}  {kind}: {title}", f"bold {COLORS[severity]}")
        for fault in report.first.get(kind, ()):
            say(console, f"  {fault}")
        left = report.counts[kind] - len(report.first.get(kind, ()))
        if left:
            say(console, f"  and {left} more{more}", "dim")
    console.print()
    console.print(_table(report))
    say(console, f"{report.total('error')} errors, {report.total('warning')} warnings")


def print_repairs(fixed: Fixed, out: Path, show: int) -> None:
    """What was repaired, the first `show` of each kind of repair, and what is left to warn of."""
    console = Console()
    if not fixed.repairs:
        say(console, f"\n{out}: a copy; nothing had to be repaired")
    else:
        say(console, f"\n{out}: {len(fixed.repairs)} repairs", "bold green")
    by_kind: dict[str, list[Repair]] = {}
    for repair in fixed.repairs:
        by_kind.setdefault(" ".join(repair.did.split()[:3]), []).append(repair)
    for repairs in by_kind.values():
        for repair in repairs[:show]:
            say(console, f"  {repair}")
        if len(repairs) > show:
            say(console, f"  and {len(repairs) - show} more like these", "dim")
    kept = ", ".join(f"{kind} ({count})" for kind, count in fixed.warnings.counts.items())
    say(console, f"checked again: no errors{f', warnings: {kept}' if kept else ''}")


def say(console: Console, text: str, style: str = "") -> None:
    """A line as it is: names from files may look like markup, and lines of a log are not to be broken."""
    console.print(text, style=style, markup=False, highlight=False, emoji=False, soft_wrap=True)


def _table(report: Report) -> Table:
    table = Table("severity", "kind", "what", box=None, pad_edge=False)
    table.add_column("count", justify="right")
    for kind in report.kinds:
        severity, title = KINDS[kind]
        table.add_row(severity, kind, title, str(report.counts[kind]), style=COLORS[severity])
    return table
