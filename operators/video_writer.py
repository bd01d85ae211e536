"""Step 8, and the generated dataset: RGB frames to an encoded video file, one frame at a time.

In:     frames (H, W, 3) uint8 RGB in the order in which they are shown, each with its time where the rate varies
Out:    .mp4 (H.264, fragmented) or .webm / .mkv (VP9), yuv420p, which browsers play
State:  one encoder; what it holds back (at most its look-ahead) is written by `close`
Limits: sides are even (an odd one grows by one repeated row or column); one encoder thread, because several threads
        may give other bytes; a process that is killed outright loses at most the frames since the last key frame
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType

import av
import numpy as np

from operators.errors import ConfigError, did_you_mean

CODECS = {"h264": "libx264", "vp9": "libvpx-vp9"}
CONTAINERS = {"h264": (".mp4", ".mkv"), "vp9": (".webm", ".mkv")}

TICKS = 90_000
"""Ticks a second: a 24, 25, 30, 48, 50 or 60 Hz frame is a whole number of them."""

SMPTE170M = 6
"""The colour matrix that the conversion from RGB uses. Written into the stream: players guess by size otherwise."""

ENCODER_OPTIONS = {
    "h264": {"preset": "veryfast", "crf": "19", "profile": "high"},
    "vp9": {"deadline": "good", "cpu-used": "6", "crf": "26", "b": "0", "row-mt": "0"},
}

TREE_FROM = 96
"""Of lower pictures x264 looks ahead (mbtree) into memory that it has not written: up to one video in ten of 64x48 came
out other than before, one in a hundred of 96x64; none of 800 with 96 rows."""


class VideoWriter:
    """Encodes frames into `path`; a context manager, so that a cut run (Ctrl-C too) leaves a file that plays.

    width, height   of the frames handed in; the file's sides are the next even numbers
    fps             rate of frames written without `time_s`; also what the file's header says
    codec           "h264" (.mp4, .mkv) or "vp9" (.webm, .mkv)
    bframes         consecutive B-frames of H.264, all of them used; 0 keeps order of decoding and showing the same

    An existing file is replaced. A writer closed before its first frame leaves no file.
    Raises ConfigError for an unknown codec, a suffix the codec has no container for, or a size, rate or number of
    B-frames out of range; OSError where the file cannot be written.
    """

    def __init__(
        self, path: Path | str, width: int, height: int, fps: float, codec: str = "h264", *, bframes: int = 0
    ) -> None:
        self.path = Path(path)
        self.width, self.height = width, height
        self.num_frames = 0
        _check(self.path, width, height, fps, codec, bframes)
        self._step = TICKS / fps
        self._next_pts = 0.0
        self._last_pts = -1
        self._first_time_s: float | None = None
        self._container = av.open(os.fspath(self.path), "w", options=_container_options(self.path, bframes))
        self._stream = self._container.add_stream(
            CODECS[codec], rate=Fraction(fps).limit_denominator(1001),
            options=_encoder_options(codec, fps, bframes, height),
        )  # fmt: skip
        self._stream.width, self._stream.height = width + width % 2, height + height % 2
        self._stream.pix_fmt = "yuv420p"
        context = self._stream.codec_context
        context.time_base = Fraction(1, TICKS)
        context.thread_count = 1
        context.colorspace = context.color_primaries = context.color_trc = SMPTE170M
        self._closed = False

    def write(self, frame: np.ndarray, time_s: float | None = None) -> None:
        """Add a frame (height, width, 3) uint8 RGB, shown 1 / fps after the one before it, or at `time_s`.

        Times count from the first frame's. A time that is not later than the one before is moved one tick
        (1/90000 s) past it: damaged sources repeat times, and every frame is to be kept.
        Raises ValueError for another shape or dtype, and after `close`.
        """
        if self._closed:
            raise ValueError(f"{self.path}: a frame was written after the video was closed")
        if frame.shape != (self.height, self.width, 3) or frame.dtype != np.uint8:
            raise ValueError(
                f"{self.path}: frame {self.num_frames} is {frame.dtype} {frame.shape}, "
                f"expected uint8 {(self.height, self.width, 3)}"
            )
        if self.height % 2 or self.width % 2:
            frame = np.pad(frame, ((0, self.height % 2), (0, self.width % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format="yuv420p")
        picture.pts, picture.time_base = self._pts(time_s), Fraction(1, TICKS)
        self._container.mux(self._stream.encode(picture))
        self.num_frames += 1

    def close(self) -> None:
        """Write what the encoder holds back and end the file; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.num_frames:
                self._container.mux(self._stream.encode(None))
        finally:
            self._container.close()
            if not self.num_frames:
                self.path.unlink(missing_ok=True)

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pts(self, time_s: float | None) -> int:
        if time_s is None:
            wanted = self._next_pts
        else:
            if self._first_time_s is None:
                self._first_time_s = time_s - self._next_pts / TICKS
            wanted = (time_s - self._first_time_s) * TICKS
        self._last_pts = max(round(wanted), self._last_pts + 1)
        self._next_pts = max(wanted, self._last_pts) + self._step
        return self._last_pts


