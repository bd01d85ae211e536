"""What a run saves: the outputs of each stream, and the account of what became of it.

In:     results of many streams, in order per stream
Out:    files in DIR/<source name>/ by `operators/sinks.py`; for all videos of a YouTube-VIS JSON one DIR/results.json,
        as its server takes it; a SourceSummary for each source
State:  the open outputs of the streams under way, and the sets of their track ids
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from operators.decode import open_reader
from operators.errors import ConfigError, MaskstreamError
from operators.formats import Categories, merge_results
from operators.matching import Rule
from operators.records import Frame, FrameFault, FrameTracks, StreamEnd
from operators.sinks import SINKS, Sink, SinkConfig, open_sinks
from operators.sources import Source
from pipelines.drive import Result

State = Literal["done", "damaged", "failed", "cut"]


@dataclass(frozen=True)
class Outputs:
    """What to save, and where."""

    directory: Path
    kinds: tuple[str, ...]
    """Of operators.sinks.SINKS."""
    categories: Categories
    config: SinkConfig = SinkConfig()
    association: Rule | None = None
    """The rule that gives the tracks: told in the summary, and classes of whole tracks may follow it."""


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


class Files:
    """The outputs of all streams: opened with a stream's first result, closed with its last, or all at once."""

    def __init__(self, outputs: Outputs, sources: Sequence[Source]) -> None:
        self._outputs = outputs
        self._sources = {source.name: (number, source) for number, source in enumerate(sources, start=1)}
        self._open: dict[str, _Stream] = {}
        self._begun: set[str] = set()
        self._summaries = {source.name: SourceSummary(source.name, note="not begun") for source in sources}
        try:
            outputs.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {outputs.directory}: cannot be made: {error.strerror or error}.") from error

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in list(self._open.values()):
            stream.end(None)
        self._merge()

    def take(self, result: Result) -> None:
        """Write one result to its stream's outputs."""
        name = result.stream if isinstance(result, StreamEnd) else result.info.stream
        if name not in self._open:
            self._open[name] = self._begin(name)
        if isinstance(result, StreamEnd):
            self._open.pop(name).end(result)
        else:
            self._open[name].take(result)

    def _merge(self) -> None:
        """One results.json for all videos of a dataset; none where two datasets use the same video ids."""
        ids = {name: source.video_id for name, (_, source) in self._sources.items() if name in self._begun}
        ids = {name: video_id for name, video_id in ids.items() if video_id is not None}
        if "ytvis" not in self._outputs.kinds or not ids or len(set(ids.values())) < len(ids):
            return
        directory, file = self._outputs.directory, SINKS["ytvis"].file
        merge_results([path for name in ids if (path := directory / name / file).exists()], directory / file)

    def summaries(self) -> tuple[SourceSummary, ...]:
        return tuple(self._summaries.values())

    def _begin(self, name: str) -> _Stream:
        number, source = self._sources[name]
        o = self._outputs
        more = {"config": o.config, "number": number, "association": o.association}
        sinks = open_sinks(o.directory, o.kinds, source, o.categories, frames=frames, **more)
        self._begun.add(name)
        self._summaries[name].note = "the run was cut"
        return _Stream(sinks, self._summaries[name], o.config.min_score)


class _Stream:
    """The open outputs of one stream. One that fails is given up, the others go on."""

    def __init__(self, sinks: list[Sink], summary: SourceSummary, min_score: float) -> None:
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
