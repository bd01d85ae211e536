"""Which addresses a server may be told to pull: schemes, hosts and ports that are listed, and nothing else.

In:     a URL as somebody typed or sent it
Out:    Address, taken apart once for all who use it; the network addresses to connect to, each checked; or NotAllowed
State:  none. Names are resolved at every connection anew, and only addresses that were checked are connected to: a name
        that changes its mind between check and connection gains nothing
Limits: URLs of MAX_URL characters
Source: RFC 3986 (URLs); RFC 4291, 3056, 4380 and 6052 (IPv4 addresses inside IPv6 ones); IANA's registries of addresses
        for special purposes

FFmpeg is never given a URL of somebody else's: it would resolve, redirect and open what a playlist names by itself.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from dataclasses import dataclass
from typing import Literal, NamedTuple
from urllib.parse import unquote, urlsplit

from operators.errors import ConfigError, SourceError, did_you_mean

MAX_URL = 4096
DEFAULT_PORTS = {"rtsp": 554, "http": 80, "https": 443, "tcp": None, "udp": None}
"""Schemes of the network, and the ports they have of their own."""
TRANSPORTS = {"rtspu": "udp", "rtspt": "tcp"}
"""RTSP whose pictures are to travel so, whatever the settings say: as GStreamer writes it."""
LOCAL = ("file", "v4l2")
"""Schemes of this machine: a video file, a webcam."""
PUBLIC = "public"

SECRETS = re.compile(r"(?i)([?&;][^=&;]*(?:pass|pwd|user|usr|login|token|key|secret|auth|sig|cred)[^=&;]*=)[^&;]*")
"""Parts of a query whose name says that they are not for everybody."""

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class NotAllowed(SourceError):
    """An address that is none, or that the allow list does not have. Shows no credentials."""


class Endpoint(NamedTuple):
    """Where to connect to: numbers alone, nothing is left to resolve."""

    family: int
    host: str
    port: int


@dataclass(frozen=True)
class Address:
    """A URL taken apart."""

    scheme: str
    host: str
    """In small letters, without brackets; empty for what lies on this machine."""
    port: int
    path: str
    """With its query; of a file or a webcam the path on this machine."""
    user: str | None = None
    password: str | None = None
    transport: Literal["tcp", "udp"] | None = None
    """Of rtsp: how pictures travel; None: as the settings say."""

    @property
    def site(self) -> str:
        """host:port as URLs and headers write it; without the port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS.get(self.scheme) else f"{host}:{self.port}"

    @property
    def public(self) -> str:
        """The URL as anybody may see it: without credentials, without what in its query looks like some."""
        path = SECRETS.sub(r"\1...", self.path)
        if "@" in path and self.host:   # a password with a slash in it, not escaped: its end would stand in the path
            path = "/..."
        scheme = self.scheme if self.transport is None else f"{self.scheme}{self.transport[0]}"
        return f"{scheme}://{self.site if self.host else ''}{path}"

    def __repr__(self) -> str:
        return f"Address({self.public})"


