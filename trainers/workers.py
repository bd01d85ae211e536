"""A training worker of Ray Train: one of N processes, on whichever machines.

In:     `Job`, plain and picklable
Out:    what `run_worker` writes
State:  the run's folder: a worker that is started anew goes on from the last good checkpoint there
"""

from __future__ import annotations

import ray.train
import torch
from ray.train.torch import prepare_model
from torch import nn

from trainers.job import Job
from trainers.loop import run_worker


def train_worker(job: Job) -> None:
    """What Ray Train calls in every worker."""
    run_worker(job, RayTrainHost())


class RayTrainHost:
    """This process as Ray Train has set it up."""

    def __init__(self) -> None:
        context = ray.train.get_context()
        self.rank, self.world = context.get_world_rank(), context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()

    def wrap(self, network: nn.Module) -> nn.Module:
        return prepare_model(network)       # in DDP where there are several workers
