"""Save and resume: everything that the next step depends on, in one file, written whole or not at all.

In:     network, optimiser, average, and the number of steps done
Out:    `state.pt` in a folder; read back with `weights_only=True`, so a file can hold tensors and numbers, never code
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError

import torch
from torch import nn

from operators.errors import CheckpointError
from trainers.step import Average

STATE_FILE = "state.pt"
_KEYS = {"fingerprint", "steps_done", "network", "optimizer", "average"}


@dataclass
class Progress:
    """What training has come to; the sampler's position follows from the steps."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    steps_done: int = 0


def save(folder: Path, progress: Progress, fingerprint: str) -> None:
    """`fingerprint` names the run's settings: a checkpoint resumes only what it came from."""
    state = {
        "fingerprint": fingerprint,
        "steps_done": progress.steps_done,
        "network": progress.network.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        "average": None if progress.average is None else progress.average.state,
    }
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / (STATE_FILE + ".partial")
    torch.save(state, partial)
    os.replace(partial, folder / STATE_FILE)


def load(folder: Path, progress: Progress, fingerprint: str) -> None:
    """Put `progress` where the checkpoint stood. Raises CheckpointError for a damaged one, or one of another run."""
    path = folder / STATE_FILE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}.") from error
    if not isinstance(state, dict) or not _KEYS <= state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of `maskstream train`: expected {', '.join(sorted(_KEYS))}.")
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(f"{path}: of a run with other settings. Resume with the same, or use another --out.")
    progress.network.load_state_dict(state["network"])
    progress.optimizer.load_state_dict(state["optimizer"])
    if progress.average is not None:
        for name, value in state["average"].items():
            progress.average.state[name].copy_(value)       # on its own device
    progress.steps_done = state["steps_done"]
