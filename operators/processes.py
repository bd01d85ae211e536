"""Processes that share a job: fresh ones, deaf to Ctrl-C, ended with whoever waits for them.

In:     a function, the parts that it is called with
Out:    what it gives, in the order of the parts
State:  none
Limits: parts and results travel pickled; all parts are queued at once

A terminal sends Ctrl-C to every process of a command. The one that waits decides what it means; a worker that took it
too would only print where it stood.
"""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context, resource_tracker
from typing import TypeVar

Part = TypeVar("Part")
Result = TypeVar("Result")


def in_processes(
    work: Callable[[Part], Result], parts: Iterable[Part], workers: int, initializer: Callable[[], object] | None = None
) -> Iterator[Result]:
    """`work(part)` for each part, in order, in so many processes, each of which calls `initializer` first.

    After an error here, Ctrl-C, or a reader that takes no more, they are ended at once. No part: nothing, and no
    process. Raises what `work` raises; BrokenProcessPool where a process was killed.
    """
    parts = list(parts)
    if not parts:
        return
    resource_tracker.ensure_running()       # now: when it starts it lets through the signals that `_deaf` holds back
    # spawned, not forked: a fork of a process with running threads (DALI, torch, a progress bar) can hang for ever
    pool = ProcessPoolExecutor(min(workers, len(parts)), mp_context=get_context("spawn"), initializer=initializer)
    try:
        with _deaf():
            results = deque(pool.submit(work, part) for part in parts)      # here the processes start
        while results:
            yield results.popleft().result()        # which is kept no longer
    except BaseException:
        for process in list((pool._processes or {}).values()):  # by a public name from Python 3.14 on
            process.terminate()
        raise           # nothing is cancelled: Python's pool prints a traceback where it fails what was cancelled
    finally:
        pool.shutdown()


@contextmanager
def _deaf() -> Iterator[None]:
    """Ctrl-C waits meanwhile, and never comes to a process that is started meanwhile: it inherits the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
