"""The client against a real server that plays recorded cameras; against the real app in end_to_end/test_serve.py."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.errors import ConfigError
from operators.shapes import CATEGORIES
from pipelines.client import Client, DamagedVideo, ServerError
from pipelines.serving.guard import GuardConfig
from tests.pipelines.recorded_server import Recorded, Running, recording, serving, status, until

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "a-token-that-nobody-guesses"
Served = Callable[..., tuple[Client, Recorded, Running]]


@pytest.fixture
def served(in_time: None) -> Iterator[Served]:
    """served(status(...), ...) -> a client of a server with these cameras, what is played, and the server."""
    ended = []

    def serve(*statuses: dict, config: GuardConfig | None = None, token: str | None = None):
        played = Recorded(*statuses)
        running = serving(played, config)
        server = running.__enter__()
        client = Client(server.address + "/", token, timeout_s=30)
        ended.extend([running, client])
        return client, played, server

    yield serve
    for context in reversed(ended):
        context.__exit__(None, None, None)


@pytest.mark.parametrize("address", ["", "127.0.0.1:8000", "rtsp://camera/", "http://", "ftp://example.com"])
def test_addresses_that_are_none(address):
    with pytest.raises(ConfigError, match="no address of a server"):
        Client(address)


def test_streams_come_and_go(served):
    client, played, _ = served()
    assert client.streams() == []
    added = client.add("door", "rtsp://10.0.0.7/1", policy="block", queue=3)
    assert played.bodies == [{"id": "door", "url": "rtsp://10.0.0.7/1", "policy": "block", "queue": 3}]
    assert client.streams() == [added] == [client.status("door")]
    assert client.add("pushed")["kind"] == "push" and played.bodies[-1] == {"id": "pushed"}
    client.remove("door")
    assert [one["id"] for one in client.streams()] == ["pushed"]


@pytest.mark.parametrize("call, code, said", [
    pytest.param(lambda c: c.status("no"), 404, "There is no stream 'no'.", id="unknown"),
    pytest.param(lambda c: c.remove("no"), 404, "There is no stream 'no'.", id="remove unknown"),
    pytest.param(lambda c: c.add("door", "rtsp://10.0.0.7"), 409, "There is a stream 'door' already.", id="taken"),
    pytest.param(lambda c: c.add("x", "rtsp://127.0.0.1/"), 403, "not listed in allow.hosts", id="not allowed"),
    pytest.param(lambda c: c.picture("no"), 503, "There is no picture yet.", id="no picture"),
    pytest.param(lambda c: next(c.tracks("no")), 404, "There is no stream 'no'.", id="tracks of none"),
    pytest.param(lambda c: c.status("a/../../b"), 400, "The path holds '..'", id="an id cannot leave its place"),
    pytest.param(lambda c: c.video(Path(__file__)), 400, "no video that can be read", id="no video"),
])  # fmt: skip
def test_what_the_server_refuses(served, call, code, said):
    client, _, _ = served(status("door"))
    with pytest.raises(ServerError, match=said) as refused:
        call(client)
    assert refused.value.status == code


def test_picture_and_video(served, tmp_path):
    client, played, _ = served(status("door"))
    assert client.picture("door") in [jpeg for jpeg, _ in recording(11)]
    video = tmp_path / "a.mp4"
    video.write_bytes(b"\0\0\0\x18ftyp" + bytes(100_000))
    assert client.video(video)["frames"] == [{"frame": 0, "instances": []}]
    assert played.bodies[-1] == video.read_bytes()
    out = client.video(video, "overlay", out=tmp_path / "out.mp4")
    assert out.read_bytes() == client.video(video, "overlay") == b"\0\0\0\x18ftypmp42"
    video.write_bytes(video.read_bytes() + b"torn")
    with pytest.warns(DamagedVideo, match="a.mp4: The upload: 3 frames came."):
        assert client.video(video, "overlay", out=tmp_path / "torn.mp4").is_file()
    with pytest.raises(ConfigError, match="none.mp4: cannot be read: No such file"):
        client.video(tmp_path / "none.mp4")


def test_tracks_until_the_stream_is_removed(served):
    client, played, _ = served(status("door"))
    records = client.tracks("door")
    seen = [next(records) for _ in range(4)]
    known = [instances for _, instances in recording(11)]
    assert all(one["stream"] == "door" and one["instances"] in known for one in seen)
    frames = [one["frame"] for one in seen]
    assert frames == sorted(set(frames))
    played.statuses.clear()
    assert len(list(records)) < 20
    until(lambda: not played.open_sockets)


def test_who_stops_reading_closes_the_connection(served):
    client, played, _ = served(status("door"))
    for _ in client.tracks("door"):
        break
    until(lambda: not played.open_sockets)


@pytest.mark.parametrize("rough", [False, True], ids=["told to come again", "server away"])
def test_tracks_go_on_after_a_cut(served, rough):
    client, played, server = served(status("door"))
    if not rough:
        played.records_before_cut = 3
    records = client.tracks("door")
    seen = [next(records) for _ in range(3)]
    if rough:
        server.stop()
        threading.Timer(0.3, server.start).start()
    seen += [next(records) for _ in range(5)]
    frames = [one["frame"] for one in seen]
    assert frames == sorted(set(frames)) and played.asked_after[-1] in frames[2:]


def test_another_stream_of_the_same_name_is_followed_from_its_beginning(served):
    client, played, _ = served(status("door"))
    played.records_before_cut = 1
    records = client.tracks("door")
    next(records)
    played.statuses[0] = status("door", started_at=1_770_000_000.0)
    next(records)
    assert played.asked_after == [None, None]


def test_patience_ends(served):
    client, _, server = served(status("door"))
    records = client.tracks("door", patience_s=0.2)
    next(records)
    server.stop()
    with pytest.raises(ServerError, match="cannot be reached") as gone:
        list(records)
    assert gone.value.status is None


def test_a_server_that_is_not_there():
    with pytest.raises(ServerError, match="http://127.0.0.1:9 cannot be reached: .*refused"):
        Client("http://127.0.0.1:9").streams()


def test_push(served, tmp_path):
    client, played, _ = served()
    red = np.zeros((8, 16, 3), np.uint8)
    red[..., 0] = 255
    file = tmp_path / "frame.png"
    file.write_bytes(b"a file's bytes")
    pushed = client.push("phone", [red, (1_760_000_000.25, b"encoded"), file, b""])
    assert (pushed.sent, pushed.refused, pushed.errors) == (4, 1, ["The message holds no frame."])
    assert [one["id"] for one in client.streams()] == ["phone"]
    (first, jpeg), *rest = played.pushed["phone"]
    assert first == 0.0 and rest == [(1_760_000_000.25, b"encoded"), (0.0, b"a file's bytes"), (0.0, b"")]
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)))
    assert pixels.shape == (8, 16, 3) and np.abs(pixels.astype(int) - red).max() < 10
    assert client.push("phone", []).sent == 0                       # there already: nothing to register


def test_push_goes_on_after_a_cut(served):
    client, played, server = served(status("phone", kind="push"))

    def frames() -> Iterator[bytes]:
        for n in range(6):
            if n == 3:
                until(lambda: len(played.pushed.get("phone", ())) >= 2)     # what was on its way is lost
                server.stop()
                server.start()
            yield b"frame %d" % n

    client.push("phone", frames())
    came = [data for _, data in played.pushed["phone"]]
    assert came[:2] == [b"frame 0", b"frame 1"] and came[-2:] == [b"frame 4", b"frame 5"] and len(came) <= 6


def test_push_keeps_its_pace(served):
    client, _, _ = served()
    begun = time.monotonic()
    client.push("phone", [b"x"] * 6, fps=20)
    assert time.monotonic() - begun >= 5 / 20
    with pytest.raises(ConfigError, match="fps is 0"):
        client.push("phone", [b"x"], fps=0)


@pytest.mark.parametrize("frame, came", [
    (np.zeros((4, 4), np.uint8), r"uint8 \(4, 4\)"), (np.zeros((4, 4, 3)), "float64"), ("path.jpg", "str"),
    (Path("/nowhere/x.jpg"), "/nowhere/x.jpg: cannot be read"),
])  # fmt: skip
def test_what_is_no_frame(served, frame, came):
    client, _, _ = served()
    with pytest.raises(ConfigError, match=came):
        client.push("phone", [frame])


def test_tokens(served, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"desk {TOKEN}\n")
    file.chmod(0o600)
    client, _, server = served(status("door"), config=GuardConfig(token_file=file, token_env=""), token=TOKEN)
    assert client.streams()[0]["id"] == "door" and "instances" in next(client.tracks("door"))
    for token in (None, "another-token-of-no-use"):
        with Client(server.address, token) as other:
            with pytest.raises(ServerError, match="token") as refused:
                other.streams()
            assert refused.value.status == 401
            with pytest.raises(ServerError, match="token"):
                next(other.tracks("door"))


def removed_after(played: Recorded, records: int) -> None:
    until(lambda: played.records_sent >= records)
    played.statuses.clear()


def test_the_documents_examples(served, tmp_path, monkeypatch, capsys):
    """docs/live.md as it stands, but for the address; its last three need a webcam, Kafka and a hook elsewhere: they
    compile."""
    client, played, server = served()
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "live.md").read_text(), re.S)
    first, second, *others = (block.replace("http://127.0.0.1:8000", server.address) for block in blocks)
    threading.Thread(target=removed_after, args=(played, 6), daemon=True).start()
    names: dict[str, object] = {"frames": [np.zeros((4, 4, 3), np.uint8)] * 2, "chunks": iter([b"\0\0\0\1", b"gH"])}
    exec(first, names)                                              # ends when the stream is removed
    labels = {line.split()[2] for line in capsys.readouterr().out.splitlines()}
    assert labels and labels <= set(CATEGORIES)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "street.mp4").write_bytes(b"\0\0\0\x18ftyp")
    played.statuses.append(status("door"))
    exec(second, names)
    assert len(played.pushed["phone"]) == 2 and (tmp_path / "street_masks.mp4").exists()
    assert [data for _, data in played.pushed["desk"]] == [b"\0\0\0\1", b"gH"], "chunks go as they are"
    assert len(others) == 3 and all(compile(block, "docs/live.md", "exec") for block in others)


def test_needs_neither_torch_nor_ray():
    script = "import sys, pipelines.client; print([name for name in ('torch', 'ray', 'av') if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "[]", done.stderr
