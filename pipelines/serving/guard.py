"""The guard in front of the app: plain ASGI, so it stands before anything that speaks it, and knows nothing of Serve.

In:     every request and WebSocket, as the server gives it
Out:    what may pass, to the app; an answer of {"error": "<sentence>"} to all else, and to whatever the app raises
State:  what each token uses (limits.py)
Limits: GuardConfig; those per token are of one process of the ingress

    app = guard(app, config, bound_to="127.0.0.1")      # the one call; a FastAPI app stays a FastAPI app

A request passes, in this order: it is well formed; without tokens it comes from this machine; the name in its Host
header is ours (a page of elsewhere can give its own name this machine's address); it does not come from another site's
page; it carries a token; the token's limits hold. A token is carried by

    Authorization: Bearer TOKEN            programs
    a cookie, HttpOnly, SameSite=Strict    browsers, once POST /login (form or JSON `token`) or `/?token=TOKEN` has set
                                           it; the address is then asked for again without the token
    ?token=TOKEN                           players that can do no better: <img>, EventSource, ffmpeg, a WebSocket
    subprotocols maskstream, bearer.TOKEN  a WebSocket of a page elsewhere

The app sees neither `?token=` nor the subprotocol. `scope["state"]["client"]` holds the token's name ("local" where
none is needed), `scope["state"]["request_id"]` what the log and the header X-Request-ID call the request.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeVar
from urllib.parse import unquote

from operators.errors import ConfigError
from pipelines.serving.access import LOCAL, Access
from pipelines.serving.asking import Asked, Refusal, given_id, is_loopback, read_request, without_field
from pipelines.serving.exchange import HttpExchange, Message, Receive, Send, SocketExchange, without_tokens
from pipelines.serving.guard_config import GuardConfig
from pipelines.serving.limits import Bucket, Usage, Usages
from pipelines.serving.tokens import Tokens, read_tokens

__all__ = ["Guard", "GuardConfig", "check_bound_to", "guard"]

log = logging.getLogger(__name__)
App = TypeVar("App")
Pairs = tuple[tuple[bytes, bytes], ...]
Exchange = HttpExchange | SocketExchange
Streams = Callable[[], Awaitable[Collection[str] | None]]
"""Gives the ids of all streams that are registered now; None where nobody can say."""

SAFE_HEADERS = {
    # Everything is the server's own, nothing is inline: a name of a camera can hold no script that runs.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; font-src 'self'; "
    "img-src 'self' data: blob:; media-src 'self' blob:; connect-src 'self'; manifest-src 'self'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",   # 'no-referrer' would have browsers send 'Origin: null' with our own form
    "cross-origin-opener-policy": "same-origin",
    "permissions-policy": "geolocation=(), microphone=()",
    "cache-control": "no-store",
}
"""Sent with every answer that does not say otherwise itself."""


def guard(
    app: App, config: GuardConfig, bound_to: str | None = None, streams: Streams | None = None
) -> App | Guard:
    """The app behind a guard. Tokens are read here, once; only their digests travel on with the app.

    An app that takes middleware (FastAPI, Starlette) is given the guard as its outermost and returned itself, so that
    `serve.ingress` still finds its routes; any other ASGI app is wrapped. `bound_to`: the address that the server will
    listen on, http_options.host of a Serve file. `streams` is asked before a token is told that it has too many: some
    may have gone otherwise than through this guard. Call it last, and before the app is handed to Serve.
    Raises: ConfigError for tokens that cannot be read, or that are missing where `bound_to` is not this machine alone.
    """
    tokens = read_tokens(config.token_file, config.token_env)
    if bound_to is not None:
        check_bound_to(bound_to, tokens)
    if hasattr(app, "add_middleware"):
        app.add_middleware(Guard, config=config, tokens=tokens, streams=streams)
        return app
    return Guard(app, config, tokens, streams)


def check_bound_to(address: str, tokens: Tokens) -> None:
    """Raises ConfigError where others than this machine could ask without a token."""
    if not tokens and not is_loopback(address.strip("[]")):
        raise ConfigError(
            f"the server is to listen on {address}, where others can reach it, and no token is asked for. Name a file "
            f"of tokens (guard.token_file; pipelines/serving/tokens.py says how to make one), or listen on 127.0.0.1."
        )


class Guard:
    """ASGI middleware; see the top of this file."""

    def __init__(self, app: Any, config: GuardConfig, tokens: Tokens, streams: Streams | None = None) -> None:
        self._app, self._config, self._streams = app, config, streams
        self._access = Access(config, tokens)
        self._usages = Usages(config.max_requests_per_s, config.max_messages_per_s)
        self._to_log = Bucket(rate=5, burst=20)     # refusals that are logged: nobody shall fill the disk with them
        safe = dict(SAFE_HEADERS)
        safe["cross-origin-resource-policy"] = "cross-origin" if config.origins else "same-origin"
        if config.https:
            safe["strict-transport-security"] = "max-age=31536000"
        self._safe = _as_pairs(safe)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        given = given_id(scope["headers"])
        request_id = given or secrets.token_hex(8)
        headers = self._safe if given else (*self._safe, (b"x-request-id", request_id.encode()))
        try:
            asked = read_request(scope, self._config.max_header_bytes)
            headers += self._cors(asked)
            name = await self._admitted(asked, receive, send)
            usage = self._usages.of(name)
            await self._count_again(usage, asked)
            self._check_usage(usage, name, asked)
        except Refusal as refusal:
            self._tell_log(scope, request_id, refusal)
            await self._bare(scope, receive, send, headers).answer(refusal)
            return
        except Exception as error:  # no client shall find one, and none shall tell it how
            refusal = _broken(request_id, str(scope.get("path")), f"guard raised {type(error).__name__}", error)
            await self._bare(scope, receive, send, headers).answer(refusal)
            return
        exchange = self._exchange(scope, asked, receive, send, headers, usage)
        usage.open += 1
        try:
            await self._run(self._as_seen(scope, asked, name, request_id), asked, exchange, usage, request_id)
        finally:
            usage.open -= 1

    async def _admitted(self, asked: Asked, receive: Receive, send: Send) -> str:
        """The name of who asks. Raises Refusal."""
        self._access.check_place(asked)
        self._access.check_length(asked)
        if self._access.is_open(asked):
            return LOCAL
        if not asked.is_socket:
            body = HttpExchange(receive, send, self._config.max_body_bytes, self._config.body_timeout_s, ())
            await self._access.log_in_or_out(asked, body)
        return self._access.name_of(asked)

    async def _count_again(self, usage: Usage, asked: Asked) -> None:
        """Of a token that has as many streams as it may, those that are there no more do not count: they were removed
        through another process of the ingress, or the settings name them no more."""
        if self._streams is None or not _registers(asked):
            return
        if len(usage.streams) + usage.registering >= self._config.max_streams:
            counted = frozenset(usage.streams)          # not those that are registered meanwhile
            there = await self._streams()
            usage.streams -= counted.difference(counted if there is None else there)

    def _check_usage(self, usage: Usage, name: str, asked: Asked) -> None:
        if asked.path in self._config.open_paths:   # who is busy is not ill: a probe is always answered
            return
        whose = "this server" if name == LOCAL else f"the token '{name}'"
        if not usage.requests.take():
            raise Refusal(429, f"More than {usage.requests.rate:g} requests a second to {whose}.", {"retry-after": "1"})
        if usage.open >= self._config.max_open:
            raise Refusal(429, f"{usage.open} requests and WebSockets of {whose} are open, the most it may have. Close "
                          f"one first.", {"retry-after": "5"})  # fmt: skip
        if _registers(asked) and len(usage.streams) + usage.registering >= self._config.max_streams:
            raise Refusal(429, f"{len(usage.streams)} streams of {whose} are registered, the most it may have. Remove "
                          f"one first.")  # fmt: skip

    def _cors(self, asked: Asked) -> Pairs:
        origin = asked.headers.get("origin")
        if origin not in self._config.origins:
            return ()
        return _as_pairs({
            "access-control-allow-origin": origin,
            "access-control-allow-methods": "GET, POST, DELETE",
            "access-control-allow-headers": "Authorization, Content-Type",
            "access-control-expose-headers": "X-Request-ID, X-Frame-Index, X-Video-Frames, X-Video-Damaged, "
            "X-Video-Dropped, X-Video-Error",
            "access-control-max-age": "600",
            "vary": "Origin",
        })  # fmt: skip

    def _exchange(self, scope: Message, asked: Asked, receive: Receive, send: Send, headers: Pairs, usage: Usage
                  ) -> Exchange:  # fmt: skip
        config = self._config
        if not asked.is_socket:
            return HttpExchange(receive, send, self._access.max_body(asked), config.body_timeout_s, headers,
                                watch=_registers(asked))  # fmt: skip
        return SocketExchange(receive, send, config.max_message_bytes, usage.messages, asked.offered,
                              tuple(scope.get("extensions") or ()), headers)  # fmt: skip

    def _bare(self, scope: Message, receive: Receive, send: Send, headers: Pairs) -> Exchange:
        """To say no with, before anything is known of what was asked."""
        if scope["type"] == "http":
            return HttpExchange(receive, send, 0, 1.0, headers)
        return SocketExchange(receive, send, 0, Bucket(1, 1), (), tuple(scope.get("extensions") or ()), headers)

    def _as_seen(self, scope: Message, asked: Asked, name: str, request_id: str) -> Message:
        """The scope that the app is given: without a token in its address."""
        state = {**(scope.get("state") or {}), "client": name, "request_id": request_id}
        seen = {**scope, "state": state, "query_string": without_field(asked.query, "token").encode("latin-1")}
        if asked.is_socket:
            seen["subprotocols"] = without_tokens(asked.offered)
        return seen

    async def _run(self, scope: Message, asked: Asked, exchange: Exchange, usage: Usage, request_id: str) -> None:
        """The app, whose exceptions end here."""
        refusal = None
        usage.registering += _registers(asked)
        try:
            await self._app(scope, exchange.receive, exchange.send)
            if not exchange.answered and exchange.verdict is None:
                refusal = _broken(request_id, asked.path, "app gave no answer")
        except Refusal as bound_broken:
            refusal = bound_broken
        except Exception as error:
            if exchange.verdict is None and not exchange.gone:
                refusal = _broken(request_id, asked.path, f"app raised {type(error).__name__}", error)
        finally:
            usage.registering -= _registers(asked)
        if refusal := refusal or exchange.verdict:
            await exchange.answer(refusal)
        if isinstance(exchange, HttpExchange):
            self._note_streams(asked, exchange, usage)

    def _note_streams(self, asked: Asked, exchange: HttpExchange, usage: Usage) -> None:
        """Which streams the token has, by what the app answered."""
        if _registers(asked) and exchange.status == 201:
            if (stream := _id_of(exchange.said)) is not None:
                usage.streams.add(stream)
        elif asked.method == "DELETE" and asked.path.startswith("/streams/"):
            if exchange.status in (200, 202, 204, 404):
                self._usages.removed(unquote(asked.path.removeprefix("/streams/")))

    def _tell_log(self, scope: Mapping[str, Any], request_id: str, refusal: Refusal) -> None:
        """Without the query, which may hold a token."""
        if refusal.status >= 400 and self._to_log.take():
            client = (scope.get("client") or ("?",))[0]
            path = str(scope.get("path", ""))[:200]
            log.warning("request %s: refused %r from %s: %d %s", request_id, path, client, refusal.status, refusal.text)


def _registers(asked: Asked) -> bool:
    return asked.method == "POST" and asked.path == "/streams"


def _broken(request_id: str, path: str, what: str, error: Exception | None = None) -> Refusal:
    """The whole story to the log, no word of it to the client."""
    log.error("request %s: %r: the %s", request_id, path[:200], what, exc_info=error)
    return Refusal(500, f"Something went wrong here. The server's log says what, under request {request_id}.")


def _id_of(body: bytes) -> str | None:
    """The `id` of a Status; None for what is none."""
    try:
        status = json.loads(body)
    except (ValueError, RecursionError):
        return None
    stream = status.get("id") if isinstance(status, dict) else None
    return stream if isinstance(stream, str) else None


def _as_pairs(headers: Mapping[str, str]) -> Pairs:
    return tuple((name.encode(), value.encode("latin-1")) for name, value in headers.items())
