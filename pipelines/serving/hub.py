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
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, field
from typing import Any

from ray.serve.handle import DeploymentHandle

from pipelines.serving.registry import Overview
from pipelines.serving.streams import Given, Picture, Want
from pipelines.serving.view import DOWN, FRESH_S, View

log = logging.getLogger(__name__)

KEPT = 256
WAIT_S = 0.4
"""Longest wait of a question: so late, at most, is a new client's stream asked for too."""
PLACE_S = 2.0
"""Longest wait for an owner to say which frame is its newest."""
NOW = 1 << 62


@dataclass(frozen=True)
class Place:
    """Where a client begins to look."""

    stream: str
    made_at: float
    """Of streams that had the same id one after the other, the one that was made then."""
    after: int
    """At results of later frames than this."""


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
        self._feeds: dict[tuple[str, float], Feed] = {}
        """By id, and when the stream was made."""
        self._asking: dict[str, asyncio.Task] = {}
        self._manager: asyncio.Task | None = None

    @property
    def closing(self) -> bool:
        return self._view.closing

    async def place(self, stream: str, after: int | None = None) -> Place:
        """Where a client begins that wants results of later frames than `after`; None: from now on, so that whoever was
        answered, and pushes a frame then, gets its result. Raises UnknownStream."""
        made_at = (await self._view.status(stream, 0.0))["started_at"]
        if after is None:
            newest = None
            with contextlib.suppress(asyncio.TimeoutError):     # an owner that hangs has nobody wait for an answer
                newest = await asyncio.wait_for(self._ask(stream, Want(made_at, NOW)), PLACE_S)
            after = -1 if newest is None else newest.last_index
        return Place(stream, made_at, after)

    async def lines(self, place: Place) -> AsyncIterator[list[bytes]]:
        """Results from there on, those that are still known first. An empty list now and then: the client may be gone.
        Ends with the stream."""
        cursor = place.after
        while (past := await self._ask(place.stream, Want(place.made_at, cursor))) is not None and past.lines:
            cursor = past.lines[-1][0]
            yield [line for _, line in past.lines]
        async with self._watching(place, cursor) as feed:
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

    async def pictures(self, place: Place, fps: float) -> AsyncIterator[Picture | None]:
        """The newest picture, at most `fps` a second; None now and then. Ends with the stream."""
        last = -1
        async with self._watching(place, -1, picture=True) as feed:
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
            made_at = (await self._view.status(stream, 0.0))["started_at"]
            given = await self._ask(stream, Want(made_at, NOW, picture_after=-1))
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
    async def _watching(self, place: Place, after: int, picture: bool = False) -> AsyncIterator[Feed]:
        """The stream's feed, while somebody looks at it."""
        key = place.stream, place.made_at
        feed = self._feeds.get(key)
        if feed is None or feed.ended:
            feed = self._feeds[key] = Feed(after)
        feed.watchers += 1
        feed.picture_watchers += picture
        if self._manager is None or self._manager.done():
            self._manager = apart(self._manage())
        try:
            yield feed
        finally:
            feed.watchers -= 1
            feed.picture_watchers -= picture
            if not feed.watchers and self._feeds.get(key) is feed:
                del self._feeds[key]

    async def _manage(self) -> None:
        """Keep a question under way to each owner that has a stream somebody looks at."""
        while self._feeds and not self.closing:
            try:
                overview = await self._view.overview()
            except DOWN:
                await asyncio.sleep(FRESH_S)
                continue
            states = _states(overview)
            for key, feed in list(self._feeds.items()):
                owner = overview.owners.get(key[0])
                if key not in states:
                    if overview.settled:
                        self._end(feed)
                elif owner is not None and (owner not in self._asking or self._asking[owner].done()):
                    self._asking[owner] = apart(self._follow(owner))
                elif owner is None and states[key] in ("ended", "failed"):
                    self._end(feed)
            await asyncio.sleep(0.1)
        for feed in self._feeds.values():       # nobody waits for what will not come
            feed.ring()

    async def _follow(self, owner: str) -> None:
        """Ask an owner for its streams until there is none left that somebody looks at."""
        handle = self._owners.options(session_id=owner)
        try:
            while not self.closing:
                overview = await self._view.overview()
                mine = [key for key in _states(overview) if overview.owners.get(key[0]) == owner]
                feeds = {name: (made_at, feed) for name, made_at in mine
                         if (feed := self._feeds.get((name, made_at))) is not None and not feed.ended}  # fmt: skip
                if not feeds:
                    return
                given = await handle.poll.remote({name: _want(*each) for name, each in feeds.items()}, WAIT_S)
                for name, (_, feed) in feeds.items():
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


def _want(made_at: float, feed: Feed) -> Want:
    picture_after = None
    if feed.picture_watchers:
        picture_after = -1 if feed.picture is None else feed.picture.index
    return Want(made_at, feed.last_index, picture_after)


def _states(overview: Overview) -> dict[tuple[str, float], str]:
    """Of every stream, by id and when it was made."""
    return {(status["id"], status["started_at"]): status["state"] for status in overview.statuses}


async def _rung(bell: asyncio.Event, timeout_s: float) -> bool:
    try:
        await asyncio.wait_for(bell.wait(), timeout_s)
    except asyncio.TimeoutError:
        return False
    return True
