"""What every training worker does: steps, curves, checkpoints. One loop, whoever runs it.

In:     `Job`: the run's settings, plain and picklable; `Host`: who runs this worker, and keeps its checkpoints
Out:    in the run's folder, by worker 0: `metrics.jsonl` (a line every `log_every` steps), TensorBoard events;
        checkpoints through the host; at the end `weights.safetensors`
State:  `Progress`; a worker that is started anew goes on from the last checkpoint, with the same samples and draws

`Alone` is the host of a process that trains by itself (`maskstream ablate`); `workers.py` has that of Ray Train.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
import torch.distributed as dist
from tensorboardX import SummaryWriter
from torch import Tensor, nn

from models import NETWORKS
from models.precision import exact_float32
from operators.weights import read_weights, save_weights, start_from
from operators.youtube_vis_data import read_dataset
from pipelines.networks import NetworkSpec, as_plain
from trainers import checkpoint as checkpoints
from trainers.checkpoint import Progress
from trainers.clips import ClipSampler
from trainers.config import DataConfig, TrainConfig
from trainers.data import ClipLoader, FrameLoader, PairLoader
from trainers.frames import FrameIndex, has_area, has_box
from trainers.pairs import PairSampler
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


class Host(Protocol):
    """Who runs a worker: which of how many it is, and what becomes of its checkpoints."""

    rank: int
    world: int
    device: torch.device

    def restore(self, progress: Progress) -> None:
        """Put `progress` where the last checkpoint stood; nothing where there is none."""
        ...

    def wrap(self, network: nn.Module) -> nn.Module:
        """The network as the worker is to call it: in DDP where there are several."""
        ...

    def keep(self, progress: Progress, losses: dict[str, float]) -> None:
        """Make `progress` the last checkpoint. Every worker calls it at the same steps."""
        ...


class Alone:
    """A process that trains by itself: its checkpoint is `state.pt` in the run's folder, until there are weights."""

    rank, world = 0, 1

    def __init__(self, job: Job, device: torch.device) -> None:
        self.job, self.device = job, device

    def restore(self, progress: Progress) -> None:
        if (self.job.out / checkpoints.STATE_FILE).exists():
            checkpoints.load(self.job.out, progress, self.job.fingerprint)

    def wrap(self, network: nn.Module) -> nn.Module:
        return network

    def keep(self, progress: Progress, losses: dict[str, float]) -> None:
        checkpoints.save(self.job.out, progress, self.job.fingerprint)


def train_alone(job: Job, device: torch.device) -> Path:
    """A whole run in this process, from its checkpoint where there is one; gives the file of weights."""
    run_worker(job, Alone(job, device))
    (job.out / checkpoints.STATE_FILE).unlink(missing_ok=True)
    return job.out / WEIGHTS_FILE


def run_worker(job: Job, host: Host) -> None:
    """One worker's whole life, from the last checkpoint, if there is one, to the last step."""
    cfg = job.config
    exact_float32()
    if host.device.type == "cpu":
        torch.set_num_threads(cfg.workers.cpus_per_worker)
    index = read_index(cfg.data)
    progress = _begin(job, host, len(index.identity))
    wrapped = host.wrap(progress.network)
    loader = _open_loader(job, index, progress.steps_done, host)
    try:
        with _open_log(job.out, host.rank) as log:
            _train(job, host, progress, wrapped, loader, log)
    finally:
        loader.close()
    if host.rank == 0:
        _export(job, progress, index)


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
    host.restore(progress)
    return progress


def read_index(data: DataConfig) -> FrameIndex:
    """The dataset's frames, by the rule of the kind of samples drawn from them. Raises DatasetError."""
    usable = has_box if data.kind == "pairs" else has_area
    return FrameIndex(read_dataset(data.annotations, image_root=data.image_root), usable)


def _open_loader(job: Job, index: FrameIndex, steps_done: int, host: Host) -> FrameLoader:
    cfg, data, batch = job.config, job.config.data, job.config.samples_per_step // host.world
    share = {"flip": data.flip, "seed": cfg.seed, "rank": host.rank, "world_size": host.world}
    fed = {"batch": batch, "device": host.device, "threads": data.threads}
    first = steps_done * batch
    if data.kind == "pairs":
        pairs = PairSampler(index, max_interval=data.max_interval, **share)
        return PairLoader(pairs.draws(first), index, job.network.config.input, **fed)
    clips = ClipSampler(index, frames=data.clip_frames, flip_sync=data.flip_sync, scale=data.scale, **share)
    return ClipLoader(clips.draws(first), index, job.network.config.input, frames=data.clip_frames, **fed)


def _train(
    job: Job, host: Host, progress: Progress, network: nn.Module, loader: FrameLoader, log: Log | None
) -> None:
    cfg, device_type = job.config, host.device.type
    network.train()
    for step in range(progress.steps_done, cfg.steps):
        began = time.perf_counter()
        batch = next(loader)
        waited = time.perf_counter() - began
        # Draws inside the losses depend on the step alone: a resumed run repeats them.
        torch.manual_seed(cfg.seed * 1_000_003 + step)
        rate = learning_rate(step, cfg.steps, cfg.optimizer)

        def losses_of(batch, network=network):
            with torch.autocast(device_type, torch.bfloat16, enabled=cfg.precision == "bfloat16"):
                return network(batch, _average_over_workers)

        losses = train_step(losses_of, network, progress.optimizer, batch, rate, cfg.optimizer.clip_norm)
        progress.steps_done = step + 1
        if progress.average is not None:
            progress.average.update(progress.network, step)
        if log is not None:
            log.add(step + 1, losses, rate, waited, time.perf_counter() - began, len(batch))
            if (step + 1) % cfg.log_every == 0 or step + 1 == cfg.steps:
                log.flush()
        if (step + 1) % cfg.checkpoint_every == 0 or step + 1 == cfg.steps:
            host.keep(progress, losses)


def _average_over_workers(value: Tensor) -> Tensor:
    """The mean of a number over all workers; itself where there is one."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return value
    value = value.detach().clone()
    dist.all_reduce(value)
    return value / dist.get_world_size()


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

    def add(self, step: int, losses: dict[str, float], rate: float, waited: float, took: float, samples: int) -> None:
        self._step = step
        self._rows.append({**losses, "learning_rate": rate, "data_wait_s": waited, "step_s": took, "samples": samples})

    def flush(self) -> None:
        if not self._rows:
            return
        means = {key: sum(row[key] for row in self._rows) / len(self._rows) for key in self._rows[0]}
        line = {"step": self._step, **{key: round(value, 6) for key, value in means.items()}}
        line["samples_per_s"] = round(means.pop("samples") / means["step_s"], 3)
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
