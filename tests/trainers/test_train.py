"""A whole training run: real workers of a real local Ray, against a plain loop over the same parts.

The runs happen once, in one process of their own: a run begins and ends clusters, which the process of the tests may be
part of. First what is refused before any of that.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from tensorboardX.proto import event_pb2
from torch import nn

from models.crossvis import CrossVIS
from models.inputs import InputConfig
from models.targets import PairBatch
from operators.errors import CheckpointError, ConfigError, DatasetError
from operators.shapes import CATEGORIES, ShapesConfig, write_youtube_vis
from operators.weights import read_weights
from operators.youtube_vis_data import read_dataset
from pipelines.networks import load_network, read_network
from tests.trainers.small_runs import NETWORK
from trainers import checkpoint
from trainers.curves import read_metrics
from trainers.data import PairLoader
from trainers.frames import FrameIndex
from trainers.log import Log
from trainers.pairs import PairDraw, PairSampler
from trainers.step import Average, OptimizerConfig, learning_rate, make_optimizer
from trainers.train import checked, prepare
from trainers.watch import Step

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 900
CPU = torch.device("cpu")
CLIPS = ShapesConfig(
    width=125, height=75, num_frames=6, min_objects=3, max_objects=4, min_classes=2, num_twins=0, full_occlusions=0,
    re_entries=0,
)  # fmt: skip
OPTIMIZER = {"learning_rate": 0.01, "momentum": 0.9, "warmup_steps": 2, "decay_at": [0.7], "average_decay": 0.15}
STEPS, PAIRS, SEED = 4, 4, 7
MADE_BY = "maskstream shapes --out here --clips 3"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A training file with its network and its generated dataset."""
    folder = tmp_path_factory.mktemp("training")
    write_youtube_vis(folder / "data", CLIPS, seed=5, num_clips=3)
    return written(folder)


def written(folder: Path) -> Path:
    """train.yaml and net.yaml beside the dataset in `folder`."""
    (folder / "net.yaml").write_text(yaml.safe_dump(NETWORK))
    data = {"annotations": str(folder / "data" / "instances.json"), "image_root": str(folder / "data" / "JPEGImages"),
            "max_interval": 3, "made_by": MADE_BY}
    content = {
        "network": str(folder / "net.yaml"), "data": data, "steps": STEPS, "samples_per_step": PAIRS, "seed": SEED,
        "optimizer": OPTIMIZER, "log_every": 2, "checkpoint_every": 2,
        "workers": {"num_workers": 1, "cpus_per_worker": 1}}  # fmt: skip
    path = folder / "train.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


# --------------------------------------------------------------------------------------------- refused before it begins


def test_prepare_checks_and_makes_the_folder(config, tmp_path):
    job = prepare(config, ["steps=3"], tmp_path / "new" / "run", resume=False)
    assert job.config.steps == 3 and job.out.is_dir() and job.out.is_absolute()
    assert job.command == f"maskstream train {config} --set=steps=3"


