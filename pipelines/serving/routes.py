"""The HTTP addresses: streams, their results, pictures, videos, metrics, health, the page.

In:     requests; docs/live.md has a table of them
Out:    see the docstring of each
State:  none; `app.state.backend` has all
Limits: a body that registers a stream has five fields; a picture is at most `overlay_width` wide
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field

from operators.errors import ConfigError, MaskstreamError
from pipelines.serving.health import Verdict, health, readiness
from pipelines.serving.prometheus import CONTENT_TYPE, metrics_text
from pipelines.serving.streams import MAX_QUEUE, Policy
from pipelines.serving.view import DOWN

PAGE = Path(__file__).parent / "page"
BOUNDARY = "maskstream-frame"
NO_BUFFER = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}

VIDEO_BODY: dict[str, Any] = {
    "description": "The bytes of a video file.", "required": True,
    "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
}  # fmt: skip


def _header(kind: str, text: str) -> dict[str, Any]:
    return {"description": text, "schema": {"type": kind}}


VIDEO_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The result: of the whole video, or, where X-Video-Error stands, of what could be decoded.",
        "headers": {
            "X-Video-Frames": _header("integer", "Frames with a result."),
            "X-Video-Damaged": _header("integer", "Packets that could not be decoded, and frames that the decoder "
                                       "marked as damaged."),
            "X-Video-Dropped": _header("integer", "Frames without a result; by reason in the JSON."),
            "X-Video-Error": _header("string", "Why the result is not that of the whole video; absent where it is."),
        },
        "content": {
            "application/json": {"schema": {"type": "object", "properties": {
                "frames": {"type": "array", "items": {"type": "object"}},
                "results": {"type": "array", "items": {"type": "object"}},
                "error": {"type": ["string", "null"]},
                "damaged": {"type": "integer"},
                "dropped": {"type": "object", "additionalProperties": {"type": "integer"}},
            }}},
            "video/mp4": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    **{code: {"description": text, "content": {"application/json": {"schema": {
        "type": "object", "properties": {"error": {"type": "string"}}}}}} for code, text in {
            400: "The request cannot be used.",
            413: "The file is larger than is taken.",
            422: "The file is no video, none of its frames could be decoded, or it has too many.",
            503: "Too many videos are worked on.",
        }.items()},
}  # fmt: skip

router = APIRouter()


class NewStream(BaseModel):
    """A stream to register. Without `url` the client pushes its frames."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: str = Field(max_length=64)
    url: str | None = Field(default=None, max_length=4096)
    policy: Policy | None = None
    queue: int | None = Field(default=None, ge=1, le=MAX_QUEUE)


@router.head("/streams", include_in_schema=False)
@router.get("/streams")
async def streams(request: Request) -> JSONResponse:
    """{"streams": [Status, ...]} in the order in which they were registered."""
    overview = await request.app.state.backend.view.overview(0.0)
    return JSONResponse({"streams": list(overview.statuses)})


@router.post("/streams", status_code=201)
async def register(request: Request, new: NewStream) -> JSONResponse:
    """201 and its Status. 400 for what is no stream, 403 for an address that is not allowed, 409 for an id that is
    taken, 503 where the plan is full."""
    backend = request.app.state.backend
    spec = backend.config.spec(new.id, new.url, new.policy, new.queue)
    if spec.url is not None:
        await asyncio.to_thread(backend.config.allow.check, spec.url)       # it resolves the name
    return JSONResponse(await backend.view.call("register", spec), 201)


@router.head("/streams/{stream}", include_in_schema=False)
@router.get("/streams/{stream}")
async def status(request: Request, stream: str) -> JSONResponse:
    """Its Status; 404."""
    return JSONResponse(await request.app.state.backend.view.status(stream, 0.0))


@router.delete("/streams/{stream}")
async def remove(request: Request, stream: str) -> JSONResponse:
    """Remove it; its last Status. 404."""
    return JSONResponse(await request.app.state.backend.view.call("remove", stream))


@router.get("/streams/{stream}/tracks")
async def tracks(request: Request, stream: str, after: Annotated[int | None, Query(ge=-1)] = None) -> Response:
    """Results as newline-delimited JSON, or as server-sent events with `Accept: text/event-stream`, until the stream
    ends. `after`: those of later frames that are still known, first; without it from now on. 404."""
    hub = request.app.state.backend.hub
    lines = hub.lines(await hub.place(stream, after))
    if "text/event-stream" in request.headers.get("accept", ""):
        return StreamingResponse(_events(lines), media_type="text/event-stream", headers=NO_BUFFER)
    return StreamingResponse(_joined(lines), media_type="application/x-ndjson", headers=NO_BUFFER)


