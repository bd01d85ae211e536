"""Between a live source and the graph: a few frames of one stream, and a count of every frame that ever came.

In:     frames as a source decodes them, from its thread
Out:    those at hand, in order, to whoever takes them; counts that add up at every moment
State:  the waiting frames, the counts
Limits: `limit` frames (of 1080p 6 MB each); what happens to one more is the policy's choice

A frame is counted once it is decided what becomes of it: frames in = taken + dropped + waiting, whenever one looks.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Literal

from operators.errors import ConfigError
from operators.records import Frame

Policy = Literal["drop_oldest", "drop_newest", "block"]
POLICIES: tuple[Policy, ...] = ("drop_oldest", "drop_newest", "block")

MAX_LIMIT = 4096


@dataclass(frozen=True)
class LiveFrame:
    """A decoded frame, and when it was captured."""

    frame: Frame
    captured_at: float
    """Unix seconds. Of a camera the arrival of the frame's first bytes (RTSP: of its last ones) at this machine, by its
    clock: cameras' own clocks are often wrong. Of a source that is played at its own rate (files, HLS) the moment at
    which the frame was due. Of a pushed frame what the client said."""


@dataclass(frozen=True)
class QueueCounts:
    """Where the frames of a stream went: frames_in = taken + sum(dropped.values()) + waiting."""

    frames_in: int = 0
    taken: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    """Reasons that happened: queue_full_oldest, queue_full_newest, damaged (it gave no picture), stopped (it waited
    when its source was removed); others as `LiveQueue.lost` is told."""
    waiting: int = 0


class LiveQueue:
    """The frames of one stream between two threads; every method may be called from any of them.

    limit    most frames that wait. More: short hiccups lose nothing, but a lasting overload makes every frame as late
             as `limit` frames take
    policy   of a full queue: drop_oldest keeps what is shown fresh; drop_newest keeps what came first; block lets the
             source wait, which suits files, and makes a camera's own buffers overflow instead
    news     notified after every frame and at the end, so that one thread can wait for many queues

    Raises ConfigError for a limit or a policy that is none.
    """

    def __init__(self, limit: int, policy: Policy = "drop_oldest", news: threading.Condition | None = None) -> None:
        if policy not in POLICIES:
            raise ConfigError(f"The policy of a live queue is '{policy}'; expected one of {', '.join(POLICIES)}.")
        if type(limit) is not int or not 1 <= limit <= MAX_LIMIT:
            raise ConfigError(f"The limit of a live queue is {limit!r}; expected 1 to {MAX_LIMIT} frames.")
        self.limit, self.policy = limit, policy
        self._news = news
        self._changed = threading.Condition()
        self._waiting: deque[LiveFrame] = deque()
        self._frames_in = 0
        self._taken = 0
        self._dropped: Counter[str] = Counter()
        self._closed = False
        self._error: str | None = None

    def put(self, frame: LiveFrame) -> bool:
        """One more frame; with `block` this waits for room, or for the end. Whether the frame now waits in the queue:
        False where it was dropped, because the queue is full (drop_newest) or closed."""
        with self._changed:
            if self.policy == "block":
                self._changed.wait_for(lambda: self._closed or len(self._waiting) < self.limit)
            kept = self._admit(frame)
            self._changed.notify_all()
        self._tell()
        return kept

    def lost(self, reason: str, count: int = 1) -> None:
        """Frames that are known of but never came here: counted in, and dropped for `reason`."""
        if count > 0:
            with self._changed:
                self._frames_in += count
                self._dropped[reason] += count

    def take(self, count: int) -> list[LiveFrame]:
        """The next `count` frames, those at hand, at once: [] where none is."""
        with self._changed:
            found = [self._waiting.popleft() for _ in range(min(count, len(self._waiting)))]
            self._taken += len(found)
            self._changed.notify_all()
        return found

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for a frame or for the end, `timeout` seconds at most. Whether a frame is at hand."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._waiting) or self._closed, timeout)
            return bool(self._waiting)

    def close(self, error: str | None = None, *, discard: bool = False) -> None:
        """No frame comes any more, because of `error` if there is one; what waits can still be taken, or is dropped as
        "stopped" with `discard`. The first error stays; closing twice is harmless."""
        with self._changed:
            self._error = self._error if self._closed else error
            self._closed = True
            if discard and self._waiting:
                self._dropped["stopped"] += len(self._waiting)
                self._waiting.clear()
            self._changed.notify_all()
        self._tell()

    @property
    def closed(self) -> bool:
        """Whether the source said that it gives no more."""
        return self._closed

    @property
    def ended(self) -> bool:
        """Whether it is closed and empty."""
        with self._changed:
            return self._closed and not self._waiting

    @property
    def error(self) -> str | None:
        """Why the source ended, where that is no proper end."""
        return self._error

    def counts(self) -> QueueCounts:
        """All counts of one moment."""
        with self._changed:
            return QueueCounts(self._frames_in, self._taken, dict(self._dropped), len(self._waiting))

    def _admit(self, frame: LiveFrame) -> bool:
        self._frames_in += 1
        if self._closed:
            self._dropped["stopped"] += 1
            return False
        if len(self._waiting) >= self.limit:
            if self.policy == "drop_newest":
                self._dropped["queue_full_newest"] += 1
                return False
            self._dropped["queue_full_oldest"] += 1
            self._waiting.popleft()
        self._waiting.append(frame)
        return True

    def _tell(self) -> None:
        # outside of the queue's own lock: who holds `news` may ask this queue meanwhile
        if self._news is not None:
            with self._news:
                self._news.notify_all()
