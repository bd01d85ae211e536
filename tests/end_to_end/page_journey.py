"""The page and the client against the real app: called by test_serve.py, which has it running."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines.client import Client
from tests.end_to_end.browser import Page, chromium
from tests.pipelines.recorded_server import until

ADDED = ("captured_at", "latency_ms", "dropped")
PATIENCE_S = 60
"""Of whatever takes a second on a quiet machine."""


def plain(record: dict[str, Any]) -> dict[str, Any]:
    """A record as it stands offline, without its stream's name."""
    return {key: value for key, value in record.items() if key not in ("stream", *ADDED)}


def client_journey(address: str, video: Path, offline: list[dict[str, Any]]) -> None:
    """A file as a camera, pushed, and sent whole gives each time the records of an offline run."""
    with Client(address, timeout_s=PATIENCE_S) as client:
        client.add("followed", video.as_uri(), policy="block")
        assert [plain(record) for record in client.tracks("followed", after=-1)] == offline
        until(lambda: client.status("followed")["frames"]["out"] == len(offline), PATIENCE_S)
        assert client.picture("followed").startswith(b"\xff\xd8")
        client.remove("followed")
        assert [plain(record) for record in client.video(video)["frames"]] == offline
        client.add("sent", policy="block")
        assert client.push("sent", [video.read_bytes()]).errors     # a video is no picture, and says so
        client.remove("sent")


def page_journey(address: str, video: Path) -> None:
    """Somebody adds a camera on the page, a program pushes its frames, it is looked at, and removed."""
    with chromium() as browser, Client(address, timeout_s=PATIENCE_S) as client:
        page = browser.page(address)
        page.until("!document.getElementById('empty').hidden", PATIENCE_S)
        page.click("#add-first")
        page.fill("[name=id]", "../phone")
        page.click("[value=push]")
        page.click("#add-dialog [type=submit]")
        page.until("document.querySelector('#add-dialog .error').textContent.includes('cannot be used')", PATIENCE_S)
        page.fill("[name=id]", "phone")
        page.press("Enter")
        page.until("document.querySelector('.tile h2')?.textContent === 'phone'", PATIENCE_S)
        stop = threading.Event()
        pushing = threading.Thread(target=client.push, args=("phone", frames(video, stop)), kwargs={"fps": 8})
        pushing.start()
        try:
            _look(page)
        finally:
            stop.set()
            pushing.join(PATIENCE_S)
        page.until("document.querySelector('.badge').dataset.state === 'ended'", PATIENCE_S)
        page.click(".tile .remove")
        page.click("#remove-dialog .danger")
        page.until("!document.getElementById('empty').hidden", PATIENCE_S)
        assert page.errors == [] and client.streams() == []
        page.close()


def frames(video: Path, stop: threading.Event) -> Any:
    """The video's images over and over, until `stop`."""
    with av.open(str(video)) as file:
        images = [np.asarray(frame.to_image()) for frame in file.decode(video=0)]
    return itertools.takewhile(lambda _: not stop.is_set(), itertools.cycle(images))


def _look(page: Page) -> None:
    page.until("document.querySelector('.badge').textContent === 'live'", PATIENCE_S)
    page.until("document.querySelector('.tile canvas').dataset.pictures > 2", PATIENCE_S)
    page.until("parseFloat(document.querySelector('[data-is=fps]').textContent) > 0", PATIENCE_S)
    assert page.value("document.querySelector('.tile canvas').width") == 192
    page.click(".tile .open")
    page.until("document.querySelectorAll('#timeline-rows tr').length > 1", PATIENCE_S)
    page.until("document.querySelector('#camera-picture canvas').dataset.pictures > 2", PATIENCE_S)
    rows = page.value("""[...document.querySelectorAll('#camera-figures > div')].map(
        (row) => [...row.children].map((cell) => cell.textContent))""")
    figures = dict(rows)
    assert figures["Size"] == "192 × 128" and figures["Latency p95"] != "–"
    page.press("Escape")
    page.until("!document.getElementById('grid').hidden", PATIENCE_S)