def parse(url: str) -> Address:
    """Raises NotAllowed for what is no URL of a known scheme, naming the part that is wrong."""
    if not isinstance(url, str) or not 0 < len(url) <= MAX_URL:
        raise NotAllowed(f"An address of a source is a URL of at most {MAX_URL} characters, such as rtsp://host/path.")
    if not url.isprintable() or re.search(r"[\s\\]", url):
        raise NotAllowed(f"{public_url(url)}: has spaces, backslashes or control characters; escape them as %20.")
    scheme, separator, _ = url.partition("://")
    scheme = scheme.lower()
    if not separator or scheme not in (*DEFAULT_PORTS, *TRANSPORTS, *LOCAL):
        known = did_you_mean(scheme if separator else "", (*DEFAULT_PORTS, *TRANSPORTS, *LOCAL))
        raise NotAllowed(f"The address of a source begins with its scheme, such as rtsp://.{known}")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise NotAllowed(f"{scheme}://...: is no URL: its host or port cannot be read.") from error
    if scheme in LOCAL:
        return _local(scheme, parts.netloc, parts.path)
    transport = TRANSPORTS.get(scheme)
    scheme = "rtsp" if transport else scheme
    host = _host(scheme, parts.hostname or "")
    user, password = (None if part is None else unquote(part) for part in (parts.username, parts.password))
    if not all(part is None or part.isprintable() for part in (user, password)):
        raise NotAllowed(f"{scheme}://...: its user or password has control characters.")
    port = DEFAULT_PORTS[scheme] if port is None else port
    if not port:
        raise NotAllowed(f"{scheme}://{host}: names no port; expected {scheme}://{host}:PORT with 1 to 65535.")
    path = _quoted(parts.path)
    query = f"?{_quoted(parts.query)}" if parts.query else ""
    path = (path or ("/" if scheme.startswith("http") else "")) + query
    return Address(scheme, host, port, path, user, password, transport)


def public_url(url: str) -> str:
    """The URL as anybody may see it: no credentials, even where it is not well-formed. Never raises."""
    try:
        return parse(url).public if url.isprintable() and not re.search(r"[\s\\]", url) else "a source"
    except (NotAllowed, AttributeError):
        return "a source"


@dataclass(frozen=True, kw_only=True)
class AllowList:
    """What may be pulled. The default: cameras and web streams on public addresses; nothing of this machine, nothing of
    the networks around it."""

    schemes: tuple[str, ...] = ("rtsp", "http", "https")
    """Of rtsp (rtspu and rtspt are that too), http, https, tcp, udp, file, v4l2."""
    hosts: tuple[str, ...] = (PUBLIC,)
    """Names (camera.example.com), names below one (*.example.com), addresses and networks (10.0.7.0/24); and "public",
    which stands for every public address. A name that is listed in full may lie anywhere; those below one not on this
    machine, and in no link-local or multicast network."""
    ports: tuple[str, ...] = ("80", "443", "554", "1024-65535")
    """Ports and ranges of ports."""
    folders: tuple[str, ...] = ("/",)
    """Where files may lie, if the scheme file is listed at all."""

    def __post_init__(self) -> None:
        for scheme in self.schemes:
            if scheme not in (*DEFAULT_PORTS, *LOCAL):
                raise ConfigError(f"allow.schemes: '{scheme}'.{did_you_mean(scheme, (*DEFAULT_PORTS, *LOCAL))}")
        for host in self.hosts:
            if not _network(host) and not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.-]+", host):
                raise ConfigError(f"allow.hosts: '{host}' is no name, address or network; see AllowList.")
        for ports in self.ports:
            if not re.fullmatch(r"\d{1,5}(-\d{1,5})?", ports):
                raise ConfigError(f"allow.ports: '{ports}' is neither a port nor a range such as 8000-8999.")

    def check(self, url: str) -> None:
        """Raises NotAllowed for a URL that may not be pulled. Resolves its name, which may take seconds; a name that
        does not resolve now passes if it might be a public one, and is checked again at every connection."""
        address = parse(url)
        try:
            self.endpoints(address)
        except NotAllowed:
            raise
        except SourceError:
            return

    def endpoints(self, address: Address) -> list[Endpoint]:
        """The network addresses of a host, those that may be connected to; [] for what lies on this machine.

        Raises NotAllowed where there are none, SourceError where the name does not resolve.
        """
        self.check_parts(address)
        if address.scheme in LOCAL:
            return []
        kind = socket.SOCK_DGRAM if address.scheme == "udp" else socket.SOCK_STREAM
        try:
            found = socket.getaddrinfo(address.host, address.port, type=kind)
        except (OSError, UnicodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no name"
            raise SourceError(f"{address.public}: the host's name does not resolve ({reason}).") from error
        allowed = []
        for ip in dict.fromkeys(_unwrapped(where[0]) for _, _, _, _, where in found):
            if self._allows(address.host, ip):
                family = socket.AF_INET if ip.version == 4 else socket.AF_INET6
                allowed.append(Endpoint(family, str(ip), address.port))
        if not allowed:
            raise NotAllowed(f"{address.public}: the host is not on the allow list. It is in a private, local or "
                             f"otherwise special network, or not listed; name it or its network in allow.hosts.")
        return allowed

    def check_parts(self, address: Address) -> None:
        """Raises NotAllowed for a scheme, port or folder that is not listed; resolves nothing."""
        if address.scheme not in self.schemes:
            raise NotAllowed(f"{address.public}: the scheme {address.scheme} is not on the allow list; expected one of "
                             f"{', '.join(self.schemes) or 'none'}.")
        if address.scheme == "file":
            real = os.path.realpath(address.path)
            if not any(os.path.commonpath([real, os.path.realpath(folder)]) == os.path.realpath(folder)
                       for folder in self.folders):
                raise NotAllowed(f"{address.public}: the file lies in none of the folders in allow.folders.")
        elif address.scheme not in LOCAL and not any(_in_range(address.port, ports) for ports in self.ports):
            raise NotAllowed(f"{address.public}: port {address.port} is not on the allow list; list it in allow.ports.")

    def _allows(self, host: str, ip: IP) -> bool:
        for entry in self.hosts:
            network = _network(entry)
            if entry == PUBLIC:
                allowed = is_public(ip)
            elif network is not None:
                allowed = ip in network
            elif entry.startswith("*."):
                allowed = host.endswith(entry[1:].lower()) and not _is_special(ip)
            else:
                allowed = host == entry.lower()
            if allowed:
                return True
        return False


def is_public(ip: IP) -> bool:
    """Whether an address, and the IPv4 address inside it if there is one, lies in the public network."""
    inner: list[IP] = []
    if isinstance(ip, ipaddress.IPv6Address):
        inner += [ip.sixtofour] if ip.sixtofour else []
        inner += list(ip.teredo or ())
        inner += [ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)] if ip in NAT64 else []
        if ip.is_site_local:
            return False
    return ip.is_global and not ip.is_multicast and not _is_special(ip) and all(is_public(part) for part in inner)


