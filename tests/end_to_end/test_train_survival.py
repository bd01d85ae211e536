"""A night of training that goes wrong: a worker is killed, a machine goes and another comes, the driver is killed.

Two machines of one worker each, all on this one. What comes out must be, to the bit, what two processes give that
nobody disturbs; those know nothing of Ray. The night happens once, in a process of its own.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from operators.weights import read_weights
from pipelines.config import build, load_yaml
from tests.trainers.small_runs import PARTS, in_own_process, write_run
from trainers import checkpoint
from trainers.config import TrainConfig
from trainers.curves import read_metrics
from trainers.feeding import read_index
from trainers.pairs import PairSampler

pytestmark = pytest.mark.slow

STEPS = 32

NIGHT = """
import json, os, signal, subprocess, sys, time
from pathlib import Path

from ray.cluster_utils import Cluster

given = json.loads(sys.argv[1])
run = Path(given["run"])

def step():
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    lines = text.rpartition("\\n")[0].splitlines()                # the last one may be being written
    return max([json.loads(line)["step"] for line in lines], default=0)

def notices():
    return (run / "notices.txt").read_text() if (run / "notices.txt").exists() else ""

def until(what, *running):
    while not what():
        for one in running:
            if one.poll() is not None:
                raise SystemExit(f"ended early: {one.poll()}, {notices()}")
        time.sleep(0.05)

def start(*more):
    command = [sys.executable, "-m", "pipelines.cli", "train", given["config"], "--out", given["run"],
               "--address", cluster.address, *more]
    return subprocess.Popen(command)

def workers(node):
    raylet = node.all_processes["raylet"][0].process.pid
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                parent = int(Path("/proc", name, "stat").read_text().rpartition(")")[2].split()[1])
                title = Path("/proc", name, "cmdline").read_text()
            except (OSError, ProcessLookupError):
                continue
            if parent == raylet and "TrainWorker" in title:
                found.append(int(name))
    return found

quick = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}     # Ray's own: every three seconds
head = {"num_cpus": 1, "include_dashboard": False, "_system_config": quick}
cluster = Cluster(initialize_head=True, head_node_args=head)
other = cluster.add_node(num_cpus=1)
driver = start()
until(lambda: step() >= 5, driver)
(victim,) = workers(cluster.head_node)
os.kill(victim, signal.SIGKILL)
until(lambda: notices().count("Workers were lost") == 1, driver)
after = step()
until(lambda: step() >= after + 3, driver)
cluster.remove_node(other, allow_graceful=False)
until(lambda: "hold 1 of 2 workers" in notices(), driver)
cluster.add_node(num_cpus=1)
after = step()
until(lambda: step() >= after + 3, driver)
driver.kill()
driver.wait()
told = {"killed_at": step()}
told["done"] = start("--resume").wait()
Path(given["told.json"]).write_text(json.dumps(told))
cluster.shutdown()
"""

PAIR = """
import json, sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from trainers.loop import run_worker
from trainers.train import prepare

class Host:
    world, device = 2, torch.device("cpu")

    def __init__(self, rank):
        self.rank = rank

    def wrap(self, network):
        return DistributedDataParallel(network)

def work(rank, calm, wild, meeting):
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    run_worker(calm, Host(rank))
    try:
        run_worker(wild, Host(rank))
    except Exception as error:
        Path(wild.out, f"{rank}.txt").write_text(f"{type(error).__name__}: {error}")
    dist.destroy_process_group()

if __name__ == "__main__":
    given = json.loads(sys.argv[1])
    calm = prepare(given["config"], [], Path(given["calm"]), resume=False)
    wild = prepare(given["config"], ["optimizer.learning_rate=1e30"], Path(given["wild"]), resume=False)
    mp.spawn(work, (calm, wild, given["calm"] + ".meeting"), nprocs=2)
"""


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """A training file with its network and its generated dataset, and where the two runs lie."""
    folder = tmp_path_factory.mktemp("night")
    config = write_run(folder, steps=STEPS, checkpoint_every=3,
                       workers={"num_workers": 2, "cpus_per_worker": 1, "wait_s": 300})  # fmt: skip
    return {"config": str(config), **{name: str(folder / name) for name in ("run", "calm", "wild", "told.json")}}


@pytest.fixture(scope="module")
def pair(given, tmp_path_factory) -> Iterator[Future[str]]:
    """Begun before the night, whose processes wait for each other for the greater part of it."""
    script = tmp_path_factory.mktemp("script") / "pair.py"          # spawned processes read it again
    script.write_text(PAIR)
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(in_own_process, str(script), json.dumps(given))


@pytest.fixture(scope="module")
def night(given, pair) -> dict:
    printed = in_own_process("-c", NIGHT, json.dumps(given))
    assert Path(given["told.json"]).exists(), f"the night ended early:\n{printed}"
    return json.loads(Path(given["told.json"]).read_text())


@pytest.fixture(scope="module")
def calm(given, pair) -> Path:
    """The same run by two processes of torch alone; they then train with a rate that no network survives."""
    printed = pair.result()
    assert (Path(given["calm"]) / "weights.safetensors").exists(), printed
    return Path(given["calm"])


def test_one_command_ends_what_was_cut(night):
    assert night["done"] == 0
    assert 11 <= night["killed_at"] < STEPS, "before the end"


def test_what_was_lost_is_told(night, given):
    notices = (Path(given["run"]) / "notices.txt").read_text()
    assert notices.count("Workers were lost") >= 2 and "Waiting up to 300 s for others" in notices
    assert all("from step" in line for line in notices.splitlines() if "Workers were lost" in line)


def test_the_curve_is_that_of_an_undisturbed_run(night, calm, given):
    rows, same = (read_metrics(path / "metrics.jsonl") for path in (Path(given["run"]), calm))
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [[row[part] for part in PARTS] for row in rows] == [[row[part] for part in PARTS] for row in same]


def test_so_are_the_weights(night, calm, given):
    ours = read_weights(Path(given["run"]) / "weights.safetensors").state
    theirs = read_weights(calm / "weights.safetensors").state
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


def test_numbers_that_are_none_stop_all_workers_at_once(calm, given):
    """Each raises the same sentence, and the samples of both are written down."""
    wild = Path(given["wild"])
    first, second = ((wild / f"{rank}.txt").read_text() for rank in (0, 1))
    assert first.startswith("TrainingError: step ") and "is not finite" in first
    found = json.loads((wild / "not_finite.json").read_text())
    names = {name for one in found["workers"] for sample in one["samples"] for name in sample["files"]}
    cfg = build(TrainConfig, load_yaml(Path(given["config"])), "train.yaml")
    sampler = PairSampler(read_index(cfg.data), max_interval=3, flip=0.5, seed=cfg.seed)
    draws = list(itertools.islice(sampler.draws(4 * (found["step"] - 1)), 4))
    assert names == {frame.file_name for draw in draws for frame in draw.frames}
    assert [len(one["samples"]) for one in found["workers"]] == [2, 2]
    videos = first[first.index("Seen in") :]
    assert videos == second[second.index("Seen in") :] and all(str(draw.frames[0].video.id) in videos for draw in draws)
    assert checkpoint.last_step(wild / "checkpoints") < found["step"]
