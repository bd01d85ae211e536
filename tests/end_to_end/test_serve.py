"""Cameras through Ray Serve: one application, and clients as anybody has them: requests and websockets."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import pytest
import requests
import yaml
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from operators.formats import Categories
from operators.jsonl import track_line
from operators.records import FrameTracks
from operators.shapes import PRESETS, write_videos
from operators.sources import find_sources
from pipelines.config import load_yaml, resolve
from pipelines.graph import RunContext, load_graph
from pipelines.local import run_local
from pipelines.networks import read_checkpoint, read_network
from pipelines.stages import STAGES
from tests.end_to_end.page_journey import client_journey, page_journey
from tests.end_to_end.ports import free_port

pytestmark = pytest.mark.slow

NUM_FRAMES = 24
PATIENCE_S = 100
"""Of whatever takes a second on a quiet machine."""
ADDED = ("captured_at", "latency_ms", "dropped")


@dataclass
class Server:
    """Where it listens, and what is known of the file that it is given."""

    at: str
    video: Path
    offline: list[dict[str, Any]]
    """The lines of tracks.jsonl, without the stream's name."""
    args: dict[str, Any]
    """What the application was built of."""

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"http://{self.at}{path}", timeout=PATIENCE_S, **options)

    def add(self, name: str, **fields: Any) -> requests.Response:
        return requests.post(f"http://{self.at}/streams", json={"id": name, **fields}, timeout=PATIENCE_S)

    def remove(self, name: str) -> requests.Response:
        return requests.delete(f"http://{self.at}/streams/{name}", timeout=PATIENCE_S)

    def status(self, name: str) -> dict[str, Any]:
        return self.get(f"/streams/{name}").json()

    def socket(self, path: str) -> Any:
        return connect(f"ws://{self.at}{path}", open_timeout=PATIENCE_S, max_size=None)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    shapes = replace(PRESETS["medium"], width=192, height=128, num_frames=NUM_FRAMES)
    (path,) = write_videos(tmp_path_factory.mktemp("video"), shapes, seed=31, num_clips=1)
    return path


@pytest.fixture(scope="module")
def offline(video: Path) -> list[dict[str, Any]]:
    spec = read_network("configs/networks/tiny.yaml")
    graph = load_graph("configs/graphs/offline.yaml", STAGES)
    graph = replace(graph, placement=(replace(graph.placement[0], num_cpus=1.0),))      # threads change the last bit
    categories = Categories.numbered(read_checkpoint(spec).classes)
    results = run_local(graph, find_sources([str(video)])[0], RunContext(spec, "cpu"))
    return [plain(track_line(result, categories)) for result in results if isinstance(result, FrameTracks)]


