"""The main job with small stages: what is saved, what is told, and how it ends."""

from __future__ import annotations

import gc
import io
import json
import os
import signal
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from rich.console import Console

from operators.errors import ConfigError
from operators.formats import Categories
from operators.records import FrameTracks
from operators.sources import UnusableSource
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.manifest import Manifest
from pipelines.networks import read_network
from pipelines.outputs import Outputs
from pipelines.placement import Recovery
from pipelines.progress import View
from pipelines.reports import Report
from pipelines.run import MARK_FILE, Meter, Observer, RunSummary, run
from pipelines.show import MAX_ROWS, print_summary
from pipelines.stages import STAGES
from pipelines.stream_outputs import SourceSummary
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


def test_of_a_finished_video_a_row_is_kept_and_nothing_of_its_frames(outputs):
    """Measured by what Python holds: of some 480 bytes a video the row and the entry of the manifest."""
    held = {}

    class Weighed(Observer):
        def begins(self, begun) -> None:
            if begun.name in ("100", "200"):
                gc.collect()
                held[begun.name] = tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    try:
        with Manifest(outputs.directory, {"network": "this one"}) as manifest:
            run([source(str(i), length=8) for i in range(210)], [], graph(), CPU, outputs, observer=Weighed(),
                manifest=manifest)  # fmt: skip
    finally:
        tracemalloc.stop()
    assert (held["200"] - held["100"]) / 100 < 700


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


