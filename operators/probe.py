"""Step 1: what a video or a folder of images is, found out by opening it and decoding one frame.

In:     a path
Out:    VideoInfo, or one SourceError that names the file and the likely reason
State:  none
Limits: frames of at most MAX_PIXELS; local files alone: no format may open another file or a network address
Source: ISO/IEC 14496-12, 6.2.2 and 8.3 (the display matrix); ITU-T H.273, table 4 (colour matrices)
"""

from __future__ import annotations

import os
import statistics
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from operators.containers import Outline, read_outline
from operators.errors import SourceError

MAX_PIXELS = 1 << 26
"""64 Mpixel, 192 MiB as RGB: 8K video is half of it, the largest phone pictures are near it."""

MAX_IMAGE_BYTES = 1 << 29
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")

MAX_RATE = 240
"""Frames/s above which a header's rate is the clock of its timestamps (1000 in Matroska and FLV), not a rate."""

RATE_PACKETS = 32
FIRST_FRAME_PACKETS = 1000
"""Packets to look through for the first frame: a stream cut at its start needs those up to its next key frame."""

BT601 = {2, 5, 6}
"""Colour matrices that mean BT.601, "not stated" among them: FFmpeg, decord and DALI take it for that."""


class Orientation(NamedTuple):
    """How a stored picture becomes upright: transposed first, then its rows and columns in reverse."""

    transposed: bool = False
    rows_reversed: bool = False
    columns_reversed: bool = False

    @property
    def mirrored(self) -> bool:
        """True where turning alone does not do it."""
        return sum(self) % 2 == 1


@dataclass(frozen=True)
class VideoInfo:
    """What a source promises. Frames themselves may differ: each carries its own size and time."""

    width: int
    height: int
    """Of the first frame, upright; 0 where no image of a folder has a readable header."""
    fps: float
    """Frames a second, as far as header and first packets tell; of a variable rate the average."""
    num_frames: int | None
    """Expected number of frames, for a progress bar: of the header, or its duration times `fps`; None if unknown."""
    codec: str
    container: str
    promised_frames: int | None = None
    """The number of frames in the header, where it has one."""
    promised_s: float | None = None
    """The duration in the header, where the container states one."""
    pix_fmt: str = ""
    bits: int = 8
    color_matrix: int = 2
    interlaced: bool = False
    orientation: Orientation = Orientation()
    num_missing: int = 0
    """Bytes that the file's own structure promises and the file lacks."""


def probe_video(path: str) -> VideoInfo:
    """Open a video file, decode its first frame, close it. Raises SourceError: see `open_container`, `video_stream`,
    and for a file none of whose first frames decodes, or whose frames are too large."""
    with open_container(path) as container:
        stream = video_stream(container, path)
        outline = read_outline(path)
        times, frame = _first_frame(container, stream)
        if frame is None:
            raise SourceError(f"'{path}' {_no_frame(outline, stream.codec_context.name)}")
        fps = _rate(stream, times)
        turn = orientation(frame)
        height, width = (frame.width, frame.height) if turn.transposed else (frame.height, frame.width)
        promised_s = _promised_s(container)
        return VideoInfo(
            width=width,
            height=height,
            fps=fps,
            num_frames=stream.frames or (None if promised_s is None else max(1, round(promised_s * fps))),
            codec=stream.codec_context.codec.canonical_name,
            container=container.format.name,
            promised_frames=stream.frames or None,
            promised_s=promised_s,
            pix_fmt=frame.format.name,
            bits=max(component.bits for component in frame.format.components),
            color_matrix=int(frame.colorspace),
            interlaced=bool(frame.interlaced_frame),
            orientation=turn,
            num_missing=outline.num_missing,
        )


def open_container(path: str) -> av.container.InputContainer:
    """Open a local file with FFmpeg. Raises SourceError for one that is missing, empty, text, cut or unknown."""
    outline = _outline(path)
    try:
        # "file:" and the whitelist: a name such as "http:x", or a playlist, must not make FFmpeg open something else
        return av.open("file:" + path, metadata_errors="replace", options={"protocol_whitelist": "file"})
    except av.error.FFmpegError as error:
        raise SourceError(f"'{path}' {_reason(outline, error)}") from error


def video_stream(container: av.container.InputContainer, path: str) -> av.VideoStream:
    """The first video stream that is no cover picture, set to decode. Raises SourceError where there is none."""
    streams = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not streams:
        kinds = {"a cover picture" if stream.type == "video" else stream.type for stream in container.streams}
        raise SourceError(f"'{path}' has no video stream, only {' and '.join(sorted(kinds)) or 'a header'}. "
                          f"Name a file with moving pictures.")
    stream = streams[0]
    if stream.codec_context is None:
        raise SourceError(f"'{path}': its video is in a codec that the installed FFmpeg does not know. "
                          f"Convert it, for example to H.264.")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width * height > MAX_PIXELS:
        raise SourceError(f"'{path}': frames of {width} x {height} are more than the {MAX_PIXELS} pixels allowed.")
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}   # for those that change their size on the way
    return stream


def orientation(frame: av.VideoFrame) -> Orientation:
    """The frame's display matrix in steps of 90 degrees; a matrix between two steps counts as the nearer one.

    The matrix [a b; c d] sends the stored point (x, y) to (a x + c y, b x + d y), x to the right and y down.
    """
    for side in frame.side_data:
        if side.type == SideData.DISPLAYMATRIX:
            a, b, _, c, d = np.frombuffer(bytes(side), np.int32, 5).tolist()
            if abs(b) + abs(c) > abs(a) + abs(d):
                return Orientation(True, rows_reversed=b < 0, columns_reversed=c < 0)
            return Orientation(False, rows_reversed=d < 0, columns_reversed=a < 0)
    return Orientation()


