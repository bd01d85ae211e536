"""`ray job submit` and `serve deploy`: a fresh cluster of two nodes on this machine, with a token, as a user starts
one; two jobs, and cameras."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import requests
import yaml

from operators.shapes import PRESETS, write_videos
from operators.weights import read_weights
from pipelines.client import Client
from pipelines.config import load_yaml
from tests.end_to_end.ports import free_port, free_ports
from tests.trainers.small_runs import ROOT, write_run
from trainers.curves import read_metrics

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
STEPS = 4
START_S, JOB_S, END_S = 240, 420, 1


@dataclass
class Cluster:
    """Two nodes of one CPU each."""

    dashboard: str
    folder: Path
    """Ray's own; what jobs upload is unpacked in it."""
    environment: dict[str, str]

    def submit(self, *command: object, working_dir: Path = ROOT) -> subprocess.CompletedProcess:
        """As a user types it; waits for the job to end, its log in stdout."""
        return self._run(ROOT, "ray", "job", "submit", "--address", self.dashboard, "--working-dir", working_dir, "--",
                         *command)  # fmt: skip

    def serve(self, command: str, *options: object) -> str:
        """What `serve` prints, from a folder without the code."""
        done = self._run(Path("/"), "serve", command, "--address", self.dashboard, *options)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def _run(self, folder: Path, tool: str, *words: object) -> subprocess.CompletedProcess:
        return subprocess.run([str(BIN / tool), *map(str, words)], cwd=folder, env=self.environment, timeout=JOB_S,
                              text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with tempfile.TemporaryDirectory(prefix="ms-job-", dir="/tmp") as name:     # short: sockets lie in it
        folder, nodes = Path(name), []
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"PATH": f"{BIN}:{installed(folder / 'bin')}:{os.environ['PATH']}",
                        "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1",
                        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}  # fmt: skip
        (folder / "token").touch(mode=0o600)
        (folder / "token").write_text("a token that nobody guesses\n")
        gcs, dashboard, client, *agents = free_ports(5)
        try:
            nodes.append(started(environment, "--head", f"--port={gcs}", "--include-dashboard=true",
                                 "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
                                 f"--ray-client-server-port={client}", f"--temp-dir={folder / 'ray'}",
                                 f"--dashboard-agent-listen-port={agents[0]}"))  # fmt: skip
            nodes.append(started(environment, f"--address=127.0.0.1:{gcs}",
                                 f"--dashboard-agent-listen-port={agents[1]}"))  # fmt: skip
            yield Cluster(f"http://127.0.0.1:{dashboard}", folder / "ray", environment)
        finally:
            for node in reversed(nodes):
                node.terminate()
            for node in nodes:
                ended(node)
            end_leftovers(name)


