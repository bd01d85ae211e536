"""Stages that share a process: what they hold back, what they report, and whom a failure hits."""

from __future__ import annotations

import numpy as np
import pytest

from operators.errors import StageError
from operators.records import FrameFault, Pull, StreamEnd
from pipelines.graph import RunContext
from pipelines.group import StageGroup
from tests.pipelines.contract import check_stream_stage
from tests.pipelines.small_stages import Total, TotalConfig, Unpack, Window, WindowConfig, graph, source


def _group(*names: str, **settings) -> StageGroup:
    read = graph(**settings)
    return StageGroup([stage for stage in read.stages if not names or stage.name in names], RunContext())


def _told(records) -> list[tuple]:
    return [(r.info.stream, r.info.index, int(r.track_ids[0]), float(r.scores[0])) for r in records]


def test_nothing_in_nothing_out():
    records, report = _group().process([])
    assert records == []
    assert (report.events, report.failures, report.seconds, report.frames) == ((), (), {}, {})


def test_close_gives_what_was_held_back_through_the_later_stages():
    group = _group()
    records, _ = group.process([Pull(source("a", length=4), 4)])
    # values after paint 1 2 3 4; windows (1 2 3) (3 4 .): the first gives frames 0 and 1
    assert _told(records) == [("a", 0, 1, 6.0), ("a", 1, 2, 12.0)]
    records, report = group.close("a")
    assert _told(records) == [("a", 2, 3, 19.0), ("a", 3, 4, 26.0)]
    assert report.frames == {"unpack": 0, "window": 2, "total": 2}
    assert group.close("a")[0] == []


def test_events_leave_at_once_and_take_no_stage_with_them():
    group = _group()
    bad = source("a", "ok", "fault", "ok")
    records, report = group.process([Pull(bad, 4)])
    assert records == []  # one frame is missing for the window
    fault, end = report.events
    assert isinstance(fault, FrameFault) and (fault.info.index, fault.reason) == (1, "a torn packet")
    assert end == StreamEnd("a", num_frames=3)
    assert report.frames == {"unpack": 2, "paint": 2, "window": 0}
    assert set(report.seconds) == {"unpack", "paint", "window"}


def test_pulls_after_the_end_are_let_go():
    group = _group()
    one = source("a", length=1)
    assert [type(event) for event in group.process([Pull(one, 2)])[1].events] == [StreamEnd]
    assert group.process([Pull(one, 2)])[1].events == ()


def test_streams_are_kept_apart_and_in_the_order_asked_for():
    group = _group()
    pulls = [Pull(source("a", length=3), 3)], [Pull(source("b", length=3), 3)]
    records, _ = group.process(*pulls, streams=("b", "a"))
    assert _told(records) == [("b", 0, 1, 6.0), ("b", 1, 2, 12.0), ("a", 0, 1, 6.0), ("a", 1, 2, 12.0)]


def test_a_replica_takes_its_own_streams_alone():
    group = _group()
    records, _ = group.process([Pull(source(name, length=3), 3) for name in "abc"], streams=("b",))
    assert {record.info.stream for record in records} == {"b"}


def test_closing_in_the_same_call_comes_after_the_records():
    records, report = _group().process([Pull(source("a", length=2), 3)], streams=("a",), closing=("a",))
    assert _told(records) == [("a", 0, 1, 3.0), ("a", 1, 2, 6.0)]
    assert report.events == (StreamEnd("a", num_frames=2),)


def test_a_failure_without_memory_ends_its_stream_before_the_frame():
    group = _group()
    pulls = [Pull(source("a", "ok", "ok", "ok", "poison", "ok"), 5), Pull(source("b", length=3), 3)]
    records, report = group.process(pulls)
    assert _told(records) == [("a", 0, 1, 6.0), ("a", 1, 2, 12.0), ("b", 0, 1, 6.0), ("b", 1, 2, 12.0)]
    (failure,) = report.failures
    assert (failure.stream, failure.reason) == (
        "a",
        "paint, stream 'a', frame 3: ValueError: this frame is poisoned",
    )
    assert 'raise ValueError("this frame is poisoned")' in failure.trace
    records, report = group.process([Pull(source("a", length=9), 2)])
    assert (records, report.failures) == ([], ())  # over is over
    records, _ = group.close("a")
    assert _told(records) == [("a", 2, 3, 15.0)]  # it had passed `paint` before


