"""Streams whose frames leave late (CiCo holds them until their clip is full): moved, lost with a replica, and stumbled
over. Every frame comes out once, or is counted as dropped; none twice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from operators.formats import Categories
from operators.live.queue import LiveFrame
from operators.records import Frame, FrameInfo
from pipelines.chaos_scenario import Corruption, Scenario
from pipelines.chaos_stages import damaged
from pipelines.graph import RunContext, load_graph
from pipelines.networks import NetworkSpec, read_checkpoint
from pipelines.serving.engine import Engine
from pipelines.serving.owned import Owned
from pipelines.serving.registry import Registry
from pipelines.serving.streams import Opening, StreamSpec
from pipelines.stages import STAGES
from tests.pipelines.serving.test_engine import PICTURES, Fed, adds_up, frames_of, until
from tests.pipelines.test_clips import with_weights

FRAMES = 11
"""Clips of three that share a frame: 0 1 2, 2 3 4, ...: after six frames, 4 and 5 are held back."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> NetworkSpec:
    return with_weights(tmp_path_factory.mktemp("weights"), "yolact")


def engine(spec: NetworkSpec, scenario: Scenario | None = None) -> Engine:
    graph = load_graph("configs/graphs/live_cico.yaml", STAGES, ["recovery.snapshot_every=2"]).placed(1, 0)
    graph = replace(graph, batching=replace(graph.batching, frames=2))
    if scenario is not None:
        graph = damaged(graph, scenario, calm=False)
    return Engine(graph, RunContext(spec, "cpu"), Categories.numbered(read_checkpoint(spec).classes), Fed)


@pytest.fixture(scope="module")
def two(spec: NetworkSpec) -> Iterator[tuple[Engine, Engine]]:
    engines = engine(spec), engine(spec)
    yield engines
    for each in engines:
        each.stop()


def feed(stream: Owned, first: int, behind: int, numbered_from: int = 0) -> None:
    """Frames as a new source numbers them: from 0."""
    for number, index in enumerate(range(first, behind), numbered_from):
        info = FrameInfo(stream.id, number, number / 10, *PICTURES[index].shape[:2])
        stream.queue.put(LiveFrame(Frame(info, PICTURES[index].copy()), 1000.0 + index))


def opened(at: Engine, opening: Opening) -> Owned:
    stream = at.open(opening)
    until(lambda: stream.phase == "live")
    return stream


def asked(name: str) -> Opening:
    return Opening(StreamSpec(id=name, policy="block", queue=64))


def ended(stream: Owned) -> dict[str, Any]:
    stream.queue.close()
    until(lambda: stream.phase == "over")
    return stream.status()["frames"]


def records(stream: Owned) -> list[tuple[Any, ...]]:
    lines = [json.loads(line) for _, line in stream.channel.lines(-1)]
    return [(line["frame"], line["delay_frames"], line["instances"]) for line in lines]


def test_no_frame(two: tuple[Engine, Engine]) -> None:
    assert ended(opened(two[0], asked("none"))) == {"in": 0, "out": 0, "in_flight": 0, "dropped": {}}


def test_what_is_held_back_moves(two: tuple[Engine, Engine]) -> None:
    """Six frames here, five there: the records of eleven in one, delays too."""
    whole = opened(two[0], asked("whole"))
    feed(whole, 0, FRAMES)
    assert ended(whole) == {"in": FRAMES, "out": FRAMES, "in_flight": 0, "dropped": {}}
    first = opened(two[0], asked("moves"))
    feed(first, 0, 6)
    until(lambda: first.out == 4)
    assert first.status()["frames"] == {"in": 6, "out": 4, "in_flight": 2, "dropped": {}}
    two[0].release("moves")
    until(lambda: first.phase == "over")
    told = first.told()
    second = opened(two[1], Opening(first.spec, told.account, told.states, told.tail))
    assert second.status()["frames"] == {"in": 6, "out": 4, "in_flight": 2, "dropped": {}}
    feed(second, 6, FRAMES)
    assert ended(second) == {"in": FRAMES, "out": FRAMES, "in_flight": 0, "dropped": {}}
    assert records(second) == records(whole)
    assert {delay for _, delay, _ in records(whole)} == {0, 1, 2} and any(found for *_, found in records(whole))


def test_what_is_held_back_dies_with_its_replica_and_is_counted(two: tuple[Engine, Engine]) -> None:
    """The snapshot may hold frames that were given out since, or count as lost: none comes again."""
    now, dead = [1000.0], set()
    registry = Registry(dead.__contains__, lambda: now[0])
    registry.sync("a", "a", 4, [])
    registry.register(asked("dies").spec)
    (opening,) = registry.sync("a", "a", 4, []).openings
    first = opened(two[0], opening)
    feed(first, 0, 8)
    until(lambda: first.out == 6 and first.untold_states is not None)
    assert registry.sync("a", "a", 4, [first.told()]).drop == ()
    dead.add("a")
    now[0] += 2
    (opening,) = registry.sync("b", "b", 4, []).openings
    second = opened(two[1], opening)
    before = second.status()["frames"]
    assert before["in"] == before["out"] + before["dropped"]["restarted"] and before["out"] == 6
    feed(second, 0, 5)
    until(lambda: second.out >= 2)
    assert adds_up(second) and second.status()["frames"]["in_flight"] >= 0
    frames = ended(second)
    assert frames["in_flight"] == 0 and frames["out"] == 6 + 5 and adds_up(second)
    first_index = opening.account.next_index
    assert frames_of(second) == list(range(first_index, first_index + 5)) and first_index >= 8


def test_a_stage_that_fails_costs_what_is_held_back(spec: NetworkSpec) -> None:
    """What came before the failure and was not out is dropped, whatever the snapshot still holds of it."""
    scenario = Scenario(seed=3, corrupt=(Corruption(how="error", every=5, stage="track_tubes", streams=("bad",)),))
    at = engine(spec, scenario)
    stream = opened(at, asked("bad"))
    for first in range(0, 24, 4):
        feed(stream, first, first + 4, numbered_from=first)
        until(lambda: not stream.queue.counts().waiting and stream.phase in ("live", "over"))
        assert adds_up(stream) and stream.status()["frames"]["in_flight"] >= 0
    frames = ended(stream)
    assert frames["dropped"].keys() == {"failed"} and frames["in_flight"] == 0
    assert frames["out"] + frames["dropped"]["failed"] == frames["in"] == 24
    assert frames_of(stream) == sorted(set(frames_of(stream))) and 0 < frames["out"] < 24
    at.stop()
