"""`GET /metrics`: how every stream stands, as Prometheus reads it.

In:     the statuses of all streams, as `GET /streams` gives them
Out:    text of the exposition format 0.0.4
State:  none: a counter is what the stream itself has counted since it was registered
Limits: MAX_STREAMS streams with MAX_REASONS reasons each, so a scrape stays bounded; all further streams are only
        counted in `maskstream_streams`. What is not known (no frame yet) has no line.

Of every stream, at every scrape,

    maskstream_stream_frames_in_total = maskstream_stream_frames_out_total
                                      + sum by (stream) (maskstream_stream_frames_dropped_total)
                                      + maskstream_stream_frames_in_flight
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
MAX_STREAMS = 1000
MAX_REASONS = 32
MAX_LABEL = 200
"""Letters of a label's value."""
STATES = ("connecting", "live", "reconnecting", "ended", "failed")

Status = Mapping[str, Any]
Labels = Sequence[tuple[str, str]]
Sample = tuple[Labels, float]
Kind = Literal["counter", "gauge"]

HELP: dict[str, tuple[Kind, str]] = {
    "maskstream_streams": ("gauge", "Streams that are registered, by state."),
    "maskstream_stream_state": ("gauge", "1 for the state that the stream is in."),
    "maskstream_stream_info": ("gauge", "Always 1; where the stream comes from, and how large its frames are."),
    "maskstream_stream_frames_in_total": ("counter", "Frames that came since the stream was registered."),
    "maskstream_stream_frames_out_total": ("counter", "Frames whose result was given out."),
    "maskstream_stream_frames_dropped_total": ("counter", "Frames that gave no result, by reason."),
    "maskstream_stream_frames_in_flight": ("gauge", "Frames that wait, or are worked on."),
    "maskstream_stream_fps_in": ("gauge", "Frames a second that come, lately."),
    "maskstream_stream_fps_out": ("gauge", "Frames a second that leave, lately."),
    "maskstream_stream_latency_seconds": ("gauge", "From capture to result, lately; p50 and p95."),
    "maskstream_stream_tracks": ("gauge", "Objects now shown."),
    "maskstream_stream_reconnects_total": ("counter", "Times that the source was connected to again."),
    "maskstream_stream_retry_in_seconds": ("gauge", "Until the source is tried again; no line while it is not lost."),
    "maskstream_stream_started_at_seconds": ("gauge", "When the stream was registered, Unix time."),
}
"""Of each metric its kind, and what it says; in the order of the text."""


def metrics_text(statuses: Iterable[Status]) -> str:
    """Every metric of HELP with its lines; no streams: `maskstream_streams` is 0 in every state.

    A value that is missing, no number or not finite has no line: a scrape never fails because of one stream.
    """
    statuses = list(statuses)
    samples: dict[str, list[Sample]] = {name: [] for name in HELP}
    states = Counter(_state(status) for status in statuses)
    samples["maskstream_streams"] = [((("state", state),), states[state]) for state in STATES]
    seen: set[str] = set()
    for status in statuses:
        stream = _label(status.get("id"))
        if len(seen) < MAX_STREAMS and stream not in seen:      # two lines of one name would void the whole scrape
            seen.add(stream)
            _add(samples, status, (("stream", stream),))
    return "".join(_block(name, lines) for name, lines in samples.items() if lines)


def _add(samples: dict[str, list[Sample]], status: Status, stream: Labels) -> None:
    """The lines of one stream."""

    def put(name: str, value: Any, *labels: tuple[str, str], scale: float = 1.0) -> None:
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            samples[f"maskstream_stream_{name}"].append(((*stream, *labels), value if scale == 1 else value * scale))

    for state in STATES:
        put("state", int(state == _state(status)), ("state", state))
    size = (("width", _label(status.get("width"))), ("height", _label(status.get("height"))))
    put("info", 1, ("kind", _label(status.get("kind"))), ("url", _label(status.get("url"))), *size)
    frames, latency = _group(status, "frames"), _group(status, "latency_ms")
    put("frames_in_total", frames.get("in"))
    put("frames_out_total", frames.get("out"))
    put("frames_in_flight", frames.get("in_flight"))
    for reason, count in _reasons(_group(frames, "dropped")).items():
        put("frames_dropped_total", count, ("reason", reason))
    put("fps_in", status.get("fps_in"))
    put("fps_out", status.get("fps_out"))
    put("latency_seconds", latency.get("p50"), ("quantile", "0.5"), scale=0.001)
    put("latency_seconds", latency.get("p95"), ("quantile", "0.95"), scale=0.001)
    put("tracks", status.get("tracks"))
    put("reconnects_total", status.get("reconnects"))
    put("retry_in_seconds", status.get("retry_in_s"))
    put("started_at_seconds", status.get("started_at"))


def _reasons(dropped: Mapping[Any, Any]) -> dict[str, float]:
    """Counts by label; those beyond MAX_REASONS, and those that shorten to the same label, together: none is lost."""
    found: dict[str, float] = {}
    for reason, count in dropped.items():
        if isinstance(count, (int, float)) and math.isfinite(count):
            label = _label(reason)
            label = label if label in found or len(found) < MAX_REASONS - 1 else "other"
            found[label] = found.get(label, 0) + count
    return found


def _group(status: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = status.get(name)
    return found if isinstance(found, Mapping) else {}


def _state(status: Status) -> str:
    state = status.get("state")
    return state if state in STATES else "failed"


def _label(value: Any) -> str:
    """As text that UTF-8 can write, shortened. None: empty, which to Prometheus is no label."""
    text = "" if value is None else str(value)[:MAX_LABEL]
    return text.encode("utf-8", "replace").decode("utf-8")


def _block(name: str, lines: Iterable[Sample]) -> str:
    kind, said = HELP[name]
    head = f"# HELP {name} {said}\n# TYPE {name} {kind}\n"
    return head + "".join(f"{name}{{{_labels(labels)}}} {_number(value)}\n" for labels, value in lines)


def _labels(labels: Labels) -> str:
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in labels)


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
