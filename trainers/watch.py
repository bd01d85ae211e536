"""Who looks on while a worker trains: the log, evaluation, pictures. The loop calls, watchers look.

In:     `Worker`, once: what there is to look at; `Step`, after every update
Out:    whatever a watcher writes; its score of the network, by which the best checkpoint is told
State:  a watcher's own. It is not in checkpoints: what must outlive a cut lies in the run's folder

Watchers stand in every worker, so that they may share work; the rank says which of them writes. They may use the
network but leave it as it was: weights, gradients and running statistics untouched, in training mode. What they draw
from torch's generator does not matter: the loop sets it before every step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from trainers.checkpoint import Progress
from trainers.frames import FrameIndex
from trainers.job import Job
from trainers.step import Batch


@dataclass(frozen=True)
class Worker:
    """One of the processes that train, as its watchers see it."""

    job: Job
    rank: int
    world: int
    device: torch.device
    progress: Progress
    """Network, optimiser and average; they change with every step."""
    index: FrameIndex
    """The dataset that is trained on."""

    @property
    def steps(self) -> int:
        """Steps of the whole run, those of earlier workers counted: fewer than `config.steps` where a step of so many
        workers takes more samples."""
        cfg = self.job.config
        left = cfg.steps * cfg.samples_per_step - self.progress.samples_done
        return self.progress.steps_done + max(0, -(-left // cfg.step_of(self.world)))


@dataclass(frozen=True)
class Step:
    """One update, just done."""

    number: int
    """Steps done, this one counted; from 1."""
    losses: dict[str, float]
    """The parts, of this worker's share, and their `total`."""
    learning_rate: float
    data_wait_s: float
    """Of `step_s`: waiting for the batch."""
    step_s: float
    samples: int
    """Of this worker."""
    batch: Batch
    """What this worker saw; of several batches a step, the last."""


class Watcher:
    """Looks on in one worker. Here nothing comes of it: a watcher overrides what it needs."""

    def after_step(self, step: Step) -> None:
        """After every update, in every worker."""

    def due(self, steps_done: int) -> bool:
        """Whether a checkpoint must follow this step, beside those of `checkpoint_every`. The same in all workers."""
        return False

    def score(self, steps_done: int) -> float | None:
        """How good the network is after this step, more is better; None: not measured now. Worker 0's counts."""
        return None

    def after_checkpoint(self, steps_done: int) -> None:
        """After a checkpoint was written, or could not be."""

    def close(self) -> None:
        """At the end of the worker, after an error too; harmless when repeated."""
