"""`maskstream train CONFIG`: check everything, run the workers, draw the curves.

In:     a file of configs/training, overrides, a folder for the run
Out:    the folder: metrics.jsonl, tensorboard/, losses.png, weights.safetensors, and the checkpoints under ray/
State:  the folder is the state: `--resume` goes on from its last checkpoint, and gives what an uncut run had given

Also `python -m trainers.train CONFIG`, and under `ray job submit --working-dir . -- maskstream train CONFIG`.
"""

from __future__ import annotations

import os
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import get_args, get_type_hints

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from models import NETWORKS
from models.targets import ClipBatch, PairBatch
from operators.errors import CheckpointError, ConfigError, DatasetError, MaskstreamError
from operators.weights import read_weights, start_from
from pipelines.config import apply_overrides, build, load_yaml, resolve
from pipelines.networks import NetworkSpec, read_network
from trainers.config import TrainConfig, WorkersConfig
from trainers.curves import plot_losses, read_metrics
from trainers.fingerprint import fingerprint
from trainers.loop import METRICS_FILE, WEIGHTS_FILE, Job, read_index
from trainers.step import make_optimizer

RAY_RUN = "ray"
"""Folder of a run in which Ray Train keeps its checkpoints."""
FINGERPRINT_FILE = "fingerprint"
"""Of the settings that the run's course depends on: it is resumed with no others."""
MAX_FAILURES = 2
"""Times that lost workers are started anew before the run ends."""
CHECKPOINTS_KEPT = 2
BATCHES = {"pairs": PairBatch, "clips": ClipBatch}
"""What the samples of each kind come as."""


def train(
    config_path: str | Path, overrides: Sequence[str] = (), *, out: str | Path, resume: bool = False,
    address: str | None = None,
) -> Path:
    """Run (or go on with) a training run; returns the file of weights.

    Raises ConfigError, DatasetError, CheckpointError before any training; TrainingError when the workers fail for good.
    """
    job = prepare(config_path, overrides, Path(out), resume)
    # By default every report waits 1.8 s for the controller to look.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    with cluster_for(address, job.config.workers), _progress(job):
        _fit(job)
    plot_losses(read_metrics(job.out / METRICS_FILE), job.out / "losses.png")
    return job.out / WEIGHTS_FILE


class TrainingError(MaskstreamError):
    """The workers failed more often than a run may recover from. Says what the last failure was."""


def prepare(config_path: str | Path, overrides: Sequence[str], out: Path, resume: bool) -> Job:
    """Everything that can be known before training, checked; the folder made this run's own."""
    job = make_job(config_path, overrides, out)
    if (job.out / METRICS_FILE).exists() and not resume:
        raise ConfigError(f"{out}: holds an earlier run. Go on with it by --resume, or name another folder by --out.")
    if resume and not (job.out / RAY_RUN).is_dir():
        raise ConfigError(f"{out}: holds no run to resume. Leave --resume out to begin one.")
    claim(job, resume)
    return job


def make_job(config_path: str | Path, overrides: Sequence[str], out: Path) -> Job:
    """The run that a file of settings asks for; reads settings, dataset and weights, writes nothing.

    Raises ConfigError, DatasetError, CheckpointError.
    """
    where = resolve(config_path)
    config = build(TrainConfig, apply_overrides(load_yaml(where), overrides, str(where)), str(where))
    paths = {key: _absolute(getattr(config.data, key)) for key in ("annotations", "image_root")}
    begin = None if config.start_from is None else _absolute(str(resolve(config.start_from)))
    config = replace(config, data=replace(config.data, **paths), start_from=begin)  # workers have folders of their own
    network = read_network(config.network)
    _check_network(config, network, str(where))
    _check_dataset(config, network, str(where))
    _check_start(config, network)
    command = shlex.join(["maskstream", "train", str(config_path), *(f"--set={o}" for o in overrides)])
    return Job(config, network, out.absolute(), fingerprint(config, network), command)


def _check_network(config: TrainConfig, network: NetworkSpec, where: str) -> None:
    """Raises ConfigError where the network does not learn from such samples, or has not the parts that are named."""
    made = NETWORKS[network.name][0]
    hint = get_type_hints(made.forward)["batch"]
    taken = get_args(hint) or (hint,)
    if BATCHES[config.data.kind] not in taken:
        kinds = " or ".join(f"'{kind}'" for kind, batch in BATCHES.items() if batch in taken)
        raise ConfigError(f"{where}, data.kind: '{config.data.kind}', but the network '{network.name}' learns from "
                          f"{kinds}.")
    if config.optimizer.parts:
        try:
            with torch.device("meta"):
                make_optimizer(made(network.config), config.optimizer)
        except ValueError as error:
            raise ConfigError(f"{where}, {error}") from error


