"""Ports for servers that tests start: nobody listens there, and nobody is given them by chance meanwhile."""

from __future__ import annotations

import random
import socket
from contextlib import suppress


def free_ports(count: int) -> list[int]:
    """Below those that systems give to whoever connects, or asks for any: they are used seconds later, and connections
    and clusters of other tests come and go all the time."""
    ports: list[int] = []
    for port in random.sample(range(20_000, 32_000), 1000):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            ports.append(port)
        if len(ports) == count:
            return ports
    raise AssertionError("a thousand ports are taken")


def free_port() -> int:
    return free_ports(1)[0]
