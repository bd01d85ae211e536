"""Settings of an ablation: which networks are trained how often, and what the paper says of each.

In:     a file of configs/ablations, and which of its runs are wanted
Out:    `AblationConfig`; `Run`s in the order in which they are to be made, each with two files of settings of its own
State:  none

A run is a plain training run: DIR/<variant>-<seed>/training.yaml and network.yaml say all of it, so that
`maskstream train` repeats it, and `maskstream run --network` uses what came of it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from operators.errors import ConfigError, did_you_mean
from pipelines.config import apply_overrides, build, load_yaml, resolve
from pipelines.evaluation import GRAPH
from trainers.job import WEIGHTS_FILE

NETWORK_FILE = "network.yaml"
TRAINING_FILE = "training.yaml"
SCORES_FILE = "scores.json"
"""Of a run that is done; written last, and at once."""
PRETRAINING = "pretraining"
"""Folder of the run that all others begin with."""
GROUPS = ("network", "training", PRETRAINING)
"""First words of changes: to the networks compared, to their training, to the pre-training."""


@dataclass(frozen=True, kw_only=True)
class GeneratedData:
    """A dataset that is made where it is not there yet, as by `maskstream shapes`."""

    folder: str
    clips: int
    seed: int
    preset: str = "medium"
    settings: dict[str, Any] = field(default_factory=dict)
    """What differs from the preset."""

    @property
    def annotations(self) -> Path:
        return Path(self.folder) / "instances.json"

    @property
    def image_root(self) -> Path:
        return Path(self.folder) / "JPEGImages"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One network of the comparison."""

    label: str
    set: tuple[str, ...] = ()
    """What differs from the base: `network.KEY=VALUE` and `training.KEY=VALUE`."""
    graph: str | None = None
    """In place of the ablation's: for networks without a part that the others' graph makes use of."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: a variant, and what the paper reports of its counterpart, in AP of 100."""

    variant: str
    label: str = ""
    """In place of the variant's own."""
    paper: float
    paper_std: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    title: str
    rows: tuple[Row, ...]
    """The first is what the others are compared with."""
    seeds: int | None = None
    """In place of the ablation's. A variant that stands in several tables has the most of them."""

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("rows is empty; a table needs at least one")
        if self.seeds is not None and not 1 <= self.seeds <= 1000:
            raise ValueError(f"seeds is {self.seeds}, expected 1 to 1000")


@dataclass(frozen=True, kw_only=True)
class AblationConfig:
    """A whole comparison."""

    training: str
    """A file of configs/training: a run as it is without changes."""
    pretraining: str | None = None
    """A file of configs/training whose weights every run begins with; null begins from scratch."""
    datasets: tuple[GeneratedData, ...] = ()
    """Made before anything else, where they are not there."""
    held_out: GeneratedData
    """What runs are scored on. Made too."""
    graph: str = GRAPH
    """A file of configs/graphs: how a trained network is run over the held-out clips."""
    seeds: int = 3
    """Runs of each variant. More: narrower error bars, as their root; time grows with it."""
    variants: dict[str, Variant]
    tables: dict[str, Table]
    """Runs are made table by table, in each seed by seed; one that stands in several tables is made once."""

    def __post_init__(self) -> None:
        if not 1 <= self.seeds <= 1000:
            raise ValueError(f"seeds is {self.seeds}, expected 1 to 1000")
        for name, table in self.tables.items():
            for row in table.rows:
                if row.variant not in self.variants:
                    hint = did_you_mean(row.variant, self.variants)
                    raise ValueError(f"tables.{name}: no variant is called '{row.variant}'.{hint}")
        for name, variant in self.variants.items():
            for change in variant.set:
                if change.partition(".")[0] not in ("network", "training"):
                    raise ValueError(f"variants.{name}: '{change}' must begin with network. or training.")


@dataclass(frozen=True)
class Changes:
    """What a command line changes: in the file of the ablation, and in what that names."""

    ablation: tuple[str, ...]
    network: tuple[str, ...]
    training: tuple[str, ...]
    pretraining: tuple[str, ...]

    @staticmethod
    def of(overrides: Iterable[str]) -> Changes:
        groups: dict[str, list[str]] = {"ablation": [], **{name: [] for name in GROUPS}}
        for override in overrides:
            group, dot, rest = override.strip().partition(".")
            inner = bool(dot) and group in GROUPS and "=" not in group
            groups[group if inner else "ablation"].append(rest if inner else override)
        return Changes(*(tuple(groups[name]) for name in ("ablation", *GROUPS)))


@dataclass(frozen=True)
class Run:
    """One network to be trained and scored."""

    variant: str
    seed: int
    folder: Path
    graph: str = GRAPH

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def read_ablation(path: str | Path, changes: Changes) -> AblationConfig:
    """Raises ConfigError naming file and key."""
    where = resolve(path)
    return build(AblationConfig, apply_overrides(load_yaml(where), changes.ablation, str(where)), str(where))


def planned(config: AblationConfig, out: Path, seeds: int | None = None, only: Sequence[str] = ()) -> list[Run]:
    """The runs in their order; `only` names variants or tables. Raises ConfigError for a name that is neither."""
    known = [*config.variants, *config.tables]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: no variant or table is called that.{did_you_mean(name, known)}")
    runs = {}
    for name, table in config.tables.items():
        for seed in range(seeds or table.seeds or config.seeds):
            for variant in (row.variant for row in table.rows):
                if not only or name in only or variant in only:
                    graph = config.variants[variant].graph or config.graph
                    runs.setdefault((variant, seed), Run(variant, seed, out / f"{variant}-{seed}", graph))
    return list(runs.values())


def write_settings(config: AblationConfig, changes: Changes, run: Run, start_from: Path | None) -> None:
    """The run's two files. Paths in them are absolute: the process that trains has a folder of its own."""
    of_variant = Changes.of(config.variants[run.variant].set)
    training = _training(config.training, (*changes.training, *of_variant.training))
    where = resolve(training["network"])
    network = apply_overrides(load_yaml(where), (*changes.network, *of_variant.network), str(where))
    _write(run.folder / NETWORK_FILE, {**network, "weights": str(run.folder / WEIGHTS_FILE)})
    more = {"network": str(run.folder / NETWORK_FILE), "seed": run.seed}
    if start_from is not None:
        more["start_from"] = str(start_from)
    _write(run.folder / TRAINING_FILE, {**training, **more})


def write_pretraining(config: AblationConfig, changes: Changes, folder: Path) -> None:
    """The same for the run that all others begin with; its network's file stays where it is."""
    assert config.pretraining is not None
    training = _training(config.pretraining, changes.pretraining)
    _write(folder / TRAINING_FILE, {**training, "network": os.path.abspath(resolve(training["network"]))})


def _training(path: str, overrides: Sequence[str]) -> dict[str, Any]:
    """A file of configs/training, with the paths of its data made absolute."""
    where = resolve(path)
    mapping = apply_overrides(load_yaml(where), overrides, str(where))
    if not isinstance(mapping.get("network"), str) or not isinstance(mapping.get("data"), dict):
        raise ConfigError(f"{where}: 'network', a file, and 'data', a group of settings, are expected.")
    paths = {key: os.path.abspath(value) for key, value in mapping["data"].items()
             if key in ("annotations", "image_root") and isinstance(value, str)}
    return {**mapping, "data": {**mapping["data"], **paths}}


def _write(path: Path, mapping: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(yaml.safe_dump(mapping, sort_keys=False))
    os.replace(partial, path)
