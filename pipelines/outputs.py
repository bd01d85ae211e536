"""What a run saves: the outputs of each stream, and the account of what became of it.

In:     results of many streams, in order per stream; the manifest of what was done before
Out:    files in DIR/<source name>/ by `operators/sinks.py`, whole or not at all; for all videos of a YouTube-VIS JSON
        one DIR/results.json, as its server takes it; DIR/failed.json; a SourceSummary for each source
State:  the open outputs of the streams under way (stream_outputs.py)
Limits: DIR/unfinished/<source name>/ holds what is not whole: of streams under way, of a run that was cut or killed
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import ConfigError, MaskstreamError, StageError
from operators.formats import Categories, merge_results
from operators.matching import Rule
from operators.records import StreamEnd
from operators.replacing import adopt, replacing
from operators.sinks import SINKS, SinkConfig, open_sinks, remove_outputs
from operators.sources import Source, version_of
from pipelines.drive import Result
from pipelines.manifest import Entry, Manifest, places
from pipelines.stream_outputs import SourceSummary, StreamOutputs, frames

UNFINISHED = "unfinished"
FAILED_FILE = "failed.json"


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


class Files:
    """The outputs of all streams: opened with a stream's first result, closed with its last, or all at once.

    A stream's files are written in DIR/unfinished/<name>/, and moved to DIR/<name>/ when they are whole; then the
    manifest says so. Whenever the process is killed, DIR/<name>/ of a video that is done is whole. Of a stream that
    failed on the way its frames so far are moved too; of one that was cut they stay in unfinished/, valid as they are.
    """

    def __init__(
        self,
        outputs: Outputs,
        sources: Sequence[Source],
        manifest: Manifest | None = None,
        unusable: Sequence[SourceSummary] = (),
    ) -> None:
        """`manifest`: what was done before is not done again; without one all is. Raises ConfigError for a folder that
        cannot be made."""
        self._outputs, self._manifest = outputs, manifest
        settled = list(enumerate(sources, start=1)) if manifest is None else manifest.settled(sources)
        self._sources = {
            source.name: _Numbered(number if source.video_id is None else source.video_id, source, place)
            for (number, source), place in zip(settled, places(sources), strict=True)
        }
        self._open: dict[str, StreamOutputs] = {}
        self._summaries = {name: SourceSummary(name, note="not begun") for name in self._sources}
        self._unusable = tuple(unusable)
        try:
            outputs.directory.mkdir(parents=True, exist_ok=True)
            self._failed = _FailedFile(outputs.directory / FAILED_FILE)
        except OSError as error:
            raise ConfigError(f"--out {outputs.directory}: cannot be made: {error.strerror or error}.") from error
        self.remaining = self._without_done()
        """The sources to run."""

    def __enter__(self) -> Files:
        return self

    def __exit__(self, *error: object) -> None:
        for name, stream in list(self._open.items()):
            stream.end(None)
            self._summaries[name].folder = f"{UNFINISHED}/{name}"
        self._merge()
        self._failed.write([self._failure(row) for row in self.summaries() if row.state == "failed"])
        with contextlib.suppress(OSError):  # it holds what was cut
            (self._outputs.directory / UNFINISHED).rmdir()

    def begins(self, source: Source) -> None:
        """The source is about to be read: should it change from now on, it was another one."""
        self._sources[source.name].version = version_of(source)

    def take(self, result: Result) -> None:
        """Write one result to its stream's outputs."""
        name = result.stream if isinstance(result, StreamEnd) else result.info.stream
        if name not in self._open:
            self._open[name] = self._begin(name)
        if isinstance(result, StreamEnd):
            self._open.pop(name).end(result)
            self._commit(name)
        else:
            self._open[name].take(result)

    def summaries(self) -> tuple[SourceSummary, ...]:
        return (*self._unusable, *self._summaries.values())

    def _without_done(self) -> list[Source]:
        if self._manifest is None:
            return [numbered.source for numbered in self._sources.values()]
        remaining = []
        for name, numbered in self._sources.items():
            entry = self._manifest.done(numbered.source, numbered.place, numbered.number, self._outputs.kinds)
            if entry is None:
                remaining.append(numbered.source)
            else:
                self._summaries[name] = _told_before(entry)
        self._manifest.drop(source.name for source in remaining)
        return remaining

    def _begin(self, name: str) -> StreamOutputs:
        numbered, o = self._sources[name], self._outputs
        if numbered.version is None:
            self.begins(numbered.source)
        directory = o.directory / UNFINISHED
        shutil.rmtree(directory / name, ignore_errors=True)  # of a run that was cut
        more = {"config": o.config, "number": numbered.number, "association": o.association}
        sinks = open_sinks(directory, o.kinds, numbered.source, o.categories, frames=frames, **more)
        self._summaries[name].note = "the run was cut"
        return StreamOutputs(sinks, self._summaries[name], o.config.min_score)

    def _commit(self, name: str) -> None:
        """A stream has ended: its files to their place, and word of it to the manifest, in this order."""
        row, folder = self._summaries[name], self._outputs.directory / UNFINISHED / name
        try:
            if row.state == "failed" and not row.frames + row.faults:
                shutil.rmtree(folder, ignore_errors=True)
                row.outputs = []
            else:
                kept = self._place(name, folder)
                row.folder = name
                if self._manifest is not None and row.state in ("done", "damaged"):
                    self._manifest.add(self._entry(row, kept))
        except (OSError, MaskstreamError) as error:
            said = error if isinstance(error, MaskstreamError) else f"outputs cannot be put into their place: {error}"
            row.state, row.note = "failed", "; ".join(filter(None, [str(said), row.note]))
        if row.state == "failed":
            self._failed.add(self._failure(row))

    def _place(self, name: str, folder: Path) -> set[str]:
        """Files to DIR/<name>/; gives the kinds of those that an earlier run put there and that still hold.

        Older ones of Maskstream's that do not hold go: of a video that has changed, or of other settings.
        """
        place, kinds = self._outputs.directory / name, set(self._outputs.kinds)
        before = self._manifest.before.get(name) if self._manifest is not None else None
        kept: set[str] = set()
        if before is not None:
            same = self._manifest.same_mark and before.version == self._sources[name].version
            kept = set(before.save) - kinds if same else set()
            remove_outputs(place, sorted(set(before.save) - kinds - kept))
        if place.is_dir():
            remove_outputs(place, sorted(kinds & {"masks", "davis"}))  # it may have had more frames
        adopt(folder, place)
        return kept

    def _entry(self, row: SourceSummary, kept: set[str]) -> Entry:
        numbered, save = self._sources[row.name], tuple(sorted({*self._outputs.kinds, *kept}))
        counts = {name: getattr(row, name) for name in _TOLD}
        return Entry(video=row.name, source=numbered.place, version=numbered.version or "", number=numbered.number,
                     save=save, outputs=tuple(row.outputs), **counts)  # fmt: skip

    def _failure(self, row: SourceSummary) -> dict[str, Any]:
        """A line of failed.json. `frame`: the first without a result; null where nothing was begun."""
        numbered = self._sources.get(row.name)
        source = row.name if numbered is None else numbered.source.place
        return {"video": row.name if numbered else None, "source": source,
                "frame": row.frames + row.faults if numbered else None, "reason": row.note}  # fmt: skip

    def _merge(self) -> None:
        """One results.json for all videos of a dataset; none where two datasets use the same video ids."""
        ids = {name: numbered.source.video_id for name, numbered in self._sources.items()
               if self._summaries[name].folder == name}  # fmt: skip
        ids = {name: video_id for name, video_id in ids.items() if video_id is not None}
        if "ytvis" not in self._outputs.kinds or not ids or len(set(ids.values())) < len(ids):
            return
        directory, file = self._outputs.directory, SINKS["ytvis"].file
        merge_results([path for name in ids if (path := directory / name / file).exists()], directory / file)


