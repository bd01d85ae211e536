"""The weights of a run for use: what `maskstream run` and the evaluation during training read.

In:     `Job`, its `Progress`, the names of the classes
Out:    a file of safetensors: the moving average where there is one, without what only training needs
State:  none
"""

from __future__ import annotations

from pathlib import Path

from operators.weights import save_weights
from pipelines.networks import as_plain
from trainers.checkpoint import Progress
from trainers.frames import FrameIndex
from trainers.job import Job

ONLY_TRAINING = "proxies."
"""Prefix of the tensors that only losses read."""


def export(job: Job, progress: Progress, index: FrameIndex, path: Path) -> Path:
    """Write the weights as they stand after `progress.steps_done` steps, whole or not at all; gives `path`."""
    state = progress.network.state_dict() if progress.average is None else progress.average.state
    state = {name: value for name, value in state.items() if not name.startswith(ONLY_TRAINING)}
    classes = tuple(category.name for category in index.dataset.categories)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(
        path, state, job.network.name, as_plain(job.network.config), classes,
        command=job.command, steps=str(progress.steps_done), seed=str(job.config.seed),
        dataset=job.config.data.made_by or Path(job.config.data.annotations).name,
    )  # fmt: skip
    return path
