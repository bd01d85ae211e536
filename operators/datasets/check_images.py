"""Images of a dataset, looked at without decoding them: is each there, whole, and of the size that is stated?

In:     the folder of images, a video's file names, the size (height, width) that they should have
Out:    Seen per image: its size, or what is wrong with it
State:  none
Limits: without `decode` some 4 kB of a file are read beside its header. An image that breaks off is then found by its
        end (JPEG and PNG have a mark there, WebP states its length, BMP the size of its pixels); damage inside is found
        by decoding alone. Images of more than MAX_PIXELS are refused unseen.
Source: ITU-T T.81 B.1.1.3 (end of image); PNG specification, 11.2.5 (IEND); WebP container specification (RIFF size)

Sizes are upright, by the EXIF orientation, as images are decoded elsewhere.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import av
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base

from operators.folders import is_inside
from operators.probe import IMAGE_FORMATS, MAX_PIXELS, read_image_file

NUM_READERS = 8
"""Threads: a file is mostly waited for, on a network's disk most of all."""
WINDOW = 256
"""Images in flight at a time."""
TAIL_BYTES = 4096
"""How far before the end of a file its end mark may stand: some cameras write a few bytes behind it."""

DAMAGED = (OSError, SyntaxError, ValueError, LookupError, EOFError, struct.error, Image.DecompressionBombError)
"""What Pillow raises over a damaged file."""

Found = TypeVar("Found")
Size = tuple[int, int]
Wrong = tuple[str, str, str]
"""The kind of a fault, what was found, what was expected."""


@dataclass(frozen=True)
class Seen:
    """One image: `size` (height, width), upright, where its header can be read; `wrong` if it is no use as it is."""

    size: Size | None
    wrong: Wrong | None = None


def see_images(root: Path, names: Sequence[Any], decode: bool) -> Iterator[Seen | None]:
    """What each image is, in order; None for a name that is none or leaves the folder, which is not looked at."""
    def see(name: Any) -> Seen | None:
        return see_image(root / name, decode) if name_fault(name) is None else None

    yield from in_threads(see, names)


def in_threads(look: Callable[[Any], Found], items: Sequence[Any]) -> Iterator[Found]:
    """look(item) for each, in order, by NUM_READERS threads, WINDOW items ahead."""
    with ThreadPoolExecutor(NUM_READERS) as pool:
        for begin in range(0, len(items), WINDOW):
            with warnings.catch_warnings():         # not within a thread: they share the filters
                warnings.simplefilter("ignore")     # of Pillow, over odd headers: what matters is an error here
                found = list(pool.map(look, items[begin : begin + WINDOW]))
            yield from found


def see_image(path: Path, decode: bool) -> Seen:
    """One image by its header and its end, or all of it. A file that is none of ours gives a Seen without size."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):        # a pipe would be waited for without end
            return Seen(None, ("image-unreadable", "no file, but a folder or device", "an image"))
        if status.st_size == 0:
            return Seen(None, ("image-unreadable", "0 bytes", "an image"))
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            return _see(path, image, decode)
    except (FileNotFoundError, NotADirectoryError):
        return Seen(None, ("image-missing", "no such file", "an image"))
    except DAMAGED as error:
        return Seen(None, ("image-unreadable", _reason(path, error), f"an image ({', '.join(IMAGE_FORMATS)})"))


def _see(path: Path, image: Image.Image, decode: bool) -> Seen:
    width, height = image.size
    if width * height > MAX_PIXELS:
        return Seen(None, ("image-unreadable", f"{width} x {height} pixels", f"at most {MAX_PIXELS} pixels"))
    # of a PNG the orientation stands behind its pixels: Pillow would decode them to get there
    turned = image.format == "JPEG" and image.getexif().get(Base.Orientation, 1) in (5, 6, 7, 8)
    size = (width, height) if turned else (height, width)
    if not _has_end(path, image.format or ""):
        return Seen(size, ("image-damaged", "it breaks off before its end", "a whole image"))
    why = _why_undecodable(path, image) if decode or image.format == "BMP" else None
    if why is not None:
        return Seen(size, ("image-damaged", f"its pixels cannot be decoded ({why})", "a whole image"))
    return Seen(size)


def _why_undecodable(path: Path, image: Image.Image) -> str | None:
    try:
        if image.format != "JPEG":
            image.load()
        # the usual decoders paint damaged parts of a JPEG grey and say nothing; FFmpeg can be told to say it
        elif not _strict_jpeg().decode(av.Packet(read_image_file(path))):
            return "no picture in it"
    except DAMAGED + (av.error.FFmpegError,) as error:
        return getattr(error, "strerror", None) or str(error)
    return None


def _strict_jpeg() -> av.CodecContext:
    decoder = av.CodecContext.create("mjpeg", "r")
    decoder.options = {"err_detect": "explode"}
    return decoder


def _has_end(path: Path, form: str) -> bool:
    with open(path, "rb") as file:
        head = file.read(12)
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(max(0, num_bytes - TAIL_BYTES))
        tail = file.read(TAIL_BYTES)
    if form == "JPEG":
        return b"\xff\xd9" in tail
    if form == "PNG":
        return b"IEND" in tail
    return form != "WEBP" or num_bytes >= int.from_bytes(head[4:8], "little") + 8


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"it cannot be read ({error.strerror})"
    if isinstance(error, Image.DecompressionBombError):
        return f"far more than {MAX_PIXELS} pixels"
    if not isinstance(error, UnidentifiedImageError):
        return f"a damaged header ({error})"
    with open(path, "rb") as file:
        return f"no header of an image; it begins with {file.read(8)!r}"


def name_fault(name: Any) -> str | None:
    """The kind of fault of a file name, None for a good one: a relative path that stays in its folder."""
    if not isinstance(name, str) or not name or "\0" in name:
        return "bad-file-name"
    try:
        os.fsencode(name)
    except UnicodeEncodeError:
        return "bad-file-name"
    return None if is_inside(name) else "file-name-leaves-root"         # as pipelines refuse it
