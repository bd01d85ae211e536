"""The graph: stages in order, and where they run, as plain data; checked before anything starts.

In:     a YAML file of `stages` and how they run (`placement.py`), and the table of stage kinds (`stages.py`)
Out:    Graph, which every executor runs; or one error that names file, key and what was expected

    stages:                                                     # in the order in which a frame meets them
      decode:    {operator: decode, keyed_by: stream}
      backbone:  {network: backbone, batch: 8}
    placement:                                                  # optional; without it one group holds all
      - {stages: [decode, backbone], replicas: 1, num_cpus: 2}  # neighbours in one group share a process
    batching: {streams: 4, frames: 8}
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from operators.errors import ConfigError, GraphError, did_you_mean
from operators.records import FrameTracks, Pull
from pipelines.config import apply_overrides, build
from pipelines.file_kinds import load_settings
from pipelines.networks import NetworkSpec
from pipelines.placement import Batching, Placement, Recovery, Strategy, left
from pipelines.stage import Stage

SETTINGS = ("batching", "recovery", "strategy")
"""Settings of a graph file that `--set` reaches, beside those of its stages."""

NETWORK_SETTINGS = ("association", "detect", "edges", "inference", "model", "weights")
"""Settings of a network's file, for who leaves out the `network.` before them."""

RESERVED = ("network", "sinks", "placement", *SETTINGS)
"""Names that `--set NAME.key=value` has another use for."""


@dataclass(frozen=True)
class RunContext:
    """What all stages of a run share. Small and picklable: it travels to the actors."""

    network: NetworkSpec | None = None
    """None for a graph without network stages."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """'auto' takes the GPU where the process that builds the stage sees one."""
    trace: bool = False
    """Reports tell when each stage worked on which frames (`Report.spans`)."""
    metrics: bool = False
    """On Ray: actors count what they do on Ray's Prometheus port (pipelines/metrics.py)."""
    mark: str | None = None
    """On Ray: the name under which the run's snapshots lie where they outlive it; None for one that nobody knows."""


@dataclass(frozen=True)
class StageKind:
    """What the graph has to know of a kind of stage before one is built."""

    word: Literal["operator", "network"]
    """The YAML key that names it: `operator: decode`, `network: heads`."""
    takes: type
    gives: type
    settings: type
    """Dataclass of its settings."""
    build: Callable[[Any, RunContext], Stage]
    check: Callable[[Any, RunContext], Any] | None = None
    """Raises ConfigError where `build` would for the network that is named: before weights, processes and nodes."""
    stateful: bool = False
    """It is a StreamStage: it remembers, so all frames of one stream must reach the same replica."""
    on_device: bool = False
    """It uses the GPU where there is one."""
    mixes: bool = False
    """Of a stage that remembers: one call may hold frames of several streams, and a call that raises leaves the memory
    of all of them as it was, so that it can be made again frame by frame."""


@dataclass(frozen=True)
class StageSpec:
    """A stage of a graph, not built yet: `kind.build(settings, context)` does that where it will run."""

    name: str
    kind: StageKind
    settings: Any
    keyed_by: Literal["stream"] | None = None


@dataclass(frozen=True)
class Graph:
    """Checked: stages fit their neighbours, and every stage stands in exactly one placement group, in order."""

    stages: tuple[StageSpec, ...]
    placement: tuple[Placement, ...]
    batching: Batching = Batching()
    strategy: Strategy = "pack"
    """Where replicas go on Ray. pack: on few nodes, so that little travels; spread: on many, so that one node's death
    takes few. strict_pack: all on one node or an error; strict_spread: each on a node of its own or an error."""
    recovery: Recovery = Recovery()

    def group(self, placement: Placement) -> tuple[StageSpec, ...]:
        """The stages of a placement group, in order."""
        return tuple(stage for stage in self.stages if stage.name in placement.stages)

    def keyed(self, placement: Placement) -> bool:
        """Whether the group remembers, so that streams must be pinned to its replicas."""
        return any(stage.kind.stateful for stage in self.group(placement))

    def check(self, context: RunContext) -> None:
        """Raises ConfigError where a stage is none for the network, before anything is loaded or started."""
        for stage in self.stages:
            if stage.kind.check is not None:
                stage.kind.check(stage.settings, context)

    def placed(self, num_cpus: float, num_gpus: float) -> Graph:
        """The same graph with every 'auto' replaced by a share of what there is.

        Shares are equal, whole CPUs where there is one for each; never more than the whole, so 'auto' alone always
        fits; one replica uses at most one GPU.
        """
        on_device = [any(stage.kind.on_device for stage in self.group(group)) for group in self.placement]
        pairs = list(zip(self.placement, on_device, strict=True))
        cpu_users = sum(group.replicas for group in self.placement if group.num_cpus == "auto")
        gpu_users = sum(group.replicas for group, uses in pairs if uses and group.num_gpus == "auto")
        cpus = left(num_cpus, self.placement, "num_cpus") / max(cpu_users, 1)
        gpus = left(num_gpus, self.placement, "num_gpus") / max(gpu_users, 1)
        # Ray counts in ten thousandths: rounded down, three thirds stay within one
        shares = {"num_cpus": int(cpus) if cpus >= 1 else _floor(cpus), "num_gpus": _floor(min(1.0, gpus))}
        groups = []
        for group, uses in pairs:
            auto = {name: value for name, value in shares.items() if getattr(group, name) == "auto"}
            if "num_gpus" in auto and not uses:
                auto["num_gpus"] = 0.0
            groups.append(replace(group, **auto))
        return replace(self, placement=tuple(groups))


