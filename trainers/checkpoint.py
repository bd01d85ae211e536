"""Save and resume: everything that the next step depends on, in one file, written whole or not at all.

In:     network, optimiser, average, scaler, and how far training has come
Out:    `checkpoints/step-00000400-<digest>.pt` in the run's folder, the last `keep` of them; read back with
        `weights_only=True`, so a file can hold tensors and numbers, never code
State:  the folder. A file's name holds the SHA-256 of its content (16 digits of it): one rename makes both count, and a
        file that is torn, cut or has one bit turned is recognised, put aside and not loaded; the one before it is
Limits: worker 0's memory holds one file while it is written

Ray Train could keep the files, but rewrites its list of them in place: a disk that is full at that moment empties the
list, and with it a night's work.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from torch import nn

from operators.errors import CheckpointError
from operators.replacing import replacing
from trainers.step import Average

FOLDER = "checkpoints"
_NAME = re.compile(r"step-(\d{8,})-([0-9a-f]{16})\.pt")
_KEYS = {"fingerprint", "steps_done", "samples_done", "network", "optimizer", "average", "scaler", "best"}


@dataclass
class Progress:
    """What training has come to."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: Average | None
    scaler: torch.amp.GradScaler | None = None
    """Of the loss, in float16."""
    steps_done: int = 0
    samples_done: int = 0
    """By all workers together: where the sampler goes on."""
    best: float | None = None
    """The highest score so far."""


def save(folder: Path, progress: Progress, fingerprint: str, keep: int = 2) -> Path:
    """Write a checkpoint into `folder`, then clear away all but the last `keep`; gives its path.

    `fingerprint` names the run's settings: a checkpoint resumes only what it came from. Raises OSError where the file
    cannot be written; then the folder is as it was.
    """
    content = _packed(progress, fingerprint)
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".step-*.part"):            # of a process that was killed while it wrote
        left.unlink()
    path = folder / f"step-{progress.steps_done:08d}-{_digest(content)}.pt"
    with replacing(path) as part, open(part, "wb", buffering=0) as file:
        view = memoryview(content)
        while view:                                     # a disk that fills up takes less than it is given at first
            view = view[file.write(view) :]
        os.fsync(file.fileno())                         # a machine that loses power must not keep the name alone
    for old in found(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def restore(folder: Path, progress: Progress, fingerprint: str, *, put_aside: bool = True) -> list[str]:
    """Put `progress` where the newest good checkpoint stood; where there is none in `folder`, leave it.

    Gives a sentence for each newer file that was torn; `put_aside` renames those, so that they are not counted among
    the last again. Raises CheckpointError where there are files, but none that is good, or one of another run.
    """
    torn: list[str] = []
    for path in found(folder):
        try:
            load(path, progress, fingerprint)
        except _TornError as error:
            torn.append(str(error))
            if put_aside and path.exists():
                os.replace(path, path.with_suffix(".torn"))
        else:
            return torn
    if torn:
        raise CheckpointError(f"{folder}: no checkpoint can be read. {' '.join(torn)} Begin anew by another --out.")
    return []


def load(path: Path, progress: Progress, fingerprint: str) -> None:
    """Put `progress` where this checkpoint stood. Raises CheckpointError for a damaged file, or one of another run."""
    state = _unpacked(path)
    if state["fingerprint"] != fingerprint:
        raise CheckpointError(f"{path}: of a run with other settings. Resume with the same, or use another --out.")
    progress.network.load_state_dict(state["network"])
    progress.optimizer.load_state_dict(state["optimizer"])
    if progress.average is not None:
        for name, value in state["average"].items():
            progress.average.state[name].copy_(value)       # on its own device
    if progress.scaler is not None:
        progress.scaler.load_state_dict(state["scaler"])
    progress.steps_done, progress.samples_done = state["steps_done"], state["samples_done"]
    progress.best = state["best"]


def found(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, newest first, good or not."""
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.fullmatch(path.name)), key=_step_of, reverse=True)


def last_step(folder: Path) -> int:
    """Steps done at the newest checkpoint; 0 without any."""
    return max(map(_step_of, found(folder)), default=0)


class _TornError(CheckpointError):
    """The file is not what was written."""


def _step_of(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None, path
    return int(match[1])


def _digest(content: bytes | memoryview) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _packed(progress: Progress, fingerprint: str) -> memoryview:
    """In memory first: torch leaves an ill-tempered writer behind when the file cannot be written to its end."""
    state = {
        "fingerprint": fingerprint,
        "steps_done": progress.steps_done,
        "samples_done": progress.samples_done,
        "network": progress.network.state_dict(),
        "optimizer": progress.optimizer.state_dict(),
        "average": None if progress.average is None else progress.average.state,
        "scaler": None if progress.scaler is None else progress.scaler.state_dict(),
        "best": progress.best,
    }
    content = io.BytesIO()
    torch.save(state, content)
    return content.getbuffer()


def _unpacked(path: Path) -> dict[str, Any]:
    """Raises CheckpointError; `_TornError` where another file may do."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _TornError(f"{path}: the checkpoint cannot be read: {error.strerror}.") from error
    match = _NAME.fullmatch(path.name)
    if match is None or _digest(content) != match[2]:
        raise _TornError(f"{path}: the checkpoint is torn: {len(content)} bytes that are not those that were written.")
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, UnpicklingError) as error:
        raise CheckpointError(f"{path}: the checkpoint cannot be read: {error}.") from error
    if not isinstance(state, dict) or not _KEYS <= state.keys():
        raise CheckpointError(f"{path}: not a checkpoint of `maskstream train`: expected {', '.join(sorted(_KEYS))}.")
    return state
