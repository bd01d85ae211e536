"""What every training worker does: steps, checkpoints, and a stop where numbers go bad. One loop, whoever runs it.

In:     `Job`: the run's settings, plain and picklable; `Host`: who runs this worker
Out:    in the run's folder, by worker 0: `checkpoints/`, `best.safetensors`, at the end `weights.safetensors`, and what
        the watchers write (trainers/watchers.py)
State:  `Progress`; a worker that is started anew goes on from the last good checkpoint, with the same samples and draws

`Alone` is the host of a process that trains by itself (`maskstream ablate`); `workers.py` has that of Ray Train.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor, nn

from models import NETWORKS
from models.precision import exact_float32
from operators.errors import CheckpointError
from operators.weights import read_weights, start_from
from trainers import bad_numbers
from trainers import checkpoint as checkpoints
from trainers.checkpoint import Progress
from trainers.export import export
from trainers.feeding import open_loader, read_index
from trainers.frame_loader import FrameLoader
from trainers.job import BEST_FILE, WEIGHTS_FILE, Job
from trainers.sole import sole_writer
from trainers.step import Average, Batch, Shared, learning_rate, make_optimizer, update
from trainers.watch import Step, Watcher, Worker
from trainers.watchers import watchers_of
from trainers.writing import say

AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


class Host(Protocol):
    """Who runs a worker: which of how many it is, and where."""

    rank: int
    world: int
    device: torch.device

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as the worker is to call it: in DDP where there are several."""
        ...


class Alone:
    """A process that trains by itself."""

    rank, world = 0, 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, network: nn.Module) -> nn.Module:
        return network


def train_alone(job: Job, device: torch.device) -> Path:
    """A whole run in this process, from its checkpoint where there is one; gives the file of weights."""
    run_worker(job, Alone(device))
    shutil.rmtree(job.out / checkpoints.FOLDER, ignore_errors=True)
    return job.out / WEIGHTS_FILE


def run_worker(job: Job, host: Host, watching: Callable[[Worker], list[Watcher]] = watchers_of) -> None:
    """One worker's whole life, from the last checkpoint, if there is one, to the last step.

    Raises CheckpointError, DatasetError; TrainingError where numbers go bad, or another process writes to the folder.
    """
    cfg = job.config
    _prepare_device(job, host.device)
    with ExitStack() as stack:
        if host.rank == 0:
            stack.enter_context(sole_writer(job.out))
        index = read_index(cfg.data)
        progress = _begin(job, host, len(index.identity))
        network = host.wrap(progress.network)
        worker = Worker(job, host.rank, host.world, host.device, progress, index)
        watchers = watching(worker)
        for watcher in watchers:
            stack.callback(watcher.close)
        loader = open_loader(
            cfg, index, job.network.config.input, first=progress.samples_done, batch=cfg.batch(host.world),
            rank=host.rank, world=host.world, device=host.device,
        )  # fmt: skip
        stack.callback(loader.close)
        _train(worker, network, loader, watchers)
        if host.rank == 0:
            export(job, progress, index, job.out / WEIGHTS_FILE)


def _prepare_device(job: Job, device: torch.device) -> None:
    exact_float32()
    if device.type == "cpu":
        torch.set_num_threads(job.config.workers.cpus_per_worker)
    elif job.config.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")     # cuBLAS reads it when it is first used
        torch.backends.cudnn.benchmark = False
        torch.utils.deterministic.fill_uninitialized_memory = False     # costs time, and nothing here reads such memory
        torch.use_deterministic_algorithms(True, warn_only=True)


def _begin(job: Job, host: Host, num_identities: int) -> Progress:
    """Network, optimiser and average as the last checkpoint had them; else fresh, or with the weights to start from."""
    cfg = job.config
    torch.manual_seed(cfg.seed)
    network = NETWORKS[job.network.name][0](job.network.config, num_identities=num_identities)
    if cfg.start_from is not None:
        start_from(network, read_weights(Path(cfg.start_from)).state, cfg.start_from)
    network.to(host.device)
    progress = Progress(network, make_optimizer(network, cfg.optimizer), None)
    if cfg.optimizer.average_decay is not None:
        progress.average = Average(network, cfg.optimizer.average_decay)
    if cfg.precision == "float16":
        progress.scaler = torch.amp.GradScaler(host.device.type)
    _restore(job, host, progress)
    return progress


def _restore(job: Job, host: Host, progress: Progress) -> None:
    """Raises CheckpointError where workers would go on from different steps: their folder is not one and the same."""
    folder = job.out / checkpoints.FOLDER
    torn = checkpoints.restore(folder, progress, job.fingerprint, put_aside=host.rank == 0)
    if host.rank == 0 and torn:
        say(job.out, f"{' '.join(torn)} Put aside; training goes on from step {progress.steps_done}.")
    steps = torch.tensor(float(progress.steps_done), device=host.device)
    if average_over_workers(steps).item() != progress.steps_done:
        raise CheckpointError(
            f"{folder}: worker {host.rank} finds the checkpoint of step {progress.steps_done}, others find another. "
            "Is the run's folder on storage that all machines share?"
        )


