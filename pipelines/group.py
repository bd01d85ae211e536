"""Neighbouring stages that share a process: a batch goes in on the left, records and a report come out on the right.

In:     records of one tick, in parts as the groups before gave them
Out:    records for the next group, and a small Report: events, failures, seconds and frames of each stage
State:  what its stages remember per stream; which streams are open, ended or failed, until they are closed
Limits: memory is that of the open streams

Plain Python: the in-process executor calls it, the Ray executor makes an actor of it. A failure ends one stream, before
the frame that failed, never its neighbours in the batch: a stage without memory, or whose failed calls leave no trace
(`mixes`), is tried again frame by frame; one with memory is called frame by frame at once, because half of a batch
cannot be taken back out of a memory. So who fails where does not depend on what came together.
"""

from __future__ import annotations

import contextlib
import json
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch

from operators.errors import StageError
from operators.records import FrameFault, Pull, StreamEnd
from pipelines.graph import RunContext, StageKind, StageSpec
from pipelines.reports import Failure, Report, Tally, stream_of
from pipelines.stage import StreamStage


class StageGroup:
    """Builds its stages, runs batches through them, and keeps their streams apart."""

    def __init__(self, specs: Sequence[StageSpec], context: RunContext, num_threads: int | None = None) -> None:
        """`num_threads` for torch, at every call: results may depend on it in the last bit; None leaves it alone."""
        self._num_threads, self._trace = num_threads, context.trace
        self._use_threads()
        self._specs = tuple(specs)
        self._stages = [spec.kind.build(spec.settings, context) for spec in specs]
        for spec, stage in zip(specs, self._stages, strict=True):
            assert isinstance(stage, StreamStage) == spec.kind.stateful, f"{spec.name}: its kind is wrong about state"
        self._keyed = any(spec.kind.stateful for spec in specs)
        self._pulls = specs[0].kind.takes is Pull
        self._open: set[str] = set()
        self._ended: set[str] = set()
        self._failed: dict[str, int] = {}  # stream -> number of the stage that failed

    def process(
        self,
        *parts: Iterable[Any],
        streams: Sequence[str] | None = None,
        closing: Sequence[str] = (),
        begin: Mapping[str, bytes | None] | None = None,
    ) -> tuple[list[Any], Report]:
        """Run the records of `streams` (None: all) through the stages, then close the streams in `closing`.

        Those in `begin` begin anew before, from a snapshot or (None) from nothing, whatever was known of them.
        Records are taken in the order of `streams`, within a stream in that of the parts, however the parts were split.
        Nothing in, and nothing held back, gives nothing out.
        """
        self._use_threads()
        tally = Tally(self._trace)
        for stream, state in (begin or {}).items():
            self._begin(stream, state, tally)
        records = _arranged(parts, streams)
        for stream in _streams_of(records) if streams is None else streams:
            self._open_stream(stream, tally)
        records = self._run(records, 0, tally)
        for stream in closing:
            records += self._close_stream(stream, tally)
        return records, tally.report(records)

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

    def failed(self, stream: str) -> bool:
        """Whether a stage failed on the stream since it was opened: then its state is worth nothing."""
        return stream in self._failed

    def _begin(self, stream: str, state: bytes | None, tally: Tally) -> None:
        for _, stage in self._remembering():
            with contextlib.suppress(Exception):    # what it has to say of a stream that begins anew is of no use
                stage.close(stream)
        self._drop(stream)
        if state is not None:
            try:
                self.restore(stream, state)
            except Exception as error:
                self._open.add(stream)
                self._fail(len(self._specs) - 1, stream, "when it was restored", error, tally)

    def _drop(self, stream: str) -> None:
        self._open.discard(stream)
        self._ended.discard(stream)
        self._failed.pop(stream, None)

    def _remembering(self) -> list[tuple[StageSpec, StreamStage]]:
        return [(spec, stage) for spec, stage in zip(self._specs, self._stages, strict=True) if spec.kind.stateful]

    def _use_threads(self) -> None:
        if self._num_threads is not None and torch.get_num_threads() != self._num_threads:
            torch.set_num_threads(self._num_threads)

    def _open_stream(self, stream: str, tally: Tally) -> None:
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

    def _run(self, records: list[Any], first: int, tally: Tally) -> list[Any]:
        """Records through the stages from number `first` on; events and failures go to the tally."""
        for number in range(first, len(self._stages)):
            records = [record for record in records if self._wanted(record, number)]
            if records:
                call, name, start_s = self._call_of(self._specs[number].kind), self._specs[number].name, time.time()
                with tally.timed(name):
                    given = call(number, records, tally)
                tally.traced(name, start_s, given)
                tally.calls[name] += 1
                records = self._split(number, given, tally)
        return records

    def _wanted(self, record: Any, number: int) -> bool:
        """Not on its way to a stage that failed on its stream, and no further pull of one that gave its last frame."""
        stream = stream_of(record)
        ended = isinstance(record, Pull) and stream in self._ended
        return not ended and self._failed.get(stream, -1) < number

    def _split(self, number: int, given: list[Any], tally: Tally) -> list[Any]:
        records = []
        for record in given:
            if number == 0 and self._pulls and not isinstance(record, StreamEnd):
                tally.pulled[stream_of(record)] += 1
            if isinstance(record, (FrameFault, StreamEnd)):
                tally.events.append(record)
                if isinstance(record, StreamEnd):
                    self._ended.add(record.stream)
            else:
                records.append(record)
        tally.gave(self._specs[number].name, records)
        return records

    def _call_of(self, kind: StageKind) -> Callable[[int, list[Any], Tally], list[Any]]:
        if kind.mixes:
            return self._all_or_each
        return self._each if kind.stateful else self._mixed

    def _all_or_each(self, number: int, records: list[Any], tally: Tally) -> list[Any]:
        try:
            return self._stages[number](records)
        except Exception:                           # nothing is remembered of it: find the stream and frame that failed
            return self._each(number, records, tally)

    def _each(self, number: int, records: list[Any], tally: Tally) -> list[Any]:
        """Record by record; one that fails ends its stream, and takes no frame before it with it."""
        given = []
        for record in records:
            if self._wanted(record, number):
                try:
                    given += self._stages[number]([record])
                except Exception as error:
                    self._fail(number, stream_of(record), _place(record), error, tally)
        return given

    def _mixed(self, number: int, records: list[Any], tally: Tally) -> list[Any]:
        try:
            return self._stages[number](records)
        except Exception as batch_error:
            given = self._each(number, records, tally)
            if self._failed.keys() & set(_streams_of(records)):
                return given
            for stream in _streams_of(records):  # none fails alone: all streams of the batch do
                own = [record for record in records if stream_of(record) == stream]
                self._fail(number, stream, f"{_places(own)}, together though not one by one", batch_error, tally)
            return []

    def _close_stream(self, stream: str, tally: Tally) -> list[Any]:
        """Each stage gives out what it held back, and the later stages see that before they are closed."""
        records = []
        for number, spec in enumerate(self._specs):
            if not spec.kind.stateful:
                continue
            held = self._held_back(number, stream, tally)
            if self._failed.get(stream, -1) < number:  # what had passed a stage before that failed is good
                records += self._run(self._split(number, held, tally), number + 1, tally)
        self._drop(stream)
        return records

    def _held_back(self, number: int, stream: str, tally: Tally) -> list[Any]:
        """What a stage gives out when it closes a stream; nothing if that fails."""
        start_s, name = time.time(), self._specs[number].name
        try:
            with tally.timed(name):
                held = self._stages[number].close(stream)
        except Exception as error:
            if stream not in self._failed:  # else the first reason is reported already, and is the one that counts
                self._fail(number, stream, "when it closed", error, tally)
            return []
        if held:
            tally.traced(name, start_s, held)
        return held

    def _fail(self, number: int, stream: str, place: str, error: Exception, tally: Tally) -> None:
        said = str(error) if isinstance(error, StageError) else f"{type(error).__name__}: {error}"
        reason = f"{self._specs[number].name}, stream '{stream}', {place}: {said}"
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
        self._failed[stream] = number
        tally.failures.append(Failure(stream, reason, trace))


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


def _place(record: Any) -> str:
    """'frame 3', or 'the next 4 frames' of a pull."""
    return f"the next {record.count} frames" if isinstance(record, Pull) else f"frame {record.info.index}"


def _places(records: Sequence[Any]) -> str:
    """'frame 3', or 'frames 3 to 7'."""
    first, last = records[0], records[-1]
    return _place(first) if first is last else f"frames {first.info.index} to {last.info.index}"
