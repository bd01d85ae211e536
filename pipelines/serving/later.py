"""A replica of a group behind the first one: takes batches of many streams, and gives each on.

In:     Batches, one stream's at a time and in order; a caller sends the next one when the one before has arrived
Out:    the same Batch with this group's records; `lost` names the group where it does not know the stream any more
State:  the group's stages; which streams they know
Limits: what waits goes into one batch, up to `batching.frames`; a stream that is not heard of for IDLE_S is forgotten
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from pipelines.replica import Order, Replica
from pipelines.serving.deployed import Deployed
from pipelines.serving.engine import IDLE_S as LOOK_S
from pipelines.serving.engine import Batch
from pipelines.serving.owner import HUNG_S
from pipelines.serving.worker import Done, Task, Worker

IDLE_S = 600.0


class Later:
    """One process: `build(config)` of pipelines/serving/app.py makes a deployment of it."""

    async def __init__(self, deployed: Deployed, number: int) -> None:
        graph = deployed.graph
        group = graph.placement[number]
        self._name, self._keyed, self._frames = "+".join(group.stages), graph.keyed(group), graph.batching.frames
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[tuple[Batch, asyncio.Future[Batch]]] = deque()
        self._news = threading.Condition()
        self._known: dict[str, float] = {}
        """Streams whose state is here -> monotonic time of their last batch."""
        replica = Replica(graph.group(group), deployed.context, group.num_cpus)
        await asyncio.to_thread(replica.build)
        self._worker = Worker(replica, self._compose, lambda report: None)
        self._worker.start()

    def check_health(self) -> None:
        """Raises where the stages cannot go on; Serve then replaces the replica."""
        if self._worker.error is not None:
            raise RuntimeError(f"the stages cannot go on: {self._worker.error!r}")
        since = self._worker.busy_since
        if since is not None and time.monotonic() - since > HUNG_S:
            raise RuntimeError(f"a batch has been under way for {time.monotonic() - since:.0f} s")

    async def process(self, batch: Batch) -> Batch:
        """One stream's batch through this group."""
        future: asyncio.Future[Batch] = self._loop.create_future()
        with self._news:
            self._inbox.append((batch, future))
            self._news.notify_all()
        return await future

    def __del__(self) -> None:
        self._worker.stop()

    def _compose(self) -> Sequence[Task]:
        """What waits, one batch a stream; streams that nobody asks for are closed."""
        with self._news:
            self._news.wait_for(lambda: self._inbox, LOOK_S)
            tasks, passed, taken, left = [], [], set(), self._frames
            while self._inbox and left > 0:
                batch, future = self._inbox.popleft()
                if batch.stream in taken:
                    passed.append((batch, future))
                    continue
                taken.add(batch.stream)
                left -= max(len(batch.records), 1)
                tasks += self._task(batch, future)
            self._inbox.extendleft(reversed(passed))
            return tasks or self._forgotten()

    def _task(self, batch: Batch, future: asyncio.Future[Batch]) -> list[Task]:
        begins = self._name in batch.begin
        if self._keyed and not begins and batch.stream not in self._known:
            self._answer(future, replace(batch, records=[], lost=(*batch.lost, self._name)))
            return []
        if self._keyed:
            self._known[batch.stream] = time.monotonic()
        if batch.closing:
            self._known.pop(batch.stream, None)
        state = batch.begin.get(self._name)
        order = Order(batch.stream, first=begins, state=state, snapshot=batch.snapshot, closing=batch.closing)
        return [Task(order, batch.records, lambda done: self._answer(future, self._passed(batch, done)))]

    def _passed(self, batch: Batch, done: Done) -> Batch:
        states = batch.states if done.state is None else {**batch.states, self._name: done.state}
        return replace(batch, records=done.records, states=states, failure=batch.failure or done.failure)

    def _answer(self, future: asyncio.Future[Batch], batch: Batch) -> None:
        self._loop.call_soon_threadsafe(lambda: future.done() or future.set_result(batch))

    def _forgotten(self) -> list[Task]:
        now = time.monotonic()
        old = [stream for stream, heard in self._known.items() if now - heard > IDLE_S]
        for stream in old:
            del self._known[stream]
        return [Task(Order(stream, closing=True)) for stream in old]