class _InTheWay(Observer):
    """Puts a folder where results.json of a stream is to be written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def saw(self, result, meter):
        (self._directory / "unfinished" / "a" / "results.json").mkdir(parents=True, exist_ok=True)


def test_an_output_that_cannot_be_written_is_given_up_alone(outputs):
    outputs = replace(outputs, kinds=("jsonl", "ytvis"))
    observer, batching = _InTheWay(outputs.directory), {"streams": 1}
    sources = [source("a", length=3), source("b", length=3)]
    summary = run(sources, [], graph(batching=batching), CPU, outputs, observer=observer)
    assert _states(summary) == {"a": ("failed", 3, 0), "b": ("done", 3, 0)}
    assert "results.json cannot be written: Is a directory" in summary.sources[0].note
    assert [line.split(":")[0] for line in summary.sources[0].outputs] == ["tracks.jsonl"]
    assert len(_lines(outputs, "a")) == 3 and len(_lines(outputs, "b")) == 3
    (failed,) = json.loads((outputs.directory / "failed.json").read_text())
    assert (failed["video"], failed["frame"]) == ("a", 3) and "Is a directory" in failed["reason"]


def test_failed_json_says_which_where_and_why_and_goes_with_the_failures(outputs):
    sources = [source("good", length=2), source("bad", "ok", "ok", "poison", "ok")]
    error = UnusableSource("no.mp4", "'no.mp4' does not exist.")
    run(sources, [error], graph(), CPU, outputs)
    path = outputs.directory / "failed.json"
    assert json.loads(path.read_text()) == [
        {"video": None, "source": "no.mp4", "frame": None, "reason": "'no.mp4' does not exist."},
        {"video": "bad", "source": "nowhere/ok", "frame": 2,
         "reason": "paint, stream 'bad', frame 2: ValueError: this frame is poisoned"},
    ]  # fmt: skip
    run(sources[:1], [], graph(), CPU, outputs)
    assert not path.exists()


def test_nothing_lies_in_its_place_before_it_is_whole(outputs):
    """And only what is under way has been opened: a thousand sources are not looked into before the first frame."""
    seen = []

    class Watching(Observer):
        def begins(self, source):
            seen.append(source.name)

        def saw(self, result, meter):
            if isinstance(result, FrameTracks):      # of "a": the others are empty
                assert not (outputs.directory / "a").exists()
                assert (outputs.directory / "unfinished" / "a" / "tracks.jsonl").exists()
                assert len(seen) < 8

    sources = [source("a", length=5), *(source(f"later-{i}") for i in range(20))]
    first = graph(batching={"streams": 2, "frames": 20})
    summary = run(sources, [], first, CPU, outputs, observer=Watching())
    assert summary.exit_code == 0 and len(seen) == 21
    assert len(_lines(outputs, "a")) == 5 and not (outputs.directory / "unfinished").exists()


def test_a_live_graph_is_refused_where_it_would_wait_for_ever(outputs):
    live = load_graph("configs/graphs/live.yaml", STAGES)
    with pytest.raises(ConfigError, match="'receive' receives frames of cameras.*configs/graphs/offline.yaml"):
        run([source("a", length=3)], [], live, CPU, outputs)
    assert not outputs.directory.exists()


def test_a_graph_that_is_none_for_the_network_is_told_before_a_cluster_is_started(outputs):
    started = ray.is_initialized()      # by another test of this process
    context = RunContext(read_network("configs/networks/tiny.yaml"), "cpu")
    with pytest.raises(ConfigError, match="has an 'identify' stage, but 'crossvis' remembers nothing"):
        run([source("a", length=3)], [], load_graph("configs/graphs/offline_iai.yaml", STAGES), context, outputs, "ray")
    assert ray.is_initialized() == started and not outputs.directory.exists()


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
    assert not (outputs.directory / "a").exists(), "it is not whole"
    lines = _lines(outputs, "unfinished/a")
    assert [line["frame"] for line in lines] == list(range(len(lines))) and 0 < len(lines) < 10
    results = json.loads((outputs.directory / "unfinished" / "a" / "results.json").read_text())
    assert len(results[0]["segmentations"]) == len(lines)
    notes = {row.name: (row.state, row.note) for row in summary.sources}
    assert notes == {"a": ("cut", "the run was cut"), "b": ("cut", "not begun")}
    assert signal.getsignal(number) is before


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


def test_the_terminal_shows_problems_and_a_summary(outputs):
    shown, told = io.StringIO(), io.StringIO()
    sources = [source("[bold]a", length=5), source("b", "ok", "poison")]
    errors = [UnusableSource("no.mp4", "'no.mp4' does not exist.")]
    with View(Console(file=shown, width=160)) as view:
        summary = run(sources, errors, graph(), CPU, outputs, observer=view)
    print_summary(summary, outputs, Console(file=told, width=160))
    assert "error: 'no.mp4' does not exist." in shown.getvalue()
    assert "error: b: paint, stream 'b', frame 1: ValueError: this frame is poisoned" in shown.getvalue()
    assert shown.getvalue().splitlines()[-1] == "6 of 6 frames, 2 of 2 videos, 1 failed"
    rows = [line for line in told.getvalue().splitlines() if "[bold]a" in line]
    assert rows, "a name is shown as it is, not taken for markup"
    assert "frames/s" in told.getvalue() and "ms a frame" in told.getvalue()
    assert f"{outputs.directory}/b/tracks.jsonl: 1 line" in told.getvalue()
    assert f"failed: {outputs.directory}/failed.json" in told.getvalue()


def test_of_many_sources_those_are_listed_that_are_not_done(outputs):
    rows = [SourceSummary(f"v{i}", frames=3, state="done", folder=f"v{i}", before=i < 60) for i in range(99)]
    rows += [SourceSummary(f"bad{i}", state="failed", note=f"reason {i}") for i in range(MAX_ROWS + 5)]
    told = io.StringIO()
    print_summary(RunSummary(tuple(rows), {}, 0, 0.0, 0.0), outputs, Console(file=told, width=160))
    text = told.getvalue()
    assert "144 sources: 99 done (60 before this run), 45 failed" in text
    assert "v3" not in text and "bad3: reason 3" in text and f"bad{MAX_ROWS}" not in text


def test_a_cut_run_says_by_which_signal(outputs):
    told = io.StringIO()
    print_summary(RunSummary((), {}, 0, 0.0, 0.0, signal.SIGTERM), outputs, Console(file=told, width=100))
    assert "Stopped early, by SIGTERM." in told.getvalue()


def test_snapshots_that_a_killed_run_left_go_with_the_next(cluster, outputs, tmp_path):
    """They lie under a name that stands in the folder of results until a run into it has come to its end."""
    where, mark = tmp_path / "snapshots", "0123456789abcdef" * 2
    left = where / mark / "a-0000000000000000" / "000000000002.snapshot"
    for path, text in ((left, "torn"), (where / "another run" / "kept", ""), (outputs.directory / MARK_FILE, mark)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    seen = set()

    class Looking(Observer):
        def saw(self, result, meter):
            seen.update(path.name[:2] for path in (where / mark).iterdir())

    settings = graph(batching={"streams": 1, "frames": 2})
    settings = replace(settings, recovery=Recovery(snapshot_every=2, store=str(where)))
    summary = run([source("a", length=9), source("b", length=9)], [], settings, CPU, outputs, "ray", observer=Looking())
    assert summary.exit_code == 0 and {"a-", "b-"} <= seen
    assert [path.name for path in where.iterdir()] == ["another run"]
    assert not (outputs.directory / MARK_FILE).exists()