@dataclass
class _Numbered:
    """A source of the run."""

    number: int
    """Its video_id in results.json."""
    source: Source
    place: str
    version: str | None = None
    """As it was when it began."""


class _FailedFile:
    """failed.json, written whole: at the end, and while a run goes on at most once a second."""

    def __init__(self, path: Path) -> None:
        self._path, self._lines = path, []
        self._written = time.monotonic()
        for old in (path, path.with_name(f".{path.name}.part")):  # the latter of a run that was killed
            old.unlink(missing_ok=True)

    def add(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        if time.monotonic() - self._written >= 1:
            self.write(self._lines)

    def write(self, lines: list[dict[str, Any]]) -> None:
        """All there is to tell; no lines, no file."""
        self._written = time.monotonic()
        if not lines:
            return
        try:
            with replacing(self._path) as part:
                part.write_text("[\n" + ",\n".join(map(json.dumps, lines)) + "\n]\n", encoding="ascii")
        except OSError as error:
            raise StageError(f"{self._path} cannot be written: {error.strerror or error}.") from error


def _told_before(entry: Entry) -> SourceSummary:
    """The summary of a video that was done before this run."""
    counts = {name: getattr(entry, name) for name in _TOLD}
    return SourceSummary(entry.video, outputs=list(entry.outputs), folder=entry.video, before=True, **counts)


_TOLD = ("frames", "tracks", "weak", "faults", "skipped", "state", "note")
"""What Entry and SourceSummary share."""
