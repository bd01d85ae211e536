"""A GET request, made by hand: so that every address that it ends at is checked, and no wait is without end.

In:     an Address of http or https
Out:    Response: status, headers, and a body that is read as it comes
State:  a connection a response
Limits: MAX_REDIRECTS; header lines and counts of http.client; credentials go to the site that they were given for alone
Source: RFC 9110 and 9112 (HTTP), 7616 (digest), 7617 (basic)
"""

from __future__ import annotations

import base64
import http.client
import io
import secrets
import time
from hashlib import md5, sha256
from urllib.parse import urljoin
from urllib.request import parse_http_list, parse_keqv_list

from operators.errors import SourceError
from operators.live.addresses import Address, AllowList, parse
from operators.live.states import CameraConfig, Refused
from operators.live.stop import Stop
from operators.live.wire import Wire, connect

MAX_REDIRECTS = 5
CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)


class Response:
    """The answer to a GET. `where` is the address that gave it, after all redirects."""

    def __init__(self, where: Address, answer: http.client.HTTPResponse, wire: Wire) -> None:
        self.where, self.wire = where, wire
        self._answer = answer
        self._head = b""
        self.kind = (answer.getheader("Content-Type") or "").partition(";")[0].strip().lower()
        self.length: int | None = answer.length
        """Bytes of the body, where the server says."""
        self._came = 0

    @property
    def until_s(self) -> float:
        """When a read gives up at the latest, by the monotonic clock."""
        return self.wire.until_s

    @until_s.setter
    def until_s(self, until_s: float) -> None:
        self.wire.until_s = until_s

    def read(self, count: int) -> bytes:
        """The bytes at hand, at least one; b"" at the end. Raises SourceError where none comes in time, Stopped."""
        if self._head:
            taken, self._head = self._head[:count], self._head[count:]
            return taken
        try:
            data = self._answer.read1(count)
        except (http.client.HTTPException, ValueError) as error:
            raise SourceError(f"{self.where.public}: the answer breaks off ({type(error).__name__}).") from error
        self._came += len(data)
        if not data and self._came < (self.length or 0):
            raise SourceError(f"{self.where.public}: the answer breaks off after {self._came} of {self.length} bytes.")
        return data

    def peek(self) -> bytes:
        """The first bytes, which `read` gives all the same; b"" of an empty body."""
        self._head = self._head or self.read(CHUNK)
        return self._head

    def all(self, most: int, until_s: float) -> bytes:
        """The whole body. Raises SourceError for one of more than `most` bytes, and where it is not done in time."""
        self.until_s = until_s
        parts: list[bytes] = []
        total = 0
        while data := self.read(CHUNK):
            parts.append(data)
            total += len(data)
            if total > most:
                raise SourceError(f"{self.where.public}: the answer has more than the {most} bytes allowed.")
        return b"".join(parts)

    def close(self) -> None:
        """Give the connection back. Closing twice is harmless."""
        self._answer.close()
        self.wire.close()


