"""A trace: what viewers need of it, a frame's way through a real run, and files that are cut or none of ours."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import pytest
from rich.console import Console

from operators.errors import ConfigError
from pipelines import trace
from pipelines.cli import main
from pipelines.graph import RunContext
from pipelines.local import run_local
from pipelines.reports import Failure, Report, Span
from pipelines.trace import Step, TraceWriter, slowest, way
from pipelines.trace_show import bar, print_way
from tests.pipelines import small_stages

STAGES = ("unpack", "paint", "window", "total")
GRAPH = small_stages.graph(placement=[{"stages": ["unpack", "paint"]}, {"stages": ["window", "total"]}])


def span(stage: str, start_ms: float, ms: float, *frames: tuple[str, int, int], process: str = "node 1") -> Span:
    return Span(stage, process, start_ms / 1000, ms / 1000, frames)


def written(path: Path, *spans: Span) -> list[dict]:
    with TraceWriter(path, GRAPH) as writer:
        writer.watch(Report(spans=spans))
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("spans", "phases"),
    [
        pytest.param([], [], id="no call"),
        pytest.param([span("unpack", 0, 5)], ["M", "M", "M", "M", "X"], id="a call that gave no frame"),
        pytest.param([span("unpack", 0, 5, ("a", 0, 1))], ["M", "M", "M", "M", "X", "s", "s"], id="the first stage"),
        pytest.param(
            [span("unpack", 0, 5, ("a", 7, 7)), span("paint", 5, 1, ("a", 7, 7)), span("total", 7, 1, ("a", 7, 7))],
            ["M", "M", "M", "M", "X", "s", "X", "t", "M", "M", "M", "M", "X", "f"],
            id="to the last, in one process",
        ),
    ],
)
def test_events(spans, phases, tmp_path):
    assert [event["ph"] for event in written(tmp_path / "t.json", *spans)] == phases


def test_a_slice_and_its_arrows_in_microseconds(tmp_path):
    events = written(tmp_path / "t.json", span("paint", 1500, 2.5, ("a", 3, 4), ("b", 0, 0)))
    (call,) = [event for event in events if event["ph"] == "X"]
    assert (call["name"], call["ts"], call["dur"]) == ("paint", 1_500_000, 2500)
    assert call["args"] == {"frames": [["a", 3, 4], ["b", 0, 0]]}
    arrows = [event for event in events if event["ph"] == "t"]
    assert all(event[key] == call[key] for event in arrows for key in ("pid", "tid", "ts"))   # they bind to this slice
    assert len({event["id"] for event in arrows}) == 3 and max(event["id"] for event in arrows) < 1 << 53
    names = {event["args"]["name"] for event in events if event["name"] in ("process_name", "thread_name")}
    assert names == {"unpack+paint: node 1", "unpack", "paint"}


def test_every_frame_of_a_run_goes_through_all_stages(tmp_path):
    sources = [small_stages.source("a", length=7), small_stages.source("b", "ok", "fault", "ok")]
    path = tmp_path / "runs" / "t.json"
    with TraceWriter(path, GRAPH) as writer:
        results = list(run_local(GRAPH, sources, RunContext(trace=True), writer.watch))
    assert len(results) == 7 + 3 + 2 and writer.note is None
    events = json.loads(path.read_text())
    slices = {(e["pid"], e["tid"], e["ts"]): e for e in events if e["ph"] == "X"}
    rows = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert {row[:2]: e["name"] for row, e in slices.items()} == rows, "every row has its title, in one process too"
    assert [e["args"]["name"].partition(":")[0] for e in events if e["name"] == "process_name"][-1] == (
        "unpack+paint, window+total"
    )
    ways: dict[int, list[tuple[float, str, str]]] = {}
    for event in events:
        if event["ph"] in "stf":
            call = slices[event["pid"], event["tid"], event["ts"]]
            ways.setdefault(event["id"], []).append((event["ts"], call["name"], event["ph"]))
    whole = [sorted(way, key=lambda point: STAGES.index(point[1])) for way in ways.values() if len(way) > 1]
    assert len(whole) == 7 + 2   # the fault is seen by the first stage alone
    for points in whole:
        assert [point[1:] for point in points] == list(zip(STAGES, "sttf", strict=True))
        assert points == sorted(points, key=lambda point: point[0])
    steps = way(path, "a", 6)
    assert [step.stage for step in steps] == list(STAGES) and slowest(path)[0] in ("a", "b")


def test_the_way_of_a_frame_and_the_slowest(tmp_path):
    written(
        tmp_path / "t.json",
        span("unpack", 1000, 10, ("a", 0, 3)),
        span("paint", 1010, 20, ("a", 0, 1), ("b", 9, 9)),
        span("total", 1500, 2, ("a", 1, 1), process="node 2"),
    )
    assert way(tmp_path / "t.json", "a", 1) == [
        Step("unpack", 1, 1.0, 0.01, 4), Step("paint", 1, 1.01, 0.02, 3), Step("total", 2, 1.5, 0.002, 1),
    ]  # fmt: skip
    assert slowest(tmp_path / "t.json") == ("a", 1)
    with pytest.raises(ConfigError, match="has no frame 4 of a stream 'a'"):
        way(tmp_path / "t.json", "a", 4)


def test_a_run_that_breaks_leaves_a_whole_file(tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(KeyboardInterrupt), TraceWriter(path, GRAPH) as writer:
        writer.watch(Report(spans=(span("unpack", 0, 5, ("a", 0, 0)),), failures=(Failure("a", "total, a: no"),)))
        raise KeyboardInterrupt
    events = json.loads(path.read_text())
    assert events[-1]["name"] == "stream failed" and events[-1]["args"]["reason"] == "total, a: no"
    assert [entry.name for entry in tmp_path.iterdir()] == ["t.json"]
    writer.close()   # once more does no harm
    before = path.read_text()
    with TraceWriter(path, GRAPH) as writer:
        pass         # a run that is refused, or has nothing to do
    assert path.read_text() == before and "nothing was run" in writer.note
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_a_killed_run_leaves_a_part_that_can_be_read(tmp_path):
    writer = TraceWriter(tmp_path / "t.json", GRAPH)
    writer.watch(Report(spans=tuple(span("unpack", i, 1, ("a", i, i)) for i in range(2000))))
    (part,) = tmp_path.iterdir()   # as it lies on disk: cut anywhere, often within a line
    cut = tmp_path / "cut.json"
    cut.write_text(part.read_text().rpartition("\n")[0])
    assert len(cut.read_text()) > 100_000 and way(cut, "a", 500)[0].stage == "unpack"
    writer.close()


def test_a_trace_ends_at_its_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "MAX_BYTES", 2000)
    with TraceWriter(tmp_path / "t.json", GRAPH) as writer:
        for i in range(100):
            writer.watch(Report(spans=(span("unpack", i, 1, ("a", i, i)),)))
    assert "ends at 0 MiB, before the run did" in writer.note
    assert len((tmp_path / "t.json").read_text()) < 2010 and json.loads((tmp_path / "t.json").read_text())


def test_a_trace_that_has_no_place_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        TraceWriter(tmp_path / "file" / "t.json", GRAPH)


CALL = {"ph": "X", "name": "paint", "ts": 1, "dur": 1, "pid": 1, "args": {"frames": [["a", 0, 0]]}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", "a trace without a frame", id="empty"),
        pytest.param("[\n]", "a trace without a frame", id="no event"),
        pytest.param("[\nnonsense", "line 2 is not JSON.", id="no JSON"),
        pytest.param("[\n7,", "line 2: TypeError", id="no event but a number"),
        pytest.param("[" * 200_000, "line 1: RecursionError", id="nested"),
        pytest.param(json.dumps(CALL | {"dur": float("nan")}), "out of range", id="NaN"),
        pytest.param(json.dumps(CALL | {"ts": -1}), "out of range", id="before time"),
        pytest.param(json.dumps(CALL | {"name": 5}), "a name is no text", id="no name"),
        pytest.param(json.dumps(CALL | {"args": {"frames": [["a", 0, 1 << 40]]}}), "a million", id="too many frames"),
        pytest.param(json.dumps(CALL | {"args": {}}), "KeyError", id="no frames"),
        pytest.param("\xff\n", "it is not text in UTF-8.", id="no text"),
    ],
)
def test_what_is_no_trace_is_refused(text, message, tmp_path):
    (tmp_path / "t.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=re.escape(message)):
        slowest(tmp_path / "t.json")


def test_a_trace_that_is_not_there(tmp_path):
    with pytest.raises(ConfigError, match="t.json: cannot be read: No such file or directory[.]$"):
        slowest(tmp_path / "t.json")


# ------------------------------------------------------------------------------------------------------- the terminal


@pytest.mark.parametrize(
    ("start_ms", "ms", "free_ms", "drawn"),
    [
        pytest.param(0, 50, 0, "█" * 20, id="at once"),
        pytest.param(50, 50, 25, " " * 10 + "·" * 10 + "█" * 20, id="after a wait"),
        pytest.param(50, 0, 50, " " * 20 + "█", id="too short to show is shown"),
        pytest.param(100, 0, 100, " " * 39 + "█", id="at the very end too"),
        pytest.param(25, 50, 50, " " * 10 + "█" * 20, id="done again, before the last one's end"),
    ],
)
def test_bar(start_ms, ms, free_ms, drawn):
    assert bar(Step("s", 1, start_ms / 1000, ms / 1000, 1), free_ms / 1000, 0.0, 0.1, 40) == drawn


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_terminal_tells_what_a_frame_waited_for(width, tmp_path, capsys):
    spans = (span("unpack", 0, 10, ("a\x1b[2J", 0, 3)), span("total", 90, 10, ("a\x1b[2J", 2, 2)))
    written(tmp_path / "t.json", *spans)
    console = Console(width=width, record=True, file=io.StringIO())
    print_way("a\x1b[2J", 2, way(tmp_path / "t.json", "a\x1b[2J", 2), console)
    text = console.export_text()
    assert "a\\x1b[2J, frame 2: 100.0 ms" in text and "\x1b" not in text
    row = next(line for line in text.splitlines() if "total" in line)
    assert row.split()[:6] == ["total", "1", "90.0", "80.0", "10.0", "1"] and row.split()[6].strip("·█") == ""
    assert max(map(len, text.splitlines())) <= width
    assert "20.0 ms in stages, 80.0 ms between them" in text
    assert main(["graph", "trace", str(tmp_path / "t.json")]) == 0 and "frame 2: 100.0 ms" in capsys.readouterr().out


@pytest.mark.parametrize(
    "frame", ["", "a", ":3", "a:-1", "a:" + "9" * 40], ids=["empty", "no-number", "no-name", "negative", "long"]
)
def test_a_frame_that_cannot_be_meant(frame, tmp_path, capsys):
    written(tmp_path / "t.json", span("unpack", 0, 10, ("a", 0, 3)))
    code = main(["graph", "trace", str(tmp_path / "t.json"), f"--frame={frame}"])
    assert (code, "expected STREAM:NUMBER" in capsys.readouterr().err) == (2, True)