@pytest.mark.parametrize("overrides, error, message", [
    pytest.param(["data.annotations=/no/i.json"], DatasetError, f"/no/i.json does not exist. Make it by: {MADE_BY}",
                 id="missing dataset: the command that makes it"),
    pytest.param(["data.image_root=/no"], DatasetError, f"/no does not exist. Make it by: {MADE_BY}", id="no images"),
    pytest.param(["data.annotations=/no/i.json", "data.made_by=''"], DatasetError, "/no/i.json does not exist. Put it "
                 "there, or say where it is by --set data.annotations=PATH.",
                 id="missing dataset, nobody knows how it is made"),
    pytest.param(["network=nowhere.yaml"], ConfigError, "train.yaml, network: nowhere.yaml: no such file",
                 id="missing network"),
    pytest.param(["network=configs/networks/tinny.yaml"], ConfigError, "no such file. Did you mean tiny.yaml?",
                 id="missing network: the nearest of those that are shipped"),
    pytest.param(["step=3"], ConfigError, "step: no such setting. Did you mean steps?", id="unknown setting"),
    pytest.param(["optimizer.name=lion"], ConfigError, "optimizer.name: expected 'sgd' or 'adamw'", id="optimiser"),
    pytest.param(["steps=0"], ConfigError, "at least 1", id="no step"),
    pytest.param(["steps=10000000000"], ConfigError, "expected at most 1000000000 and", id="too many steps"),
    pytest.param(["samples_per_step=99999999"], ConfigError, "samples_per_step 99999999", id="too many samples"),
    pytest.param(["optimizer.decay_at=[15000, 21000]"], ConfigError, "decay_at is [15000.0, 21000.0], expected shares",
                 id="decays in steps"),
    pytest.param(["optimizer.learning_rate=.inf"], ConfigError, "learning_rate: expected a number, got inf", id="inf"),
    pytest.param(["workers.num_workers=0"], ConfigError, "at least 1", id="no worker"),
    pytest.param(["workers.num_workers=3"], ConfigError, "samples_per_step is 4, not a multiple of workers.num_workers",
                 id="pairs that do not divide among the workers"),
    pytest.param(["data.max_interval=-1"], ConfigError, "max_interval", id="T below 0"),
    pytest.param(["data.flip=2"], ConfigError, "flip", id="a probability of 2"),
    pytest.param(["data.threads=0"], ConfigError, "threads", id="no thread"),
    pytest.param(["seed=99999999999999999999"], ConfigError, "seed is 99999999999999999999, expected 0 to", id="seed"),
    pytest.param(["seed=-1"], ConfigError, "seed", id="a negative seed, which numpy refuses once training has begun"),
])  # fmt: skip
def test_settings_that_are_wrong(config, tmp_path, overrides, error, message):
    with pytest.raises(error) as caught:
        prepare(config, overrides, tmp_path / "run", resume=False)
    assert message in str(caught.value)
    assert not (tmp_path / "run").exists(), "nothing is left behind"


SHIPPED = sorted(path.name for path in (ROOT / "configs" / "training").glob("*.yaml"))


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_run_is_read_from_any_folder_and_names_the_dataset_that_it_wants(tmp_path, monkeypatch, name):
    """Its settings and its network stand the checks, which come before; how to come by the data is told."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DatasetError) as caught:
        prepare(f"configs/training/{name}", [], tmp_path / "run", resume=False)
    told = f"{ROOT / 'configs' / 'training' / name}, data.annotations: {tmp_path / 'data'}"
    assert str(caught.value).startswith(told) and "does not exist. " in str(caught.value)
    ways = ("Make it by: maskstream shapes --out data/", "or say where it is by --set data.annotations=PATH.")
    assert sum(way in str(caught.value) for way in ways) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place, why", [("file", "is a file; expected a folder"), ("file/below", "cannot be written")])
def test_what_can_be_no_folder_of_a_run(config, tmp_path, place, why):
    (tmp_path / "file").write_text("somebody's")
    with pytest.raises(ConfigError, match=f"--out {tmp_path / place}: {why}"):
        prepare(config, [], tmp_path / place, resume=False)
    assert (tmp_path / "file").read_text() == "somebody's"


def test_a_run_does_not_write_into_the_folder_of_its_images(config):
    """One below it is a run's own: a dataset may lie at the top of what a cluster shares."""
    images = config.parent / "data" / "JPEGImages"
    with pytest.raises(ConfigError, match=f"--out {images}: the dataset's images or videos are there"):
        prepare(config, [], images, resume=False)
    assert not (images / "fingerprint").exists()
    checked(config, [], images / "runs" / "first", resume=False)


