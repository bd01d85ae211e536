"""The outputs of one stream while they are written, and the account of what became of it.

In:     results of the stream, in order, then its end; or none, where the run was cut
Out:    what its sinks write (operators/sinks.py); a SourceSummary
State:  the open sinks, and the sets of track ids
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

from operators.decode import open_reader
from operators.errors import MaskstreamError
from operators.records import Frame, FrameFault, FrameTracks, StreamEnd
from operators.sinks import Sink
from operators.sources import Source

State = Literal["done", "damaged", "failed", "cut"]


@dataclass
class SourceSummary:
    """What became of one source."""

    name: str
    frames: int = 0
    """Frames with a result, even an empty one."""
    tracks: int = 0
    """Tracks that pictures show: in some frame their score reaches the `min_score` of the sinks."""
    weak: int = 0
    """Tracks that never do; tracks.jsonl and results.json hold them too."""
    faults: int = 0
    """Frames that are known of but could not be decoded; `frames` + `faults` lines stand in tracks.jsonl."""
    skipped: int = 0
    """Damaged packets that gave no frame."""
    state: State = "cut"
    note: str = ""
    """Why, unless all was well; what an output had to leave out."""
    outputs: list[str] = field(default_factory=list)
    """'overlay.mp4: 240 frames'."""
    folder: str = ""
    """Where they lie, under the folder of the run; empty where nothing was saved."""
    before: bool = False
    """It was done by an earlier run, and was not run again."""


class StreamOutputs:
    """The open outputs of one stream. One that fails is given up, the others go on."""

    def __init__(self, sinks: list[Sink], summary: SourceSummary, min_score: float) -> None:
        """`min_score`: from which on pictures show a track."""
        self._sinks = sinks
        self._min_score = min_score
        self._given_up: list[str] = []
        self._summary = summary
        self._tracks: set[int] = set()
        self._shown: set[int] = set()

    def take(self, result: FrameTracks | FrameFault) -> None:
        if isinstance(result, FrameFault):
            self._summary.faults += 1
            self._each(lambda sink: sink.fault(result))
        else:
            self._summary.frames += 1
            self._tracks.update(result.track_ids.tolist())
            self._shown.update(result.track_ids[result.scores >= self._min_score].tolist())
            self._summary.tracks, self._summary.weak = len(self._shown), len(self._tracks) - len(self._shown)
            self._each(lambda sink: sink.write(result))

    def end(self, end: StreamEnd | None) -> None:
        """Close the outputs; None means that the run was cut."""
        self._each(lambda sink: sink.close(end))
        summary = self._summary
        summary.outputs = [f"{sink.path.name}: {sink.summary()}" for sink in self._sinks]
        if end is not None:
            summary.skipped, summary.note = end.num_skipped, end.error or ""
            summary.state = "failed" if end.fatal else "damaged" if end.error else "done"
        if self._given_up:
            summary.state, summary.note = "failed", "; ".join([*self._given_up, *filter(None, [summary.note])])

    def _each(self, act: Callable[[Sink], None]) -> None:
        for sink in list(self._sinks):
            try:
                act(sink)
            except MaskstreamError as error:
                self._given_up.append(str(error))
                self._sinks.remove(sink)
                self._close_failed(sink)

    def _close_failed(self, sink: Sink) -> None:
        """What it wrote before it failed shall be valid; what hinders that has been told already."""
        try:
            sink.close(None)
        except MaskstreamError as error:
            if str(error) not in self._given_up:
                self._given_up.append(str(error))


def frames(source: Source) -> Iterator[Frame | FrameFault | StreamEnd]:
    """The frames of a source, decoded anew for the overlay."""
    with closing(open_reader(source)) as reader:
        while records := reader.read(1):
            yield from records
