"""`maskstream serve` as a user types it: a camera, the page's address, and an orderly end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from operators.shapes import PRESETS, write_videos
from tests.end_to_end.ports import free_port
from tests.end_to_end.test_chaos import children
from tests.end_to_end.test_serve import eventually

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 150
TOKEN = "a-token-that-nobody-guesses"


@pytest.fixture
def video(tmp_path: Path) -> Path:
    shapes = replace(PRESETS["medium"], width=128, height=96, num_frames=24)
    (path,) = write_videos(tmp_path, shapes, seed=33, num_clips=1)
    return path


def serve(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "pipelines.cli", "serve", *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, bufsize=1, **pipes)


def lines(process: subprocess.Popen) -> Iterator[str]:
    """What it says, line by line, for as long as a test has patience."""
    until = time.monotonic() + PATIENCE_S
    for line in process.stderr:
        yield line.rstrip()
        assert time.monotonic() < until, "it says nothing more"


def test_a_camera_from_the_first_word_to_the_last(video: Path, tmp_path: Path) -> None:
    """It prints where the page is and what becomes of the camera, and ends with 143 after SIGTERM, though one camera
    holds its connection open and says nothing, and clients wait. Nothing of Ray is left: no word, no process."""
    tokens = tmp_path / "tokens"
    tokens.touch(mode=0o600)
    tokens.write_text(f"test {TOKEN}\n")
    port, silent = free_port(), socket.create_server(("127.0.0.1", 0))
    process = serve("--camera", f"door={video.as_uri()}", "--port", port, "--tokens", tokens, "--queue", 64,
                    "--policy", "block", "--camera", f"silent=tcp://127.0.0.1:{silent.getsockname()[1]}")  # fmt: skip
    try:
        said = lines(process)
        assert any(f"http://localhost:{port}/" in line for line in said)
        assert any(line.startswith("door: ended") for line in said)
        assert requests.get(f"http://127.0.0.1:{port}/streams", timeout=PATIENCE_S).status_code == 401
        known = {"Authorization": f"Bearer {TOKEN}"}
        at = f"127.0.0.1:{port}/streams"

        def door() -> dict[str, Any] | None:
            """Once all that the camera gave is out: it has ended when it gives no more."""
            status, _ = requests.get(f"http://{at}", headers=known, timeout=PATIENCE_S).json()["streams"]
            return None if status["frames"]["in_flight"] else status

        status = eventually(door)
        assert (status["id"], status["frames"]["out"], status["frames"]["dropped"]) == ("door", 24, {})
        requests.post(f"http://{at}", headers=known, json={"id": "sent"}, timeout=PATIENCE_S)
        with ExitStack() as stack:
            clients = [stack.enter_context(connect(f"ws://{at}/{path}", additional_headers=known,
                                                   open_timeout=PATIENCE_S))
                       for path in ("silent/tracks", "sent/tracks", "sent/frames")]  # fmt: skip
            family = children(process.pid)
            process.send_signal(signal.SIGTERM)
            assert any("Ending" in line for line in said)
            for client in clients:
                with pytest.raises(ConnectionClosed) as closed:
                    client.recv(timeout=PATIENCE_S)
                assert closed.value.rcvd.code == 1012, "come again: the server may be on its way back"
        assert process.wait(PATIENCE_S) == 143
        assert (process.stdout.read(), [*said]) == ("", [])
        assert len(family) >= 6
        eventually(lambda: not [pid for pid in family if Path(f"/proc/{pid}").exists()])    # killed, they take a moment
    finally:
        process.kill()
        silent.close()


@pytest.mark.parametrize(
    "arguments, said",
    [
        pytest.param(["--camera", "door"], "expected NAME=URL", id="no address"),
        pytest.param(["--camera", "a=rtsp://h/1", "--camera", "a=rtsp://h/2"], "two cameras called 'a'", id="one name"),
        pytest.param(["--camera", "a=gopher://h/1"], "begins with its scheme", id="unknown scheme"),
        pytest.param(["--port", "0"], "expected 1 to 65535", id="no port"),
        pytest.param(["--max-streams", "0"], "max_streams is 0", id="no stream"),
        pytest.param(["--host", "0.0.0.0", "--port", "18765"], "no token is asked for", id="for all without tokens"),
    ],
)
def test_what_cannot_be_served(arguments: list[str], said: str, capsys: pytest.CaptureFixture) -> None:
    """One sentence, before Ray is started."""
    from pipelines.cli import main

    assert main(["serve", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and "Traceback" not in error