def test_a_network_for_another_number_of_classes(config, tmp_path):
    changed = copy.deepcopy(NETWORK)
    changed["model"]["num_classes"] = 40
    (tmp_path / "wide.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(ConfigError, match=rf"wide.yaml, model.num_classes: 40, but .*has {len(CATEGORIES)} categories"):
        prepare(config, [f"network={tmp_path / 'wide.yaml'}"], tmp_path / "run", resume=False)


def test_a_dataset_that_is_no_dataset(config, tmp_path):
    (tmp_path / "i.json").write_text("{")
    with pytest.raises(DatasetError, match="i.json: is not valid JSON"):
        prepare(config, [f"data.annotations={tmp_path / 'i.json'}"], tmp_path / "run", resume=False)


def test_a_dataset_without_annotations(config, tmp_path):
    content = json.loads((config.parent / "data" / "instances.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps({**content, "annotations": None}))
    with pytest.raises(DatasetError, match="no frame with an annotation|no annotations"):
        prepare(config, [f"data.annotations={tmp_path / 'val.json'}"], tmp_path / "run", resume=False)


def test_images_that_are_not_there(config, tmp_path):
    """Those that no sample is drawn from may be absent."""
    shutil.copytree(config.parent / "data", tmp_path / "data")
    moved = written(tmp_path)
    index = frame_index(moved)
    last = [video.file_names[-1] for video in index.dataset.videos]
    used = {frame.file_name for frames in index.videos for frame in frames}
    assert set(last) <= used
    for name in last[:2]:
        (tmp_path / "data" / "JPEGImages" / name).unlink()
    with pytest.raises(DatasetError) as caught:
        prepare(moved, [], tmp_path / "run", resume=False)
    assert f"2 of {len(used)} annotated frames are not there, the first is " in str(caught.value)
    assert last[0] in str(caught.value) and not (tmp_path / "run").exists()


def test_a_folder_with_checkpoints_is_not_begun_anew(config, tmp_path):
    """A run that was cut before its first line of metrics."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "step-00000002-0123456789abcdef.pt").touch()
    with pytest.raises(ConfigError, match="holds an earlier run. Go on with it by --resume"):
        prepare(config, [], tmp_path, resume=False)


def test_the_folder_of_an_earlier_run_is_not_written_over(config, tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 2}\n')
    with pytest.raises(ConfigError, match="holds an earlier run. Go on with it by --resume"):
        prepare(config, [], tmp_path, resume=False)


def test_a_run_is_resumed_with_its_own_settings_alone(config, tmp_path):
    prepare(config, [], tmp_path, resume=False)
    prepare(config, ["workers.num_workers=2"], tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="a run with other settings"):
        prepare(config, ["seed=99"], tmp_path, resume=True)


@pytest.mark.parametrize("folder", ["absent", "."])
def test_there_must_be_a_run_to_resume(config, tmp_path, folder):
    with pytest.raises(ConfigError, match="holds no run to resume"):
        prepare(config, [], tmp_path / folder, resume=True)


def test_where_a_run_is_spread_does_not_belong_to_its_settings(config, tmp_path):
    """What a checkpoint is recognised by."""
    def fingerprint(*overrides: str) -> str:
        return prepare(config, overrides, tmp_path, resume=False).fingerprint

    same = ("workers.num_workers=2", "workers.cpus_per_worker=3", "log_every=1", "checkpoint_every=1", "data.threads=2")
    assert {fingerprint(change) for change in same} == {fingerprint()}
    other = ("steps=5", "seed=8", "samples_per_step=8", "optimizer.learning_rate=0.1", "data.max_interval=null")
    assert len({fingerprint(), *map(fingerprint, other)}) == 1 + len(other)


def test_a_run_that_began_before_later_settings_came_is_gone_on_with(config, tmp_path):
    """This was its fingerprint when pairs were all there was; see trainers/fingerprint.py."""
    assert prepare(config, [], tmp_path, resume=False).fingerprint == "77e124c0a7b3c166"
    changes = ("optimizer.decay_norms=true", "optimizer.parts=[{contains: fpn}]")
    found = {prepare(config, [change], tmp_path, resume=False).fingerprint for change in changes}
    assert len(found) == 2 and "77e124c0a7b3c166" not in found


def test_a_line_after_a_torn_one_is_not_lost(tmp_path):
    """A run cut while it wrote is resumed: its next line must stand on its own."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 2, "total": 1.0}\n{"step": 4, "tot')
    log = Log(tmp_path, every=2, steps=4)
    log.after_step(Step(4, {"total": 3.0}, 0.1, 0.0, 0.5, 4, None))
    log.close()
    assert [(row["step"], row["total"]) for row in read_metrics(tmp_path / "metrics.jsonl")] == [(2, 1.0), (4, 3.0)]


# -------------------------------------------------------------------------------------------- the same, by a plain loop


WORLDS = (1, 1, 2, 2)
"""Workers at each step: one until the run is cut, two once it is resumed."""


@dataclass
class Outcome:
    network: nn.Module
    average: Average
    losses: list[float]
    """Of worker 0, a step each."""


@pytest.fixture(scope="module")
def expected(config) -> Outcome:
    """What WORLDS should come to, by a loop: their gradients averaged, worker 0's running statistics kept."""
    cfg = OptimizerConfig(**{**OPTIMIZER, "decay_at": tuple(OPTIMIZER["decay_at"])})
    spec, index = read_network(config.parent / "net.yaml"), frame_index(config)
    torch.manual_seed(SEED)
    network = CrossVIS(spec.config, num_identities=len(index.identity))
    optimizer, average, losses = make_optimizer(network, cfg), Average(network, cfg.average_decay), []
    for step, world in enumerate(WORLDS):
        samplers = [sampler(index, rank, world) for rank in range(world)]
        share = PAIRS // world
        draws = [list(itertools.islice(one.draws(step * share), share)) for one in samplers]
        losses.append(plain_step(network, [load(index, one, spec.config.input) for one in draws], step))
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, STEPS, cfg)
        optimizer.step()
        average.update(network, step)
    return Outcome(network, average, losses)


def frame_index(config: Path) -> FrameIndex:
    data = config.parent / "data"
    return FrameIndex(read_dataset(data / "instances.json", image_root=data / "JPEGImages"))


def sampler(index: FrameIndex, rank: int = 0, world: int = 1) -> PairSampler:
    return PairSampler(index, max_interval=3, flip=0.5, seed=SEED, rank=rank, world_size=world)


def load(index: FrameIndex, draws: list[PairDraw], config: InputConfig) -> PairBatch:
    loader = PairLoader(itertools.cycle(draws), index, config, batch=len(draws), device=CPU)
    try:
        return next(loader)
    finally:
        loader.close()


def plain_step(network: nn.Module, batches: list[PairBatch], step: int) -> float:
    """Put into `network` the mean of the workers' gradients and the first one's running statistics; gives its loss."""
    counted = []
    for batch in batches:                                               # once to count what all share ...
        counted.append([])
        copy.deepcopy(network)(batch, lambda value: counted[-1].append(value) or value)
    means = [sum(values) / len(batches) for values in zip(*counted, strict=True)]
    totals, replicas = [], [copy.deepcopy(network) for _ in batches]
    for replica, batch in zip(replicas, batches, strict=True):          # ... and once with those means
        told = iter(means)
        torch.manual_seed(SEED * 1_000_003 + step)                      # draws inside the losses: of the step alone
        total = sum(replica(batch, lambda value: next(told)).values())  # noqa: B023
        replica.zero_grad()
        total.backward()
        totals.append(total.item())
    network.load_state_dict(replicas[0].state_dict())
    for parameters in zip(network.parameters(), *(replica.parameters() for replica in replicas), strict=True):
        gradients = [p.grad for p in parameters[1:]]
        parameters[0].grad = None if gradients[0] is None else sum(gradients) / len(gradients)
    return totals[0]


# ------------------------------------------------------------------------------------------------------------- the runs

STORY = """
import json, sys
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from trainers.train import train

given = json.loads(sys.argv[1])
told = {}

def tell(name, *overrides, **how):
    try:
        told[name] = ["done", str(train(given["config"], [*given["overrides"], *overrides], **how))]
    except Exception as error:
        told[name] = [type(error).__name__, str(error)]
    told[name].append(ray.is_initialized())
    Path(given["told"]).write_text(json.dumps(told))

image = Path(given["image"])
whole = image.read_bytes()
image.write_bytes(whole[:100])
tell("cut", out=given["run"])
Path(given["told"]).with_name("cut.html").write_bytes((Path(given["run"]) / "report.html").read_bytes())
image.write_bytes(whole)
if given["gpu"]:
    tell("resumed", out=given["run"], resume=True)
    sys.exit()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
there = {"address": cluster.address}
tell("resumed", "workers.num_workers=2", out=given["run"], resume=True, **there)
tell("too many cpus", "workers.num_workers=2", "workers.cpus_per_worker=2", out=given["refused"], **there)
tell("no gpu", "workers.use_gpu=true", out=given["refused"], **there)
cluster.shutdown()
"""


@dataclass
class Story:
    config: Path
    run: Path
    refused: Path
    cut: Path
    """The report of the first run, before it was resumed."""
    damaged: str
    """The image that could not be decoded in the first run, as the dataset names it."""
    told: dict[str, tuple[str, str, bool]]
    """Of each part: how it ended, with what, and whether Ray still ran."""


def image_first_needed_by_step(config: Path, step: int) -> Path:
    """An image that the batches before this 0-based step do not need, and this one does."""
    index = frame_index(config)
    draws = sampler(index).draws(0)
    batches = [[f.file_name for d in itertools.islice(draws, PAIRS) for f in d.frames] for _ in range(step + 1)]
    first = {video.file_names[0] for video in index.dataset.videos}     # read_dataset() looks whether these are there
    return config.parent / "data" / "JPEGImages" / min(set(batches[step]).difference(first, *batches[:step]))


@pytest.fixture(scope="module")
def story(config, tmp_path_factory) -> Story:
    """Steps 1 and 2, then an image is damaged; in another cluster, with it whole, steps 3 and 4. Told in a file."""
    folder = tmp_path_factory.mktemp("runs")
    image = image_first_needed_by_step(config, 2)
    given = {"config": str(config), "overrides": [], "gpu": False, "image": str(image)}
    given |= {"told": str(folder / "told.json"), "run": str(folder / "run"), "refused": str(folder / "refused")}
    printed = in_own_process(STORY, given)
    told = {name: tuple(ending) for name, ending in json.loads((folder / "told.json").read_text()).items()}
    assert len(told) == 4, f"the runs ended early:\n{printed}"
    damaged = str(image.relative_to(config.parent / "data" / "JPEGImages"))
    return Story(config, folder / "run", folder / "refused", folder / "cut.html", damaged, told)


def in_own_process(script: str, given: dict) -> str:
    """Run `script` from the checkout; gives what it printed. Ended, with all it started, after TIMEOUT_S."""
    environment = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    environment["RAY_worker_niceness"] = "0"                            # else a busy machine never lets them run
    process = subprocess.Popen(
        [sys.executable, "-c", script, json.dumps(given)], cwd=ROOT, env=environment, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)  # fmt: skip
    try:
        return process.communicate(timeout=TIMEOUT_S)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"not done after {TIMEOUT_S} s:\n{process.communicate()[0]}") from None


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_run_with_its_reason(story):
    kind, message, ray_runs = story.told["cut"]
    assert kind == "DatasetError" and not ray_runs
    assert "cannot be decoded" in message and story.damaged in message


@pytest.mark.slow
def test_the_report_tells_the_curves_so_far_and_why_they_end(story):
    cut = story.cut.read_text(encoding="utf-8")
    assert "2 of 4 steps" in cut and "This run ended early" in cut and 'alt="losses"' in cut
    assert "cannot be decoded" in cut and story.damaged in cut
    assert f"The last checkpoint is that of step 2. Go on from it by: <code>maskstream train {story.config} --out " \
           f"{story.run} --resume</code>" in cut
    whole = (story.run / "report.html").read_text(encoding="utf-8")
    assert "4 of 4 steps" in whole and "This run ended early" not in whole, "written anew"


@pytest.mark.slow
def test_a_cut_and_resumed_run_gives_what_a_plain_loop_gives(story, expected):
    """With one worker at first and two later: same samples, same draws, gradients and normalisers averaged."""
    assert story.told["resumed"] == ("done", str(story.run / "weights.safetensors"), False)
    state = read_weights(story.run / "weights.safetensors").state
    wanted = {name: value for name, value in expected.average.state.items() if not name.startswith("proxies.")}
    assert state.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(state[name], value, rtol=1e-5, atol=1e-7, msg=lambda m, n=name: f"{n}: {m}")
    moved = [name for name, value in wanted.items() if not torch.equal(value, expected.network.state_dict()[name])]
    assert len(moved) > 50, "it is the average that is written, not the last weights"


@pytest.mark.slow
def test_the_weights_tell_where_they_come_from_and_can_be_used(story, tmp_path):
    checkpoint = read_weights(story.run / "weights.safetensors")
    assert checkpoint.classes == tuple(CATEGORIES) and checkpoint.network == "crossvis"
    assert checkpoint.config["channels"] == 16 and checkpoint.config["backbone"]["blocks"] == [1, 1, 1, 1]
    assert checkpoint.metadata["command"] == f"maskstream train {story.config} --set=workers.num_workers=2"
    assert (checkpoint.metadata["dataset"], checkpoint.metadata["steps"]) == (MADE_BY, str(STEPS))
    assert checkpoint.metadata["seed"] == str(SEED)
    path = tmp_path / "use.yaml"
    path.write_text(yaml.safe_dump({**NETWORK, "weights": str(story.run / "weights.safetensors")}))
    network = load_network(read_network(path), CPU)
    with torch.inference_mode():
        dense = network.heads(network.features(torch.zeros(1, 3, 64, 96)))
    assert dense.class_logits.isfinite().all() and dense.class_logits.shape[2] == len(CATEGORIES)


@pytest.mark.slow
def test_the_curves(story, expected):
    rows = read_metrics(story.run / "metrics.jsonl")
    assert [row["step"] for row in rows] == [2, 4]
    for row, begin in zip(rows, (0, 2), strict=True):
        assert row["total"] == pytest.approx(sum(expected.losses[begin : begin + 2]) / 2, abs=2e-6)
        parts = [row[name] for name in ("class", "box", "centerness", "mask", "crossover", "identity")]
        assert sum(parts) == pytest.approx(row["total"], abs=1e-5)
        assert row["samples_per_s"] > 0 and row["step_s"] >= row["data_wait_s"] >= 0
    # warm-up 0.001 and 0.5005 of 0.01; the rate falls to a tenth from 0.7 * 4 = 2.8 on
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.01 * 0.50150 / 2, (0.01 + 0.001) / 2], abs=1e-6)
    with Image.open(story.run / "losses.png") as image:
        assert image.format == "PNG" and min(image.size) > 300


