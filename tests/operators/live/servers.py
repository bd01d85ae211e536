"""Cameras for tests, on real sockets: what they send is encoded once, and sent at its own rate; a proxy that does to a
connection what networks do; and a camera under test that is watched."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import random
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Literal

import av
import pytest
from PIL import Image

from operators.live.addresses import AllowList
from operators.live.camera import Camera
from operators.live.queue import LiveFrame, LiveQueue, Policy
from operators.live.states import CameraConfig, SourceState
from tests.operators.small_videos import numbered

RATE = 20
WAIT_S = 30.0
"""A test that waits this long has failed; on a calm machine none waits for more than three seconds."""
CALM = CameraConfig(connect_s=WAIT_S, silence_s=WAIT_S, first_frame_s=WAIT_S, retry_first_s=0.05, retry_max_s=0.3,
                    steady_s=1)
"""Of tests in which nothing falls silent: a server of ours that a busy machine lets wait does not count as dead."""
QUICK = replace(CALM, connect_s=1, silence_s=1.2, first_frame_s=4)
"""Of tests that wait for a silence to be noticed; times of the defaults are longer by a factor of seven or more."""
HERE = AllowList(schemes=("rtsp", "http", "tcp", "udp"), hosts=("127.0.0.0/8",))


class _Written(io.RawIOBase):
    """Takes what a muxer writes, and gives it piece by piece."""

    def __init__(self) -> None:
        self.data = b""

    def writable(self) -> bool:
        return True

    def write(self, data) -> int:
        self.data += bytes(data)
        return len(data)

    def taken(self) -> bytes:
        data, self.data = self.data, b""
        return data


@functools.cache
def pieces(
    kind: str = "mpegts", codec: str = "libx264", size: tuple[int, int] = (96, 64), count: int = 64, rate: int = RATE,
    start_s: float = 0.0,
) -> tuple[bytes, ...]:
    """Numbered frames in a container, a piece of bytes for each frame; a key frame every 5 frames. Numbers begin anew
    after 64 frames, so that 64 frames can be sent again and again: only their times tell."""
    sink = _Written()
    options = {"mpegts": {"flush_packets": "1"},
               "mp4": {"movflags": "frag_every_frame+empty_moov+default_base_moof"}}.get(kind, {})
    found = []
    with av.open(sink, "w", format=kind, options=options) as out:
        tune = {"preset": "ultrafast", "tune": "zerolatency", "crf": "12"} if codec == "libx264" else {}
        stream = out.add_stream(codec, rate=rate, options={**tune, "g": "5", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(index % 64, *size), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = index + round(start_s * rate), Fraction(1, rate)
            out.mux(stream.encode(frame))
            found.append(sink.taken())
        out.mux(stream.encode(None))
    found.append(sink.taken())
    return tuple(piece for piece in found if piece)


@functools.cache
def jpegs(count: int = 64, size: tuple[int, int] = (96, 64)) -> tuple[bytes, ...]:
    found = []
    for index in range(count):
        buffer = io.BytesIO()
        Image.fromarray(numbered(index % 64, *size)).save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return tuple(found)


def multipart(pictures: Sequence[bytes]) -> list[bytes]:
    head = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
    return [head % len(picture) + picture + b"\r\n" for picture in pictures]


def endless(parts: Sequence[bytes]) -> Iterator[bytes]:
    """The pieces again and again."""
    while True:
        yield from parts


def play(send: Callable[[bytes], object], parts: Iterator[bytes] | Sequence[bytes], over: threading.Event,
         rate: float = RATE) -> None:
    """Send a piece at a time at its rate, until `over` or until nobody takes them."""
    began = time.monotonic()
    with contextlib.suppress(OSError):
        for number, part in enumerate(parts):
            if over.wait(max(0.0, began + number / rate - time.monotonic())):
                return
            send(part)


class Served:
    """Threads and sockets of a server in a test; all end with the `with` block."""

    def __init__(self) -> None:
        self.over = threading.Event()
        self._threads: list[threading.Thread] = []
        self._sockets: list[socket.socket] = []

    def run(self, target: Callable[..., None], *args: object) -> None:
        thread = threading.Thread(target=target, args=args)
        self._threads.append(thread)
        thread.start()

    def keep(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(sock)
        return sock

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


class Tcp(Served):
    """Gives each connection what `script(number)` of it gives, at its rate, and then closes it, or holds it open with
    `stays`."""

    def __init__(
        self, script: Callable[[int], Iterator[bytes] | Sequence[bytes]], rate: float = RATE, stays: bool = False
    ) -> None:
        super().__init__()
        self.script, self.rate, self.stays = script, rate, stays
        self.connections = 0
        self._listener = self.keep(socket.create_server(("127.0.0.1", 0)))
        self.port = self._listener.getsockname()[1]
        self.run(self._accept)

    def _accept(self) -> None:
        while not self.over.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.keep(sock)
            self.run(self._serve, sock, self.connections)
            self.connections += 1

    def _serve(self, sock: socket.socket, number: int) -> None:
        with sock:      # one that is accepted while the server ends is known to nobody else
            play(sock.sendall, self.script(number), self.over, self.rate)
            if self.stays:
                self.over.wait()
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


Answer = Callable[[BaseHTTPRequestHandler, threading.Event], None]


class Web(Served):
    """An HTTP server, or one of HTTPS with a certificate and its key: `answers` says what stands under which path; what
    was asked for is in `asked`."""

    def __init__(self, answers: dict[str, Answer], certificate: tuple[str, str] | None = None) -> None:
        super().__init__()
        self.asked: list[str] = []
        web = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                web.asked.append(self.path)
                answer = answers.get(self.path.partition("?")[0])
                if answer is None:
                    self.send_error(404)
                else:
                    with contextlib.suppress(OSError):
                        answer(self, web.over)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: object) -> None:     # a camera that stops closes its connection
                pass

            def server_bind(self) -> None:                  # HTTPServer's asks the network for this machine's name
                TCPServer.server_bind(self)

        self._server = Server(("", 0), Handler)
        self._server.daemon_threads = False
        self.port = self._server.server_address[1]
        self._scheme = "http" if certificate is None else "https"
        if certificate is not None:         # before anything is served: meanwhile the socket would be none
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.run(self._server.serve_forever, 0.05)

    def url(self, path: str) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}{path}"

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._server.shutdown()
        self._server.server_close()
        super().__exit__()


def body(data: bytes, kind: str = "application/octet-stream", status: int = 200, **headers: str) -> Answer:
    """A whole answer."""

    def answer(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
        request.send_response(status)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **named}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    return answer


def live(parts: Callable[[], Iterator[bytes] | Sequence[bytes]], kind: str) -> Answer:
    """An answer without end, at its rate; after the last of `parts` nothing more comes."""

    def answer(request: BaseHTTPRequestHandler, over: threading.Event) -> None:
        request.send_response(200)
        request.send_header("Content-Type", kind)
        request.end_headers()
        play(request.wfile.write, parts(), over)
        over.wait()

    return answer


Mode = Literal["pass", "stall", "drip", "garble"]


class Proxy(Served):
    """Between a camera under test and its server: passes bytes on, or does to them what `mode` says; `cut` ends all
    connections, `refuse` new ones too until `accept`. The port stays the same."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.mode: Mode = "pass"
        self.connections = 0
        self._to, self._open = port, set()
        self._rng = random.Random(0)
        self._lock = threading.Lock()
        held = self.keep(socket.socket())   # the port stays ours while nobody listens there
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        self.port = held.getsockname()[1]
        self.accept()

    def cut(self) -> None:
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def refuse(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def accept(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        self.run(self._accept, self._listener)

    def __exit__(self, *_: object) -> None:
        self.over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        super().__exit__()

    def _accept(self, listener: socket.socket) -> None:
        while not self.over.is_set():
            try:
                near, _ = listener.accept()
            except OSError:
                return
            self.connections += 1
            self.run(self._pass, near)

    def _pass(self, near: socket.socket) -> None:
        with near, contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._to)) as far:
            with self._lock:
                self._open |= {near, far}
            try:
                while not self.over.is_set():
                    for sock in select.select([near, far], [], [], 0.05)[0]:
                        data = sock.recv(16 if self.mode == "drip" else 1 << 16)
                        if not data:
                            return
                        self._on(near if sock is far else far, data, back=sock is far)
            finally:
                with self._lock:
                    self._open -= {near, far}

    def _on(self, to: socket.socket, data: bytes, back: bool) -> None:
        while self.mode == "stall":
            if self.over.wait(0.02):
                return
        if self.mode == "drip":
            for byte in data:
                if self.over.wait(0.03):
                    return
                to.sendall(bytes([byte]))
        elif self.mode == "garble" and back:
            noisy = bytearray(data)
            for _ in range(max(1, len(noisy) // 20)):
                noisy[self._rng.randrange(len(noisy))] = self._rng.randrange(256)
            to.sendall(bytes(noisy))
        else:
            to.sendall(data)


class Watched:
    """A camera under test, with all that came out of it. Leaves no thread and no descriptor behind, or fails."""

    def __init__(self, url: str, config: CameraConfig = CALM, allow: AllowList = HERE, limit: int = 64,
                 policy: Policy = "drop_oldest") -> None:
        self.frames: list[LiveFrame] = []
        self.states: list[str] = []
        self.last: SourceState | None = None
        self.queue = LiveQueue(limit, policy)
        self.camera = Camera("cam", url, config, allow, self.queue)

    def __enter__(self) -> Watched:
        self.camera.start()
        return self

    def until(self, met: Callable[[], bool], within_s: float = WAIT_S) -> float:
        """Take frames until it is met; gives how long that took. Fails after `within_s`."""
        began = time.monotonic()
        while not met():
            assert time.monotonic() - began < within_s, f"{self.camera.state()}, {len(self.frames)} frames"
            self.queue.wait(0.02)
            self.frames += self.queue.take(self.queue.limit)
            state = self.camera.state().state
            if self.states[-1:] != [state]:
                self.states.append(state)
        return time.monotonic() - began

    def more(self, count: int, within_s: float = WAIT_S) -> float:
        """Take `count` more frames than there were."""
        wanted = len(self.frames) + count
        return self.until(lambda: len(self.frames) >= wanted, within_s)

    def is_in(self, state: str) -> Callable[[], bool]:
        """Waits for a state, and keeps it in `last`: by the next line it may be another."""

        def met() -> bool:
            self.last = self.camera.state()
            return self.last.state == state

        return met

    def __exit__(self, *_: object) -> None:
        began = time.monotonic()
        self.camera.stop()
        assert time.monotonic() - began < 4, "a camera ends when it is told to"
        assert self.camera.state().state in ("stopped", "ended")
        counts = self.queue.counts()
        assert counts.frames_in == counts.taken + sum(counts.dropped.values()) + counts.waiting
        assert counts.waiting == 0


def check_numbers(frames: Sequence[LiveFrame]) -> None:
    """Indices one after the other, times that rise."""
    indices = [live.frame.info.index for live in frames]
    times = [live.frame.info.time_s for live in frames]
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    assert all(after > before for before, after in zip(times, times[1:], strict=False)), times


@pytest.fixture
def no_leaks() -> Iterator[None]:
    """Threads and descriptors are as many after a test as before it."""
    threads, files = set(threading.enumerate()), _descriptors()
    yield
    left = [thread.name for thread in threading.enumerate() if thread not in threads and thread.is_alive()]
    assert left == []
    assert _descriptors() <= files, "descriptors were left open"


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
