"""What left the graph of one stream: the newest results as others read them, and how late they were.

In:     FrameTracks in order, when each frame was captured, and its picture where there is one
Out:    lines of JSON after a given frame; the newest frame drawn over, as JPEG; rates and latencies
State:  the newest lines, the newest frame with its tracks, times of the last frames
Limits: MAX_LINES lines of MAX_BYTES together; one picture; WINDOW frames of times
"""

from __future__ import annotations

import io
import json
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from operators.draw import draw_tracks
from operators.formats import Categories
from operators.jsonl import track_line
from operators.records import Frame, FrameTracks
from pipelines.serving.streams import Picture

MAX_LINES = 512
MAX_BYTES = 4 << 20
WINDOW = 512
RATE_S = 5.0
"""Rates and latencies are those of the last seconds."""
JPEG_QUALITY = 80


class Channel:
    """One stream's results. Any thread may call it."""

    def __init__(self, categories: Categories, min_score: float, max_width: int) -> None:
        """Tracks of `min_score` are drawn and counted as shown; pictures are at most `max_width` pixels wide."""
        self._categories, self.min_score, self._max_width = categories, min_score, max_width
        self._lock = threading.Lock()
        self._drawing = threading.Lock()
        self._lines: deque[tuple[int, bytes]] = deque()
        self._num_bytes = 0
        self._newest: tuple[Frame, FrameTracks] | None = None
        self._picture: Picture | None = None
        self._times: deque[tuple[float, float]] = deque(maxlen=WINDOW)
        """(when a result came, milliseconds after capture)."""
        self.last_index = -1
        self.last_at: float | None = None
        """Unix time of the newest result."""
        self.shown = 0
        """Tracks in the newest frame, of `min_score` at least."""

    def give(
        self, tracks: FrameTracks, captured_at: float | None, dropped: dict[str, int], frame: Frame | None
    ) -> None:
        """One result. `dropped` counts of the whole stream up to now."""
        now = time.time()
        latency_ms = None if captured_at is None else round((now - captured_at) * 1000, 1)
        line = _extended(track_line(tracks, self._categories), captured_at, latency_ms, dropped)
        with self._lock:
            self._lines.append((tracks.info.index, line))
            self._num_bytes += len(line)
            while len(self._lines) > 1 and (len(self._lines) > MAX_LINES or self._num_bytes > MAX_BYTES):
                self._num_bytes -= len(self._lines.popleft()[1])
            self._times.append((now, 0.0 if latency_ms is None else latency_ms))
            self._newest = self._newest if frame is None else (frame, tracks)
            self.last_index, self.last_at = tracks.info.index, now
            self.shown = int((tracks.scores >= self.min_score).sum())

    def begin_with(self, lines: Sequence[tuple[int, bytes]]) -> None:
        """Results that another owner of the stream gave."""
        with self._lock:
            self._lines.extend(lines)
            self._num_bytes += sum(len(line) for _, line in lines)
            self.last_index = lines[-1][0] if lines else self.last_index

    def lines(self, after: int) -> list[tuple[int, bytes]]:
        """(index, line) of results of later frames than `after`, of those that are still known."""
        with self._lock:
            return [(index, line) for index, line in self._lines if index > after]

    def picture(self, after: int = -1) -> Picture | None:
        """The newest frame, drawn over; None if it is not later than `after`. Drawn once however many ask."""
        with self._drawing:
            newest = self._newest
            if newest is None or newest[0].info.index <= after:
                return None
            if self._picture is None or self._picture.index != newest[0].info.index:
                self._picture = Picture(newest[0].info.index, self._drawn(*newest))
            return self._picture

    def has_picture(self, after: int) -> bool:
        newest = self._newest
        return newest is not None and newest[0].info.index > after

    def rates(self) -> tuple[float, float | None, float | None]:
        """Results a second, p50 and p95 of latency in milliseconds, of the last RATE_S; (0, None, None) without any."""
        now = time.time()
        with self._lock:
            lately = [(at, latency) for at, latency in self._times if now - at <= RATE_S]
        if not lately:
            return 0.0, None, None
        p50, p95 = np.percentile([latency for _, latency in lately], (50, 95))
        span = max(now - lately[0][0], 1.0) if len(lately) < WINDOW else now - lately[0][0]
        return round(len(lately) / span, 2), round(float(p50), 1), round(float(p95), 1)

    def _drawn(self, frame: Frame, tracks: FrameTracks) -> bytes:
        canvas = Image.fromarray(draw_tracks(frame.image, tracks, self._categories, min_score=self.min_score))
        if canvas.width > self._max_width:
            height = max(1, round(canvas.height * self._max_width / canvas.width))
            canvas = canvas.resize((self._max_width, height), Image.Resampling.BILINEAR)
        out = io.BytesIO()
        canvas.save(out, "JPEG", quality=JPEG_QUALITY)
        return out.getvalue()


def _extended(line: str, captured_at: float | None, latency_ms: float | None, dropped: dict[str, int]) -> bytes:
    """The line of tracks.jsonl with what a live stream adds."""
    more: dict[str, Any] = {
        "captured_at": None if captured_at is None else round(captured_at, 6), "latency_ms": latency_ms,
        "dropped": dropped,
    }  # fmt: skip
    text = json.dumps(more, separators=(",", ":"), allow_nan=False)
    return (line.rstrip()[:-1] + "," + text[1:] + "\n").encode("ascii")
