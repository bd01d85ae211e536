"""RTSP: FFmpeg speaks it, through a relay of ours on this machine that lets nothing through but RTSP and pictures.

In:     an address of rtsp, checked; a connection to it
Out:    a place on 127.0.0.1 for FFmpeg to open
State:  both connections, and a thread between them
Limits: replies of MAX_HEAD and MAX_BODY bytes. The thread ends with `close`, or with either connection
Source: RFC 2326 (RTSP), 10.12 (interleaved data), 12.39 (Transport)

FFmpeg would follow a redirect to any address, and send UDP to whatever address a reply names. So replies are read here
and written anew, with no more in them than FFmpeg needs: a redirect comes back to `open_rtsp`, which checks where it
leads; pictures by UDP come from the address that was checked, or not at all. Bytes that are no RTSP are passed over.
"""

from __future__ import annotations

import re
import select
import socket
import threading
import time
from dataclasses import replace
from urllib.parse import quote

from operators.errors import SourceError
from operators.live.addresses import Address, AllowList, parse
from operators.live.states import CameraConfig, Refused
from operators.live.stop import Stop, Stopped
from operators.live.streams import LATE, StreamFeed, open_place
from operators.live.wire import Wire, connect

MAX_REDIRECTS = 5
MAX_HEAD, MAX_BODY = 1 << 14, 1 << 16
CHUNK = 1 << 16
GOODBYE_S = 0.3
HEADERS = ("cseq", "session", "public", "www-authenticate", "content-type", "content-base", "content-location", "range",
           "rtp-info", "server", "date", "require", "unsupported")
"""Of replies, those that FFmpeg reads; Transport is written anew, Location is kept from it."""


class Replies:
    """Takes apart what a server sends, and gives what FFmpeg may see. Pure: bytes in, bytes out."""

    def __init__(self, source: str) -> None:
        """`source` is the address that pictures by UDP come from."""
        self.status = 0
        """Of the last reply."""
        self.location: str | None = None
        """Where a redirect leads; nothing is let through from there on."""
        self._source = source
        self._data = bytearray()

    def feed(self, data: bytes) -> bytes:
        """What may be passed on of the bytes so far. Raises SourceError for replies that are too long."""
        self._data += data
        passed = bytearray()
        while self._data and self.location is None:
            piece = self._frame() if self._data[0] == 0x24 else self._reply()
            if piece is None:
                break
            passed += piece
        return bytes(passed)

    def _frame(self) -> bytes | None:
        """Interleaved data: $, a channel, a length, and so many bytes."""
        if len(self._data) < 4:
            return None
        end = 4 + int.from_bytes(self._data[2:4], "big")
        return self._cut(end) if len(self._data) >= end else None

    def _reply(self) -> bytes | None:
        if not self._data.startswith(b"RTSP/"):
            if b"RTSP/".startswith(self._data[:5]):
                return None
            found = re.search(rb"\$|RTSP/", self._data[1:])
            self._cut(1 + found.start() if found else max(1, len(self._data) - 4))     # noise, or a server's request
            return b""
        head = re.search(rb"\r?\n\r?\n", self._data[:MAX_HEAD])
        if head is None:
            if len(self._data) >= MAX_HEAD:
                raise SourceError(f"a reply of RTSP is longer than {MAX_HEAD} bytes")
            return None
        lines = self._data[: head.start()].decode("latin-1").splitlines()
        fields = _fields(lines[1:])
        length = next((value for name, value in fields if name == "content-length"), "0")
        if not re.fullmatch(r"\d{1,6}", length) or int(length) > MAX_BODY:
            raise SourceError(f"the text of a reply of RTSP is longer than {MAX_BODY} bytes")
        if len(self._data) < head.end() + int(length):
            return None
        self._cut(head.end())
        return self._written(lines[0], fields, self._cut(int(length)))

    def _written(self, first: str, fields: list[tuple[str, str]], body: bytes) -> bytes:
        status = re.match(r"RTSP/\d\.\d\s+(\d{3})\b", first)
        if status is None:
            return b""
        self.status = int(status.group(1))
        if 300 <= self.status < 400:
            self.location = next((value for name, value in fields if name == "location"), "")
            return b""
        lines = [f"RTSP/1.0 {self.status} Relayed"]
        for name, value in fields:
            if name == "transport":
                lines.append(f"Transport: {self._transport(value)}")
            elif name in HEADERS:
                lines.append(f"{name}: {value}")
        if body:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def _transport(self, text: str) -> str:
        kind, *parts = text.partition(",")[0].split(";")
        tcp = kind.strip().upper().endswith("/TCP")
        names = "interleaved" if tcp else "client_port|server_port"
        kept = [part.strip() for part in parts if re.fullmatch(rf"(?i)\s*({names}|ssrc)=[0-9a-f-]+\s*", part)]
        return ";".join(["RTP/AVP/TCP" if tcp else "RTP/AVP", "unicast", *kept,
                         *([] if tcp else [f"source={self._source}"])])

    def _cut(self, count: int) -> bytes:
        piece = bytes(self._data[:count])
        del self._data[:count]
        return piece


