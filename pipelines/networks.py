"""A file of configs/networks -> a network with its weights, ready on its device.

In:     YAML: `network` (a name in NETWORKS), `weights` (a safetensors file, or none for training), `model`, `detect`,
        `inference`, and `association`, the rule that its embeddings are trained for, `identities`, `boxes` or `edges`;
        of the last the weights, `edges`
Out:    `NetworkSpec`, checked before any work; `load_network`, once per process and device
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models import NETWORKS
from models.fused import InferenceConfig, inference_form
from models.precision import exact_float32
from operators.detectors import DETECTORS
from operators.errors import CheckpointError, ConfigError, did_you_mean
from operators.matching import Association
from operators.object_graph import ObjectGraphConfig
from operators.weights import Checkpoint, load_into, read_weights
from pipelines.config import apply_overrides, build, resolve
from pipelines.file_kinds import load_settings

RELATED: tuple[Association, ...] = ("edges", "boxes")
"""Tracks that the stage `relate` gives."""


@dataclass(frozen=True, kw_only=True)
class _NetworkFile:
    network: str
    weights: str | None = None
    model: dict[str, Any] = field(default_factory=dict)
    detect: dict[str, Any] = field(default_factory=dict)
    association: Association = "cosine_iou"
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    edges: ObjectGraphConfig | None = None


@dataclass(frozen=True)
class NetworkSpec:
    """Which network, how large, with which weights. Small and picklable: it travels to where the network is built."""

    name: str
    config: Any
    """The settings class that NETWORKS names."""
    detect: Any
    """The settings class that DETECTORS names."""
    weights: Path | None
    where: str
    """The file, for messages."""
    association: Association = "cosine_iou"
    """How its detections find their tracks where `associate.rule` is `network`: the rule it was trained for."""
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    edges: ObjectGraphConfig = field(default_factory=ObjectGraphConfig)
    """What counts how much where `association` is `edges`."""

    @property
    def fuses(self) -> bool:
        """Its heads want the raw pyramid of the frame before."""
        return getattr(self.config, "fuser", "none") != "none"


def read_network(path: str | Path, overrides: tuple[str, ...] = ()) -> NetworkSpec:
    """Raises ConfigError naming file and key."""
    where = resolve(path)
    file = build(_NetworkFile, apply_overrides(load_settings(where, "network"), overrides, str(where)), str(where))
    if file.network not in NETWORKS:
        raise ConfigError(f"{where}, network: no network '{file.network}'.{did_you_mean(file.network, NETWORKS)}")
    _, settings = NETWORKS[file.network]
    config = build(settings, file.model, str(where), "model")
    detect = build(DETECTORS[file.network].settings, file.detect, str(where), "detect")
    weights = resolve(file.weights) if file.weights else None
    if not DETECTORS[file.network].relates:
        able = " and ".join(name for name, kind in DETECTORS.items() if kind.relates)
        if file.association in RELATED:
            raise ConfigError(f"{where}, association: '{file.association}' is for {able}, not for '{file.network}'.")
        if file.edges is not None:
            raise ConfigError(f"{where}, edges: these weights are for {able}, not for '{file.network}'.")
    edges = file.edges or ObjectGraphConfig()
    return NetworkSpec(file.network, config, detect, weights, str(where), file.association, file.inference, edges)


def default_graph(spec: NetworkSpec) -> str:
    """The file of configs/graphs that this network runs on where no other is named."""
    if DETECTORS[spec.name].remembers:
        return "configs/graphs/offline_iai.yaml"
    if DETECTORS[spec.name].clips:
        return "configs/graphs/offline_cico.yaml"
    if spec.association in RELATED:
        return "configs/graphs/offline_tltm.yaml" if spec.fuses else "configs/graphs/offline_centermask.yaml"
    return "configs/graphs/offline.yaml"


def read_checkpoint(spec: NetworkSpec) -> Checkpoint:
    """The weights that `spec` names, checked to be of this network and these settings.

    Raises CheckpointError: none named, unreadable, of another network, or with parts that were never trained.
    """
    if spec.weights is None:
        raise CheckpointError(f"{spec.where}: names no weights. Train some by `maskstream train`, or import those of a "
                              f"release by `maskstream weights import`; then name them by `weights:` there, or by "
                              f"--set network.weights=FILE.")  # fmt: skip
    checkpoint = read_weights(spec.weights)
    if checkpoint.network != spec.name:
        raise CheckpointError(f"{spec.weights}: weights of '{checkpoint.network}', but {spec.where} is '{spec.name}'.")
    if checkpoint.metadata.get("fresh"):
        raise CheckpointError(
            f"{spec.weights}: weights for training alone: {_first_three(checkpoint.metadata['fresh'])} are not trained "
            f"yet. Begin training with them (start_from), and set `weights:` in {spec.where} to what comes of it."
        )
    try:        # settings that came after these weights have their defaults in them
        saved = build(type(spec.config), checkpoint.config, str(spec.weights), "config")
    except ConfigError as error:
        raise CheckpointError(f"{spec.weights}: settings that this version does not know: {error}") from error
    differences = list(_differences(as_plain(saved), as_plain(spec.config)))
    if differences:
        shown = "; ".join(differences[:3])
        raise CheckpointError(f"{spec.weights}: weights of another network than {spec.where}: {shown}.")
    return checkpoint


@functools.lru_cache(maxsize=4)
def load_network(spec: NetworkSpec, device: torch.device) -> nn.Module:
    """The network in evaluation mode, as its `inference` asks. Stages of one process that name the same network share
    it. Raises CheckpointError; ConfigError where the device cannot run it in the form asked for."""
    checkpoint = read_checkpoint(spec)
    exact_float32()
    network = NETWORKS[spec.name][0](spec.config)
    load_into(network, checkpoint.state, str(spec.weights))
    try:
        return inference_form(network.to(device), spec.inference)
    except ValueError as error:
        raise ConfigError(f"{spec.where}, inference: {error}") from error


def trainable_network(spec: NetworkSpec) -> nn.Module:
    """The network as the file has it, proxies of its training identities included, in training mode on the CPU: for
    its losses. Raises CheckpointError."""
    checkpoint = read_checkpoint(spec)
    proxies = checkpoint.state.get("proxies.proxies.weight")
    network = NETWORKS[spec.name][0](spec.config, None if proxies is None else len(proxies))
    load_into(network, checkpoint.state, str(spec.weights))
    return network


def _first_three(fresh: str) -> str:
    """Of the names that an import left in the metadata, a JSON list."""
    try:
        names = [str(name) for name in json.loads(fresh)]
    except (ValueError, TypeError):
        return "parts that its metadata does not name readably"
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def as_plain(config: Any) -> Any:
    """Settings as JSON would give them back: what weights carry in their metadata."""
    if is_dataclass(config):
        return {f.name: as_plain(getattr(config, f.name)) for f in fields(config)}
    if isinstance(config, (tuple, list)):
        return [as_plain(value) for value in config]
    return config


def _differences(saved: Any, wanted: Any, key: str = "model") -> Any:
    """Settings that differ, in words: only those that change what the weights mean."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        for name in sorted(saved.keys() | wanted.keys()):
            if name not in _TRAINING_ONLY:
                yield from _differences(saved.get(name), wanted.get(name), f"{key}.{name}")
    elif saved != wanted:
        yield f"{key} is {saved} there, {wanted} here"


_TRAINING_ONLY = {"gradient_gate", "frozen_stages", "center_sampling", "dice_epsilon", "crossover",
                  "crossover_reduction", "crossover_place", "identity",
                  "sampling", "max_per_level", "max_iou", "max_proposals", "giou_added", "max_mask_positives",
                  "id_loss", "fix_pad", "drop_path", "interval", "pad_memory",
                  "regions", "proposals", "train_reference", "crop_train", "match", "average_boxes"}
