"""`maskstream plan`: what it measures on a graph of known cost, whether its forecasts come true, and what it says."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import ConfigError, GraphError, StageError
from pipelines.cli import main
from pipelines.commands.plan import _seconds, _size
from pipelines.graph import Graph, RunContext
from pipelines.networks import read_network
from pipelines.placement import Placement
from pipelines.plan import Plan, PlanConfig, as_json, busy_hint, errors_of, form_hint, fused, measured_service, planned
from pipelines.plan_cluster import _replicas_hint, copies_of
from pipelines.plan_groups import Share, left_out, on_share, share_of
from pipelines.plan_live import measure, sizes_to_measure
from pipelines.plan_queue import Service, joined_services
from pipelines.plan_show import text_of
from pipelines.plan_try import LiveReading, joined, run_cameras
from pipelines.stages import STAGES
from tests.pipelines.sleepy import sleepy, sleepy_lab

ASKED = PlanConfig(fps=4.0, p95_s=3.0, seconds=1.8)


@pytest.fixture(scope="module")
def bench():
    with sleepy_lab() as found:
        yield found


def test_a_batch_costs_what_it_costs(bench):
    """60 ms and 20 ms a frame, never less; more only as far as the machine is busy with something else, which it is
    not in each of thirty seconds."""
    for _ in range(30):
        service = measure(bench, 1.0)
        assert all(min(times) >= 0.06 + 0.02 * frames for frames, times in service.seconds.items())
        assert service.inside_s[1] >= 0.08 and service.inside_s[4] >= 0.14 and service.stages_s["sleep"] >= 0.035
        assert service.capacity(4) <= 4 / 0.14 and service.decode_s > 0
        if in_calm(service):
            break
    assert in_calm(service), service
    assert {size: service.order.count(size) for size in (1, 2, 3, 4)} == {
        size: len(times) for size, times in service.seconds.items()
    }


def in_calm(service: Service) -> bool:
    """No more than it costs, and a little; there was time for all sizes."""
    own = [min(times) < 0.06 + 0.02 * frames + 0.2 for frames, times in service.seconds.items()]
    inside = service.inside_s[1] < 0.3 and service.inside_s[4] < 0.4
    stages = service.stages_s["receive"] < service.stages_s["sleep"] < 0.1
    return set(service.seconds) == {1, 2, 3, 4} and all(own) and inside and stages


def test_a_forecast_is_tried(bench):
    """How far off it was is told; how far it may be is a matter of quiet machines: `maskstream plan --verify`."""
    found = planned(measured_service(bench, ASKED), bench.graph, ASKED)
    assert 1 <= found.fits <= 6, "28 frames/s at most, 4 a camera, a quarter kept free"
    found = replace(found, measured=run_cameras(bench, found.fits, ASKED.fps, 2.0, warm_s=0.5))
    assert found.measured.add_up and found.measured.p50_s >= 0.08, "no frame is faster than its batch"
    assert set(errors_of(found)) == {"fps_out", "p50", "p95"}


def test_a_stage_that_fails_is_told():
    with sleepy_lab(base_s=-1.0) as broken, pytest.raises(StageError, match="the stages failed while .* sleep"):
        measure(broken, 0.5)


@pytest.mark.parametrize("most, sizes", [(1, [1]), (2, [1, 2]), (8, [1, 8, 4, 2, 3, 5, 6, 7])])
def test_the_telling_sizes_come_first(most, sizes):
    assert sizes_to_measure(most) == sizes
    assert sizes_to_measure(64)[:3] == [1, 64, 32] and len(sizes_to_measure(64)) <= 19


# ----------------------------------------------------------------------------------------------------- what it says

FAST = Service({1: (0.02,), 4: (0.05,)}, {"backbone": 0.01, "heads": 0.0025}, 0.002, 2.0, 2.0)


def plan_of(service: Service = FAST, **asked: object) -> Plan:
    return planned(service, sleepy(), PlanConfig(**asked))


def test_the_stage_that_limits():
    assert "backbone, 10.0 ms of the 12.5 ms" in plan_of().limited_by
    assert "latency: p95 would be" in plan_of(fps=1.0, p95_s=0.019).limited_by
    assert plan_of(fps=1.0, p95_s=0.019).fits == 0
    decoding = replace(FAST, decode_s=0.05)
    assert "decoding: 50.0 ms of a CPU for a frame, 25.0 ms in the graph" in plan_of(decoding).limited_by
    assert "nothing yet: 2 cameras" in plan_of(fps=0.1, max_cameras=2).limited_by


def test_an_answer_to_be_read():
    found = plan_of()
    rate = found.chosen.fps_out
    reading = LiveReading(cameras=found.fits, seconds=10.0, fps_in=rate, fps_out=0.99 * rate, p50_s=found.chosen.p50_s,
                          p95_s=found.chosen.p95_s / 1.1, dropped=0.0, worst_share=1.0, add_up=True)  # fmt: skip
    text = text_of(replace(found, measured=reading, copies=3))
    assert text.startswith(f"{3 * found.fits} cameras of 640x360 and 10 frames/s fit, p95 under 500 ms.\n")
    assert f"{found.fits} in each of 3 processes" in text and "the forecast is within 15%" in text
    assert any(line.split()[:3] == ["p95", "ms", f"{1000 * found.chosen.p95_s:.1f}"] and line.endswith("+10%")
               for line in text.splitlines())  # fmt: skip
    assert "other work" not in text
    wrong = replace(reading, p95_s=2 * found.chosen.p95_s, inside={1: (30, 0.03), 4: (10, 0.05), 3: (1, 9.0)})
    text = text_of(replace(found, measured=wrong, service=replace(FAST, inside_s={1: 0.015, 4: 0.05})))
    assert "the forecast is NOT within 15%" in text
    assert f"took {(30 * 0.03 + 10 * 0.05) / (30 * 0.015 + 10 * 0.05):.2f} times as long" in text
    assert "A forecast that knew it" not in text
    knew = replace(found, measured=wrong, service=replace(FAST, inside_s={1: 0.015, 4: 0.05}),
                   at_its_speed=replace(found.chosen, p50_s=0.1, p95_s=0.2))  # fmt: skip
    p50, p95 = (100 * (said / was - 1) for said, was in ((0.1, wrong.p50_s), (0.2, wrong.p95_s)))
    assert f"A forecast that knew it: p50 100 ms ({p50:+.0f}%), p95 200 ms ({p95:+.0f}%)." in text_of(knew)
    assert "0 cameras of 640x360" in text_of(plan_of(p95_s=0.01))


def test_tries_are_joined():
    """Two tries of two seconds: rates in the mean, latencies and batches together, the worst of what may not happen."""
    one = LiveReading(2, 2.0, 20.0, 10.0, 0.1, 0.1, 0.5, 0.9, True, {1: (3, 0.1), 2: (1, 0.3)}, (0.1,) * 20)
    two = LiveReading(2, 2.0, 20.0, 20.0, 0.3, 0.3, 0.0, 0.8, False, {1: (1, 0.5)}, (0.3,) * 40)
    both = joined([one, two])
    assert (both.cameras, both.seconds, both.fps_in, both.fps_out, both.dropped) == (2, 4.0, 20.0, 15.0, 0.25)
    assert (both.p50_s, both.p95_s, both.worst_share, both.add_up) == (0.3, 0.3, 0.8, False)
    assert both.inside == {1: (4, pytest.approx(0.2)), 2: (1, 0.3)}
    other = replace(FAST, seconds={1: (0.04,)}, inside_s={1: 0.3})
    service = joined_services([replace(FAST, inside_s={1: 0.1}), other])
    assert service.seconds == {1: (0.02, 0.04), 4: (0.05,)} and service.inside_s == {1: pytest.approx(0.2)}
    assert service.order == (), "in no order, if that of one is not known"
    assert joined_services([replace(FAST, order=(4, 1)), replace(other, order=(1,))]).order == (4, 1, 1)


def test_an_answer_for_programs():
    found = plan_of()
    told = json.loads(json.dumps(as_json(found), allow_nan=False))
    assert told["fits"] == found.fits and told["processes"] == 1 and told["measured"] is None
    assert told["service"]["batch_ms"] == {"1": 20.0, "4": 50.0} and told["asked"]["p95_s"] == 0.5
    silent = replace(found, measured=LiveReading(1, 1.0, 0.0, 0.0, math.inf, math.inf, 0.0, 1.0, True))
    told_of_silence = json.loads(json.dumps(as_json(silent), allow_nan=False))["measured"]
    assert told_of_silence["p95_ms"] is None
    assert told_of_silence["errors"] == told_of_silence["errors_at_its_speed"] == {"fps_out": 9, "p50": 9, "p95": 9}
    assert [one["cameras"] for one in told["forecast"]] == sorted({one["cameras"] for one in told["forecast"]})


def test_a_network_that_fills_its_batches_is_told_of():
    """Its batch of one takes as long as that of four."""
    from pipelines.graph import load_graph

    graph = load_graph("configs/graphs/live.yaml", STAGES, ["backbone.least=null", "heads.least=null"])
    padded = replace(FAST, seconds={1: (0.05,), 4: (0.05,)})
    (hint,) = planned(padded, graph, PlanConfig()).hints
    assert "A single frame takes as long as 4" in hint and "--set backbone.least=2 --set heads.least=2" in hint
    assert not planned(FAST, graph, PlanConfig()).hints
    assert not planned(padded, load_graph("configs/graphs/live.yaml", STAGES), PlanConfig()).hints, "as it is shipped"


def test_a_frame_too_many_is_told_of():
    """Five frames through a network that takes four at once take as long as six."""
    from pipelines.graph import load_graph

    graph = load_graph("configs/graphs/live.yaml", STAGES, ["batching.frames=8"])
    steep = replace(FAST, seconds={1: (0.03,), 4: (0.05,), 5: (0.08,), 8: (0.1,)})
    (hint,) = planned(steep, graph, PlanConfig()).hints
    assert "5 frames take 1.6 times as long as 4" in hint and "--set batching.frames=4" in hint
    assert not planned(replace(steep, seconds=steep.seconds | {5: (0.06,)}), graph, PlanConfig()).hints
    assert not planned(steep, load_graph("configs/graphs/live.yaml", STAGES), PlanConfig()).hints, "as it is shipped"


@pytest.mark.parametrize("form, told", [("plain", True), ("fused", False)])
def test_the_faster_form_is_told_of(form, told):
    context = RunContext(read_network("configs/networks/tiny.yaml", (f"inference.form={form}",)), "cpu")
    assert any("--set network.inference.form=fused" in hint for hint in form_hint(context)) == told


@pytest.mark.parametrize("load, told", [(0.0, False), (4.0, False), (4.1, True), (30.0, True)])
def test_other_work_is_told_of(load, told):
    assert any("Other work is on this machine" in hint for hint in busy_hint(load, 2.0)) == told


def test_all_stages_in_one_process():
    from pipelines.graph import load_graph

    graph = fused(load_graph("configs/graphs/offline.yaml", STAGES), 2)
    (group,) = graph.placement
    assert group.stages[0] == "decode" and graph.stages[0].kind is STAGES["receive"] and group.num_cpus == 2.0


def placed(*groups: dict, stages: tuple[str, ...] = ("receive", "sleep")) -> Graph:
    split = [{"stages": list(stages)}] if len(groups) == 1 else [{"stages": [stage]} for stage in stages]
    placement = tuple(Placement(stages=tuple(one["stages"]), **own) for one, own in zip(split, groups, strict=True))
    return replace(sleepy(), placement=placement)


@pytest.mark.parametrize("groups, share, left", [
    pytest.param([{"num_cpus": 2.0}], Share(1, 2.0), [], id="one process"),
    pytest.param([{"num_cpus": 2.0, "replicas": 3}], Share(3, 2.0), [], id="replicas"),
    pytest.param([{"num_cpus": 0.5, "replicas": 4}], Share(4, 0.5), ["0.5 of a CPU"], id="less than a CPU each"),
    pytest.param([{"num_cpus": 1.0}, {"num_cpus": 2.0}], Share(1, 3.0), ["1 x 'receive'; 1 x 'sleep'"], id="groups"),
    pytest.param([{"num_cpus": 1.0, "replicas": 2}, {"num_cpus": 2.0, "replicas": 5}], Share(2, 6.0),
                 ["split into 2 groups (2 x 'receive'; 5 x 'sleep')"], id="groups with replicas"),
])  # fmt: skip
def test_what_a_placement_amounts_to(groups, share, left):
    graph = placed(*groups)
    assert share_of(graph) == share
    assert len(left_out(graph)) == len(left)
    assert all(said in sentence for said, sentence in zip(left, left_out(graph), strict=True))


def test_what_is_not_in_the_forecast_is_said_with_it():
    told = left_out(placed({"num_cpus": 1.0}, {"num_cpus": 1.0}))
    found = replace(plan_of(), left_out=told)
    assert told[0] in text_of(found) and as_json(found)["left_out"] == list(told)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to CPUs")
def test_a_process_is_measured_on_its_share():
    before = os.sched_getaffinity(0)
    with on_share(Share(1, 1.0)):
        assert os.sched_getaffinity(0) == before, "nobody else wants the rest"
    with on_share(Share(2, 0.5)):
        assert len(os.sched_getaffinity(0)) == 1
    with pytest.raises(StageError), on_share(Share(2, len(before) / 2)):
        assert len(os.sched_getaffinity(0)) == max(1, round(len(before) / 2))
        raise StageError("whatever")
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("asked, copies, told", [(1, 1, False), (3, 3, False), (1, 3, True), (4, 2, True)])
def test_processes_that_nobody_asked_for_are_told_of(asked, copies, told):
    hints = _replicas_hint(asked, copies, 4)
    assert bool(hints) == told and all(f"replicas: {copies} and num_cpus: 4" in hint for hint in hints)


@pytest.mark.parametrize("wants, nodes, copies", [
    pytest.param({"CPU": 2.0}, [], 0, id="no node"),
    pytest.param({"CPU": 2.0}, [{"CPU": 1.0}], 0, id="too small"),
    pytest.param({"CPU": 2.0}, [{"CPU": 5.0}, {"CPU": 2.0}, {"GPU": 1.0}], 3, id="CPUs"),
    pytest.param({"CPU": 1.0, "GPU": 0.3}, [{"CPU": 9.0, "GPU": 1.0}], 3, id="shares of a GPU"),
])  # fmt: skip
def test_copies_on_a_cluster(wants, nodes, copies):
    assert copies_of(wants, nodes) == copies


def test_a_process_of_a_cluster_is_measured(cluster, in_time):
    """In a task there, which takes as much as a replica of the graph would."""
    from pipelines.plan_cluster import plan_on_cluster
    from pipelines.serving.config import ServeConfig

    told: list[str] = []
    serving = ServeConfig(device="cpu", set=("batching.frames=1",))
    found = plan_on_cluster(serving, PlanConfig(width=96, height=64, fps=0.2, p95_s=60.0, seconds=0.3), told.append)
    assert found.copies == 1 and found.service.cpus == 4.0 and found.fits >= 1
    assert told == ["measuring one process on the cluster, of 1 that it has room for"]


# ----------------------------------------------------------------------------------------------- the command's words


@pytest.mark.parametrize("words, message", [
    pytest.param(["--size", "640"], "--size 640: expected WIDTHxHEIGHT in pixels", id="size"),
    pytest.param(["--size", "10x10"], "width is 10, expected 64 to 8192", id="small"),
    pytest.param(["--p95", "500"], "--p95 500: expected a time, as in 500ms or 1.5s", id="unit"),
    pytest.param(["--p95", "0ms"], "p95_s is 0, expected 0.001 to 600", id="no time"),
    pytest.param(["--fps", "nan"], "fps is nan, expected 0.1 to 1000", id="rate"),
    pytest.param(["--network", "no.yaml"], "no.yaml: no such file", id="network"),
    pytest.param(["--set", "backbone.bach=1"], "backbone.bach: no such setting. Did you mean batch?", id="setting"),
    pytest.param(["--replicas", "0"], "replicas is 0, expected 1 to 1024", id="no replica"),
    pytest.param(["--address", "auto", "--verify"], "--verify: tries cameras on this machine", id="verify elsewhere"),
])  # fmt: skip
def test_wrong_words(words, message, capsys):
    assert main(["plan", *words]) == 2
    assert message in capsys.readouterr().err


def test_the_command(tmp_path, capsys):
    words = ["--size", "96x64", "--fps", "5", "--p95", "60s", "--seconds", "0.45", "--set", "batching.frames=1",
             "--replicas", "2"]  # fmt: skip
    assert main(["plan", *words, "--verify", "--json", str(tmp_path / "out" / "plan.json")]) == 0
    printed = capsys.readouterr()
    told = json.loads((tmp_path / "out" / "plan.json").read_text())
    assert printed.out.startswith(f"{told['fits']} camera")
    assert f"{told['fits_per_process']} in each of 2 processes" in printed.out
    assert told["processes"] == 2 and told["fits"] == 2 * told["fits_per_process"]
    assert told["measured"]["cameras"] >= 1 and set(told["measured"]["errors"]) == {"fps_out", "p50", "p95"}
    assert "Tried with " in printed.out and "turn 6 of 6" in printed.err
    assert "measuring batches of every size" in printed.err and "backbone" in told["service"]["stages_ms"]


@given(st.text(max_size=20))
def test_any_word_is_a_size_and_a_time_or_refused(text):
    for parse in (_size, _seconds):
        try:
            assert parse(text)
        except ConfigError as error:
            assert error.exit_code == 2
    assert GraphError.exit_code == 2


@given(st.integers(0, 99_999), st.integers(0, 99_999), st.floats(0, 999_999))
def test_sizes_and_times_are_read(width, height, value):
    assert _size(f"{width}x{height}") == (width, height)
    assert _seconds(f"{value:.3f}ms") == pytest.approx(float(f"{value:.3f}") / 1000)
