"""The loop in one process: equal runs, batches in turn, a disk that fills up, a torn checkpoint, two runs in a folder.

What several workers do is in test_train.py; what they survive, in tests/end_to_end/test_train_survival.py.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from operators.weights import read_weights
from tests.trainers.small_runs import PARTS, ROOT, write_run
from trainers import checkpoint
from trainers.config import TrainConfig, WorkersConfig
from trainers.curves import read_metrics
from trainers.feeding import open_loader, read_index
from trainers.job import Job, TrainingError
from trainers.loop import Alone, run_worker, train_alone
from trainers.sole import sole_writer
from trainers.train import make_job
from trainers.watch import Step, Watcher, Worker
from trainers.watchers import watchers_of

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
STEPS = 5


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return write_run(tmp_path_factory.mktemp("loop"), steps=STEPS)


@pytest.fixture(scope="module")
def calm(config, tmp_path_factory) -> Path:
    """The run that nothing happens to."""
    out = tmp_path_factory.mktemp("calm") / "run"
    train_alone(prepared(config, out), CPU)
    return out


def prepared(config: Path, out: Path, *overrides: str) -> Job:
    job = make_job(config, overrides, out)
    job.out.mkdir(parents=True, exist_ok=True)
    return job


def curve(out: Path) -> list[tuple]:
    return [tuple(row[part] for part in ("step", *PARTS)) for row in read_metrics(out / "metrics.jsonl")]


def assert_same_weights(out: Path, other: Path) -> None:
    ours, theirs = (read_weights(path / "weights.safetensors").state for path in (out, other))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# ----------------------------------------------------------------------------------------------------------- equal runs


def test_two_equal_runs_are_equal_to_the_bit(config, calm, tmp_path):
    train_alone(prepared(config, tmp_path / "again"), CPU)
    assert curve(tmp_path / "again") == curve(calm)
    assert_same_weights(tmp_path / "again", calm)


def test_another_seed_gives_another_run(config, calm, tmp_path):
    train_alone(prepared(config, tmp_path / "other", "seed=8"), CPU)
    assert [row[0] for row in curve(tmp_path / "other")] == [row[0] for row in curve(calm)]
    assert all(one[-3] != other[-3] for one, other in zip(curve(tmp_path / "other"), curve(calm), strict=True))


# ------------------------------------------------------------------------------------------------------ whose samples


def names_of(config: Path, first: int, world: int, batches: int) -> list[tuple]:
    """Of all workers, step by step, what the loaders give from the `first` sample on."""
    cfg = make_job(config, [f"workers.num_workers={world}", "samples_per_step=6"], config.parent).config
    index = read_index(cfg.data)
    input = make_job(config, [], config.parent).network.config.input
    loaders = [open_loader(cfg, index, input, first=first, batch=6 // world, rank=rank, world=world, device=CPU)
               for rank in range(world)]
    found = []
    for _ in range(batches):
        for loader in loaders:
            next(loader)
            found += [name.files for name in loader.names]
    for loader in loaders:
        loader.close()
    return found


@pytest.mark.parametrize("first, world", [(0, 2), (0, 6), (6, 3), (7, 2), (7, 3)])
def test_any_number_of_workers_sees_the_same_samples(config, first, world):
    """From wherever the last workers left off: each sample once, the step's samples the same."""
    alone = names_of(config, first, 1, 2)
    together = names_of(config, first, world, 2)
    assert sorted(together[:6]) == sorted(alone[:6]) and sorted(together[6:]) == sorted(alone[6:])


# ------------------------------------------------------------------------------------------------------ batches in turn


def sizes(steps: list[Step]) -> list[tuple]:
    return [(step.number, step.samples, len(step.batch)) for step in steps]


class Seen(Watcher):
    def __init__(self) -> None:
        self.steps: list[Step] = []

    def after_step(self, step: Step) -> None:
        self.steps.append(step)


