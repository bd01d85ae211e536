"""What the hub begins for one client serves all: it carries nothing of that client's request."""

from __future__ import annotations

import asyncio
import contextvars

from ray.serve.context import _get_serve_request_context, _set_request_context

from pipelines.serving.hub import apart


def test_a_task_of_all_clients_is_no_part_of_one_request() -> None:
    """Serve would number its calls by that request, and lose one of two that wait at once."""
    own: contextvars.ContextVar[str] = contextvars.ContextVar("own", default="")

    async def seen() -> tuple[str, str, str]:
        context = _get_serve_request_context()
        return own.get(), context.request_id, context._internal_request_id

    async def request() -> list[tuple[str, str, str]]:
        own.set("a client's")
        _set_request_context(request_id="outer", _internal_request_id="inner")
        return [await asyncio.get_running_loop().create_task(seen()), await apart(seen())]

    inside, outside = asyncio.run(request())
    assert inside == ("a client's", "outer", "inner") and outside == ("", "", "")