@pytest.fixture(scope="module")
def server(
    cluster: None, video: Path, offline: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    from ray import serve

    from pipelines.serving.actors import forget_registry
    from pipelines.serving.app import build

    whole = [*load_yaml(resolve("configs/graphs/live.yaml"))["stages"]]
    path = graph_file(tmp_path_factory.mktemp("graph") / "live.yaml", {"stages": whole, "num_cpus": 1, "replicas": 2})
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    args = {"graph": str(path), "device": "cpu", "max_streams": 3, "num_ingress": 2,
            "allow": {"schemes": ["file"], "folders": [str(video.parent)]}}  # fmt: skip
    serve.run(build(args), name="maskstream", route_prefix="/")
    yield Server(f"127.0.0.1:{port}", video, offline, args)
    serve.shutdown()
    forget_registry("maskstream")
    forget_registry("split")


@pytest.fixture(scope="module")
def split(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The same stages in two processes, as a second application beside the first."""
    from ray import serve

    from pipelines.serving.app import build

    path = graph_file(
        tmp_path_factory.mktemp("graph") / "split.yaml",
        {"stages": ["receive", "preprocess"], "num_cpus": 0.5},
        {"stages": ["backbone", "heads", "associate", "encode_masks"], "num_cpus": 1},
    )
    args = {"graph": str(path), "device": "cpu", "allow": {"schemes": ["file"], "folders": [str(server.video.parent)]}}
    serve.run(build(args), name="split", route_prefix="/split")
    return replace(server, at=f"{server.at}/split")


def graph_file(path: Path, *placement: dict[str, Any]) -> Path:
    """The live graph, placed so, with frequent snapshots."""
    graph = load_yaml(resolve("configs/graphs/live.yaml"))
    graph |= {"placement": list(placement), "recovery": {"snapshot_every": 4}}
    path.write_text(yaml.safe_dump(graph, sort_keys=False))
    return path


def plain(line: str | bytes) -> dict[str, Any]:
    """A record without its stream's name, and without what live streams add."""
    return {key: value for key, value in json.loads(line).items() if key not in ("stream", *ADDED)}


def eventually(what: Callable[[], Any]) -> Any:
    """The first value that is true; fails after PATIENCE_S."""
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        found = what()
        if found:
            return found
        threading.Event().wait(0.05)
    raise AssertionError(f"did not come true within {PATIENCE_S} s")


def adds_up(status: dict[str, Any]) -> bool:
    frames = status["frames"]
    return frames["in"] == frames["out"] + sum(frames["dropped"].values()) + frames["in_flight"]


def over(status: dict[str, Any]) -> dict[str, Any] | None:
    """The Status of a stream that has ended, and of which nothing is on its way any more."""
    return status if status["state"] == "ended" and not status["frames"]["in_flight"] else None


def test_a_file_gives_what_it_gives_offline(server: Server) -> None:
    """As NDJSON, as SSE and by WebSocket: equal ids, masks, boxes, scores and times, in all three and offline."""
    assert server.add("file", url=server.video.as_uri(), policy="block").status_code == 201
    with server.get("/streams/file/tracks?after=-1", stream=True) as answer:
        assert answer.headers["content-type"] == "application/x-ndjson"
        lines = list(answer.iter_lines())
    assert [plain(line) for line in lines] == server.offline
    assert all(json.loads(line)["stream"] == "file" and json.loads(line)["latency_ms"] >= 0 for line in lines)
    with server.get("/streams/file/tracks?after=-1", headers={"Accept": "text/event-stream"}) as answer:
        events = [event for event in answer.text.split("\n\n") if event.startswith("data: ")]
    assert [plain(event.removeprefix("data: ")) for event in events] == server.offline
    with server.socket(f"/streams/file/tracks?after={NUM_FRAMES - 6}") as client:
        assert [plain(text) for text in client] == server.offline[NUM_FRAMES - 5 :]
    status = eventually(lambda: over(server.status("file")))
    assert status["frames"] == {"in": NUM_FRAMES, "out": NUM_FRAMES, "in_flight": 0, "dropped": {}}
    assert server.remove("file").status_code == 200


def test_refusals(server: Server) -> None:
    """Every refusal is one sentence, and changes nothing."""
    refused = [
        (server.add("x", url="rtsp://192.0.2.1/live"), 403),
        (server.add("x", url="file:///etc/passwd"), 403),
        (server.add("x", url="nonsense"), 403),
        (server.add("../x"), 400),
        (server.add("x", policy="perhaps"), 400),
        (server.add("x", queue=0), 400),
        (server.add("x", speed=3), 400),
        (server.get("/streams/x"), 404),
        (server.get("/streams/x/tracks"), 404),
        (server.get("/streams/x/overlay.mjpeg"), 404),
        (server.get("/streams/x/overlay.jpg"), 404),
        (server.remove("x"), 404),
        (requests.put(f"http://{server.at}/streams", timeout=PATIENCE_S), 405),
        (requests.post(f"http://{server.at}/videos", data=b"no video" * 100, timeout=PATIENCE_S), 422),
        (requests.post(f"http://{server.at}/videos", timeout=PATIENCE_S), 400),
    ]
    for answer, code in refused:
        assert answer.status_code == code, answer.text
        assert answer.json().keys() == {"error"} and answer.json()["error"].endswith("."), answer.text
    assert server.get("/streams").json() == {"streams": []}
    with server.socket("/streams/x/tracks") as client, pytest.raises(ConnectionClosed) as closed:
        assert "no stream 'x'" in json.loads(client.recv())["error"]
        client.recv()
    assert closed.value.rcvd.code == 4404


def test_every_process_of_the_server_knows_what_was_done_to_another(server: Server) -> None:
    for _ in range(25):                                     # each request goes to either of the two ingresses
        assert server.add("new").status_code == 201
        assert [status["id"] for status in server.get("/streams").json()["streams"]] == ["new"]
        assert server.get("/streams/new").status_code == 200
        assert 'stream="new"' in server.get("/metrics").text
        assert server.remove("new").status_code == 200
        assert server.get("/streams").json() == {"streams": []}
        assert server.get("/streams/new").status_code == 404
        assert server.get("/streams/new/tracks").status_code == 404
        assert "no stream 'new'" in server.get("/streams/new/overlay.jpg").json()["error"]
        assert 'stream="new"' not in server.get("/metrics").text


def test_a_stream_has_the_id_of_one_that_was_just_removed(server: Server) -> None:
    """The clients of that one are told that it is over, and no frame of either goes to the other, though the process
    that worked on it does not know yet."""
    messages = frames_of(server)
    assert server.add("again", policy="block").status_code == 201
    before = server.socket("/streams/again/tracks"), server.socket("/streams/again/frames")
    with before[0] as old_results, before[1] as old_frames:
        for message in messages[:6]:
            old_frames.send(message)
        assert [json.loads(old_results.recv(timeout=PATIENCE_S))["frame"] for _ in range(6)] == list(range(6))
        assert server.remove("again").status_code == 200
        assert server.add("again", policy="block").status_code == 201
        with server.socket("/streams/again/tracks") as results, server.socket("/streams/again/frames") as frames:
            for message in messages[:4]:
                frames.send(message)
            records = [json.loads(results.recv(timeout=PATIENCE_S)) for _ in range(4)]
            frames.send("end")
            assert json.loads(frames.recv(timeout=PATIENCE_S)) == {"end": True}
        assert "no stream 'again'" in json.loads(old_frames.recv(timeout=PATIENCE_S))["error"]
        for client, code in ((old_frames, 4404), (old_results, 1000)):
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE_S)
            assert closed.value.rcvd.code == code
    assert [record["frame"] for record in records] == list(range(4))
    assert [record["instances"] for record in records] == [record["instances"] for record in server.offline[:4]]
    status = eventually(lambda: over(server.status("again")))
    assert status["frames"] == {"in": 4, "out": 4, "in_flight": 0, "dropped": {}}
    assert server.remove("again").status_code == 200


def test_the_plan_is_full(server: Server) -> None:
    for number in range(6):
        assert server.add(f"pushed-{number}").status_code == 201
    answer = server.add("one-more")
    assert answer.status_code == 503 and "6 of 6 streams" in answer.json()["error"] and answer.headers["retry-after"]
    assert server.add("pushed-0").status_code == 409
    assert server.get("/readyz").status_code in (200, 503)
    for number in range(6):
        assert server.remove(f"pushed-{number}").status_code == 200


def test_pushed_frames(server: Server) -> None:
    """PNG frames, so the pixels are those of the file: their tracks are the file's."""
    assert server.add("pushed", policy="block").status_code == 201
    with av.open(str(server.video)) as file:
        images = [frame.to_image() for frame in file.decode(video=0)]
    with server.socket("/streams/pushed/tracks?after=-1") as results, server.socket("/streams/pushed/frames") as frames:
        refused = {b"short": "has no frame", b"\0" * 9: "none of JPEG", b"\xff" * 20: "capture time", "?": '"end"'}
        for wrong, said in refused.items():
            frames.send(wrong)
            assert said in json.loads(frames.recv(timeout=PATIENCE_S))["error"]
        started = time.time() - 10      # a capture time in the future is not believed
        for number, image in enumerate(images[:8]):
            frames.send(struct.pack("<d", started + number / 12) + encoded(image))
        records = [json.loads(results.recv(timeout=PATIENCE_S)) for _ in range(8)]
        frames.send("end")
        assert json.loads(frames.recv(timeout=PATIENCE_S)) == {"end": True}
        with pytest.raises(ConnectionClosed):
            results.recv(timeout=PATIENCE_S)
    assert [record["instances"] for record in records] == [record["instances"] for record in server.offline[:8]]
    assert [round(record["captured_at"] - started, 3) for record in records] == [round(n / 12, 3) for n in range(8)]
    status = eventually(lambda: over(server.status("pushed")))
    assert adds_up(status) and status["kind"] == "push" and status["frames"]["out"] == 8
    server.remove("pushed")


def frames_of(server: Server) -> list[bytes]:
    """The frames of the file as messages to push, captured when they come."""
    with av.open(str(server.video)) as file:
        return [struct.pack("<d", 0.0) + encoded(frame.to_image()) for frame in file.decode(video=0)]


def encoded(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def test_videos(server: Server) -> None:
    data = server.video.read_bytes()
    answer = requests.post(f"http://{server.at}/videos", data=data, timeout=PATIENCE_S)
    assert answer.status_code == 200, answer.text
    assert [plain(json.dumps(record)) for record in answer.json()["frames"]] == server.offline
    overlay = requests.post(f"http://{server.at}/videos?result=overlay", data=data, timeout=PATIENCE_S)
    assert overlay.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(overlay.content)) as file:
        assert sum(1 for _ in file.decode(video=0)) == NUM_FRAMES


def test_pictures_events_metrics_and_the_page(server: Server) -> None:
    server.add("looked-at", url=server.video.as_uri(), policy="block")
    still = eventually(lambda: (found := server.get("/streams/looked-at/overlay.jpg")).ok and found)
    assert Image.open(io.BytesIO(still.content)).size == (192, 128)
    with server.get("/streams/looked-at/overlay.mjpeg", stream=True) as answer:
        assert answer.headers["content-type"].startswith("multipart/x-mixed-replace; boundary=")
        part = next(answer.iter_content(1 << 20))
        head, _, body = part.partition(b"\r\n\r\n")
        assert head.startswith(b"--maskstream-frame") and body.startswith(b"\xff\xd8")
    with server.get("/events", stream=True) as answer:
        event = next(line for line in answer.iter_lines() if line)
    status = json.loads(event.removeprefix(b"data: "))["streams"][-1]
    assert status["id"] == "looked-at" and adds_up(status)
    text = server.get("/metrics").text
    assert 'maskstream_stream_frames_in_total{stream="looked-at"}' in text
    assert server.get("/healthz").json()["status"] == "ok"
    page = server.get("/")
    assert page.headers["content-type"].startswith("text/html") and "script" in page.text
    server.remove("looked-at")


def test_the_client(server: Server) -> None:
    client_journey(f"http://{server.at}", server.video, server.offline)


def test_the_page_in_a_browser(server: Server) -> None:
    page_journey(f"http://{server.at}/", server.video)


def test_an_owner_is_killed(server: Server) -> None:
    """Its stream goes on in the other replica."""
    survives(server, "survivor", lambda: actor_pid(owner_of("survivor")))


def test_the_registry_and_the_ingress_are_killed(server: Server) -> None:
    """Streams stay where they are; clients connect again, and are given what they missed."""
    server.add("steady", policy="block")
    messages = frames_of(server)
    with server.socket("/streams/steady/frames") as frames:
        for message in messages[:4]:
            frames.send(message)
        owner = owner_of("steady")
        eventually(lambda: server.status("steady")["frames"]["out"] == 4)
        os.kill(actor_pid("registry of maskstream"), signal.SIGKILL)
        for message in messages[4:8]:
            frames.send(message)
        eventually(lambda: statuses(server).get("steady", {}).get("frames", {}).get("out") == 8)
        for pid in actor_pids("#ingress#"):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ConnectionClosed):
            frames.recv(timeout=PATIENCE_S)
    eventually(lambda: statuses(server))
    with server.socket("/streams/steady/tracks?after=-1") as results:
        records = [json.loads(results.recv(timeout=PATIENCE_S)) for _ in range(8)]
    assert [record["instances"] for record in records] == [record["instances"] for record in server.offline[:8]]
    assert owner_of("steady") == owner and server.status("steady")["frames"]["dropped"] == {}
    server.remove("steady")


