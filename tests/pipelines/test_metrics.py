"""What Prometheus sees of a run, scraped from a real cluster; and that docs and dashboard speak of nothing else."""

from __future__ import annotations

import json
import re
import shlex
import time
import urllib.request
from collections.abc import Callable

import pytest
import ray

from operators.records import FrameFault, FrameInfo, StreamEnd
from pipelines.cli import _parser, main
from pipelines.config import CHECKOUT
from pipelines.metrics import MAX_STREAMS, METRICS, OTHERS, RunMetrics, StageMetrics, addresses, exported
from pipelines.reports import Failure, Report, Span
from pipelines.status import GroupStatus, Status
from tests.pipelines import small_stages

DASHBOARD = CHECKOUT / "configs/grafana/maskstream.json"

REPORT = Report(
    events=(
        FrameFault(FrameInfo("a", 3, 0.0, 2, 2), "a torn packet"),
        StreamEnd("a", 8, num_skipped=2),
        StreamEnd("b", 5, error="cut", fatal=True),
    ),
    failures=(Failure("café", "paint, stream 'café', frame 3: no."),),
    seconds={"unpack": 0.06, "paint": 0.3},
    frames={"unpack": 10, "paint": 9},
    bytes={"unpack": 1000, "paint": 900},
    calls={"unpack": 2, "paint": 1},
    streams={"a": 4, "café": 5},
    state_bytes={"unpack": 77},
)


@ray.remote(num_cpus=0)
class Counts:
    """An actor of a group, as the executor's: what it counts must show on its node's port."""

    def __init__(self) -> None:
        self.metrics = StageMetrics(("unpack", "paint"))

    def observe(self, *reports: Report) -> None:
        for report in reports:
            self.metrics.observe(report)


Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scraped() -> Series:
    """(series, its own tags) -> value, of ours on all nodes; summed over processes."""
    found: Series = {}
    own = {tag for metric in METRICS.values() for tag in metric.tags} | {"le"}
    for address in addresses():
        for line in urllib.request.urlopen(address, timeout=10).read().decode().splitlines():
            match = re.fullmatch(r"(ray_maskstream_\w+)\{(.*)\} (\S+)", line)
            if match:
                tags = frozenset(pair for pair in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2]) if pair[0] in own)
                found[match[1], tags] = found.get((match[1], tags), 0.0) + float(match[3])
    return found


def scraped_until(wrong: Callable[[Series], object]) -> Series:
    """What is scraped once nothing of it is wrong: Ray brings values by its own clock, and tells nobody."""
    end = time.monotonic() + 60
    while said := wrong(found := scraped()):
        assert time.monotonic() < end, f"{said} did not come right; there are {sorted({series for series, _ in found})}"
        time.sleep(0.2)
    return found


