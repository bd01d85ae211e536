"""The Ray cluster of a command: one that is there, or one that lives as long as the command.

In:     an address, or none
Out:    this process connected to it, while the context lasts
State:  Ray's own connection, one for each process
Limits: an address that does not answer within CONNECT_TIMEOUT_S is an error
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray

from operators.errors import GraphError
from pipelines.config import CHECKOUT
from pipelines.local import usable_cpus

CONNECT_TIMEOUT_S = 5.0
START_TRIES = 3


@contextmanager
def cluster(address: str | None) -> Iterator[None]:
    """Connected to a cluster; what was connected or started here is left or ended here.

    Uses the cluster at `address`; without one, that which this process is connected to; without that, a new one on this
    machine with the CPUs that this process may use.
    Raises: GraphError if there is no cluster at the address, or none can be started.
    """
    if ray.is_initialized():
        yield
        return
    try:
        with own_signals(), _in_checkout():
            _connect(address)
        yield
    finally:
        ray.shutdown()


def _connect(address: str | None) -> None:
    # Workers inherit it; `pipelines/cli.py` says what it is worth.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        # Ray makes its workers nice by 15. They are all the work there is here: beside one busy process they got a
        # twentieth of the machine.
        # Its first autoscaler, which has nothing to do here either, takes a second longer to end.
        # Where somebody ends all processes at once, there is no head any more that a minute of asking could bring back.
        system = {"worker_niceness": 0, "enable_autoscaler_v2": True, "gcs_rpc_server_reconnect_timeout_s": 10}
        options |= {"num_cpus": usable_cpus(), "include_dashboard": False, "_system_config": system}
    host, colon, port = (address or "").rpartition(":")
    try:
        if colon and port.isdecimal():  # Ray itself tries for minutes
            socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), CONNECT_TIMEOUT_S).close()
        init_ray(address=address or "local", **options)
    except Exception as error:  # that of a node which was not there in time is of no other class
        failed = f"the Ray cluster at '{address}' cannot be reached" if address else "Ray cannot be started here"
        raise GraphError(f"{failed}: {' '.join(str(error).split())}") from error


def init_ray(**options: Any) -> None:
    """`ray.init(**options)`, again where its node was not there in time: Ray allows it half a minute, on a busy machine
    too. What such a try has started ends with this process. Raises what Ray raises."""
    for tries_left in reversed(range(START_TRIES)):
        try:
            ray.init(**options)
            return
        except Exception as error:
            if not tries_left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()


@contextmanager
def _in_checkout() -> Iterator[None]:
    """Ray lets workers import from the driver's folder first: a user's own `models/` there must not stand for ours."""
    before = os.getcwd()
    os.chdir(CHECKOUT)
    try:
        yield
    finally:
        os.chdir(before)


@contextmanager
def own_signals() -> Iterator[None]:
    """Ray's start brings a handler of SIGTERM that ends the process at once: afterwards the caller's own are back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
