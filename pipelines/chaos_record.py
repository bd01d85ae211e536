"""What a run gave, kept small enough to be held against another run of the same sources.

In:     results, as they come
Out:    Record: of each frame what it was, as digests; when it came; how its stream ended. `differences` of two records
State:  the record
Limits: some 60 bytes a frame, whatever its masks weigh
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from operators.records import FrameFault, FrameTracks, StreamEnd
from pipelines.drive import Result

DIGEST_BYTES = 8


@dataclass
class StreamRecord:
    """One stream. Lists go by the order in which results came, one entry each."""

    indices: list[int] = field(default_factory=list)
    """Number of the frame that each was."""
    ids: list[bytes] = field(default_factory=list)
    """Digest of track ids and labels; of a fault of its reason."""
    whole: list[bytes] = field(default_factory=list)
    """Digest of all that the frame has."""
    times: list[float] = field(default_factory=list)
    """Seconds since the run began; the stream's end is the last."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why frames could not be decoded -> how many."""
    end: StreamEnd | None = None

    @property
    def out(self) -> int:
        """Frames with a result."""
        return len(self.indices) - self.reasons.total()

    @property
    def in_order(self) -> bool:
        """Every frame came once, after the one before it."""
        return self.indices == list(range(len(self.indices)))

    @property
    def longest_silence(self) -> float:
        """Seconds between two results, the end among them; 0 of less than two."""
        return max((after - before for before, after in _pairs(self.times)), default=0.0)

    def silence(self, begin: float, end: float) -> float:
        """The longest time between two results that reaches into begin .. end; 0 if the stream was not open then."""
        spans = (after - before for before, after in _pairs(self.times) if before < end and after > begin)
        return max(spans, default=0.0)


class Record:
    """All streams of a run."""

    def __init__(self) -> None:
        self.streams: dict[str, StreamRecord] = {}
        self._began = time.monotonic()

    @property
    def now_s(self) -> float:
        """Seconds since it was made."""
        return time.monotonic() - self._began

    @property
    def frames(self) -> int:
        """Results of frames, faults among them."""
        return sum(len(stream.indices) for stream in self.streams.values())

    def add(self, result: Result) -> None:
        ended = isinstance(result, StreamEnd)
        stream = self.streams.setdefault(result.stream if ended else result.info.stream, StreamRecord())
        stream.times.append(self.now_s)
        if ended:
            stream.end = result
            return
        stream.indices.append(result.info.index)
        if isinstance(result, FrameFault):
            stream.reasons[result.reason] += 1
        ids, whole = digests(result)
        stream.ids.append(ids)
        stream.whole.append(whole)


def digests(result: FrameTracks | FrameFault) -> tuple[bytes, bytes]:
    """Of the ids and labels, and of all: equal exactly where these are equal to the last bit."""
    if isinstance(result, FrameFault):
        said = _digest([repr(result.info).encode(), result.reason.encode()])
        return said, said
    ids = [_of_array(result.track_ids), _of_array(result.labels)]
    arrays = (result.scores, result.boxes, result.class_scores, result.unshown_scores)
    whole = [repr(result.info).encode(), *map(_of_array, arrays), repr(result.masks).encode()]
    return _digest(ids), _digest(ids + whole)


def _of_array(values: np.ndarray | None) -> bytes:
    return b"none" if values is None else f"{values.dtype} {values.shape} ".encode() + values.tobytes()


def _digest(parts: list[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.digest()


def _pairs(times: list[float]) -> Iterator[tuple[float, float]]:
    return zip(times, times[1:], strict=False)


@dataclass(frozen=True)
class Difference:
    """How a stream differs from its calm self."""

    stream: str
    frames: int
    """How many of its frames do."""
    first: int
    """The first of them."""


def differences(calm: Record, wild: Record, what: str) -> list[Difference]:
    """Streams whose frames differ in 'ids' or in 'whole'; frames that only one of the two runs gave differ."""
    found = []
    for name in calm.streams.keys() | wild.streams.keys():
        one, other = (getattr(record.streams.get(name, StreamRecord()), what) for record in (calm, wild))
        both = min(len(one), len(other))
        places = [i for i in range(both) if one[i] != other[i]]
        places += range(both, max(len(one), len(other)))
        if places:
            found.append(Difference(name, len(places), places[0]))
    return sorted(found, key=lambda each: each.stream)


@dataclass(frozen=True)
class Account:
    """Where the frames of all streams went."""

    given: int
    """Frames that the sources have, counted by decoding each by itself."""
    out: int
    dropped: Mapping[str, int]
    """Reason -> frames that could not be decoded."""
    failed: Mapping[str, int]
    """Reason -> frames of failed streams after the last that came out."""
    unknown: Mapping[str, int]
    """Stream -> frames that are missing, or too many (below 0), for no reason that was told."""

    @property
    def balanced(self) -> bool:
        return not self.unknown

    def __str__(self) -> str:
        parts = [f"{self.given} in = {self.out} out"]
        parts += [f"{count} dropped ({reason})" for reason, count in sorted(self.dropped.items())]
        parts += [f"{count} failed ({reason})" for reason, count in sorted(self.failed.items())]
        parts += [f"{count} UNACCOUNTED FOR ('{stream}')" for stream, count in sorted(self.unknown.items())]
        return " + ".join(parts)


def account(record: Record, given: Mapping[str, int]) -> Account:
    """`given`: frames of each source, by stream."""
    dropped: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    unknown = {}
    for name, frames in given.items():
        stream = record.streams.get(name, StreamRecord())
        dropped += stream.reasons
        missing = frames - len(set(stream.indices))
        if missing > 0 and stream.end is not None and stream.end.fatal:
            failed[stream.end.error or "no reason was told"] += missing
        elif missing:
            unknown[name] = missing
    out = sum(stream.out for stream in record.streams.values())
    return Account(sum(given.values()), out, dict(dropped), dict(failed), unknown)
