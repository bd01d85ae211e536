"""Weights on disk: safetensors, with the network's settings and class names in the metadata.

In:     a state dict, or a file
Out:    a file, or `Checkpoint`
Limits: files above 16 GiB are refused; nothing in a file is executed

Metadata of a file of ours: `maskstream` (format version), `network` (name in NETWORKS), `config` (JSON of its
settings), `classes` (JSON list of names), and whatever says where it comes from (dataset seed, command, step).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from models.importers.cico import grown
from operators.errors import CheckpointError
from operators.replacing import replacing

FORMAT = "1"
MAX_BYTES = 16 << 30


@dataclass(frozen=True)
class Checkpoint:
    """What a file of weights holds."""

    state: dict[str, Tensor]
    network: str
    config: dict
    classes: tuple[str, ...]
    metadata: dict[str, str]


def save_weights(path: Path, state: dict[str, Tensor], network: str, config: dict, classes: tuple[str, ...],
                 **origin: str) -> None:
    """Write atomically: the file is whole or not there. `origin` says where the weights come from."""
    metadata = {"maskstream": FORMAT, "network": network, "config": json.dumps(config, sort_keys=True),
                "classes": json.dumps(list(classes)), **origin}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        save_file({name: value.detach().cpu().contiguous() for name, value in state.items()}, part, metadata=metadata)


def read_weights(path: Path) -> Checkpoint:
    """Raises CheckpointError for a file that is missing, damaged, or not one of ours."""
    check_is_file(path)
    if path.stat().st_size > MAX_BYTES:
        raise CheckpointError(f"{path}: {path.stat().st_size} bytes, more than {MAX_BYTES} are refused.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file: {error}.") from error
    if metadata.get("maskstream") != FORMAT:
        raise CheckpointError(
            f"{path}: a safetensors file without Maskstream's metadata (format {metadata.get('maskstream')!r}, "
            f"expected {FORMAT!r}). Were these weights made by `maskstream train`?"
        )
    try:
        config, classes, network = json.loads(metadata["config"]), json.loads(metadata["classes"]), metadata["network"]
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its metadata is damaged: {error}.") from error
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise CheckpointError(f"{path}: its metadata is damaged: classes must be a list of names.")
    return Checkpoint(state, network, config, tuple(classes), metadata)


def check_is_file(path: Path) -> None:
    """Raises CheckpointError where there is none; of the folder of a training run it names the file in it."""
    if path.is_dir():
        inside = path / "weights.safetensors"
        hint = f"Did you mean {inside}?" if inside.is_file() else f"It has no {inside.name}, as training leaves it."
        raise CheckpointError(f"{path}: is a folder, but a file of weights is expected. {hint}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file of weights.")


def load_into(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy `state` into `network`, which must have exactly these tensors. `proxies.*` serve training alone and may be
    absent from the network.

    Raises CheckpointError that counts and names what is missing, unknown or of another shape.
    """
    own = network.state_dict()
    given = {name: value for name, value in state.items() if name in own or not name.startswith("proxies.")}
    faults = [f"{n} is missing" for n in own if n not in given]
    faults += [f"{n} is unknown" for n in given if n not in own]
    faults += [
        f"{n} is {tuple(given[n].shape)}, expected {tuple(own[n].shape)}"
        for n in own
        if n in given and given[n].shape != own[n].shape
    ]
    if faults:
        shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise CheckpointError(f"{source}: the weights of another network: {shown}.")
    network.load_state_dict(given)


FRESH = (
    "embedding.", "proxies.", "calibration.", "track_head.", "association.", "identity_head.", "fuser.", "encoder.",
    "graph.", "clip_heads.track_tower.", "clip_heads.embeddings.",
)  # fmt: skip
"""Parts that training may begin without: what stills do not teach, and the proxies, which mean one dataset's
identities."""
RESHAPED = (
    "fcos.class_logits.", "box_head.class_logits.", "box_head.deltas.", "mask_head.logits.",
    "identity_head.logits.", "association.bank.conv.weight", "fpn.lateral.", "clip_heads.class_logits.",
)  # fmt: skip
"""Parts that may be there in another shape: of another number of classes, or of identities; and where a pyramid takes
up a map of another width (IAI without its classification projector)."""


def start_from(network: nn.Module, state: dict[str, Tensor], source: str) -> list[str]:
    """Begin training with `state`; returns the names that stay fresh (CrossVIS specification 6.3, rule 3; IAI 3.4).

    Fresh are the proxies always, the other parts of FRESH where `state` has none, those of RESHAPED in another shape.
    Weights of stills grow into those of clips (CiCo 6.3). What `state` has beyond the network is left out. Raises
    CheckpointError when anything else is missing or does not fit.
    """
    own = network.state_dict()
    given = grown({n: t for n, t in state.items() if n in own and not n.startswith("proxies.")}, own)
    other = [n for n in given if n.startswith(RESHAPED) and given[n].shape != own[n].shape]
    given = {n: t for n, t in given.items() if n not in other}
    fresh = [n for n in own if n not in given]
    faults = [f"{n} is missing" for n in fresh if not n.startswith(FRESH) and n not in other]
    faults += [
        f"{n} is {tuple(t.shape)}, expected {tuple(own[n].shape)}" for n, t in given.items() if t.shape != own[n].shape
    ]
    if faults:
        shown = "; ".join(faults[:3]) + (f"; and {len(faults) - 3} more" if len(faults) > 3 else "")
        raise CheckpointError(f"{source}: cannot begin this network's training: {shown}.")
    network.load_state_dict(given, strict=False)
    return fresh
