"""What FFmpeg reads for a camera: bytes that we fetched, taken apart into packets and decoded as they come.

In:     a reader of bytes (HTTP, HLS, TCP, UDP), or a local place that FFmpeg opens itself (our relay of RTSP, a webcam)
Out:    Shots, each with its time in the stream and the arrival of its first bytes
State:  FFmpeg's container and decoder; when the last bytes came
Limits: frames of at most `max_pixels`, which the decoder refuses before it makes room for them; PROBE_BYTES and
        PROBE_US to find out what a stream is. FFmpeg opens nothing by itself: no format that names other files is
        known to it here
Source: FFmpeg's libavformat and libavcodec, by PyAV
"""

from __future__ import annotations

import bisect
import time
from collections import OrderedDict, deque
from typing import Protocol

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.stream import Disposition
from av.video.reformatter import VideoReformatter

from operators.errors import SourceError
from operators.live.feeds import Shot, check_size
from operators.live.states import CameraConfig
from operators.live.stop import Stopped
from operators.probe import Orientation, orientation, upright

FORMATS = "mpegts,mpjpeg,mov,matroska,flv,h264,hevc,avi,mpeg,ogg,mjpeg,m4v,ivf,obu"
"""What FFmpeg may take a stream for. Playlists and descriptions (hls, dash, sdp, concat, ...) name further addresses,
which nobody would have checked."""

UNTIMED = ("mpjpeg", "mjpeg", "h264", "hevc", "m4v", "obu")
"""Formats without times, for which FFmpeg counts 25 frames a second."""

PROBE_BYTES, PROBE_US = 1 << 20, 700_000
"""To find the streams in a transport stream: FFmpeg's own five seconds would be five seconds of waiting."""
BUFFER = 1 << 16
MARKS = 4096
"""Arrivals remembered, of a read each: FFmpeg holds back at most a few hundred."""
LATE = "bytes come, but no frame, or frames that are ever later"
UNDECODABLE = 16
"""So many more packets that fail to decode than do: the stream has become another one, of another codec. Decoders find
a picture in strange bytes now and then, so good packets only count against bad ones."""


class Bytes(Protocol):
    """What a stream's bytes come from: raises SourceError or Stopped where none comes any more."""

    until_s: float
    """By the monotonic clock: when a read gives up at the latest."""

    def read(self, count: int) -> bytes: ...

    def close(self) -> None: ...


class Watch(Protocol):
    """What a feed asks of whatever stands between FFmpeg and the network."""

    failure: SourceError | Stopped | None
    """Why FFmpeg saw an end, where that was none."""

    def until(self, until_s: float) -> None:
        """What is asked for next must come by then."""
        ...

    def arrived_at(self, position: int | None) -> float:
        """When a packet came, by its position in the stream; unix seconds."""
        ...

    def close(self) -> None: ...


class Intake:
    """Hands bytes to FFmpeg, and keeps what FFmpeg would lose: why they ended, and when they came."""

    def __init__(self, source: Bytes) -> None:
        self.failure: SourceError | Stopped | None = None
        self._source = source
        self._position = 0
        self._starts: deque[int] = deque(maxlen=MARKS)
        self._times: deque[float] = deque(maxlen=MARKS)

    def read(self, count: int) -> bytes:
        """An error is an end for FFmpeg, which may go on with what it has; the feed looks at `failure` then."""
        if self.failure is not None:
            return b""
        try:
            data = self._source.read(count)
        except (SourceError, Stopped) as error:
            self.failure = error
            return b""
        self._starts.append(self._position)
        self._times.append(time.time())
        self._position += len(data)
        return data

    def until(self, until_s: float) -> None:
        self._source.until_s = until_s

    def close(self) -> None:
        self._source.close()

    def arrived_at(self, position: int | None) -> float:
        """When the byte came, in unix seconds; now, where that is not known."""
        at = -1 if position is None or position < 0 else bisect.bisect_right(self._starts, position) - 1
        return self._times[at] if at >= 0 else time.time()


