"""What tells one run from another: a short hash of all settings that the course of a run depends on.

In:     a run's settings, its network's
Out:    16 hexadecimal digits, in the run's folder and in its checkpoints: a run is gone on with under no others
State:  none

How a run is spread over machines is not among them, nor where files lie: of the weights it starts from, the content
counts. A setting that comes to be added changes no run at the value that does what was done before; `LATER` holds that
value, and leaves it out, so that runs are gone on with that began before there was such a setting.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

from pipelines.networks import NetworkSpec, as_plain
from trainers.config import TrainConfig

FREE = (
    "network", "workers", "checkpoint_every", "checkpoints_kept", "log_every", "start_from", "evaluation",
    "deterministic",
)  # fmt: skip
FREE_OF_DATA = ("annotations", "image_root", "videos", "video_decoder", "threads", "made_by")
FREE_OF_STILLS = ("annotations", "image_root", "made_by")

RENAMED = {"samples_per_step": "pairs_per_step"}
"""Now -> at first."""
LATER: dict[str, Any] = {
    "accumulate": 1,
    "batch_for_workers": None,
    "data.kind": "pairs",
    "data.clip_frames": 5,
    "data.clip_sampling": "gaps",
    "data.flip_sync": False,
    "data.flip_axis": "horizontal",
    "data.scale": None,
    "data.scale.short_sides": [],
    "data.format": "youtube_vis",
    "data.video_numbers": "place",
    "data.pseudo": None,
    "data.photometric": None,
    "data.jitter": None,
    "data.boxes": "annotated",
    "data.masks": "nearest",
    "data.group_shapes": False,
    "data.direction": "either",
    "data.repeat": 1,
    "data.stills": [],
    "optimizer.decay_norms": False,
    "optimizer.decay_biases": True,
    "optimizer.parts": [],
}
LATER_OF_NETWORKS: dict[str, Any] = {
    "giou_added": 1.0,
    "max_mask_positives": 500,
    "fcos.tower_bias": True,
    "input.antialias": True,
    "input.fit": "short_side",
    "fuser_form": "plain",
}


def fingerprint(config: TrainConfig, network: NetworkSpec) -> str:
    """Of a run. Reads the file of weights that it starts from."""
    plain = as_plain(config)
    for name in FREE:
        plain.pop(name)
    for name in FREE_OF_DATA:
        plain["data"].pop(name)
    for stills, name in itertools.product(plain["data"]["stills"], FREE_OF_STILLS):
        stills.pop(name)
    for now, first in RENAMED.items():
        plain[first] = plain.pop(now)
    if config.start_from is not None:
        plain["start_from"] = hashlib.sha256(Path(config.start_from).read_bytes()).hexdigest()
    of_network = as_plain(network.config)
    text = json.dumps([_before(plain, LATER), network.name, _before(of_network, LATER_OF_NETWORKS)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _before(plain: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """`plain` without the settings that have the values of `later`; changed in place."""
    for key, value in later.items():
        *groups, name = key.split(".")
        inner: Any = plain
        for group in groups:
            inner = inner.get(group, {})
        if name in inner and inner[name] == value:
            inner.pop(name)
    return plain