def test_a_caller_that_gives_up_keeps_nobody_waiting(server: Server) -> None:
    """While the registry is started, as when the server is: Ray's own way has later calls wait for 30 s."""
    from pipelines.serving.actors import call_registry, forget_registry

    async def asked() -> bool:
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(call_registry("another", "overview"), 0.01)
        began = time.monotonic()
        overview = await call_registry("another", "overview")
        return overview.statuses == () and time.monotonic() - began < 29

    assert asyncio.run(asked())
    forget_registry("another")


def statuses(server: Server) -> dict[str, dict[str, Any]]:
    """Of all streams; none where the server cannot say."""
    try:
        answer = server.get("/streams")
    except requests.RequestException:
        return {}
    return {status["id"]: status for status in answer.json()["streams"]} if answer.ok else {}


def test_groups_in_two_processes(split: Server) -> None:
    """As in one process; and the later group's death costs frames, no ids."""
    assert split.add("file", url=split.video.as_uri(), policy="block").status_code == 201
    with split.get("/streams/file/tracks?after=-1", stream=True) as answer:
        assert [plain(line) for line in answer.iter_lines()] == split.offline
    survives(split, "halved", lambda: actor_pid("split#split-1#"))


def survives(server: Server, name: str, victim: Callable[[], int]) -> None:
    """A process dies: the sockets stay, indices rise, what was lost is counted, and objects keep their ids."""
    server.add(name, policy="block", queue=4)
    messages = frames_of(server)
    with server.socket(f"/streams/{name}/tracks") as results, server.socket(f"/streams/{name}/frames") as frames:
        for message in messages[:12]:
            frames.send(message)
        before = [json.loads(results.recv(timeout=PATIENCE_S)) for _ in range(12)]
        eventually(lambda: server.status(name)["frames"]["out"] == 12)      # the registry has heard of them
        os.kill(victim(), signal.SIGKILL)
        for message in messages[12:]:       # of twelve, eight are lost at most: two batches of four
            frames.send(message)
        after = [json.loads(results.recv(timeout=PATIENCE_S)) for _ in range(4)]
    indices = [record["frame"] for record in (*before, *after)]
    assert indices == sorted(set(indices))
    staying = set.intersection(*map(well_seen, server.offline[11:]))
    assert len(staying) >= 5 and staying <= well_seen(after[0]), "objects that were there keep their ids"
    status = eventually(lambda: (found := server.status(name))["frames"]["in_flight"] == 0 and found)
    assert adds_up(status) and status["frames"]["dropped"].get("restarted", 0) >= 1
    assert server.get("/healthz").status_code == 200
    server.remove(name)


