"""The report of a run, above all of one that fails: what it says, and that it never stands for the failure itself."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from operators.errors import DatasetError
from tests.trainers.small_runs import PARTS, write_run
from trainers.curves import read_curves
from trainers.job import Job, TrainingError
from trainers.log import Log
from trainers.report import REPORT_FILE, reported, write_report
from trainers.train import leaving_on_sigterm, prepare
from trainers.watch import Step
from trainers.writing import note

ENDED = "This run ended early"


@pytest.fixture(scope="module")
def begin(tmp_path_factory) -> Callable[[Path], Job]:
    config = write_run(tmp_path_factory.mktemp("settings"), steps=50)
    return lambda out: prepare(config, [], out, resume=False)


def trained(out: Path, steps: int, every: int) -> None:
    """What a worker leaves of so many steps with a loss of 1 / step; its log is closed as after an error."""
    log = Log(out, every, steps=50)
    for number in range(1, steps + 1):
        log.after_step(Step(number, {name: 1 / number for name in PARTS[:7]}, 0.01, 0.01, 0.5, 4, None))
    log.close()


def page(job: Job) -> str:
    return (job.out / REPORT_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("steps, checkpoint, failure, said, not_said", [
    pytest.param(0, 0, None, None, [], id="nothing yet: no report"),
    pytest.param(0, 0, TrainingError("step 1: mask is not finite."), ["none of 50 steps", "There is no checkpoint yet",
                 "step 1: mask is not finite."], ["<h2>Losses"], id="failed before its first step was done"),
    pytest.param(4, 2, None, ["4 of 50 steps", "<h2>Losses"], [ENDED], id="no failure"),
    pytest.param(5, 2, TrainingError("step 6: box is not finite. Begin anew."), ["5 of 50 steps", "box is not finite",
                 "<h2>Losses", "that of step 2."], ["--resume"], id="bad numbers: to go on would give the same"),
    pytest.param(0, 2, DatasetError("a.jpg: cannot be decoded."), ["a.jpg: cannot be decoded.", "Go on from it by:",
                 "--resume"], ["DatasetError"], id="an error of ours: its own words"),
    pytest.param(0, 2, ZeroDivisionError("<b> & co"), ["ZeroDivisionError: &lt;b&gt; &amp; co"], ["<b> & co"],
                 id="any other, as text"),
    pytest.param(0, 2, KeyboardInterrupt(), ["It was stopped by Ctrl-C."], ["KeyboardInterrupt"], id="Ctrl-C"),
    pytest.param(0, 2, OSError("x" * 10_000), ["OSError: xxx"], ["x" * 5000], id="a reason of a book's length"),
])  # fmt: skip
def test_what_a_report_says(begin, tmp_path, steps, checkpoint, failure, said, not_said):
    job = begin(tmp_path)
    if steps:
        trained(tmp_path, steps, every=2)
    if checkpoint:
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints" / f"step-{checkpoint:08d}-0123456789abcdef.pt").touch()
    path = write_report(job, failure)
    if said is None:
        assert path is None and not (tmp_path / REPORT_FILE).exists()
        return
    text = page(job)
    assert all(one in text for one in said) and not any(one in text for one in not_said)
    assert (ENDED in text) == (failure is not None)
    if failure is not None and steps:
        assert text.index(ENDED) < text.index("<h2>Losses"), "the reason comes first"


def test_a_report_tells_what_else_happened(begin, tmp_path):
    job = begin(tmp_path)
    for number in range(60):
        note(tmp_path, f"Workers were lost: number {number}, <Died>.")
    write_report(job, TrainingError("training failed 3 times."))
    text = page(job)
    assert "number 59, &lt;Died&gt;." in text and "number 10," in text and "number 9," not in text


def test_the_steps_after_the_last_line_are_kept(begin, tmp_path):
    """Of a run that fails between two lines, a line each; gone once it goes on and comes to its next line."""
    trained(tmp_path, 5, every=2)
    rows = read_curves(tmp_path)
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [row["total"] for row in rows] == pytest.approx([(1 + 1 / 2) / 2, (1 / 3 + 1 / 4) / 2, 1 / 5], abs=1e-6)
    assert rows[-1]["samples_per_s"] == 8.0
    trained(tmp_path, 6, every=2)
    assert [row["step"] for row in read_curves(tmp_path)] == [2, 4, 6]


@pytest.mark.parametrize("failure", [DatasetError("a.jpg: cannot be decoded."), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("writable", [True, False], ids=["", "no report can be written"])
def test_what_ended_a_run_comes_through_as_it_was(begin, tmp_path, capsys, failure, writable):
    job = begin(tmp_path)
    if not writable:
        (tmp_path / REPORT_FILE / "in the way").mkdir(parents=True)
    with pytest.raises(type(failure)) as caught, reported(job):
        raise failure
    assert caught.value is failure
    told = capsys.readouterr().err
    if writable:
        assert str(tmp_path / REPORT_FILE) in told and ENDED in page(job)
    else:
        assert "No report could be written: IsADirectoryError" in told


def test_sigterm_leaves_by_its_own_code_and_with_a_report(begin, tmp_path):
    job, before = begin(tmp_path), signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, reported(job), leaving_on_sigterm():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143 and "stopped by SIGTERM" in page(job)
    assert signal.getsignal(signal.SIGTERM) == before
