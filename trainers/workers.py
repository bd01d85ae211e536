"""A training worker of Ray Train: one of N processes, on whichever machines.

In:     `Job`, plain and picklable
Out:    what `run_worker` writes; checkpoints and metrics through Ray
State:  Ray's: a worker that is started anew gets the last checkpoint
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import ray.train
import torch
from ray.train.torch import prepare_model
from torch import nn

from trainers import checkpoint as checkpoints
from trainers.checkpoint import Progress
from trainers.loop import Job, run_worker


def train_worker(job: Job) -> None:
    """What Ray Train calls in every worker."""
    run_worker(job, RayTrainHost(job))


class RayTrainHost:
    """This process as Ray Train has set it up."""

    def __init__(self, job: Job) -> None:
        context = ray.train.get_context()
        self.job = job
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def restore(self, progress: Progress) -> None:
        if (saved := ray.train.get_checkpoint()) is not None:
            with saved.as_directory() as folder:
                checkpoints.load(Path(folder), progress, self.job.fingerprint)

    def wrap(self, network: nn.Module) -> nn.Module:
        return prepare_model(network)       # in DDP where there are several workers

    def keep(self, progress: Progress, losses: dict[str, float]) -> None:
        """Hand a checkpoint to Ray: a barrier for all workers, with the files of worker 0."""
        metrics = {"step": progress.steps_done, **losses}
        if self.rank != 0:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoints.save(Path(folder), progress, self.job.fingerprint)
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))
