"""`maskstream` in a process of its own that begins at once: forked off one in which all is loaded that commands use.

In:     arguments, folder, environment
Out:    exit code and what was printed, as of a process begun afresh; that one takes seconds to load torch and DALI
State:  the process that they are forked off (multiprocessing's fork server), which executes nothing itself
Limits: no import is tested by it, and nothing that Python does at exit: some commands begin afresh, see conftest.py
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

LOADED = ("numpy", "pipelines.cli", "pipelines.commands", "pipelines.run", "pipelines.local", "pipelines.stages",
          "pipelines.evaluation", "pipelines.weights", "trainers.ablate", "matplotlib.pyplot")  # fmt: skip
"""Single-threaded once loaded, as what is forked must be."""


def run_forked(
    arguments: Sequence[str], cwd: Path, environment: Mapping[str, str], timeout: float
) -> subprocess.CompletedProcess:
    """As subprocess.run() of `maskstream` with these arguments. Raises TimeoutExpired, once it is ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(LOADED))
    with tempfile.TemporaryDirectory(prefix="maskstream-printed-") as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = context.Process(target=_command, args=(list(arguments), str(cwd), dict(environment), out, err))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise subprocess.TimeoutExpired(list(arguments), timeout, out.read_bytes(), err.read_bytes())
        return subprocess.CompletedProcess(list(arguments), process.exitcode, out.read_text(), err.read_text())


def _command(arguments: list[str], cwd: str, environment: dict[str, str], out: Path, err: Path) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for path, handle in ((out, 1), (err, 2)):
        with open(path, "wb") as file:
            os.dup2(file.fileno(), handle)
    from pipelines.cli import main

    sys.exit(main(arguments))