def test_batches_in_turn_make_one_step_of_the_same_samples(config, calm, tmp_path):
    """The first step's class loss is a sum over all samples by their common number of positives: equal, though the
    norms of this network saw half the samples at a time; the mask loss is a mean of means, and is not."""
    seen = Seen()
    job = prepared(config, tmp_path, "accumulate=2", "steps=2", "optimizer.decay_at=[0.9]")
    run_worker(job, Alone(CPU), lambda worker: [*watchers_of(worker), seen])
    assert sizes(seen.steps) == [(1, 4, 2), (2, 4, 2)]
    whole, parts = (read_metrics(out / "metrics.jsonl")[0] for out in (calm, tmp_path))
    assert parts["total"] == pytest.approx(whole["total"], rel=0.05) and parts["total"] != whole["total"]
    frozen = [f"network={config.parent / 'frozen.yaml'}", "steps=1"]
    text = (config.parent / "net.yaml").read_text().replace("norm: batch", "norm: frozen_statistics")
    (config.parent / "frozen.yaml").write_text(text)
    rows = []
    for count in (1, 2):
        out = tmp_path / str(count)
        train_alone(prepared(config, out, *frozen, f"accumulate={count}"), CPU)
        rows.append(read_metrics(out / "metrics.jsonl")[0])
    for name in ("class", "box", "centerness"):
        assert rows[1][name] == pytest.approx(rows[0][name], rel=2e-6), name


@pytest.mark.parametrize("world, samples, steps", [(1, 2, 8), (2, 4, 4), (4, 8, 2)])
def test_a_batch_that_grows_with_the_workers(config, world, samples, steps):
    cfg = make_job(config, ["steps=4", "batch_for_workers=2"], config.parent).config
    cfg = replace(cfg, workers=WorkersConfig(num_workers=world, cpus_per_worker=1))
    assert (cfg.step_of(world), cfg.batch(world)) == (samples, 2)
    job = Job(cfg, None, config.parent, "", "")
    assert cfg.steps_of(world) == steps
    progress = checkpoint.Progress(None, None, None)
    assert Worker(job, 0, world, CPU, progress, None).steps == steps
    progress.steps_done, progress.samples_done = 1, 4           # a step of two workers, then others go on
    assert Worker(job, 0, world, CPU, progress, None).steps == 1 + math.ceil(12 / samples)


def test_such_a_batch_has_its_own_rate_and_its_place_among_the_samples(config, tmp_path):
    """One worker where two are meant: half the batch, half the rate, twice the steps; warm-up ends where it did."""
    job = prepared(config, tmp_path, "batch_for_workers=2", "steps=4", "optimizer.warmup_steps=2",
                   "optimizer.decay_at=[0.75]")
    run_worker(job, Alone(CPU))
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["samples"] for row in rows] == [2] * 8
    shares = [0.001, 0.25075, 0.5005, 0.75025, 1, 1, 0.1, 0.1]      # warm-up over 2 of 4 steps: 4 of these 8
    assert [row["learning_rate"] for row in rows] == pytest.approx([0.005 * share for share in shares], abs=1e-6)


# ------------------------------------------------------------------------------------------------------------ full disk

