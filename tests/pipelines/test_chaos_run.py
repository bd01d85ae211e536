"""Chaos on Ray: a graph with a stage that forgets is found out. One that stands it: tests/end_to_end/test_chaos.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_graph_that_forgets_fails_and_nothing_else_does(tmp_path):
    """In a process of its own, because this one may be connected to the cluster of other tests."""
    command = [sys.executable, "-m", "tests.pipelines.chaos_runs", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, timeout=300, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "chaos.json").read_text())
    failed = {check["name"]: check["said"] for check in found["checks"] if not check["passed"]}
    assert not found["passed"] and set(failed) == {"ids", "results"}, found["checks"]
    assert failed["ids"].startswith("track ids and classes differ in ")
    assert (tmp_path / "chaos.md").read_text().startswith("# Chaos: FAIL\n")
    (blow,) = found["blows"]
    assert (blow["kind"], blow["landed"], blow["frame"]) == ("process", True, 60)
    assert found["runs"]["under_blows"]["restarts"] == 1 and found["runs"]["under_blows"]["rewinds"] >= 1
    account = found["runs"]["under_blows"]["account"]
    assert (account["given"], account["out"], account["dropped"]) == (161, 160, {"a torn packet": 1})
