"""Clients that read at their own pace, and what waits for them meanwhile. No server: the client's side is a gate."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from pipelines.serving.slow import MIDDLEWARES, SETTING, SlowReaders, middlewares

MAX_WAITING = 1000


class Client:
    """Reads while its gate is open; its connection may be cut."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.gate = asyncio.Event()
        self.transport = self
        self.aborted = False

    async def send(self, message: dict[str, Any]) -> None:
        await self.gate.wait()
        self.got.append(message)

    def abort(self) -> None:
        self.aborted = True
        self.gate.set()

    @property
    def body(self) -> list[bytes]:
        return [message["body"] for message in self.got if message.get("body")]


def answered(
    chunks: list[bytes], headers: dict[bytes, bytes], opened_after: int | None, kind: str = "http"
) -> Client:
    """What a client got of an answer that it begins to read after so many chunks; None: never."""

    async def run() -> Client:
        client = Client()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if opened_after == 0:
                client.gate.set()
            await send({"type": "http.response.start", "status": 200, "headers": list(headers.items())})
            for number, chunk in enumerate(chunks):
                if number and number == opened_after:
                    client.gate.set()
                    while len(client.got) < 2:                      # the beginning, and what waited
                        await asyncio.sleep(0)
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await asyncio.sleep(0)
            if opened_after is not None:
                client.gate.set()
            await send({"type": "http.response.body", "body": b"", "more_body": False})

        await asyncio.wait_for(SlowReaders(app, MAX_WAITING)({"type": kind}, None, client.send), 10)
        return client

    return asyncio.run(run())


PARTS = [b"picture %d" % number for number in range(6)]
MJPEG = {b"content-type": b"multipart/x-mixed-replace; boundary=x"}


@pytest.mark.parametrize("chunks, headers, opened_after, got", [
    pytest.param([], {}, 0, [], id="nothing"),
    pytest.param([b"a", b"b", b"c"], {}, 0, [b"a", b"b", b"c"], id="keeps up"),
    pytest.param([b"a", b"b", b"c"], {}, 2, [b"a", b"b", b"c"], id="records wait"),
    pytest.param([b"x" * 5000], {b"content-length": b"5000"}, 0, [b"x" * 5000], id="a known length passes"),
    pytest.param([b"x" * 5000], {}, 0, [b"x" * 5000], id="one that is larger than all that may wait"),
    pytest.param(PARTS, MJPEG, 6, [PARTS[5]], id="the newest picture alone"),
    pytest.param(PARTS, MJPEG, 3, [PARTS[2], *PARTS[3:]], id="again in time after a while"),
])  # fmt: skip
def test_what_a_client_gets(chunks: list[bytes], headers: dict[bytes, bytes], opened_after: int, got: list[bytes]
                            ) -> None:  # fmt: skip
    client = answered(chunks, headers, opened_after)
    assert client.body == got and not client.aborted
    assert client.got[0]["status"] == 200 and client.got[-1]["more_body"] is False


def test_a_client_that_never_reads_is_cut_off() -> None:
    client = answered([b"x" * 100] * 50, {b"content-type": b"application/x-ndjson"}, None)
    assert client.aborted and len(client.body) <= 1     # what was under way when it was cut


def test_a_client_that_never_reads_pictures_holds_one() -> None:
    """However many there were: none is cut off for it."""
    client = answered([b"x" * 400] * 50, MJPEG, 50)
    assert not client.aborted and len(client.body) == 1


def test_serve_finds_it_by_its_name() -> None:
    from ray.serve._private.constants import RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH as found
    from ray.serve._private.http_util import call_function_from_import_path, validate_http_proxy_callback_return

    (own,) = validate_http_proxy_callback_return(call_function_from_import_path(MIDDLEWARES))
    assert own.cls is middlewares()[0].cls is SlowReaders and found in (None, MIDDLEWARES)
    assert SETTING == "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"
