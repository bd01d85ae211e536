"""What a client says and hears on a WebSocket: records that are followed, frames that are pushed, waits in between.

In:     the server's messages; frames of the user
Out:    records; messages of a capture time and an encoded frame; what was refused, and whether to come again
State:  how far a stream was followed (Following), what came of a push (Pushed), how long was waited (Backoff)
Limits: MAX_ERRORS reasons of refusals are kept; waits grow to LONGEST_WAIT_S
"""

from __future__ import annotations

import io
import json
import random
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection

from operators.errors import ConfigError, MaskstreamError

LONGEST_WAIT_S = 5.0
"""Between two attempts to connect."""
MAX_ERRORS = 100
"""Refusals of a push that are kept; all are counted."""

OVER, UNKNOWN = 1000, 4404
FINAL = {1008, 1009, UNKNOWN, 4409}
"""Close codes after which connecting again changes nothing."""

Picture = bytes | Path | np.ndarray
"""An encoded frame, a file of one, or an image (H, W, 3) uint8 RGB."""


class ServerError(MaskstreamError):
    """The server refused, or cannot be reached; says why, in the server's words where it gave any."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status
        """HTTP's number for it; None where there was no answer."""


@dataclass
class Pushed:
    """What came of a push."""

    sent: int = 0
    """Frames, or chunks, that were sent."""
    refused: int = 0
    """Of those, how many the server did not take."""
    errors: list[str] = field(default_factory=list)
    """Why: the first MAX_ERRORS reasons."""


@dataclass
class Following:
    """How far a stream was followed."""

    started: float
    after: int | None
    backoff: Backoff

    def records(self, socket: ClientConnection) -> Iterator[dict[str, Any]]:
        """Until the socket closes. Raises ServerError for what cannot become better."""
        said = ""
        try:
            for text in socket:
                record = parsed(text)
                if "frame" in record:
                    self.after = record["frame"]
                    self.backoff.reset()
                    yield record
                else:
                    said = str(record.get("error", ""))
        except ConnectionClosed as closed:
            code = closed.rcvd.code if closed.rcvd else None
            if code in FINAL:
                raise ServerError(said or f"The server closed the connection with code {code}.", 400) from closed


class Backoff:
    """Waits that double, of random length below that (so that a thousand clients do not come back at once)."""

    def __init__(self, patience_s: float | None) -> None:
        self._patience_s = patience_s
        self.reset()

    def reset(self) -> None:
        self._longest, self._since = 0.25, None

    def wait(self, lost: ServerError) -> None:
        """Raises `lost` when the patience is at its end."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if self._patience_s is not None and now - self._since > self._patience_s:
            raise lost
        time.sleep(random.uniform(0.05, self._longest))
        self._longest = min(2 * self._longest, LONGEST_WAIT_S)


class Pace:
    """Lets pass no more than `fps` a second; None: all."""

    def __init__(self, fps: float | None) -> None:
        if fps is not None and not fps > 0:
            raise ConfigError(f"fps is {fps}, expected more than 0 frames a second, or None.")
        self._step, self._due = 0.0 if fps is None else 1 / fps, time.monotonic()

    def wait(self) -> None:
        now = time.monotonic()
        if now < self._due:
            time.sleep(self._due - now)
        self._due = max(self._due, now - self._step) + self._step


def message(item: Picture | tuple[float, Picture], quality: int) -> bytes:
    """The capture time in unix seconds (0: now), little-endian, and the encoded frame behind it."""
    captured_at, frame = item if isinstance(item, tuple) else (0.0, item)
    return struct.pack("<d", captured_at) + _encoded(frame, quality)


def _encoded(frame: Picture, quality: int) -> bytes:
    if isinstance(frame, bytes | bytearray | memoryview):
        return bytes(frame)
    if isinstance(frame, Path):
        try:
            return frame.read_bytes()
        except OSError as error:
            raise ConfigError(f"{frame}: cannot be read: {error.strerror or error}.") from error
    if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
        came = f"{frame.dtype} {frame.shape}" if isinstance(frame, np.ndarray) else type(frame).__name__
        raise ConfigError(f"a frame is {came}, expected bytes, a Path, or an image (H, W, 3) uint8 RGB.")
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "JPEG", quality=quality)
    return out.getvalue()


def note_errors(socket: ClientConnection, pushed: Pushed) -> None:
    """What the server has said so far; without waiting for more."""
    while True:
        try:
            _note(socket.recv(timeout=0), pushed)
        except TimeoutError:
            return


def end(socket: ClientConnection, pushed: Pushed) -> None:
    """Say that it was the last frame, and wait until the server has taken all."""
    socket.send("end")
    while not _note(socket.recv(), pushed):
        pass


def _note(text: str | bytes, pushed: Pushed) -> bool:
    """Takes in one word of the server; whether it was the last."""
    said = parsed(text)
    if "error" in said:
        pushed.refused += 1
        if len(pushed.errors) < MAX_ERRORS:
            pushed.errors.append(str(said["error"]))
    return said.get("end") is True


def closed_with(id: str, code: int | None, pushed: Pushed) -> ServerError:
    if code in FINAL:
        said = pushed.errors[-1] if pushed.errors else f"the server closed the connection with code {code}."
        return ServerError(f"Stream '{id}': {said}", 404 if code == UNKNOWN else 400)
    return ServerError(f"The connection to stream '{id}' was cut.")


def is_final(error: ServerError) -> bool:
    """Whether asking again changes nothing: not for a server that is away, busy or being replaced."""
    return error.status is not None and error.status < 500 and error.status != 429


def parsed(body: bytes | str) -> dict[str, Any]:
    """A JSON object. Raises ServerError."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ServerError(f"The server's answer is no JSON: {body[:80]!r}. Is this Maskstream's address?") from error
    if not isinstance(value, dict):
        raise ServerError(f"The server's answer is {type(value).__name__}, expected an object of JSON.")
    return value


def reason(body: bytes, status: int) -> str:
    try:
        said = json.loads(body)["error"]
    except (ValueError, TypeError, KeyError, RecursionError):
        said = None
    return said if isinstance(said, str) and said else f"The server answered {status}."
