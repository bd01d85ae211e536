"""Processes that share a job: their order, their errors, and Ctrl-C, which a terminal sends to all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from operators.processes import in_processes

ROOT = Path(__file__).resolve().parents[2]
WAITING = """
import sys, time
from concurrent.futures import ProcessPoolExecutor
from operators.processes import in_processes

def work(part):
    sys.stdout.write(f"{part} begun\\n")
    sys.stdout.flush()
    time.sleep(60)

def late(pool, shutdown=ProcessPoolExecutor.shutdown, **options):
    time.sleep(0.5)     # as on a busy machine: the pool sees that its processes died before it hears that it ends
    shutdown(pool, **options)

if __name__ == "__main__":
    ProcessPoolExecutor.shutdown = late
    try:
        list(in_processes(work, range(50), 2))
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
"""


def test_no_part_starts_no_process():
    assert list(in_processes(print, [], 4)) == []


def test_results_come_in_the_order_of_the_parts():
    assert list(in_processes(abs, [-3, 2, -1], 2)) == [3, 2, 1]


def test_ctrl_c_ends_all_of_them_at_once_and_none_of_them_says_where_it_stood(tmp_path):
    """As a terminal sends it: to the whole group, in the midst of their work."""
    script = tmp_path / "waiting.py"
    script.write_text(WAITING)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                            start_new_session=True, env=env)  # fmt: skip
    assert {done.stdout.readline(), done.stdout.readline()} == {"0 begun\n", "1 begun\n"}
    os.killpg(done.pid, signal.SIGINT)
    out, err = done.communicate(timeout=30)     # ends when every process has closed it
    assert (out, err) == ("", "stopped\n")
