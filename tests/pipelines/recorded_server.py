"""A real HTTP and WebSocket server that plays recorded cameras, with the interface of pipelines/serving and its guard.

It stands in for nothing: what needs the graph is tested against the real app. Here the page and the client meet what a
real app hardly ever shows: sixteen cameras, hostile names, a server that is away, a socket that is cut.
"""

from __future__ import annotations

import asyncio
import functools
import io
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from PIL import Image
from pycocotools import mask as coco
from starlette.websockets import WebSocketDisconnect

from operators.draw import draw_tracks
from operators.formats import Categories
from operators.records import FrameInfo, FrameTracks
from operators.shapes import CATEGORIES, ShapesConfig, generate_clip
from pipelines.serving.guard import GuardConfig, guard

PAGE = Path(__file__).resolve().parents[2] / "pipelines" / "serving" / "page"
NUM_FRAMES = 24


@functools.lru_cache
def recording(seed: int, width: int = 320, height: int = 180, num_frames: int = NUM_FRAMES) -> list[tuple[bytes, list]]:
    """A clip of moving shapes: of every frame the JPEG with its masks, and the instances of its record."""
    clip = generate_clip(ShapesConfig(width=width, height=height, num_frames=num_frames), seed, 0)
    categories = Categories.numbered(CATEGORIES)
    frames = []
    for t, image in enumerate(clip.frames):
        seen = [k for k in range(len(clip.objects)) if clip.box(k, t) is not None]
        masks = [coco.encode(np.asfortranarray(clip.masks(k)[t].astype(np.uint8))) for k in seen]
        tracks = FrameTracks(
            FrameInfo("recorded", t, t / 12, height, width),
            track_ids=np.array([clip.objects[k].object_id for k in seen], np.int64),
            labels=np.array([clip.objects[k].category_id - 1 for k in seen], np.int64),
            scores=np.array([0.97 - 0.05 * k for k in seen], np.float32),
            boxes=np.array([clip.box(k, t) for k in seen], np.float32).reshape(-1, 4),
            masks=tuple(masks),
        )
        out = io.BytesIO()
        Image.fromarray(draw_tracks(image, tracks, categories)).save(out, "JPEG", quality=80)
        names = [CATEGORIES[label] for label in tracks.labels]
        instances = [
            {"track_id": int(i), "category": name, "score": round(float(score), 4), "box": box.tolist()}
            for i, name, score, box in zip(tracks.track_ids, names, tracks.scores, tracks.boxes, strict=True)
        ]
        frames.append((out.getvalue(), instances))
    return frames


def status(id: str, **changes: Any) -> dict[str, Any]:
    """Of a camera that is well, but for `changes`."""
    return {
        "id": id, "kind": "pull", "url": f"rtsp://10.0.0.7/{id}", "state": "live", "reason": "", "retry_in_s": None,
        "width": 320, "height": 180, "fps_in": 12.0, "fps_out": 11.8, "latency_ms": {"p50": 84.2, "p95": 131.0},
        "frames": {"in": 1204, "out": 1190, "in_flight": 2, "dropped": {"queue_full_oldest": 12}}, "tracks": 3,
        "min_score": 0.5, "reconnects": 0, "started_at": 1_760_000_000.0,
    } | changes  # fmt: skip


class Recorded:
    """What the server plays; tests change it while it runs."""

    def __init__(self, *statuses: dict[str, Any]) -> None:
        recording(11)       # now: made at the first request for it, it would hold up all others meanwhile
        self.statuses = list(statuses)
        self.frames: dict[str, list[tuple[bytes, list]]] = {}
        """Of a camera; the others play the same one."""
        self.pictures: dict[object, str] = {}
        self.sockets: dict[object, str] = {}
        """Of each connection that is open right now, its camera."""
        self.records_before_cut: int | None = None
        """The next socket of tracks is told to come again after so many records."""
        self.records_sent = 0
        self.asked_after: list[int | None] = []
        """Of each socket of tracks, from which frame on it wanted to know more."""
        self.pushed: dict[str, list[tuple[float, bytes]]] = {}
        self.bodies: list[Any] = []
        """Of POST /streams and POST /videos."""

    @property
    def open_pictures(self) -> list[str]:
        """Cameras whose picture is streamed."""
        return list(self.pictures.values())

    @property
    def open_sockets(self) -> list[str]:
        """Cameras whose tracks are followed."""
        return list(self.sockets.values())

    def of(self, id: str) -> dict[str, Any] | None:
        return next((one for one in self.statuses if isinstance(one, dict) and one["id"] == id), None)

    def frame(self, id: str) -> tuple[bytes, list]:
        frames = self.frames.get(id) or recording(11)
        return frames[int(time.time() * 12) % len(frames)]


def _error(code: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, code)


def app_of(played: Recorded) -> FastAPI:
    app = FastAPI()
    _add_streams(app, played)
    _add_pictures(app, played)
    _add_sockets(app, played)
    app.mount("/", StaticFiles(directory=PAGE, html=True))
    return app


