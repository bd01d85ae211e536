"""What a request says of itself, read with suspicion; and why it is refused.

In:     an ASGI scope of type http or websocket
Out:    Asked, whose headers, path and query have been looked through; or a Refusal with what to answer
State:  none
Limits: MAX_HEADERS headers, MAX_PATH and MAX_QUERY bytes; a header on which safety hangs may stand there once
"""

from __future__ import annotations

import html
import ipaddress
import json
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, quote, unquote_plus

MAX_HEADERS = 100
MAX_PATH = 2048
MAX_QUERY = 8192
MAX_FIELDS = 64
METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
ONCE = ("host", "origin", "authorization", "content-length", "content-type", "sec-fetch-site", "sec-fetch-mode")
"""Two of these would let one reader see the first and another the second."""

LOGIN_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>Maskstream</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<h1>Maskstream</h1><p>This server asks for a token.</p>
<form method="post" action="{action}"><label>Token <input type="password" name="token" autocomplete="current-password"
 autofocus required></label> <button>Open</button></form></html>
"""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_REQUEST_ID = re.compile(r"[A-Za-z0-9-]{8,64}")


class Refusal(Exception):
    """A request that does not reach the app: what is answered. Mostly why not; a login and a redirect come so too."""

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None, page: str = "") -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, dict(headers or {})
        self.page = page
        """HTML that is answered instead of the text as JSON."""


@dataclass(frozen=True)
class Asked:
    """A request as the guard sees it."""

    is_socket: bool
    method: str
    path: str
    """Decoded, below `root`; has no control character, no '..' between its slashes."""
    query: str
    """As it came, percent-encoded."""
    headers: Mapping[str, str]
    """Names in lower case; of a repeated one the first."""
    client: str | None
    """Address of the other end of the connection, if it is known."""
    offered: tuple[str, ...] = ()
    """Subprotocols of a WebSocket."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """Of the query, decoded; of a repeated one the first."""
    root: str = ""
    """Where the app lies on its server: Ray Serve's route_prefix."""

    @property
    def accepts_page(self) -> bool:
        """A browser shows a person what is answered."""
        return not self.is_socket and "text/html" in self.headers.get("accept", "")

    @property
    def wants_page(self) -> bool:
        """A person opened this address in a browser."""
        return self.method == "GET" and self.accepts_page


def read_request(scope: Mapping[str, Any], max_header_bytes: int) -> Asked:
    """Raises Refusal for what no honest client sends."""
    is_socket = scope["type"] == "websocket"
    method = "GET" if is_socket else str(scope["method"])
    if method not in METHODS:
        raise Refusal(405, f"There is no {method[:20]!r} here; use one of {', '.join(METHODS)}.",
                      {"allow": ", ".join(METHODS)})  # fmt: skip
    client = scope.get("client")
    path, query = _checked_path(str(scope["path"])), _text(scope.get("query_string", b""))
    root = str(scope.get("root_path") or "").rstrip("/")
    if root and (path == root or path.startswith(f"{root}/")):
        path = path.removeprefix(root) or "/"
    if len(query) > MAX_QUERY or _CONTROL.search(query):
        raise Refusal(414, f"The address has {len(query)} letters after its '?', expected {MAX_QUERY} at most.")
    return Asked(
        is_socket=is_socket,
        method=method,
        path=path,
        query=query,
        headers=_read_headers(scope["headers"], max_header_bytes),
        client=str(client[0]) if client else None,
        offered=tuple(map(str, scope.get("subprotocols") or ())),
        fields=_fields(query),
        root=root,
    )


def given_id(pairs: Iterable[tuple[bytes, bytes]]) -> str | None:
    """What Ray Serve calls a request, in its own log and to the client; None for none, and for what is no such id."""
    for name, value in pairs:
        if bytes(name).lower() == b"x-request-id":
            return _text(value) if _REQUEST_ID.fullmatch(_text(value)) else None
    return None


def _checked_path(path: str) -> str:
    if len(path) > MAX_PATH:
        raise Refusal(414, f"The path has {len(path)} letters, expected {MAX_PATH} at most.")
    if _CONTROL.search(path) or "\\" in path or ".." in path.split("/") or not path.startswith("/"):
        raise Refusal(400, "The path holds '..', a backslash or a control character; none of them is in any path here.")
    return path


