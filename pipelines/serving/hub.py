"""What the clients of one ingress look at: results and pictures of streams, fetched once however many look.

In:     the ids of streams that somebody looks at
Out:    lines of results in order of their frames, and the newest picture, for as long as the stream is there
State:  a Feed for each of these streams; one question under way to each owner
Limits: a client that falls behind KEPT lines misses those in between; pictures are the newest alone

A stream whose owner dies is silent until it has another one: its clients stay connected, and go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

import ray.exceptions
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from pipelines.serving.actors import call_registry
from pipelines.serving.registry import Overview
from pipelines.serving.streams import Given, Picture, Status, UnknownStream, Want

log = logging.getLogger(__name__)

KEPT = 256
WAIT_S = 0.4
"""Longest wait of a question: so late, at most, is a new client's stream asked for too."""
FRESH_S = 0.4
PACE_S = 0.02
"""Between two questions to the registry, however many clients ask how things stand this moment."""
NOW = 1 << 62
DOWN = (ray.exceptions.RayError, RayServeException)


class View:
    """What the registry says, not older than FRESH_S, or than a caller bears: 0.0 holds whatever was done before the
    call, also by another process. Who asks meanwhile shares the next question."""

    def __init__(self, app: str) -> None:
        self._app = app
        self._asking: asyncio.Future[None] | None = None
        self._at = self._asked_at = -math.inf
        self._overview = Overview((), {}, 0, 0)
        self.closing = False
        """The server, or this process of it, ends."""

    async def overview(self, max_age_s: float = FRESH_S) -> Overview:
        """Raises ray.exceptions.RayError where the registry cannot be reached."""
        oldest = time.monotonic() - max_age_s
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

    async def status(self, stream: str, max_age_s: float = FRESH_S) -> Status:
        """Its Status; waits while the registry has not heard of all streams yet. Raises UnknownStream."""
        asked_at = time.monotonic()
        while True:
            overview = await self.overview(max_age_s)
            for status in overview.statuses:
                if status["id"] == stream:
                    return status
            if not overview.settled:
                await asyncio.sleep(FRESH_S)
            elif self._at >= asked_at:
                raise UnknownStream(f"There is no stream '{stream}'.")
            max_age_s = 0.0                 # it may have been registered since, by another process

    async def call(self, method: str, *arguments: Any) -> Any:
        """A method of the registry; what is known of it is old afterwards."""
        try:
            return await call_registry(self._app, method, *arguments)
        finally:
            self._at = -math.inf


@dataclass
class Feed:
    """One stream as this ingress knows it."""

    last_index: int
    lines: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=KEPT))
    picture: Picture | None = None
    watchers: int = 0
    picture_watchers: int = 0
    ended: bool = False
    bell: asyncio.Event = field(default_factory=asyncio.Event)

    def ring(self) -> None:
        bell, self.bell = self.bell, asyncio.Event()
        bell.set()