def _add_streams(app: FastAPI, played: Recorded) -> None:
    @app.get("/streams")
    async def every() -> Any:
        return {"streams": played.statuses}

    @app.post("/streams")
    async def add(request: Request) -> Any:
        asked = await request.json()
        played.bodies.append(asked)
        if played.of(asked["id"]) is not None:
            return _error(409, f"There is a stream '{asked['id']}' already. Remove it first, or take another id.")
        if "127.0.0.1" in asked.get("url", ""):
            return _error(403, "The address 127.0.0.1 is this machine's own, and not listed in allow.hosts.")
        url = {"url": asked["url"]} if "url" in asked else {"url": None, "kind": "push"}
        new = status(asked["id"], **url, state="connecting", fps_in=0.0, fps_out=0.0)
        played.statuses.append(new)
        return JSONResponse(new, 201)

    @app.get("/streams/{id}")
    async def one(id: str) -> Any:
        return played.of(id) or _error(404, f"There is no stream '{id}'.")

    @app.delete("/streams/{id}")
    async def remove(id: str) -> Any:
        found = played.of(id)
        if found is None:
            return _error(404, f"There is no stream '{id}'.")
        played.statuses.remove(found)
        return found

    @app.post("/videos")
    async def video(request: Request, result: str = "json") -> Any:
        played.bodies.append(await request.body())
        if not played.bodies[-1].startswith(b"\0\0\0"):
            return _error(400, "The body is no video that can be read.")
        if result == "overlay":
            torn = {"X-Video-Error": "The upload: 3 frames came."} if b"torn" in played.bodies[-1] else {}
            return Response(b"\0\0\0\x18ftypmp42", media_type="video/mp4", headers=torn)
        return {"frames": [{"frame": 0, "instances": []}], "results": [], "error": None}


def _add_pictures(app: FastAPI, played: Recorded) -> None:
    @app.get("/streams/{id}/overlay.jpg")
    async def picture(id: str) -> Any:
        if played.of(id) is None or played.of(id).get("state") == "connecting":
            return _error(503, "There is no picture yet.")
        return Response(played.frame(id)[0], media_type="image/jpeg")

    @app.get("/streams/{id}/overlay.mjpeg")
    async def pictures(id: str) -> Any:
        async def parts():
            played.pictures[connection := object()] = id
            try:
                while played.of(id) is not None:
                    jpeg = played.frame(id)[0]
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                    yield head.encode() + jpeg + b"\r\n"
                    await asyncio.sleep(1 / 12)
            finally:
                played.pictures.pop(connection, None)

        return StreamingResponse(parts(), media_type="multipart/x-mixed-replace; boundary=frame")


def _add_sockets(app: FastAPI, played: Recorded) -> None:
    @app.websocket("/streams/{id}/tracks")
    async def tracks(websocket: WebSocket, id: str, after: int | None = None) -> None:
        await websocket.accept()
        played.asked_after.append(after)
        if played.of(id) is None:
            return await websocket.close(4404)
        left, played.records_before_cut = played.records_before_cut, None
        played.sockets[connection := object()] = id
        try:
            last = -1
            while played.of(id) is not None and left != 0:
                now = time.time()
                if int(now * 12) <= last:       # it woke up early after a late one
                    await asyncio.sleep(1 / 120)
                    continue
                last = int(now * 12)
                record = {"stream": id, "frame": last, "captured_at": now - 0.08, "latency_ms": 80.0,
                          "instances": played.frame(id)[1], "dropped": {}}  # fmt: skip
                await websocket.send_text(json.dumps(record))
                played.records_sent += 1
                left = None if left is None else left - 1
                await asyncio.sleep(1 / 12)
            await websocket.close(1000 if left != 0 else 1012)
        except WebSocketDisconnect:
            pass
        finally:
            played.sockets.pop(connection, None)

    @app.websocket("/streams/{id}/frames")
    async def frames(websocket: WebSocket, id: str) -> None:
        await websocket.accept()
        came = played.pushed.setdefault(id, [])
        while (message := await websocket.receive()).get("text") != "end":
            if message["type"] == "websocket.disconnect":
                return
            (timestamp,) = struct.unpack("<d", message["bytes"][:8])
            came.append((timestamp, message["bytes"][8:]))
            if not message["bytes"][8:]:
                await websocket.send_json({"error": "The message holds no frame."})
        await websocket.send_json({"end": True, "frames": {"in": len(came), "out": len(came), "dropped": {}}})
        await websocket.close(1000)


def until(condition: Callable[[], object], timeout_s: float = 60) -> None:
    """Fails where it does not come true in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "never true"
        threading.Event().wait(0.02)


class Running:
    """The server in a thread; it can go away and come back at the same address."""

    def __init__(self, played: Recorded, config: GuardConfig) -> None:
        self._played, self._config = played, config
        self.held = socket.socket()         # the port stays ours while nobody listens there
        self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.held.bind(("127.0.0.1", 0))
        self._port = self.held.getsockname()[1]
        self.start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        listening = socket.create_server(("127.0.0.1", self._port))     # who comes early waits in its queue
        app = guard(app_of(self._played), self._config, "127.0.0.1")
        quiet = {"log_level": "critical", "lifespan": "off", "timeout_graceful_shutdown": 0}
        self._server = uvicorn.Server(uvicorn.Config(app, ws="websockets-sansio", **quiet))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [listening]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """At once; no connection stays."""
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)
        self._played.pictures.clear()
        self._played.sockets.clear()


@contextmanager
def serving(played: Recorded, config: GuardConfig | None = None) -> Iterator[Running]:
    """Without a `config` nobody needs a token."""
    server = Running(played, config or GuardConfig(token_env=""))
    try:
        yield server
    finally:
        server.stop()
        server.held.close()