class Relay:
    """One connection to a server, offered to FFmpeg as `place`, once."""

    def __init__(self, wire: Wire, stop: Stop, address: Address, config: CameraConfig, name: str) -> None:
        """Wire and stop are the relay's from now on."""
        self.failure: SourceError | Stopped | None = None
        self.replies = Replies(wire.peer)
        self._until_s = time.monotonic() + config.first_frame_s
        self._wire, self._stop, self._where = wire, stop, address.public
        self._silence_s, self._tcp = config.silence_s, config.rtsp_transport == "tcp"
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=1)
        self._listener.setblocking(False)
        login = "" if address.user is None else f"{quote(address.user, '')}:{quote(address.password or '', '')}@"
        self.place = f"rtsp://{login}127.0.0.1:{self._listener.getsockname()[1]}{address.path}"
        self._thread = threading.Thread(target=self._run, name=f"relay {name}", daemon=True)
        self._thread.start()

    def arrived_at(self, position: int | None) -> float:
        """Packets of RTSP are whole when they are given: now."""
        return time.time()

    def until(self, until_s: float) -> None:
        """The next frame must come by then."""
        self._until_s = until_s

    def close(self) -> None:
        """End both connections and the thread. Closing twice is harmless."""
        self._thread.join(GOODBYE_S)        # FFmpeg's last request is still on its way
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        client: socket.socket | None = None
        try:
            if self._stop.ready(self._listener, select.POLLIN, float("inf")):
                client, _ = self._listener.accept()
                self._listener.close()
                self._pump(client)
        except (SourceError, Stopped) as failure:
            self.failure = failure
        except OSError:
            pass                        # FFmpeg closed its end
        finally:
            for one in (client, self._listener, self._wire):
                if one is not None:
                    one.close()
            self._stop.close()

    def _pump(self, client: socket.socket) -> None:
        client.setblocking(False)
        here = Wire(client, self._stop, float("inf"), "this machine")
        poll = select.poll()
        for one in (client, self._wire, self._stop):
            poll.register(one, select.POLLIN)
        heard, asked = time.monotonic(), False
        while self.replies.location is None:
            ready = {fileno for fileno, _ in poll.poll(1000 * min(self._silence_s / 4, 1.0))}
            if self._stop.is_set():
                raise Stopped
            if client.fileno() in ready:
                data = client.recv(CHUNK)
                if not data:
                    return
                self._wire.sendall(data)
                heard, asked = (heard, True) if asked else (time.monotonic(), True)
            if self._wire.fileno() in ready:
                here.sendall(self._passed())
                heard, asked = time.monotonic(), False
            elif (asked or self._tcp) and time.monotonic() - heard > self._silence_s:
                raise SourceError(f"{self._where}: the connection is open but silent.")
            if time.monotonic() > self._until_s:
                raise SourceError(f"{self._where}: {LATE}.")

    def _passed(self) -> bytes:
        data = self._wire.read(CHUNK)
        if not data:
            raise SourceError(f"{self._where}: the other side closed the connection.")
        try:
            return self.replies.feed(data)
        except SourceError as error:
            raise SourceError(f"{self._where}: {error}.") from error


def open_rtsp(name: str, address: Address, config: CameraConfig, allow: AllowList, stop: Stop) -> StreamFeed:
    """Connect, through redirects. Raises SourceError, Refused, NotAllowed, Stopped."""
    config = config if address.transport is None else replace(config, rtsp_transport=address.transport)
    for _ in range(MAX_REDIRECTS + 1):
        relay = _relay(name, address, config, allow, Stop(stop))
        try:
            return _opened(relay, address, config)
        except (SourceError, Stopped) as error:
            relay.close()
            if relay.replies.location is None:
                if relay.replies.status == 401:
                    raise Refused(f"{address.public}: the server refuses the credentials, if any (401).") from error
                if relay.replies.status >= 400 and not isinstance(error, Stopped):
                    raise SourceError(f"{address.public}: the server answers {relay.replies.status}.") from error
                raise
            address = _redirected(address, relay.replies.location)
        except BaseException:
            relay.close()
            raise
    raise SourceError(f"{address.public}: more than {MAX_REDIRECTS} redirects.")


def _relay(name: str, address: Address, config: CameraConfig, allow: AllowList, stop: Stop) -> Relay:
    try:
        wire = connect(allow.endpoints(address), stop, config.connect_s, config.silence_s, address.public)
    except BaseException:
        stop.close()
        raise
    return Relay(wire, stop, address, config, name)


def _opened(relay: Relay, address: Address, config: CameraConfig) -> StreamFeed:
    options = {"rtsp_transport": config.rtsp_transport, "allowed_media_types": "video"}
    if config.rtsp_transport == "udp":
        options["rtsp_flags"] = "filter_src"        # nobody else on the network can add pictures
    return open_place(relay.place, address.public, config, kind="rtsp", options=options, protocols="rtp,tcp,udp",
                      watch=relay)


def _redirected(address: Address, location: str) -> Address:
    to = parse(location)
    if to.scheme != "rtsp":
        raise SourceError(f"{address.public}: leads to an address of {to.scheme}, expected one of rtsp.")
    if to.user is None and (to.host, to.port) == (address.host, address.port):
        return replace(to, user=address.user, password=address.password)
    return to


def _fields(lines: list[str]) -> list[tuple[str, str]]:
    """Names in small letters, and values; lines that are none are left out."""
    found = [re.fullmatch(r"([A-Za-z0-9-]{1,64}):\s*(.{0,2048})", line) for line in lines]
    return [(match.group(1).lower(), match.group(2)) for match in found if match]
