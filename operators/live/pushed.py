"""Step 1 of live graphs: a source whose frames a client sends.

In:     JPEG, PNG or WebP images, or H.264 in pieces of any size (Annex B), each with the time of its capture
Out:    LiveFrames into a LiveQueue; SourceState for whoever asks
State:  of H.264 the decoder, and the bytes of the frame that is not whole yet
Limits: messages of `max_bytes`, frames of `max_pixels`, `max_rate` messages a second. Sizes are read from headers
        before anything is decoded; a frame of H.264 that does not end within `max_bytes` is given up
Source: ITU-T H.264, annex B (byte stream); images as operators/images.py

Every byte comes from a stranger. What cannot be used is refused with a typed error, counted, and leaves the stream as
it was: the next message may be good again.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict, deque
from io import BytesIO
from typing import Literal

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from PIL import Image

from operators.errors import SourceError
from operators.images import decode_image
from operators.live.clocks import Rate
from operators.live.queue import LiveFrame, LiveQueue
from operators.live.states import PushedConfig, SourceState
from operators.records import Frame, FrameInfo
from operators.video import FrameClock

FORMATS = ("JPEG", "PNG", "WEBP")
REMEMBERED = 64
"""Packets whose capture times are known while their frames are still in the decoder: it holds back 16 at most."""
STEP_FPS = 25.0
"""Of frames whose times do not rise: they count as coming at this rate."""

Code = Literal["damaged", "too_large", "too_fast", "ended"]


class PushRefused(SourceError):
    """A message that is not taken. `code` says why in a word; all but "ended" leave the stream open."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code

    def __reduce__(self) -> tuple[type, tuple[Code, str]]:
        return type(self), (self.code, str(self))


