"""A replica of the first group: it owns streams, from their sources to the subscribers of their results.

In:     the registry's orders; frames and videos that clients push, and questions for results, from the ingress
Out:    results, to whoever asks; its word to the registry, twice a second; batches for the later groups
State:  the Engine, a task for each stream whose batches go on to later groups
Limits: `poll` gives MAX_GIVEN bytes of a stream at a time, and waits MAX_WAIT_S at most, so that a replica that is to
        shut down is asked for nothing soon after

Ends as Serve asks it to: it releases its streams, tells the registry, and another replica goes on with them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from dataclasses import replace
from functools import partial
from typing import Any

import ray.exceptions
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from operators.errors import MaskstreamError
from operators.formats import Categories
from operators.live.states import SourceState
from pipelines.networks import read_checkpoint
from pipelines.serving.actors import call_registry
from pipelines.serving.channel import Channel
from pipelines.serving.config import ServeConfig
from pipelines.serving.deployed import Deployed, source_of
from pipelines.serving.engine import Batch, Engine
from pipelines.serving.owned import Owned
from pipelines.serving.registry import Orders
from pipelines.serving.streams import Given, Opening, PlanFull, Want
from pipelines.serving.videos import VideoAnswer, VideoJob

log = logging.getLogger(__name__)

SYNC_S = 0.5
MAX_WAIT_S = 2.0
MAX_GIVEN = 1 << 20
LINGER_S = 2.0
"""A stream that was released is still told of for so long: its last results may not have been asked for."""
RELEASE_S = 15.0
"""Longest time for the streams of a replica that shuts down to hand over."""
HUNG_S = 60.0
"""A batch that takes longer is taken for hung: the replica is replaced."""


class Owner:
    """One process: `build(config)` of pipelines/serving/app.py makes a deployment of it."""

    async def __init__(self, config: ServeConfig, deployed: Deployed, *later: DeploymentHandle) -> None:
        """Raises: what building the stages raises."""
        self._config, self._later = config, later
        self._loop = asyncio.get_running_loop()
        self._bell = asyncio.Event()
        self._chains: dict[str, tuple[asyncio.Queue[Batch], asyncio.Task]] = {}
        self._categories = Categories.numbered(read_checkpoint(deployed.context.network).classes)
        self._leaving = False
        self._registry = 0.0
        self._private: set[str] = set()
        """Videos under way: nobody else is told of them."""
        self._engine = await asyncio.to_thread(
            Engine, deployed.graph, deployed.context, self._categories, partial(source_of, config),
            min_score=config.min_score, max_width=config.overlay_width, onward=self._onward if later else None,
            changed=self._changed,
        )  # fmt: skip
        context = serve.get_replica_context()
        self._app = context.app_name
        self._name, self._actor = context.replica_id.unique_id, context.replica_id.to_full_id_str()
        await self._sync()
        self._syncing = self._loop.create_task(self._keep_syncing())

    def check_health(self) -> None:
        """Raises where the stages cannot go on; Serve then replaces the replica."""
        worker = self._engine.worker
        if worker.error is not None:
            raise RuntimeError(f"the stages cannot go on: {worker.error!r}")
        since = worker.busy_since
        if since is not None and time.monotonic() - since > HUNG_S:
            raise RuntimeError(f"a batch has been under way for {time.monotonic() - since:.0f} s")
        if self._syncing.done() and not self._leaving:
            raise RuntimeError("the registry is not told any more")

    async def __del__(self) -> None:
        """Hand all streams over, then stop."""
        self._leaving = True
        self._syncing.cancel()
        for stream in self._engine.streams():
            await asyncio.to_thread(self._engine.release, stream.id)
        until = time.monotonic() + RELEASE_S
        while any(stream.phase != "over" for stream in self._engine.streams()) and time.monotonic() < until:
            await self._news(0.2)
        with contextlib.suppress(Exception):        # the registry will find out by itself
            await self._sync()
        await asyncio.to_thread(self._engine.stop)

    # ------------------------------------------------------------------------------------------------ for the ingress

    async def poll(self, wants: dict[str, Want], wait_s: float) -> dict[str, Given]:
        """What there is of each stream; waits `wait_s` for the first of it. A stream that is not here is left out."""
        until = time.monotonic() + min(wait_s, MAX_WAIT_S)
        while True:
            bell = self._bell
            found = {name: stream for name in wants if (stream := self._of(name, wants[name].made_at)) is not None}
            ready = {name for name, stream in found.items() if self._has(stream, wants[name])}
            left = until - time.monotonic()
            if ready or left <= 0 or not found:
                return {name: await self._given(stream, wants[name]) for name, stream in found.items()}
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(bell.wait(), left)

    async def push(self, stream: str, made_at: float, kind: str, data: bytes, timestamp: float | None) -> str | None:
        """A picture ("image") or a piece of H.264 ("h264") of a pushed stream. None where it is not here; "" when it
        was taken, else why it was not."""
        owned = self._of(stream, made_at)
        if owned is None or owned.elsewhere or owned.phase == "over":
            return None
        put = owned.source.image if kind == "image" else owned.source.chunk
        try:
            await asyncio.to_thread(put, data, timestamp)
        except MaskstreamError as error:
            return None if owned.elsewhere else str(error)      # handed over since just now, it seemed to have ended
        return ""

    async def end_push(self, stream: str, made_at: float) -> bool:
        """The client gave its last frame. False where the stream is not here."""
        owned = self._of(stream, made_at)
        if owned is None or owned.elsewhere:
            return False
        await asyncio.to_thread(owned.source.end)
        return True

    async def video(self, data: bytes, result: str) -> VideoAnswer | MaskstreamError:
        """A whole video through the stages, `result` "json" or "overlay"; or why there is none: errors of our own that
        are raised out of a replica come wrapped."""
        if len(self._private) >= self._config.max_videos:
            return PlanFull(f"{len(self._private)} videos are worked on already; try again in a few seconds.")
        try:
            job = VideoJob(data, result, self._categories, self._config)
        except MaskstreamError as error:
            return error
        self._private.add(job.stream)
        try:
            return await job.run(self._engine)
        except MaskstreamError as error:
            return error
        finally:
            self._private.discard(job.stream)

    def _of(self, stream: str, made_at: float) -> Owned | None:
        """The stream that was made then. One that was removed stays here until the registry says so, half a second at
        most, and the next of its name is opened after it."""
        owned = self._engine.get(stream)
        return owned if owned is not None and owned.spec.created_at == made_at else None

    def _has(self, stream: Owned, want: Want) -> bool:
        channel: Channel = stream.channel
        return (
            channel.last_index > want.after
            or (stream.phase == "over" and not stream.released)
            or (want.picture_after is not None and channel.has_picture(want.picture_after))
        )

    async def _given(self, stream: Owned, want: Want) -> Given:
        ended = stream.phase == "over" and not stream.released
        lines, size = [], 0
        for index, line in stream.channel.lines(want.after):
            size += len(line)
            if lines and size > MAX_GIVEN:
                ended = False
                break
            lines.append((index, line))
        picture = None
        if want.picture_after is not None and stream.channel.has_picture(want.picture_after):
            picture = await asyncio.to_thread(stream.channel.picture, want.picture_after)
        return Given(lines, picture, stream.channel.last_index, ended)

    # ------------------------------------------------------------------------------------------------ for the registry

    async def _keep_syncing(self) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            try:
                await self._sync()
            except ray.exceptions.RayError as error:        # the next one may find a new registry
                log.warning("the registry could not be told: %s", error)

    async def _sync(self) -> None:
        told = []
        for stream in self._engine.streams():
            if stream.id in self._private:
                continue
            if stream.phase != "over" or stream.released or stream.verdict:
                told.append(stream.told())
        most = self._config.max_streams
        try:
            orders = await call_registry(self._app, "sync", self._name, self._actor, most, told, self._leaving)
        except ray.exceptions.RayError:
            self._tell_states_again()
            raise
        if orders.registry != self._registry:
            self._registry = orders.registry
            self._tell_states_again()
        for stream in self._engine.streams():
            if stream.phase == "over" and stream.released and time.monotonic() - stream.over_at > LINGER_S:
                self._forget(stream.id)
        await asyncio.to_thread(self._obey, orders)

    def _obey(self, orders: Orders) -> None:
        for stream in orders.drop:              # first: of this name there may be another to open
            self._engine.remove(stream)
            owned = self._engine.get(stream)
            if owned is not None and owned.phase == "over":
                self._forget(stream)
        for opening in orders.openings:         # where the one before is not over yet, with the orders after these
            try:
                self._engine.open(opening)
            except MaskstreamError as error:
                self._refused(opening, error)
        for stream in orders.release:
            self._engine.release(stream)

    def _tell_states_again(self) -> None:
        """The registry may not have the snapshots that it was told of."""
        for stream in self._engine.streams():
            stream.untold_states = stream.states or None

    def _refused(self, opening: Opening, error: MaskstreamError) -> None:
        """A stream whose source cannot even be made is one that failed at once."""
        with self._engine.news:
            self._engine.open(opening, lambda spec, queue: NoSource()).finish("failed", str(error))

    def _forget(self, stream: str) -> None:
        self._engine.forget(stream)
        queue_and_task = self._chains.pop(stream, None)
        if queue_and_task is not None:
            self._loop.call_soon_threadsafe(queue_and_task[1].cancel)

    # ------------------------------------------------------------------------------------------- for the later groups

    def _onward(self, batch: Batch) -> None:
        self._loop.call_soon_threadsafe(self._pass_on, batch)

    def _pass_on(self, batch: Batch) -> None:
        if batch.stream not in self._chains:
            queue: asyncio.Queue[Batch] = asyncio.Queue()       # bounded: `in_flight` batches of a stream
            self._chains[batch.stream] = queue, self._loop.create_task(self._chain(batch.stream, queue))
        self._chains[batch.stream][0].put_nowait(batch)

    async def _chain(self, stream: str, queue: asyncio.Queue[Batch]) -> None:
        """The batches of a stream, one after the other: order is kept whatever becomes of a call."""
        while True:
            batch = await queue.get()
            try:
                answer: Any = batch
                for handle in self._later:          # what one gives goes straight to the next
                    answer = handle.options(session_id=stream).process.remote(answer)
                arrived = await answer
            except (ray.exceptions.RayError, RayServeException) as error:
                log.warning("stream '%s': a batch is lost in a later group: %s", stream, error)
                later = tuple(self._engine.names[1:])
                arrived = replace(batch, records=[], lost=later, states={})
            self._engine.arrived(arrived)

    # ------------------------------------------------------------------------------------------------------------ news

    def _changed(self) -> None:
        self._loop.call_soon_threadsafe(self._ring)

    def _ring(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()

    async def _news(self, timeout_s: float) -> None:
        """Until something came out of the graph, or so long."""
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._bell.wait(), timeout_s)


class NoSource:
    """Of a stream whose address was refused."""

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def state(self) -> SourceState:
        return SourceState("ended")
