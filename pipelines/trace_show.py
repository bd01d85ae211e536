"""One frame's way through the stages of a traced run, in the terminal.

In:     the steps that `way` of trace.py read
Out:    a table on stdout: when each call began, how long the frame waited for it, and a bar of both
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from pipelines.picture import printable
from pipelines.trace import Step

HEADS = ("stage", "process", "at ms", "waited", "took", "frames")
MIN_BAR, MAX_BAR = 8, 60
MAX_NAME = 24


def print_way(stream: str, frame: int, steps: Sequence[Step], console: Console | None = None) -> None:
    """A row for each call, in order of time, as wide as the terminal. `steps` must not be empty."""
    console = console or Console(highlight=False)
    begin = steps[0].start_s
    whole = max(step.start_s + step.seconds for step in steps) - begin
    frees = [begin, *(step.start_s + step.seconds for step in steps)]
    rows = [HEADS, *(_cells(step, free, begin) for step, free in zip(steps, frees, strict=False))]
    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    room = min(MAX_BAR, max(MIN_BAR, console.width - sum(widths) - 2 * len(widths)))
    bars = ["", *(bar(step, free, begin, whole, room) for step, free in zip(steps, frees, strict=False))]
    console.print(Text(printable(f"{stream}, frame {frame}: {1000 * whole:.1f} ms")), soft_wrap=True)
    console.print()
    for (name, *numbers), drawn in zip(rows, bars, strict=True):
        cells = [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        line = "  ".join([set_cell_size(name, widths[0]), *cells, drawn])
        console.print(Text(line.rstrip(), style="bold" if name is HEADS[0] else ""), soft_wrap=True)
    console.print()
    worked = sum(step.seconds for step in steps)
    console.print(f"{1000 * worked:.1f} ms in stages, {1000 * max(0.0, whole - worked):.1f} ms between them")


def _cells(step: Step, free: float, begin: float) -> tuple[str, ...]:
    numbers = (step.start_s - begin, max(0.0, step.start_s - free), step.seconds)
    name = printable(step.stage)
    name = name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"
    return name, str(step.process), *(f"{1000 * number:.1f}" for number in numbers), str(step.batch)


def bar(step: Step, free: float, begin: float, whole: float, width: int) -> str:
    """Dots while the frame waits, blocks while a stage has it; `width` columns are the whole way."""
    scale = width / whole if whole else 0.0
    starts = min(width - 1, round((step.start_s - begin) * scale))
    waits = min(starts, round((free - begin) * scale))
    ends = max(starts + 1, round((step.start_s + step.seconds - begin) * scale))
    return " " * waits + "·" * (starts - waits) + "█" * (ends - starts)
