"""What a training run is, and the files it leaves.

In:     a file of configs/training, read and checked (trainers/train.py)
Out:    `Job`: plain and picklable, so that it reaches workers on other machines
State:  none
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from operators.errors import MaskstreamError
from pipelines.networks import NetworkSpec
from trainers.config import TrainConfig

METRICS_FILE = "metrics.jsonl"
"""A line every `log_every` steps."""
LAST_STEPS_FILE = "last_steps.jsonl"
"""Of a run that ended early: a line for each step after the last of METRICS_FILE. Numbers go bad within a few steps."""
WEIGHTS_FILE = "weights.safetensors"
"""What the last step gave."""
BEST_FILE = "best.safetensors"
"""What the step gave that scored highest; absent where nothing was scored."""


@dataclass(frozen=True)
class Job:
    """Everything a worker needs to know."""

    config: TrainConfig
    network: NetworkSpec
    out: Path
    """Of the run; every worker's machine sees it under this path."""
    fingerprint: str
    command: str


class TrainingError(MaskstreamError):
    """A run cannot go on. Says what the last failure was, and how to go on."""
