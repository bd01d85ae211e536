"""Cameras through the whole app as they are in the world: a real RTSP server that dies and comes back, H.264 that a
client pushes, readers of the overlay, and more cameras than there is time for."""

from __future__ import annotations

import contextlib
import io
import json
import re
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import requests
from av.bitstream import BitStreamFilterContext
from PIL import Image

from operators.shapes import PRESETS, write_videos
from pipelines.client import Client, DamagedVideo, ServerError
from pipelines.config import load_yaml, resolve
from tests.end_to_end.ports import free_port
from tests.end_to_end.test_serve import PATIENCE_S, adds_up, eventually, graph_file, plain
from tests.operators.live.real_rtsp import RealRtsp
from tests.operators.live.servers import Tcp, endless, pieces

pytestmark = pytest.mark.slow

NUM_FRAMES = 24
NOTICED_S, BACK_S = 10.0, 5.0
"""What docs/live.md promises of a camera that dies and returns."""
QUEUE = 4
"""Of each camera of the overload."""


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An H.264 file with B-frames; beside it its frames as 00000.png and on."""
    folder = tmp_path_factory.mktemp("clip")
    shapes = replace(PRESETS["medium"], width=192, height=128, num_frames=NUM_FRAMES)
    (path,) = write_videos(folder, shapes, seed=31, num_clips=1)
    for number, image in enumerate(images(path)):
        image.save(folder / f"{number:05d}.png")
    return path


def images(path: Path) -> list[Image.Image]:
    with av.open(str(path)) as file:
        return [frame.to_image() for frame in file.decode(video=0)]


@pytest.fixture(scope="module")
def gate_port() -> int:
    """Of the camera in the settings; it is switched on after the server."""
    return free_port()


@pytest.fixture(scope="module")
def server(cluster: None, gate_port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from ray import serve

    from pipelines.serving.actors import forget_registry
    from pipelines.serving.app import build

    whole = [*load_yaml(resolve("configs/graphs/live.yaml"))["stages"]]
    graph = graph_file(tmp_path_factory.mktemp("graph") / "live.yaml", {"stages": whole, "num_cpus": 1})
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    cameras = {"gate": f"rtsp://127.0.0.1:{gate_port}/clip"}
    args = {"graph": str(graph), "device": "cpu", "queue": 512, "cameras": cameras,
            "allow": {"schemes": ["rtsp", "tcp"], "hosts": ["127.0.0.0/8"]}}  # fmt: skip
    serve.run(build(args), name="maskstream", route_prefix="/")
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    forget_registry("maskstream")


@pytest.fixture
def client(server: str) -> Iterator[Client]:
    with Client(server, timeout_s=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="module")
def gate(clip: Path, gate_port: int, server: str) -> Iterator[RealRtsp]:
    camera = RealRtsp(clip.parent, needs_h264=True)
    camera.port = gate_port
    with camera:
        yield camera


def followed(server: str, id: str) -> list[dict[str, Any]]:
    """The records of a stream from its first one, in a list that grows by itself."""
    found: list[dict[str, Any]] = []

    def follow() -> None:
        with Client(server, timeout_s=PATIENCE_S) as client, contextlib.suppress(ServerError):
            for record in client.tracks(id, after=-1, patience_s=5):
                found.append(record)

    threading.Thread(target=follow, daemon=True).start()
    return found


def test_a_camera_of_the_settings(server: str, client: Client, clip: Path, gate: RealRtsp) -> None:
    """It was away when the server started. Its picture shows its masks, to a browser and to FFmpeg."""
    eventually(lambda: "gate" in [status["id"] for status in client.streams()])     # an ingress names it once it runs
    records = followed(server, "gate")
    eventually(lambda: len(records) >= 6)
    status = eventually(lambda: (found := client.status("gate"))["state"] == "live" and found)
    assert (status["width"], status["height"]) == (192, 128) and adds_up(status)
    assert all(record["instances"] and record["latency_ms"] >= 0 for record in records[:6])
    plain_pictures = [np.asarray(image, int) for image in images(clip)]
    masked = np.asarray(Image.open(io.BytesIO(client.picture("gate"))), int)
    assert masked.shape == (128, 192, 3)
    assert min(np.abs(masked - picture).mean() for picture in plain_pictures) > 15, "H.264 and JPEG alone: 4"
    at_once = {"probesize": "32", "analyzeduration": "0", "fpsprobesize": "0"}
    with av.open(f"{server}/streams/gate/overlay.mjpeg", options=at_once, timeout=PATIENCE_S) as stream:
        frames = [frame.to_ndarray(format="rgb24") for frame, _ in zip(stream.decode(video=0), range(3), strict=False)]
    assert stream.format.name == "mpjpeg" and [frame.shape for frame in frames] == [(128, 192, 3)] * 3


def test_a_camera_by_udp_changes_its_size(server: str, client: Client, gate: RealRtsp) -> None:
    """There and back, and ids and indices go on."""
    status = client.add("sizes", gate.url("sizes", "rtspu"), queue=QUEUE)
    assert status["url"].startswith("rtspu://")
    records = followed(server, "sizes")

    def sizes() -> list[tuple[int, int]]:
        each = [(record["width"], record["height"]) for record in records]
        return [size for size, before in zip(each, [None, *each], strict=False) if size != before]

    eventually(lambda: len(sizes()) >= 3)
    client.remove("sizes")
    assert set(sizes()) == {(160, 120), (208, 160)}
    indices = [record["frame"] for record in records]
    assert indices == sorted(set(indices))


def test_a_camera_dies_and_returns_and_another_loses_nothing(server: str, client: Client, clip: Path,
                                                             gate: RealRtsp) -> None:
    others = followed(server, "gate")
    door = RealRtsp(clip.parent, needs_h264=True)
    door.port = free_port()             # nobody takes it while the camera is away
    with door:
        client.add("door", door.url("clip"), queue=QUEUE)
        records = followed(server, "door")
        eventually(lambda: len(records) >= 4)
        door.kill()
        died = time.monotonic()
        away = eventually(lambda: (found := client.status("door"))["state"] == "reconnecting" and found)
        assert time.monotonic() - died < NOTICED_S
        assert f"127.0.0.1:{door.port}" in away["reason"]
        eventually(lambda: client.status("door")["frames"]["in_flight"] == 0)
        before, seen = len(records), len(others)
        eventually(lambda: len(others) >= seen + 6)
        door.start()
        returned = time.time()
        eventually(lambda: len(records) >= before + 4)
    assert records[before]["captured_at"] - returned < BACK_S
    indices, times = [record["frame"] for record in records], [record["time_s"] for record in records]
    assert indices == sorted(set(indices)) and times == sorted(set(times))
    eventually(lambda: client.status("door")["reconnects"] >= 1)
    client.remove("door")
    indices = [record["frame"] for record in list(others)]      # it still grows
    assert indices == list(range(indices[0], indices[0] + len(indices)))
    status = client.status("gate")
    assert (status["state"], status["frames"]["dropped"]) == ("live", {})


def annex_b(path: Path) -> list[bytes]:
    """The packets of an MP4 file as an H.264 encoder sends them."""
    with av.open(str(path)) as file:
        (stream,) = file.streams.video
        to_annex_b = BitStreamFilterContext("h264_mp4toannexb", stream)
        return [bytes(out) for packet in file.demux(stream) if packet.size for out in to_annex_b.filter(packet)]


def test_pushed_h264_gives_what_the_file_gives(client: Client, clip: Path) -> None:
    """Every frame of it, B-frames too, with equal ids, boxes and masks."""
    packets, started = annex_b(clip), time.time() - 60
    client.add("phone", policy="block")
    pushed = client.push("phone", ((started + n / 12, packet) for n, packet in enumerate(packets)), format="h264")
    assert (pushed.sent, pushed.errors) == (NUM_FRAMES, [])
    records = [plain(json.dumps(record)) for record in client.tracks("phone", after=-1)]
    times = [record.pop("time_s") for record in records]
    whole = client.video(clip)
    assert whole["error"] is None and len(records) == len(whole["frames"]) == NUM_FRAMES
    for record, expected in zip(records, whole["frames"], strict=True):
        del expected["time_s"]          # pushed frames have the times of their packets, in the order of decoding
        assert record == plain(json.dumps(expected))
    assert times == sorted(set(times)) and times[-1] == pytest.approx((NUM_FRAMES - 1) / 12, abs=0.3)
    client.remove("phone")


def test_a_video_that_is_cut_short_says_so_and_names_no_path(client: Client, clip: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.mkv"
    with av.open(str(clip)) as file, av.open(str(cut), "w") as out:
        (stream,) = file.streams.video
        copied = out.add_stream_from_template(stream)
        for packet in file.demux(stream):
            if packet.dts is not None:
                packet.stream = copied
                out.mux(packet)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size * 2 // 3])
    answer = client.video(cut)
    assert 8 < len(answer["frames"]) < NUM_FRAMES
    assert answer["error"].startswith("The upload: ") and "/" not in answer["error"], answer["error"]
    with pytest.warns(DamagedVideo, match=re.escape(f"{cut}: {answer['error']}")):
        drawn = client.video(cut, "overlay")
    with av.open(io.BytesIO(drawn)) as file:
        assert sum(1 for _ in file.decode(video=0)) == len(answer["frames"])


@pytest.mark.parametrize("result", ["json", "overlay"])
def test_a_video_with_garbage_in_it_says_what_is_missing(server: str, clip: Path, tmp_path: Path, result: str) -> None:
    """Packets that do not decode are counted, in the headers as in the JSON; one without a frame is refused."""
    data = bytearray(clip.read_bytes())
    with av.open(str(clip)) as file:
        packets = [(packet.pos, packet.size) for packet in file.demux(video=0) if packet.size]

    def sent(damaged: list[tuple[int, int]]) -> requests.Response:
        body = bytearray(data)
        for start, size in damaged:
            body[start : start + size] = b"\xff" * size
        return requests.post(f"{server}/videos?result={result}", data=bytes(body), timeout=PATIENCE_S)

    whole, torn, none = sent([]), sent(packets[9:13]), sent(packets)
    assert "X-Video-Error" not in whole.headers and whole.headers["X-Video-Frames"] == str(NUM_FRAMES)
    frames, dropped = (int(torn.headers[f"X-Video-{name}"]) for name in ("Frames", "Dropped"))
    assert torn.status_code == 200 and dropped == 4 and frames == NUM_FRAMES - 4
    assert "4 damaged packets gave no frame" in torn.headers["X-Video-Error"]
    if result == "json":
        said = torn.json()
        assert said["dropped"] == {"damaged": 4} and len(said["frames"]) == frames
        marked = re.search(r"(\d+) frames? came out damaged", said["error"])
        assert said["damaged"] == int(torn.headers["X-Video-Damaged"]) == 4 + (int(marked[1]) if marked else 0)
        assert said["error"] == torn.headers["X-Video-Error"] and whole.json()["error"] is None
    assert none.status_code == 422 and "no frame" in none.json()["error"], none.text


def test_more_cameras_than_there_is_time_for(client: Client) -> None:
    """Six of 20 frames a second, some five times too many: each is given as much as the others, what is under way is
    bounded, so that latency is too, and every frame is accounted for."""
    with contextlib.suppress(ServerError):
        client.remove("gate")
    most = QUEUE + 2 * 8        # of a stream: in its queue, and in batches of 8 frames, of which two may be under way

    def out(count: int) -> dict[str, int] | None:
        """Frames that came out of each, once it is `count` of all."""
        statuses = client.streams()
        assert all(adds_up(status) and status["frames"]["in_flight"] <= most for status in statuses), statuses
        found = {status["id"]: status["frames"]["out"] for status in statuses}
        return found if min(found.values()) >= count else None

    with contextlib.ExitStack() as cameras:
        for number in range(6):
            camera = cameras.enter_context(Tcp(lambda _: endless(pieces())))
            client.add(f"camera-{number}", f"tcp://127.0.0.1:{camera.port}", queue=QUEUE)
        first = eventually(lambda: out(2))
        last = eventually(lambda: out(max(first.values()) + 8))
        got = [last[name] - first[name] for name in first]
        assert max(got) - min(got) <= 3, f"fair is an equal share: {got}"
        for status in client.streams():
            assert status["frames"]["dropped"]["queue_full_oldest"] > 0 and status["reconnects"] == 0
            client.remove(status["id"])
