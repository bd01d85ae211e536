"""Step 1 of live graphs: a source that the server pulls, kept alive by a thread of its own.

In:     a URL: rtsp, http(s) (MJPEG, HLS, MPEG-TS, progressive), tcp, udp, a webcam, a video file
Out:    LiveFrames into a LiveQueue; SourceState for whoever asks
State:  the thread; connection and decoder of the moment; the number of frames so far
Limits: one decoded frame beside those in the queue. Threads end within JOIN_S of `stop`; one that hangs in a resolver
        or a file system is left behind, and ends when that answers
Source: CameraConfig says the times that this promises; operators/live/feeds.py what is read how

Whatever goes wrong with a source is a reason in its state and another try; nothing is raised after `start`.
"""

from __future__ import annotations

import threading
import time

from operators.errors import MaskstreamError
from operators.live.addresses import Address, AllowList, parse
from operators.live.clocks import FIRST_STEP_S, LiveClock, Pacer, Punctuality, Rate
from operators.live.feeds import Feed, Shot
from operators.live.hls import Played
from operators.live.opening import open_feed
from operators.live.queue import LiveFrame, LiveQueue
from operators.live.states import Backoff, CameraConfig, Refused, SourceState, State
from operators.live.stop import Stop, Stopped
from operators.records import Frame, FrameInfo

JOIN_S = 5.0


class Camera:
    """One source, pulled from `start` to `stop`, or to its end.

    Raises NotAllowed for a URL that is none, or that the allow list does not have; a name is resolved by the thread.
    """

    def __init__(self, name: str, url: str, config: CameraConfig, allow: AllowList, queue: LiveQueue) -> None:
        self.name, self.queue = name, queue
        self.address: Address = parse(url)
        allow.check_parts(self.address)
        self._config, self._allow = config, allow
        self._stop = Stop()
        self._clock, self._pacer, self._rate = LiveClock(), Pacer(), Rate()
        self._punctuality = Punctuality(config.silence_s)
        self._backoff = Backoff(config.retry_first_s, config.retry_max_s)
        self._played = Played()
        self._index = 0
        self._loop_s = 0.0                  # of a file that begins again: the time at which it did
        self._time_s, self._step_s = 0.0, FIRST_STEP_S
        self._size = (0, 0)
        self._damaged = self._reconnects = 0
        self._state: State = "connecting"
        self._reason = ""
        self._retry_at: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"camera {name}", daemon=True)

    def start(self) -> None:
        """Begin to connect; returns at once."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the queue; what waits there is dropped as "stopped". Stopping twice is harmless."""
        self._stop.set()
        self.queue.close(discard=True)
        if self._thread.ident is None:
            self._state = "stopped"
            self._stop.close()
        elif self._thread is not threading.current_thread():
            self._thread.join(JOIN_S)
            if self._thread.is_alive():
                self._state, self._retry_at = "stopped", None

    def state(self) -> SourceState:
        """How the source is now."""
        now, retry_at = time.monotonic(), self._retry_at
        retry_in_s = None if retry_at is None else max(0.0, retry_at - now)
        return SourceState(self._state, self._reason, retry_in_s, *self._size, round(self._rate.fps(now), 2),
                           self._reconnects, self._damaged)

    def _run(self) -> None:
        error: str | None = None
        try:
            error = self._keep_alive()
            self._state, self._reason = "ended", error or ""
        except Stopped:
            self._state, self._reason = "stopped", ""
        finally:
            self._retry_at = None
            self.queue.close(error, discard=self._stop.is_set())
            self._stop.close()

    def _keep_alive(self) -> str | None:
        """Connect, play, and again, until a proper end: gives what was wrong with it, if anything. Raises Stopped."""
        while True:
            began = time.monotonic()
            wait_s: float | None = None
            try:
                before = self._index
                ended, error = self._connection()
                if ended and not (self._config.loop and self.address.scheme == "file" and self._index > before):
                    return error
                if ended:
                    self._loop_s = self._time_s + self._step_s
                    continue
            except Refused as refusal:
                error, wait_s = str(refusal), self._config.refused_s
            except MaskstreamError as failure:
                error = str(failure)
                if self.address.scheme == "file":
                    return error
            except Stopped:
                raise
            except Exception as surprise:   # hostile streams find errors that nobody thought of; their texts stay here
                error = f"{self.address.public}: {type(surprise).__name__} while it was read."
            if time.monotonic() - began > self._config.steady_s:
                self._backoff.reset()
            self._pause(error or "", self._backoff.next() if wait_s is None else wait_s)

    def _pause(self, reason: str, wait_s: float) -> None:
        self._reason, self._retry_at, self._state = reason, time.monotonic() + wait_s, "reconnecting"
        if self._stop.wait(wait_s):
            raise Stopped
        self._retry_at = None
        self._reconnects += 1

    def _connection(self) -> tuple[bool, str | None]:
        """One connection from its beginning to its end: whether that is the end of all, and what was wrong."""
        feed = open_feed(self.name, self.address, self._config, self._allow, self._stop, self._played)
        try:
            self._clock.reconnected()
            self._pacer.reset()
            self._punctuality.reset()
            self._play(feed)
            return feed.ends, feed.error
        finally:
            feed.close()

    def _play(self, feed: Feed) -> None:
        """Frames to the queue until the feed's end."""
        damaged = lost = 0
        until_s = time.monotonic() + self._config.first_frame_s
        while True:
            shots = feed.read(until_s)
            self._damaged += feed.damaged - damaged
            self.queue.lost("damaged", feed.lost - lost)
            damaged, lost = feed.damaged, feed.lost
            if self._stop.is_set():
                raise Stopped
            if shots is None:
                return
            for shot in shots:
                self._give(shot, feed)
            if shots:
                until_s = self._due(shots[-1], feed) + max(self._config.silence_s, feed.patience_s)

    def _due(self, shot: Shot, feed: Feed) -> float:
        """When the newest frame should have come: a stream that falls behind is as good as silent."""
        now = time.monotonic()
        if shot.media_s is None or feed.paced or feed.exact or self.queue.policy == "block":
            return now
        return self._punctuality.due(shot.media_s, now)

    def _give(self, shot: Shot, feed: Feed) -> None:
        if feed.paced and shot.media_s is not None:
            now = time.monotonic()
            if self._stop.wait(self._pacer.due(shot.media_s, now) - now):
                raise Stopped
        now, unix = time.monotonic(), time.time()
        arrived_at = unix if shot.arrived_at is None else shot.arrived_at
        if feed.exact:
            time_s = (shot.media_s or 0.0) + self._loop_s
        else:
            time_s = self._clock(shot.media_s, now - (unix - arrived_at))
        if self._index:
            self._step_s = time_s - self._time_s
        self._time_s = time_s
        height, width, _ = shot.image.shape
        info = FrameInfo(self.name, self._index, self._time_s, height, width)
        self._index += 1
        self._size = width, height
        self._rate.saw(now)
        self._state, self._reason = "live", ""
        self.queue.put(LiveFrame(Frame(info, shot.image), arrived_at))
        if self._stop.is_set():
            raise Stopped
