"""Times of live frames: what a stream says of itself, held against this machine's clock.

In:     the time of each frame in its stream, where it has one, and of its arrival here
Out:    seconds since the first frame, rising; when a frame of a recording is due; frames a second
State:  a few numbers; of Rate the arrivals of the last seconds
Limits: MAX_ARRIVALS arrivals

Streams jump: cameras set their clocks, connections begin anew, 33-bit counters wrap. A frame's own time is kept as long
as it agrees with the arrivals, because it is the steadier one of both; else the arrival counts, and the stream's own
time from there on.
"""

from __future__ import annotations

from collections import deque

JUMP_S = 5.0
"""A stream that differs by more from the arrivals has jumped: buffers along the way deliver some seconds at once."""
LATE_S = 1.0
"""A recording that is played later than this plays on from there instead of catching up."""
RATE_WINDOW_S = 4.0
MAX_ARRIVALS = 1024
FIRST_STEP_S, SHORTEST_S = 0.04, 1e-4
"""Between two frames: as long as nothing is known of them, and at least."""


class LiveClock:
    """Times of frames in seconds from the first one, strictly rising, across jumps and connections."""

    def __init__(self) -> None:
        self._offset: float | None = None       # of the stream's own time
        self._began: float | None = None        # arrival of the first frame
        self._last = 0.0
        self._step = FIRST_STEP_S

    def __call__(self, media_s: float | None, arrived_s: float) -> float:
        """The time of the next frame. `media_s` is its time in its stream, if it has one; `arrived_s` any clock that
        does not jump."""
        if self._began is None:
            self._began = arrived_s
            self._offset = media_s
            return 0.0
        elapsed = arrived_s - self._began
        shown = elapsed if media_s is None or self._offset is None else media_s - self._offset
        if abs(shown - elapsed) > JUMP_S:
            self._offset, shown = None, elapsed
        if shown < self._last + SHORTEST_S:
            self._offset, shown = None, self._last + self._step
        elif shown - self._last < 1.0:
            self._step = max(shown - self._last, 0.001)
        if media_s is not None and self._offset is None:
            self._offset = media_s - shown
        self._last = shown
        return shown

    def reconnected(self) -> None:
        """The next frame is of another connection: its own time starts anywhere."""
        self._offset = None


class Pacer:
    """Plays a recording at its own rate."""

    def __init__(self) -> None:
        self._anchor: tuple[float, float] | None = None     # (time in the recording, when that was due)

    def due(self, media_s: float, now_s: float) -> float:
        """When the frame is to be shown, by the clock that `now_s` is of; `now_s` itself for the first one, for one
        that comes late, and where the recording jumps back."""
        due = now_s if self._anchor is None else self._anchor[1] + media_s - self._anchor[0]
        if self._anchor is None or due < now_s - LATE_S or media_s < self._anchor[0]:
            due = now_s
            self._anchor = (media_s, now_s)
        return max(due, now_s)

    def reset(self) -> None:
        """The next frame is shown at once."""
        self._anchor = None


class Punctuality:
    """Whether a live stream keeps up with its own times: one that drips falls behind although frames come."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._seen: deque[tuple[float, float]] = deque(maxlen=MAX_ARRIVALS)     # (arrival, time in the stream)
        self._start: float | None = None        # by its own times the stream's zero, where it ran fastest

    def due(self, media_s: float, now_s: float) -> float:
        """When a frame that came now should have come: now, as long as the stream runs at half its speed or faster.

        Streams whose own times are wrong by less than half are left alone, and a jump begins anew.
        """
        if self._start is None or not 0 <= media_s - self._seen[-1][1] < JUMP_S:
            self._seen.clear()
            self._start = now_s - media_s
        self._start = min(self._start, now_s - media_s)
        self._seen.append((now_s, media_s))
        while now_s - self._seen[0][0] > self._window_s:
            self._seen.popleft()
        since_s, since_media_s = self._seen[0]
        if 2 * (media_s - since_media_s) >= now_s - since_s:
            self._start = now_s - media_s       # punctual: what it is late by now was so before, or is drift
            return now_s
        return self._start + media_s

    def reset(self) -> None:
        """The next frame is of another connection."""
        self._start = None


class Rate:
    """Frames a second over the last seconds."""

    def __init__(self) -> None:
        self._arrivals: deque[float] = deque(maxlen=MAX_ARRIVALS)

    def saw(self, now_s: float) -> None:
        self._arrivals.append(now_s)
        while now_s - self._arrivals[0] > RATE_WINDOW_S:
            self._arrivals.popleft()

    def fps(self, now_s: float) -> float:
        """0.0 where fewer than two frames came within the last seconds."""
        arrivals = list(self._arrivals)     # a copy: the source's thread adds to it meanwhile
        recent = [at for at in arrivals if now_s - at <= RATE_WINDOW_S]
        return (len(recent) - 1) / max(recent[-1] - recent[0], 1e-3) if len(recent) > 1 else 0.0
