"""Which frames enter the graph together: the plan of ticks.

In:     sources in order, and word of each stream that has ended
Out:    Tick  pulls of a few frames from every open stream, and the streams to close after them
State:  the open streams; nothing of a stream that is over

The plan depends on the order of calls alone, never on time: a run in this process can be repeated to the last batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from operators.records import Pull
from operators.sources import Source
from pipelines.placement import Batching


@dataclass(frozen=True)
class Tick:
    """One batch's way through the graph: pulls first, then the streams in `closing` give out what is held back."""

    number: int
    pulls: tuple[Pull, ...]
    closing: tuple[str, ...]

    @property
    def streams(self) -> tuple[str, ...]:
        """All streams of the tick, in the order in which their frames stand in every batch."""
        return (*(pull.stream for pull in self.pulls), *self.closing)


class Schedule:
    """Shares `frames` a tick out over up to `streams` open streams; one that ends makes room for the next in line.

    Sources are taken when there is room for them: a thousand are not listed at once. Memory: one entry per open stream.
    """

    def __init__(self, sources: Iterable[Source], settings: Batching) -> None:
        self._waiting: Iterator[Source] | None = iter(sources)
        self._settings = settings
        self._open: dict[str, Source] = {}
        self._closing: list[str] = []
        self._turn = 0
        self._number = 0

    @property
    def num_open(self) -> int:
        return len(self._open)

    def next(self) -> Tick | None:
        """The next tick, or None when no stream is open, to be opened, or to be closed."""
        while self._waiting is not None and len(self._open) < self._settings.streams:
            source = next(self._waiting, None)
            if source is None:
                self._waiting = None
                break
            assert source.name not in self._open, f"names of open sources must be unique: {source.name}"
            self._open[source.name] = source
        if not self._open and not self._closing:
            return None
        tick = Tick(self._number, self._share(), tuple(self._closing))
        self._closing.clear()
        self._number += 1
        return tick

    def end(self, stream: str) -> None:
        """No more pulls from this stream; the next tick closes it. A stream that is not open is left alone."""
        if self._open.pop(stream, None) is not None:
            self._closing.append(stream)

    def _share(self) -> tuple[Pull, ...]:
        """Frames are dealt like cards; the next tick goes on with the stream after the last one served."""
        sources = list(self._open.values())
        if not sources:
            return ()
        counts = [0] * len(sources)
        for card in range(self._settings.frames):
            counts[(self._turn + card) % len(sources)] += 1
        self._turn = (self._turn + self._settings.frames) % len(sources)
        return tuple(Pull(source, count) for source, count in zip(sources, counts, strict=True) if count)
