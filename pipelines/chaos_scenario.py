"""What `maskstream chaos` does to a graph: a scenario file, and the plan of blows that a seed makes of it.

In:     configs/chaos/*.yaml, or a file of the user's own
Out:    Scenario, checked; `blows`: which blow falls when, for a run of so many frames
State:  none: the same scenario, seed and number of frames give the same plan
Limits: when a blow is due is counted in frames given out, so a slow machine is hit where a fast one is; what a worker
        is doing at that moment is not repeatable, and that is the point

    seed: 1
    nodes: {count: 2}                                               # simulated, on this machine
    blows:
      - {kind: process, every: 60, stages: [heads]}                 # SIGKILL to a process that holds `heads`
      - {kind: node, every: 300, back_after_s: 3}                   # a whole node, with all that runs on it
    delays:
      - {stage: heads, every: 40, seconds: 0.5}
    corrupt:
      - {how: noise, every: 50}                                     # in the calm run as well
    limits: {recovery_s: 60, memory_mb: 256}
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from operators.errors import ConfigError, did_you_mean
from pipelines.config import apply_overrides, build
from pipelines.file_kinds import load_settings
from pipelines.graph import Graph

Kind = Literal["actor", "process", "node"]
How = Literal["noise", "black", "fault", "error", "death"]
PICTURES: tuple[How, ...] = ("noise", "black", "fault")
"""What is done to frames that the first stage gives; the others happen in a stage that a frame comes to."""


@dataclass(frozen=True, kw_only=True)
class Nodes:
    """The simulated cluster: a head node without CPUs, where the driver is, and nodes that do the work."""

    count: int = 2
    """Nodes that do the work. More: less is lost with one; each takes some 300 MB and seconds to start."""
    cpus: int | Literal["auto"] = "auto"
    """CPUs that each says it has. 'auto': this machine's, or what the whole placement wants if that is more, so that
    the graph can go on when all nodes but one are gone."""
    store_mb: int = 256
    """Object store of each node. Less than the records under way: Ray writes to disk, and the run gets slow."""

    def __post_init__(self) -> None:
        if not 1 <= self.count <= 16:
            raise ValueError(f"count is {self.count}, expected 1 to 16.")
        if self.cpus != "auto" and not 1 <= self.cpus <= 1024:
            raise ValueError(f"cpus is {self.cpus}, expected 1 to 1024, or auto.")
        if not 80 <= self.store_mb <= 65536:
            raise ValueError(f"store_mb is {self.store_mb}, expected 80 to 65536.")


@dataclass(frozen=True, kw_only=True)
class Blow:
    """A blow that falls again and again."""

    kind: Kind
    """actor: Ray is told to end a replica. process: the replica's process gets a SIGKILL, as from a kernel that is out
    of memory. node: all processes of a simulated node do; a new node comes for it."""
    every: int = 100
    """Frames given out between two of them, give or take a quarter, by the seed."""
    first: int | None = None
    """Frames before the first, exactly; null is `every`, give or take. In a run that is too short for it, it falls
    half-way."""
    most: int | None = None
    """Falls so many times at most; null is no limit."""
    stages: tuple[str, ...] = ()
    """Only replicas that hold one of these; empty: all. Of no use for nodes."""
    back_after_s: float = 2.0
    """Of a node: seconds until the new one is started."""

    def __post_init__(self) -> None:
        for name in ("every", "first", "most"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= 10**9:
                raise ValueError(f"{name} is {value}, expected 1 or more.")
        if not 0 <= self.back_after_s <= 3600:
            raise ValueError(f"back_after_s is {self.back_after_s}, expected 0 to 3600.")
        if self.kind == "node" and self.stages:
            raise ValueError("stages is set, but a node is chosen whatever it holds; remove stages.")


@dataclass(frozen=True, kw_only=True)
class Delay:
    """A stage that stops now and then, as a machine that swaps."""

    stage: str
    every: int = 50
    """One frame in so many; which, is told by seed and stream."""
    seconds: float = 0.5

    def __post_init__(self) -> None:
        if self.every < 1 or not 0 < self.seconds <= 600:
            raise ValueError(f"every {self.every}, seconds {self.seconds}: expected 1 or more, and up to 600")


@dataclass(frozen=True, kw_only=True)
class Corruption:
    """Damage to one frame in so many; the calm run has the same, so results must be equal all the same."""

    how: How
    """noise, black: another picture. fault: the frame cannot be decoded. error: a stage raises, which ends the stream
    there. death: the process that works on it dies, every time, which shall end the stream there, and nothing else (in
    the calm run the source breaks off before that frame)."""
    every: int = 50
    """One frame in so many; which, is told by seed and stream."""
    stage: str | None = None
    """Of error and death: where it happens; null is the last stage."""
    streams: tuple[str, ...] = ()
    """Only these; empty: all."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"every is {self.every}, expected 1 or more.")
        if self.stage is not None and self.how in PICTURES:
            raise ValueError(f"stage is set, but {self.how} is done to what the first stage gives; remove stage.")

    def hits(self, seed: int, stream: str, index: int) -> bool:
        """Whether it is this frame. The same in every process and at every replay."""
        if self.streams and stream not in self.streams:
            return False
        return falls(f"{seed} {self.how} {self.stage}", stream, index, self.every)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What still passes."""

    recovery_s: float = 60.0
    """The longest that a stream may be silent after a blow."""
    memory_mb: float = 256.0
    """How much more this process may hold after the run under blows than after the calm one."""
    settle_s: float = 15.0
    """How long actors, processes and objects may take to go when a run is over."""

    def __post_init__(self) -> None:
        for name in ("recovery_s", "memory_mb", "settle_s"):
            if not 0 < getattr(self, name) <= 1e6:
                raise ValueError(f"{name} is {getattr(self, name)}, expected more than 0.")


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A whole file; an empty one does nothing, and compares two calm runs."""

    seed: int = 0
    nodes: Nodes = field(default_factory=Nodes)
    blows: tuple[Blow, ...] = ()
    delays: tuple[Delay, ...] = ()
    corrupt: tuple[Corruption, ...] = ()
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, order=True)
class Due:
    """One blow of the plan."""

    frame: int
    """Falls when so many frames were given out."""
    number: int
    """Of its entry in the scenario, from 0."""


