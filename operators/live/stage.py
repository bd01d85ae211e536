"""Step 2 of live graphs, in the place of `decode`: asked for frames of a stream, it gives those at hand.

In:     Pull        a stream, and how many of its frames at most
Out:    Frame       (H, W, 3) uint8 RGB; one StreamEnd where its source ended or was removed
State:  how far each stream was given; its snapshot has numbers alone, no picture
Limits: nothing is held but the queues that are attached; capture times of the last `remember` frames of a stream

The sources live outside: whoever owns a camera attaches its queue. A call never waits, and a dead source is one that
has nothing at hand. A stream that is restored goes on where its snapshot stood, in indices and in time, whatever number
its new source begins with; what was lost in between is said by `skip_to`.
"""

from __future__ import annotations

import math
import threading
from collections import Counter, OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any

from operators.errors import ConfigError, StageError
from operators.live.queue import MAX_LIMIT, POLICIES, LiveFrame, LiveQueue, Policy, QueueCounts
from operators.records import Frame, Pull, StreamEnd
from operators.states import pack, unpacked


@dataclass(frozen=True, kw_only=True)
class LiveConfig:
    """How frames of live streams wait for the graph, where a stream's registration does not say."""

    queue: int = 8
    """Most decoded frames of a stream that wait. More: short hiccups lose nothing, a lasting overload makes frames
    later; more memory (6 MB for a frame of 1080p)."""
    policy: Policy = "drop_oldest"
    """Of a full queue: drop_oldest, drop_newest, or block (files: their source waits)."""
    remember: int = 1024
    """Capture times kept for each stream, in frames: those under way in later stages must be among them."""

    def __post_init__(self) -> None:
        if not 1 <= self.queue <= MAX_LIMIT:
            raise ConfigError(f"receive.queue is {self.queue}; expected 1 to {MAX_LIMIT} frames.")
        if self.policy not in POLICIES:
            raise ConfigError(f"receive.policy is '{self.policy}'; expected one of {', '.join(POLICIES)}.")
        if not 1 <= self.remember <= 1_000_000:
            raise ConfigError(f"receive.remember is {self.remember}; expected 1 to 1000000 frames.")


@dataclass
class _Stream:
    """How far a stream was given. `shift` and `delay_s` lead from its source's numbers and times to the stream's."""

    next_index: int = 0
    time_s: float = 0.0
    captured_at: float | None = None
    ended: bool = False
    before: QueueCounts = field(default_factory=QueueCounts)
    """Of the queues before the one that is attached now."""
    queue: LiveQueue | None = None
    seen: QueueCounts = field(default_factory=QueueCounts)
    """Of the queue, as it was when the last call returned."""
    shift: int = 0
    delay_s: float | None = 0.0
    captured: OrderedDict[int, float] = field(default_factory=OrderedDict)


