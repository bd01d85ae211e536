"""Files of TLTM and CenterMask, small, with weights that find something everywhere."""

from __future__ import annotations

from pathlib import Path

import yaml

from models import NETWORKS
from operators.weights import save_weights
from pipelines.networks import NetworkSpec, as_plain, read_network
from tests.models.small import shake
from tests.operators.small_objects import finding

CLASSES = tuple("abc")
BASE = {
    "num_classes": 3, "input": {"short_side": 64, "long_side": 96}, "channels": 8, "mask_convs": 1,
    "backbone": {"blocks": [1, 1, 1, 1], "stem_channels": 6, "mid_channels": 4, "norm": "batch", "frozen_stages": 0},
    "fcos": {"tower_convs": 1, "groups": 2, "size_bounds": [16, 32, 64, 128], "center_sampling": "box"},
}  # fmt: skip
MODEL = {**BASE, "object_dim": 16, "graph_hidden": 8}
DETECT = {"min_class": 0.5, "max_iou": 0.5, "max_per_frame": 12}


def spec_of(folder: Path, network: str = "tltm", **settings) -> NetworkSpec:
    file = {"network": network, "association": "edges", "model": MODEL, "detect": DETECT}
    if network == "centermask":
        file |= {"association": "boxes", "model": BASE}
    path = folder / f"{network}.yaml"
    path.write_text(yaml.safe_dump(file | settings))
    return read_network(path)


def with_weights(folder: Path, network: str = "tltm", **settings) -> NetworkSpec:
    """A network that finds something everywhere."""
    spec = spec_of(folder, network, weights=str(folder / f"{network}.safetensors"), **settings)
    made = NETWORKS[spec.name][0](spec.config)
    shake(made, 0)
    save_weights(spec.weights, finding(made).state_dict(), spec.name, as_plain(spec.config), CLASSES)
    return spec