def of(name: str, **tags: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return "ray_maskstream_" + name, frozenset(tags.items())


GROUP = {"group": "unpack+paint"}
COUNTED = {
    of("stage_frames_total", stage="unpack"): 20, of("stage_frames_total", stage="paint"): 18,
    of("stage_bytes_total", stage="paint"): 1800,
    of("stage_seconds_count", stage="unpack"): 4, of("stage_seconds_count", stage="paint"): 2,
    # two calls of 0.03 s and 5 frames in each report
    of("stage_seconds_bucket", stage="unpack", le="0.02"): 0, of("stage_seconds_bucket", stage="unpack", le="0.05"): 4,
    of("stage_batch_frames_bucket", stage="unpack", le="4.0"): 0,
    of("stage_batch_frames_bucket", stage="unpack", le="6.0"): 4,
    of("stage_busy_seconds_total", stage="unpack"): 0.12,
    of("stage_state_bytes", stage="unpack"): 77,
    of("stream_frames_total", stage="paint", stream="a"): 8,
    of("stream_frames_total", stage="paint", stream="caf\\\\xe9"): 10,     # \xe9, as Prometheus escapes it
    of("stream_frames_total", stage="paint", stream=OTHERS): 2 * MAX_STREAMS + 2 - MAX_STREAMS,
    of("dropped_frames_total", reason="undecodable"): 2,
    of("dropped_frames_total", reason="torn_packet"): 4,
    of("dropped_frames_total", reason="queue_full"): 4,
    of("failed_streams_total", reason="source"): 2, of("failed_streams_total", reason="stage"): 2,
    of("failed_streams_total", reason="poison"): 1,
    of("waiting_frames", **GROUP): 3, of("under_way_frames", **GROUP): 4, of("busy", **GROUP): 0.5,
    of("restarts_total", **GROUP): 1, of("open_streams"): 1, of("rewinds_total"): 3,
    of("frame_seconds_count"): 3,
    of("frame_seconds_bucket", le="0.2"): 0, of("frame_seconds_bucket", le="0.5"): 2,
    of("frame_seconds_bucket", le="5.0"): 2, of("frame_seconds_bucket", le="10.0"): 3,
}  # fmt: skip
GAUGES = {f"ray_{name}" for name, metric in METRICS.items() if metric.kind == "gauge"}


def test_what_actors_and_driver_count_is_on_the_port(cluster, in_time):
    before = scraped()  # the driver may have counted other tests' runs
    actor = Counts.remote()
    many = Report(streams={f"video {number}": 1 for number in range(2 * MAX_STREAMS)})
    ray.get(actor.observe.remote(Report(), REPORT, REPORT, many))
    driver = RunMetrics(small_stages.graph())
    groups = (GroupStatus(("unpack", "paint"), 2, waiting=3, under_way=4, busy=0.5, restarts=1),)
    driver.on_status(Status(groups, streams_open=2, rewinds=1, dropped=4))
    driver.on_status(Status(groups, streams_open=1, rewinds=3, dropped=4, set_aside=1))
    spans = [Span("unpack", "p", 100.0, 0.1, (("a", 0, 2),)), Span("total", "p", 100.0, 0.4, (("a", 0, 1),))]
    driver.watch(Report(spans=tuple(spans)))
    driver.watch(Report(spans=(Span("total", "p", 107.0, 1.0, (("a", 2, 2),)),)))

    def wrong(found: Series) -> Series:
        values = {one: found.get(one, 0.0) - (0 if one[0] in GAUGES else before.get(one, 0.0)) for one in COUNTED}
        return {one: value for one, value in values.items() if value != pytest.approx(COUNTED[one])}

    found = scraped_until(wrong)
    ray.kill(actor)
    streams = [dict(tags)["stream"] for name, tags in found if name == "ray_maskstream_stream_frames_total"]
    assert len(streams) == MAX_STREAMS + 1
    assert {name for name, _ in found} == {series for name in METRICS for series in exported(name)}


@pytest.mark.parametrize(
    ("reports", "left"),
    [
        pytest.param([], {}, id="nothing"),
        pytest.param([Report(spans=(Span("unpack", "p", 1.0, 0.1, (("a", 0, 1),)),))], {"a": [0, 1]}, id="under-way"),
        pytest.param(
            [
                Report(
                    events=(FrameFault(FrameInfo("a", 1, 0.0, 2, 2), "torn"),),
                    spans=(Span("unpack", "p", 1.0, 0.1, (("a", 0, 2),)),),
                )
            ],
            {"a": [0, 2]},
            id="a-fault-is-no-longer-under-way",
        ),
        pytest.param(
            [
                Report(spans=(Span("unpack", "p", 1.0, 0.1, (("a", 0, 4), ("b", 0, 4))),)),
                Report(failures=(Failure("a", "paint, ..."),)),
            ],
            {"b": [0, 1, 2, 3, 4]},
            id="nor-is-a-failed-stream",
        ),
    ],
)
def test_what_is_under_way_is_forgotten_when_it_cannot_come_out(reports, left):
    driver = RunMetrics(small_stages.graph())
    for report in reports:
        driver.watch(report)
    assert {stream: list(frames) for stream, frames in driver._came_in.items()} == left


def test_metrics_without_ray_are_refused_before_any_work(tmp_path, capsys):
    assert main(["run", "a.mp4", "--metrics", "--out", str(tmp_path / "run")]) == 2
    assert "Add --executor ray." in capsys.readouterr().err


# ------------------------------------------------------------------------------------------- documents and dashboard


def targets() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_the_dashboard_draws_every_metric_and_no_other():
    named = {name for expr in targets() for name in re.findall(r"ray_maskstream_\w+", expr)}
    assert named <= {series for name in METRICS for series in exported(name)}
    assert [name for name in METRICS if not named & set(exported(name))] == []


def test_the_dashboard_asks_for_tags_that_are_there():
    for expr in targets():
        metrics = {name for name in METRICS for series in exported(name) if re.search(rf"\b{series}\b", expr)}
        asked = {tag.strip() for tags in re.findall(r"by \(([^)]*)\)", expr) for tag in tags.split(",")}
        assert metrics and all(asked <= {*METRICS[metric].tags, "le"} for metric in metrics), expr
        assert expr.count("(") == expr.count(")"), expr
        rises = any(METRICS[metric].kind != "gauge" for metric in metrics)  # which is drawn by how fast it does
        assert "_sum{" not in expr, "of a histogram only an estimate"
        assert rises == ("rate(" in expr or "increase(" in expr), expr
        # Prometheus sees no rise in a counter's first value, and of rare events a process often has but one
        assert ("increase(" in expr) == (" unless " in expr), expr


def test_the_dashboards_panels_stand_side_by_side():
    panels = json.loads(DASHBOARD.read_text())["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken = set()
    for place in (panel["gridPos"] for panel in panels):
        cells = {(place["x"] + i, place["y"] + j) for i in range(place["w"]) for j in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24
        taken |= cells


def test_the_document_tells_every_series_and_commands_that_are_there():
    text = (CHECKOUT / "docs/observability.md").read_text()
    rows = dict(re.findall(r"^\| `(ray_maskstream_\w+)` \| (.*?) \|", text, re.M))
    tags = dict(re.findall(r"^\| `(ray_maskstream_\w+)` \| \w+ \| (.*?) ?\|", text, re.M))
    told = {"counter": "_total", "gauge": "", "histogram": ""}
    expected = {f"ray_{name}{told[metric.kind]}": metric for name, metric in METRICS.items()}
    assert rows == {name: metric.kind for name, metric in expected.items()}
    assert tags == {name: ", ".join(metric.tags) for name, metric in expected.items()}
    for line in re.findall(r"^maskstream .*$", text, re.M):
        _parser().parse_args(shlex.split(line, comments=True)[1:])
    assert str(DASHBOARD.relative_to(CHECKOUT)) in text and f"first {MAX_STREAMS} streams" in " ".join(text.split())
