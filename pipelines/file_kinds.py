"""Which kind of file this is, where another was expected: a network for a training run, a graph for a network.

In:     the mapping of a file of settings, or the path of a file that is none
Out:    nothing; or one error that says what came, what was expected, and which command takes what came
State:  none
Limits: a kind shows by the keys at the top; a mapping that has none of them is left to the one who builds settings
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from operators.errors import ConfigError
from pipelines.config import CHECKOUT, load_yaml, resolve


@dataclass(frozen=True)
class Kind:
    """A kind of file."""

    what: str
    """As in 'the file of a graph'."""
    any_of: tuple[str, ...]
    """Keys of which one is enough to tell it."""
    taken_by: str
    """The command that takes it; {} is the file."""
    folder: str = ""
    """Where such files are shipped."""
    example: str = ""


KINDS = {
    "deployment": Kind("a deployment", ("applications",), "serve deploy {}", "configs/deployments",
                       "configs/deployments/live.yaml"),
    "cluster": Kind("a cluster", ("apiVersion", "cluster_name"), "ray up {}", "configs/clusters"),
    "graph": Kind("a graph", ("stages", "placement"), "maskstream graph show {}", "configs/graphs",
                  "configs/graphs/offline.yaml"),
    "ablation": Kind("an ablation", ("variants", "tables"), "maskstream ablate --config {}", "configs/ablations",
                     "configs/ablations/crossvis.yaml"),
    "training": Kind("a training run", ("data", "samples_per_step", "optimizer"), "maskstream train {}",
                     "configs/training", "configs/training/tiny.yaml"),
    "annotations": Kind("a dataset's annotations", ("videos", "images", "categories"), "maskstream dataset check {}"),
    "dataset": Kind("a dataset", ("annotations", "image_root"), "maskstream evaluate run NETWORK {}",
                    "configs/datasets", "configs/datasets/shapes_held_out.yaml"),
    "scenario": Kind("a scenario of faults", ("blows", "nodes", "delays", "corrupt", "limits"),
                     "maskstream chaos GRAPH SOURCE --scenario {}", "configs/chaos", "configs/chaos/kills.yaml"),
    "network": Kind("a network", ("network", "model", "detect"), "maskstream run SOURCE --network {}",
                    "configs/networks", "configs/networks/tiny.yaml"),
}  # fmt: skip
"""In the order in which they are looked for: what an earlier one has, a later one may have too."""

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".pkl")
"""Of weights."""
_BY_SUFFIX = {
    **dict.fromkeys(SUFFIXES, ("a file of weights", "maskstream weights show {}")),
    **dict.fromkeys((".mp4", ".mkv", ".webm", ".avi", ".ts", ".mov"), ("a video", "maskstream run {}")),
}


def load_settings(path: str | Path, wanted: str) -> dict[str, Any]:
    """The mapping of a YAML file that shall be of the kind `wanted`, of KINDS.

    Raises ConfigError, as `load_yaml`; for a file of another kind one that says which, and which command takes it.
    """
    where = resolve(path)
    if where.is_dir():
        raise ConfigError(f"{where}: is a folder, but {_expected(wanted)}.")
    if not where.exists():
        _name_near(where, wanted)
    elif where.suffix.lower() in _BY_SUFFIX:
        what, command = _BY_SUFFIX[where.suffix.lower()]
        raise ConfigError(f"{where}: this is {what}, but {_expected(wanted)}.{_for(command, where)}")
    mapping = load_yaml(where)
    refuse_other(mapping, str(where), wanted)
    return mapping


def refuse_other(mapping: Mapping[str, Any], where: str, wanted: str) -> None:
    """Raises ConfigError where the keys are those of another kind than `wanted`."""
    found = kind_of(mapping)
    if found is None or found == wanted:
        return
    came = KINDS[found]
    raise ConfigError(f"{where}: this is the file of {came.what}, but {_expected(wanted)}."
                      f"{_meant(mapping, where, wanted)}{_for(came.taken_by, where)}")


def refuse_for_source(argument: str) -> None:
    """Raises ConfigError where what shall be run is a file of settings or of weights. All else is for
    operators/sources.py to judge."""
    _refuse_file(Path(argument), "a SOURCE is expected: a video, a folder of images or a YouTube-VIS JSON", "a video")


def refuse_for_weights(path: Path) -> None:
    """Raises ConfigError where weights shall be read from a file of settings or a video. All else is for
    operators/weights.py and operators/pickles.py to judge."""
    _refuse_file(path, f"a file of weights is expected, which ends in {', '.join(SUFFIXES)}", "a file of weights")


def _refuse_file(path: Path, expected: str, fine: str) -> None:
    suffix = path.suffix.lower()
    if suffix not in (".yaml", ".yml", *_BY_SUFFIX) or not path.is_file():
        return
    what, command = _BY_SUFFIX.get(suffix, ("a file of settings", ""))
    if suffix not in _BY_SUFFIX and (found := kind_of(load_yaml(path))) is not None:
        what, command = f"the file of {KINDS[found].what}", KINDS[found].taken_by
    if what != fine:
        raise ConfigError(f"{path}: this is {what}, but {expected}.{_for(command, path)}")


def kind_of(mapping: Mapping[str, Any]) -> str | None:
    """Of KINDS; None for keys that tell nothing, as no key."""
    if str(mapping.get("network")).endswith(".yaml"):      # the file of a network, which a run names; not its name
        return "ablation" if "variants" in mapping else "training"
    return next((name for name, kind in KINDS.items() if any(key in mapping for key in kind.any_of)), None)


def _name_near(where: Path, wanted: str) -> None:
    """Raises ConfigError with the shipped file of this kind whose name is near, where a bare name is given that is
    nearer to none in the folder of the command."""
    here = [path.name for path in Path().glob("*.yaml")]
    shipped = [path.name for path in (CHECKOUT / KINDS[wanted].folder).glob("*.yaml")]
    near = difflib.get_close_matches(f"{where.stem}.yaml", [*here, *shipped], n=1)
    if where.name == str(where) and near and near[0] not in here:
        raise ConfigError(f"{where}: no such file. Did you mean {KINDS[wanted].folder}/{near[0]}?")


def _for(command: str, path: Path | str) -> str:
    return f" The one that came is for `{command.format(path)}`." if command else ""


def _expected(wanted: str) -> str:
    example = KINDS[wanted].example
    return f"{KINDS[wanted].what} is expected{f', as {example}' if example else ''}"


def _meant(mapping: Mapping[str, Any], where: str, wanted: str) -> str:
    """The file that a training run names as its network, or one of the same name in the right folder."""
    named = mapping.get("network") if wanted == "network" else None
    near = f"{KINDS[wanted].folder}/{Path(where).stem}.yaml"
    if isinstance(named, str) and named.endswith(".yaml"):
        return f" Did you mean its network, {named[:200]}?"
    return f" Did you mean {near}?" if (CHECKOUT / near).is_file() else ""