class Getter:
    """Makes requests for one source, under its allow list and its times."""

    def __init__(self, config: CameraConfig, allow: AllowList, stop: Stop) -> None:
        self._config, self._allow, self._stop = config, allow, stop

    def get(self, address: Address, *, begin: int | None = None, count: int | None = None) -> Response:
        """The answer to a GET, of `count` bytes from byte `begin` if these are given.

        Raises SourceError for an answer that is no success, Refused for one that wants other credentials, NotAllowed
        for a redirect to an address that is not listed, Stopped.
        """
        where = address
        headers = {} if begin is None else {"Range": f"bytes={begin}-{'' if count is None else begin + count - 1}"}
        for _ in range(MAX_REDIRECTS + 1):
            response = self._authorised(where, headers)
            location = response._answer.getheader("Location")
            status = response._answer.status
            if status in REDIRECTS and location:
                response.close()
                where = redirected(where, location)
                continue
            if status == 200 and begin:         # all of it, though a part was asked for
                response.close()
                raise SourceError(f"{where.public}: the server gives no parts of files.")
            if status not in (200, 206):
                response.close()
                raise SourceError(f"{where.public}: the server answers {status} {response._answer.reason[:60]!r}.")
            return response
        raise SourceError(f"{address.public}: more than {MAX_REDIRECTS} redirects.")

    def _authorised(self, where: Address, headers: dict[str, str]) -> Response:
        """One request, and a second one where the server wants to see credentials that we have."""
        response = self._request(where, headers)
        if response._answer.status != 401:
            return response
        challenge = response._answer.getheader("WWW-Authenticate") or ""
        response.close()
        credentials = authorization(where, challenge)
        if credentials is not None:
            response = self._request(where, {**headers, "Authorization": credentials})
            if response._answer.status != 401:
                return response
            response.close()
        raise Refused(f"{where.public}: the server refuses "
                      f"{'the credentials' if credentials else 'a request without credentials that it knows'} (401).")

    def _request(self, where: Address, headers: dict[str, str]) -> Response:
        cfg = self._config
        endpoints = self._allow.endpoints(where)
        wire = connect(endpoints, self._stop, cfg.connect_s, cfg.silence_s, where.public)
        try:
            if where.scheme == "https":
                wire.secure(where.host, time.monotonic() + cfg.connect_s, cfg.verify_tls)
            wire.until_s = time.monotonic() + cfg.silence_s      # for headers that drip
            lines = [f"GET {where.path} HTTP/1.1", f"Host: {where.site}", "User-Agent: maskstream", "Accept: */*",
                     "Accept-Encoding: identity", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in headers.items()]
            wire.sendall("\r\n".join([*lines, "", ""]).encode("latin-1", "replace"))
            answer = http.client.HTTPResponse(_Socket(wire), method="GET")
            answer.begin()
            wire.until_s = float("inf")
            return Response(where, answer, wire)
        except (http.client.HTTPException, ValueError) as error:
            wire.close()
            raise SourceError(f"{where.public}: the answer is no HTTP ({type(error).__name__}).") from error
        except BaseException:
            wire.close()
            raise


class _Socket:
    """As much of a socket as http.client asks for."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(self._wire, CHUNK)


def redirected(where: Address, location: str) -> Address:
    """Where an answer or a playlist of `where` leads; credentials stay with their site. Raises NotAllowed for what is
    no address of http or https."""
    base = f"{where.scheme}://{where.site}{where.path}"
    to = parse(urljoin(base, location.strip()))
    if to.scheme not in ("http", "https"):
        raise SourceError(f"{where.public}: leads to an address of {to.scheme}, expected one of http or https.")
    same = (to.scheme, to.host, to.port) == (where.scheme, where.host, where.port)
    if same and to.user is None:
        return Address(to.scheme, to.host, to.port, to.path, where.user, where.password)
    return to


def authorization(where: Address, challenge: str) -> str | None:
    """The header that answers a challenge (WWW-Authenticate); None without credentials, or for an unknown scheme."""
    if where.user is None:
        return None
    user, password = where.user, where.password or ""
    kind, _, rest = challenge.partition(" ")
    if kind.lower() == "basic":
        return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
    if kind.lower() != "digest":
        return None
    try:
        return _digest(where, user, password, parse_keqv_list(parse_http_list(rest)))
    except (KeyError, ValueError, IndexError):
        return None                         # a challenge that is none


def _digest(where: Address, user: str, password: str, fields: dict[str, str]) -> str | None:
    """Raises KeyError for a challenge that lacks something."""
    realm, nonce, opaque = fields["realm"], fields["nonce"], fields.get("opaque", "")
    algorithm = fields.get("algorithm", "MD5")
    digest = {"MD5": md5, "SHA-256": sha256}.get(algorithm.upper())
    if digest is None or any(char in realm + nonce + opaque for char in '"\r\n'):
        return None

    def hashed(*parts: str) -> str:
        return digest(":".join(parts).encode()).hexdigest()

    login, request = hashed(user, realm, password), hashed("GET", where.path)
    shown = user.replace("\\", "\\\\").replace('"', '\\"')
    answer = {"username": shown, "realm": realm, "nonce": nonce, "uri": where.path}
    plain = f", algorithm={algorithm}"
    if "auth" in [word.strip() for word in fields.get("qop", "").split(",")]:
        answer["cnonce"], count = secrets.token_hex(8), "00000001"
        answer["response"] = hashed(login, nonce, count, answer["cnonce"], "auth", request)
        plain += f", qop=auth, nc={count}"
    else:
        answer["response"] = hashed(login, nonce, request)
    if opaque:
        answer["opaque"] = opaque
    return "Digest " + ", ".join(f'{name}="{value}"' for name, value in answer.items()) + plain
