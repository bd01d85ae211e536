"""Where a run stands: what is added up, and when it is told."""

from __future__ import annotations

import numpy as np
import pytest

from operators.records import FrameFault, FrameInfo, FrameTracks, StreamEnd
from pipelines import status
from pipelines.graph import RunContext
from pipelines.local import run_local
from pipelines.reports import Report
from pipelines.status import GroupStatus, Ledger, Status, Teller
from tests.pipelines.small_stages import graph, source

TWO = graph([{"stages": ["unpack"], "replicas": 2}, {"stages": ["paint", "window", "total"]}])
INFO = FrameInfo("a", 0, 0.0, 1, 1)
NOTHING = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, 4), np.float32)


def test_nothing_yet():
    ledger = Ledger(TWO)
    groups = tuple(ledger.groups(0.0))
    assert groups == (GroupStatus(("unpack",), 2), GroupStatus(("paint", "window", "total"), 1))
    assert ledger.status(groups, 0) == Status(groups)


def test_groups_add_up():
    ledger = Ledger(TWO)
    ledger.add(0, Report(seconds={"unpack": 1.0}, bytes={"unpack": 7}, streams={"a": 2, "b": 1}))
    ledger.add(1, Report(seconds={"paint": 3.0, "total": 9.0}, bytes={"paint": 100, "total": 5}, streams={"a": 1}))
    first, second = ledger.groups(4.0)
    assert (first.busy, first.frames, first.bytes) == (1.0 / 2 / 4, 3, 7)
    assert (second.busy, second.frames, second.bytes) == (1.0, 1, 5)  # more than there was time for is all of it
    again, _ = ledger.groups(4.0)
    assert (again.busy, again.frames) == (0.0, 3)


def test_results_add_up():
    ledger = Ledger(TWO)
    for result in (
        FrameTracks(INFO, *NOTHING, ()),
        FrameFault(INFO, "torn"),
        StreamEnd("a", 2),
        StreamEnd("b", 0, error="gone", fatal=True),
    ):
        ledger.gave(result)
    told = ledger.status((), 3, rewinds=4)
    assert (told.streams_open, told.streams_done, told.streams_failed) == (3, 2, 1)
    assert (told.frames, told.faults, told.dropped, told.rewinds) == (2, 1, 0, 4)


def test_it_is_told_when_it_is_time(monkeypatch: pytest.MonkeyPatch):
    now = [10.0]
    monkeypatch.setattr(status.time, "monotonic", lambda: now[0])
    heard: list[float] = []
    teller = Teller(heard.append, lambda passed: passed)
    for now[0] in (10.1, 10.4, 10.5, 10.9, 11.2):
        teller.tell()
    teller.tell(now=True)
    assert heard == pytest.approx([0.5, 0.7, 0.0])


def test_nobody_asked():
    Teller(None, lambda passed: pytest.fail("nobody listens")).tell(now=True)


def test_a_run_in_this_process_tells_at_its_end():
    heard: list[Status] = []
    list(run_local(TWO, [source("a", "ok", "fault", "ok")], RunContext(device="cpu"), on_status=heard.append))
    last = heard[-1]
    assert (last.streams_done, last.frames, last.faults) == (1, 3, 1)
    assert [group.frames for group in last.groups] == [2, 2]