@router.get("/streams/{stream}/overlay.mjpeg")
async def overlay(
    request: Request, stream: str, fps: Annotated[float | None, Query(gt=0, le=100)] = None
) -> StreamingResponse:
    """Motion JPEG: the newest frame with masks, ids and labels, at most `fps` a second. 404."""
    backend = request.app.state.backend
    most = min(fps or backend.config.overlay_fps, backend.config.overlay_fps)
    pictures = backend.hub.pictures(await backend.hub.place(stream, -1), most)
    kind = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
    return StreamingResponse(_parts(pictures), media_type=kind, headers=NO_BUFFER)


@router.head("/streams/{stream}/overlay.jpg", include_in_schema=False)
@router.get("/streams/{stream}/overlay.jpg")
async def still(request: Request, stream: str) -> Response:
    """The newest frame with masks, ids and labels; 404 also where there is none yet."""
    picture = await request.app.state.backend.hub.picture(stream)
    if picture is None:
        return JSONResponse({"error": f"The stream '{stream}' has given no frame yet."}, 404)
    return Response(picture.jpeg, media_type="image/jpeg", headers={**NO_BUFFER, "X-Frame-Index": str(picture.index)})


@router.post("/videos", response_class=Response, responses=VIDEO_ANSWERS, openapi_extra={"requestBody": VIDEO_BODY})
async def video(request: Request, result: Literal["json", "overlay"] = "json") -> Response:
    """A short file as the body: its tracks as JSON, or the video with them drawn (MP4). Of a damaged file it is what
    could be decoded: the header X-Video-Error says what is missing, and X-Video-Dropped how many frames. 400, 422 for
    what is no video or gives no frame, 503 where too many are worked on."""
    backend = request.app.state.backend
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > backend.config.max_video_bytes:
            most = backend.config.max_video_bytes
            return JSONResponse({"error": f"The video has more than the {most} bytes that are taken."}, 413)
    if not data:
        raise ConfigError("The request has no body; send the bytes of a video file.")
    answer = await backend.owners.video.remote(bytes(data), result)
    if isinstance(answer, MaskstreamError):
        raise answer
    kind = "video/mp4" if result == "overlay" else "application/json"
    return Response(answer.body, media_type=kind, headers=answer.headers())


@router.get("/events")
async def events(request: Request) -> StreamingResponse:
    """Server-sent: {"streams": [Status...]} once a second."""
    backend = request.app.state.backend

    async def told() -> AsyncIterator[bytes]:
        while not backend.hub.closing:
            overview = await backend.view.overview(0.0)
            yield _event(json.dumps({"streams": list(overview.statuses)}).encode())
            await asyncio.sleep(1.0)

    return StreamingResponse(told(), media_type="text/event-stream", headers=NO_BUFFER)


@router.head("/metrics", include_in_schema=False)
@router.get("/metrics")
async def metrics(request: Request) -> PlainTextResponse:
    """Prometheus's text."""
    overview = await request.app.state.backend.view.overview(0.0)
    return PlainTextResponse(metrics_text(overview.statuses), media_type=CONTENT_TYPE)


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz")
async def healthz(request: Request) -> JSONResponse:
    """200 while frames that come in leave as results; 503 and why not."""
    backend = request.app.state.backend
    return await _verdict(request, lambda overview: health(overview, backend.config.stall_s))


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz")
async def readyz(request: Request) -> JSONResponse:
    """200 once streams can be taken and all have a replica; 503 and why not."""
    hub = request.app.state.backend.hub
    return await _verdict(request, lambda overview: readiness(overview, hub.closing))


def mount_page(app: FastAPI) -> None:
    """The page at /, whatever else has no address."""
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")


async def _verdict(request: Request, judge: Callable[[Any], Verdict]) -> JSONResponse:
    try:
        good, said = judge(await request.app.state.backend.view.overview(0.0))
    except DOWN:
        good, said = False, {"error": "The registry of streams does not answer."}
    return JSONResponse(said, 200 if good else 503)


async def _joined(lines: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(lines) as batches:
        async for batch in batches:
            if batch:
                yield b"".join(batch)


async def _events(lines: AsyncIterator[list[bytes]]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(lines) as batches:
        async for batch in batches:
            yield b"".join(map(_event, batch)) or b": nothing new\n\n"
    yield b"event: end\ndata: {}\n\n"


async def _parts(pictures: AsyncIterator[Any]) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(pictures) as each:
        async for picture in each:
            if picture is not None:
                head = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture.jpeg)}\r\n\r\n"
                yield head.encode() + picture.jpeg + b"\r\n"
    yield f"--{BOUNDARY}--\r\n".encode()


def _event(data: bytes) -> bytes:
    return b"data: " + data.rstrip(b"\n") + b"\n\n"
