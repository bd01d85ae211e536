"""What answers HTTP and WebSocket: streams in and out, videos, the page, metrics and health.

In:     requests that the guard let pass
Out:    JSON, NDJSON, SSE, MJPEG, MP4; {"error": "<sentence>"} for all that cannot be done
State:  the Hub's; the task that registers the cameras of the settings
Limits: bodies and messages are bounded by the guard; every wait for a replica by PATIENCE_S
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import ray.exceptions
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from ray import serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException

from operators.errors import ConfigError, MaskstreamError
from operators.live.addresses import NotAllowed
from pipelines.serving.config import ServeConfig
from pipelines.serving.guard import guard
from pipelines.serving.hub import Hub
from pipelines.serving.streams import PlanFull, StreamTaken, UnknownStream
from pipelines.serving.view import DOWN, View

log = logging.getLogger(__name__)

DECLARE_S = 2.0
"""So often the cameras of the settings are named to the registry, which may be a new one that knows none; and it is
asked how things stand, whether or not somebody looks: the server may be about to end."""
PATIENCE_S = 15.0
"""Longest wait for a stream to have an owner."""

CODES: dict[type[MaskstreamError], int] = {
    NotAllowed: 403, UnknownStream: 404, StreamTaken: 409, PlanFull: 503, ConfigError: 400, MaskstreamError: 422,
}  # fmt: skip
"""HTTP's word for each kind of error; the first that fits."""

NO_JSON = "The body is expected as a JSON object, with the header Content-Type: application/json."
UNPARSED = "There was an error parsing the body"
"""FastAPI's word for bytes that are no text, and for nesting without end."""


class Backend:
    """What the routes need: the streams, their owners, and what they give."""

    def __init__(self, config: ServeConfig, owners: DeploymentHandle, app: str) -> None:
        self.config, self.owners = config, owners
        self.view = View(app)
        self.hub = Hub(owners, self.view)

    async def known(self) -> set[str] | None:
        """Ids of all streams; None where nobody can say now."""
        with contextlib.suppress(*DOWN):
            overview = await self.view.overview(0.0)
            if overview.settled:
                return {status["id"] for status in overview.statuses}
        return None

    async def owner_of(self, stream: str, made_at: float, patience_s: float = PATIENCE_S) -> str:
        """Who has the stream that was made then; waits for one. Raises UnknownStream, also where another stream has its
        id now; PlanFull where nobody takes it in time."""
        until = time.monotonic() + patience_s
        while True:
            owner = None
            with contextlib.suppress(*DOWN):        # the registry is being made anew
                await self.view.status(stream, 0.2, made_at)
                owner = (await self.view.overview()).owners.get(stream)
            if owner is not None:
                return owner
            if time.monotonic() > until:
                raise PlanFull(f"No replica has taken the stream '{stream}' within {patience_s:g} s; try again.")
            await asyncio.sleep(0.2)

    async def at_owner(self, stream: str, made_at: float, method: str, *arguments: Any) -> Any:
        """Call a method of the stream's owner, of the next one if that is gone or has it no more (None).

        Raises as `owner_of`.
        """
        until = time.monotonic() + PATIENCE_S
        while True:
            owner = await self.owner_of(stream, made_at)
            with contextlib.suppress(*DOWN):
                handle = self.owners.options(session_id=owner)
                given = await getattr(handle, method).remote(stream, made_at, *arguments)
                if given is not None and given is not False:
                    return given
            if time.monotonic() > until:
                raise PlanFull(f"No replica has the stream '{stream}' after {PATIENCE_S:g} s; try again.")
            await asyncio.sleep(0.2)


def make_app(backend: Backend) -> FastAPI:
    """The application without its guard."""
    from pipelines.serving import routes, sockets

    app = FastAPI(title="Maskstream", docs_url=None, redoc_url=None, lifespan=None)
    app.include_router(routes.router)
    app.include_router(sockets.router)
    app.state.backend = backend
    app.add_exception_handler(MaskstreamError, _told)
    app.add_exception_handler(HTTPException, _told_http)
    app.add_exception_handler(RequestValidationError, _told_invalid)
    for down in DOWN:
        app.add_exception_handler(down, _told_down)
    routes.mount_page(app)
    return app


def code_of(error: MaskstreamError) -> int:
    return next(code for kind, code in CODES.items() if isinstance(error, kind))


def _told(request: Request, error: Exception) -> JSONResponse:
    code = code_of(error)
    return JSONResponse({"error": str(error)}, code, {"Retry-After": "5"} if code == 503 else None)


def _told_http(request: Request, error: Exception) -> JSONResponse:
    said = {404: "There is nothing at this address.", 405: "This address does not take this method."}
    detail = NO_JSON if error.detail == UNPARSED else str(error.detail)
    return JSONResponse({"error": said.get(error.status_code, detail)}, error.status_code, error.headers)


def _told_invalid(request: Request, error: Exception) -> JSONResponse:
    first = error.errors()[0]
    if first["type"] == "json_invalid" or first["loc"] == ("body",):
        return JSONResponse({"error": NO_JSON}, 400)
    where = ".".join(str(part)[:100] for part in first["loc"][:8])
    return JSONResponse({"error": f"The request cannot be used: {where}: {first['msg'][:300]}."}, 400)


def _told_down(request: Request, error: Exception) -> JSONResponse:
    log.warning("%s %s: %s", request.method, request.url.path, error)
    said = "A process of the server died or does not answer; it is being replaced. Try again in a few seconds."
    return JSONResponse({"error": said}, 503, {"Retry-After": "5"})


@serve.ingress()
class Ingress:
    """A deployment; `build(config)` of pipelines/serving/app.py binds it."""

    def __init__(self, config: ServeConfig, owners: DeploymentHandle) -> None:
        self._backend = Backend(config, owners, serve.get_replica_context().app_name)
        self._registering: asyncio.Task | None = None

    def __serve_build_asgi_app__(self) -> Any:
        config = self._backend.config
        with contextlib.suppress(RuntimeError):         # there is a loop where Serve calls this
            self._registering = asyncio.get_running_loop().create_task(self._register())
        return guard(make_app(self._backend), config.guard, bound_to=config.host, streams=self._backend.known)

    async def check_health(self) -> None:
        """Raises where the cameras of the settings could not be registered for a reason that lasts."""
        if self._registering is not None and self._registering.done() and self._registering.exception():
            raise RuntimeError(str(self._registering.exception()))

    async def __del__(self) -> None:
        """Let the sockets go: their clients connect again, to whoever comes next."""
        self._backend.view.closing = True

    async def _register(self) -> None:
        specs, known = await asyncio.to_thread(self._backend.config.specs), 0.0
        while True:
            try:
                known = await self._backend.view.call("declare", specs, known)
                await self._backend.view.overview()
                await asyncio.sleep(DECLARE_S)
            except ray.exceptions.RayTaskError:     # its own fault: it may be of another version of this code
                raise
            except (PlanFull, ray.exceptions.RayError):
                await asyncio.sleep(0.5)
