"""What the executor on Ray knows of a stream on its way through the groups: references and numbers, no data.

    Stream ── its Attempt (a rewind begins the next) ── Chunks between two groups ── Part of a Call to one replica

A Chunk is the unit of work: neighbouring records of one stream. It has a key at which it begins, and one at which it
ends and the next one begins: so each edge can put chunks in order again, however often they were split or joined. A key
is a number that nothing else has.
"""

from __future__ import annotations

import itertools
from collections import deque
from dataclasses import dataclass, field, replace
from typing import Any

from operators.sources import Source

Key = int
CLOSING = 10**15
"""Stands where the number of a frame would: the stream's close, after all its frames."""


NEVER = (-1, -1, 0)

_keys = itertools.count()


def new_key() -> Key:
    return next(_keys)


@dataclass(frozen=True)
class Data:
    """Where the records of a chunk are: the answer of a call, or one item of it."""

    reference: Any
    """An ObjectRef; the executor's logic never looks at it."""
    item: int | None = None
    """Which of the parts that the answer holds; None: the answer is this part alone."""


@dataclass(frozen=True, eq=False)
class Chunk:
    """Neighbouring records of one stream between two groups."""

    attempt: Attempt
    begin: Key
    end: Key
    data: Data | None = None
    start: int = 0
    """Where in the data its records begin."""
    frames: tuple[int, ...] = ()
    """Number of each record's frame, ascending."""
    border: int | None = None
    """A snapshot is due after it, in each group that remembers: then the source had given so many frames."""
    closing: bool = False
    """The stream ends with it: each group closes it."""
    failed: bool = False
    """A stage failed on the stream here."""
    since: float = 0.0
    """When it came to where it waits."""

    @property
    def marks(self) -> tuple[int, ...]:
        """All that may kill an actor here, as numbers of frames."""
        return (*self.frames, *(() if self.border is None else (self.border,)), *((CLOSING,) if self.closing else ()))

    def split(self, count: int) -> tuple[Chunk, Chunk | None]:
        """The first `count` records without what is to be done after them, and the rest; None where there is none."""
        if count == len(self.frames) and self.border is None and not self.closing:
            return self, None
        middle = new_key()
        first = replace(self, end=middle, frames=self.frames[:count], border=None, closing=False)
        return first, replace(self, begin=middle, start=self.start + count, frames=self.frames[count:])


class Attempt:
    """One way of a stream through the graph, from its start or from a snapshot."""

    def __init__(self, stream: Stream, number: int, frame: int, states: dict[str, bytes], num_groups: int) -> None:
        self.stream, self.number = stream, number
        self.states = dict(states)
        """Of each keyed group, to begin from; none: from nothing."""
        self.begun: set[int] = set()
        """Groups that were told to begin."""
        self.position = frame
        """Frames that the source gave so far."""
        self.asked = frame
        """The same with what is asked for and under way."""
        self.pulls = 0
        """Calls under way that pull."""
        self.tail = new_key()
        """Where the next pull begins."""
        self.idle = False
        """The last pull gave nothing: the source is slower than the graph."""
        self.ended = False
        self.closing = False
        self.next: list[Key] = [self.tail] * (num_groups + 1)
        """At each edge the key at which the chunk to come begins."""
        self.early: list[dict[Key, Chunk]] = [{} for _ in range(num_groups + 1)]
        """At each edge the chunks that came before an earlier one."""
        self.held = [0] * (num_groups + 1)
        """Chunks at each edge, those that a call under way will give among them."""
        self.cut: set[int] = set()
        """Groups without memory that failed on the stream: what comes out of them later is dropped."""
        self.border: int | None = None
        """A snapshot is on its way through the groups, or None."""
        self.due = frame
        """When the source has given so many frames, the next snapshot is due."""
        self.taken: dict[str, bytes] = {}
        """What groups gave for it."""

    @property
    def stale(self) -> bool:
        """Another attempt has begun, or the stream is over: what still comes of this one is dropped."""
        return self.stream.attempt is not self


