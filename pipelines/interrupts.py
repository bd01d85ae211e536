"""Ctrl-C and SIGTERM, taken where nothing is torn by them.

In:     signals, in the main thread
Out:    KeyboardInterrupt while something is waited for; everywhere else the signal is kept until then
State:  the first signal's number
Limits: in a thread other than the main one, where Python knows no signals, nothing is caught

A KeyboardInterrupt that happens to be raised in a destructor or a callback is printed and forgotten by Python. Here the
signal is remembered, so that the next wait ends by it.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TypeVar

T = TypeVar("T")


class Interrupts:
    """Ctrl-C and SIGTERM as KeyboardInterrupt, but only while results are waited for, never within a file's write.

    The first signal counts; later ones are let go, because what is left to do is to close files.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None
        self._waiting = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._on_signal) for number in self.SIGNALS}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def waited(self, wait: Callable[[], T]) -> T:
        """What `wait` gives. Raises: KeyboardInterrupt where a signal came before, or comes meanwhile."""
        self._waiting = True
        try:
            if self.number is not None:
                raise KeyboardInterrupt
            return wait()
        finally:
            self._waiting = False

    def each(self, results: Iterator[T]) -> Iterator[T]:
        """The results, until a signal comes. Raises: KeyboardInterrupt then."""
        while (result := self.waited(lambda: next(results, None))) is not None:
            yield result

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.number is None:
            self.number = number
            if self._waiting:
                raise KeyboardInterrupt