def _train(worker: Worker, network: nn.Module, loader: FrameLoader, watchers: list[Watcher]) -> None:
    job, progress = worker.job, worker.progress
    cfg, per_step = job.config, job.config.step_of(worker.world)
    losses_of = _Losses(worker, network)
    network.train()
    for step in range(progress.steps_done, worker.steps):
        began = time.perf_counter()
        batches, names = _take(loader, cfg.accumulate)
        waited = time.perf_counter() - began
        losses_of.agree(batches)
        # Draws inside the losses depend on the step alone: a resumed run repeats them.
        torch.manual_seed(cfg.seed * 1_000_003 + step)
        rate = learning_rate(progress.samples_done / cfg.samples_per_step, cfg.steps, cfg.optimizer)
        rate *= per_step / cfg.samples_per_step
        try:
            losses = update(
                losses_of, network, progress.optimizer, batches, rate, cfg.optimizer.clip_norm,
                scaler=progress.scaler, average=average_over_workers,
            )  # fmt: skip
        except FloatingPointError as error:
            raise bad_numbers.stop(job, worker.rank, step + 1, str(error), names) from error
        progress.steps_done, progress.samples_done = step + 1, progress.samples_done + per_step
        if progress.average is not None:
            progress.average.update(progress.network, step)
        took, samples = time.perf_counter() - began, sum(map(len, batches))
        for watcher in watchers:
            watcher.after_step(Step(step + 1, losses, rate, waited, took, samples, batches[-1]))
        at_end = step + 1 == worker.steps
        if (step + 1) % cfg.checkpoint_every == 0 or at_end or any([w.due(step + 1) for w in watchers]):
            _keep(worker, watchers)


def _take(loader: FrameLoader, count: int) -> tuple[list[Batch], list]:
    """So many batches, and the names of all their samples."""
    batches, names = [], []
    for _ in range(count):
        batches.append(next(loader))
        names += loader.names
    return batches, names


class _Losses:
    """The network as `update` calls it: in the precision that is set, its normalisers averaged over the workers and
    the batches of a step."""

    def __init__(self, worker: Worker, network: nn.Module) -> None:
        precision = worker.job.config.precision
        self._dtype = AUTOCAST.get(precision, torch.bfloat16)
        self._half, self._device = precision in AUTOCAST, worker.device.type
        self._network, self._bare = network, worker.progress.network
        self._shared = Shared(average_over_workers)
        self._told: list[Tensor] | None = None

    def agree(self, batches: list[Batch]) -> None:
        """Before a step: what its batches divide by."""
        if len(batches) > 1:
            with self._precision():
                self._told = self._shared.count(self._bare, batches)

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        if self._told is None:
            with self._precision():
                return self._network(batch, average_over_workers)
        told = iter(self._told)
        with self._precision():
            return self._network(batch, lambda value: next(told).to(value.dtype))

    def no_sync(self):
        """See `update`."""
        return self._network.no_sync() if hasattr(self._network, "no_sync") else nullcontext()

    def _precision(self) -> torch.autocast:
        return torch.autocast(self._device, self._dtype, enabled=self._half)


def average_over_workers(value: Tensor) -> Tensor:
    """The mean of a number over all workers; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def _keep(worker: Worker, watchers: list[Watcher]) -> None:
    """A checkpoint, and the best weights where a watcher's score is the highest so far. A disk that is full costs the
    checkpoint, not the run: what cannot be written is told, and the next one is tried."""
    job, progress = worker.job, worker.progress
    scores = _scores(worker, watchers)
    if worker.rank == 0:
        try:
            if scores and math.isfinite(scores[0]) and (progress.best is None or scores[0] > progress.best):
                export(job, progress, worker.index, job.out / BEST_FILE)
                progress.best = scores[0]
            checkpoints.save(job.out / checkpoints.FOLDER, progress, job.fingerprint, job.config.checkpoints_kept)
        except (OSError, SafetensorError) as error:
            last = checkpoints.last_step(job.out / checkpoints.FOLDER)
            say(job.out, f"After step {progress.steps_done} no checkpoint could be written: {error}. Training goes on; "
                         f"the last checkpoint is that of step {last}. Is the disk full?")  # fmt: skip
    for watcher in watchers:
        watcher.after_checkpoint(progress.steps_done)


def _scores(worker: Worker, watchers: list[Watcher]) -> list[float]:
    """Of the watchers that give one. A disk that is full costs the evaluation, not the run: that is told."""
    steps_done = worker.progress.steps_done
    try:
        return [score for w in watchers if (score := w.score(steps_done)) is not None]
    except (OSError, SafetensorError) as error:
        say(worker.job.out, f"After step {steps_done} nothing could be evaluated: {error}. Training goes on. "
                            f"Is the disk full?")  # fmt: skip
        return []
