"""/metrics, read back by the official parser of Prometheus' text."""

from __future__ import annotations

from collections import defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from pipelines.serving.prometheus import HELP, MAX_REASONS, MAX_STREAMS, STATES, metrics_text

STATUS = {
    "id": "door", "kind": "pull", "url": "rtsp://10.0.0.7/door", "state": "live", "reason": "", "retry_in_s": None,
    "width": 640, "height": 360, "fps_in": 10.0, "fps_out": 9.5, "latency_ms": {"p50": 80, "p95": 120.5},
    "frames": {"in": 100, "out": 90, "in_flight": 3, "dropped": {"queue_full_oldest": 5, "damaged": 2}},
    "tracks": 4, "reconnects": 1, "started_at": 1700000000.25,
}  # fmt: skip


def read(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Name -> (labels, value) of every line; each name has its kind, and no line stands twice."""
    found = defaultdict(list)
    for family in text_string_to_metric_families(text):
        assert family.type in ("counter", "gauge") and family.documentation
        for sample in family.samples:
            found[sample.name].append((dict(sample.labels), sample.value))
    for name, lines in found.items():
        assert len({tuple(sorted(labels.items())) for labels, _ in lines}) == len(lines), name
    return found


def test_no_streams():
    found = read(metrics_text([]))
    assert found == {"maskstream_streams": [({"state": state}, 0.0) for state in STATES]}


def test_one_stream_by_hand():
    text = metrics_text([STATUS])
    found = read(text)
    assert set(found) == set(HELP) - {"maskstream_stream_retry_in_seconds"}
    assert found["maskstream_stream_frames_in_total"] == [({"stream": "door"}, 100.0)]
    assert found["maskstream_stream_latency_seconds"] == [
        ({"stream": "door", "quantile": "0.5"}, pytest.approx(0.08)),
        ({"stream": "door", "quantile": "0.95"}, pytest.approx(0.1205)),
    ]
    assert [(labels["state"], value) for labels, value in found["maskstream_stream_state"] if value] == [("live", 1.0)]
    info = {"stream": "door", "kind": "pull", "url": "rtsp://10.0.0.7/door", "width": "640", "height": "360"}
    assert found["maskstream_stream_info"] == [(info, 1.0)]
    assert 'maskstream_stream_frames_dropped_total{stream="door",reason="damaged"} 2\n' in text
    assert "maskstream_stream_started_at_seconds{stream=\"door\"} 1700000000.25\n" in text


@pytest.mark.parametrize("status", [
    {}, {"id": None}, {"frames": None, "latency_ms": 3}, {"frames": {"in": float("nan"), "out": True, "dropped": []}},
    {"latency_ms": {"p50": None, "p95": float("inf")}, "state": "odd"},
    {"fps_in": "ten", "frames": {"dropped": {1: "x"}}},
])  # fmt: skip
def test_what_is_not_known_has_no_line(status):
    found = read(metrics_text([status, STATUS]))
    assert found["maskstream_stream_frames_in_total"] == [({"stream": "door"}, 100.0)]
    assert all(len(found[f"maskstream_stream_{name}"]) == 1 for name in ("fps_in", "frames_out_total", "tracks"))


def test_a_scrape_is_bounded():
    many = {str(i): 1 for i in range(100)}
    statuses = [{"id": f"s{i}", "tracks": 1, "frames": {}} for i in range(MAX_STREAMS + 5)]
    statuses[0]["frames"] = {"dropped": many}
    found = read(metrics_text(statuses))
    assert len(found["maskstream_stream_tracks"]) == MAX_STREAMS
    assert sum(value for _, value in found["maskstream_streams"]) == MAX_STREAMS + 5
    dropped = [value for labels, value in found["maskstream_stream_frames_dropped_total"] if labels["stream"] == "s0"]
    assert len(dropped) == MAX_REASONS and sum(dropped) == 100


names = st.one_of(st.text(max_size=12), st.sampled_from(['"', "\\", "\n", "a\\", '",x="', "\ud800", "x" * 300]))
counts = st.integers(0, 10**12)


@st.composite
def streams(draw):
    """Statuses whose counters add up, as those of the app do at every moment."""
    dropped = draw(st.dictionaries(names, counts, max_size=40))
    out, in_flight = draw(counts), draw(st.integers(0, 100))
    frames = {"in": out + in_flight + sum(dropped.values()), "out": out, "in_flight": in_flight, "dropped": dropped}
    return {**STATUS, "id": draw(names), "url": draw(names), "frames": frames, "state": draw(st.sampled_from(STATES))}


@settings(deadline=None, max_examples=150)
@given(st.lists(streams(), max_size=5))
def test_every_frame_is_accounted_for(statuses):
    """in = out + dropped + in flight, of every stream, as read from the text by another program."""
    found = read(metrics_text(statuses))
    kept = {labels["stream"]: value for labels, value in found["maskstream_stream_frames_in_total"]}
    shown = {}
    for status in statuses:
        shown.setdefault(status["id"][:200].encode("utf-8", "replace").decode(), status["frames"])
    assert kept == {name: frames["in"] for name, frames in shown.items()}
    for name, frames in shown.items():
        sums = [sum(value for labels, value in found[f"maskstream_stream_frames_{part}"] if labels["stream"] == name)
                for part in ("out_total", "dropped_total", "in_flight")]  # fmt: skip
        assert sum(sums) == frames["in"]
        assert sums[1] == sum(frames["dropped"].values())