def _read_headers(pairs: Collection[tuple[bytes, bytes]], max_bytes: int) -> dict[str, str]:
    size = sum(len(name) + len(value) for name, value in pairs)
    if size > max_bytes or len(pairs) > MAX_HEADERS:
        raise Refusal(431, f"{len(pairs)} headers of {size} bytes, expected {MAX_HEADERS} of {max_bytes} at most.")
    headers: dict[str, str] = {}
    for raw_name, raw_value in pairs:
        name, value = _text(raw_name).lower(), _text(raw_value)
        if name in headers and name in ONCE:
            raise Refusal(400, f"The header '{name}' stands there twice; expected it once.")
        headers.setdefault(name, value)
    return headers


def _fields(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FIELDS, errors="replace")
    except ValueError as error:
        raise Refusal(400, f"The address has too many fields, expected {MAX_FIELDS} at most.") from error
    fields: dict[str, str] = {}
    for name, value in pairs:
        fields.setdefault(name, value)
    return fields


def without_field(query: str, name: str) -> str:
    """A query without one of its fields; all others byte for byte as they were."""
    return "&".join(part for part in query.split("&") if unquote_plus(part.partition("=")[0]) != name)


def here(asked: Asked) -> str:
    """The address that was asked for, without its token; a path alone, never another host as in '//elsewhere/'."""
    query = without_field(asked.query, "token")
    return quote(asked.root) + "/" + quote(asked.path.lstrip("/")) + (f"?{query}" if query else "")


def login_page(asked: Asked) -> str:
    """What asks a person for the token; "" for a program."""
    return LOGIN_PAGE.format(action=html.escape(quote(asked.root)) + "/login") if asked.accepts_page else ""


def posted_token(body: bytes, content_type: str) -> str | None:
    """The `token` of a form or of a JSON object; None for whatever else was sent."""
    if "json" in content_type.lower():
        try:
            said = json.loads(body)
        except (ValueError, RecursionError):
            return None
        token = said.get("token") if isinstance(said, dict) else None
        return token if isinstance(token, str) else None
    try:
        fields = parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except (ValueError, UnicodeDecodeError):
        return None
    return dict(fields).get("token")


# ------------------------------------------------------------------------------------------------- hosts and origins


def host_name(header: str | None) -> str | None:
    """The name in a Host header, without its port, in lower case: 'localhost:8000' and '[::1]:8000' give 'localhost'
    and '::1'. None for what is no host."""
    match = _HOST.fullmatch((header or "").lower())
    return (match["v6"] or match["name"]).rstrip(".") or None if match else None


_HOST = re.compile(r"(?:\[(?P<v6>[0-9a-f:.%]{2,64})\]|(?P<name>[a-z0-9._-]{1,253}))(?::[0-9]{1,5})?")


def is_loopback(name: str | None) -> bool:
    """Whether a host name or address is this machine's own. Nothing is looked up: names lie."""
    if name == "localhost":
        return True
    try:
        address = ipaddress.ip_address(name or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def check_origin(asked: Asked, origins: Collection[str]) -> None:
    """A browser that asks on behalf of another page is refused, unless its origin is listed; so is a link to an image
    or a socket from there. A person who follows a link from elsewhere may look. Raises Refusal 403."""
    origin = asked.headers.get("origin")
    if origin is not None:
        if origin in origins or _same_place(origin, asked.headers.get("host")):
            return
        raise Refusal(403, f"Pages of {origin[:200]!r} may not ask this server. List it in guard.origins if they may.")
    site = asked.headers.get("sec-fetch-site", "none")
    opened = asked.method in ("GET", "HEAD") and asked.headers.get("sec-fetch-mode") == "navigate"
    if site not in ("none", "same-origin") and not opened and not origins:
        raise Refusal(403, "Another page asked for this; it may not. List its origin in guard.origins if it may.")


def _same_place(origin: str, host: str | None) -> bool:
    scheme, separator, place = origin.partition("://")
    return bool(separator) and scheme in ("http", "https") and host is not None and place.lower() == host.lower()


def _text(raw: bytes) -> str:
    return bytes(raw).decode("latin-1")