class Receive:
    """Gives the frames at hand of the streams that are open, from the queues that are attached."""

    def __init__(self, config: LiveConfig | None = None) -> None:
        self.config = config or LiveConfig()
        self._streams: dict[str, _Stream] = {}
        self._queues: dict[str, LiveQueue] = {}
        self._lock = threading.Lock()       # attaching comes from another thread than pulling

    def __call__(self, batch: list[Pull]) -> list[Frame | StreamEnd]:
        """The frames at hand of each Pull in turn, `count` at most; after the last one, once, a StreamEnd. A stream
        without a queue gives nothing, and so does one that gave its end.

        Raises StageError for a stream that is not open; then nothing was taken of any.
        """
        with self._lock:
            asked = [(pull, self._state(pull.stream)) for pull in batch]
            return [record for pull, state in asked for record in self._pulled(pull.stream, state, pull.count)]

    def attach(self, stream: str, queue: LiveQueue) -> None:
        """The queue that the stream's frames come from; before or after `open`. One that was attached before is closed,
        and what waited in it is dropped as "stopped"."""
        with self._lock:
            old = self._queues.get(stream)
            self._queues[stream] = queue
        if old is not None and old is not queue:
            old.close(discard=True)

    def open(self, stream: str) -> None:
        """A stream begins. Raises StageError where it has begun already."""
        with self._lock:
            self._open(stream, _Stream())

    def snapshot(self, stream: str) -> bytes:
        """How far the stream was given, and what was counted until then."""
        with self._lock:
            state = self._state(stream)
            counts = _sum(state.before, state.seen)
            return pack({"next_index": state.next_index, "time_s": state.time_s, "captured_at": state.captured_at,
                         "ended": state.ended, "taken": counts.taken, "dropped": counts.dropped})

    def restore(self, stream: str, state: bytes) -> None:
        """Go on after the frames that a snapshot counts, with whatever queue is attached. Raises StageError for bytes
        that no snapshot gave."""
        with unpacked(state, f"receive, stream '{stream}'") as content:
            restored = _restored(content)
        with self._lock:
            self._open(stream, restored)

    def close(self, stream: str) -> list[Frame | StreamEnd]:
        """Forget the stream and let go of its queue; nothing is ever held back. Closing a closed stream gives []."""
        with self._lock:
            if self._streams.pop(stream, None) is not None:
                self._queues.pop(stream, None)
        return []

    def skip_to(self, stream: str, index: int, reason: str) -> None:
        """The next frame has at least this index: those passed over count as come in, and dropped for `reason`."""
        with self._lock:
            state = self._state(stream)
            count = index - state.next_index
            if count > 0:
                state.next_index = index
                state.shift += count
                state.before = _sum(state.before, QueueCounts(count, 0, {reason: count}))

    def captured_at(self, stream: str, index: int) -> float | None:
        """When a frame that was given was captured, in unix seconds; None for one that is long gone or never was."""
        with self._lock:
            return self._state(stream).captured.get(index)

    def counts(self, stream: str) -> QueueCounts:
        """Where the stream's frames went since it was registered, restores included."""
        with self._lock:
            state, queue = self._state(stream), self._queues.get(stream)
            if queue is not state.queue:        # it is attached, and no call has seen it yet
                return _sum(state.before, state.seen, QueueCounts() if queue is None else queue.counts())
            return _sum(state.before, QueueCounts() if queue is None else queue.counts())

    def _state(self, stream: str) -> _Stream:
        if stream not in self._streams:
            raise StageError(f"receive, stream '{stream}': is not open. Call open or restore before its first pull.")
        return self._streams[stream]

    def _open(self, stream: str, state: _Stream) -> None:
        if stream in self._streams:
            raise StageError(f"receive, stream '{stream}': is open already; close it first.")
        self._streams[stream] = state

    def _pulled(self, stream: str, state: _Stream, count: int) -> list[Frame | StreamEnd]:
        queue = self._queues.get(stream)
        if queue is None or state.ended:
            return []
        if queue is not state.queue:
            _switch(state, queue)
        given: list[Frame | StreamEnd] = [self._numbered(state, live) for live in queue.take(count)]
        if queue.ended:
            state.ended = True
            given.append(StreamEnd(stream, state.next_index, error=queue.error))
        counts = queue.counts()
        state.seen = replace(counts, frames_in=counts.frames_in - counts.waiting, waiting=0)
        return given

    def _numbered(self, state: _Stream, live: LiveFrame) -> Frame:
        """The frame under its number and time in the stream, as its source gave it where these are the same."""
        info = live.frame.info
        if state.delay_s is None:               # a source that took over from another: time went on in between
            passed = 0.0 if state.captured_at is None else live.captured_at - state.captured_at
            state.delay_s = state.time_s + max(passed, 1e-3) - info.time_s
        if state.shift or state.delay_s:
            info = replace(info, index=info.index + state.shift, time_s=info.time_s + state.delay_s)
        state.next_index, state.time_s, state.captured_at = info.index + 1, info.time_s, live.captured_at
        state.captured[info.index] = live.captured_at
        if len(state.captured) > self.config.remember:
            state.captured.popitem(last=False)
        return live.frame if info is live.frame.info else Frame(info, live.frame.image)


def _switch(state: _Stream, queue: LiveQueue) -> None:
    """Another source: it numbers its frames from 0, and times them from 0 s."""
    old = state.queue
    state.before = _sum(state.before, state.seen if old is None else replace(old.counts(), waiting=0))
    state.queue, state.seen = queue, QueueCounts()
    state.shift = state.next_index
    state.delay_s = None if state.next_index else 0.0


def _sum(*parts: QueueCounts) -> QueueCounts:
    dropped: Counter[str] = Counter()
    for part in parts:
        dropped.update(part.dropped)
    return QueueCounts(sum(part.frames_in for part in parts), sum(part.taken for part in parts), dict(dropped),
                       sum(part.waiting for part in parts))


def _restored(content: dict[str, Any]) -> _Stream:
    """Raises ValueError, KeyError or TypeError for content that no snapshot has."""
    dropped, taken, at = content["dropped"], content["taken"], content["captured_at"]
    numbers = [content["next_index"], taken, *dropped.values()]
    if any(type(number) is not int or number < 0 for number in numbers) or any(type(key) is not str for key in dropped):
        raise ValueError(f"counts of {numbers}")
    if type(content["ended"]) is not bool or not math.isfinite(content["time_s"]) or not math.isfinite(at or 0.0):
        raise ValueError(f"time {content['time_s']!r}, captured at {at!r}, ended: {content['ended']!r}")
    before = QueueCounts(taken + sum(dropped.values()), taken, dict(dropped))
    return _Stream(content["next_index"], content["time_s"], at, content["ended"], before)
