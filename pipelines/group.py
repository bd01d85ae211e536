"""Neighbouring stages that share a process: a batch goes in on the left, records and a report come out on the right.

In:     records of one tick, in parts as the groups before gave them
Out:    records for the next group, and a small Report: events, failures, seconds and frames of each stage
State:  what its stages remember per stream; which streams are open, ended or failed, until they are closed
Limits: memory is that of the open streams

Plain Python: the in-process executor calls it, the Ray executor makes an actor of it. A failure ends one stream, never
its neighbours in the batch: a stage without memory is tried again frame by frame, one with memory is called stream by
stream, because half of a batch cannot be taken back out of a memory; but for those whose failed calls leave no trace
(`mixes`), which are tried again stream by stream.
"""

from __future__ import annotations

import json
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from operators.errors import StageError
from operators.records import FrameFault, Pull, StreamEnd
from pipelines.graph import RunContext, StageKind, StageSpec
from pipelines.stage import StreamStage


@dataclass(frozen=True)
class Failure:
    """A stage failed on a stream: the stream is over, the others go on."""

    stream: str
    reason: str
    """Names stage, stream and frame, and what was wrong."""
    trace: str = ""
    """The traceback as text: exceptions lose their cause on the way between processes."""


@dataclass(frozen=True)
class Report:
    """What one call did, beside the records; a few hundred bytes."""

    events: tuple[FrameFault | StreamEnd, ...] = ()
    failures: tuple[Failure, ...] = ()
    seconds: dict[str, float] = field(default_factory=dict)
    """Wall time inside each stage."""
    frames: dict[str, int] = field(default_factory=dict)
    """Records that each stage gave."""


class _Tally:
    """A report in the making."""

    def __init__(self) -> None:
        self.events: list[FrameFault | StreamEnd] = []
        self.failures: list[Failure] = []
        self.seconds: dict[str, float] = defaultdict(float)
        self.frames: dict[str, int] = defaultdict(int)

    def report(self) -> Report:
        return Report(tuple(self.events), tuple(self.failures), dict(self.seconds), dict(self.frames))


