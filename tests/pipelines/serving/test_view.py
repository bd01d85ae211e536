"""How old the registry's word may be, with answers that are on their way for as long as the test likes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from pipelines.serving import view
from pipelines.serving.registry import Registry
from pipelines.serving.streams import StreamSpec, UnknownStream


@dataclass
class Slow:
    """A registry whose overviews are on their way until `arrive` is set."""

    registry: Registry
    asked: int = 0
    arrive: asyncio.Event = field(default_factory=asyncio.Event)

    async def call(self, app: str, method: str, *arguments: Any) -> Any:
        given = getattr(self.registry, method)(*arguments)
        if method == "overview":
            self.asked += 1
            await self.arrive.wait()
        return given


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    """Of a registry that knows all streams: "x", made at 1.0."""
    now = [0.0]
    registry = Registry(clock=lambda: now[0])
    now[0] = 100.0
    registry.sync("a", "actor of a", 4, [])
    registry.register(StreamSpec(id="x", created_at=1.0))
    found = Slow(registry)
    monkeypatch.setattr(view, "call_registry", found.call)
    return found


async def asked(slow: Slow, count: int) -> None:
    """Until so many questions reached the registry."""
    while slow.asked < count:
        await asyncio.sleep(0)


def test_what_this_process_changed_is_not_undone_by_an_answer_on_its_way(slow: Slow) -> None:
    async def changed() -> None:
        known = view.View("app")
        before = asyncio.ensure_future(known.overview())
        await asked(slow, 1)                                    # it has the stream, and is on its way
        await known.call("remove", "x")
        after = asyncio.ensure_future(known.overview())
        slow.arrive.set()
        assert [status["id"] for status in (await before).statuses] == ["x"]
        assert (await after).statuses == () and slow.asked == 2

    asyncio.run(changed())


def test_an_answer_of_this_moment_is_of_no_earlier_question(slow: Slow) -> None:
    """Another process removes the stream while the question of one client is under way; two ask afterwards."""

    async def changed() -> None:
        known = view.View("app")
        before = asyncio.ensure_future(known.overview(0.0))
        await asked(slow, 1)
        slow.registry.remove("x")
        after = [asyncio.ensure_future(known.overview(0.0)) for _ in range(2)]
        await asyncio.sleep(0)
        slow.arrive.set()
        await before
        assert [(await each).statuses for each in after] == [(), ()] and slow.asked == 2, "they share a question"

    asyncio.run(changed())


@pytest.mark.parametrize("made_at, there", [(None, True), (1.0, True), (2.0, False)], ids=["any", "it", "another"])
def test_the_stream_of_a_name_that_is_meant(slow: Slow, made_at: float | None, there: bool) -> None:
    async def status() -> dict[str, Any]:
        slow.arrive.set()
        return await view.View("app").status("x", made_at=made_at)

    if there:
        assert asyncio.run(status())["started_at"] == 1.0
        return
    with pytest.raises(UnknownStream, match="no stream 'x'"):
        asyncio.run(status())
