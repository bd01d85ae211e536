"""Times of live frames: steady where the stream is, rising whatever it does, and no further off than the arrivals."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError
from operators.live.clocks import JUMP_S, LiveClock, Pacer, Punctuality, Rate
from operators.live.states import Backoff, CameraConfig, PushedConfig


def times(frames: list[tuple[float | None, float]]) -> list[float]:
    clock = LiveClock()
    return [clock(media_s, arrived_s) for media_s, arrived_s in frames]


@pytest.mark.parametrize("frames, expected", [
    pytest.param([], [], id="no frame"),
    pytest.param([(None, 7.0), (None, 7.5), (None, 8.0)], [0, 0.5, 1.0], id="no times: arrivals"),
    pytest.param([(90.0, 7.0), (90.5, 7.9), (91.0, 8.1)], [0, 0.5, 1.0], id="the stream's own are steadier"),
    pytest.param([(1.0, 0.0), (1.2, 0.0), (1.4, 0.0)], [0, 0.2, 0.4], id="a burst at the start"),
    pytest.param([(1.0, 0.0), (1.5, 0.5), (9000.0, 1.0), (9000.5, 1.5)], [0, 0.5, 1.0, 1.5], id="a jump ahead"),
    pytest.param([(9000.0, 0.0), (9000.5, 0.5), (1.0, 1.0), (1.5, 1.5)], [0, 0.5, 1.0, 1.5], id="a jump back"),
    pytest.param([(5.0, 0.0), (5.5, 0.5), (4.0, 1.0), (4.5, 1.5)], [0, 0.5, 1.0, 1.5], id="a small jump back"),
    pytest.param([(5.0, 0.0), (5.0, 1.0), (5.0, 2.0)], [0, 0.04, 0.08], id="times that stand still"),
    pytest.param([(5.0, 0.0), (5.5, 0.5), (5.2, 1.0)], [0, 0.5, 1.0], id="one out of order"),
])  # fmt: skip
def test_times(frames, expected):
    assert times(frames) == pytest.approx(expected)


def test_a_new_connection_goes_on_where_the_arrivals_are():
    clock = LiveClock()
    assert [clock(50.0, 0.0), clock(51.0, 1.0)] == [0.0, 1.0]
    clock.reconnected()
    assert [clock(3.0, 31.0), clock(4.0, 32.2)] == [31.0, 32.0]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.one_of(st.none(), st.floats(-1e6, 1e6)), st.floats(0, 10), st.booleans()), max_size=40))
def test_whatever_a_stream_says_times_rise_and_stay_near_the_arrivals(frames):
    clock, now, last = LiveClock(), 0.0, None
    for number, (media_s, step, reconnected) in enumerate(frames):
        now += step + 0.01 if number else 0.0
        if reconnected:
            clock.reconnected()
        shown = clock(media_s, now)
        assert last is None or shown > last
        assert abs(shown - now) <= JUMP_S + number, "each frame that comes early may be a step of at most a second"
        last = shown


@pytest.mark.parametrize("frames, expected", [
    pytest.param([(3.0, 10.0), (3.5, 10.1), (4.0, 10.2)], [10.0, 10.5, 11.0], id="ahead: it waits"),
    pytest.param([(3.0, 10.0), (3.5, 11.0), (4.0, 11.1)], [10.0, 11.0, 11.1], id="a little late: it catches up"),
    pytest.param([(3.0, 10.0), (3.5, 15.0), (4.0, 15.1)], [10.0, 15.0, 15.5], id="much late: it goes on from there"),
    pytest.param([(3.0, 10.0), (0.0, 11.0), (0.5, 11.1)], [10.0, 11.0, 11.5], id="back: it begins anew"),
])  # fmt: skip
def test_recordings_are_paced(frames, expected):
    pacer = Pacer()
    assert [pacer.due(media_s, now_s) for media_s, now_s in frames] == pytest.approx(expected)


@pytest.mark.parametrize("frames, late", [
    pytest.param([(7.0, 100.0)], 0.0, id="the first"),
    pytest.param([(7.0 + t / 10, 100.0 + t / 10) for t in range(200)], 0.0, id="punctual"),
    pytest.param([(7.0 + t / 10, 100.0 + t / 6) for t in range(200)], 0.0, id="at six tenths: its times may be wrong"),
    pytest.param([(7.0 + t / 10, 100.0 + t) for t in range(9)], 8 * 0.9, id="at a tenth: later and later"),
    pytest.param([(7.0, 100.0), (9000.0, 106.0), (9000.1, 107.0)], 0.9, id="late since a jump"),
    pytest.param([(7.0 + t / 10, 100.0 + t / 10) for t in range(50)] + [(12.1, 112.0)], 7.0, id="one after a pause"),
])  # fmt: skip
def test_streams_that_fall_behind(frames, late):
    punctuality = Punctuality(8.0)
    assert [now_s - punctuality.due(media_s, now_s) for media_s, now_s in frames][-1] == pytest.approx(late, abs=0.11)


def test_rates_are_those_of_the_last_seconds():
    rate = Rate()
    assert rate.fps(0.0) == 0.0
    for number in range(100):
        rate.saw(number / 25)
    assert rate.fps(4.0) == pytest.approx(25)
    rate.saw(100.0)
    assert rate.fps(100.0) == 0.0
    for number in range(1, 41):
        rate.saw(100.0 + number / 10)
    assert rate.fps(104.0) == pytest.approx(10) and rate.fps(200.0) == 0.0


def test_waits_double_up_to_a_limit_and_are_spread_over_all_of_it():
    waits = [[backoff.next() for _ in range(8)]
             for backoff in (Backoff(0.5, 2.5, random.Random(seed)) for seed in range(400))]
    for attempt, limit in enumerate([0.5, 1.0, 2.0, 2.5, 2.5, 2.5, 2.5, 2.5]):
        column = sorted(wait[attempt] for wait in waits)
        assert 0 <= column[0] < 0.1 * limit and 0.9 * limit < column[-1] <= limit
        assert column[200] == pytest.approx(limit / 2, abs=0.1 * limit)
    again = Backoff(0.5, 2.5, random.Random(0))
    late = [again.next() for _ in range(2000)]
    again.reset()
    assert again.next() <= 0.5 and max(late) <= 2.5


@pytest.mark.parametrize("chosen, named", [
    ({"connect_s": 0}, "connect_s"), ({"silence_s": float("nan")}, "silence_s"), ({"retry_max_s": 1e9}, "retry_max_s"),
    ({"max_pixels": 0}, "max_pixels"), ({"threads": 0}, "threads"), ({"rtsp_transport": "http"}, "rtsp_transport"),
])  # fmt: skip
def test_settings_out_of_range_are_named(chosen, named):
    with pytest.raises(ConfigError, match=named):
        CameraConfig(**chosen)


@pytest.mark.parametrize("chosen", [{"max_bytes": 3}, {"max_pixels": 1 << 40}, {"max_rate": float("nan")}])
def test_settings_of_pushed_streams_out_of_range_are_named(chosen):
    with pytest.raises(ConfigError, match=next(iter(chosen))):
        PushedConfig(**chosen)


def test_times_rise_even_where_steps_are_tiny():
    shown = times([(index * 1e-5, index * 1e-5) for index in range(50)])
    assert all(after > before for before, after in pairwise(shown))
