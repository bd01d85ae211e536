"""A loss or a gradient that is no number: the run stops, and says on what.

In:     the step, what was found, the names of this worker's samples
Out:    `not_finite.json` in the run's folder, by worker 0: the samples of all workers; the error to raise in each
State:  none; the last checkpoint is from before
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch.distributed as dist

from operators.replacing import replacing
from trainers.job import Job, TrainingError
from trainers.prepared import SampleName

BAD_NUMBERS_FILE = "not_finite.json"
NAMES_TOLD = 8
"""Samples named in the error itself."""


def stop(job: Job, rank: int, step: int, what: str, names: Sequence[SampleName]) -> TrainingError:
    """Every worker calls it at the same step; gives the error that is to be raised."""
    path = job.out / BAD_NUMBERS_FILE
    mine = {"worker": rank, "what": what, "samples": [asdict(name) for name in names]}
    everyone = _gathered(mine)
    if rank == 0:
        with replacing(path) as part:
            part.write_text(json.dumps({"step": step, "workers": everyone}, indent=1) + "\n", encoding="utf-8")
    told = [f"{s['video']}, frames {', '.join(map(str, s['frames']))}" for one in everyone for s in one["samples"]]
    more = f"; and {len(told) - NAMES_TOLD} more" if len(told) > NAMES_TOLD else ""
    return TrainingError(
        f"step {step}: {what}. Seen in this step were the videos {'; '.join(told[:NAMES_TOLD])}{more} ({path}). "
        "Look at these, or lower optimizer.learning_rate or set optimizer.clip_norm, and begin anew."
    )


def _gathered(mine: dict[str, Any]) -> list[dict[str, Any]]:
    """What each worker has, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, mine)
    return everyone
