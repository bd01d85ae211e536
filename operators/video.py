"""Step 2, of videos: a file to frames, with FFmpeg through PyAV. The default decoder, and the measure for the others.

In:     the path of a video file
Out:    Frame (H, W, 3) uint8 RGB: every frame once, in the order of showing, upright by the display matrix
State:  the place in the file, and the few decoded frames that one packet gave at once
Limits: nothing is decoded ahead of what is asked for; frames of at most MAX_PIXELS
Source: FFmpeg's decoding API; its counts equal `ffprobe -count_frames`, on damaged files too

Pixels stay on the stored grid: where they are not square, players stretch the picture and this reader does not. A frame
that changes the size in mid-stream comes in its own size. RGB is computed by swscale with the colour matrix and range
that the frame states (BT.601 where it states none); high dynamic range is not mapped to a lower one.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from operators.probe import VideoInfo, open_container, probe_video, upright, video_stream
from operators.records import Frame, FrameInfo, StreamEnd
from operators.sources import Source

CUT_SHARE, CUT_SECONDS = 0.05, 1.0
"""A file that stops both this share and this long before its header's duration broke off: headers round, and the last
frame may be shown for long, but not for that long."""


class FrameClock:
    """Times of frames in seconds from the first one, strictly rising.

    A frame without a time, and one whose time does not lie after that of the frame before it, comes one frame interval
    after that. A step back by over a second starts a new count from there: concatenated transport streams do so.
    """

    def __init__(self, fps: float) -> None:
        self._interval = 1 / fps
        self._offset: float | None = None
        self._last: float | None = None

    def __call__(self, time_s: float | None) -> float:
        expected = 0.0 if self._last is None else self._last + self._interval
        shown = expected
        if time_s is not None:
            if self._offset is None or (self._last is not None and time_s - self._offset < self._last - 1):
                self._offset = time_s - expected
            shown = time_s - self._offset
        self._last = shown if self._last is None or shown > self._last else expected
        return self._last


@dataclass
class Tally:
    """What came out of a file so far, and how far into it that was."""

    frames: int = 0
    damaged: int = 0
    """Frames that the decoder gave out and marked as damaged."""
    skipped: int = 0
    """Packets that could not be decoded."""
    start_s: float | None = None
    reached_s: float = 0.0
    """Smallest time and largest end of a packet of any stream in the file: sound may end after the pictures."""
    partial: bool = False
    """Whether the last packet was not whole."""
    failure: str | None = None
    """Why the file could not be read to its end."""

    def saw(self, packet: av.Packet) -> None:
        if not packet.size:                 # made by PyAV at the end, not read from the file
            return
        self.partial = packet.is_corrupt
        if packet.pts is None:
            return
        time_s = float(packet.pts * packet.time_base)
        self.start_s = time_s if self.start_s is None else min(self.start_s, time_s)
        self.reached_s = max(self.reached_s, time_s + float((packet.duration or 0) * packet.time_base))


class VideoFrames:
    """What the readers of videos share: frames that `_next` gives, with number and end."""

    def __init__(self, source: Source, info: VideoInfo, tally: Tally) -> None:
        self.info = info
        self._source = source
        self._tally = tally
        self._clock = FrameClock(info.fps)
        self._ended = False

    def read(self, count: int) -> list[Frame | StreamEnd]:
        """The next `count` frames, fewer at the end, where one StreamEnd follows; [] after that."""
        found: list[Frame | StreamEnd] = []
        while len(found) < count and not self._ended:
            frame = self._next()
            if frame is None:
                self.close()
                found.append(ending(self._source, self.info, self._tally))
            else:
                image = self._image(frame[0])
                found.append(Frame(FrameInfo(self._source.name, *frame[1:], *image.shape[:2]), image))
        return found

    def skip(self, count: int) -> int:
        """Pass over `count` frames as if they had been read: decoded, because later ones build on them. Says how many
        there were, fewer at the end."""
        for passed in range(count):
            if self._next() is None:
                return passed
        return max(count, 0)

    @property
    def num_damaged(self) -> int:
        """Frames so far that came out, and that the decoder marked as damaged."""
        return self._tally.damaged

    def close(self) -> None:
        """Give back file and decoder; closing twice is harmless. `read` gives [] after it."""
        self._ended = True

    def _next(self) -> tuple[Any, int, float] | None:
        """The next frame as the decoder gives it, its index and time; None at the end."""
        raise NotImplementedError

    def _numbered(self, frame: Any, time_s: float | None) -> tuple[Any, int, float]:
        index, self._tally.frames = self._tally.frames, self._tally.frames + 1
        return frame, index, self._clock(time_s)

    def _image(self, frame: Any) -> np.ndarray:
        """(H, W, 3) uint8 RGB, upright."""
        raise NotImplementedError


class VideoReader(VideoFrames):
    """Reads one video file to its end. Raises SourceError, as `probe_video`, for a file that does not open.

    `FrameInfo.time_s` is the frame's presentation time less that of the first frame, as `FrameClock` says; raw streams
    have no times, and count in their own or the average rate. One decoding thread unless `threads` says more; more are
    used within a frame only, because decoding several frames at once loses frames of damaged files.
    """

    def __init__(self, source: Source, threads: int = 1) -> None:
        super().__init__(source, probe_video(source.path), Tally())
        self._container = open_container(source.path)
        self._stream = video_stream(self._container, source.path)
        self._stream.codec_context.thread_count = threads
        self._stream.codec_context.thread_type = "SLICE"
        self._packets = self._container.demux()
        self._reformatter = VideoReformatter()
        self._pending: deque[av.VideoFrame] = deque()
        self._drained = False

    def close(self) -> None:
        super().close()
        self._drained = True
        self._pending.clear()
        self._container.close()

    def _next(self) -> tuple[av.VideoFrame, int, float] | None:
        while not self._pending and not self._drained:
            self._advance()
        if not self._pending:
            return None
        frame = self._pending.popleft()
        self._tally.damaged += bool(frame.is_corrupt)
        time_base = frame.time_base or self._stream.time_base     # frames of a flush do not carry it
        return self._numbered(frame, None if frame.pts is None else float(frame.pts * time_base))

    def _advance(self) -> None:
        """Decode one packet. A packet of no bytes comes at the end and makes the decoder give out what it holds."""
        try:
            packet = next(self._packets)
        except StopIteration:
            self._drained = True
            return
        except av.error.FFmpegError as error:       # the file cannot be read on: flush, as at a proper end
            self._tally.failure = error.strerror
            self._drained = True
            self._decode(None)
            return
        self._tally.saw(packet)
        if packet.stream.index == self._stream.index:
            self._decode(packet)

    def _decode(self, packet: av.Packet | None) -> None:
        try:
            self._pending.extend(self._stream.codec_context.decode(packet) if packet is None else packet.decode())
        except av.error.FFmpegError:
            self._tally.skipped += packet is not None and packet.size > 0

    def _image(self, frame: av.VideoFrame) -> np.ndarray:
        rgb = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()     # (H, W, 3)
        # the first frame's turn: asking each frame for its side data makes cycles that hold it until the collector runs
        return upright(rgb, self.info.orientation)


def ending(source: Source, info: VideoInfo, tally: Tally) -> StreamEnd:
    """What is to be said of a video that gave its last frame, and whether it counts as failed.

    Failed are files without a frame, those that could not be read to their end, and those that end early: bytes are
    missing by their own structure, or in their last packet, and with them frames or time; or much time is missing by
    their header's duration. A number of frames in the header that is not reached is no fault alone: AVI counts entries
    without a picture.
    """
    promised_s = info.promised_s or 0.0
    missing_s = max(0.0, promised_s - (0.0 if tally.start_s is None else tally.reached_s - tally.start_s))
    too_few = tally.frames < (info.promised_frames or 0)
    cut = (info.num_missing > 0 or tally.partial) and (too_few or missing_s > 1.5 / info.fps)
    early = cut or missing_s > max(CUT_SECONDS, CUT_SHARE * promised_s, 3 / info.fps)
    causes = []
    if tally.failure is not None:
        causes.append(f"the file cannot be read on from there ({tally.failure})")
    if early:
        early_by = f"{missing_s:.2f} s " if missing_s else ""
        causes.append(f"the file breaks off {early_by}before the end that its header states")
    if info.num_missing and (early or not info.promised_frames):    # else all frames came: what is missing is none
        causes.append(f"{_count(info.num_missing, 'byte')} that the file's structure states are not there")
    if tally.skipped:
        causes.append(f"{_count(tally.skipped, 'damaged packet')} gave no frame")
    if tally.damaged:
        causes.append(f"{_count(tally.damaged, 'frame')} came out damaged")
    if not causes and tally.frames:
        return StreamEnd(source.name, tally.frames)
    came = f"{tally.frames} of {info.promised_frames}" if info.promised_frames else f"{tally.frames}"
    error = f"'{source.path}': {came} frames came; {'; '.join(causes) or 'no packet gave one'}."
    fatal = tally.frames == 0 or tally.failure is not None or early
    return StreamEnd(source.name, tally.frames, tally.skipped, error, fatal)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
