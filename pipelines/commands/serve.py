"""`maskstream serve`: cameras through the graph, and a page to look at them."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from operators.errors import ConfigError
from pipelines.commands.shared import add_set

if TYPE_CHECKING:
    from rich.console import Console

    from pipelines.serving.config import ServeConfig

HELP = "serve cameras: a page, an API, masks with ids while they happen"
DESCRIPTION = """Serve live streams on this machine, or on a Ray cluster. The page shows every camera with its masks and
ids; programs get the same as JSON. A camera is an address:
  rtsp://                 IP cameras (user:password@ is never shown again); rtspu:// by UDP, rtspt:// by TCP
  http://, https://       Motion JPEG, HLS, MPEG-TS, files
  tcp://, udp://          MPEG-TS
  v4l2:///dev/video0      a webcam of this machine
  file:///path.mp4        a video, played at its own rate

A camera that is away is tried again for ever; one whose process dies goes on in another, and its objects keep their
ids.
Cameras can be added and removed while it runs: on the page, or by POST /streams and DELETE /streams/NAME. What may be
added so is what --allow says: cameras of the command line may be anywhere.

Addresses: / (page), /streams, /streams/NAME/tracks (JSON lines, SSE, WebSocket), /streams/NAME/overlay.mjpeg,
/streams/NAME/frames (WebSocket, to push), /videos, /events, /metrics (Prometheus), /healthz, /readyz

Ctrl-C or SIGTERM: what is under way comes out, then it ends. A second one ends it at once.
"""

EPILOG = """
examples:
  maskstream serve --camera door=rtsp://10.0.0.5/live --camera yard=http://10.0.0.6/video.mjpg
  maskstream serve --camera test=file:///home/me/street.mp4           a video as if it were a camera
  maskstream serve                                                    add cameras on the page
  maskstream serve --allow 10.0.7.0/24                                ... those of this network too
  maskstream serve --host 0.0.0.0 --tokens /etc/maskstream/tokens     for others too, who need a token
  maskstream serve --replicas 2 --max-streams 8                       two processes, eight streams each
  maskstream serve --set associate.min_match=0.5 --set network.detect.min_score=0.1
