"""What the terminal says of an ablation's runs, worked by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from trainers import ablation_progress
from trainers.ablation_config import SCORES_FILE, Run
from trainers.ablation_progress import Follow
from trainers.job import METRICS_FILE

SCORES = {"AP": 0.345, "switches": 3, "training_s": 90.0, "evaluation_s": 30.0}


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time, which stands still until a test moves it."""
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(ablation_progress, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


def at_step(folder: Path, *steps: int) -> None:
    folder.mkdir(exist_ok=True)
    (folder / METRICS_FILE).write_text("".join(json.dumps({"step": step}) + "\n" for step in steps))


def lines_of(console: Console) -> list[str]:
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def test_no_time_is_told_before_a_step_is_done(tmp_path, clock):
    console = Console(file=io.StringIO(), width=200)
    with Follow({tmp_path / "a": 100}, SCORES_FILE, console, "runs"):
        clock.now += 60
    assert "0/1" in lines_of(console)[-1] and "min left" not in console.file.getvalue()


def test_runs_are_counted_by_their_scores_and_the_time_by_steps_since_the_start(tmp_path, clock):
    """Three runs of 100 steps and one that is scored alone; 40 steps were done before, which tell nothing of the pace.

    After a minute a is scored and b is at step 20: 80 steps a minute, 180 are left. Of b's line 30 half is written.
    """
    runs = [Run(name, 0, tmp_path / name) for name in "abcd"]
    at_step(tmp_path / "a", 20, 40)
    console = Console(file=io.StringIO(), width=200)
    steps = {run.folder: 0 if run.variant == "d" else 100 for run in runs}
    with Follow(steps, SCORES_FILE, console, "runs") as follow:
        clock.now += 60
        (tmp_path / "a" / SCORES_FILE).touch()
        at_step(tmp_path / "b", 10, 20)
        with open(tmp_path / "b" / METRICS_FILE, "a") as file:
            file.write('{"step": 3')
        follow.finished(runs[0], SCORES)
        follow.say("c, seed 0 failed")
    said = lines_of(console)
    assert said[:2] == ["a, seed 0: AP 34.5, 3 ID switches, 2.0 min; 1 of 4, about 2 min left", "c, seed 0 failed"]
    assert "1/4" in said[-1] and said[-1].endswith("about 2 min left")
