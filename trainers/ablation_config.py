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
from operators.replacing import replacing
from pipelines.config import apply_overrides, build, load_yaml, resolve
from pipelines.evaluation import GRAPH
from pipelines.file_kinds import load_settings
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
    weights_of: str | None = None
    """Another variant, whose weights of the same seed are scored: for what differs in use alone, and needs no training.
    """


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a table: a variant, and what the paper reports of its counterpart, in AP of 100."""

    variant: str
    label: str = ""
    """In place of the variant's own."""
    paper: float | None = None
    """null where it reports none."""
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
    cases: bool = False
    """Also tell, and show, what became of objects that left and came back, and of look-alikes that met (cases.md)."""
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
            if variant.weights_of is not None:
                self._check_weights(name, variant)

    def _check_weights(self, name: str, variant: Variant) -> None:
        base = self.variants.get(variant.weights_of)
        if base is None or base.weights_of is not None:
            hint = did_you_mean(variant.weights_of, self.variants) if base is None else ""
            raise ValueError(f"variants.{name}.weights_of: '{variant.weights_of}' is no variant that is trained.{hint}")
        if any(change.startswith("training.") for change in variant.set):
            raise ValueError(f"variants.{name}: weights_of says that it is not trained; leave out what begins with "
                             "training.")  # fmt: skip


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
    trained_in: Path | None = None
    """Folder of the run whose weights are scored; None: it is trained itself."""

    @property
    def home(self) -> Path:
        """Where its weights lie."""
        return self.trained_in or self.folder

    @property
    def name(self) -> str:
        return f"{self.variant}, seed {self.seed}"


def read_ablation(path: str | Path, changes: Changes) -> AblationConfig:
    """Raises ConfigError naming file and key."""
    where = resolve(path)
    mapping = apply_overrides(load_settings(where, "ablation"), changes.ablation, str(where))
    return build(AblationConfig, mapping, str(where))


def planned(config: AblationConfig, out: Path, seeds: int | None = None, only: Sequence[str] = ()) -> list[Run]:
    """The runs in their order, those whose weights others need before them; `only` names variants or tables.

    Raises ConfigError for a name that is neither.
    """
    known = [*config.variants, *config.tables]
    for name in only:
        if name not in known:
            raise ConfigError(f"--only {name}: no variant or table is called that.{did_you_mean(name, known)}")
    runs: dict[tuple[str, int], Run] = {}
    for name, table in config.tables.items():
        for seed in range(seeds or table.seeds or config.seeds):
            for variant in (row.variant for row in table.rows):
                if not only or name in only or variant in only:
                    base = config.variants[variant].weights_of
                    for each in (variant,) if base is None else (base, variant):
                        runs.setdefault((each, seed), _run(config, each, seed, out))
    return list(runs.values())


def _run(config: AblationConfig, variant: str, seed: int, out: Path) -> Run:
    settings = config.variants[variant]
    trained_in = None if settings.weights_of is None else out / f"{settings.weights_of}-{seed}"
    return Run(variant, seed, out / f"{variant}-{seed}", settings.graph or config.graph, trained_in)


def write_settings(config: AblationConfig, changes: Changes, run: Run, start_from: Path | None) -> None:
    """The run's two files. Paths in them are absolute: the process that trains has a folder of its own."""
    variant = config.variants[run.variant]
    base = () if variant.weights_of is None else config.variants[variant.weights_of].set
    of_variant = Changes.of((*base, *variant.set))
    training = _training(config.training, (*changes.training, *of_variant.training))
    where = resolve(training["network"])
    network = apply_overrides(load_yaml(where), (*changes.network, *of_variant.network), str(where))
    _write(run.folder / NETWORK_FILE, {**network, "weights": str(run.home / WEIGHTS_FILE)})
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
    return {**mapping, "data": _absolute(mapping["data"])}


def _absolute(data: dict[str, Any]) -> dict[str, Any]:
    """The same settings of data, and of the stills beside them, with absolute paths."""
    paths = {key: os.path.abspath(value) for key, value in data.items()
             if key in ("annotations", "image_root") and isinstance(value, str)}
    if isinstance(data.get("stills"), list):
        paths["stills"] = [_absolute(one) if isinstance(one, dict) else one for one in data["stills"]]
    return {**data, **paths}


def _write(path: Path, mapping: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        part.write_text(yaml.safe_dump(mapping, sort_keys=False))