def _is_special(ip: IP) -> bool:
    return ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_unspecified or ip.is_reserved


def _unwrapped(host: str) -> IP:
    ip = ipaddress.ip_address(host.partition("%")[0])
    return getattr(ip, "ipv4_mapped", None) or ip


def _network(entry: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network | None:
    try:
        return ipaddress.ip_network(entry, strict=False)
    except ValueError:
        return None


def _in_range(port: int, ports: str) -> bool:
    first, _, last = ports.partition("-")
    return int(first) <= port <= int(last or first)


def _host(scheme: str, host: str) -> str:
    """A host in letters that mean the same everywhere: a name of other letters as its ASCII form."""
    try:
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise NotAllowed(f"{scheme}://...: its host is no name.") from error
    host = host.removeprefix("@").rstrip(".").lower()
    if not re.fullmatch(r"[a-z0-9_.-]+|[0-9a-f:.]+", host):
        raise NotAllowed(f"{scheme}://...: its host is missing or no name; expected {scheme}://host:port/path.")
    return host


def _local(scheme: str, netloc: str, path: str) -> Address:
    path = unquote(path)
    if netloc not in ("", "localhost") or not path.startswith("/") or not path.isprintable():
        raise NotAllowed(f"{scheme}://...: expected three slashes and a path from the root, as {scheme}:///dev/video0.")
    if scheme == "v4l2" and not re.fullmatch(r"/dev/video\d{1,3}", path):
        raise NotAllowed("v4l2://...: expected a webcam, /dev/video0 to /dev/video999.")
    return Address(scheme, "", 0, path)


def _quoted(text: str) -> str:
    return "".join(char if char.isascii() else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)
