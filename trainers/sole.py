"""One process at a time writes to the folder of a run.

In:     the folder
Out:    a lock for as long as the context lasts, in the file `.writer`
State:  the operating system's: the lock of a process that was killed is gone with it
Limits: machines that share the folder see each other's locks where the file system does (NFS from version 4 on)
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainers.job import TrainingError

LOCK_FILE = ".writer"
WAIT_S = 30.0
"""A worker whose driver was killed takes some seconds to go."""


@contextmanager
def sole_writer(out: Path, wait_s: float = WAIT_S) -> Iterator[None]:
    """Waits for the folder to be free. Raises TrainingError where another process still writes to it after `wait_s`."""
    out.mkdir(parents=True, exist_ok=True)
    with open(out / LOCK_FILE, "a+", encoding="utf-8") as file:
        until = time.monotonic() + wait_s
        while not _locked(file.fileno()):
            if time.monotonic() > until:
                file.seek(0)
                raise TrainingError(
                    f"{out}: another process trains into this folder: {file.read().strip() or 'nobody knows which'}. "
                    "End it, or name another folder by --out."
                )
            time.sleep(0.2)
        os.ftruncate(file.fileno(), 0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        yield


def _locked(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