"""

APP = "maskstream"
LOOK_S = 1.0
DRAIN_S = 12.0
"""Longest time for what is under way to come out."""


def arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--camera", action="append", default=[], metavar="NAME=URL", help="a camera; may be given again")
    add("--host", default="127.0.0.1", help="where to listen; for others than this machine with --tokens (default: "
        "%(default)s)")  # fmt: skip
    add("--port", type=int, default=8000, help="(default: %(default)s)")
    add("--network", default="configs/networks/tiny.yaml", metavar="FILE", help="which network (default: %(default)s)")
    add("--graph", metavar="FILE", help="which graph (default: the network's)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto takes a GPU where there is one")
    add("--replicas", type=int, default=1, metavar="N", help="N times the processes of the graph (default: 1)")
    add("--max-streams", type=int, default=16, metavar="N", help="streams of one replica (default: %(default)s)")
    add("--policy", choices=("drop_oldest", "drop_newest", "block"), default="drop_oldest",
        help="what gives way when frames come too fast (default: %(default)s)")  # fmt: skip
    add("--queue", type=int, default=8, metavar="N", help="frames of a stream that may wait (default: %(default)s)")
    add("--tokens", type=Path, metavar="FILE", help="who may ask: a line 'NAME TOKEN' each (a file only you can read)")
    add("--allow", action="append", default=[], metavar="HOST", help="hosts and networks that added cameras may be of, "
        "beside public ones; may be given again")  # fmt: skip
    add("--address", help="the Ray cluster to use; without it one is started here, and ended with the command")
    add_set(parser, "associate.min_match=0.5 (see the examples)")


def execute(args: argparse.Namespace) -> int:
    from rich.console import Console

    console, signals = Console(stderr=True), Signals()
    config = settings(args)
    _check_port(args.host, args.port)
    with signals, _served(config, args, console):
        where = "localhost" if args.host in ("127.0.0.1", "::1", "0.0.0.0", "::") else args.host
        console.print(f"Maskstream is at [bold]http://{where}:{args.port}/[/bold]   (Ctrl-C ends it)", highlight=False)
        _watch(signals, console)
        console.print("Ending: what is under way comes out.")
        _drain(signals)
    return 128 + signals.number if signals.number == signal.SIGTERM else 130


def settings(args: argparse.Namespace) -> ServeConfig:
    """Raises ConfigError for cameras that are none, and whatever else cannot be used."""
    from operators.live.addresses import NotAllowed
    from pipelines.serving.config import read_config

    cameras: dict[str, str] = {}
    for given in args.camera:
        name, equals, url = given.partition("=")
        if not equals or not name or not url:
            raise ConfigError(f"--camera {given}: expected NAME=URL, such as door=rtsp://10.0.0.5/live.")
        if name in cameras:
            raise ConfigError(f"--camera {given}: there are two cameras called '{name}'. Give each a name of its own.")
        cameras[name] = url
    values: dict[str, Any] = {
        "network": args.network, "graph": args.graph, "device": args.device, "set": args.overrides, "cameras": cameras,
        "max_streams": args.max_streams, "replicas": args.replicas, "policy": args.policy, "queue": args.queue,
        "host": args.host,
    }  # fmt: skip
    if args.allow:
        values["allow"] = {"hosts": ["public", *args.allow]}
    if args.tokens:
        values["guard"] = {"token_file": str(args.tokens.absolute())}
    config = read_config(values, "the command line")
    try:
        config.specs()
    except NotAllowed as error:
        raise ConfigError(f"--camera: {error}") from error
    return config


@contextmanager
def _served(config: ServeConfig, args: argparse.Namespace, console: Console) -> Iterator[None]:
    """The application, running and ready, until the context ends."""
    import logging

    from pipelines.serving.guard import check_bound_to
    from pipelines.serving.tokens import read_tokens

    check_bound_to(args.host, read_tokens(config.guard.token_file, config.guard.token_env))
    with console.status("importing Ray ...") as status:
        from ray import serve

        from operators.errors import GraphError
        from pipelines.cluster import cluster
        from pipelines.serving import slow
        from pipelines.serving.actors import forget_registry, shut_down_serve
        from pipelines.serving.app import build

        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        # Serve replaces a proxy that is not there after 15 s: on a busy machine it would be replaced for ever.
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", "60")
        os.environ.setdefault(slow.SETTING, slow.MIDDLEWARES)
        status.update("starting Ray ...")
        with cluster(args.address):
            status.update("loading the network, and building the stages of each replica ...")
            try:
                serve.start(proxy_location="HeadOnly", http_options={"host": args.host, "port": args.port})
                serve.run(build(config), name=APP, route_prefix="/")
            except RuntimeError as error:
                raise GraphError(f"Ray Serve could not start the application: {error}") from error
            status.stop()
            try:
                yield
            finally:
                shut_down_serve()
                forget_registry(APP)


def _check_port(host: str, port: int) -> None:
    """Serve would try for minutes."""
    if not 1 <= port <= 65535:
        raise ConfigError(f"--port {port}: expected 1 to 65535.")
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise ConfigError(f"--host {host} --port {port}: cannot listen there: {error.strerror or error}. Take another "
                          f"port, or end what listens there.") from error  # fmt: skip


def _watch(signals: Signals, console: Console) -> None:
    """Say what becomes of each stream, until a signal comes."""
    told: dict[str, str] = {}
    while not signals.came.wait(LOOK_S):
        for status in _overview().statuses:
            line = _line(status)
            if told.get(status["id"]) != line:
                told[status["id"]] = line
                console.print(f"{status['id']}: {line}", highlight=False, markup=False,
                              soft_wrap=True)


def _drain(signals: Signals) -> None:
    """Let come out what is under way. A second signal ends the waiting."""
    import time

    _call("close")
    until = time.monotonic() + DRAIN_S
    while time.monotonic() < until and _overview().under_way and signals.number_of < 2:
        time.sleep(0.1)


def _line(status: dict[str, Any]) -> str:
    reason = f" ({status['reason']})" if status["reason"] else ""
    size = f", {status['width']} x {status['height']}" if status["width"] and status["state"] == "live" else ""
    return f"{status['state']}{size}{reason}"


def _overview() -> Any:
    return _call("overview")


def _call(method: str) -> Any:
    import ray

    from pipelines.serving.actors import registry

    return ray.get(registry(APP).call.remote(method), timeout=30)


class Signals:
    """Ctrl-C and SIGTERM as an event. The second one counts too; a third is Python's own affair."""

    def __init__(self) -> None:
        self.number: int = signal.SIGINT
        self.number_of = 0
        self.came = threading.Event()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Signals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: object) -> None:
        self.number, self.number_of = number, self.number_of + 1
        self.came.set()
        if self.number_of > 2:
            raise KeyboardInterrupt
