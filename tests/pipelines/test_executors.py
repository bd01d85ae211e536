"""The same graph in every executor: order, streams, failures. What all must give is written out by hand."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, replace

import pytest

from operators.errors import CheckpointError, GraphError
from operators.records import StreamEnd
from pipelines.actors import run_actors
from pipelines.graph import Graph, RunContext
from pipelines.local import run_local
from pipelines.reports import Report
from tests.pipelines.small_stages import graph, source, told

ALL = ["unpack", "paint", "window", "total"]
FUSED = [{"stages": ALL, "num_cpus": 1}]
SPLIT = [{"stages": [name], "num_cpus": 0.5} for name in ALL]
REPLICAS = [
    {"stages": ["unpack"], "replicas": 2, "num_cpus": 0.5},
    {"stages": ["paint"], "replicas": 2, "num_cpus": 0.5},
    {"stages": ["window", "total"], "num_cpus": 0.5},
]
CPU = RunContext(device="cpu")
EXECUTORS = {
    "local-fused": (run_local, FUSED),
    "local-split": (run_local, SPLIT),
    "ray-fused": (run_actors, FUSED),
    "ray-replicas": (run_actors, REPLICAS),
}
HEALTHY = [
    source("a", length=5),
    source("b", "fault", "ok", "fault"),
    source("empty"),
    *[source(f"s{i}", length=3 * i + 1) for i in range(6)],
]
CROWD = [*HEALTHY, source("poisoned", "ok", "ok", "ok", "poison", *["ok"] * 20), source("bad", length=24)]


@dataclass(frozen=True)
class Outcome:
    story: dict[str, list[tuple]]
    reports: list[Report]


@functools.cache
def _crowd(name: str) -> Outcome:
    """Eleven streams, three at once, some of which fail. Run once for all tests: actors take seconds to start."""
    executor, placement = EXECUTORS[name]
    reports: list[Report] = []
    crowded = graph(placement, {"streams": 3, "frames": 4, "in_flight": 3}, total={"fail_at": 9})
    return Outcome(told(executor(crowded, CROWD, CPU, reports.append)), reports)


@pytest.fixture(params=EXECUTORS)
def crowd(request: pytest.FixtureRequest) -> Outcome:
    if request.param.startswith("ray"):
        request.getfixturevalue("cluster")
        request.getfixturevalue("in_time")
    return _crowd(request.param)


def test_frames_of_a_stream_stay_in_order_and_none_is_lost(crowd):
    # values after paint 1 2 3 4 5; windows (1 2 3) (3 4 5) (5); a fault overtakes no frame before it
    frames = [(0, 1, 6.0), (1, 2, 12.0), (2, 3, 24.0), (3, 4, 36.0), (4, 5, 41.0)]
    assert crowd.story["a"] == [*frames, ("end", 5, False, None)]
    faults = [(0, "a torn packet"), (1, 1, 2.0), (2, "a torn packet")]
    assert crowd.story["b"] == [*faults, ("end", 3, False, None)]
    assert crowd.story["empty"] == [("end", 0, False, None)]


def test_many_streams_give_what_each_gives_alone(crowd):
    assert set(crowd.story) == {one.name for one in CROWD}
    for one in HEALTHY:
        assert crowd.story[one.name] == told(run_local(graph(), [one], CPU))[one.name]


def test_a_failing_stream_ends_before_its_lost_frame(crowd):
    *frames, end = crowd.story["poisoned"]
    assert [frame[0] for frame in frames] == [0, 1, 2]
    assert end == ("end", 3, True, "paint, stream 'poisoned', frame 3: ValueError: this frame is poisoned")
    *frames, end = crowd.story["bad"]
    assert [frame[0] for frame in frames] == list(range(9))
    assert end == ("end", 9, True, "total, stream 'bad', frame 9: RuntimeError: no more of this")


def test_every_frame_of_every_stage_is_reported(crowd):
    given = sum(len(story) - 1 for story in crowd.story.values()) - 2  # without two faults
    for stage in ALL:
        assert sum(report.frames.get(stage, 0) for report in crowd.reports) >= given
        assert sum(report.seconds.get(stage, 0.0) for report in crowd.reports) > 0
        assert sum(report.calls.get(stage, 0) for report in crowd.reports) > 0
    frames = sum(report.frames["unpack"] for report in crowd.reports if "unpack" in report.frames)
    num_bytes = sum(report.bytes.get("unpack", 0) for report in crowd.reports)
    assert 12 * frames < num_bytes <= (12 + 8) * frames  # pixels and a name
    assert sum(sum(report.pulled.values()) for report in crowd.reports) == frames + 2
    assert sum(len(report.failures) for report in crowd.reports) == 2


def test_all_executors_tell_the_same(cluster, in_time):
    """Faults, failures and their reasons too, whatever came together in a batch."""
    stories = [_crowd(name).story for name in EXECUTORS]
    assert all(story == stories[0] for story in stories)


def test_no_sources_no_results():
    assert list(run_local(graph(), [], CPU)) == []


def test_all_streams_may_fail():
    stories = told(run_local(graph(), [source("a", "poison"), source("b", "poison")], CPU))
    assert [story[0][:3] for story in stories.values()] == [("end", 0, True)] * 2


def _with_paint(build) -> Graph:
    """The graph with another stage in place of `paint`."""
    first, paint, *rest = graph(FUSED).stages
    paint = replace(paint, kind=replace(paint.kind, build=build))
    return replace(graph(FUSED), stages=(first, paint, *rest))


class _Lossy:
    def __call__(self, batch):
        return [frame for frame in batch if frame.info.index != 2]


def test_a_stage_that_loses_a_frame_is_found_out():
    *frames, end = run_local(_with_paint(lambda settings, context: _Lossy()), [source("a", length=6)], CPU)
    assert [frame.info.index for frame in frames] == [0, 1]
    error = "the source gave 6 frames, the graph lost frame 2 (3 came after it)"
    assert end == StreamEnd("a", num_frames=6, error=error, fatal=True)


def _cannot_build(settings, context):
    raise CheckpointError("no.safetensors: no such file of weights.")


@pytest.mark.parametrize("executor", [run_local, run_actors])
def test_a_stage_that_cannot_be_built_says_why(executor, cluster, in_time):
    with pytest.raises(CheckpointError, match=r"^no.safetensors: no such file of weights.$"):
        list(executor(_with_paint(_cannot_build), [source("a", length=1)], CPU))


def test_no_actor_outlives_its_run_and_the_cluster_does(cluster, in_time):
    import ray

    results = run_actors(graph(FUSED, {"frames": 2}), [source("a", length=250)], CPU)
    assert next(results).info.index == 0
    (actor,) = [name for name in ray.util.list_named_actors() if name.startswith("maskstream")]
    results.close()
    assert ray.is_initialized()
    end = time.monotonic() + 60
    while actor in ray.util.list_named_actors():        # it is told to end, and Ray does not say when it has
        assert time.monotonic() < end
        time.sleep(0.05)


def test_demand_is_checked_before_anything_starts(cluster, in_time):
    wide = [{"stages": ALL, "replicas": 5, "num_cpus": 1}]
    with pytest.raises(GraphError, match="placement wants 5 CPUs"):
        list(run_actors(graph(wide), [source("a", length=1)], CPU))