def test_a_failure_with_memory_ends_its_stream_alone():
    group = _group(total={"fail_at": 1})
    records, report = group.process([Pull(source("bad", length=3), 3), Pull(source("good", length=3), 3)])
    assert _told(records) == [("bad", 0, 1, 6.0), ("good", 0, 1, 6.0), ("good", 1, 2, 12.0)]  # what came before is good
    (failure,) = report.failures
    assert failure.reason == "total, stream 'bad', frame 1: RuntimeError: no more of this"
    assert _told(group.close("bad")[0]) == []


def test_after_its_close_a_name_may_be_used_again():
    group = _group(total={"fail_at": 0})
    assert len(group.process([Pull(source("bad", length=3), 3)])[1].failures) == 1
    group.close("bad")
    assert len(group.process([Pull(source("bad", length=3), 3)])[1].failures) == 1


class _Picky:
    """Frame -> Frame: wants one at a time, and fails only when there are more."""

    def __call__(self, batch):
        if len(batch) > 1:
            raise MemoryError("too many")
        return batch


def test_a_batch_that_fails_though_none_of_its_frames_does_is_a_failure_of_all():
    group = _group()
    group._stages[1] = _Picky()
    records, report = group.process([Pull(source(name, length=2), 2) for name in "ab"])
    assert records == []
    assert [failure.reason for failure in report.failures] == [
        f"paint, stream '{name}', frames 0 to 1, together though not one by one: MemoryError: too many" for name in "ab"
    ]


@pytest.mark.parametrize("cut", range(7))
def test_a_snapshot_is_taken_up_elsewhere(cut):
    one = source("a", length=6)
    calm, first, second = _group(), _group(), _group()
    expected = [_told(calm.process([Pull(one, 1)])[0]) for _ in range(6)] + [_told(calm.close("a")[0])]
    given = [_told(first.process([Pull(one, 1)], streams=("a",))[0]) for _ in range(cut)]
    first.process(streams=("a",))  # open, even before the first frame
    second.restore("a", first.snapshot("a"))
    rest = [_told(second.process([Pull(one, 1)])[0]) for _ in range(6 - cut)] + [_told(second.close("a")[0])]
    assert given + rest == expected


@pytest.mark.parametrize(
    ("state", "message"),
    [
        pytest.param(b"", "the snapshot is damaged", id="empty"),
        pytest.param(b"{", "the snapshot is damaged", id="no-json"),
        pytest.param(b"[[1]]\n", "the snapshot is damaged", id="no-pairs"),
        pytest.param(b"[]\n", "is none of", id="of-no-stage"),
        pytest.param(b'[["unpack", 1], ["window", 1], ["total", 1]]\n12', "is none of", id="cut-short"),
    ],
)
def test_a_snapshot_of_something_else_is_refused(state, message):
    with pytest.raises(StageError, match=message):
        _group().restore("a", state)


def test_the_small_stages_keep_the_contract():
    one = source("a", *["ok"] * 5, "fault", "ok")
    check_stream_stage(Unpack, [[Pull(one, count)] for count in (1, 0, 3, 4, 2)], "a")
    unpack = Unpack()
    unpack.open("b")
    frames = unpack([Pull(source("b", length=7), 7)])
    for make in (lambda: Window(WindowConfig()), lambda: Total(TotalConfig())):
        check_stream_stage(make, [frames[:1], frames[1:4], frames[4:]], "b")


class _Forgetful(Total):
    """Breaks the contract: a snapshot leaves something out."""

    def snapshot(self, stream: str) -> bytes:
        count, _ = self._state[stream]
        return f"[{count}, 0]".encode()


def test_the_contract_catches_a_stage_that_forgets():
    unpack = Unpack()
    unpack.open("b")
    frames = unpack([Pull(source("b", length=3), 3)])
    assert np.all(frames[2].image == 2)
    with pytest.raises(AssertionError, match="after 2 batches a snapshot was restored"):
        check_stream_stage(lambda: _Forgetful(TotalConfig()), [[frame] for frame in frames], "b")
