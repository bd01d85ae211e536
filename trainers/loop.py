"""What every training worker does: steps, curves, checkpoints. Ray Train calls it on N workers.

In:     `Job`: the run's settings, plain and picklable
Out:    in the run's folder, by worker 0: `metrics.jsonl` (a line every `log_every` steps), TensorBoard events;
        checkpoints through Ray; at the end `weights.safetensors`
State:  `Progress`; a worker that is started anew goes on from the last checkpoint, with the same samples and draws
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray.train
import torch
import torch.distributed as dist
from ray.train.torch import prepare_model
from tensorboardX import SummaryWriter
from torch import Tensor, nn

from models import NETWORKS
from operators.weights import save_weights
from operators.youtube_vis_data import read_dataset
from pipelines.networks import NetworkSpec, as_plain
from trainers import checkpoint as checkpoints
from trainers.checkpoint import Progress
from trainers.config import TrainConfig
from trainers.data import PairLoader
from trainers.pairs import FrameIndex, PairSampler
from trainers.step import Average, learning_rate, make_optimizer, train_step

METRICS_FILE = "metrics.jsonl"
WEIGHTS_FILE = "weights.safetensors"


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to know."""

    config: TrainConfig
    network: NetworkSpec
    out: Path
    fingerprint: str
    command: str


def train_worker(job: Job) -> None:
    """One worker's whole life, from the last checkpoint, if there is one, to the last step."""
    cfg, context = job.config, ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(cfg.workers.cpus_per_worker)
    torch.manual_seed(cfg.seed)
    index = FrameIndex(read_dataset(cfg.data.annotations, image_root=cfg.data.image_root))
    network = NETWORKS[job.network.name][0](job.network.config, num_identities=len(index.identity)).to(device)
    progress = Progress(network, make_optimizer(network, cfg.optimizer), None)
    if cfg.optimizer.average_decay is not None:
        progress.average = Average(network, cfg.optimizer.average_decay)
    if (saved := ray.train.get_checkpoint()) is not None:
        with saved.as_directory() as folder:
            checkpoints.load(Path(folder), progress, job.fingerprint)
    wrapped = prepare_model(network)        # in DDP where there are several workers
    loader = _open_loader(cfg, index, job, progress.steps_done, rank, world, device)
    try:
        with _open_log(job.out, rank) as log:
            _train(job, progress, wrapped, loader, log)
    finally:
        loader.close()
    if rank == 0:
        _export(job, progress, index)


def _open_loader(
    cfg: TrainConfig, index: FrameIndex, job: Job, steps_done: int, rank: int, world: int, device: torch.device
) -> PairLoader:
    batch = cfg.pairs_per_step // world
    sampler = PairSampler(
        index, max_interval=cfg.data.max_interval, flip=cfg.data.flip, seed=cfg.seed, rank=rank, world_size=world
    )
    draws = sampler.draws(steps_done * batch)
    return PairLoader(draws, index, job.network.config.input, batch=batch, device=device, threads=cfg.data.threads)


def _train(job: Job, progress: Progress, network: nn.Module, loader: PairLoader, log: Log | None) -> None:
    cfg = job.config
    device_type = next(network.parameters()).device.type
    network.train()
    for step in range(progress.steps_done, cfg.steps):
        began = time.perf_counter()
        batch = next(loader)
        waited = time.perf_counter() - began
        # Draws inside the losses depend on the step alone: a resumed run repeats them.
        torch.manual_seed(cfg.seed * 1_000_003 + step)
        rate = learning_rate(step, cfg.steps, cfg.optimizer)

        def losses_of(pairs, network=network):
            with torch.autocast(device_type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
                return network(pairs, _average_over_workers)

        losses = train_step(losses_of, network, progress.optimizer, batch, rate, cfg.optimizer.clip_norm)
        progress.steps_done = step + 1
        if progress.average is not None:
            progress.average.update(progress.network, step)
        if log is not None:
            log.add(step + 1, losses, rate, waited, time.perf_counter() - began, len(batch))
            if (step + 1) % cfg.log_every == 0 or step + 1 == cfg.steps:
                log.flush()
        if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:
            _report(job, progress, losses)


def _average_over_workers(value: Tensor) -> Tensor:
    """The mean of a number over all workers; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


def _report(job: Job, progress: Progress, losses: dict[str, float]) -> None:
    """Hand a checkpoint to Ray: a barrier for all workers, with the files of worker 0."""
    metrics = {"step": progress.steps_done, **losses}
    if ray.train.get_context().get_world_rank() != 0:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save(Path(folder), progress, job.fingerprint)
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _export(job: Job, progress: Progress, index: FrameIndex) -> None:
    """The weights for use: the average where there is one, without the proxies that only training needs."""
    state = progress.network.state_dict() if progress.average is None else progress.average.state
    state = {name: value for name, value in state.items() if not name.startswith("proxies.")}
    classes = tuple(category.name for category in index.dataset.categories)
    save_weights(
        job.out / WEIGHTS_FILE, state, job.network.name, as_plain(job.network.config), classes,
        command=job.command, steps=str(progress.steps_done), seed=str(job.config.seed),
        dataset=job.config.data.made_by or Path(job.config.data.annotations).name,
    )


class Log:
    """Means over the steps since the last line, to `metrics.jsonl` and to TensorBoard events."""

    def __init__(self, out: Path) -> None:
        path = out / METRICS_FILE
        torn = path.exists() and path.stat().st_size > 0 and not path.read_bytes().endswith(b"\n")
        self._file = path.open("a", encoding="utf-8")
        if torn:                            # a run that was cut while it wrote: its half line must not swallow the next
            self._file.write("\n")
        self._events = SummaryWriter(str(out / "tensorboard"))
        self._rows: list[dict[str, float]] = []
        self._step = 0

    def add(self, step: int, losses: dict[str, float], rate: float, waited: float, took: float, pairs: int) -> None:
        self._step = step
        self._rows.append({**losses, "learning_rate": rate, "data_wait_s": waited, "step_s": took, "pairs": pairs})

    def flush(self) -> None:
        if not self._rows:
            return
        means = {key: sum(row[key] for row in self._rows) / len(self._rows) for key in self._rows[0]}
        line = {"step": self._step, **{key: round(value, 6) for key, value in means.items()}}
        line["pairs_per_s"] = round(means.pop("pairs") / means["step_s"], 3)
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        for key, value in means.items():
            self._events.add_scalar(key, value, self._step)
        self._events.flush()
        self._rows.clear()

    def close(self) -> None:
        self._file.close()
        self._events.close()


@contextmanager
def _open_log(out: Path, rank: int) -> Iterator[Log | None]:
    """Worker 0's log; None for the others."""
    if rank != 0:
        yield None
        return
    log = Log(out)
    try:
        yield log
    finally:
        log.close()
