"""Step 1: what the outermost structure of a file says, read without a decoder.

In:     a path
Out:    Outline: the kind of file, whether its index is there, and how many of the bytes that it promises are missing
State:  none
Limits: reads a few bytes per top-level box; at most MAX_BOXES boxes, of MP4 alone
Source: ISO/IEC 14496-12, 4.2 (boxes); RFC 8794, 4 and 5, and RFC 9559, 5.1 (EBML, Segment); RIFF, 1991 (chunks)

FFmpeg reads a cut file as if it ended there, and an MP4 without an index as "invalid data". The structure tells why.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

MAX_BOXES = 200_000
"""A fragmented MP4 has two boxes a fragment: enough for two days in fragments of two seconds."""

TEXT_SAMPLE = 4096
MP4_FIRST = {b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"sidx", b"moof"}
MP4_TOP = MP4_FIRST | {b"uuid", b"mfra", b"meta", b"udta", b"prft", b"emsg"}
EBML_HEADER, EBML_SEGMENT = 0x1A45DFA3, 0x18538067


@dataclass(frozen=True)
class Outline:
    """What a file looks like from outside."""

    kind: Literal["mp4", "matroska", "riff", "text", "other"]
    num_bytes: int
    num_missing: int = 0
    """Bytes that the outermost box, segment or chunk promises beyond the end of the file."""
    has_index: bool = True
    """False for an MP4 without `moov`: the index, which is written last, never came or was cut off."""


def read_outline(path: str | Path) -> Outline:
    """The outline of a file; kind "other" for one that is empty or that no rule here knows. Raises OSError."""
    with open(path, "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        head = file.read(TEXT_SAMPLE)
        if head[4:8] in MP4_FIRST:
            return _mp4(file, num_bytes)
        if head[:4] == EBML_HEADER.to_bytes(4, "big"):
            return Outline("matroska", num_bytes, num_missing=_matroska_missing(head, num_bytes))
        if head[:4] == b"RIFF":
            return Outline("riff", num_bytes, num_missing=max(0, _little(head[4:8]) + 8 - num_bytes))
        return Outline("text" if looks_like_text(head) else "other", num_bytes)


def looks_like_text(head: bytes) -> bool:
    """Whether the first bytes of a file are text: UTF-8 without control characters, or with the mark of UTF-16."""
    if head.startswith(b"YUV4MPEG2 "):       # raw video under a line of text; dark pixels may look like letters
        return False
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        return True
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:      # the last character may be cut where the sample ends
            return False
        text = head[: error.start].decode("utf-8-sig")
    return bool(text) and all(char.isprintable() or char.isspace() for char in text)


def _mp4(file: BinaryIO, num_bytes: int) -> Outline:
    position, found = 0, set()
    for _ in range(MAX_BOXES):
        file.seek(position)
        header = file.read(16)
        size, kind = _big(header[:4]), header[4:8]
        if len(header) < 8 or kind not in MP4_TOP:
            break                            # the end, or bytes that some writers append
        found.add(kind)
        if size == 0:                        # "until the end of the file"
            position = num_bytes
            break
        size = _big(header[8:16]) if size == 1 else size
        if size < 8:
            break
        position += size
        if position >= num_bytes:
            break
    return Outline("mp4", num_bytes, num_missing=max(0, position - num_bytes), has_index=b"moov" in found)


def _matroska_missing(head: bytes, num_bytes: int) -> int:
    """Bytes that the Segment promises and the file lacks; 0 where it was written without knowing its size."""
    size, length = _ebml_size(head[4:])
    segment = 4 + length + (size or 0)
    if _big(head[segment : segment + 4]) != EBML_SEGMENT:
        return 0
    size, length = _ebml_size(head[segment + 4 :])
    return 0 if size is None else max(0, segment + 4 + length + size - num_bytes)


def _ebml_size(data: bytes) -> tuple[int | None, int]:
    """A variable-length size: its value, None for "unknown", and the number of bytes that it takes."""
    if not data or data[0] == 0:
        return None, 1
    length = 9 - data[0].bit_length()
    bits = 7 * length
    value = _big(data[:length]) & ((1 << bits) - 1)
    return (None if value == (1 << bits) - 1 else value), length


def _big(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes) -> int:
    return int.from_bytes(data, "little")
