"""Sockets that end: connections to checked addresses, whose every wait is bounded and can be cut short.

In:     endpoints that the allow list gave
Out:    Wire (TCP, with TLS or without) and Datagrams (UDP): readers of bytes
State:  the socket; until when the next byte may come
Limits: no byte for `silence_s`, or not done by `until_s`, is a SourceError; a Stop ends every wait at once
"""

from __future__ import annotations

import contextlib
import errno
import io
import ipaddress
import os
import select
import socket
import ssl
import time
from collections.abc import Callable, Sequence

from operators.errors import SourceError
from operators.live.addresses import Endpoint
from operators.live.stop import Stop

MAX_TRIED = 4
"""Of the addresses of a name: enough for two of each kind."""
DATAGRAM = 1 << 16
RECEIVE_BUFFER = 1 << 22
"""Bytes that the kernel keeps for us between two datagrams read; it may grant less. A key frame comes in one burst."""


class Wire(io.RawIOBase):
    """A TCP connection. `until_s`, by the monotonic clock, is set by whoever waits for more than bytes."""

    def __init__(self, sock: socket.socket, stop: Stop, silence_s: float, where: str) -> None:
        self.until_s = float("inf")
        self._sock, self._stop, self._silence_s, self._where = sock, stop, silence_s, where

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        """The bytes at hand, at least one; 0 at the end. Raises SourceError where none comes in time, Stopped."""
        return self._patiently(lambda: self._sock.recv_into(buffer), select.POLLIN)

    def sendall(self, data: bytes) -> None:
        """Raises SourceError where the other side takes nothing for too long, Stopped."""
        view = memoryview(data)
        while view:
            view = view[self._patiently(lambda: self._sock.send(view), select.POLLOUT):]    # noqa: B023

    def secure(self, host: str, until_s: float, verify: bool) -> None:
        """Go on under TLS, with a certificate that is good for `host` if `verify` says so. Raises SourceError, Stopped.
        """
        self.until_s = until_s
        context = ssl.create_default_context()
        if not verify:
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        self._sock = context.wrap_socket(self._sock, server_hostname=host, do_handshake_on_connect=False)
        self._patiently(self._sock.do_handshake, select.POLLIN)
        self.until_s = float("inf")

    @property
    def peer(self) -> str:
        """The address at the other end."""
        return self._sock.getpeername()[0]

    def fileno(self) -> int:
        return self._sock.fileno()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._sock.close()
        super().close()

    def _patiently(self, act: Callable[[], int], event: int) -> int:
        silent_s = time.monotonic() + self._silence_s
        while True:
            try:
                return act() or 0
            except BlockingIOError:
                wait_for = event
            except ssl.SSLWantReadError:        # TLS may have to read before it can write, and the other way round
                wait_for = select.POLLIN
            except ssl.SSLWantWriteError:
                wait_for = select.POLLOUT
            except ssl.SSLError as error:
                said = getattr(error, "verify_message", "") or error.reason or str(error)
                raise SourceError(f"{self._where}: TLS failed ({said}).") from error
            except OSError as error:
                raise SourceError(f"{self._where}: the connection broke ({_said(error)}).") from error
            if not self._stop.ready(self._sock, wait_for, min(silent_s, self.until_s)):
                raise SourceError(f"{self._where}: the connection is open but silent.")


class Datagrams(io.RawIOBase):
    """What comes to a UDP port, one datagram after the other; of a multicast group if the address is one."""

    def __init__(self, endpoint: Endpoint, stop: Stop, silence_s: float, where: str) -> None:
        """Raises SourceError where the address cannot be listened to."""
        self.until_s = float("inf")
        self._stop, self._silence_s, self._where = stop, silence_s, where
        self._rest = b""
        self._sock = socket.socket(endpoint.family, socket.SOCK_DGRAM)
        try:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            self._listen(endpoint)
            self._sock.setblocking(False)
        except OSError as error:
            self._sock.close()
            raise SourceError(f"{where}: cannot be listened to ({_said(error)}). Udp addresses name a port and an "
                              f"address of this machine, or a multicast group.") from error

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        """The next datagram, or as much of it as there is room for; never 0. Raises SourceError, Stopped."""
        if not self._rest:
            self._rest = self._next()
        taken = min(len(buffer), len(self._rest))
        buffer[:taken] = self._rest[:taken]
        self._rest = self._rest[taken:]
        return taken

    def close(self) -> None:
        self._sock.close()
        super().close()

    def _next(self) -> bytes:
        silent_s = time.monotonic() + self._silence_s
        while True:
            try:
                data = self._sock.recv(DATAGRAM)
                if data:
                    return data
            except BlockingIOError:
                if not self._stop.ready(self._sock, select.POLLIN, min(silent_s, self.until_s)):
                    raise SourceError(f"{self._where}: no datagram came for {self._silence_s:g} s.") from None
            except OSError as error:
                raise SourceError(f"{self._where}: listening failed ({_said(error)}).") from error

    def _listen(self, endpoint: Endpoint) -> None:
        ip = ipaddress.ip_address(endpoint.host)
        if ip.is_multicast:     # others on this machine may watch it too
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._sock.bind((endpoint.host, endpoint.port))
        if ip.is_multicast and ip.version == 4:
            self._sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, ip.packed + bytes(4))
        elif ip.is_multicast:
            self._sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, ip.packed + bytes(4))


def connect(endpoints: Sequence[Endpoint], stop: Stop, connect_s: float, silence_s: float, where: str) -> Wire:
    """A connection to the first endpoint that answers. Raises SourceError with the reason of the last, Stopped."""
    tried = endpoints[:MAX_TRIED]
    reason = "no address"
    for endpoint in tried:
        sock = socket.socket(endpoint.family, socket.SOCK_STREAM)
        try:
            _connect(sock, endpoint, stop, time.monotonic() + connect_s / len(tried))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return Wire(sock, stop, silence_s, where)
        except OSError as error:
            sock.close()
            reason = _said(error)
        except BaseException:
            sock.close()
            raise
    raise SourceError(f"{where}: no connection ({reason}).")


def _connect(sock: socket.socket, endpoint: Endpoint, stop: Stop, until_s: float) -> None:
    sock.setblocking(False)
    code = sock.connect_ex((endpoint.host, endpoint.port))
    if code == errno.EINPROGRESS:
        if not stop.ready(sock, select.POLLOUT, until_s):
            raise TimeoutError(0, "no answer")
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if not code and sock.getsockname() == sock.getpeername():
        code = errno.ECONNREFUSED   # nobody listens there: our end was given that very port, and TCP met itself
    if code:
        raise OSError(code, os.strerror(code))


def _said(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
