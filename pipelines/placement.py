"""Where a graph runs and how its frames travel: settings of a graph file, beside its stages.

In:     `placement`, `strategy`, `batching` and `recovery` of a graph file
Out:    frozen settings, each checked when made

    placement:
      - {stages: [decode], num_cpus: 1}
      - {stages: [backbone, heads], replicas: 2, num_gpus: 0.5, resources: {camera_rack: 1}}
    strategy: spread                                                # replicas on as many nodes as there are
    batching: {streams: 16, frames: 8, in_flight: 2, max_wait_s: 0.02}
    recovery: {snapshot_every: 64, store: s3://bucket/maskstream, max_kills: 2}
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Amount = float | Literal["auto"]
Strategy = Literal["pack", "spread", "strict_pack", "strict_spread"]
Transport = Literal["object_store", "gloo", "nccl"]

NAMED_OTHERWISE = {"CPU": "num_cpus", "GPU": "num_gpus"}
"""Ray's names of what has a setting of its own."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A group: neighbouring stages that share a process, so that nothing between them is copied."""

    stages: tuple[str, ...]
    replicas: int = 1
    """Processes with these stages. More: more batches at once, more memory; streams stay with their replica."""
    num_cpus: Amount = "auto"
    """CPUs of one replica, and its torch threads. 'auto': an equal share of what there is."""
    num_gpus: Amount = "auto"
    """GPUs of one replica; 0.5 lets two share one. 'auto': a share for groups with a network, with device cpu none."""
    resources: dict[str, float] = field(default_factory=dict, hash=False)
    """What else a replica needs of its node, as the cluster's nodes name it: {camera_rack: 1}. Ray alone reads it."""
    transport: Transport = "object_store"
    """How what leaves the group reaches the next one on Ray. object_store: shared memory on a node, the network between
    nodes; survives the actor that made it. gloo (CPU) and nccl (GPU to GPU): tensors go from process to process, none
    is kept on the way; see pipelines/transport.py for what that costs when an actor dies."""

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages is empty; name at least one.")
        if not 1 <= self.replicas <= 1024:
            raise ValueError(f"replicas is {self.replicas}, expected 1 to 1024.")
        if self.num_cpus != "auto" and not 0 < self.num_cpus <= 1024:
            raise ValueError(f"num_cpus is {self.num_cpus}, expected more than 0, at most 1024.")
        if self.num_gpus != "auto" and not 0 <= self.num_gpus <= 64:
            raise ValueError(f"num_gpus is {self.num_gpus}, expected 0 to 64.")
        for name, amount in self.resources.items():
            if name in NAMED_OTHERWISE:
                raise ValueError(f"resources.{name}: has a setting of its own; say {NAMED_OTHERWISE[name]} instead.")
            if not name or not 0 < amount <= 1e6:
                raise ValueError(f"resources.{name} is {amount}, expected more than 0, at most 1000000.")


@dataclass(frozen=True, kw_only=True)
class Batching:
    """How frames enter the graph, and how many of different streams go through it together."""

    streams: int = 4
    """Videos open at once. More: fuller batches of short videos, more open decoders and state in memory."""
    frames: int = 8
    """Most frames of one call of a group, taken from all open streams. More: fewer and larger calls, more memory."""
    in_flight: int = 2
    """Calls under way at once in every replica, and parts of one stream between two groups. More: stages in different
    processes wait less for each other, more memory."""
    max_wait_s: float = 0.02
    """On Ray: how long the first frame of a call waits for others to fill it, while others may still come. More: fuller
    calls from slow sources, later results. In one process nothing waits."""

    def __post_init__(self) -> None:
        for name, most in (("streams", 4096), ("frames", 4096), ("in_flight", 64)):
            if not 1 <= getattr(self, name) <= most:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 1 to {most}.")
        if not 0 <= self.max_wait_s <= 60:
            raise ValueError(f"max_wait_s is {self.max_wait_s}, expected 0 to 60.")


@dataclass(frozen=True, kw_only=True)
class Recovery:
    """What is kept so that a dead actor or node costs time and no frame. Read by the executor on Ray alone."""

    snapshot_every: int = 64
    """Frames of a stream between two snapshots of its state. More: less time spent on them, more to do again."""
    store: str = "object_store"
    """Where snapshots go: object_store (survives actors), or a directory or fsspec URL (survives the driver too)."""
    max_kills: int = 2
    """A frame that was in an actor at so many of its deaths is taken for the reason: its stream ends with a failure."""

    def __post_init__(self) -> None:
        if not 1 <= self.snapshot_every <= 1_000_000:
            raise ValueError(f"snapshot_every is {self.snapshot_every}, expected 1 to 1000000.")
        if not 1 <= self.max_kills <= 100:
            raise ValueError(f"max_kills is {self.max_kills}, expected 1 to 100.")
        if not self.store.strip():
            raise ValueError("store is empty; expected object_store, a directory or an fsspec URL.")


def left(total: float, placement: Iterable[Placement], name: str) -> float:
    """What the groups with a stated amount leave for the others; a tenth of the whole where they leave nothing."""
    stated = sum(group.replicas * getattr(group, name) for group in placement if getattr(group, name) != "auto")
    return max(total - stated, total / 10)