class StageGroup:
    """Builds its stages, runs batches through them, and keeps their streams apart."""

    def __init__(self, specs: Sequence[StageSpec], context: RunContext, num_threads: int | None = None) -> None:
        """`num_threads` for torch, at every call: results may depend on it in the last bit; None leaves it alone."""
        self._num_threads = num_threads
        self._use_threads()
        self._specs = tuple(specs)
        self._stages = [spec.kind.build(spec.settings, context) for spec in specs]
        for spec, stage in zip(specs, self._stages, strict=True):
            assert isinstance(stage, StreamStage) == spec.kind.stateful, f"{spec.name}: its kind is wrong about state"
        self._keyed = any(spec.kind.stateful for spec in specs)
        self._open: set[str] = set()
        self._ended: set[str] = set()
        self._failed: dict[str, int] = {}  # stream -> number of the stage that failed

    def process(
        self, *parts: Iterable[Any], streams: Sequence[str] | None = None, closing: Sequence[str] = ()
    ) -> tuple[list[Any], Report]:
        """Run the records of `streams` (None: all) through the stages, then close the streams in `closing`.

        Records are taken in the order of `streams`, within a stream in that of the parts, however the parts were split.
        Nothing in, and nothing held back, gives nothing out.
        """
        self._use_threads()
        tally = _Tally()
        records = _arranged(parts, streams)
        for stream in _streams_of(records) if streams is None else streams:
            self._open_stream(stream, tally)
        records = self._run(records, 0, tally)
        for stream in closing:
            records += self._close_stream(stream, tally)
        if not self._keyed:
            self._failed.clear()  # a stage without memory may try the stream's next frames: no later call depends on it
        return records, tally.report()

    def close(self, stream: str) -> tuple[list[Any], Report]:
        """What was held back, run through all later stages; then the stream is forgotten. Closed already: nothing."""
        return self.process(streams=(), closing=(stream,))

    def snapshot(self, stream: str) -> bytes:
        """The state of every stage that remembers, as it stands after the last call. The stream must be open."""
        states = [(spec.name, stage.snapshot(stream)) for spec, stage in self._remembering()]
        head = json.dumps([[name, len(state)] for name, state in states])
        return head.encode() + b"\n" + b"".join(state for _, state in states)

    def restore(self, stream: str, state: bytes) -> None:
        """Take up where `snapshot` was taken. Raises: StageError if it is that of other stages."""
        head, _, body = state.partition(b"\n")
        try:
            lengths = [(str(name), int(length)) for name, length in json.loads(head)]
        except (ValueError, TypeError) as error:
            raise StageError(f"stream '{stream}': the snapshot is damaged: {error}.") from error
        expected = [spec.name for spec, _ in self._remembering()]
        given = [name for name, _ in lengths]
        if given != expected or sum(length for _, length in lengths) != len(body):
            raise StageError(f"stream '{stream}': a snapshot of {given}, {len(body)} bytes, is none of {expected}.")
        start = 0
        for (_, stage), (_, length) in zip(self._remembering(), lengths, strict=True):
            stage.restore(stream, body[start : start + length])
            start += length
        self._open.add(stream)

    def _remembering(self) -> list[tuple[StageSpec, StreamStage]]:
        return [(spec, stage) for spec, stage in zip(self._specs, self._stages, strict=True) if spec.kind.stateful]

    def _use_threads(self) -> None:
        if self._num_threads is not None and torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)

    def _open_stream(self, stream: str, tally: _Tally) -> None:
        if stream in self._open or not self._keyed:
            return
        self._open.add(stream)
        for number, (spec, stage) in enumerate(zip(self._specs, self._stages, strict=True)):
            if spec.kind.stateful:
                try:
                    stage.open(stream)
                except Exception as error:
                    self._fail(number, stream, "when it opened", error, tally)
                    return

    def _run(self, records: list[Any], first: int, tally: _Tally) -> list[Any]:
        """Records through the stages from number `first` on; events and failures go to the tally."""
        for number in range(first, len(self._stages)):
            records = [record for record in records if self._wanted(record, number)]
            if records:
                call = self._call_of(self._specs[number].kind)
                start = time.perf_counter()
                given = call(number, records, tally)
                tally.seconds[self._specs[number].name] += time.perf_counter() - start
                records = self._split(number, given, tally)
        return records

    def _wanted(self, record: Any, number: int) -> bool:
        """Not on its way to a stage that failed on its stream, and no further pull of one that gave its last frame."""
        stream = stream_of(record)
        ended = isinstance(record, Pull) and stream in self._ended
        return not ended and self._failed.get(stream, -1) < number

    def _split(self, number: int, given: list[Any], tally: _Tally) -> list[Any]:
        records = []
        for record in given:
            if isinstance(record, (FrameFault, StreamEnd)):
                tally.events.append(record)
                if isinstance(record, StreamEnd):
                    self._ended.add(record.stream)
            else:
                records.append(record)
        tally.frames[self._specs[number].name] += len(records)
        return records

    def _call_of(self, kind: StageKind) -> Callable[[int, list[Any], _Tally], list[Any]]:
        if kind.mixes:
            return self._all_streams
        return self._by_stream if kind.stateful else self._mixed

    def _all_streams(self, number: int, records: list[Any], tally: _Tally) -> list[Any]:
        try:
            return self._stages[number](records)
        except Exception:                                   # nothing is remembered of it: find the stream that failed
            return self._by_stream(number, records, tally)

    def _by_stream(self, number: int, records: list[Any], tally: _Tally) -> list[Any]:
        given = []
        for stream in _streams_of(records):
            batch = [record for record in records if stream_of(record) == stream]
            try:
                given += self._stages[number](batch)
            except Exception as error:
                self._fail(number, stream, _frames(batch), error, tally)
        return given

    def _mixed(self, number: int, records: list[Any], tally: _Tally) -> list[Any]:
        try:
            return self._stages[number](records)
        except Exception as error:
            return self._frame_by_frame(number, records, error, tally)

    def _frame_by_frame(self, number: int, records: list[Any], batch_error: Exception, tally: _Tally) -> list[Any]:
        """Find the frames that made the batch fail. Where none fails alone, all streams of the batch fail."""
        given = []
        for record in records:
            if self._wanted(record, number):
                try:
                    given += self._stages[number]([record])
                except Exception as error:
                    self._fail(number, stream_of(record), _frames([record]), error, tally)
        if not self._failed.keys() & set(_streams_of(records)):
            for stream in _streams_of(records):
                own = [record for record in records if stream_of(record) == stream]
                self._fail(number, stream, f"{_frames(own)}, together though not one by one", batch_error, tally)
            return []
        return given

    def _close_stream(self, stream: str, tally: _Tally) -> list[Any]:
        """Each stage gives out what it held back, and the later stages see that before they are closed."""
        records = []
        for number, (spec, stage) in enumerate(zip(self._specs, self._stages, strict=True)):
            if not spec.kind.stateful:
                continue
            start = time.perf_counter()
            try:
                held = stage.close(stream)
            except Exception as error:
                held = []
                if stream not in self._failed:  # else the first reason is reported already, and is the one that counts
                    self._fail(number, stream, "when it closed", error, tally)
            tally.seconds[spec.name] += time.perf_counter() - start
            if self._failed.get(stream, -1) < number:  # what had passed a stage before that failed is good
                records += self._run(self._split(number, held, tally), number + 1, tally)
        self._open.discard(stream)
        self._ended.discard(stream)
        self._failed.pop(stream, None)
        return records

    def _fail(self, number: int, stream: str, place: str, error: Exception, tally: _Tally) -> None:
        said = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
        reason = f"{self._specs[number].name}, stream '{stream}', {place}: {said}"
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._failed[stream] = number
        tally.failures.append(Failure(stream, reason, trace))


def stream_of(record: Any) -> str:
    """The stream that any record belongs to."""
    if isinstance(record, Pull):
        return record.source.name
    return record.stream if isinstance(record, StreamEnd) else record.info.stream


def _streams_of(records: Iterable[Any]) -> tuple[str, ...]:
    """Each stream once, in the order of its first record."""
    return tuple(dict.fromkeys(stream_of(record) for record in records))


def _arranged(parts: Iterable[Iterable[Any]], streams: Sequence[str] | None) -> list[Any]:
    """The records of `streams`, stream by stream: how an earlier group was split over replicas leaves no trace."""
    records = [record for part in parts for record in part]
    if streams is None:
        return records
    rank = {stream: i for i, stream in enumerate(streams)}
    wanted = [record for record in records if stream_of(record) in rank]
    return sorted(wanted, key=lambda record: rank[stream_of(record)])  # stable: order within a stream stays


def _frames(batch: Sequence[Any]) -> str:
    """'frame 3', 'frames 3 to 7', or 'the next 4 frames' of a pull."""
    first, last = batch[0], batch[-1]
    if isinstance(first, Pull):
        return f"the next {first.count} frames"
    if len(batch) == 1:
        return f"frame {first.info.index}"
    return f"frames {first.info.index} to {last.info.index}"
