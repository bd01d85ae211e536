"""The queue between a source and the graph: what each policy keeps, and counts that add up whenever one looks."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from operators.errors import ConfigError
from operators.live.queue import POLICIES, LiveFrame, LiveQueue, QueueCounts
from operators.records import Frame, FrameInfo

WAIT_S = 20.0


def frame(index: int) -> LiveFrame:
    return LiveFrame(Frame(FrameInfo("a", index, index / 10, 1, 1), np.zeros((1, 1, 3), np.uint8)), 1000.0 + index)


def indices(frames: list[LiveFrame]) -> list[int]:
    return [live.frame.info.index for live in frames]


def test_an_empty_queue_gives_nothing_at_once():
    queue = LiveQueue(3)
    assert queue.take(5) == [] and queue.take(0) == [] and not queue.wait(0) and not queue.ended
    assert queue.counts() == QueueCounts()


@pytest.mark.parametrize("policy, kept, dropped", [
    ("drop_oldest", [2, 3, 4], {"queue_full_oldest": 2}),
    ("drop_newest", [0, 1, 2], {"queue_full_newest": 2}),
])  # fmt: skip
def test_a_full_queue_drops_by_its_policy(policy, kept, dropped):
    queue = LiveQueue(3, policy)
    took = [queue.put(frame(index)) for index in range(5)]
    assert took == ([True] * 5 if policy == "drop_oldest" else [True] * 3 + [False] * 2)
    assert queue.counts() == QueueCounts(5, 0, dropped, 3)
    assert indices(queue.take(2)) == kept[:2] and indices(queue.take(9)) == kept[2:]
    assert queue.counts() == QueueCounts(5, 3, dropped, 0)


def test_block_lets_the_source_wait_and_loses_nothing():
    queue = LiveQueue(2, "block")
    source = threading.Thread(target=lambda: [queue.put(frame(index)) for index in range(50)])
    source.start()
    found: list[int] = []
    while len(found) < 50:
        assert queue.wait(WAIT_S)
        assert queue.counts().waiting <= 2
        found += indices(queue.take(1))
    source.join(WAIT_S)
    assert found == list(range(50)) and queue.counts() == QueueCounts(50, 50, {}, 0)


def test_the_end_wakes_a_source_that_waits_for_room():
    queue = LiveQueue(1, "block")
    queue.put(frame(0))
    kept: list[bool] = []
    source = threading.Thread(target=lambda: kept.append(queue.put(frame(1))))
    source.start()
    queue.close(discard=True)
    source.join(WAIT_S)
    assert kept == [False] and queue.ended
    assert queue.counts() == QueueCounts(2, 0, {"stopped": 2}, 0)


def test_what_waits_at_the_end_can_still_be_taken():
    queue = LiveQueue(4)
    queue.put(frame(0))
    queue.close("the reason")
    queue.close("another one")
    assert queue.closed and not queue.ended and queue.error == "the reason" and queue.wait(0)
    assert indices(queue.take(4)) == [0] and queue.ended and not queue.wait(WAIT_S)
    assert not queue.put(frame(1)) and queue.counts() == QueueCounts(2, 1, {"stopped": 1}, 0)


def test_one_condition_tells_of_the_frames_and_ends_of_many_queues():
    news = threading.Condition()
    queues = [LiveQueue(2, news=news) for _ in range(3)]
    for act in (lambda: queues[2].put(frame(0)), lambda: queues[1].close()):
        with news:
            source = threading.Thread(target=act)
            source.start()
            assert news.wait(WAIT_S), "nobody was told"
        source.join(WAIT_S)
    assert [queue.counts().waiting for queue in queues] == [0, 0, 1] and queues[1].ended


@pytest.mark.parametrize("limit", [0, -1, 5000, 1.5, True, float("nan")])
def test_limits_that_are_none_are_refused(limit):
    with pytest.raises(ConfigError, match="limit"):
        LiveQueue(limit)


def test_a_policy_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="drop_oldest, drop_newest, block"):
        LiveQueue(3, "drop")


class AnyOrder(RuleBasedStateMachine):
    """Whatever is called in whatever order: frames in = taken + dropped + waiting, in order, never over the limit."""

    def __init__(self) -> None:
        super().__init__()
        self.queues = [LiveQueue(limit, policy) for policy in POLICIES for limit in (1, 3)]
        self.put_in = self.lost = 0
        self.taken: list[list[int]] = [[] for _ in self.queues]

    @rule()
    def put(self) -> None:
        for queue in self.queues:
            if queue.policy != "block" or queue.closed or queue.counts().waiting < queue.limit:
                queue.put(frame(self.put_in))
            else:
                queue.lost("would wait")
        self.put_in += 1

    @rule(count=st.integers(-1, 4))
    def take(self, count: int) -> None:
        for queue, taken in zip(self.queues, self.taken, strict=True):
            taken += indices(queue.take(count))

    @rule(count=st.integers(-1, 3), reason=st.sampled_from(["damaged", "restarted"]))
    def lose(self, count: int, reason: str) -> None:
        for queue in self.queues:
            queue.lost(reason, count)
        self.lost += max(count, 0)

    @rule(discard=st.booleans())
    def close(self, discard: bool) -> None:
        for queue in self.queues:
            queue.close(discard=discard)

    @invariant()
    def it_adds_up(self) -> None:
        for queue, taken in zip(self.queues, self.taken, strict=True):
            counts = queue.counts()
            assert counts.frames_in == counts.taken + sum(counts.dropped.values()) + counts.waiting
            assert counts.frames_in == self.put_in + self.lost and counts.taken == len(taken)
            assert counts.waiting <= queue.limit and taken == sorted(set(taken))


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize("policy", POLICIES)
def test_counts_add_up_at_every_moment_of_two_threads(policy):
    queue = LiveQueue(4, policy)
    wrong: list[QueueCounts] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(1e-4):
            counts = queue.counts()
            if counts.frames_in != counts.taken + sum(counts.dropped.values()) + counts.waiting:
                wrong.append(counts)

    def feed() -> None:
        for index in range(400):
            queue.put(frame(index))
            if index % 20 == 0:
                queue.lost("damaged")
        queue.close()

    threads = [threading.Thread(target=target) for target in (look, feed)]
    for thread in threads:
        thread.start()
    while not queue.ended:
        queue.wait(0.01)
        queue.take(3)
    over.set()
    for thread in threads:
        thread.join(WAIT_S)
    assert wrong == [] and queue.counts().frames_in == 420