def load_scenario(path: str | Path, overrides: Iterable[str] = (), seed: int | None = None) -> Scenario:
    """The scenario in a YAML file; `seed` in place of its own. Raises ConfigError, naming file and key."""
    where = str(path)
    mapping = apply_overrides(load_settings(path, "scenario"), overrides, where)
    return build(Scenario, mapping if seed is None else mapping | {"seed": seed}, where)


def check_scenario(scenario: Scenario, graph: Graph, where: str) -> None:
    """Raises ConfigError where it names a stage that the graph does not have, or that cannot do what is asked."""
    names = [stage.name for stage in graph.stages]
    named = [(f"blows[{i}].stages", name) for i, blow in enumerate(scenario.blows) for name in blow.stages]
    named += [(f"delays[{i}].stage", delay.stage) for i, delay in enumerate(scenario.delays)]
    named += [(f"corrupt[{i}].stage", one.stage) for i, one in enumerate(scenario.corrupt) if one.stage is not None]
    for key, name in named:
        if name not in names:
            raise ConfigError(f"{where}, {key}: the graph has no stage '{name}'.{did_you_mean(name, names)}")
    for i, one in enumerate(scenario.corrupt):
        if one.how not in PICTURES and (one.stage or names[-1]) == names[0]:
            raise ConfigError(f"{where}, corrupt[{i}].stage: '{names[0]}' is given no frames, so none can fail there. "
                              f"Name a later stage.")


def blows(scenario: Scenario, frames: int) -> list[Due]:
    """What falls in a run that gives out so many frames, in order. No frames: nothing."""
    plan = []
    for number, blow in enumerate(scenario.blows):
        chance = random.Random(f"{scenario.seed} blow {number}")
        first, quarter = blow.first or blow.every, blow.every // 4
        dues = [due + chance.randint(-quarter, quarter) for due in range(first, frames, blow.every)]
        if blow.first is not None:
            dues[:1] = [blow.first]
        if first >= frames:
            dues = [frames // 2] * (frames > 1)
        plan += [Due(min(max(due, 1), frames - 1), number) for due in dues[: blow.most]]
    return sorted(plan)


def falls(what: str, stream: str, index: int, every: int) -> bool:
    """Whether frame `index` is the one in `every` that is meant: one of the first `every`, then all after so many."""
    return index % every == random.Random(f"{what} {stream}").randrange(every)