class StreamFeed:
    """Frames of the first video in a stream that FFmpeg reads."""

    exact = False
    error: str | None = None

    def __init__(
        self, container: av.container.InputContainer, where: str, config: CameraConfig, watch: Watch | None,
        recording: bool = False, patience_s: float = 0.0,
    ) -> None:
        """`recording`: it has an end, and is played at its own rate. The feed closes `watch` with itself, but not where
        this raises: SourceError for a stream without video."""
        self.paced = recording and config.paced
        self.ends, self.patience_s = recording, patience_s
        self.damaged = self.lost = 0
        self._container, self._where, self._config, self._watch = container, where, config, watch
        self._timed = container.format.name not in UNTIMED
        self._stream = _video(container, where, config)
        self._packets = container.demux()
        self._reformatter = VideoReformatter()
        self._turn: Orientation | None = None
        self._arrivals: OrderedDict[int, float] = OrderedDict()
        self._bad = 0

    def read(self, until_s: float) -> list[Shot] | None:
        """As Feed says. Raises SourceError, Stopped."""
        if self._watch is not None:
            self._watch.until(until_s)
        if time.monotonic() > until_s:
            raise SourceError(f"{self._where}: {LATE}.")
        try:
            packet = next(self._packets)
        except StopIteration:
            return self._ended(None)
        except av.error.FFmpegError as error:
            return self._ended(error)
        if packet.stream.index != self._stream.index:
            return []
        return self._decoded(packet)

    def close(self) -> None:
        self._container.close()
        if self._watch is not None:
            self._watch.close()

    def _ended(self, error: av.error.FFmpegError | None) -> None:
        """What the end means: None is a proper one."""
        if self._watch is not None and self._watch.failure is not None:
            raise self._watch.failure
        if isinstance(error, av.error.ExitError):
            raise SourceError(f"{self._where}: the connection is open but silent.") from error
        if error is not None and not isinstance(error, av.error.EOFError):
            raise SourceError(f"{self._where}: cannot be read on ({error.strerror}).") from error
        if not self.ends:
            raise SourceError(f"{self._where}: the other side closed the connection.")
        return None

    def _decoded(self, packet: av.Packet) -> list[Shot]:
        arrived_at = time.time() if self._watch is None else self._watch.arrived_at(packet.pos)
        if packet.pts is not None:
            self._arrivals[packet.pts] = arrived_at
            if len(self._arrivals) > MARKS:
                self._arrivals.popitem(last=False)
        try:
            frames = packet.decode()
        except av.error.FFmpegError as error:
            self._failed(packet, error)
            return []
        if frames:
            self._bad = max(0, self._bad - 1)
        return [self._shot(frame, arrived_at) for frame in frames]

    def _failed(self, packet: av.Packet, error: av.error.FFmpegError) -> None:
        if not packet.size:                     # made by PyAV at the end, not read
            return
        self.damaged += 1
        self.lost += 1
        self._bad += 1
        context = self._stream.codec_context
        check_size(context.width, context.height, self._config.max_pixels)
        if self._bad >= UNDECODABLE:
            raise SourceError(f"{self._where}: its packets do not decode any more ({error.strerror}).") from error

    def _shot(self, frame: av.VideoFrame, arrived_at: float) -> Shot:
        check_size(frame.width, frame.height, self._config.max_pixels)
        self.damaged += bool(frame.is_corrupt)
        if self._turn is None:
            self._turn = orientation(frame)
        image = self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()      # (H, W, 3)
        time_base = frame.time_base or self._stream.time_base
        media_s = float(frame.pts * time_base) if self._timed and frame.pts is not None else None
        came = arrived_at if frame.pts is None else self._arrivals.pop(frame.pts, arrived_at)
        return Shot(np.ascontiguousarray(upright(image, self._turn)), media_s, None if self.paced else came)


def open_bytes(
    source: Bytes, where: str, config: CameraConfig, *, kind: str | None = None, recording: bool = False,
    patience_s: float = 0.0,
) -> StreamFeed:
    """A feed of bytes that we fetch; `kind` is FFmpeg's name of their format, where that is known.

    The feed closes the source with itself, but not where this raises: SourceError for bytes that are no video, Stopped.
    """
    intake = Intake(source)
    intake.until(time.monotonic() + config.first_frame_s)
    options = {"probesize": str(32 if kind == "mpjpeg" else PROBE_BYTES), "analyzeduration": str(PROBE_US),
               "fpsprobesize": "0", "protocol_whitelist": "none", "format_whitelist": FORMATS,
               "max_pixels": str(config.max_pixels)}
    try:
        container = av.open(intake, format=kind, options=options, metadata_errors="replace", buffer_size=BUFFER,
                            hwaccel=_hwaccel(config))
    except av.error.FFmpegError as error:
        if intake.failure is not None:
            raise intake.failure from error
        raise SourceError(f"{where}: what comes is no video that can be read ({error.strerror}).") from error
    return _opened(container, where, config, intake, recording, patience_s)


def open_place(
    place: str, where: str, config: CameraConfig, *, kind: str, options: dict[str, str], protocols: str,
    watch: Watch | None = None,
) -> StreamFeed:
    """A feed of what FFmpeg opens itself, on this machine. Raises SourceError; closes `watch` as `open_bytes` does."""
    options = {**options, "probesize": str(PROBE_BYTES), "analyzeduration": str(PROBE_US), "fpsprobesize": "0",
               "protocol_whitelist": protocols, "max_pixels": str(config.max_pixels)}
    limits = (config.first_frame_s, config.silence_s)
    try:
        container = av.open(place, format=kind, options=options, metadata_errors="replace", timeout=limits,
                            hwaccel=_hwaccel(config))
    except av.error.FFmpegError as error:
        if watch is not None and watch.failure is not None:
            raise watch.failure from error
        raise SourceError(f"{where}: cannot be opened ({error.strerror}).") from error
    return _opened(container, where, config, watch)


def _opened(
    container: av.container.InputContainer, where: str, config: CameraConfig, watch: Watch | None,
    recording: bool = False, patience_s: float = 0.0,
) -> StreamFeed:
    try:
        return StreamFeed(container, where, config, watch, recording, patience_s)
    except BaseException:
        container.close()
        raise


def _video(container: av.container.InputContainer, where: str, config: CameraConfig) -> av.VideoStream:
    streams = [stream for stream in container.streams.video
               if not stream.disposition & Disposition.attached_pic and stream.codec_context is not None]
    if not streams:
        raise SourceError(f"{where}: has no video, only {_kinds(container)}.")
    context = streams[0].codec_context
    check_size(context.width, context.height, config.max_pixels)
    context.options = {"max_pixels": str(config.max_pixels)}
    context.thread_count, context.thread_type = config.threads, "SLICE"     # in frames would be a delay of as many
    return streams[0]


def _hwaccel(config: CameraConfig) -> HWAccel | None:
    """Raises SourceError where there is no such engine."""
    if config.hwaccel == "none":
        return None
    try:
        HWAccel(config.hwaccel).create(av.Codec("h264", "r"))
    except (av.error.FFmpegError, NotImplementedError, ValueError, RuntimeError) as error:
        raise SourceError(f"hwaccel: {config.hwaccel} finds no engine here ({error}). Set it to none.") from error
    return HWAccel(config.hwaccel)      # codecs that it does not know are decoded on the CPU


def _kinds(container: av.container.InputContainer) -> str:
    return " and ".join(sorted({stream.type for stream in container.streams})) or "a header"
