"""The main job with small stages: what is saved, what is told, and how it ends."""

from __future__ import annotations

import io
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from operators.errors import ConfigError
from operators.formats import Categories
from operators.sources import UnusableSource
from pipelines.graph import Graph, RunContext
from pipelines.group import Report
from pipelines.outputs import Outputs
from pipelines.run import Interrupts, Meter, RunSummary, run
from pipelines.show import Bar, print_summary
from tests.pipelines.small_stages import Total, TotalConfig, graph, source

CPU = RunContext(device="cpu")


@pytest.fixture
def outputs(tmp_path: Path) -> Outputs:
    return Outputs(tmp_path / "out", ("jsonl",), Categories.numbered(["thing"]))


def _lines(outputs: Outputs, name: str) -> list[dict]:
    return [json.loads(line) for line in (outputs.directory / name / "tracks.jsonl").read_text().splitlines()]


def _states(summary: RunSummary) -> dict[str, tuple]:
    return {row.name: (row.state, row.frames, row.faults) for row in summary.sources}


def test_a_line_a_frame_and_a_row_a_source(outputs):
    summary = run([source("a", length=5), source("b", "fault", "ok"), source("empty")], [], graph(), CPU, outputs)
    assert _states(summary) == {"a": ("done", 5, 0), "b": ("done", 1, 1), "empty": ("done", 0, 0)}
    assert [line["frame"] for line in _lines(outputs, "a")] == [0, 1, 2, 3, 4]
    assert [line.get("error") for line in _lines(outputs, "b")] == ["a torn packet", None]
    assert _lines(outputs, "empty") == []
    assert (summary.exit_code, summary.frames) == (0, 7)
    assert set(summary.seconds) == {"unpack", "paint", "window", "total", "outputs"}


def test_what_is_no_source_is_told_and_the_others_finish(outputs):
    error = UnusableSource("no.mp4", "'no.mp4' does not exist.")
    summary = run([source("a", "poison"), source("b", length=2)], [error], graph(), CPU, outputs)
    assert _states(summary) == {"no.mp4": ("failed", 0, 0), "a": ("failed", 0, 0), "b": ("done", 2, 0)}
    assert [row.note for row in summary.sources] == [
        "'no.mp4' does not exist.",
        "paint, stream 'a', frame 0: ValueError: this frame is poisoned",
        "",
    ]
    assert summary.exit_code == 1


def test_nothing_usable_is_a_failure_without_work(outputs):
    summary = run([], [UnusableSource("no.mp4", "'no.mp4' does not exist.")], graph(), CPU, outputs)
    assert (summary.exit_code, summary.frames, summary.seconds) == (1, 0, {})


def test_an_output_that_cannot_be_written_is_given_up_alone(outputs):
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full, which stands for a full disk")
    (outputs.directory / "a").mkdir(parents=True)
    (outputs.directory / "a" / "tracks.jsonl").symlink_to(full)
    outputs = replace(outputs, kinds=("jsonl", "ytvis"))
    summary = run([source("a", length=3), source("b", length=3)], [], graph(), CPU, outputs)
    assert _states(summary) == {"a": ("failed", 3, 0), "b": ("done", 3, 0)}
    assert "tracks.jsonl cannot be written: No space left on device" in summary.sources[0].note
    assert [line.split(":")[0] for line in summary.sources[0].outputs] == ["results.json"]
    assert len(_lines(outputs, "b")) == 3


def test_a_folder_that_cannot_be_made_is_told_before_any_work(outputs, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--out .*file/out: cannot be made"):
        run([source("a", length=3)], [], graph(), CPU, replace(outputs, directory=tmp_path / "file" / "out"))


class _Killer(Total):
    """Sends this process a signal at frame 9 of a stream."""

    number = signal.SIGTERM

    def __call__(self, batch):
        if any(frame.info.index == 9 for frame in batch):
            os.kill(os.getpid(), self.number)
        return super().__call__(batch)


def _killing(number: int) -> Graph:
    killer = type("_Killing", (_Killer,), {"number": number})
    small = graph(batching={"frames": 2, "streams": 1})
    last = small.stages[-1]
    last = replace(last, kind=replace(last.kind, build=lambda settings, context: killer(TotalConfig())))
    return replace(small, stages=(*small.stages[:-1], last))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "sigterm"])
def test_a_signal_leaves_valid_files(outputs, number, code):
    before = signal.getsignal(number)
    outputs = replace(outputs, kinds=("jsonl", "ytvis"))
    summary = run([source("a", length=50), source("b", length=5)], [], _killing(number), CPU, outputs)
    assert summary.exit_code == code
    lines = _lines(outputs, "a")
    assert [line["frame"] for line in lines] == list(range(len(lines))) and 0 < len(lines) < 10
    results = json.loads((outputs.directory / "a" / "results.json").read_text())
    assert len(results[0]["segmentations"]) == len(lines)
    notes = {row.name: (row.state, row.note) for row in summary.sources}
    assert notes == {"a": ("cut", "the run was cut"), "b": ("cut", "not begun")}
    assert signal.getsignal(number) is before


def test_a_signal_during_a_write_waits_for_its_end():
    seen = []
    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        for result in interrupts.each(iter("abc")):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # the second is let go
            seen.append(result)
    assert seen == ["a"]
    assert interrupts.number == signal.SIGINT


def test_the_stage_that_limits_is_the_busiest_per_replica():
    placement = [{"stages": ["unpack"]}, {"stages": ["paint"], "replicas": 4}, {"stages": ["window", "total"]}]
    meter = Meter(graph(placement))
    assert meter.limiting() == ("", 0.0)
    meter.add(Report(seconds={"unpack": 3.0, "paint": 4.0, "window": 1.0}))
    assert meter.limiting() == ("unpack", pytest.approx(3 / 5))
    for _ in range(30):
        meter.add(Report(seconds={"window": 1.0}))
    assert meter.limiting()[0] == "window", "what was long ago no longer counts"
    assert meter.seconds == {"unpack": 3.0, "paint": 4.0, "window": 31.0}


def test_the_terminal_shows_progress_problems_and_a_summary(outputs):
    shown, told = io.StringIO(), io.StringIO()
    sources = [source("[bold]a", length=5), source("b", "ok", "poison")]
    errors = [UnusableSource("no.mp4", "'no.mp4' does not exist.")]
    with Bar(Console(file=shown, width=160)) as bar:
        summary = run(sources, errors, graph(), CPU, outputs, observer=bar)
    print_summary(summary, outputs, Console(file=told, width=160))
    assert "error: 'no.mp4' does not exist." in shown.getvalue()
    assert "error: b: paint, stream 'b', frame 1: ValueError: this frame is poisoned" in shown.getvalue()
    assert "6 frames" in shown.getvalue() and "limits (" in shown.getvalue()
    rows = [line for line in told.getvalue().splitlines() if "[bold]a" in line]
    assert rows, "a name is shown as it is, not taken for markup"
    assert "frames/s" in told.getvalue() and "ms a frame" in told.getvalue()
    assert f"{outputs.directory}/b/tracks.jsonl: 1 line" in told.getvalue()


def test_a_cut_run_says_by_which_signal(outputs):
    told = io.StringIO()
    print_summary(RunSummary((), {}, 0, 0.0, 0.0, signal.SIGTERM), outputs, Console(file=told, width=100))
    assert "Stopped early, by SIGTERM." in told.getvalue()
