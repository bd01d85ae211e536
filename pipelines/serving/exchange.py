"""One request or WebSocket on its way through the guard: what the app reads is bounded, what it says is made safe.

In:     the server's `receive` and `send`, and the bounds
Out:    the same two for the app: a body that is too long or too slow, and a message that is too large or one too many,
        end the exchange with a clear answer, whatever the app then does
State:  how far the exchange is
Limits: nothing is kept of a body; of an answer that is watched MAX_WATCHED bytes
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from pipelines.serving.asking import Refusal
from pipelines.serving.limits import Bucket
from pipelines.serving.tokens import BEARER_PROTOCOL, SUBPROTOCOL

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

MAX_WATCHED = 64 << 10
TOO_LARGE, TOO_MANY, BROKEN, REFUSED = 1009, 1008, 1011, 1008
"""Close codes of a WebSocket."""


class HttpExchange:
    """A request and its answer."""

    def __init__(self, receive: Receive, send: Send, max_body: int, timeout_s: float,
                 headers: Iterable[tuple[bytes, bytes]], watch: bool = False) -> None:  # fmt: skip
        """`headers` go with every answer; `watch` keeps the beginning of the answer's body in `said`."""
        self._receive, self._send = receive, send
        self._max_body, self._timeout_s = max_body, timeout_s
        self._headers, self._watch = tuple(headers), watch
        self._received, self._more = 0, True
        self._silent = False
        self.verdict: Refusal | None = None
        """The request broke a bound: this is the answer."""
        self.status: int | None = None
        """Of the answer that was begun."""
        self.said = b""
        self.gone = False
        """The client hung up."""

    async def receive(self) -> Message:
        """The next part of the body. Raises Refusal."""
        if not self._more:
            message = await self._receive()
        else:
            try:
                message = await asyncio.wait_for(self._receive(), self._timeout_s)
            except asyncio.TimeoutError:
                self._refuse(408, f"Nothing came of the body for {self._timeout_s:g} s.")
        if message["type"] == "http.disconnect":
            self._more, self.gone = False, True
        else:
            self._received += len(message.get("body", b""))
            self._more = bool(message.get("more_body", False))
            if self._received > self._max_body:
                self._refuse(413, f"The body has more than {self._max_body} bytes, the most that is taken here.")
        return message

    def _refuse(self, status: int, text: str) -> None:
        self._more = False
        self.verdict = Refusal(status, text, {"connection": "close"})
        raise self.verdict

    async def send(self, message: Message) -> None:
        if self._silent or (self.verdict is not None and self.status is None):
            return                                              # what the app makes of a bound that was broken
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = list(message.get("headers", ()))
            there = {bytes(name).lower() for name, _ in own}
            message = {**message, "headers": own + [pair for pair in self._headers if pair[0] not in there]}
        elif self._watch and len(self.said) < MAX_WATCHED:
            self.said += bytes(message.get("body", b""))[: MAX_WATCHED - len(self.said)]
        await self._send(message)

    @property
    def answered(self) -> bool:
        """The app has said something, or nobody is there to be told."""
        return self.status is not None or self.gone

    async def answer(self, refusal: Refusal) -> None:
        """Say why; where the app has begun to answer, nothing more is said, and the connection is cut."""
        self._silent = True
        if self.status is None:
            self.status = refusal.status
            for message in as_messages(refusal, self._headers):
                await self._send(message)


class SocketExchange:
    """A WebSocket."""

    def __init__(self, receive: Receive, send: Send, max_message: int, bucket: Bucket, offered: tuple[str, ...],
                 extensions: Iterable[str], headers: Iterable[tuple[bytes, bytes]]) -> None:  # fmt: skip
        """`bucket` counts messages of the client; `offered`: its subprotocols; `extensions`: what the server can do."""
        self._receive, self._send = receive, send
        self._max_message, self._bucket = max_message, bucket
        self._chosen = SUBPROTOCOL if SUBPROTOCOL in offered else None
        self._can_answer = "websocket.http.response" in extensions
        self._headers = tuple(headers)
        self._accepted = self._over = False
        self.gone = False
        """The client hung up, or was hung up on."""
        self.verdict: Refusal | None = None     # a bound that is broken is told at once

    async def receive(self) -> Message:
        """The client's next message; after a broken bound the app is told that the client has gone."""
        message = await self._receive()
        if message["type"] == "websocket.disconnect":
            self.gone = self._over = True
        if message["type"] != "websocket.receive":
            return message
        size = len(message.get("bytes") or b"") or len((message.get("text") or "").encode(errors="replace"))
        if size > self._max_message:
            return await self._end(TOO_LARGE, f"a message of {size} bytes, expected {self._max_message} at most")
        if not self._bucket.take():
            return await self._end(TOO_MANY, f"more than {self._bucket.rate:g} messages a second")
        return message

    async def send(self, message: Message) -> None:
        if self._over:
            return
        kind = message["type"]
        if kind == "websocket.accept":
            self._accepted = True
            if self._chosen and not message.get("subprotocol"):
                message = {**message, "subprotocol": self._chosen}
        elif kind == "websocket.close":
            self._over = True
        await self._send(message)

    @property
    def answered(self) -> bool:
        """As of a request; one that was accepted and left open is closed by the server."""
        return self._accepted or self._over

    async def _end(self, code: int, reason: str) -> Message:
        if not self._over:
            self._over = self.gone = True        # so what the app makes of it is no error
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
        return {"type": "websocket.disconnect", "code": code, "reason": reason}

    async def answer(self, refusal: Refusal) -> None:
        """Say why: before the WebSocket is open by an answer over HTTP, else by its close."""
        if self._over:
            return
        self._over = True
        if not self._accepted and self._can_answer:
            for message in as_messages(refusal, self._headers):
                await self._send({**message, "type": f"websocket.{message['type']}"})
            return
        code = BROKEN if refusal.status >= 500 else REFUSED
        await self._send({"type": "websocket.close", "code": code, "reason": refusal.text.encode()[:120].decode(
            errors="ignore")})  # fmt: skip


def as_messages(refusal: Refusal, headers: Iterable[tuple[bytes, bytes]]) -> list[Message]:
    """A Refusal as an answer: JSON with `error`, its page, or what its headers say alone."""
    if refusal.page:
        body, kind = refusal.page.encode(), b"text/html; charset=utf-8"
    elif refusal.text:
        body, kind = json.dumps({"error": refusal.text}).encode(), b"application/json"
    else:
        body, kind = b"", b""
    own = [(b"content-length", str(len(body)).encode())] + ([(b"content-type", kind)] if kind else [])
    own += [(name.lower().encode(), value.encode("latin-1")) for name, value in refusal.headers.items()]
    there = {name for name, _ in own}
    start = {
        "type": "http.response.start",
        "status": refusal.status,
        "headers": own + [pair for pair in headers if pair[0] not in there],
    }
    return [start, {"type": "http.response.body", "body": body, "more_body": False}]


def without_tokens(offered: Iterable[str]) -> list[str]:
    """The subprotocols that the app may see."""
    return [protocol for protocol in offered if not protocol.startswith(BEARER_PROTOCOL)]
