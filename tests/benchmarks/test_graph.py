"""The benchmark of graphs: that rates, overhead and bytes are what they are said to be; and a run without Ray."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks import graph as benchmark
from benchmarks.graph import BARE, Clock, Reading, bare_loop, main, memory, parse, table, ways
from operators.records import FrameInfo, FrameTracks, StreamEnd
from pipelines.graph import RunContext
from pipelines.local import run_local
from pipelines.reports import Report, Span
from tests.pipelines.small_stages import graph, source, told

NAMES = ("unpack", "paint", "window", "total")


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def tracks(index: int) -> FrameTracks:
    nothing = np.zeros(0, np.int64)
    return FrameTracks(FrameInfo("s", index, 0.0, 4, 4), nothing, nothing, nothing, np.zeros((0, 4)), ())


def test_a_clock(monkeypatch):
    """Eight frames, decoded in twos at 0, 10, 20, 30 s; they come out 3 and 4 s later. The first two do not count."""
    clock = Clock(ways(graph(), ("split",), 1)[2].graph)
    for pair in range(4):
        span = Span("unpack", "", 10.0 * pair, 1.0, (("s", 2 * pair, 2 * pair + 1),))
        other = Span("paint", "", 99.0, 1.0, (("s", 0, 7),))
        clock.watch(Report(spans=(span, other), bytes={"paint": 300, "total": 9}))
        for late, index in ((3.0, 2 * pair), (4.0, 2 * pair + 1)):
            monkeypatch.setattr(benchmark.time, "time", lambda at=10.0 * pair + late: at)
            clock.saw(tracks(index))
    clock.saw(StreamEnd("s", 8))
    found = clock.reading()
    assert (found.rate, found.latencies, found.bytes) == (6 / 30, [3, 4, 3, 4, 3, 4], 4 * 300 / 8)


def test_too_few_frames_are_no_measurement():
    clock = Clock(graph())
    clock.saw(tracks(0))
    with pytest.raises(ValueError, match="1 frames came out, too few"):
        clock.reading()


def test_the_table_by_hand():
    """Against 10 and 20 frames/s: 8 and 10 are 80 % and 50 %, and cost 25 and 50 ms more."""
    readings = {
        BARE: [Reading(10, [0.1], 0.0, {"total": 1000}), Reading(20, [0.1], 0.0)],
        "other": [Reading(8, [0.1, 0.2, 0.3], 2e6), Reading(10, [0.2], 4e6)],
    }
    *_, bare, other = table(readings).splitlines()
    assert bare == f"| {BARE} | 15.00 | 100.0% | +0.00 | 100 / 100 / 100 | 0.000 |"
    assert other == "| other | 9.00 | 65.0% | +37.50 | 200 / 285 / 297 | 3.000 |"
    assert memory(readings) == "memory of one stream (its snapshot): 1,000 bytes (total 1,000 bytes)"


def test_every_edge_is_a_way():
    found = ways(graph(), ("local", "fused", "split"), 3)
    edges = [f"Ray, split after {name}" for name in NAMES[:3]]
    assert [way.name for way in found] == [BARE, "in-process", "Ray, fused", *edges]
    assert [group.stages for group in found[4].graph.placement] == [NAMES[:2], NAMES[2:]]
    assert {group.num_cpus for way in found for group in way.graph.placement} == {3.0}
    assert [way.name for way in ways(graph(), (), 1)] == [BARE]


def test_the_bare_loop_gives_what_the_graph_gives():
    sources = [source("a", length=23), source("b", "ok", "fault", "ok"), source("c")]
    expected = told(run_local(graph(), sources, RunContext(device="cpu")))
    reports: list[Report] = []
    found = told(bare_loop(graph(batching={"frames": 5}), sources, RunContext(device="cpu"), reports.append))
    frames = {name: [line for line in story if isinstance(line[-1], float)] for name, story in expected.items()}
    assert found == {name: story for name, story in frames.items() if story}
    assert {name for report in reports for name in report.state_bytes} == {"unpack", "window", "total"}


def test_a_run_prints_a_table_for_each_number_of_streams(capsys):
    words = ["--network", "configs/networks/tiny.yaml", "--frames", "8", "--streams", "1,2", "--size", "64x96"]
    assert main([*words, "--turns", "1", "--ways", "local", "--threads", "1", "--device", "cpu"]) == 0
    printed = capsys.readouterr()
    assert "8 frames a run, medians of 1 turns; " in printed.out and "without Ray" in printed.out
    assert [line for line in printed.out.splitlines() if line.startswith("##")] == ["## 1 stream", "## 2 streams"]
    assert printed.out.count("| in-process | ") == 2 and printed.out.count("associate") == 2
    assert "2 streams, turn 1 of 1: in-process" in printed.err


@pytest.mark.parametrize("words, message", [
    (["--size", "360"], "two sides of 64"),
    (["--size", "tall"], "expected height x width"),
    (["--streams", "0"], "1 to 256 streams"),
    (["--frames", "3"], "--frames: expected 4"),
    (["--ways", "bare,warp"], "unknown are warp"),
])
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert message in capsys.readouterr().err
