"""Tiny encoded videos whose frames carry their own number, so that a test sees which frame came back."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition

BITS = 6
X264 = {"preset": "veryfast", "crf": "12"}


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """(H, W, 3) uint8: the bits of `index` as bars in the upper half, grey below, so that up and left can be told."""
    image = np.full((height, width, 3), 128, np.uint8)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        image[: height // 2, left:right] = 235 if index >> bit & 1 else 20
    return image


def number_of(image: np.ndarray) -> int:
    """The number that `numbered` drew; -1 where the picture is not upright."""
    height, width, _ = image.shape
    if abs(float(image[height * 5 // 8 :].mean()) - 128) > 16:
        return -1
    edges = [bit * width // BITS for bit in range(BITS + 1)]
    means = [image[: height * 3 // 8, a + 2 : b - 2].mean() for a, b in zip(edges, edges[1:], strict=False)]
    return sum(1 << bit for bit, mean in enumerate(means) if mean > 128)


def write_video(
    path: Path,
    codec: str = "libx264",
    count: int = 20,
    *,
    size: tuple[int, int] = (96, 64),
    rate: int = 20,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    ticks: Sequence[int] | None = None,
    matrix: Sequence[float] | None = None,
    container: dict[str, str] | None = None,
    sound: bool = False,
) -> Path:
    """`count` numbered frames of `size` (width, height); frame i is shown at ticks[i] / rate seconds.

    `matrix` is the display matrix, nine numbers; `sound` adds half a second of silence. Gives the path back.
    """
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=rate, options=options or (X264 if codec == "libx264" else {}))
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = Fraction(1, rate)
        if matrix is not None:
            stream.set_display_matrix(matrix)
        voice = out.add_stream("aac", rate=16000) if sound else None
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(index, *size), format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = (ticks[index] if ticks else index), Fraction(1, rate)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
        if voice is not None:
            _add_silence(out, voice)
    return path


def write_sound(path: Path, cover: bool = False) -> Path:
    """Half a second of silence without moving pictures; `cover` adds a still one, as music files have it."""
    with av.open(str(path), "w", format="mp4") as out:
        voice = out.add_stream("aac", rate=16000)
        if cover:
            still = out.add_stream("mjpeg", rate=1)
            still.width, still.height, still.pix_fmt = 32, 32, "yuvj420p"
            still.disposition = Disposition.attached_pic
            out.mux(still.encode(av.VideoFrame.from_ndarray(numbered(0, 32, 32), format="rgb24")))
        _add_silence(out, voice)
    return path


def _add_silence(out: av.container.OutputContainer, voice: av.AudioStream) -> None:
    silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    silence.rate = 16000
    for _ in range(8):
        out.mux(voice.encode(silence))
    out.mux(voice.encode(None))


def cut(path: Path, keep: float | int, name: str) -> Path:
    """A copy beside the file, of its first `keep` bytes, or that share of them."""
    data = path.read_bytes()
    copy = path.with_name(name)
    copy.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    return copy


def packets(path: Path) -> list[tuple[int, int]]:
    """(position, bytes) of the packets of the video in the file, in the file's order."""
    with av.open(str(path)) as container:
        return [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
