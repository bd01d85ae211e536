"""A cluster of simulated nodes on this machine, and how it is hurt.

In:     Nodes of a scenario, and the graph that is to have room on them
Out:    this process connected to it; kills of actors, processes and nodes; what is left over when a run is done
State:  processes of Ray, all ended when the context ends
Limits: 1 to 16 nodes besides the head, which has no CPU: the driver and its objects are there, and it is never hurt.
        Nothing outside of this cluster is looked at or ended
"""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from ray._private import internal_api, state  # of actors' processes and of stores the public API tells by a dashboard
from ray.cluster_utils import Cluster

from operators.cpus import usable_cpus
from operators.errors import GraphError
from pipelines.chaos_scenario import Nodes
from pipelines.cluster import cluster, own_signals
from pipelines.graph import Graph

LOOK_S = 0.1
"""Seconds between two looks at what Ray tells only to those who ask."""
MB = 1 << 20


@dataclass(frozen=True)
class Worker:
    """A replica that is alive."""

    name: str
    """As the executor called it: 'maskstream 1f3a9c20: backbone+heads #1 (77aa)'."""
    pid: int
    node: str

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(self.name.partition(": ")[2].partition(" #")[0].split("+"))

    def __str__(self) -> str:
        return f"{self.name.partition(': ')[2]}, process {self.pid}"


@dataclass(frozen=True)
class Leftovers:
    """What a run that is over still holds."""

    actors: int = 0
    placement_groups: int = 0
    objects: int = 0
    object_bytes: int = 0
    processes: int = 0
    """Of replicas."""
    memory_mb: float = 0.0
    """Of this process, all in all; it never comes to nothing."""

    @property
    def none(self) -> bool:
        return not (self.actors or self.placement_groups or self.objects or self.processes)

    def __str__(self) -> str:
        return (
            f"{self.actors} actors, {self.placement_groups} placement groups, {self.processes} processes, "
            f"{self.objects} objects of {self.object_bytes / MB:.1f} MB"
        )


class SimulatedCluster:
    """Nodes that can be lost. One at a time in a process."""

    def __init__(self, nodes: Nodes, graph: Graph, device: str) -> None:
        self._options = {
            "num_cpus": _cpus(nodes, graph),
            "num_gpus": 0 if device == "cpu" else torch.cuda.device_count(),
            "resources": _resources(graph),
            "object_store_memory": nodes.store_mb * MB,
        }
        system = {"worker_niceness": 0}                     # as in pipelines/cluster.py
        head = {"num_cpus": 0, "num_gpus": 0, "include_dashboard": False, "_system_config": system,
                "object_store_memory": nodes.store_mb * MB}
        self._pids: set[int] = set()
        self._nodes: dict[str, Any] = {}
        with _starting("the head node"):
            self._cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(nodes.count):
                self.add_node()
        except BaseException:
            self.shutdown()
            raise

    @property
    def address(self) -> str:
        return self._cluster.address

    @property
    def nodes(self) -> tuple[str, ...]:
        """Those that are there, but for the head."""
        return tuple(self._nodes)

    def add_node(self) -> str:
        """Start a node, and wait until the cluster knows it; gives its name. Raises GraphError if it does not come."""
        # What ends nodes when this process dies comes with a handler of signals, which only the main thread may set. A
        # node that another thread starts has none: it ends with the context, or when it finds that its head is gone.
        self._cluster._shutdown_at_exit = threading.current_thread() is threading.main_thread()
        with _starting("a node"):
            node = self._cluster.add_node(wait=True, **self._options)
        self._nodes[node.node_id] = node
        return node.node_id

    def kill_node(self, name: str) -> None:
        """End all processes of a node at once, as a power cut does. The cluster finds out some seconds later."""
        self._cluster.remove_node(self._nodes.pop(name), allow_graceful=False)

    def workers(self, stages: Sequence[str] = ()) -> list[Worker]:
        """Replicas that are alive, of those with one of `stages`, or of all, by name. Remembers their processes."""
        found = []
        for actor in state.actors().values():
            if actor["State"] == "ALIVE" and actor["Name"].startswith("maskstream ") and actor["Pid"]:
                worker = Worker(actor["Name"], actor["Pid"], actor["Address"]["NodeID"])
                self._pids.add(worker.pid)
                if worker.node in self._nodes and (not stages or set(stages) & set(worker.stages)):
                    found.append(worker)
        return sorted(found, key=lambda worker: worker.name)

    def kill_process(self, worker: Worker) -> bool:
        """SIGKILL; says whether it was there."""
        try:
            os.kill(worker.pid, signal.SIGKILL)
        except ProcessLookupError:
            return False
        return True

    def kill_actor(self, worker: Worker) -> bool:
        """Ray ends it; says whether it was there."""
        try:
            ray.kill(ray.get_actor(worker.name))
        except ValueError:                                  # no such actor any more
            return False
        return True

    def leftovers(self, settle_s: float) -> Leftovers:
        """What is there now that nothing should be; looked at again until it is gone or `settle_s` have passed."""
        until, pause = time.monotonic() + settle_s, threading.Event()
        while True:
            gc.collect()
            left = self._leftovers()
            if left.none or time.monotonic() > until:
                return left
            pause.wait(LOOK_S)

    def _leftovers(self) -> Leftovers:
        actors = [actor for actor in state.actors().values() if actor["State"] != "DEAD"]
        groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
        self._pids = {pid for pid in self._pids if Path(f"/proc/{pid}").exists()}
        store = internal_api.get_memory_info_reply(internal_api.get_state_from_address(self.address)).store_stats
        return Leftovers(len(actors), len(groups), store.num_local_objects, store.object_store_bytes_used,
                         len(self._pids), memory_mb())  # fmt: skip

    def shutdown(self) -> None:
        """End all nodes. Again: nothing."""
        self._nodes.clear()
        self._cluster.shutdown()


@contextmanager
def _starting(what: str) -> Iterator[None]:
    """Ray has no error of its own for this: what goes wrong here is a machine that is too busy or too small."""
    try:
        yield
    except Exception as error:
        said = " ".join(str(error).split())[:300]
        words = f"{what} of the simulated cluster could not be started: {said} Is the machine busy?"
        raise GraphError(words) from error


@contextmanager
def simulated(nodes: Nodes, graph: Graph, device: str) -> Iterator[SimulatedCluster]:
    """A cluster that lives as long as the context, and this process connected to it.

    Raises GraphError if this process is connected to another one, which might be somebody's.
    """
    if ray.is_initialized():
        raise GraphError("chaos hurts a cluster of its own alone, and this process is connected to one. Disconnect it.")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with own_signals():
        made = SimulatedCluster(nodes, graph, device)
    try:
        with cluster(made.address):
            yield made
    finally:
        made.shutdown()


def memory_mb() -> float:
    """Memory that this process has in use; 0 where the system does not say."""
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / MB if path.exists() else 0.0


def _cpus(nodes: Nodes, graph: Graph) -> int:
    """CPUs of each node: as said, or as many as there are, or as the whole placement asks for."""
    if nodes.cpus != "auto":
        return nodes.cpus
    wanted = sum(group.replicas * group.num_cpus for group in graph.placement if group.num_cpus != "auto")
    return max(usable_cpus(), math.ceil(wanted) + any(group.num_cpus == "auto" for group in graph.placement))


def _resources(graph: Graph) -> dict[str, float]:
    """Of the graph's own resources each node has enough for all."""
    wanted: dict[str, float] = {}
    for group in graph.placement:
        for name, amount in group.resources.items():
            wanted[name] = wanted.get(name, 0.0) + amount * group.replicas
    return wanted
