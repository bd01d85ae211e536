"""Receive: what is at hand and nothing else, under numbers and times that go on through restores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import ConfigError, StageError
from operators.live.queue import LiveFrame, LiveQueue, QueueCounts
from operators.live.stage import LiveConfig, Receive
from operators.records import Frame, FrameInfo, Pull, StreamEnd


def frame(index: int, captured_at: float, stream: str = "a") -> LiveFrame:
    image = np.full((1, 1, 3), index % 256, np.uint8)
    return LiveFrame(Frame(FrameInfo(stream, index, index / 4, 1, 1), image), captured_at)


def filled(count: int, start_s: float = 1000.0, limit: int = 64) -> LiveQueue:
    queue = LiveQueue(limit)
    for index in range(count):
        queue.put(frame(index, start_s + index / 4))
    return queue


def seen(records: list[Frame | StreamEnd]) -> list[tuple[int, float]]:
    return [(record.info.index, record.info.time_s) for record in records if isinstance(record, Frame)]


def opened(queue: LiveQueue | None = None) -> Receive:
    stage = Receive()
    stage.open("a")
    if queue is not None:
        stage.attach("a", queue)
    return stage


def test_a_stream_without_a_source_gives_nothing():
    stage = opened()
    assert stage([]) == [] and stage([Pull("a", 5)]) == [] and stage.counts("a") == QueueCounts()
    stage.attach("a", filled(0))
    assert stage([Pull("a", 5), Pull("a", 0)]) == []


def test_frames_at_hand_in_order_and_one_end():
    queue = filled(5)
    stage = opened(queue)
    assert seen(stage([Pull("a", 2)])) == [(0, 0.0), (1, 0.25)]
    assert seen(stage([Pull("a", 9)])) == [(2, 0.5), (3, 0.75), (4, 1.0)] and stage([Pull("a", 9)]) == []
    queue.close("it was unplugged")
    assert stage([Pull("a", 9)]) == [StreamEnd("a", 5, error="it was unplugged")]
    assert stage([Pull("a", 9)]) == []
    assert stage.captured_at("a", 3) == 1000.75 and stage.captured_at("a", 5) is None
    assert stage.counts("a") == QueueCounts(5, 5, {}, 0)


def test_streams_of_one_batch_each_in_turn():
    stage = opened(filled(2))
    stage.open("b")
    other = LiveQueue(4)
    other.put(frame(0, 5.0, "b"))
    stage.attach("b", other)
    records = stage([Pull("b", 3), Pull("a", 1), Pull("b", 3)])
    assert [(record.info.stream, record.info.index) for record in records] == [("b", 0), ("a", 0)]


def test_a_stream_that_is_not_open_is_an_error_and_takes_nothing_of_the_others():
    queue = filled(2)
    stage = opened(queue)
    with pytest.raises(StageError, match="'b'"):
        stage([Pull("a", 2), Pull("b", 1)])
    assert queue.counts().waiting == 2


def test_a_restored_stream_goes_on_in_number_and_time():
    first = opened(filled(3))
    first([Pull("a", 9)])
    second = Receive()
    second.restore("a", first.snapshot("a"))
    second.attach("a", filled(3, start_s=1010.0))       # its source counts from 0, ten seconds after the first frame
    assert seen(second([Pull("a", 9)])) == [(3, 10.0), (4, 10.25), (5, 10.5)]
    assert second.counts("a") == QueueCounts(6, 6, {}, 0)


def test_frames_lost_in_a_restart_are_counted():
    first = opened(filled(3))
    first([Pull("a", 9)])
    second = Receive()
    second.attach("a", filled(2, start_s=1010.0))
    second.restore("a", first.snapshot("a"))
    second.skip_to("a", 10, "restarted")
    second.skip_to("a", 4, "restarted")                 # behind: nothing to skip
    assert second.counts("a") == QueueCounts(12, 3, {"restarted": 7}, 2)
    assert [index for index, _ in seen(second([Pull("a", 9)]))] == [10, 11]
    second.skip_to("a", 20, "restarted")
    second._queues["a"].put(frame(2, 1020.0))
    assert [index for index, _ in seen(second([Pull("a", 9)]))] == [20]
    assert second.counts("a") == QueueCounts(3 + 7 + 2 + 8 + 1, 6, {"restarted": 15}, 0)


def test_a_source_that_takes_over_goes_on_and_the_old_ones_frames_count_as_stopped():
    old = filled(4)
    stage = opened(old)
    stage([Pull("a", 2)])
    stage.attach("a", filled(2, start_s=2000.0))
    assert old.closed and old.counts() == QueueCounts(4, 2, {"stopped": 2}, 0)
    assert [index for index, _ in seen(stage([Pull("a", 9)]))] == [2, 3]
    assert stage.counts("a") == QueueCounts(6, 4, {"stopped": 2}, 0)


def test_frames_that_the_queue_dropped_leave_gaps_in_the_numbers():
    stage = opened(filled(10, limit=3))
    assert [index for index, _ in seen(stage([Pull("a", 9)]))] == [7, 8, 9]
    assert stage.counts("a") == QueueCounts(10, 3, {"queue_full_oldest": 7}, 0)


def test_capture_times_are_kept_for_the_last_frames_alone():
    stage = Receive(LiveConfig(remember=2))
    stage.open("a")
    stage.attach("a", filled(5))
    stage([Pull("a", 9)])
    assert [stage.captured_at("a", index) for index in range(5)] == [None, None, None, 1000.75, 1001.0]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.sampled_from(["put", "pull", "restore", "skip", "attach", "lose"]), max_size=40))
def test_in_any_order_counts_add_up_and_numbers_and_times_rise(acts):
    """Restores come right after a snapshot, as when a replica is moved."""
    now, source_index = 1000.0, 0
    queue = LiveQueue(3)
    stage = opened(queue)
    given: list[tuple[int, float]] = []
    for act in acts:
        now += 0.125
        if act == "put":
            queue.put(frame(source_index, now))
            source_index += 1
        elif act == "pull":
            given += seen(stage([Pull("a", 2)]))
        elif act == "skip":
            stage.skip_to("a", (given[-1][0] if given else 0) + 3, "restarted")
        elif act == "lose":
            queue.lost("damaged")
        else:
            if act == "restore":
                state = stage.snapshot("a")
                stage = Receive()
                stage.restore("a", state)
            queue, source_index = LiveQueue(3), 0
            stage.attach("a", queue)
        counts = stage.counts("a")
        assert counts.frames_in == counts.taken + sum(counts.dropped.values()) + counts.waiting
        assert counts.taken == len(given)
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in zip(given, given[1:], strict=False)), given


@pytest.mark.parametrize("chosen", [{"queue": 0}, {"policy": "drop"}, {"remember": 0}])
def test_settings_out_of_range_are_named(chosen):
    with pytest.raises(ConfigError, match=next(iter(chosen))):
        LiveConfig(**chosen)
