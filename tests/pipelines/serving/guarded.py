"""An app behind the guard on a real uvicorn server, for tests: small, and with every habit that an app may have."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from pipelines.serving.guard import GuardConfig, guard

TOKEN, OTHER = "a-token-of-the-tests-1", "a-token-of-the-tests-2"


class App:
    """Plain ASGI. Paths say what it does; `seen` holds the scopes that reached it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []
        self.gate = threading.Event()

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            return
        self.seen.append(scope)
        if scope["type"] == "websocket":
            await self._socket(scope, receive, send)
            return
        path = scope["path"]
        if path == "/raise":
            raise RuntimeError("secret of the app")
        if path == "/silent":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if path == "/swallow":
            body = b""
        status = 201 if (scope["method"], path) == ("POST", "/streams") else 200
        said = json.loads(body) if status == 201 else {"bytes": len(body)}     # raises where that is no JSON
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        if path == "/break":
            await send({"type": "http.response.body", "body": b'{"half": ', "more_body": True})
            raise RuntimeError("secret of the app")
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    async def _socket(self, scope, receive, send):
        await receive()
        if scope["path"] == "/raise":
            raise RuntimeError("secret of the app")
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            if message.get("text") == "raise":
                raise RuntimeError("secret of the app")
            await send({"type": "websocket.send", "text": str(len(message.get("bytes") or message["text"]))})


@contextmanager
def serving(app: Callable) -> Iterator[str]:
    """The address, '127.0.0.1:PORT', of an ASGI app on a server of its own."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline and thread.is_alive():
            time.sleep(0.01)
        assert server.started
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = server.force_exit = True
            thread.join(10)


@contextmanager
def guarded(config: GuardConfig, monkeypatch, tokens: str = "") -> Iterator[tuple[str, App]]:
    """(address, app) behind a guard with these tokens."""
    monkeypatch.setenv(config.token_env, tokens)
    app = App()
    with serving(guard(app, config)) as address:
        yield address, app