class Pushed:
    """One stream that is pushed. Its methods may be called from any thread, one call after the other goes on."""

    def __init__(self, name: str, config: PushedConfig, queue: LiveQueue) -> None:
        self.name, self.queue = name, queue
        self._config = config
        self._lock = threading.Lock()
        self._clock, self._rate = FrameClock(STEP_FPS), Rate()
        self._allowance, self._since = 2 * config.max_rate, time.monotonic()
        self._video: _Video | None = None
        self._index = self._damaged = 0
        self._size = (0, 0)
        self._last: float | None = None
        self._ended = False

    def image(self, data: bytes, timestamp: float | None = None) -> None:
        """One encoded picture, captured at `timestamp` in unix seconds; None or 0 is now. With a queue that blocks this
        waits for room. Raises PushRefused."""
        with self._lock:
            captured_at = self._admit(data, timestamp)
            try:
                self._check_header(data)
                image = decode_image(data)
            except ValueError as error:
                raise self._refusal("damaged", f"a picture that {error}") from error
            self._give(image, captured_at)

    def chunk(self, data: bytes, timestamp: float | None = None) -> None:
        """The next piece of an H.264 stream; frames that begin in it were captured at `timestamp`. A frame comes out
        once the next one begins. Raises PushRefused; what was whole before the damage is given all the same."""
        with self._lock:
            captured_at = self._admit(data, timestamp)
            self._video = self._video or _Video(self._config)
            self._decoded(self._video, data, captured_at)

    def end(self) -> None:
        """No more comes: gives out what the decoder held back, and closes the queue. Ending twice is harmless."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            if self._video is not None:
                self._take(self._video.flush())
        self.queue.close()

    def stop(self) -> None:
        """The stream was removed: what waits is dropped as "stopped"."""
        self.queue.close(discard=True)      # first: it ends a wait for room that holds the lock
        with self._lock:
            self._ended = True

    def state(self) -> SourceState:
        """How the stream is now."""
        now, last = time.monotonic(), self._last
        facts = (None, *self._size, round(self._rate.fps(now), 2), 0, self._damaged)
        if self._ended:
            return SourceState("ended", "", *facts)
        if last is None:
            return SourceState("connecting", "", *facts)
        if now - last > self._config.silence_s:
            return SourceState("reconnecting", f"no frame was pushed for over {self._config.silence_s:g} s", *facts)
        return SourceState("live", "", *facts)

    def _admit(self, data: bytes, timestamp: float | None) -> float:
        """What can be told without looking inside: gives the time of capture."""
        if self._ended or self.queue.closed:
            raise PushRefused("ended", f"Stream '{self.name}' has ended: nothing more can be pushed.")
        now = time.monotonic()
        rate = self._config.max_rate
        self._allowance = min(2 * rate, self._allowance + (now - self._since) * rate)
        self._since = now
        if self._allowance < 1:
            raise self._refusal("too_fast", f"more than {rate:g} messages a second")
        self._allowance -= 1
        if len(data) > self._config.max_bytes:
            raise self._refusal("too_large", f"{len(data)} bytes, more than the {self._config.max_bytes} allowed")
        if timestamp is not None and (not math.isfinite(timestamp) or timestamp < 0):
            raise self._refusal("damaged", f"a timestamp of {timestamp}; expected unix seconds, or 0 for now")
        return min(timestamp or time.time(), time.time())   # a clock ahead of ours would make latencies negative

    def _check_header(self, data: bytes) -> None:
        """Raises ValueError, or PushRefused for a picture that is too large; decodes nothing."""
        try:
            with Image.open(BytesIO(data), formats=FORMATS) as image:
                width, height = image.size
        except Image.DecompressionBombError as error:
            raise self._refusal("too_large", "a picture of more pixels than anybody needs") from error
        except Exception as error:      # Pillow's readers fail in many ways on headers made to break them
            raise ValueError(f"is none of {', '.join(FORMATS)}, or has a damaged header") from error
        if width * height > self._config.max_pixels:
            raise self._refusal("too_large", f"a picture of {width} x {height}, more than the "
                                             f"{self._config.max_pixels} pixels allowed")

    def _decoded(self, video: _Video, data: bytes, captured_at: float) -> None:
        failed = video.failed
        try:
            self._take(video.feed(data, captured_at))
        except OverflowError as error:
            self._video = None
            raise self._refusal("too_large", f"a frame of H.264 {error}") from error
        if video.failed > failed:
            raise self._refusal("damaged", "H.264 that does not decode", video.failed - failed)

    def _take(self, frames: list[tuple[np.ndarray, float]]) -> None:
        for image, captured_at in frames:
            self._give(image, captured_at)

    def _give(self, image: np.ndarray, captured_at: float) -> None:
        height, width, _ = image.shape
        info = FrameInfo(self.name, self._index, self._clock(captured_at), height, width)
        self._index += 1
        self._size = width, height
        self._last = time.monotonic()
        self._rate.saw(self._last)
        self.queue.put(LiveFrame(Frame(info, image), captured_at))

    def _refusal(self, code: Code, what: str, count: int = 1) -> PushRefused:
        """Counts what is refused: it came in, and is dropped."""
        self._damaged += count if code == "damaged" else 0
        self.queue.lost(code, count)
        return PushRefused(code, f"Stream '{self.name}': {what}.")


class _Video:
    """H.264 in pieces to pictures with their times of capture."""

    def __init__(self, config: PushedConfig) -> None:
        self.failed = 0
        """Packets that did not decode."""
        self._config = config
        self._context = av.CodecContext.create("h264", "r")
        self._context.options = {"max_pixels": str(config.max_pixels)}
        self._context.thread_count = 1
        self._reformatter = VideoReformatter()
        self._begins: deque[tuple[int, float]] = deque()    # where each piece begins in the stream, and its time
        self._fed = self._parsed = self._packets = 0
        self._times: OrderedDict[int, float] = OrderedDict()

    def feed(self, data: bytes, captured_at: float) -> list[tuple[np.ndarray, float]]:
        """The pictures that are whole now. Raises OverflowError for a frame that does not end."""
        self._begins.append((self._fed, captured_at))
        self._fed += len(data)
        packets = self._context.parse(data) if data else []
        found = [picture for packet in packets for picture in self._decode(packet)]
        if self._fed - self._parsed > self._config.max_bytes:
            raise OverflowError(f"has more than the {self._config.max_bytes} bytes allowed")
        return found

    def flush(self) -> list[tuple[np.ndarray, float]]:
        """What the parser and the decoder held back."""
        found = [picture for packet in self._context.parse() for picture in self._decode(packet)]
        return found + self._decode(None)

    def _decode(self, packet: av.Packet | None) -> list[tuple[np.ndarray, float]]:
        if packet is not None:
            while len(self._begins) > 1 and self._begins[1][0] <= self._parsed:
                self._begins.popleft()
            self._parsed += packet.size
            packet.pts = packet.dts = self._packets
            self._times[self._packets] = self._begins[0][1]
            self._packets += 1
            if len(self._times) > REMEMBERED:
                self._times.popitem(last=False)
        try:
            frames = self._context.decode(packet)
        except av.error.FFmpegError:
            self.failed += packet is not None
            return []
        return [picture for frame in frames if (picture := self._picture(frame)) is not None]

    def _picture(self, frame: av.VideoFrame) -> tuple[np.ndarray, float] | None:
        captured_at = self._times.get(-1 if frame.pts is None else frame.pts, self._begins[-1][1])
        if frame.width * frame.height > self._config.max_pixels:
            self.failed += 1
            return None
        return self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), captured_at
