"""Whether a request may pass: whose it is, where it comes from, and by which token it shows that.

In:     Asked
Out:    the name of its token ("local" where none is needed), or a Refusal: also for what the guard answers itself, a
        login or a preflight, which need be no error
State:  none
Limits: MAX_LOGIN_BYTES of a posted token
"""

from __future__ import annotations

import re
import time
from urllib.parse import quote

from pipelines.serving.asking import (
    Asked,
    Refusal,
    check_origin,
    here,
    host_name,
    is_loopback,
    login_page,
    posted_token,
)
from pipelines.serving.exchange import HttpExchange
from pipelines.serving.guard_config import GuardConfig
from pipelines.serving.tokens import COOKIE, Tokens, bearer, cookie_of, protocol_token

LOCAL = "local"
"""Name of all clients where none needs a token, and of those that ask for an open path."""
MAX_LOGIN_BYTES = 4096

_PAGE_FILE = re.compile(r"/(?:[A-Za-z0-9_-]{1,64}\.(?:html|js|css|svg))?")
"""As they lie in pipelines/serving/page/."""


class Access:
    """The rules of a GuardConfig and its tokens."""

    def __init__(self, config: GuardConfig, tokens: Tokens) -> None:
        self._config, self._tokens = config, tokens
        self._hosts = {name.lower() for name in config.hosts}

    def check_place(self, asked: Asked) -> None:
        """By which name the server was called, from which machine, for which page. Raises Refusal 403, and 204 for a
        preflight that may pass."""
        if not self._tokens and asked.client is not None and not is_loopback(asked.client):
            raise Refusal(403, "Without a token only this machine may ask. Start the server with tokens.")
        host = host_name(asked.headers.get("host"))
        known = host in self._hosts or (not self._tokens and is_loopback(host))
        if not known and (self._hosts or not self._tokens):
            shown = asked.headers.get("host", "")[:100]
            raise Refusal(403, f"This server is not called {shown!r}. List the name in guard.hosts if it is.")
        check_origin(asked, self._config.origins)
        if asked.method == "OPTIONS":
            raise Refusal(204, "")

    def max_body(self, asked: Asked) -> int:
        """Most bytes of a body."""
        config = self._config
        return config.max_upload_bytes if asked.path in config.upload_paths else config.max_body_bytes

    def check_length(self, asked: Asked) -> None:
        """What a request says of its body's length; what comes is counted again. Raises Refusal 400, 413."""
        said, most = asked.headers.get("content-length", "0"), self.max_body(asked)
        if not (said.isascii() and said.isdecimal() and len(said) <= 15):
            raise Refusal(400, "Content-Length is no number of bytes.")
        if int(said) > most:
            text = f"The body has {said} bytes, expected {most} at most."
            raise Refusal(413, text, {"connection": "close"})

    def is_open(self, asked: Asked) -> bool:
        """Whether nobody needs a token for this: probes, and the files of the page, which are the same everywhere and
        ask for the token themselves."""
        if not self._tokens or asked.is_socket:
            return not self._tokens
        is_page = asked.method in ("GET", "HEAD") and _PAGE_FILE.fullmatch(asked.path) and "token" not in asked.fields
        return bool(is_page) or asked.path in self._config.open_paths

    def name_of(self, asked: Asked) -> str:
        """Of the token that the request carries. Raises Refusal 401, and 303 to the same address without the token."""
        tokens, queried = self._tokens, asked.fields.get("token")
        carried = [bearer(asked.headers.get("authorization")), protocol_token(asked.offered), queried]
        known = [tokens.name_of(token) for token in carried]
        if known[2] is not None and asked.wants_page:
            raise Refusal(303, "", {"location": here(asked), "set-cookie": self._cookie(known[2])})
        name = next(filter(None, known), None) or tokens.name_of_cookie(cookie_of(asked.headers.get("cookie")))
        if name is None:
            begin = "A token is needed" if carried == [None] * 3 else "The token is not known here"
            said = f"{begin}. Send it as 'Authorization: Bearer TOKEN', or open /?token=TOKEN in a browser."
            page = login_page(asked) if asked.method == "GET" else ""
            raise Refusal(401, said, {"www-authenticate": 'Bearer realm="maskstream"'}, page)
        return name

    async def log_in_or_out(self, asked: Asked, exchange: HttpExchange) -> None:
        """Answers POST /login and POST /logout, by a Refusal; all else passes."""
        if not self._tokens or asked.method != "POST" or asked.path not in ("/login", "/logout"):
            return
        if asked.path == "/logout":
            raise Refusal(204, "", {"set-cookie": f"{COOKIE}=; Max-Age=0; {self._attributes}"})
        body, more = b"", True
        while more and len(body) <= MAX_LOGIN_BYTES:
            message = await exchange.receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        kind = asked.headers.get("content-type", "")
        name = None if more else self._tokens.name_of(posted_token(body, kind))
        if name is None:
            raise Refusal(401, "The token is not known here.", page=login_page(asked))
        to = {"set-cookie": self._cookie(name)} | ({} if "json" in kind else {"location": quote(asked.root) + "/"})
        raise Refusal(204 if "json" in kind else 303, "", to)

    def _cookie(self, name: str) -> str:
        seconds = int(3600 * self._config.cookie_hours)
        return f"{COOKIE}={self._tokens.cookie(name, time.time() + seconds)}; Max-Age={seconds}; {self._attributes}"

    @property
    def _attributes(self) -> str:
        return "Path=/; HttpOnly; SameSite=Strict" + ("; Secure" if self._config.https else "")
