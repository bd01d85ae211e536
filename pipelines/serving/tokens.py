"""Who may talk to the server: bearer tokens, and the cookie that stands for one in a browser.

In:     a file or an environment variable with tokens; what a request says of itself
Out:    the name of the token that it carries, or None
State:  SHA-256 digests of the tokens: what travels to the replicas and may lie in a core dump is no token
Limits: MAX_TOKENS of 16 to 512 letters, digits, '-', '_', '.' or '~', so that a header, a cookie and a WebSocket's
        subprotocol can all carry them; every comparison takes the same time whatever is compared

A token file has a line for each token, `NAME TOKEN` or the token alone; '#' begins a comment. The variable holds the
same, with commas for line ends. Make one by

    python -c "import secrets; print('door', secrets.token_urlsafe(32))" > tokens && chmod 600 tokens
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from operators.errors import ConfigError

log = logging.getLogger(__name__)

MAX_TOKENS = 1000
MAX_BYTES = 1 << 20
COOKIE = "maskstream"
SUBPROTOCOL = "maskstream"
"""What a WebSocket client offers beside `bearer.TOKEN`, and what the server chooses: the token is never echoed."""
BEARER_PROTOCOL = "bearer."

_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,512}")
_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_COOKIE_VALUE = re.compile(r"([0-9]{1,12})\.([0-9a-f]{64})")


@dataclass(frozen=True)
class Tokens:
    """The tokens that are let in, by their digests. Empty: nobody needs one."""

    digests: tuple[tuple[bytes, str], ...] = ()
    """(SHA-256, name) of each."""

    def __bool__(self) -> bool:
        return bool(self.digests)

    def name_of(self, token: str | None) -> str | None:
        """The name of a token that is let in, else None. All are compared, so time tells nothing of which."""
        if token is None or not _TOKEN.fullmatch(token):
            return None
        given, found = hashlib.sha256(token.encode()).digest(), None
        for digest, name in self.digests:
            if hmac.compare_digest(given, digest):
                found = name
        return found

    def cookie(self, name: str, expires_s: float) -> str:
        """The value that stands for the token of this name until `expires_s` (Unix time); it cannot be turned back."""
        (digest,) = (digest for digest, own in self.digests if own == name)
        return f"{int(expires_s)}.{_signature(digest, int(expires_s))}"

    def name_of_cookie(self, value: str | None, now_s: float | None = None) -> str | None:
        """As `name_of`, of a cookie's value; None too when it has expired."""
        match = _COOKIE_VALUE.fullmatch(value or "")
        if match is None:
            return None
        expires_s, found = int(match[1]), None
        for digest, name in self.digests:
            if hmac.compare_digest(match[2], _signature(digest, expires_s)):
                found = name
        return found if expires_s > (time.time() if now_s is None else now_s) else None


def read_tokens(file: Path | None, variable: str) -> Tokens:
    """The tokens of a file and of an environment variable, together; neither set: none.

    Raises: ConfigError for a file that cannot be read or holds none, a token that is too short or has other letters, a
    name or a token that stands there twice.
    """
    lines: list[tuple[str, str]] = []
    if file is not None:
        lines += _numbered(_read(file).splitlines(), str(file))
        if not lines:
            raise ConfigError(f"{file}: holds no token. Write a line 'NAME TOKEN' for each client.")
    if variable and os.environ.get(variable):
        lines += _numbered(os.environ[variable].split(","), f"environment variable {variable}")
    if len(lines) > MAX_TOKENS:
        raise ConfigError(f"{len(lines)} tokens were given, expected {MAX_TOKENS} at most.")
    names: dict[str, str] = {}
    digests: dict[bytes, str] = {}
    for number, (where, line) in enumerate(lines, start=1):
        name, token = _parsed(line, where, number)
        if name in names:
            raise ConfigError(f"{where}: the name '{name}' is that of {names[name]} too. Give each token its own.")
        digest = hashlib.sha256(token.encode()).digest()
        if digest in digests:
            raise ConfigError(f"{where}: '{name}' has the same token as '{digests[digest]}'. Make one for each.")
        names[name], digests[digest] = where, name
    return Tokens(tuple(digests.items()))


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            raw, mode = opened.read(MAX_BYTES + 1), os.fstat(opened.fileno()).st_mode
    except OSError as error:
        raise ConfigError(f"{file}: the tokens cannot be read: {error.strerror or error}.") from error
    if len(raw) > MAX_BYTES:
        raise ConfigError(f"{file}: larger than {MAX_BYTES} bytes. Is this a file of tokens?")
    if mode & (stat.S_IRGRP | stat.S_IROTH):  # no error: a mounted secret of Kubernetes has 0644 by default
        log.warning("%s can be read by other users of this machine; chmod 600 it.", file)
    try:
        return raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: byte {error.start} is no ASCII. Is this a file of tokens?") from error


def _numbered(lines: Iterable[str], where: str) -> list[tuple[str, str]]:
    """(place, text) of what is neither empty nor a comment."""
    stripped = [(number, line.split("#")[0].strip()) for number, line in enumerate(lines, start=1)]
    return [(f"{where}, line {number}", line) for number, line in stripped if line]


def _parsed(line: str, where: str, number: int) -> tuple[str, str]:
    """(name, token). An error never shows the token."""
    *names, token = line.split()
    if len(names) > 1 or not _TOKEN.fullmatch(token):
        raise ConfigError(f"{where}: expected 'NAME TOKEN', the token 16 to 512 letters, digits, '-', '_', '.' or '~'; "
                          f"got {len(names) + 1} words, the last of {len(token)} letters.")  # fmt: skip
    name = names[0] if names else f"token-{number}"
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a name is 1 to 64 letters, digits, '-', '_' or '.', this one is not.")
    return name, token


def _signature(digest: bytes, expires_s: int) -> str:
    return hmac.new(digest, f"{COOKIE} cookie until {expires_s}".encode(), hashlib.sha256).hexdigest()


def bearer(authorization: str | None) -> str | None:
    """The token of an Authorization header; None for none, or another scheme."""
    scheme, _, token = (authorization or "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def cookie_of(header: str | None) -> str | None:
    """Our cookie's value in a Cookie header; the first of several."""
    for pair in (header or "").split(";"):
        name, equals, value = pair.strip().partition("=")
        if equals and name == COOKIE:
            return value
    return None


def protocol_token(offered: Iterable[str]) -> str | None:
    """The token among the subprotocols that a WebSocket client offers: `bearer.TOKEN`."""
    for protocol in offered:
        if protocol.startswith(BEARER_PROTOCOL):
            return protocol[len(BEARER_PROTOCOL) :]
    return None