def _check_start(config: TrainConfig, network: NetworkSpec) -> None:
    """Raises CheckpointError where `start_from` cannot begin this network."""
    if config.start_from is not None:
        state = read_weights(Path(config.start_from)).state
        start_from(NETWORKS[network.name][0](network.config), state, config.start_from)


def claim(job: Job, resume: bool) -> None:
    """Make the folder this run's own, or see that it is. Raises CheckpointError for a run with other settings."""
    out, mark = job.out, job.out / FINGERPRINT_FILE
    if resume and mark.exists() and mark.read_text().strip() != job.fingerprint:
        raise CheckpointError(f"{out}: holds a run with other settings. Resume with the same, or use another --out.")
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(job.fingerprint + "\n")


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


def _check_dataset(config: TrainConfig, network: NetworkSpec, where: str) -> None:
    data = config.data
    for path, key in ((data.annotations, "annotations"), (data.image_root, "image_root")):
        if not Path(path).exists():
            hint = f" Make it by: {data.made_by}" if data.made_by else ""
            raise DatasetError(f"{where}, data.{key}: {path} does not exist.{hint}")
    dataset = read_index(data).dataset
    if len(dataset.categories) != network.config.num_classes:
        raise ConfigError(
            f"{network.where}, model.num_classes: {network.config.num_classes}, but {data.annotations} has "
            f"{len(dataset.categories)} categories."
        )


@contextmanager
def cluster_for(address: str | None, workers: WorkersConfig) -> Iterator[None]:
    """A cluster by address (or RAY_ADDRESS, as under `ray job submit`), else a local one for as long as the run."""
    import ray

    from pipelines.cluster import cluster

    wanted = {"CPU": workers.num_workers * workers.cpus_per_worker, "GPU": workers.num_workers * workers.use_gpu}
    address = address or os.environ.get("RAY_ADDRESS")
    with cluster(address):
        for resource, amount in wanted.items():
            have = ray.cluster_resources().get(resource, 0)
            if amount > have:
                raise ConfigError(
                    f"workers want {amount} {resource}s, the cluster has {have:g}. "
                    "Lower workers.num_workers or workers.cpus_per_worker, or add a node."
                )
        yield


def _fit(job: Job) -> None:
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    from trainers.workers import train_worker

    workers = job.config.workers
    resources = {"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})}
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=ray_train.ScalingConfig(
            num_workers=workers.num_workers, use_gpu=workers.use_gpu, resources_per_worker=resources
        ),
        run_config=ray_train.RunConfig(
            name=RAY_RUN,
            storage_path=str(job.out),
            failure_config=ray_train.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=ray_train.CheckpointConfig(num_to_keep=CHECKPOINTS_KEPT),
        ),
    )
    try:
        trainer.fit()
    except ray_train.TrainingFailedError as error:
        causes = getattr(error, "worker_failures", None) or {0: error}
        cause = next(iter(causes.values()))
        reason = str(cause).rstrip(".")
        raise TrainingError(f"{job.out}: training failed: {reason}. Go on by --resume.") from error


@contextmanager
def _progress(job: Job) -> Iterator[None]:
    """A bar that follows metrics.jsonl: worker 0 writes it into the run's folder, wherever that worker runs."""
    columns = (TextColumn("train"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
               TimeElapsedColumn(), TimeRemainingColumn())
    done = threading.Event()
    with Progress(*columns) as bar:
        task = bar.add_task("train", total=job.config.steps, note="starting the workers")

        def follow() -> None:
            while not done.wait(1.0):
                rows = read_metrics(job.out / METRICS_FILE) if (job.out / METRICS_FILE).exists() else []
                if rows:
                    bar.update(task, completed=rows[-1]["step"], note=_note(rows[-1]))

        thread = threading.Thread(target=follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()


def _note(row: dict[str, float]) -> str:
    wait = row["data_wait_s"] / max(row["step_s"], 1e-9)
    return f"loss {row['total']:.3f}, {row.get('samples_per_s', 0.0):.1f} samples/s, {wait:.0%} waiting for data"


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
