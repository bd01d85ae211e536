"""Chaos without a cluster: scenarios, plans, stages that misbehave, records of runs, and what is said of them."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.errors import ConfigError, StageError
from operators.records import Frame, FrameFault, FrameInfo, FrameTracks, Pull, StreamEnd
from pipelines.chaos import Hit, Run, Trial, count_frames, frames_hit
from pipelines.chaos_cluster import Leftovers
from pipelines.chaos_record import Record, StreamRecord, account, differences, digests
from pipelines.chaos_report import write_report
from pipelines.chaos_scenario import (
    Blow,
    Corruption,
    Delay,
    Limits,
    Nodes,
    Scenario,
    blows,
    check_scenario,
    falls,
    load_scenario,
)
from pipelines.chaos_stages import damaged
from pipelines.chaos_verdict import judge
from pipelines.config import CHECKOUT
from pipelines.graph import RunContext, load_graph
from pipelines.stage import StreamStage
from pipelines.stages import STAGES
from tests.pipelines.small_stages import graph, source

CPU = RunContext(device="cpu")
SHIPPED = sorted((CHECKOUT / "configs/chaos").glob("*.yaml"))


# -------------------------------------------------------------------------------------------------- scenario and plan


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_scenarios_fit_the_shipped_graph(path):
    check_scenario(load_scenario(path), load_graph("configs/graphs/offline.yaml", STAGES), str(path))


def test_a_file_a_seed_and_an_override(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("seed: 3\nblows: [{kind: node, every: 10}]\n")
    scenario = load_scenario(path, ["nodes.count=4"], seed=8)
    assert (scenario.seed, scenario.nodes.count, scenario.blows) == (8, 4, (Blow(kind="node", every=10),))
    assert load_scenario(path).seed == 3


@pytest.mark.parametrize("text, message", [
    pytest.param("blows: [{kind: bomb}]", r"blows\[0\].kind: expected", id="kind"),
    pytest.param("blows: [{kind: node, stages: [heads]}]", "remove stages", id="a node has no stage"),
    pytest.param("blows: [{kind: process, every: 0}]", "every is 0", id="every"),
    pytest.param("nodes: {count: 99}", "count is 99", id="nodes"),
    pytest.param("corrupt: [{how: noise, stage: heads}]", "remove stage", id="noise has no stage"),
    pytest.param("delays: [{stage: a, seconds: 601}]", "seconds 601.0: expected .* up to 600", id="delay"),
    pytest.param("limits: {recovery_s: 0}", "recovery_s is 0", id="limit"),
    pytest.param("blow: []", "Did you mean blows", id="a slip of the pen"),
])
def test_scenarios_that_are_none(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_scenario(path)


@pytest.mark.parametrize("scenario, message", [
    (Scenario(blows=(Blow(kind="process", stages=("pain",)),)), r"blows\[0\].stages: .* Did you mean paint"),
    (Scenario(delays=(Delay(stage="heads"),)), r"delays\[0\].stage: the graph has no stage 'heads'"),
    (Scenario(corrupt=(Corruption(how="error", stage="heads"),)), r"corrupt\[0\].stage"),
    (Scenario(corrupt=(Corruption(how="death", stage="unpack"),)), "'unpack' is given no frames"),
])
def test_scenarios_that_do_not_fit_the_graph(scenario, message):
    with pytest.raises(ConfigError, match=message):
        check_scenario(scenario, graph(), "mine.yaml")


@pytest.mark.parametrize("blow, frames, expected", [
    pytest.param(Blow(kind="node", every=10), 0, [], id="no frames"),
    pytest.param(Blow(kind="node", every=10), 1, [], id="one frame"),
    pytest.param(Blow(kind="node", every=100, first=400), 60, [30], id="too short for it: half-way"),
    pytest.param(Blow(kind="node", every=1, first=3), 6, [3, 4, 5], id="every frame"),
    pytest.param(Blow(kind="node", every=1000, first=60), 161, [60], id="the first is exact"),
    pytest.param(Blow(kind="node", every=1, most=2), 6, [1, 2], id="twice at most"),
])
def test_when_blows_fall(blow, frames, expected):
    assert [due.frame for due in blows(Scenario(blows=(blow,)), frames)] == expected


def test_the_seed_moves_blows_and_nothing_else_does():
    scenario = Scenario(seed=1, blows=(Blow(kind="actor", every=40), Blow(kind="node", every=100)))
    plan = blows(scenario, 1000)
    assert plan == blows(scenario, 1000) == sorted(plan) and plan != blows(replace(scenario, seed=2), 1000)
    of_first = [due.frame for due in plan if due.number == 0]
    assert len(of_first) == 24 and all(abs(at - 40 * n) <= 10 for n, at in enumerate(of_first, start=1))
    assert len(plan) == 24 + 9


def test_one_frame_in_so_many_is_meant():
    for stream in "abcdef":
        hit = [index for index in range(70) if falls("it", stream, index, 7)]
        assert len(hit) == 10 and set(np.diff(hit)) == {7}
    assert len({min(i for i in range(7) if falls("it", stream, i, 7)) for stream in "abcdefghij"}) > 2


# ------------------------------------------------------------------------------------------- stages that misbehave


def frames_of(tried, name: str = "a", count: int = 40) -> list:
    """What the first stage gives of a source."""
    stage = tried.stages[0].kind.build(tried.stages[0].settings, CPU)
    stage.open(name)
    return stage([Pull(source(name, length=count), count)])


def test_frames_are_corrupted_the_same_at_every_time():
    scenario = Scenario(seed=5, corrupt=tuple(Corruption(how=how, every=10) for how in ("noise", "black", "fault")))
    calm, wild = (frames_of(damaged(graph(), scenario, calm)) for calm in (True, False))
    plain = frames_of(graph())
    assert [digest_of(one) for one in calm] == [digest_of(one) for one in wild]
    hits = {one.how[0]: {i for i in range(40) if one.hits(5, "a", i)} for one in scenario.corrupt}
    assert all(len(hit) == 4 for hit in hits.values())
    for index, (one, before) in enumerate(zip(calm, plain, strict=True)):
        if index in hits["n"]:
            assert len(np.unique(one.image)) > 3
        elif index in hits["b"]:
            assert not one.image.any()
        elif index in hits["f"]:
            assert one == FrameFault(before.info, "corrupted by chaos")
        else:
            assert (one.image == before.image).all()


def digest_of(record) -> tuple:
    return (record.info, record.image.tobytes()) if isinstance(record, Frame) else (record.info, record.reason)


@pytest.mark.parametrize("calm", [True, False])
def test_a_frame_that_fails(calm):
    scenario = Scenario(corrupt=(Corruption(how="error", every=5, stage="paint", streams=("a",)),))
    stage = damaged(graph(), scenario, calm).stages[1].kind.build(None, CPU)
    frames = [Frame(FrameInfo(name, i, 0.0, 2, 2), np.zeros((2, 2, 3), np.uint8)) for name in "ab" for i in range(5)]
    (hit,) = [i for i in range(5) if scenario.corrupt[0].hits(0, "a", i)]
    with pytest.raises(StageError, match=f"stream 'a', frame {hit}: chaos makes this frame fail"):
        stage(frames)
    assert len(stage(frames[5:])) == 5


@pytest.mark.parametrize("count", [40, 3])
def test_in_calm_a_source_breaks_off_before_a_frame_that_kills(count):
    """A frame that is torn kills nobody: it never comes to the stage."""
    deadly = Corruption(how="death", every=9, stage="window")
    scenario = Scenario(seed=2, corrupt=(deadly, Corruption(how="fault", every=9)))
    hits = [i for i in range(40) if deadly.hits(2, "a", i) and not scenario.corrupt[1].hits(2, "a", i)]
    calm = damaged(graph(), scenario, True)
    stage = calm.stages[0].kind.build(calm.stages[0].settings, CPU)
    stage.open("a")
    given = [one for _ in range(0, 41, count) for one in stage([Pull(source("a", length=40), count)])]
    *frames, end = given
    assert [one.info.index for one in frames] == list(range(hits[0]))
    assert (end.stream, end.num_frames, end.fatal) == ("a", hits[0], True)
    wild = damaged(graph(), scenario, False)
    assert [one is other for one, other in zip(calm.stages, graph().stages, strict=True)] == [False] * 4
    assert wild.stages[2] != graph().stages[2] and calm.stages[2] == graph().stages[2]


def test_stages_keep_their_memory_and_what_is_not_named_stays():
    scenario = Scenario(delays=tuple(Delay(stage=name, every=1, seconds=1e-9) for name in ("total", "paint")))
    plain, calm, wild = graph(), damaged(graph(), scenario, True), damaged(graph(), scenario, False)
    assert calm.stages == plain.stages
    assert [one == other for one, other in zip(wild.stages, plain.stages, strict=True)] == [True, False, True, False]
    paint, total = (wild.stages[n].kind.build(wild.stages[n].settings, CPU) for n in (1, 3))
    assert isinstance(total, StreamStage) and not isinstance(paint, StreamStage)
    frame = Frame(FrameInfo("a", 0, 0.0, 2, 2), np.ones((2, 2, 3), np.uint8))
    total.open("a")
    total([frame])
    state = total.snapshot("a")
    total.close("a")
    total.restore("a", state)
    assert total([frame])[0].track_ids == [2]


def test_frames_are_counted_by_decoding_alone():
    sources = [source("a"), source("b", "ok", "fault", "ok"), source("long", length=200)]
    assert list(count_frames(graph(), sources, CPU))[-1] == {"a": 0, "b": 3, "long": 200}
    assert list(count_frames(graph(), [], CPU)) == []


# ------------------------------------------------------------------------------------------------------- two records


def tracks(stream: str = "s", index: int = 0, track: int = 1, score: float = 0.5) -> FrameTracks:
    info = FrameInfo(stream, index, index / 6, 4, 4)
    return FrameTracks(info, np.array([track]), np.zeros(1, np.int64), np.array([score], np.float32),
                       np.zeros((1, 4), np.float32), ({"size": [4, 4], "counts": "08"},))


@pytest.mark.parametrize("other, ids, whole", [
    pytest.param(tracks(), True, True, id="equal"),
    pytest.param(tracks(score=np.nextafter(np.float32(0.5), np.float32(1))), True, False, id="the last bit of a score"),
    pytest.param(tracks(track=2), False, False, id="another id"),
    pytest.param(replace(tracks(), masks=({"size": [4, 4], "counts": "09"},)), True, False, id="another mask"),
    pytest.param(replace(tracks(), class_scores=np.zeros((1, 2), np.float32)), True, False, id="class vectors"),
    pytest.param(replace(tracks(), info=replace(tracks().info, time_s=1.0)), True, False, id="another time"),
    pytest.param(FrameFault(tracks().info, "torn"), False, False, id="a fault"),
])
def test_digests(other, ids, whole):
    (one_ids, one_whole), (other_ids, other_whole) = digests(tracks()), digests(other)
    assert (one_ids == other_ids, one_whole == other_whole) == (ids, whole)


def record(*results) -> Record:
    kept = Record()
    for result in results:
        kept.add(result)
    return kept


def stream(name: str, count: int, **changes) -> list:
    return [*(tracks(name, i, **changes) for i in range(count)), StreamEnd(name, num_frames=count)]


@pytest.mark.parametrize("wild, expected", [
    pytest.param([*stream("a", 3), *stream("b", 2)], [], id="the same, in another order of streams"),
    pytest.param([*stream("b", 2), *stream("a", 2)], [("a", 1, 2)], id="a frame less"),
    pytest.param(stream("a", 3), [("b", 2, 0)], id="a stream less"),
    pytest.param([*stream("a", 3), *stream("b", 2, track=9)], [("b", 2, 0)], id="other ids"),
    pytest.param([tracks("a", 0), tracks("a", 1, track=5), *stream("a", 3)[2:], *stream("b", 2)], [("a", 1, 1)],
                 id="one other id"),
])
def test_differences(wild, expected):
    found = differences(record(*stream("a", 3), *stream("b", 2)), record(*wild), "ids")
    assert [(one.stream, one.frames, one.first) for one in found] == expected


def test_an_account():
    kept = record(
        *stream("whole", 3), tracks("torn", 0), FrameFault(tracks("torn", 1).info, "a torn packet"),
        StreamEnd("torn", 2), tracks("broken", 0), StreamEnd("broken", 1, error="boom", fatal=True),
        *stream("short", 2),
    )  # fmt: skip
    found = account(kept, {"whole": 3, "torn": 2, "broken": 5, "short": 4, "silent": 1})
    assert (found.given, found.out, found.dropped, found.failed) == (15, 7, {"a torn packet": 1}, {"boom": 4})
    assert found.unknown == {"short": 2, "silent": 1} and not found.balanced
    assert str(found).startswith("15 in = 7 out + 1 dropped (a torn packet) + 4 failed (boom) + 2 UNACCOUNTED")
    assert account(kept, {"whole": 3}).balanced


def test_silence():
    kept = StreamRecord(times=[1.0, 2.0, 6.0, 6.5])
    assert kept.longest_silence == 4.0 and StreamRecord().longest_silence == 0
    spans = [(0, 0.5), (1.2, 1.5), (2.5, 3), (0, 9), (6.1, 9), (7, 9)]
    assert [kept.silence(*span) for span in spans] == [0, 1, 4, 4, 0.5, 0]


# --------------------------------------------------------------------------------------------------------- the verdict


def run(*results, wall_s: float = 10.0, **changes) -> Run:
    return Run(record(*results), wall_s, **changes)


def a_trial(*wild, scenario: Scenario | None = None, **changes) -> Trial:
    return Trial(scenario or Scenario(), {"a": 3, "b": 2}, run(*GOOD), run(*(wild or GOOD), **changes))


GOOD = [*stream("a", 3), *stream("b", 2)]
TWICE = [tracks("a", 0), tracks("a", 0), *stream("a", 3)[1:], *stream("b", 2)]
FAILED = [*stream("a", 3), tracks("b", 0), StreamEnd("b", 1, error="boom", fatal=True)]
KILLS = Scenario(blows=(Blow(kind="process"),))
HIT = Hit("process", 0, "heads #0, process 7", 2, 0.0, True)


def slow() -> Trial:
    """Of stream a a result came 70 s after a blow."""
    given = a_trial(scenario=KILLS, wall_s=100.0, hits=[HIT])
    given.wild.record.streams["a"].times[:] = [0.1, 0.2, 70.2, 70.3]
    return given


@pytest.mark.parametrize("given, failed, said", [
    pytest.param(a_trial(), [], "", id="two calm runs"),
    pytest.param(a_trial(scenario=KILLS, hits=[HIT]), [], "", id="a blow that changed nothing"),
    pytest.param(a_trial(scenario=KILLS), ["blows"], "0 x process; never: process", id="never hit"),
    pytest.param(a_trial(scenario=KILLS, hits=[replace(HIT, landed=False)]), ["blows"], "never", id="hit nothing"),
    pytest.param(a_trial(error="StageError: dead"), ["end"], "StageError: dead", id="broke off"),
    pytest.param(a_trial(*GOOD[:-1]), ["streams"], "'b' ends never, in calm after 2 frames", id="a stream without end"),
    pytest.param(a_trial(*GOOD[:3], *stream("b", 2)), ["streams"], "'a' ends never", id="another"),
    pytest.param(a_trial(*TWICE), ["order", "ids", "results"], "'a' (under blows)", id="a frame twice"),
    pytest.param(a_trial(*GOOD[:2], *stream("b", 2)), ["frames", "streams", "ids", "results"], "UNACCOUNTED",
                 id="a frame lost"),
    pytest.param(a_trial(*FAILED), ["streams", "ids", "results"], "failed: boom", id="a stream failed"),
    pytest.param(a_trial(*stream("a", 3, score=0.7), *GOOD[4:]), ["results"], "'a', 3 frames from 0 on", id="masks"),
    pytest.param(slow(), ["recovery"], "70.00 s (longest, after process at frame 2)", id="silent for too long"),
    pytest.param(a_trial(leftovers=Leftovers(actors=1)), ["leftovers"], "under blows: 1 actors", id="an actor is left"),
    pytest.param(a_trial(leftovers=Leftovers(objects=2, object_bytes=3 << 20)), ["leftovers"], "2 objects of 3.0 MB",
                 id="objects are left"),
    pytest.param(a_trial(leftovers=Leftovers(memory_mb=300.0)), ["memory"], "holds +300 MB", id="memory"),
])
def test_what_fails(given, failed, said):
    verdict = judge(given)
    assert [check.name for check in verdict.checks if not check.passed] == failed
    assert verdict.passed == (not failed)
    assert said in " ".join(check.said for check in verdict.checks if not check.passed)


def test_of_frames_that_kill_the_words_may_differ_and_nothing_else():
    dead = [replace(one, error="killed twice") if isinstance(one, StreamEnd) and one.fatal else one for one in FAILED]
    later = [*FAILED[:-1], tracks("b", 1), StreamEnd("b", 2, error="killed twice", fatal=True)]
    deadly = Scenario(corrupt=(Corruption(how="death"),))
    for wild, scenario, passed in ((dead, deadly, True), (dead, Scenario(), False), (later, deadly, False)):
        given = Trial(scenario, {"a": 3, "b": 2}, run(*FAILED), run(*wild))
        assert judge(given).passed == passed


def test_recovery_is_the_longest_silence_until_the_next_blow():
    given = a_trial(scenario=KILLS, wall_s=20.0, hits=[HIT, replace(HIT, at_s=5.0)])
    given.wild.record.streams["a"].times[:] = [1.0, 1.5, 4.5, 4.6]
    given.wild.record.streams["b"].times[:] = [4.8, 6.0, 6.5]
    assert judge(given).recoveries == pytest.approx((3.0, 1.2))


def test_the_report(tmp_path):
    scenario = replace(KILLS, corrupt=(Corruption(how="fault", every=2),), limits=Limits(memory_mb=1))
    torn = [*stream("a", 3), tracks("b", 0), FrameFault(tracks("b", 1).info, "torn"), StreamEnd("b", 2)]
    given = a_trial(*torn, scenario=scenario, hits=[HIT], leftovers=Leftovers(memory_mb=2.0))
    paths = write_report(given, judge(given), "`g.yaml` | pipes", tmp_path / "out")
    text = paths[0].read_text()
    assert text.startswith("# Chaos: FAIL\n") and "| memory | **FAIL** | the driver holds +2 MB" in text
    assert "| process | heads #0, process 7 | 2 | 0.0 | " in text and "| frames corrupted: fault |" in text
    found = json.loads(paths[1].read_text())
    assert not found["passed"] and found["runs"]["calm"]["account"]["out"] == 5
    assert found["runs"]["under_blows"]["account"]["dropped"] == {"torn": 1}
    assert found["corrupted"] == frames_hit(scenario, {"a": 3, "b": 2})
    with Image.open(paths[2]) as picture:
        assert picture.format == "PNG" and picture.width > 900
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["chaos.json", "chaos.md", "chaos.png"]


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    given = a_trial()
    with pytest.raises(ConfigError, match="the report cannot be written there"):
        write_report(given, judge(given), "", tmp_path / "file")


def test_scenarios_say_what_they_are_for():
    assert {path.stem for path in SHIPPED} >= {"calm-check", "kills", "node-loss", "slow-and-corrupt", "poison"}
    assert all(path.read_text().startswith("# ") for path in SHIPPED)
    assert Counter(type(load_scenario(path).nodes) for path in SHIPPED) == {Nodes: len(SHIPPED)}
    assert Path("configs/chaos/kills.yaml").name in {path.name for path in SHIPPED}
