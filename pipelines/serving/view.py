"""What one ingress knows of all streams: the registry's word, asked for once however many wait for it.

In:     how old the word may be
Out:    an Overview, the Status of a stream
State:  the last Overview, when it was asked for, and when this process last changed something
Limits: one question under way, PACE_S between two
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import Any

import ray.exceptions
from ray.serve.exceptions import RayServeException

from pipelines.serving.actors import call_registry
from pipelines.serving.registry import Overview
from pipelines.serving.streams import Status, UnknownStream

FRESH_S = 0.4
PACE_S = 0.02
"""Between two questions to the registry, however many clients ask how things stand this moment."""
DOWN = (ray.exceptions.RayError, RayServeException)


class View:
    """What the registry says, not older than FRESH_S, or than a caller bears: 0.0 holds whatever was done before the
    call, also by another process. What was done through this one is never left out. Who asks meanwhile shares the next
    question."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._asking: asyncio.Future[None] | None = None
        self._at = self._asked_at = self._changed_at = -math.inf
        self._overview = Overview((), {}, 0, 0)
        self.closing = False
        """The server, or this process of it, ends."""

    async def overview(self, max_age_s: float = FRESH_S) -> Overview:
        """Raises ray.exceptions.RayError where the registry cannot be reached."""
        oldest = max(time.monotonic() - max_age_s, self._changed_at)
        while self._at < oldest:
            if self._asking is None or self._asking.done():
                self._asking = asyncio.ensure_future(self._ask())
            await asyncio.shield(self._asking)          # one question under way, whoever of its askers gives up
        return self._overview

    async def _ask(self) -> None:
        await asyncio.sleep(self._asked_at + PACE_S - time.monotonic())
        at = self._asked_at = time.monotonic()
        self._overview = await call_registry(self._app, "overview")
        self._at = at
        self.closing = self.closing or self._overview.closing

    async def status(self, stream: str, max_age_s: float = FRESH_S, made_at: float | None = None) -> Status:
        """Its Status; waits while the registry has not heard of all streams yet. Raises UnknownStream, with `made_at`
        also where another stream than the one that was made then has the id."""
        asked_at = time.monotonic()
        while True:
            overview = await self.overview(max_age_s)
            for status in overview.statuses:
                if status["id"] == stream and made_at in (None, status["started_at"]):
                    return status
            if not overview.settled:
                await asyncio.sleep(FRESH_S)
            elif self._at >= asked_at:
                there = any(status["id"] == stream for status in overview.statuses)
                said = " any more; another one has its id now" if there else ""
                raise UnknownStream(f"There is no stream '{stream}'{said}.")
            max_age_s = 0.0                 # it may have been registered since, by another process

    async def call(self, method: str, *arguments: Any) -> Any:
        """A method of the registry; what is known of it is old afterwards, and what is just being asked too."""
        try:
            return await call_registry(self._app, method, *arguments)
        finally:
            self._changed_at = time.monotonic()