def installed(folder: Path) -> Path:
    """A folder with `maskstream` as pip makes it: a checkout that is tested may not be installed."""
    folder.mkdir()
    script = folder / "maskstream"
    script.write_text(f"#!{BIN / 'python'}\nimport sys\nfrom pipelines.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return folder


def started(environment: dict[str, str], *options: str) -> subprocess.Popen:
    """`ray start`, once it says that the node runs. Fails where it ends, or takes longer than START_S."""
    command = [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", "--num-cpus=1", "--num-gpus=0",
               "--node-ip-address=127.0.0.1", "--object-store-memory=200000000", "--min-worker-port=0",
               "--max-worker-port=0", *options]  # fmt: skip
    node = subprocess.Popen(command, env=environment, text=True, start_new_session=True, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip
    late, said = threading.Timer(START_S, node.kill), []
    late.start()
    for line in node.stdout:
        said.append(line)
        if "Ray runtime started" in line:
            late.cancel()
            threading.Thread(target=node.stdout.read, daemon=True).start()      # else a full pipe would stop it
            return node
    late.cancel()
    raise AssertionError(f"{' '.join(command)} ended with {node.wait()}:\n{''.join(said)}")


def ended(node: subprocess.Popen) -> None:
    """Ray gives what it runs half a minute to end; nothing here needs that."""
    try:
        node.wait(END_S)
    except subprocess.TimeoutExpired:
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()


def end_leftovers(name: str) -> None:
    """Processes of this cluster that outlived their node: its folder is on their command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if name.encode() in (entry / "cmdline").read_bytes():
                    os.kill(int(entry.name), signal.SIGKILL)
            except (OSError, ProcessLookupError):
                continue


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("job"), steps=STEPS, workers={"num_workers": 2, "cpus_per_worker": 1})


def test_a_submitted_run_trains_on_both_nodes(two_nodes, config):
    """One CPU a node: two workers need both. Only what the code needs is uploaded."""
    out = config.parent / "run"
    job = two_nodes.submit("maskstream", "train", config, "--out", out, "--begin-or-resume")
    assert job.returncode == 0, job.stdout
    assert f"{out / 'weights.safetensors'}" in job.stdout and "succeeded" in job.stdout
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert [row["samples"] for row in read_metrics(out / "metrics.jsonl")] == [2] * STEPS, "two workers, two pairs each"
    assert read_weights(out / "weights.safetensors").metadata["steps"] == str(STEPS)
    unpacked = two_nodes.folder.glob("session_*/runtime_resources/working_dir_files/*")
    uploads = [path for path in unpacked if path.is_dir()]
    assert uploads
    for upload in uploads:
        assert {"models", "operators", "pipelines", "trainers", "configs"} <= set(os.listdir(upload))
        left_out = {"data", "runs", "tests", "docs", "benchmarks", ".venv", ".git", "weights"}
        assert left_out.isdisjoint(os.listdir(upload))
        assert (upload / "models" / "weights" / "tiny.safetensors").is_file(), "shipped, unlike weights of one's own"
        assert sum(path.stat().st_size for path in upload.rglob("*") if path.is_file()) < 25_000_000


def test_a_job_that_wants_more_than_there_is_fails_with_one_sentence(two_nodes, config):
    """By the other way to start it."""
    job = two_nodes.submit("python", "-m", "trainers.train", config, "--out", config.parent / "refused",
                         "--set", "workers.num_workers=4")  # fmt: skip
    assert job.returncode == 1
    assert "workers want 4 CPUs, the cluster has 2. Lower workers.num_workers" in job.stdout
    assert "Traceback" not in job.stdout
    assert not (config.parent / "refused" / "metrics.jsonl").exists()


def test_cameras_are_deployed_on_machines_without_the_code(two_nodes, tmp_path):
    """It travels as a zip that the file names; `serve status` and `serve shutdown` know nothing of it."""
    (video,) = write_videos(tmp_path, replace(PRESETS["medium"], width=128, height=96, num_frames=24), 34, num_clips=1)
    port = free_port()
    deployment = load_yaml(ROOT / "configs/deployments/live.yaml")
    (app,) = deployment["applications"]
    deployment["http_options"]["port"] = port
    app["runtime_env"] = {"working_dir": zipped_code(tmp_path).as_uri()}
    app["args"] |= {"cameras": {"door": video.as_uri()}, "policy": "block"}
    file = tmp_path / "cameras.yaml"
    file.write_text(yaml.safe_dump(deployment))
    two_nodes.serve("deploy", file)
    wait_for(lambda: requests.get(f"http://127.0.0.1:{port}/streams/door", timeout=JOB_S).json()["state"] == "ended")
    with Client(f"http://127.0.0.1:{port}") as client:
        assert [record["frame"] for record in client.tracks("door", after=-1)] == list(range(24))
    assert "status: RUNNING" in two_nodes.serve("status")
    two_nodes.serve("shutdown", "--yes")
    wait_for(lambda: "applications: {}" in two_nodes.serve("status"))


def zipped_code(folder: Path) -> Path:
    """As docs/live.md says: one folder in a zip."""
    for name in ("models", "operators", "pipelines", "trainers", "configs"):
        shutil.copytree(ROOT / name, folder / "zip/maskstream" / name, ignore=shutil.ignore_patterns("__pycache__"))
    return Path(shutil.make_archive(str(folder / "maskstream"), "zip", folder / "zip"))


def wait_for(what) -> None:
    """Until it is true and raises nothing of HTTP or JSON; fails after JOB_S."""
    until = time.monotonic() + JOB_S
    while time.monotonic() < until:
        try:
            if what():
                return
        except (requests.RequestException, KeyError):
            pass
        threading.Event().wait(0.3)
    raise AssertionError(f"did not come true within {JOB_S} s")
