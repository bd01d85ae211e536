"""One local Ray cluster for all tests of this folder, and a limit on how long a test may wait for it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest

TIMEOUT_S = 120


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """Four logical CPUs, whatever the machine has: what is tested is who gets what, not how fast."""
    import ray

    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=4, num_gpus=0, _system_config={"worker_niceness": 0}, **quiet)
    yield
    ray.shutdown()


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that waits for another process fails after two minutes; it never hangs."""

    def too_late(number: int, frame: object) -> None:
        raise TimeoutError(f"the test did not end within {TIMEOUT_S} s")

    before = signal.signal(signal.SIGALRM, too_late)
    signal.alarm(TIMEOUT_S)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
