"""Whether the server does what it is there for: frames leave it, not only its processes live.

In:     the registry's overview
Out:    (healthy, what is wrong or how it stands), for /healthz; (ready, why not), for /readyz
State:  none
"""

from __future__ import annotations

from typing import Any

from pipelines.serving.registry import Overview

Verdict = tuple[bool, dict[str, Any]]


def health(overview: Overview, stall_s: float) -> Verdict:
    """False where no replica has its stages, or frames of a stream wait and none has come out for `stall_s`.

    A camera that is away is no fault of the server: it is reconnected to, and the stream says so.
    """
    stalled = [status["id"] for status in overview.statuses if _is_stalled(status, stall_s)]
    said = {"replicas": overview.replicas, "streams": len(overview.statuses), "stalled": stalled}
    if not overview.replicas:
        return False, {"error": "No replica with the stages of the graph is there.", **said}
    if stalled:
        return False, {"error": f"No frame left for {stall_s:g} s though frames come: {', '.join(stalled)}.", **said}
    return True, {"status": "ok", **said}


def readiness(overview: Overview, closing: bool) -> Verdict:
    """False before a replica has built its stages, while the server ends, and while streams wait for an owner."""
    waiting = [
        status["id"] for status in overview.statuses
        if status["id"] not in overview.owners and status["state"] not in ("ended", "failed")
    ]  # fmt: skip
    said = {"replicas": overview.replicas, "room": overview.room, "waiting": waiting}
    if closing:
        return False, {"error": "The server is being shut down.", **said}
    if not overview.replicas:
        return False, {"error": "No replica has built the stages of the graph yet.", **said}
    if waiting:
        return False, {"error": f"Streams wait for a replica: {', '.join(waiting)}.", **said}
    return True, {"status": "ready", **said}


def _is_stalled(status: dict[str, Any], stall_s: float) -> bool:
    return status["state"] not in ("ended", "failed") and status["stalled_s"] > stall_s
