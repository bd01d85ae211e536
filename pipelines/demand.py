"""What a placement wants, held against what the cluster has, before anything starts.

In:     a Graph with all amounts known, and the resources of each living node, as Ray counts them
Out:    nothing, or a GraphError that names the group, what it wants and what there is
Limits: necessary conditions, but for `strict_spread`, where they are exact; other work on the cluster is not counted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from operators.errors import GraphError
from pipelines.graph import Graph, RunContext
from pipelines.placement import Placement

Node = Mapping[str, float]
ROUNDING = 1e-6


def bundle(group: Placement) -> dict[str, float]:
    """What one replica wants, by Ray's names; nothing of what it wants none."""
    wants = {"CPU": group.num_cpus, "GPU": group.num_gpus, **group.resources}
    return {name: amount for name, amount in wants.items() if amount}


def totals(nodes: Sequence[Node], context: RunContext) -> tuple[float, float]:
    """CPUs and GPUs to be shared out over 'auto' groups: the CPUs of one node, because an actor lives on one."""
    cpus = max((node.get("CPU", 0.0) for node in nodes), default=0.0)
    gpus = 0.0 if context.device == "cpu" else sum(node.get("GPU", 0.0) for node in nodes)
    return cpus, gpus


def check_demand(graph: Graph, nodes: Sequence[Node], context: RunContext) -> None:
    """Hold what the placement wants against what the cluster has. `nodes`: resources of each, as Ray counts them.

    Raises: GraphError that names the group, what it wants and what there is.
    """
    for resource in _resources(graph):
        _check_one(graph, nodes, resource)
    for group in graph.placement:
        if not any(_fits(bundle(group), node) for node in nodes):
            wants = ", ".join(f"{amount:g} {name}" for name, amount in bundle(group).items())
            raise GraphError(
                f"placement wants a node with {wants} for '{', '.join(group.stages)}'; no node has all of that. "
                f"Lower what it wants, or add such a node."
            )
    if context.device == "cuda" and not any(node.get("GPU") for node in nodes):
        raise GraphError("the device is to be 'cuda', the cluster has no GPU. Use --device auto, or add a node.")
    if graph.strategy == "strict_pack":
        _check_strict_pack(graph, nodes)
    if graph.strategy == "strict_spread":
        _check_strict_spread(graph, nodes)


def _resources(graph: Graph) -> list[str]:
    named = dict.fromkeys(name for group in graph.placement for name in group.resources)
    return ["CPU", "GPU", *named]


def _check_one(graph: Graph, nodes: Sequence[Node], resource: str) -> None:
    """Of one resource, one replica against the largest node, and all against the sum."""
    setting = {"CPU": "num_cpus", "GPU": "num_gpus"}.get(resource, f"resources.{resource}")
    unit = f"{resource}s" if resource in ("CPU", "GPU") else f"'{resource}'"
    there = [node.get(resource, 0.0) for node in nodes]
    remedy = f"Lower replicas or {setting}, or add a node."
    wanted = [(group, bundle(group).get(resource, 0.0)) for group in graph.placement]
    for group, amount in wanted:
        wants = f"placement wants {amount:g} {unit} for '{', '.join(group.stages)}'"
        if amount > max(there, default=0.0):
            raise GraphError(f"{wants}, the largest node has {max(there, default=0.0):g}. {remedy}")
    total = sum(group.replicas * amount for group, amount in wanted)
    if total > sum(there) + ROUNDING:
        sums = (f"{g.replicas} x {amount:g} for '{', '.join(g.stages)}'" for g, amount in wanted if amount)
        raise GraphError(
            f"placement wants {total:g} {unit} ({'; '.join(sums)}), the cluster has {sum(there):g}. {remedy}"
        )


def _check_strict_pack(graph: Graph, nodes: Sequence[Node]) -> None:
    whole: dict[str, float] = {}
    for group in graph.placement:
        for name, amount in bundle(group).items():
            whole[name] = whole.get(name, 0.0) + group.replicas * amount
    if not any(_fits(whole, node) for node in nodes):
        wants = ", ".join(f"{amount:g} {name}" for name, amount in whole.items())
        raise GraphError(
            f"strategy strict_pack wants all replicas on one node, together {wants}; no node has that. "
            f"Take strategy: pack, or lower replicas."
        )


def _check_strict_spread(graph: Graph, nodes: Sequence[Node]) -> None:
    """Each replica on a node of its own: as many as can be paired, by augmenting paths."""
    replicas = [bundle(group) for group in graph.placement for _ in range(group.replicas)]
    holder: dict[int, int] = {}

    def place(replica: int, tried: set[int]) -> bool:
        for number, node in enumerate(nodes):
            if number not in tried and _fits(replicas[replica], node):
                tried.add(number)
                if number not in holder or place(holder[number], tried):
                    holder[number] = replica
                    return True
        return False

    found = sum(place(replica, set()) for replica in range(len(replicas)))
    if found < len(replicas):
        raise GraphError(
            f"strategy strict_spread wants a node for each of {len(replicas)} replicas; of the cluster's {len(nodes)} "
            f"nodes only {found} can be given one. Take strategy: spread, lower replicas, or add nodes."
        )


def _fits(wants: Mapping[str, float], node: Node) -> bool:
    return all(amount <= node.get(name, 0.0) + ROUNDING for name, amount in wants.items())