class Stream:
    """One source, from its first pull to its end."""

    def __init__(self, source: Source, pins: dict[int, int]) -> None:
        self.source, self.name = source, source.name
        self.pins = pins
        """Keyed group -> the replica that has the stream's state."""
        self.attempt: Attempt | None = None
        self.kept = False
        """There is a snapshot of it in the store."""
        self.suspects: dict[int, tuple[int, int]] = {}
        """Group -> first and last frame of those that may have killed an actor: each is sent alone."""
        self.kills: tuple[int, int, int] = NEVER
        """(group, frame, deaths of actors that had this frame alone, and no later one since)."""
        self.limit: int | None = None
        """The first frame that is set aside; no stage sees it again."""
        self.verdict = ""
        """Why."""

    def suspect(self, group: int, first: int, last: int) -> None:
        """These frames were in an actor of the group when it died."""
        before = self.suspects.get(group)
        if before is not None and before[0] <= last and first <= before[1]:
            first, last = min(first, before[0]), max(last, before[1])
        self.suspects[group] = (first, last)

    def suspected(self, group: int, mark: int) -> bool:
        """Whether what this number stands for is to be sent alone."""
        first, last = self.suspects.get(group, (0, -1))
        return first <= mark <= last

    def killed(self, group: int, frame: int) -> int:
        """An actor died that had this frame alone. Says how often that was, without getting further in between."""
        last_group, last_frame, count = self.kills
        again = last_group == group and frame <= last_frame
        self.kills = (group, frame, count + 1 if again else 1)
        return self.kills[2]


    def survived(self, group: int, frame: int) -> None:
        """This frame was alone in an actor of the group, and came through."""
        if self.kills[0] == group and frame >= self.kills[1]:
            self.kills = NEVER


@dataclass(eq=False)
class Part:
    """What one call does of one stream."""

    attempt: Attempt
    begin: Key
    end: Key
    count: int = 0
    """Frames to pull, in the first group."""
    chunks: list[Chunk] = field(default_factory=list)
    """In all later groups."""
    border: int | None = None
    """A snapshot is to be taken at the end. In the first group a number that only says so: what it is comes back."""
    closing: bool = False
    first: bool = False
    """The group begins with the attempt,"""
    state: bytes | None = None
    """from this snapshot, or from nothing."""

    @property
    def marks(self) -> tuple[int, ...]:
        """As of a chunk; of a pull the frames that it asks for, as far as that is known."""
        if self.chunks:
            return tuple(mark for chunk in self.chunks for mark in chunk.marks)
        asked = tuple(range(self.attempt.position, self.attempt.position + self.count))
        return (*asked, CLOSING) if self.closing else asked

    @property
    def num_frames(self) -> int:
        return self.count + sum(len(chunk.frames) for chunk in self.chunks)


@dataclass(eq=False)
class Call:
    """What one replica does at a time: parts of several streams."""

    group: int
    replica: int
    parts: list[Part]
    alone: bool = False
    """A single frame that may kill the actor."""

    @property
    def num_frames(self) -> int:
        return sum(part.num_frames for part in self.parts)


@dataclass(frozen=True)
class Outcome:
    """What a call told, beside its records; of each part in order."""

    report: Any
    frames: tuple[tuple[int, ...], ...]
    """Number of each record's frame."""
    states: tuple[bytes | None, ...]
    """The snapshot, of parts that were asked for one and did not fail."""


class Place:
    """Where a replica stands: what is ready for it, and the calls that it has."""

    def __init__(self, group: int, replica: int, lane: deque[Chunk]) -> None:
        self.group, self.replica = group, replica
        self.lane = lane
        """Chunks that are ready. Replicas without memory share one lane."""
        self.calls: deque[Call] = deque()
        """Under way, oldest first: the oldest is the one that is worked on."""
        self.streams: deque[Stream] = deque()
        """Open streams whose state is here; the next to be pulled first."""
        self.live = True

    def free(self, in_flight: int) -> bool:
        """Whether it may have another call. One with a frame that may kill it has no other."""
        return self.live and len(self.calls) < in_flight and not (self.calls and self.calls[-1].alone)


def portion(chunk: Chunk, group: int, most: int) -> tuple[Chunk, Chunk | None, bool]:
    """What one call may take of a chunk, up to `most` records; the rest, if any; and whether it must be alone.

    A frame that may have killed an actor of the group is alone, and so is what is to be done after the last one.
    """
    suspected = [chunk.attempt.stream.suspected(group, mark) for mark in chunk.marks]
    count = len(chunk.frames)
    if any(suspected):
        harmless = suspected.index(True)
        if harmless == 0 and count:
            return *chunk.split(1), True
        if count:
            return *chunk.split(min(harmless, count, most)), False
        return chunk, None, True
    if count > most:
        return *chunk.split(most), False
    return chunk, None, False


def join(parts: dict[Attempt, Part], chunk: Chunk) -> None:
    """Add a chunk to the part of its stream."""
    part = parts.setdefault(chunk.attempt, Part(chunk.attempt, chunk.begin, chunk.end))
    part.chunks.append(chunk)
    part.end, part.border, part.closing = chunk.end, chunk.border, chunk.closing
