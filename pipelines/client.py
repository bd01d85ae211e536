"""A client of the server of live streams: a few lines to add a camera and to follow what it shows.

    from pipelines.client import Client

    client = Client("http://127.0.0.1:8000")
    client.add("door", "rtsp://10.0.0.7/stream1")
    for record in client.tracks("door"):
        print(record["frame"], [(one["track_id"], one["category"]) for one in record["instances"]])

In:     the server's address, and a token where it asks for one
Out:    statuses and records as plain values, as the server's JSON has them (docs/live.md)
State:  one HTTP connection; each iterator of tracks and each push has a WebSocket of its own
Limits: answers of at most MAX_ANSWER bytes, messages of MAX_MESSAGE; what waits for a slow reader is bounded by the
        network's buffers, and then by the server, which drops and counts

Needs neither torch nor Ray. One Client is for one thread; make one for each.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote, urlencode, urlsplit

import requests
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.sync.client import ClientConnection, connect

from operators.errors import ConfigError
from operators.replacing import replacing
from pipelines.client_sockets import (
    OVER,
    Backoff,
    Following,
    Pace,
    Picture,
    Pushed,
    ServerError,
    closed_with,
    end,
    is_final,
    message,
    note_errors,
    parsed,
    reason,
)

__all__ = ["Client", "DamagedVideo", "Picture", "Pushed", "ServerError"]

MAX_ANSWER = 1 << 30
MAX_MESSAGE = 16 << 20
TIMEOUT_S = 10.0


class DamagedVideo(UserWarning):
    """A video was drawn as far as it could be decoded: frames are missing, or came out damaged."""


class Client:
    """`with Client(address) as client:`, or `client.close()` at the end."""

    def __init__(self, address: str, token: str | None = None, *, timeout_s: float = TIMEOUT_S) -> None:
        """`timeout_s`: longest silence of the server within an answer. Raises ConfigError for what is no address."""
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f"{address!r} is no address of a server; expected one as in http://127.0.0.1:8000.")
        self._base = address.rstrip("/")
        self._token, self._timeout_s = token, timeout_s
        self._session = requests.Session()
        self._session.auth = self._authorize  # as a function: a ~/.netrc would replace a plain header

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    # -------------------------------------------------------------------------------------------------------- streams

    def streams(self) -> list[dict[str, Any]]:
        """The Status of every stream, in the order in which they were registered."""
        return self._json("GET", "/streams")["streams"]

    def status(self, id: str) -> dict[str, Any]:
        """The Status of one. Raises ServerError (404) where there is none."""
        return self._json("GET", _path(id))

    def add(
        self, id: str, url: str | None = None, *, policy: str | None = None, queue: int | None = None
    ) -> dict[str, Any]:
        """Register a camera that the server pulls, or, without `url`, a stream to push into; its Status.

        `policy` says what gives way when frames come too fast (drop_oldest, drop_newest, block), `queue` how many may
        wait; None: the server's settings. Raises ServerError: 403 for an address that is not allowed, 409 for an id
        that is taken, 503 where the plan is full.
        """
        asked = {"id": id, "url": url, "policy": policy, "queue": queue}
        return self._json("POST", "/streams", json={key: value for key, value in asked.items() if value is not None})

    def remove(self, id: str) -> None:
        """Its stream ends for all who follow it. Raises ServerError (404) where there is none."""
        self._body("DELETE", _path(id))

    def picture(self, id: str) -> bytes:
        """The newest frame with masks, ids and labels, as JPEG. Raises ServerError (404), also where no frame came."""
        return self._body("GET", _path(id, "/overlay.jpg"))

    def tracks(self, id: str, *, after: int | None = None, patience_s: float | None = None) -> Iterator[dict[str, Any]]:
        """The records of a stream, each as it comes, until the stream has ended or was removed.

        A record is a line of tracks.jsonl with "captured_at", "latency_ms" and "dropped"; that of a damaged frame has
        "error". `after`: first those of later frames that the server still knows. A connection that breaks is made
        again, and goes on after the last record. Raises ServerError for a stream that is not there, or when the server
        was away for `patience_s` (None: it is waited for).
        """
        following = Following(self.status(id)["started_at"], after, Backoff(patience_s))
        while True:
            try:
                with self._socket(_path(id, "/tracks"), after=following.after) as socket:
                    yield from following.records(socket)
                if socket.close_code == OVER:
                    return
                lost = ServerError(f"The connection to stream '{id}' was closed with code {socket.close_code}.")
            except ServerError as error:
                if is_final(error):
                    raise
                lost = error
            following.backoff.wait(lost)
            if not self._there_again(id, following):
                return

    def _there_again(self, id: str, following: Following) -> bool:
        """Whether the stream is still to be followed, after its connection was lost."""
        try:
            started = self.status(id)["started_at"]
        except ServerError as error:
            if error.status == 404:
                return False
            if is_final(error):
                raise
            return True  # the server is away: the next attempt says more
        if started != following.started:  # another stream of this name: its frames count from 0 again
            following.started, following.after = started, None
        return True

    # --------------------------------------------------------------------------------------------- frames of the client

    def push(
        self, id: str, frames: Iterable[Picture | tuple[float, Picture]], *, fps: float | None = None,
        format: Literal["image", "h264"] = "image", quality: int = 90, patience_s: float | None = 60.0,
    ) -> Pushed:  # fmt: skip
        """Send frames into a stream, which is registered if there is none, and end it.

        A frame may come with its capture time, `(unix seconds, frame)`; else it is that of sending. Arrays are sent as
        JPEG of `quality` 1..100; with `format` "h264" every item is a chunk of an Annex B stream. `fps` sends no faster
        than that, else as fast as the server takes them. A connection that breaks is made again, for `patience_s`; what
        was on its way is lost. No frames: the stream just ends. Raises ServerError; ConfigError for what is no frame.
        """
        self._register_push(id)
        pushed, backoff, pace = Pushed(), Backoff(patience_s), Pace(fps)
        messages = (message(item, quality) for item in frames)
        waiting = next(messages, None)
        while True:
            try:
                with self._socket(_path(id, "/frames"), format=format) as socket:
                    while waiting is not None:
                        pace.wait()
                        socket.send(waiting)
                        pushed.sent += 1
                        backoff.reset()
                        note_errors(socket, pushed)
                        waiting = next(messages, None)
                    end(socket, pushed)
                return pushed
            except ConnectionClosed as closed:
                lost = closed_with(id, closed.rcvd.code if closed.rcvd else None, pushed)
            except ServerError as error:
                lost = error
            if is_final(lost):
                raise lost
            backoff.wait(lost)

    def _register_push(self, id: str) -> None:
        try:
            self.add(id)
        except ServerError as error:
            if error.status != 409:  # taken: by us before, or the server says so when it is no stream to push into
                raise

    def video(
        self, path: Path | str, result: Literal["json", "overlay"] = "json", *, out: Path | str | None = None,
        timeout_s: float = 600.0,
    ) -> Any:  # fmt: skip
        """Send a short video file; what was seen in it, all at once.

        "json" gives {"frames": [records as in tracks.jsonl], "results": [YouTube-VIS entries], "error": why it is not
        whole, or None, "damaged": count, "dropped": {reason: count}}. "overlay" gives an MP4 with masks, ids and
        labels: its bytes, or with `out` the path of the file, which is there whole or not at all; it has no place for
        the error, which comes as a DamagedVideo warning. Raises ServerError for what the server cannot read or does
        not take, and where no frame could be decoded.
        """
        try:
            with open(path, "rb") as file:
                address = f"/videos?result={result}"
                body, headers = self._answer("POST", address, data=file, timeout_s=timeout_s)
        except OSError as error:
            raise ConfigError(f"{path}: cannot be read: {error.strerror or error}.") from error
        if result == "json":
            return parsed(body)
        if (error := headers.get("X-Video-Error")) is not None:
            warnings.warn(f"{path}: {error}", DamagedVideo, stacklevel=2)
        if out is None:
            return body
        with replacing(out) as part:
            part.write_bytes(body)
        return Path(out)

    # ------------------------------------------------------------------------------------------------------ underneath

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request

    def _json(self, method: str, path: str, **more: Any) -> Any:
        return parsed(self._body(method, path, **more))

    def _body(self, method: str, path: str, **more: Any) -> bytes:
        return self._answer(method, path, **more)[0]

    def _answer(
        self, method: str, path: str, *, timeout_s: float | None = None, **more: Any
    ) -> tuple[bytes, Mapping[str, str]]:
        """What is answered, and its headers. Raises ServerError for a status other than 2xx; a redirect would carry the
        token away."""
        timeout = (self._timeout_s, timeout_s or self._timeout_s)
        try:
            with self._session.request(
                method, self._base + path, timeout=timeout, stream=True, allow_redirects=False, **more
            ) as response:
                body = _bounded(response)
        except requests.RequestException as error:
            raise ServerError(f"{self._base} cannot be reached: {_cause(error)}") from error
        if not 200 <= response.status_code < 300:
            raise ServerError(reason(body, response.status_code), response.status_code)
        return body, response.headers

    def _socket(self, path: str, **query: Any) -> ClientConnection:
        """An open WebSocket. Raises ServerError."""
        fields = urlencode({key: value for key, value in query.items() if value is not None})
        address = "ws" + self._base.removeprefix("http") + path + (f"?{fields}" if fields else "")
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token}"}
        try:
            return connect(address, additional_headers=headers, open_timeout=self._timeout_s, max_size=MAX_MESSAGE)
        except InvalidStatus as error:
            code = error.response.status_code
            raise ServerError(reason(error.response.body or b"", code), code) from error
        except (OSError, WebSocketException) as error:
            raise ServerError(f"{self._base} cannot be reached: {error or type(error).__name__}") from error


def _path(id: str, what: str = "") -> str:
    return f"/streams/{quote(id, safe='')}{what}"


def _bounded(response: requests.Response) -> bytes:
    body = bytearray()
    for chunk in response.iter_content(1 << 16):
        body += chunk
        if len(body) > MAX_ANSWER:
            raise ServerError(f"The answer has more than {MAX_ANSWER} bytes.", response.status_code)
    return bytes(body)


def _cause(error: Exception) -> str:
    """The innermost reason, which says most."""
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__
    return str(error) or type(error).__name__
