"""What /healthz and /readyz say of an overview."""

from __future__ import annotations

import pytest

from pipelines.serving.health import health, readiness
from pipelines.serving.registry import Overview
from pipelines.serving.streams import StreamSpec, blank_status


def overview(*streams: tuple[str, float], replicas: int = 1, owned: bool = True) -> Overview:
    """Streams as (state, seconds without a result while frames wait)."""
    statuses = tuple(
        {**blank_status(StreamSpec(id=f"s{number}"), state, ""), "stalled_s": stalled_s}
        for number, (state, stalled_s) in enumerate(streams)
    )
    owners = {status["id"]: "a" for status in statuses} if owned else {}
    return Overview(statuses, owners, replicas, room=1)


@pytest.mark.parametrize(
    "seen, good, said",
    [
        pytest.param(overview(), True, "ok", id="no stream"),
        pytest.param(overview(replicas=0), False, "No replica", id="no replica"),
        pytest.param(overview(("live", 9.9)), True, "ok", id="slow"),
        pytest.param(overview(("live", 10.1), ("live", 0.0)), False, "10 s though frames come: s0", id="stalled"),
        pytest.param(overview(("reconnecting", 0.0)), True, "ok", id="a camera is away"),
        pytest.param(overview(("ended", 99.0), ("failed", 99.0)), True, "ok", id="over"),
    ],
)
def test_health(seen: Overview, good: bool, said: str) -> None:
    verdict, answer = health(seen, stall_s=10.0)
    assert verdict is good and said in (answer.get("error") or answer["status"])


@pytest.mark.parametrize(
    "seen, closing, good",
    [
        pytest.param(overview(), False, True, id="no stream"),
        pytest.param(overview(replicas=0), False, False, id="no replica"),
        pytest.param(overview(("live", 0.0)), False, True, id="a stream"),
        pytest.param(overview(("connecting", 0.0), owned=False), False, False, id="nobody has it yet"),
        pytest.param(overview(("ended", 0.0), owned=False), False, True, id="nobody needs to have it"),
        pytest.param(overview(), True, False, id="the server ends"),
    ],
)
def test_readiness(seen: Overview, closing: bool, good: bool) -> None:
    verdict, answer = readiness(seen, closing)
    assert verdict is good and ("error" in answer) is not good
