"""Signals that come at the wrong moment."""

from __future__ import annotations

import os
import signal

import pytest

from pipelines.interrupts import Interrupts


def test_a_signal_during_a_write_waits_for_its_end():
    seen = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        for result in interrupts.each(iter("abc")):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # the second is let go
            seen.append(result)
    assert seen == ["a"]
    assert interrupts.number == signal.SIGINT


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_forgets_ends_the_next_wait():
    class Dying:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)  # what it raises is printed, and gone

    def wait() -> str:
        dying = Dying()
        del dying
        return "waited"

    with Interrupts() as interrupts:
        try:
            assert interrupts.waited(wait) == "waited"
        except KeyboardInterrupt:
            pytest.fail("Python did not forget it: the case is none")
        with pytest.raises(KeyboardInterrupt):
            interrupts.waited(lambda: "waited")


def test_without_a_signal_nothing_is_raised_and_handlers_are_as_before():
    before = signal.getsignal(signal.SIGINT)
    with Interrupts() as interrupts:
        assert list(interrupts.each(iter(()))) == []
        assert interrupts.waited(lambda: 3) == 3
    assert interrupts.number is None and signal.getsignal(signal.SIGINT) is before
