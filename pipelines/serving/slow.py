"""Clients that read more slowly than their answer grows: pictures are left out for them, records end their connection.

In:     the messages of an answer, as an application of ASGI gives them
Out:    the same, to a client that keeps up
State:  of each answer without an end what waits for its client
Limits: one picture of Motion JPEG; MAX_WAITING bytes of records, and one message more

Stands in Serve's proxies, and there alone it can: they take what the ingress gives as fast as it comes, and would keep
it all for a client that does not read. Serve asks for it where the environment says SETTING=MIDDLEWARES as Ray starts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SETTING, MIDDLEWARES = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "pipelines.serving.slow:middlewares"
MAX_WAITING = 8 << 20
"""Bytes. More: a client may be away for longer; as much memory for each that means harm."""
PICTURES = b"multipart/x-mixed-replace"


def middlewares() -> list[Middleware]:
    """What Serve's proxies put before everything."""
    return [Middleware(SlowReaders)]


class SlowReaders:
    """ASGI middleware."""

    def __init__(self, app: Any, max_waiting: int = MAX_WAITING) -> None:
        self._app, self._max_waiting = app, max_waiting

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        outbox = Outbox(send, self._max_waiting)
        try:
            await self._app(scope, receive, outbox.put)
            await outbox.emptied()
        finally:
            outbox.close()


class Outbox:
    """One answer on its way out. Answers of a known length pass as they are."""

    def __init__(self, send: Send, max_waiting: int) -> None:
        self._send, self._max_waiting = send, max_waiting
        self._waiting: deque[Message] = deque()
        self._num_bytes = 0
        self._news = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None
        self._pictures = self._over = self._cut = False

    async def put(self, message: Message) -> None:
        """Takes a message at once, where the answer has no end. What is put after a cut is left out."""
        if self._sender is None and _is_endless(message):
            self._pictures = PICTURES in _header(message.get("headers", ()), b"content-type")
            self._sender = asyncio.get_running_loop().create_task(self._run())
        if self._sender is None:
            await self._send(message)
        elif not self._cut:
            self._take(message)

    async def emptied(self) -> None:
        """The answer is whole: waits until all of it is sent. Raises what sending raised."""
        self._over = True
        self._news.set()
        if self._sender is not None and not self._cut:
            await self._sender

    def close(self) -> None:
        if self._sender is not None:
            self._sender.cancel()

    def _take(self, message: Message) -> None:
        if self._pictures and self._waiting and _is_part(message) and _is_part(self._waiting[-1]):
            self._num_bytes -= _size(self._waiting.pop())       # a newer one is there
        if self._num_bytes > self._max_waiting:
            self._hang_up()
        else:
            self._waiting.append(message)
            self._num_bytes += _size(message)
        self._news.set()

    async def _run(self) -> None:
        while not self._cut:
            while self._waiting:
                message = self._waiting.popleft()
                self._num_bytes -= _size(message)
                await self._send(message)
            if self._over:
                return
            self._news.clear()
            await self._news.wait()

    def _hang_up(self) -> None:
        """Closing would wait for the client to read what was sent before: the connection is cut. The server then tells
        the application that the client is gone."""
        self._cut = True
        self._waiting.clear()
        transport = getattr(getattr(self._send, "__self__", None), "transport", None)       # of uvicorn
        if transport is not None:
            transport.abort()


def _is_endless(message: Message) -> bool:
    """Whether an answer begins that may go on for ever."""
    if message["type"] == "http.response.start":
        return not _header(message.get("headers", ()), b"content-length")
    return message["type"] == "websocket.accept"


def _is_part(message: Message) -> bool:
    """A picture; not the beginning nor the end."""
    return message["type"] == "http.response.body" and bool(message.get("body")) and bool(message.get("more_body"))


def _header(headers: Iterable[tuple[bytes, bytes]], name: bytes) -> bytes:
    return next((bytes(value) for key, value in headers if bytes(key).lower() == name), b"")


def _size(message: Message) -> int:
    return len(message.get("body") or message.get("bytes") or b"") + len(message.get("text") or "")
