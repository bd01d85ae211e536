"""What the terminal says of a run, worked by hand."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from trainers.progress import losses, summary, time_left

ROW = {"step": 100, "class": 0.5, "mask": 0.25, "total": 0.75, "learning_rate": 0.001, "data_wait_s": 0.1,
       "step_s": 2.0, "samples_per_s": 4.0, "gpu_memory_gb": 0.0}  # fmt: skip


@pytest.mark.parametrize("step_s, steps, expected", [
    pytest.param([1.0], 100, "0 s left", id="at the end"),
    pytest.param([1.0], 160, "60 s left", id="seconds"),
    pytest.param([2.0, 4.0], 300, "10 min left", id="mean of the lines"),
    pytest.param([60.0] * 5 + [36.0] * 10, 300, "2 h 00 min left", id="of the last ten lines alone"),
])  # fmt: skip
def test_time_left(step_s, steps, expected):
    assert time_left([{**ROW, "step_s": s} for s in step_s], steps) == expected


def test_summary_without_evaluation():
    assert summary(ROW, []) == "learning rate 0.001, 4.0 samples/s, 5% waiting for data"


def test_summary_with_gpu_and_evaluations():
    scores = [{"step": 50, "AP": 0.31}, {"step": 100, "AP": 0.29}]
    assert summary({**ROW, "gpu_memory_gb": 11.26}, scores).endswith(
        "11.3 GB on the GPU, AP 29.0 at step 100, best 31.0 at 50")


def test_losses_are_the_parts_and_their_total_last():
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(losses(ROW))
    head, values = console.export_text().splitlines()[:2]
    assert head.split() == ["class", "mask", "total"]
    assert values.split() == ["0.500", "0.250", "0.750"]
