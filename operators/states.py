"""What a stage remembers of a stream, as bytes and back: plain values and tensors, never code. And what all stages that
remember refuse, in the same words.

In:     a dict of numbers, texts, tensors, and lists and dicts of these
Out:    bytes that know whether they are whole; or the dict again, tensors on the host
State:  none
Limits: a snapshot that was damaged in one byte is refused, not taken up with another state than the stage had
"""

from __future__ import annotations

import io
import zlib
from collections.abc import Container, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from operators.errors import StageError
from operators.records import FrameInfo

HEAD = 4
"""Bytes of checksum before the content."""

UNFIT = (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError, OverflowError)
"""What content raises that was made by something else than the stage which reads it."""


def pack(content: dict[str, Any]) -> bytes:
    """Equal content gives equal bytes."""
    buffer = io.BytesIO()
    buffer.write(bytes(HEAD))
    torch.save(content, buffer)
    state = buffer.getbuffer()
    state[:HEAD] = _checksum(state)
    return bytes(state)


@contextmanager
def unpacked(state: bytes, where: str) -> Iterator[dict[str, Any]]:
    """The content of `state`, to be read within the context. Raises StageError, which says `where` it was to be
    restored, for bytes that `pack` did not give, and for content that cannot be read as the context tries to."""
    view = memoryview(state)
    try:
        if len(view) < HEAD or _checksum(view) != view[:HEAD]:
            raise ValueError(f"{len(view)} bytes without the checksum that they should have")
        content = torch.load(io.BytesIO(view[HEAD:]), map_location="cpu", weights_only=True)
    except Exception as error:      # bytes that are no archive, or a strange one, make the reader fail in any way
        raise StageError(f"{where}: the snapshot is damaged: {error}") from error
    try:
        yield content
    except UNFIT as error:
        raise StageError(f"{where}: the snapshot is damaged: {type(error).__name__}: {error}") from error


def refuse_open(stage: str, stream: str, streams: Container[str], before: str) -> None:
    """`before` what it is to be closed. Raises StageError for a stream that is among `streams`."""
    if stream in streams:
        raise StageError(f"{stage}: stream '{stream}' is open already. Close it before {before}.")


def refuse_closed(stage: str, stream: str, streams: Container[str]) -> None:
    """Raises StageError for a stream of which a snapshot is asked, and which is not among `streams`."""
    if stream not in streams:
        raise StageError(f"{stage}: stream '{stream}' is not open, so there is nothing to keep of it.")


def check_open(stage: str, info: FrameInfo, streams: Container[str]) -> None:
    """Raises StageError for a frame of a stream that is not among `streams`."""
    if info.stream not in streams:
        raise StageError(f"{stage}, {info}: the stream is not open.")


def check_order(stage: str, info: FrameInfo, last: int) -> None:
    """Raises StageError for a frame that does not come after frame `last` of its stream."""
    if info.index <= last:
        raise StageError(f"{stage}, {info}: came after frame {last}; frames must come in order.")


def _checksum(state: memoryview) -> bytes:
    return zlib.crc32(state[HEAD:]).to_bytes(HEAD, "big")
