"""The WebSocket addresses: results out, frames in.

In:     /streams/{id}/tracks          nothing; what a client says is passed over
        /streams/{id}/frames          binary: a double with the capture time (Unix seconds, little-endian, 0: now), then
                                      a picture (JPEG, PNG, WebP), or with ?format=h264 a piece of H.264 (Annex B);
                                      the text "end": that was the last frame
Out:    tracks: a text of JSON a frame; frames: {"error": "..."} for each message that is refused, and
        {"end": true} after "end"
State:  none
Limits: messages are bounded by the guard; the next one is read when the one before was taken
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import struct
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, WebSocket
from starlette.websockets import WebSocketDisconnect, WebSocketState

from operators.errors import MaskstreamError
from pipelines.serving.streams import PlanFull, UnknownStream
from pipelines.serving.view import DOWN

router = APIRouter()

DONE, AWAY, REFUSED, AGAIN, RESTART = 1000, 1001, 1008, 1013, 1012
UNKNOWN, NOT_PUSHED = 4404, 4409
EARLIEST = 946_684_800.0
"""The year 2000: an older capture time is a clock that was never set."""
AHEAD_S = 60.0
LOOK_S = 0.5
"""A client that says nothing is told that the server ends, so late at most; and after KNOWN_S more that its stream was
removed."""
KNOWN_S = 2.0


@router.websocket("/streams/{stream}/tracks")
async def tracks(socket: WebSocket, stream: str, after: Annotated[int | None, Query(ge=-1)] = None) -> None:
    """Results until the stream ends; the connection outlives the replica that works on it. Without `after`: of all
    frames that are pushed once the connection is open."""
    backend = socket.app.state.backend
    try:
        place = await backend.hub.place(stream, after)
        await socket.accept()
        gone = asyncio.ensure_future(_until_gone(socket))
        try:
            async with contextlib.aclosing(backend.hub.lines(place)) as batches:
                async for batch in batches:
                    if gone.done():
                        return
                    for line in batch:
                        await socket.send_text(line.decode("ascii").rstrip("\n"))
        finally:
            gone.cancel()
        await _close(socket, RESTART if backend.hub.closing else DONE)
    except WebSocketDisconnect:
        return
    except (MaskstreamError, *DOWN) as error:
        await _refuse(socket, error)


@router.websocket("/streams/{stream}/frames")
async def frames(socket: WebSocket, stream: str, format: Literal["image", "h264"] = "image") -> None:
    """Frames of a pushed stream, that which has the id now. A client that is cut may connect again and go on."""
    backend = socket.app.state.backend
    await socket.accept()
    try:
        status = await backend.view.status(stream, 0.0)
        if status["kind"] != "push":
            await _tell(socket, f"The stream '{stream}' is pulled from its address; nothing can be pushed into it.")
            await _close(socket, NOT_PUSHED)
            return
        made_at = status["started_at"]
        while (message := await _next(socket, backend, stream, made_at)) is not None:
            if message["type"] == "websocket.disconnect":
                return
            if message.get("text") == "end":
                await backend.at_owner(stream, made_at, "end_push")
                await socket.send_json({"end": True})
                await _close(socket, DONE)
                return
            error = await _push(backend, stream, made_at, format, message.get("bytes"))
            if error:
                await _tell(socket, error)
        await _close(socket, RESTART)
    except WebSocketDisconnect:
        return
    except (MaskstreamError, *DOWN) as error:
        await _refuse(socket, error)


async def _push(backend: Any, stream: str, made_at: float, kind: str, data: bytes | None) -> str:
    """Why a message was refused; "" if it was not."""
    if data is None:
        return 'Expected binary messages, or the text "end".'
    if len(data) <= 8:
        return f"A message of {len(data)} bytes has no frame: expected 8 bytes of time, then the frame."
    timestamp = struct.unpack_from("<d", data)[0]
    if timestamp == 0.0:
        timestamp = time.time()
    if not math.isfinite(timestamp) or not EARLIEST < timestamp < time.time() + AHEAD_S:
        return f"The capture time {timestamp!r} is none: expected Unix seconds up to now, or 0 for now."
    return await backend.at_owner(stream, made_at, "push", kind, data[8:], timestamp)


async def _next(socket: WebSocket, backend: Any, stream: str, made_at: float) -> Any:
    """The client's next message; None once the server ends. Raises UnknownStream where the stream was removed while
    the client was silent."""
    receiving = asyncio.ensure_future(socket.receive())
    try:
        while not backend.hub.closing:
            if (await asyncio.wait({receiving}, timeout=LOOK_S))[0]:
                return receiving.result()
            with contextlib.suppress(*DOWN):        # a registry that is being made anew knows no stream yet
                await backend.view.status(stream, KNOWN_S, made_at)
        return None
    finally:
        receiving.cancel()


async def _until_gone(socket: WebSocket) -> None:
    """Read what the client says, until it goes."""
    with contextlib.suppress(WebSocketDisconnect, RuntimeError):
        while (await socket.receive())["type"] != "websocket.disconnect":
            pass


async def _refuse(socket: WebSocket, error: Exception) -> None:
    """Say why, and close."""
    if socket.application_state is WebSocketState.CONNECTING:
        await socket.accept()
    if isinstance(error, DOWN):
        await _tell(socket, "A process of the server died or does not answer; connect again in a few seconds.")
        await _close(socket, RESTART)
        return
    await _tell(socket, str(error))
    unknown, full = isinstance(error, UnknownStream), isinstance(error, PlanFull)
    await _close(socket, UNKNOWN if unknown else AGAIN if full else REFUSED)


async def _tell(socket: WebSocket, sentence: str) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.send_json({"error": sentence})


async def _close(socket: WebSocket, code: int) -> None:
    with contextlib.suppress(RuntimeError, WebSocketDisconnect):
        await socket.close(code)