def well_seen(record: dict[str, Any]) -> set[int]:
    """Ids of the objects of a record; what the network half believes in comes and goes."""
    return {instance["track_id"] for instance in record["instances"] if instance["score"] >= 0.7}


def owner_of(stream: str) -> str:
    import ray

    from pipelines.serving.actors import registry

    return ray.get(registry("maskstream").call.remote("overview"), timeout=PATIENCE_S).owners[stream]


def actor_pid(name: str) -> int:
    """The process of the only living actor with this in its name."""
    (pid,) = actor_pids(name)
    return pid


def actor_pids(name: str) -> list[int]:
    from ray._private import state

    alive = [actor for actor in state.actors().values() if actor["State"] == "ALIVE"]
    return [actor["Pid"] for actor in alive if name in actor["Name"]]


def test_a_new_version_takes_over(server: Server) -> None:
    """All replicas are replaced, one after the other, by those of other settings: the stream keeps its ids, a camera
    that the settings name begins, and HTTP is answered all the while."""
    from ray import serve

    from pipelines.serving.app import build

    server.add("moved", policy="block", queue=4)
    messages = frames_of(server)
    with server.socket("/streams/moved/tracks") as results, server.socket("/streams/moved/frames") as frames:
        for message in messages[:8]:
            frames.send(message)
        before = [json.loads(results.recv(timeout=PATIENCE_S)) for _ in range(8)]
    old = owner_of("moved")
    changed = {**server.args, "min_score": 0.4, "cameras": {"declared": server.video.as_uri()}}
    with asked_all_the_while(server) as answers:
        serve.run(build(changed), name="maskstream", route_prefix="/")
        eventually(lambda: owner_of_now("moved") not in (None, old))
        eventually(lambda: statuses(server).get("declared", {}).get("frames", {}).get("out"))
    assert set(answers) == {200}
    with server.socket("/streams/moved/tracks?after=-1") as results, server.socket("/streams/moved/frames") as frames:
        for message in messages[8:12]:
            frames.send(message)
        records = [json.loads(results.recv(timeout=PATIENCE_S)) for _ in range(12)]
    assert records[:8] == before, "also to whoever had not asked before"
    assert [record["frame"] for record in records] == list(range(12)), "it was handed over: nothing is lost"
    assert [record["instances"] for record in records] == [record["instances"] for record in server.offline[:12]]
    assert server.remove("moved").status_code == server.remove("declared").status_code == 200


@contextmanager
def asked_all_the_while(server: Server) -> Iterator[list[int]]:
    """What it answers, again and again."""
    answers: list[int] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.1):
            try:
                answers.append(server.get("/streams").status_code)
            except requests.RequestException:
                answers.append(0)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield answers
    finally:
        stop.set()
        asking.join()


def owner_of_now(stream: str) -> str | None:
    try:
        return owner_of(stream)
    except KeyError:
        return None


def test_the_server_ends(server: Server) -> None:
    """Sockets are closed with the code for a restart, /readyz says so, and nothing new is taken."""
    import ray

    from pipelines.serving.actors import registry

    server.add("last")
    with server.socket("/streams/last/tracks") as results, server.socket("/streams/last/frames") as frames:
        ray.get(registry("maskstream").call.remote("close"), timeout=PATIENCE_S)
        for client in (results, frames):
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(timeout=PATIENCE_S)
            assert closed.value.rcvd.code == 1012
    for answer in [server.get("/readyz") for _ in range(8)]:        # of either ingress
        assert answer.status_code == 503 and "shut down" in answer.json()["error"]
    assert server.add("later").status_code == 503