class Hub:
    """Asks the owners, and tells the clients."""

    def __init__(self, owners: DeploymentHandle, view: View) -> None:
        self._owners, self._view = owners, view
        self._feeds: dict[str, Feed] = {}
        self._asking: dict[str, asyncio.Task] = {}
        self._manager: asyncio.Task | None = None

    @property
    def closing(self) -> bool:
        return self._view.closing

    async def lines(self, stream: str, after: int | None = None) -> AsyncIterator[list[bytes]]:
        """Results of later frames than `after`, those that are still known first; None: from now on. An empty list now
        and then: the client may be gone. Ends with the stream. Raises UnknownStream."""
        await self._view.status(stream)
        cursor = after
        if after is None:
            newest = await self._ask(stream, Want(NOW))
            cursor = -1 if newest is None else newest.last_index
        while (past := await self._ask(stream, Want(cursor))) is not None and past.lines:
            cursor = past.lines[-1][0]
            yield [line for _, line in past.lines]
        async with self._watching(stream, cursor) as feed:
            while not self.closing:
                bell, ended = feed.bell, feed.ended
                found = [(index, line) for index, line in feed.lines if index > cursor]
                if found:
                    cursor = found[-1][0]
                    yield [line for _, line in found]
                elif ended:
                    return
                elif not await _rung(bell, 5.0):
                    yield []

    async def pictures(self, stream: str, fps: float) -> AsyncIterator[Picture | None]:
        """The newest picture, at most `fps` a second; None now and then. Ends with the stream. Raises UnknownStream."""
        await self._view.status(stream)
        last = -1
        async with self._watching(stream, -1, picture=True) as feed:
            while not self.closing:
                bell, picture = feed.bell, feed.picture
                if picture is not None and picture.index > last:
                    last = picture.index
                    yield picture
                    await asyncio.sleep(1 / fps)
                elif feed.ended:
                    return
                elif not await _rung(bell, 5.0):
                    yield None

    async def picture(self, stream: str, patience_s: float = 3.0) -> Picture | None:
        """The newest picture now; None if there is none in time. Raises UnknownStream."""
        until = time.monotonic() + patience_s
        while True:
            await self._view.status(stream)
            given = await self._ask(stream, Want(NOW, picture_after=-1))
            if (given is not None and given.picture is not None) or time.monotonic() > until:
                return None if given is None else given.picture
            await asyncio.sleep(0.1)

    async def _ask(self, stream: str, want: Want) -> Given | None:
        """One question, at once; None where nobody can answer it now."""
        owner = (await self._view.overview()).owners.get(stream)
        if owner is None:
            return None
        try:
            return (await self._owners.options(session_id=owner).poll.remote({stream: want}, 0.0)).get(stream)
        except DOWN:
            return None

    @contextlib.asynccontextmanager
    async def _watching(self, stream: str, after: int, picture: bool = False) -> AsyncIterator[Feed]:
        """The stream's feed, while somebody looks at it."""
        feed = self._feeds.get(stream)
        if feed is None or feed.ended:
            feed = self._feeds[stream] = Feed(after)
        feed.watchers += 1
        feed.picture_watchers += picture
        if self._manager is None or self._manager.done():
            self._manager = apart(self._manage())
        try:
            yield feed
        finally:
            feed.watchers -= 1
            feed.picture_watchers -= picture
            if not feed.watchers and self._feeds.get(stream) is feed:
                del self._feeds[stream]

    async def _manage(self) -> None:
        """Keep a question under way to each owner that has a stream somebody looks at."""
        while self._feeds and not self.closing:
            try:
                overview = await self._view.overview()
            except DOWN:
                await asyncio.sleep(FRESH_S)
                continue
            known = {status["id"] for status in overview.statuses}
            for stream, feed in list(self._feeds.items()):
                owner = overview.owners.get(stream)
                if stream not in known and overview.settled:
                    self._end(feed)
                elif owner is not None and (owner not in self._asking or self._asking[owner].done()):
                    self._asking[owner] = apart(self._follow(owner))
                elif owner is None and stream in known and _state(overview, stream) in ("ended", "failed"):
                    self._end(feed)
            await asyncio.sleep(0.1)
        for feed in self._feeds.values():       # nobody waits for what will not come
            feed.ring()

    async def _follow(self, owner: str) -> None:
        """Ask an owner for its streams until there is none left that somebody looks at."""
        handle = self._owners.options(session_id=owner)
        try:
            while not self.closing:
                owners = (await self._view.overview()).owners
                mine = [name for name in self._feeds if owners.get(name) == owner]
                feeds = {name: self._feeds[name] for name in mine if not self._feeds[name].ended}
                if not feeds:
                    return
                given = await handle.poll.remote({name: _want(feed) for name, feed in feeds.items()}, WAIT_S)
                for name, feed in feeds.items():
                    if name in given:
                        self._take(feed, given[name])
                if given.keys() != feeds.keys():        # they are elsewhere, or not open yet
                    await asyncio.sleep(0.1)
        except DOWN as error:
            log.info("owner %s does not answer: %s", owner, error)
            await asyncio.sleep(0.2)
        finally:
            self._asking.pop(owner, None)

    def _take(self, feed: Feed, given: Given) -> None:
        news = bool(given.lines) or given.ended
        for index, line in given.lines:
            if index > feed.last_index:
                feed.lines.append((index, line))
                feed.last_index = index
        if given.picture is not None:
            feed.picture, news = given.picture, True
        feed.ended = feed.ended or given.ended
        if news:
            feed.ring()

    def _end(self, feed: Feed) -> None:
        if not feed.ended:
            feed.ended = True
            feed.ring()


def apart(coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    """A task that is no part of the request that happens to begin it: it outlives it. Serve's handles number their
    calls by the request that they find in the context, and of two calls that wait under one number at once, as those to
    two owners would, one is never made."""
    return contextvars.Context().run(asyncio.get_running_loop().create_task, coroutine)


def _want(feed: Feed) -> Want:
    picture_after = None
    if feed.picture_watchers:
        picture_after = -1 if feed.picture is None else feed.picture.index
    return Want(feed.last_index, picture_after)


def _state(overview: Overview, stream: str) -> str:
    return next((status["state"] for status in overview.statuses if status["id"] == stream), "")


async def _rung(bell: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(bell.wait(), timeout_s)
    except asyncio.TimeoutError:
        return False
    return True
