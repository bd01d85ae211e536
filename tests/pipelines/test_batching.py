"""The plan of ticks: who may send how many frames, and when a stream is closed."""

from __future__ import annotations

import pytest

from pipelines.batching import Schedule, Tick
from pipelines.placement import Batching
from tests.pipelines.small_stages import source


def _schedule(names: str, streams: int = 4, frames: int = 8) -> Schedule:
    return Schedule([source(name) for name in names], Batching(streams=streams, frames=frames))


def _pulls(tick: Tick) -> str:
    """'a3 b2' for three frames of a and two of b."""
    return " ".join(f"{pull.source.name}{pull.count}" for pull in tick.pulls)


@pytest.mark.parametrize(
    ("names", "streams", "frames", "expected"),
    [
        pytest.param("a", 4, 8, ["a8", "a8"], id="one-stream-takes-all"),
        pytest.param("abcd", 4, 8, ["a2 b2 c2 d2", "a2 b2 c2 d2"], id="even-shares"),
        pytest.param("abc", 4, 8, ["a3 b3 c2", "a3 b2 c3", "a2 b3 c3"], id="the-rest-goes-round"),
        pytest.param("abcd", 4, 2, ["a1 b1", "c1 d1", "a1 b1"], id="fewer-frames-than-streams"),
        pytest.param("abcde", 2, 4, ["a2 b2", "a2 b2"], id="others-wait"),
    ],
)
def test_frames_are_shared_out_in_turn(names, streams, frames, expected):
    schedule = _schedule(names, streams, frames)
    assert [_pulls(schedule.next()) for _ in expected] == expected


def test_no_sources_no_ticks():
    assert _schedule("").next() is None


def test_a_stream_that_ends_is_closed_once_and_makes_room():
    schedule = _schedule("abc", streams=2, frames=2)
    assert _pulls(schedule.next()) == "a1 b1"
    schedule.end("a")
    schedule.end("a")
    tick = schedule.next()
    assert (_pulls(tick), tick.closing, tick.streams) == ("b1 c1", ("a",), ("b", "c", "a"))
    schedule.end("b")
    schedule.end("c")
    tick = schedule.next()
    assert (tick.pulls, tick.closing, tick.number) == ((), ("b", "c"), 2)
    assert schedule.next() is None


def test_a_name_stands_for_one_stream():
    with pytest.raises(AssertionError, match="unique"):
        _schedule("aa").next()


def test_sources_are_taken_when_there_is_room():
    taken = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield source(f"s{number}")

    schedule = Schedule(endless(), Batching(streams=2))
    schedule.next()
    assert taken == [0, 1]
    schedule.end("s1")
    assert [pull.source.name for pull in schedule.next().pulls] == ["s0", "s2"]
    assert taken == [0, 1, 2]