def write_video(
    path: Path | str, frames: Iterable[np.ndarray], fps: float, codec: str = "h264", *, bframes: int = 0
) -> Path:
    """Encode `frames`, each (H, W, 3) uint8 RGB and of one size, into `path`; see `VideoWriter`.

    No frame at all is a ConfigError: a video has a size.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ConfigError(f"{path}: no frame came to be encoded, expected at least one.")
    height, width = first.shape[:2]
    with VideoWriter(path, width, height, fps, codec, bframes=bframes) as writer:
        writer.write(first)
        for frame in frames:
            writer.write(frame)
    return Path(path)


def _check(path: Path, width: int, height: int, fps: float, codec: str, bframes: int) -> None:
    if codec not in CODECS:
        raise ConfigError(f"{path}: no codec is called '{codec}'.{did_you_mean(codec, CODECS)}")
    if path.suffix.lower() not in CONTAINERS[codec]:
        raise ConfigError(
            f"{path}: {codec} cannot be written into '{path.suffix}', expected {' or '.join(CONTAINERS[codec])}."
        )
    if not (1 <= width <= 16384 and 1 <= height <= 16384):
        raise ConfigError(f"{path}: frames of {width} x {height} pixels, expected sides of 1 to 16384.")
    if not 0.01 <= fps <= 1000:
        raise ConfigError(f"{path}: a rate of {fps} frames a second, expected 0.01 to 1000.")
    if not 0 <= bframes <= 16 or (bframes and codec != "h264"):
        raise ConfigError(f"{path}: {bframes} B-frames for {codec}, expected 0 to 16 for h264 and 0 for vp9.")


def _container_options(path: Path, bframes: int) -> dict[str, str]:
    """Fragments (mp4) or short clusters (webm, mkv) reach the disk as they are made; no date, no random identifier."""
    options = {"fflags": "+bitexact", "flush_packets": "1"}
    if path.suffix.lower() != ".mp4":
        return options | {"cluster_time_limit": "2000"}
    # B-frames begin at a negative decoding time. Only a header written after the first fragment can correct for it
    # with an edit list; without one, the first picture would come late by the reordering delay.
    header = "+delay_moov" if bframes else "+empty_moov"
    return options | {"movflags": f"+frag_keyframe+default_base_moof{header}"}


def _encoder_options(codec: str, fps: float, bframes: int, height: int) -> dict[str, str]:
    """A key frame every two seconds: what a kill can cost, and how far a player has to seek back."""
    options = dict(ENCODER_OPTIONS[codec], g=str(max(1, round(2 * fps))))
    if codec == "h264":
        # B-frames wherever they were asked for: b_strategy 0, also where the encoder would find them of little use,
        # and sc_threshold 0, also where the picture changes so much that it would begin anew
        options |= {"bf": str(bframes), "b_strategy": "0", "sc_threshold": "0"}
        if height < TREE_FROM:
            options["mbtree"] = "0"
    return options
