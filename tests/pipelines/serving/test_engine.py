"""The streams of one replica, without Ray: fair shares, counts that add up, failures, and a stream that moves."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from operators.formats import Categories
from operators.live.queue import LiveFrame, QueueCounts
from operators.live.states import SourceState
from operators.records import Frame, FrameInfo
from operators.shapes import ShapesConfig, generate_clip
from pipelines.chaos_scenario import Corruption, Scenario
from pipelines.chaos_stages import damaged
from pipelines.graph import RunContext, load_graph
from pipelines.networks import read_checkpoint, read_network
from pipelines.serving.channel import Channel
from pipelines.serving.engine import Engine
from pipelines.serving.owned import Owned
from pipelines.serving.streams import Account, Opening, StreamSpec
from pipelines.stages import STAGES

PATIENCE_S = 60
SPEC = read_network("configs/networks/tiny.yaml")
CATEGORIES = Categories.numbered(read_checkpoint(SPEC).classes)
PICTURES = generate_clip(ShapesConfig(width=96, height=64, num_frames=24), 5, 0).frames


class Fed:
    """A source whose frames the test puts into the queue."""

    def __init__(self, *unused: object) -> None:
        self.word = "live"

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def state(self) -> SourceState:
        return SourceState(self.word)


def engine(scenario: Scenario | None = None, **batching: Any) -> Engine:
    graph = load_graph("configs/graphs/live.yaml", STAGES, ["recovery.snapshot_every=4"])
    graph = replace(graph.placed(1, 0), batching=replace(graph.batching, **batching))
    if scenario is not None:
        graph = damaged(graph, scenario, calm=False)
    return Engine(graph, RunContext(SPEC, "cpu"), CATEGORIES, Fed)


@pytest.fixture(scope="module")
def running() -> Iterator[Engine]:
    one = engine(frames=4)
    yield one
    one.stop()


def feed(stream: Owned, count: int) -> None:
    for index in range(count):
        image = np.ascontiguousarray(PICTURES[index % len(PICTURES)])
        info = FrameInfo(stream.id, index, index / 10, *image.shape[:2])
        stream.queue.put(LiveFrame(Frame(info, image), time.time()))


def opened(at: Engine, name: str, **fields: Any) -> Owned:
    return at.open(Opening(StreamSpec(id=name, **fields)))


def until(what: Callable[[], bool]) -> None:
    late = time.monotonic() + PATIENCE_S
    while not what():
        assert time.monotonic() < late, f"did not come true within {PATIENCE_S} s"
        threading.Event().wait(0.01)


def frames_of(stream: Owned) -> list[int]:
    return [index for index, _ in stream.channel.lines(-1)]


def came_at(stream: Owned) -> list[float]:
    """When each result came, in unix seconds: what its line says of itself."""
    lines = [json.loads(line) for _, line in stream.channel.lines(-1)]
    return [line["captured_at"] + line["latency_ms"] / 1000 for line in lines]


def adds_up(stream: Owned) -> bool:
    frames = stream.status()["frames"]
    return frames["in"] == frames["out"] + sum(frames["dropped"].values()) + frames["in_flight"]


def test_no_frame(running: Engine) -> None:
    stream = opened(running, "empty", policy="block")
    until(lambda: stream.phase == "live")
    stream.queue.close()
    until(lambda: stream.phase == "over")
    assert stream.status()["state"] == "ended" and frames_of(stream) == [] and stream.channel.picture() is None
    assert stream.status()["frames"] == {"in": 0, "out": 0, "in_flight": 0, "dropped": {}}
    running.forget("empty")


def test_a_stream_of_many_frames_takes_none_from_one_of_few(running: Engine) -> None:
    """32 frames of one wait when 4 of the other come: a batch of 4 holds 2 of each from then on."""
    many, few = opened(running, "many", queue=64), opened(running, "few", queue=64)
    until(lambda: many.phase == few.phase == "live")
    with running.news:                      # nothing is taken while both are filled
        feed(many, 32)
        feed(few, 4)
    until(lambda: few.out == 4 and many.out == 32)
    last = max(came_at(few))
    assert sum(at < last for at in came_at(many)) <= 3 * 4, "the few came out with the first batches"
    assert frames_of(many) == list(range(32)) and adds_up(many) and adds_up(few)
    for stream in (many, few):
        running.remove(stream.id)
        until(lambda stream=stream: stream.phase == "over")
        running.forget(stream.id)


def test_what_comes_out_while_one_looks_is_not_counted_before_it_came_in() -> None:
    """Who looks may have to wait between two numbers, while a frame comes in and out."""
    opening = Opening(StreamSpec(id="seen"))
    stream = Owned(opening, Channel(CATEGORIES, 0.5, 1280), threading.Condition(), ())
    asked = stream.queue.counts

    def slowly() -> QueueCounts:
        counts = asked()
        stream.out += 1
        return counts

    stream.queue.counts = slowly
    assert stream.status()["frames"] == {"in": 0, "out": 0, "in_flight": 0, "dropped": {}}
    stream.out = 0
    account = stream.account()
    assert (account.frames_in, account.out, account.dropped) == (0, 0, {})


def test_cards_go_round(running: Engine) -> None:
    """Batches of 4 over three streams: none is given two of four each time."""
    three = [opened(running, name, queue=12) for name in "xyz"]
    until(lambda: all(stream.phase == "live" for stream in three))
    with running.news:
        for stream in three:
            feed(stream, 12)
    until(lambda: max(stream.out for stream in three) == 12)
    assert min(stream.out for stream in three) >= 12 - 4
    for stream in three:
        running.remove(stream.id)


def test_a_stage_that_fails_costs_its_frames_and_no_other_stream() -> None:
    """The stream begins again from its snapshot: its frames keep their numbers, its objects their ids."""
    at = engine(Scenario(seed=3, corrupt=(Corruption(how="error", every=8, stage="associate", streams=("bad",)),)))
    bad, good = opened(at, "bad", policy="block", queue=64), opened(at, "good", policy="block", queue=64)
    until(lambda: bad.phase == good.phase == "live")
    feed(bad, 24)
    feed(good, 24)
    until(lambda: good.out == 24 and bad.status()["frames"]["in_flight"] == 0 and bad.phase == "live")
    frames = bad.status()["frames"]
    assert frames["dropped"].keys() == {"failed"} and frames["out"] + frames["dropped"]["failed"] == 24
    assert frames_of(good) == list(range(24)) and set(frames_of(bad)) < set(range(24))
    assert frames_of(bad) == sorted(frames_of(bad))
    at.stop()


def test_a_stream_moves_and_is_what_it_would_have_been(running: Engine) -> None:
    """Ten frames here, six in another engine: the same records as sixteen in one, but for the times."""
    other = engine(frames=4)
    whole = opened(running, "whole", policy="block", queue=64)
    first = opened(running, "moves", policy="block", queue=64)
    until(lambda: whole.phase == first.phase == "live")
    feed(whole, 16)
    feed(first, 10)
    until(lambda: whole.out == 16 and first.out == 10)
    running.release("moves")
    until(lambda: first.phase == "over")
    told = first.told()
    assert told.released and told.account == Account(frames_in=10, out=10, next_index=10, given=10)
    second = other.open(Opening(first.spec, told.account, told.states, told.tail))
    until(lambda: second.phase == "live")
    feed_from_start(second)
    until(lambda: second.out == 6)
    moved = [json.loads(line) for _, line in second.channel.lines(-1)]
    stayed = [json.loads(line) for _, line in whole.channel.lines(-1)]
    assert [record["frame"] for record in moved] == list(range(16))
    assert [record["instances"] for record in moved] == [record["instances"] for record in stayed]
    assert any(record["instances"] for record in stayed[10:])
    assert second.status()["frames"] == {"in": 16, "out": 16, "in_flight": 0, "dropped": {}}
    other.stop()
    running.remove("whole")


def feed_from_start(stream: Owned) -> None:
    """Frames 10 to 15 as a new source numbers them: from 0."""
    for index, image in enumerate(PICTURES[10:16]):
        info = FrameInfo(stream.id, index, index / 10, *image.shape[:2])
        stream.queue.put(LiveFrame(Frame(info, np.ascontiguousarray(image)), time.time()))