@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The operating system lets no file of this process grow beyond `size` bytes: EFBIG, as ENOSPC of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of its own that holds less than a checkpoint."""
    with tempfile.TemporaryDirectory() as folder:
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", folder], capture_output=True)
        if mounted.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def check_told(printed: str, out: Path) -> None:
    """Every step was done, no checkpoint kept, nothing half-written left; the weights at the end failed."""
    for step in (2, 4, 5):
        assert f"After step {step} no checkpoint could be written" in printed
    assert "the last checkpoint is that of step 0. Is the disk full?" in printed
    assert [row["step"] for row in read_metrics(out / "metrics.jsonl")] == list(range(1, STEPS + 1))
    assert list(out.glob("**/*.part")) == [] and not (out / "weights.safetensors").exists()


def test_a_run_goes_on_where_no_checkpoint_can_be_written_and_is_resumed_by_the_same_command(
    config, calm, tmp_path, capsys
):
    job = prepared(config, tmp_path)
    with files_up_to(30_000), pytest.raises((OSError, SafetensorError), match="File too large"):
        train_alone(job, CPU)
    printed = capsys.readouterr().err
    check_told(printed, tmp_path)
    assert "File too large" in printed
    train_alone(job, CPU)
    assert curve(tmp_path) == curve(calm)
    assert_same_weights(tmp_path, calm)


def test_the_same_on_a_disk_that_is_full(config, calm, small_disk, capsys):
    with pytest.raises((OSError, SafetensorError), match="No space left on device"):
        train_alone(prepared(config, small_disk / "run"), CPU)
    printed = capsys.readouterr().err
    check_told(printed, small_disk / "run")
    assert "No space left on device" in printed
    assert curve(small_disk / "run") == curve(calm)


def test_a_disk_that_fills_up_later_keeps_the_last_good_checkpoint(config, calm, tmp_path):
    """The first checkpoint is written; then files may grow no more; the next process goes on from it."""
    job = prepared(config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_worker(job, Alone(CPU), cut_after(2))
    with files_up_to(30_000), pytest.raises((OSError, SafetensorError)):
        train_alone(job, CPU)
    assert checkpoint.last_step(tmp_path / "checkpoints") == 2
    assert "the last checkpoint is that of step 2" in (tmp_path / "notices.txt").read_text()
    train_alone(job, CPU)
    assert curve(tmp_path) == curve(calm)
    assert_same_weights(tmp_path, calm)


def test_a_disk_that_is_full_costs_the_evaluation_alone(config, calm, tmp_path, capsys):
    class Evaluates(Watcher):
        def due(self, steps_done: int) -> bool:
            return steps_done == 3

        def score(self, steps_done: int) -> float | None:
            if self.due(steps_done):
                (tmp_path / "evaluation.bin").write_bytes(bytes(3_000_000))
            return None

    with files_up_to(2_000_000):
        run_worker(prepared(config, tmp_path), Alone(CPU), lambda worker: [Evaluates(), *watchers_of(worker)])
    assert "After step 3 nothing could be evaluated" in capsys.readouterr().err
    assert curve(tmp_path) == curve(calm)
    assert_same_weights(tmp_path, calm)


def cut_after(steps: int) -> Callable[[Worker], list[Watcher]]:
    """Watchers of a process that ends when so many steps are done, and their checkpoint is written."""

    class Cut(Watcher):
        def after_checkpoint(self, steps_done: int) -> None:
            if steps_done == steps:
                raise KeyboardInterrupt

    return lambda worker: [*watchers_of(worker), Cut()]


# ------------------------------------------------------------------------------------------------- torn, best, two runs


def test_a_torn_checkpoint_is_told_put_aside_and_made_again(config, calm, tmp_path):
    job = prepared(config, tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_worker(job, Alone(CPU), cut_after(4))
    newest, before = checkpoint.found(tmp_path / "checkpoints")
    newest.write_bytes(newest.read_bytes()[:-100])
    run_worker(job, Alone(CPU))
    assert curve(tmp_path) == curve(calm)
    assert_same_weights(tmp_path, calm)
    notices = (tmp_path / "notices.txt").read_text()
    assert str(newest) in notices and "training goes on from step 2" in notices
    assert newest.with_suffix(".torn").exists()
    assert [path.name[5:13] for path in checkpoint.found(tmp_path / "checkpoints")] == ["00000005", "00000004"]


class Scores(Watcher):
    """An evaluation whose outcome is known."""

    def __init__(self, scores: dict[int, float]) -> None:
        self.scores = scores

    def due(self, steps_done: int) -> bool:
        return steps_done in self.scores

    def score(self, steps_done: int) -> float | None:
        return self.scores.get(steps_done)


def test_the_best_weights_are_kept_over_a_cut_too(config, tmp_path):
    """Scored after steps 1, 3 and 5; the first is the best, a NaN is no score. A checkpoint follows each."""
    job = prepared(config, tmp_path, "checkpoints_kept=9")
    scores = {1: 0.5, 3: math.nan, 5: 0.4}
    with pytest.raises(KeyboardInterrupt):
        run_worker(job, Alone(CPU), lambda worker: [Scores(scores), *cut_after(3)(worker)])
    run_worker(job, Alone(CPU), lambda worker: [Scores(scores), *watchers_of(worker)])
    assert read_weights(tmp_path / "best.safetensors").metadata["steps"] == "1"
    assert read_weights(tmp_path / "weights.safetensors").metadata["steps"] == "5"
    steps = [int(path.name[5:13]) for path in checkpoint.found(tmp_path / "checkpoints")]
    assert steps == [5, 4, 3, 2, 1]


def test_a_run_without_scores_has_no_best(calm):
    assert not (calm / "best.safetensors").exists()


def test_one_process_at_a_time_trains_into_a_folder(config, tmp_path):
    job = prepared(config, tmp_path)
    with sole_writer(tmp_path):
        with pytest.raises(TrainingError, match=rf"another process trains into this folder: process {os.getpid()} on"):
            with sole_writer(tmp_path, wait_s=0.3):
                raise AssertionError("two at once")
    with sole_writer(tmp_path):
        pass
    assert job.out == tmp_path


def test_the_lock_of_a_killed_process_is_gone_with_it(tmp_path):
    script = "import sys, time; from pathlib import Path; from trainers.sole import sole_writer\n" \
             "with sole_writer(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE,
                               env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True)  # fmt: skip
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(TrainingError, match=f"process {process.pid} on"):
        with sole_writer(tmp_path, wait_s=0.3):
            raise AssertionError("two at once")
    process.kill()
    process.communicate()
    with sole_writer(tmp_path, wait_s=5.0):
        pass


# ---------------------------------------------------------------------------------------------------------- bad numbers


def test_a_loss_that_is_no_number_names_the_samples_of_its_step(config, tmp_path):
    job = prepared(config, tmp_path, "optimizer.learning_rate=1e30", "accumulate=2")
    with pytest.raises(TrainingError, match="is not finite") as caught:
        run_worker(job, Alone(CPU))
    found = json.loads((tmp_path / "not_finite.json").read_text())
    index = read_index(job.config.data)
    loader = open_loader(job.config, index, job.network.config.input, first=4 * (found["step"] - 1), batch=4, rank=0,
                         world=1, device=CPU)  # fmt: skip
    next(loader)
    loader.close()
    (worker,) = found["workers"]
    assert [(one["video"], tuple(one["files"])) for one in worker["samples"]] == [
        (name.video, name.files) for name in loader.names]
    assert f"step {found['step']}: " in str(caught.value)
    assert all(name.video in str(caught.value) for name in loader.names)
    last = checkpoint.last_step(tmp_path / "checkpoints")
    assert last < found["step"]
    state = [torch.load(path, weights_only=True)["network"] for path in checkpoint.found(tmp_path / "checkpoints")]
    assert all(value.isfinite().all() for one in state for value in one.values()), "what is kept is good"


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("settings, message", [
    ({"samples_per_step": 6, "workers": WorkersConfig(num_workers=4)}, "not a multiple of workers.num_workers (4)"),
    ({"samples_per_step": 6, "accumulate": 4}, "workers.num_workers (1) times accumulate (4)"),
    ({"samples_per_step": 6, "batch_for_workers": 4}, "not a multiple of batch_for_workers (4)"),
    ({"accumulate": 0}, "at least 1"), ({"checkpoints_kept": 0}, "at least 1"), ({"batch_for_workers": -1}, "at least"),
    ({"precision": "float16"}, "takes a GPU"),
], ids=str)  # fmt: skip
def test_settings_that_do_not_fit(config, settings, message):
    data = make_job(config, [], config.parent).config.data
    with pytest.raises(ValueError) as caught:
        TrainConfig(network="n", data=data, **settings)
    assert message in str(caught.value)


@pytest.mark.parametrize("settings", [
    {"min_workers": 0}, {"min_workers": 3, "num_workers": 2}, {"wait_s": -1.0}, {"wait_s": math.inf},
    {"wait_s": math.nan}], ids=str)  # fmt: skip
def test_workers_out_of_range(settings):
    with pytest.raises(ValueError):
        WorkersConfig(**settings)


def test_every_worker_gets_its_samples_whatever_the_share(config):
    """No sample twice, none left out, over shares of every kind."""
    for world, accumulate in itertools.product((1, 2, 4), (1, 2, 3)):
        cfg = make_job(config, [f"workers.num_workers={world}", f"accumulate={accumulate}", "samples_per_step=24"],
                       config.parent).config  # fmt: skip
        assert cfg.batch(world) * accumulate * world == cfg.step_of(world) == 24
