"""kill -9 of a run at every moment that matters to its files: made again, it leaves what one never killed leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("start", "step"), [
    pytest.param("nothing", 1, id="into an empty folder"),
    pytest.param("other", 3, id="over another run's results"),
])  # fmt: skip
def test_killed_before_each_operation_and_made_again(tmp_path, start, step):
    command = [sys.executable, "-m", "tests.pipelines.killed_runs", str(tmp_path), start, str(step)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    whole, kills = json.loads(first), [json.loads(line) for line in lines]
    videos = ["a", "b", "empty"] + (["poisoned"] if start == "other" else [])
    names = [f"{video}/{file}" for video in videos for file in ("results.json", "tracks.jsonl")]
    more = ["a/notes.txt", "failed.json"] if start == "other" else []
    assert whole == sorted([*names, *more, "manifest.json", "results.json"])
    assert len(kills) >= 40 // step, "each file is made, moved and told of"
    assert [kill for kill in kills if kill["different"]] == []
