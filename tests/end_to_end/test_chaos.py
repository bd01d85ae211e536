"""`maskstream chaos` as a user runs it: the shipped network, a worker process killed half-way; and Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCENARIO = """
seed: 1
nodes: {count: 1, store_mb: 200}
blows: [{kind: process, every: 1000, first: 10}]
delays: [{stage: associate, every: 10, seconds: 0.2}]
corrupt: [{how: noise, every: 9}, {how: fault, every: 10}]
limits: {recovery_s: 300, settle_s: 120}
"""


@pytest.fixture
def scenario(tmp_path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(SCENARIO)
    return path


def test_the_shipped_graph_stands_it(maskstream, two_videos, scenario, tmp_path):
    out = tmp_path / "out"
    done = maskstream("chaos", "configs/graphs/offline.yaml", two_videos[0], "--scenario", scenario, "--out", out,
                      "--set", "recovery.snapshot_every=6", "--set", "batching.frames=4", timeout=900,
                      afresh=True)  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "PASS" in done.stdout and "26 in = " in done.stdout and "raylet" not in done.stdout + done.stderr
    found = json.loads((out / "chaos.json").read_text())
    assert found["passed"] and found["frames_in"] == {two_videos[0].stem: 26}
    assert [(blow["kind"], blow["frame"], blow["landed"]) for blow in found["blows"]] == [("process", 10, True)]
    assert found["blows"][0]["recovery_s"] > 0
    wild, calm = found["runs"]["under_blows"], found["runs"]["calm"]
    assert (calm["restarts"], wild["restarts"]) == (0, 1) and wild["rewinds"] >= 1
    assert wild["account"] == calm["account"] and not wild["account"]["failed"]
    dropped = wild["account"]["dropped"]["corrupted by chaos"]
    assert 2 <= dropped <= found["corrupted"]["fault"] and wild["account"]["out"] == 26 - dropped
    assert sorted(path.name for path in out.iterdir()) == ["chaos.json", "chaos.md", "chaos.png", "ray.log"]


def test_ctrl_c_ends_all_that_was_started(two_videos, scenario, tmp_path):
    command = [sys.executable, "-m", "pipelines.cli", "chaos", "configs/graphs/offline.yaml", str(two_videos[0]),
               "--scenario", str(scenario), "--out", str(tmp_path / "out")]  # fmt: skip
    running = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True,
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    said = ""
    for line in running.stderr:
        said += line
        if "counting frames" in line:
            break
    family = children(running.pid)
    assert len(family) >= 3, said                            # a GCS, two raylets
    running.send_signal(signal.SIGINT)
    assert running.wait(timeout=300) == 130
    assert "there is no verdict" in running.stderr.read()
    end = time.monotonic() + 60
    while left := [pid for pid in family if Path(f"/proc/{pid}").exists()]:     # who inherits them may be late
        assert time.monotonic() < end, left
        time.sleep(0.1)
    assert not (tmp_path / "out" / "chaos.md").exists()


def children(pid: int) -> list[int]:
    """Processes that it started, and they."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):                        # it ended while it was read
            continue
        if parent == pid:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found