@pytest.mark.slow
def test_the_events_of_tensorboard_hold_the_same_numbers(story):
    points = {}
    for path in sorted((story.run / "tensorboard").iterdir()):
        for event in events(path.read_bytes()):
            points |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    for row in read_metrics(story.run / "metrics.jsonl"):
        for name in ("total", "mask", "identity", "learning_rate"):
            assert points[name, row["step"]] == pytest.approx(row[name], abs=1e-6)


def events(data: bytes) -> Iterator[event_pb2.Event]:
    """A file of events: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    at = 0
    while at < len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        yield event_pb2.Event.FromString(data[at + 12 : at + 12 + length])
        at += length + 16


@pytest.mark.slow
def test_old_checkpoints_are_cleared_away(story):
    kept = [path.name[:13] for path in checkpoint.found(story.run / "checkpoints")]
    assert kept == ["step-00000004", "step-00000002"]


@pytest.mark.slow
@pytest.mark.parametrize("name, message", [("too many cpus", "workers want 4 CPUs, the cluster has 2"),
                                            ("no gpu", "workers want 1 GPUs, the cluster has 0. Set workers.use_gpu")])
def test_more_than_the_cluster_has_is_refused_before_any_worker_starts(story, name, message):
    kind, said, ray_runs = story.told[name]
    assert kind == "ConfigError" and message in said and not ray_runs
    assert not story.refused.exists(), "nothing is left behind"


@pytest.mark.gpu
@pytest.mark.slow
def test_a_run_on_a_gpu_is_cut_and_resumed(config, tmp_path):
    """Average, optimiser and counterparts must lie where the network does, also after a resume."""
    data = shutil.copytree(config.parent / "data", tmp_path / "data")
    moved = written(tmp_path)                                           # its own copy: an image goes aside
    image = data / image_first_needed_by_step(config, 2).relative_to(config.parent / "data")
    given = {"config": str(moved), "overrides": ["workers.use_gpu=true"], "gpu": True, "image": str(image),
             "told": str(tmp_path / "told.json"), "run": str(tmp_path / "run")}
    printed = in_own_process(STORY, given)
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["cut"][0] == "DatasetError" and image.name in told["cut"][1], printed
    assert told["resumed"][0] == "done", told
    assert [row["step"] for row in read_metrics(tmp_path / "run" / "metrics.jsonl")] == [2, 4]