def upright(image: np.ndarray, turn: Orientation) -> np.ndarray:
    """(H, W, C) as stored -> (H, W, C) or (W, H, C) as shown, contiguous."""
    if turn.transposed:
        image = image.transpose(1, 0, 2)                            # (W, H, C)
    image = image[:: -1 if turn.rows_reversed else 1, :: -1 if turn.columns_reversed else 1]
    return np.ascontiguousarray(image)


def probe_images(folder: str, files: Sequence[str], fps: float) -> VideoInfo:
    """A folder of images by the header of the first that has one; damaged ones become faults when they are read."""
    for file in files[:FIRST_FRAME_PACKETS]:
        try:
            height, width = image_size(read_image_file(Path(folder, file)))
        except ValueError:
            continue
        return VideoInfo(width, height, fps, len(files), codec="images", container="folder")
    return VideoInfo(0, 0, fps, len(files), codec="images", container="folder")


def read_image_file(path: Path) -> bytes:
    """The bytes of an image file. Raises ValueError with the reason for one that is missing, empty or too large."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_IMAGE_BYTES + 1)
    except OSError as error:
        raise ValueError(f"cannot be read: {error.strerror}") from error
    if not data:
        raise ValueError("is empty (0 bytes)")
    if len(data) > MAX_IMAGE_BYTES:
        raise ValueError(f"is larger than the {MAX_IMAGE_BYTES} bytes allowed")
    return data


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) of an encoded image, upright. Raises ValueError with the reason where its header is no use."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)   # the bound below is the stricter one
            with Image.open(BytesIO(data), formats=IMAGE_FORMATS) as image:
                width, height = image.size
                transposed = image.getexif().get(Base.Orientation, 1) in (5, 6, 7, 8)
    except UnidentifiedImageError as error:
        raise ValueError(f"is none of {', '.join(IMAGE_FORMATS)}; it begins with {data[:8]!r}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"claims to have far more than the {MAX_PIXELS} pixels allowed") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"has a damaged header ({error})") from error
    if width * height > MAX_PIXELS:
        raise ValueError(f"has {width} x {height} pixels, more than the {MAX_PIXELS} allowed")
    return (width, height) if transposed else (height, width)


def _outline(path: str) -> Outline:
    """Raises SourceError for what need not be opened to be refused."""
    try:
        if not os.path.isfile(path):
            raise SourceError(f"'{path}' {'is not a file' if os.path.exists(path) else 'does not exist'}.")
        outline = read_outline(path)
    except OSError as error:
        raise SourceError(f"'{path}' cannot be read: {error.strerror}.") from error
    if outline.num_bytes == 0:
        raise SourceError(f"'{path}' is empty (0 bytes); expected a video.")
    if outline.kind == "text":
        raise SourceError(f"'{path}' is no video: this is text.")
    return outline


def _reason(outline: Outline, error: av.error.FFmpegError) -> str:
    if outline.kind == "mp4" and not outline.has_index:
        return "cannot be played: the index (moov) is missing. The file is cut short or still being written."
    if outline.num_missing:
        return _too_short(outline)
    return f"is no video that FFmpeg can read ({error.strerror}). It is damaged, or not a video at all."


def _no_frame(outline: Outline, codec: str) -> str:
    if outline.num_missing:
        return _too_short(outline)
    return (f"cannot be played: no frame of its {codec} video can be decoded. The file is damaged, or the installed "
            f"FFmpeg lacks what its codec needs.")


def _too_short(outline: Outline) -> str:
    return (f"cannot be played: it breaks off {outline.num_missing} bytes before the end that its header states, "
            f"too early to give a frame. The file is cut short or still being written.")


def _first_frame(
    container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[list[float], av.VideoFrame | None]:
    """The first frame that decodes, and the times of the packets read, in seconds, in order of showing."""
    times, frame = [], None
    for index, packet in enumerate(_packets(container, stream)):
        if packet.pts is not None:
            times.append(float(packet.pts * packet.time_base))
        if frame is None:
            try:
                frame = next(iter(packet.decode()), None)
            except av.error.FFmpegError:
                pass                       # a damaged packet: the next one may do
        if index >= FIRST_FRAME_PACKETS or (frame is not None and index >= RATE_PACKETS):
            break
    return sorted(times), frame


def _packets(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    try:
        yield from container.demux(stream)
    except av.error.FFmpegError:
        return                             # what came before the damage is enough to tell what it is


def _rate(stream: av.VideoStream, times: list[float]) -> float:
    """Frames a second: of the header where that is one, else of the first packets, else what FFmpeg guesses."""
    average = float(stream.average_rate or 0)
    if times and 0 < average <= MAX_RATE:
        return average
    steps = [after - before for before, after in zip(times, times[1:], strict=False) if after > before]
    if steps:
        usual = statistics.median(steps)   # times may be whole milliseconds: the mean of the usual steps is finer
        return min(1 / statistics.fmean(step for step in steps if 0.75 * usual <= step <= 1.25 * usual), MAX_RATE)
    coded = float(stream.codec_context.framerate or 0)     # a raw stream: its own header, where it states a rate
    return next((rate for rate in (coded, average, float(stream.guessed_rate or 0)) if 0 < rate <= MAX_RATE), 25.0)


def _promised_s(container: av.container.InputContainer) -> float | None:
    """The header's duration, in the containers that have one there; of others FFmpeg estimates it from the file."""
    names = set(container.format.name.split(","))
    if not container.duration or not names & {"mov", "matroska", "flv", "asf"}:
        return None
    from_zero = 0 if "mov" in names else max(0, container.start_time or 0)   # others count from time 0, not the start
    return max(0.0, (container.duration - from_zero) / av.time_base)
