"""What dies on a real cluster costs time and no frame: workers killed outright, poison, slow streams, leftovers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from operators.errors import StageError
from operators.records import StreamEnd
from pipelines.actors import run_actors
from pipelines.graph import RunContext
from pipelines.local import run_local
from pipelines.placement import Recovery
from pipelines.status import Status
from tests.pipelines.real_cluster import assert_nothing_is_left, kill, killed_at, objects, stream_of
from tests.pipelines.small_stages import graph, source, told

pytestmark = pytest.mark.usefixtures("cluster", "in_time")

ALL = ["unpack", "paint", "window", "total"]
CPU = RunContext(device="cpu")
THREE = [
    {"stages": ["unpack"], "num_cpus": 0.5},
    {"stages": ["paint"], "num_cpus": 0.5},
    {"stages": ["window", "total"], "replicas": 2, "num_cpus": 0.5},
]


def test_workers_killed_at_any_moment_cost_no_frame_and_leave_nothing_behind():
    """Frames of half a megabyte, so that they travel through the object store."""
    before = objects()
    chance = random.Random(5)
    sources = [source(f"s{i}", length=60 + i) for i in range(4)] + [source("torn", *["ok", "fault"] * 20)]
    settings = {"streams": 3, "frames": 6}
    split = replace(graph(THREE, settings, unpack={"side": 400}), recovery=Recovery(snapshot_every=12, max_kills=20))
    at = dict(zip(sorted(chance.sample(range(5, 250), 3)), ["window", "paint", "unpack"], strict=True))
    statuses: list[Status] = []
    given = killed_at(run_actors(split, sources, CPU, on_status=statuses.append), at, chance)
    assert told(given) == told(run_local(graph(unpack={"side": 400}), sources, CPU))
    last = statuses[-1]
    assert (last.streams_open, last.streams_done, last.streams_failed, last.faults) == (0, 5, 0, 20)
    assert last.frames == len(given) - 5 and last.rewinds > 0
    assert [group.restarts for group in last.groups] == [1, 1, 1]
    assert [group.replicas for group in last.groups] == [1, 1, 2]
    assert all(group.waiting == group.under_way == 0 and group.frames >= 266 for group in last.groups)
    assert_nothing_is_left(before)


def test_a_poison_frame_ends_its_stream_and_no_other():
    sources = [source("a", length=30), source("deadly", length=30), source("b", length=12)]
    two = graph([{"stages": ALL[:3], "num_cpus": 1}, {"stages": ["total"], "num_cpus": 1}], {"frames": 6},
                total={"die_at": 9, "die_in": "deadly"})  # fmt: skip
    statuses: list[Status] = []
    story = told(run_actors(two, sources, CPU, on_status=statuses.append))
    calm = told(run_local(graph(), sources, CPU))
    assert (story["a"], story["b"]) == (calm["a"], calm["b"])
    *frames, end = story["deadly"]
    assert frames[:8] == calm["deadly"][:8] and len(frames) == 9
    assert end[:3] == ("end", 9, True)
    said = "'total', stream 'deadly', frame 9: its worker process died 2 times, each time with nothing else at work: "
    assert end[3].startswith(said) and "\n" not in end[3]
    assert "worker process has died" in end[3] and "actor_id" not in end[3] and "common causes" not in end[3]
    assert (statuses[-1].streams_failed, statuses[-1].set_aside) == (1, 1)
    # together with others, then twice alone; and once for a call before it, whose answer died with the actor
    assert statuses[-1].groups[1].restarts in (3, 4)


def test_a_slow_stream_holds_no_other_up():
    groups = [{"stages": ALL[:3], "num_cpus": 1}, {"stages": ["total"], "replicas": 2, "num_cpus": 1}]
    slow = graph(groups, {"streams": 2, "frames": 4}, total={"slow_s": 0.25})
    results = run_actors(slow, [source("slow", length=400), source("quick", length=200)], CPU)
    came = {"slow": 0, "quick": 0}
    for result in results:
        came[stream_of(result)] += 1
        if isinstance(result, StreamEnd):
            break
    results.close()
    assert came["quick"] == 201 and came["slow"] < 200


class _Moody:
    """A stage that can be built once."""

    def __init__(self, flag: str) -> None:
        with open(flag, "x"):
            pass

    def __call__(self, batch):
        return batch


def test_a_stage_that_cannot_be_built_again_ends_the_run(tmp_path):
    flag = str(tmp_path / "built")
    before = objects()
    split = graph([{"stages": ["unpack", "paint"]}, {"stages": ["window", "total"]}], {"frames": 4})
    first, paint, *rest = split.stages
    paint = replace(paint, kind=replace(paint.kind, build=lambda settings, context: _Moody(flag)))
    results = run_actors(replace(split, stages=(first, paint, *rest)), [source("a", length=10_000)], CPU)
    next(results)
    kill("paint", random.Random(0))
    with pytest.raises(StageError, match=r"^a worker of 'unpack, paint' failed: FileExistsError: [^\n]*$"):
        list(results)
    del results
    assert_nothing_is_left(before)
