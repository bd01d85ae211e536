"""What the terminal shows while a run goes on: how far it is, when it will be done, and what holds it up.

In:     the sources, results, and the executor's Status
Out:    on a terminal one live view, a line a group of stages; elsewhere (a job's log) a line every LINE_S seconds
State:  Forecast: the frames of the sources that were begun, and what the others may have
Limits: no source is opened for this but those that run, one after the other, by one thread beside the work

Progress and errors go to stderr, the summary (show.py) to stdout: a script can take either alone.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from operators.addresses import is_address
from operators.errors import SourceError
from operators.records import StreamEnd
from operators.sources import Source, probe
from pipelines.drive import Result
from pipelines.run import Meter, Observer
from pipelines.status import GroupStatus, OnStatus, Status
from pipelines.stream_outputs import SourceSummary

LINE_S = 30.0
"""Seconds between two lines where there is no terminal."""
SURE_S = 3.0
"""Seconds of work before the time that is left is told."""
_RECENT_S = 20.0
"""Rates are of about so many seconds back: long enough to be calm, short enough to tell of a change."""


class Forecast:
    """How many frames a run will have: of sources that were begun as they promise, of the others as their mean.

    Promises are looked up by a thread, because opening a file takes longer than showing a number may; of an address
    none is, because that would copy the file once more: it is known when it ends.
    """

    def __init__(self, num_sources: int) -> None:
        self._num_sources = num_sources
        self._known: dict[str, int] = {}
        self._ended: set[str] = set()
        self._waiting: queue.SimpleQueue[Source] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def begins(self, source: Source) -> None:
        """A source is about to be read."""
        if source.kind == "images":
            self._known[source.name] = len(source.files)
        elif not is_address(source.path):
            self._waiting.put(source)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()

    def ended(self, stream: str, num_frames: int) -> None:
        """A source gave its last frame: now its number is certain."""
        self._ended.add(stream)
        self._known[stream] = num_frames

    @property
    def num_ended(self) -> int:
        return len(self._ended)

    @property
    def guessed(self) -> bool:
        """Whether there are sources of which nothing is known."""
        return len(self._known) < self._num_sources

    def frames(self) -> int | None:
        """Of all sources; None before anything is known."""
        known = list(self._known.values())
        return round(sum(known) * self._num_sources / len(known)) if known else None

    def _look(self) -> None:
        while True:
            source = self._waiting.get()
            try:
                num_frames = probe(source).num_frames
            except SourceError:
                continue  # the stage that decodes says so, as a result
            if num_frames is not None:
                self._known.setdefault(source.name, num_frames)


class _Rate:
    """Amount a second, lately."""

    def __init__(self) -> None:
        self._points: list[tuple[float, float]] = []

    def at(self, now: float, total: float) -> float:
        """Note the total so far; gives its growth a second. 0 where nothing can be said."""
        self._points = [point for point in self._points if now - point[0] <= _RECENT_S] + [(now, total)]
        (start, first), (end, last) = self._points[0], self._points[-1]
        return (last - first) / (end - start) if end > start else 0.0


class View(Observer):
    """Frames, videos, rates, the time that is left, and the slowest stage. Names are shown as they are: '[x]' is no
    markup. A context manager: what is live ends with it."""

    def __init__(self, console: Console | None = None, listeners: Sequence[OnStatus] = ()) -> None:
        """Each Status goes to `listeners` too."""
        self._console, self._listeners = console or Console(stderr=True, highlight=False), tuple(listeners)
        self._forecast = Forecast(0)
        self._num_sources = self._num_failed = self._frames = 0
        self._status = Status(())
        self._meter: Meter | None = None
        self._first = self._told = time.monotonic()
        self._rates: dict[object, _Rate] = {}
        # last, because it asks for a first picture
        self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def __enter__(self) -> View:
        return self

    def __exit__(self, *error: object) -> None:
        if self._live.is_started:
            self._live.stop()
        if self._frames:
            self._print(self._counts())

    def began(self, sources: Sequence[Source], told: Sequence[SourceSummary]) -> None:
        before = sum(row.before for row in told)
        if before:
            self._print(f"{before} of {len(told)} were done before and are not run again (--fresh makes them anew)")
        for row in told:
            if row.state == "failed" and not row.before:
                self._print(f"error: {row.note}")
        self._forecast, self._num_sources = Forecast(len(sources)), len(sources)
        self._told = time.monotonic()
        if sources and self._console.is_terminal:
            self._live.start()

    def begins(self, source: Source) -> None:
        self._forecast.begins(source)

    def saw(self, result: Result, meter: Meter) -> None:
        self._meter = meter
        if isinstance(result, StreamEnd):
            self._forecast.ended(result.stream, result.num_frames)
            self._num_failed += result.fatal
            if result.error:
                self._print(f"{'error' if result.fatal else 'warning'}: {result.stream}: {result.error}")
            return
        if not self._frames:
            self._first = time.monotonic()
        self._frames += 1
        if not self._console.is_terminal and time.monotonic() - self._told >= LINE_S:
            self._told = time.monotonic()
            self._print(self.line())

    def status(self, status: Status) -> None:
        self._status = status
        for listener in self._listeners:
            listener(status)

    def slowest(self) -> tuple[str, float]:
        """The stage that holds the others up, and the busy share of its group, 0..1; ('', 0) while nothing is known.

        The busiest group holds the others up; in it, the stage that took most time lately.
        """
        if self._meter is None:
            return "", 0.0
        if not self._status.groups:
            return self._meter.limiting()[0], 0.0
        busiest = max(self._status.groups, key=lambda group: group.busy)
        writing = self._writing_share()
        if writing > busiest.busy:
            return "outputs", writing
        return self._meter.limiting(busiest.stages)[0] or busiest.stages[0], busiest.busy

    def line(self) -> str:
        """How far it is, in one line of plain text."""
        rate, (name, share) = self._rate("frames", self._frames), self.slowest()
        slowest = f"slowest: {name}" + (f" (busy {share:.0%})" if share else "") if name else ""
        parts = [self._counts(), f"{rate:.1f} frames/s" if rate else "", self._left(), slowest]
        return ", ".join(part for part in parts if part)

    def _counts(self) -> str:
        """'100 of about 300 frames, 2 of 3 videos, 1 failed'."""
        expected, about = self._forecast.frames(), "about " if self._forecast.guessed else ""
        frames = f"{self._frames:,}" + (f" of {about}{max(expected, self._frames):,}" if expected else "") + " frames"
        videos = f", {self._forecast.num_ended} of {self._num_sources} videos" if self._num_sources > 1 else ""
        return frames + videos + (f", {self._num_failed} failed" if self._num_failed else "")

    def _rate(self, key: object, total: float) -> float:
        return self._rates.setdefault(key, _Rate()).at(time.monotonic(), total)

    def _left(self) -> str:
        """'4 min left', by the mean rate since the first frame: calmer than the rate just now. Not at once."""
        expected, passed = self._forecast.frames(), time.monotonic() - self._first
        if not expected or not 1 < self._frames < expected or passed < SURE_S:
            return ""
        return f"{_duration((expected - self._frames) * passed / (self._frames - 1))} left"

    def _writing_share(self) -> float:
        """Share of the driver's time that the writing of files takes lately."""
        seconds = self._meter.seconds.get("outputs", 0.0) if self._meter is not None else 0.0
        return min(1.0, self._rate("outputs", seconds))

    def _render(self) -> Group:
        expected = self._forecast.frames()
        bar = ProgressBar(total=max(expected, self._frames) if expected else None, completed=self._frames, width=40)
        lines = Table.grid()  # a bar alone would not end its line
        lines.add_row(Text(self.line(), overflow="ellipsis", no_wrap=True))
        lines.add_row(bar)
        return Group(lines, self._table())

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim")
        for column in ("", "stages", "replicas", "queue", "under way", "busy", "frames/s", "MB/s"):
            table.add_column(column, justify="left" if column in ("", "stages") else "right")
        slowest = self.slowest()[0]
        for group in self._status.groups:
            table.add_row(*self._row(group, slowest))
        if self._meter is not None:
            share, rate = self._writing_share(), self._rate("frames", self._frames)
            table.add_row(_mark(slowest == "outputs"), "(outputs, in the driver)", "1", "", "", f"{share:.0%}",
                          f"{rate:.1f}", "")  # fmt: skip
        return table

    def _row(self, group: GroupStatus, slowest: str) -> list[str | Text]:
        frames = self._rate((group.stages, "frames"), group.frames)
        size = self._rate((group.stages, "bytes"), group.bytes) / 1e6
        replicas = f"{group.replicas}" + (f" ({group.restarts} restarts)" if group.restarts else "")
        names = Text(", ").join(Text(name, style="bold yellow" if name == slowest else "") for name in group.stages)
        return [_mark(slowest in group.stages), names, replicas, f"{group.waiting}", f"{group.under_way}",
                f"{group.busy:.0%}", f"{frames:.1f}", f"{size:.2f}"]  # fmt: skip

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def _mark(slowest: bool) -> Text:
    return Text("slowest" if slowest else "", style="yellow")


def _duration(seconds: float) -> str:
    """'40 s', '12 min', '3 h 20 min'."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"
