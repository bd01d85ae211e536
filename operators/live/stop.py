"""How a thread that waits for the network is told to end: an event that poll() can wait for beside a socket.

In:     set(), from any thread
Out:    waits that end at once
State:  whether it was set; those made within it; two descriptors
Limits: none
"""

from __future__ import annotations

import select
import socket
import threading
import time

LONGEST_S = 60.0
"""Of one poll(), which knows no "without end" in seconds."""


class Stopped(Exception):
    """The source was told to stop while it waited. Never leaves operators/live."""


class Stop:
    """Set once, for good; one made `within` another is set with it."""

    def __init__(self, within: Stop | None = None) -> None:
        self._here, self._there = socket.socketpair()
        self._set = threading.Event()
        self._lock = threading.RLock()
        self._inner: set[Stop] = set()
        self._outer = within
        if within is not None:
            within._adopt(self)

    def set(self) -> None:
        """Every wait ends, now and later."""
        with self._lock:
            if not self._set.is_set():
                self._set.set()
                self._there.close()     # makes the other end readable for ever
            inner = list(self._inner)
        for one in inner:
            one.set()

    def is_set(self) -> bool:
        return self._set.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait so long, or until it is set: then True at once."""
        return self._set.wait(max(seconds, 0.0))

    def ready(self, sock: socket.socket, event: int, until_s: float) -> bool:
        """Wait until the socket is ready for `event` (select.POLLIN, POLLOUT), or broken: True; False once the
        monotonic clock says `until_s`. Raises Stopped."""
        poll = select.poll()
        poll.register(sock, event)
        poll.register(self, select.POLLIN)
        while not self._set.is_set():
            left = until_s - time.monotonic()
            ready = poll.poll(min(max(0.0, left), LONGEST_S) * 1000)
            if self._set.is_set():
                break
            if any(fileno == sock.fileno() for fileno, _ in ready):
                return True
            if left <= 0:
                return False
        raise Stopped

    def fileno(self) -> int:
        """Becomes readable once it is set."""
        return self._here.fileno()

    def close(self) -> None:
        """Give the descriptors back; nobody waits any more."""
        self.set()
        self._here.close()
        if self._outer is not None:
            with self._outer._lock:
                self._outer._inner.discard(self)

    def _adopt(self, one: Stop) -> None:
        with self._lock:
            self._inner.add(one)
            is_set = self._set.is_set()
        if is_set:
            one.set()
