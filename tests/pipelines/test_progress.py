"""What is shown while a run goes on: numbers that are true, and the stage that holds it up."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from operators.records import FrameInfo, FrameTracks, StreamEnd
from operators.sources import Source
from pipelines import progress
from pipelines.progress import Forecast, View
from pipelines.reports import Report
from pipelines.run import Meter
from pipelines.status import GroupStatus, Status
from pipelines.stream_outputs import SourceSummary
from tests.operators.small_videos import write_video
from tests.pipelines.small_stages import graph, source

PLACEMENT = [{"stages": ["unpack"]}, {"stages": ["paint", "window"]}, {"stages": ["total"]}]


def tracks(stream: str, index: int) -> FrameTracks:
    none = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32), ()
    return FrameTracks(FrameInfo(stream, index, 0.0, 2, 2), *none)


def status(*busy: float) -> Status:
    groups = [GroupStatus(tuple(one["stages"]), 1, waiting=3, under_way=8, busy=share, frames=40, bytes=4_000_000)
              for one, share in zip(PLACEMENT, busy, strict=True)]  # fmt: skip
    return Status(tuple(groups), streams_open=1)


def meter_of(**seconds: float) -> Meter:
    meter = Meter(graph(PLACEMENT))
    meter.add(Report(seconds=seconds))
    return meter


def test_of_sources_nobody_looked_into_the_mean_is_expected():
    forecast = Forecast(4)
    assert forecast.frames() is None
    forecast.begins(source("a", length=10))
    assert forecast.frames() == 40
    forecast.begins(source("b", length=20))
    assert forecast.frames() == 60
    forecast.ended("a", 4)          # it broke off: what came is certain
    assert (forecast.frames(), forecast.num_ended) == (48, 1)


def test_a_video_is_looked_into_beside_the_work_and_a_broken_one_is_no_matter(tmp_path):
    video = write_video(tmp_path / "v.mp4", count=7)
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    forecast = Forecast(2)
    for path in (tmp_path / "broken.mp4", video):
        forecast.begins(Source(Path(path).stem, "video", str(path)))
    deadline = time.monotonic() + 30
    while forecast.frames() is None and time.monotonic() < deadline:
        forecast._thread.join(0.01)
    assert forecast.frames() == 14


def test_nothing_to_do_shows_nothing_but_what_was_done_before():
    told = io.StringIO()
    with View(Console(file=told, width=160)) as view:
        view.began([], [SourceSummary("a", state="done", before=True), SourceSummary("b", state="done", before=True)])
    assert told.getvalue() == "2 of 2 were done before and are not run again (--fresh makes them anew)\n"
    with View(Console(file=told, width=160)) as view:
        assert (view.slowest(), view.line()) == (("", 0.0), "0 frames")


@pytest.mark.parametrize("busy, seconds, slowest", [
    pytest.param((0.2, 0.9, 0.3), {"unpack": 9.0, "paint": 2.0, "window": 1.0}, ("paint", 0.9), id="busiest group"),
    pytest.param((0.2, 0.9, 0.3), {"paint": 2.0, "window": 3.0}, ("window", 0.9), id="of its stages the slower"),
    pytest.param((0.2, 0.9, 0.95), {"paint": 2.0}, ("total", 0.95), id="a group that has told nothing yet"),
])
def test_the_slowest_stage_is_named(busy, seconds, slowest):
    view = View(Console(file=io.StringIO(), width=160))
    view.saw(tracks("a", 0), meter_of(**seconds))
    view.status(status(*busy))
    assert view.slowest() == slowest
    assert f"slowest: {slowest[0]} (busy {slowest[1]:.0%})" in view.line()


def test_writing_is_named_where_the_driver_does_nothing_else(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    view, meter = View(Console(file=io.StringIO(), width=160)), meter_of(paint=1.0)
    view.began([source("a", length=99)], [])
    view.status(status(0.2, 0.6, 0.3))
    for _ in range(5):
        view.saw(tracks("a", 0), meter)
        view.slowest()
        now[0] += 1.0
        meter.seconds["outputs"] += 0.9
    assert view.slowest() == ("outputs", pytest.approx(0.9))


def test_the_line_of_a_log_tells_frames_videos_rate_and_time_left(monkeypatch):
    now, told = [100.0], io.StringIO()
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    sources = [source("a", length=100), source("b", length=200), source("[c]", length=300)]
    meter = meter_of(paint=1.0)
    with View(Console(file=told, width=20)) as view:
        view.began(sources, [])
        for one in sources[:2]:
            view.begins(one)
        for index in range(100):
            now[0] += 0.5
            view.saw(tracks("a", index), meter)
        view.saw(StreamEnd("a", 100), meter)
        view.saw(StreamEnd("[c]", 0, error="'[c].mp4' is text.", fatal=True), meter)
        view.status(status(0.1, 0.8, 0.1))
        assert view.line() == ("100 of 300 frames, 2 of 3 videos, 1 failed, 2.0 frames/s, 2 min left, "
                               "slowest: paint (busy 80%)")  # fmt: skip
    first, second, *_ = told.getvalue().splitlines()
    assert first.startswith("60 of about 450 frames, 0 of 3 videos"), "a line every half minute, however narrow"
    assert second == "error: [c]: '[c].mp4' is text."
    assert told.getvalue().splitlines()[-1] == "100 of 300 frames, 2 of 3 videos, 1 failed"


def test_the_time_left_is_told_once_it_is_known_and_leaves_out_the_start(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    view, meter = View(Console(file=io.StringIO(), width=160)), meter_of(paint=1.0)
    view.began([source("a", length=41)], [])
    view.begins(source("a", length=41))
    now[0] += 1000.0        # a cluster starts
    lines = []
    for index in range(41):
        view.saw(tracks("a", index), meter)
        lines.append(view.line())
        now[0] += 1.0
    assert not any("left" in line for line in (*lines[:3], lines[40]))
    assert "37 s left" in lines[3] and "1 s left" in lines[39]


def test_on_a_terminal_it_is_a_view_with_a_line_a_group():
    shown = io.StringIO()
    console = Console(file=shown, width=120, force_terminal=True, color_system=None, legacy_windows=False)
    with View(console) as view:
        view.began([source("a", length=9)], [])
        view.begins(source("a", length=9))
        view.saw(tracks("a", 0), meter_of(paint=2.0, window=1.0))
        view.status(status(0.25, 0.75, 0.5))
    with console.capture() as captured:
        console.print(view._render())
    lines = captured.get().splitlines()
    assert lines[0].startswith("1 of 9 frames") and "slowest: paint (busy 75%)" in lines[0]
    table = {line.split()[0 if not line.startswith("slowest") else 1].rstrip(","): line for line in lines[3:]}
    assert set(table) == {"unpack", "paint", "total", "(outputs"}
    assert table["paint"].split()[:7] == ["slowest", "paint,", "window", "1", "3", "8", "75%"]
    assert table["unpack"].split()[:5] == ["unpack", "1", "3", "8", "25%"]


def test_listeners_hear_every_status():
    heard = []
    view = View(Console(file=io.StringIO()), listeners=[heard.append])
    view.status(status(0.1, 0.2, 0.3))
    assert heard == [status(0.1, 0.2, 0.3)]


@pytest.mark.parametrize("seconds, text", [
    (0, "0 s"), (99.4, "99 s"), (100, "2 min"), (5940, "99 min"), (6000, "1 h 40 min"), (90061, "25 h 01 min"),
])  # fmt: skip
def test_durations(seconds, text):
    assert progress._duration(seconds) == text
