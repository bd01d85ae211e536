"""A real Chromium without a window, driven over its DevTools protocol: what a person does, and what they see."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-port=0",
)  # fmt: skip
PATIENCE_S = 60.0
"""Of whatever takes a second on a quiet machine."""
KEYS = {"Enter": ("\r", 13), "Escape": ("", 27), "Tab": ("", 9), " ": (" ", 32)}


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test, with the reason, where there is none."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium on this machine; on Debian: apt-get install chromium")
    with tempfile.TemporaryDirectory(prefix="maskstream-chromium-", ignore_cleanup_errors=True) as folder:
        command = [program, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        reader = threading.Thread(target=process.stderr.read, daemon=True)
        try:
            address = _address(process)
            reader.start()      # what it says, and nobody reads, would make it wait one day
            # nobody reads while a test waits for something else: no answer to a ping in time is no fault
            with connect(address, max_size=None, ping_interval=None) as socket:
                yield Browser(socket)
        finally:
            process.kill()
            process.wait()
            if reader.is_alive():
                reader.join()
            process.stderr.close()


def _address(process: subprocess.Popen) -> str:
    """Where Chromium says that it listens."""
    said = []
    for line in process.stderr or ():
        said.append(line)
        if line.startswith("DevTools listening on "):
            return line.removeprefix("DevTools listening on ").strip()
    pytest.skip(f"Chromium does not start here: {''.join(said)[-500:]}")


class Browser:
    """One socket for all pages; commands are answered in order, events that come in between are kept for their page."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.pages: dict[str, Page] = {}

    def page(
        self, address: str, width: int = 1280, height: int = 800, *, dark: bool = False, phone: bool = False
    ) -> Page:
        """A window of its own, without cookies, at `address`."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        page.resize(width, height, phone=phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=address)
        return page

    def call(
        self, method: str, session: str | None = None, *, timeout_s: float = PATIENCE_S, **params: Any
    ) -> dict[str, Any]:
        """The result of a command. Raises AssertionError with what the browser says; TimeoutError where it says nothing
        for `timeout_s` and half a minute more."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv(timeout=timeout_s + 30))
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            if answer.get("sessionId") in self.pages:
                self.pages[answer["sessionId"]].happened(answer["method"], answer["params"])


class Page:
    """One window."""

    def __init__(self, browser: Browser, session: str, target: str) -> None:
        self._browser, self._session, self._target = browser, session, target
        self.errors: list[str] = []
        """What scripts threw, and what the browser refused to load or run. Not answers of the server like 404."""
        self.asked: list[str] = []
        """Addresses that the page asked for."""

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **params)

    def happened(self, method: str, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            details = params["exceptionDetails"]
            self.errors.append(details.get("exception", {}).get("description") or details["text"])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            if params["entry"]["source"] != "network":
                self.errors.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])

    def close(self) -> None:
        self._browser.pages.pop(self._session)
        self._browser.call("Target.closeTarget", targetId=self._target)

    def resize(self, width: int, height: int, *, phone: bool = False) -> None:
        screen = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.call("Emulation.setDeviceMetricsOverride", **screen)

    def value(self, script: str, timeout_s: float = PATIENCE_S) -> Any:
        """What an expression gives, as JSON; of a promise what it comes to."""
        how = {"awaitPromise": True, "returnByValue": True, "timeout_s": timeout_s}
        result = self.call("Runtime.evaluate", expression=script, **how)
        assert "exceptionDetails" not in result, result["exceptionDetails"].get("exception", {}).get("description")
        return result["result"].get("value")

    def until(self, condition: str, timeout_s: float = PATIENCE_S) -> Any:
        """Waits until an expression is true, and gives its value; fails with what the page shows."""
        look = f"""new Promise((done) => {{
            const end = performance.now() + {timeout_s * 1000};
            const look = () => {{
                let value = false;
                try {{ value = ({condition}); }} catch {{ }}
                if (value || performance.now() > end) done(value); else setTimeout(look, 20);
            }};
            look();
        }})"""
        value = self.value(look, timeout_s)
        assert value, f"never true: {condition}\n{self.errors}\n{self.text()}"
        return value

    def text(self, selector: str = "body") -> str:
        """As it is seen: without what is hidden; "" for what is not there."""
        return self.value(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''")

    def click(self, selector: str) -> None:
        """A real click, on the middle of what a selector names: it misses what lies under something else."""
        place = self.until(f"""(() => {{
            const node = document.querySelector({json.dumps(selector)});
            node.scrollIntoView({{ block: "nearest" }});
            const {{ x, y, width, height }} = node.getBoundingClientRect();
            return width > 0 && [x + width / 2, y + height / 2];
        }})()""")
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def press(self, key: str) -> None:
        text, code = KEYS[key]
        names = {"key": key, "code": key if text != " " else "Space", "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", **names, **({"text": text} if text else {}))
        self.call("Input.dispatchKeyEvent", type="keyUp", **names)

    def fill(self, selector: str, text: str) -> None:
        """Type into a field, in place of what it holds."""
        self.until(f"document.querySelector({json.dumps(selector)}).select() === undefined")
        self.call("Input.insertText", text=text)

    def accessible(self) -> list[tuple[str, str]]:
        """(role, name) of all that a screen reader finds, in its order."""
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node.get("ignored") and "role" in node
        ]

    def screenshot(self, path: Path, *, quality: int | None = None) -> Path:
        """PNG, or JPEG of a quality 0..100."""
        kind = {"format": "png"} if quality is None else {"format": "jpeg", "quality": quality}
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **kind)["data"]))
        return path