def _floor(amount: float) -> float:
    return math.floor(amount * 10_000) / 10_000


@dataclass(frozen=True, kw_only=True)
class _GraphFile:
    stages: dict[str, dict[str, Any]]
    placement: tuple[Placement, ...] = ()
    batching: Batching = field(default_factory=Batching)
    strategy: Strategy = "pack"
    recovery: Recovery = field(default_factory=Recovery)


def load_graph(path: str | Path, kinds: Mapping[str, StageKind], overrides: Iterable[str] = ()) -> Graph:
    """The graph in a YAML file. Overrides: 'backbone.batch=4' for a stage's setting, 'batching.streams=8'.

    Raises: ConfigError for a setting, GraphError for stages or a placement that do not fit; both name file and key.
    """
    where = str(path)
    mapping = load_settings(path, "graph")
    stages = mapping.get("stages")
    prefixed = []
    for override in overrides:
        name = override.split("=")[0].split(".")[0].strip()
        known = [*(stages if isinstance(stages, dict) else ()), *SETTINGS]
        if name not in known:
            hint = did_you_mean(name, [*known, "network", "sinks"])
            if name in NETWORK_SETTINGS:
                hint = f" Did you mean network.{override.strip()}?"
            raise ConfigError(f"{where}: '{override}': no stage '{name}'.{hint}")
        prefixed.append(override if name in SETTINGS else f"stages.{override.strip()}")
    return parse_graph(apply_overrides(mapping, prefixed, where), kinds, where)


def parse_graph(mapping: Mapping[str, Any], kinds: Mapping[str, StageKind], where: str) -> Graph:
    """The graph that a mapping describes; errors as in `load_graph`."""
    read = build(_GraphFile, mapping, where)
    stages = tuple(_stage(name, entry, kinds, where) for name, entry in read.stages.items())
    _check_order(stages, where)
    placement = read.placement or (Placement(stages=tuple(stage.name for stage in stages)),)
    _check_placement(placement, stages, where)
    return Graph(stages, placement, read.batching, read.strategy, read.recovery)


def _stage(name: str, entry: Mapping[str, Any], kinds: Mapping[str, StageKind], where: str) -> StageSpec:
    """One entry of `stages`: its kind, what it is keyed by, and its settings, built."""
    if name in RESERVED or "." in name:
        raise GraphError(f"{where}, stages.{name}: '{name}' has a meaning of its own; give the stage another name.")
    settings = dict(entry)
    words = [word for word in ("operator", "network") if word in settings]
    if len(words) != 1:
        got = "both" if words else "neither"
        raise GraphError(f"{where}, {name}: expected 'operator: ...' or 'network: ...', got {got}.")
    word, kind_name = words[0], settings.pop(words[0])
    known = [kind for kind, entry in kinds.items() if entry.word == word]
    if kind_name not in known:
        raise GraphError(f"{where}, {name}.{word}: no such stage '{kind_name}'.{did_you_mean(str(kind_name), known)}")
    kind = kinds[kind_name]
    keyed_by = settings.pop("keyed_by", None)
    if kind.stateful and keyed_by != "stream":
        raise GraphError(f"{where}, {name}: '{kind_name}' remembers its streams, so it must say 'keyed_by: stream'.")
    if not kind.stateful and keyed_by is not None:
        raise GraphError(f"{where}, {name}.keyed_by: '{kind_name}' remembers nothing; remove keyed_by.")
    return StageSpec(name, kind, build(kind.settings, settings, where, name), keyed_by)


def _check_order(stages: tuple[StageSpec, ...], where: str) -> None:
    if not stages:
        raise GraphError(f"{where}, stages: empty; expected at least a stage that decodes and one that gives tracks.")
    first, last = stages[0], stages[-1]
    if first.kind.takes is not Pull:
        takes = first.kind.takes.__name__
        raise GraphError(f"{where}, {first.name}: the first stage must decode a source; this one takes {takes}.")
    for before, after in zip(stages, stages[1:], strict=False):
        if before.kind.gives is not after.kind.takes:
            raise GraphError(
                f"{where}, {after.name}: takes {after.kind.takes.__name__}, but '{before.name}' before it gives "
                f"{before.kind.gives.__name__}. Change their order, or put the missing stage between them."
            )
    if last.kind.gives is not FrameTracks:
        raise GraphError(f"{where}, {last.name}: the last stage must give FrameTracks, not {last.kind.gives.__name__}.")


def _check_placement(placement: tuple[Placement, ...], stages: tuple[StageSpec, ...], where: str) -> None:
    names = [stage.name for stage in stages]
    placed: list[str] = []
    for i, group in enumerate(placement):
        for name in group.stages:
            if name not in names:
                raise GraphError(f"{where}, placement[{i}]: no stage '{name}'.{did_you_mean(name, names)}")
            if name in placed:
                raise GraphError(f"{where}, placement[{i}]: '{name}' is placed twice; a stage belongs to one group.")
            placed.append(name)
    for name in names:
        if name not in placed:
            raise GraphError(f"{where}, placement: '{name}' is in no group. Add it to one, or leave placement out.")
    if placed != names:
        raise GraphError(
            f"{where}, placement: the groups hold {placed}, expected the order of stages {names}: "
            "a group holds neighbours, and groups follow each other."
        )
