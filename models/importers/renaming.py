"""Names of a release -> names of a network here: what all importers share.

In:     tensors by the release's names, and its rules
Out:    `Renamed`: the same tensors by our names, where each came from, and what was left over, with the reason
State:  none; no tensor is changed or copied
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

Rules = Sequence[tuple[str, str]]
"""(pattern of the whole name, our name with \\1 for its groups); the first that matches counts."""

AFFINE = r"(weight|bias)"
"""The tensors of a layer, as a group of a rule."""
NORM = r"(weight|bias|running_mean|running_var|num_batches_tracked)"
"""The tensors of a batch norm, as a group of a rule."""
UNKNOWN = "no part of this release as the specification has it"


@dataclass(frozen=True)
class Renamed:
    """A release's tensors by our names."""

    state: dict[str, Tensor]
    sources: dict[str, tuple[str, ...]]
    """our name -> the file's; none where the tensor was filled in, several where they were joined."""
    unused: dict[str, str]
    """the file's name -> why it is not used."""
    told: dict[str, object] = field(default_factory=dict)
    """Settings that the file states among its tensors, by their place in the network's settings: fcos.divisors."""
    partial: dict[str, str] = field(default_factory=dict)
    """our name -> which of its rows come from the file, of those that not all do (transplant.py)."""

    @property
    def known(self) -> int:
        """How many of the file's names the release knows as tensors of a network."""
        return sum(len(names) for names in self.sources.values())


def rename(
    state: Mapping[str, Tensor], rules: Rules, ignored: Rules = (), respell: Callable[[str], str] = lambda name: name
) -> Renamed:
    """Apply `rules` to every name, once `respell` brought it to the release's present spelling.

    `ignored` are (pattern, why). Raises ValueError when two names of the file mean the same tensor.
    """
    tensors, sources, unused = {}, {}, {}
    for name, value in state.items():
        spelled = respell(name)
        ours = _first(spelled, rules)
        if ours is None:
            unused[name] = _first(spelled, ignored) or UNKNOWN
        elif ours in tensors:
            raise ValueError(f"{sources[ours][0]} and {name} both mean {ours}: two checkpoints in one file?")
        else:
            tensors[ours], sources[ours] = value, (name,)
    return Renamed(tensors, sources, unused)


def _first(name: str, rules: Rules) -> str | None:
    for pattern, template in rules:
        found = re.fullmatch(pattern, name)
        if found:
            return found.expand(template)
    return None


def stack(renamed: Renamed, ours: str) -> Renamed:
    """The single numbers `ours`.0, `ours`.1, .. as one vector `ours`; with one of them absent or larger, none is used.

    A release may keep as several tensors what is one here.
    """
    parts = [name for name in renamed.state if re.fullmatch(rf"{re.escape(ours)}\.\d+", name)]
    wanted = [f"{ours}.{i}" for i in range(len(parts))]
    rest = {name: value for name, value in renamed.state.items() if name not in parts}
    sources = {name: source for name, source in renamed.sources.items() if name not in parts}
    origin = tuple(name for part in parts for name in renamed.sources[part])
    if not parts:
        return renamed
    if sorted(parts) != sorted(wanted) or any(renamed.state[part].numel() != 1 for part in parts):
        why = f"expected single numbers, counted from 0, to join to {ours}"
        return replace(renamed, state=rest, sources=sources, unused=renamed.unused | dict.fromkeys(origin, why))
    rest[ours] = torch.cat([renamed.state[name].reshape(1) for name in wanted])
    sources[ours] = tuple(name for part in wanted for name in renamed.sources[part])
    return replace(renamed, state=rest, sources=sources)


def resnet_rules(prefix: str) -> Rules:
    """detectron2's ResNet names behind `prefix` (a pattern) -> those of models/resnet.py, under `backbone`."""
    conv = rf"{prefix}(res[2-5]\.\d+\.(?:conv[123]|shortcut))"
    return (
        (rf"{prefix}stem\.conv1\.weight", r"backbone.stem.conv.weight"),
        (rf"{prefix}stem\.conv1\.norm\.{NORM}", r"backbone.stem.norm.\1"),
        (rf"{conv}\.weight", r"backbone.\1.conv.weight"),
        (rf"{conv}\.norm\.{NORM}", r"backbone.\1.norm.\2"),
    )


def from_torchvision_spelling(name: str) -> str:
    """torchvision's ResNet names, behind any prefix -> detectron2's; every other name as it is.

    layer1..4 -> res2..5, bnK -> convK.norm, downsample.0 -> shortcut, downsample.1 -> shortcut.norm, conv1 and bn1
    outside of the layers -> stem.
    """
    name = re.sub(r"(^|\.)layer([1-4])\.(?=\d)", lambda found: f"{found[1]}res{int(found[2]) + 1}.", name)
    name = re.sub(r"^(backbone\.)?(bottom_up\.)?(conv1|bn1)\.", lambda f: f"{f[1] or ''}{f[2] or ''}stem.{f[3]}.", name)
    name = re.sub(r"(stem|res[2-5]\.\d+)\.bn([123])\.", r"\1.conv\2.norm.", name)
    name = re.sub(r"(res[2-5]\.\d+)\.downsample\.0\.", r"\1.shortcut.", name)
    return re.sub(r"(res[2-5]\.\d+)\.downsample\.1\.", r"\1.shortcut.norm.", name)
