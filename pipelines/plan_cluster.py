"""The plan of a Ray cluster: one process with the graph is measured there, and counted as often as there is room.

In:     a connected cluster; what `plan` takes
Out:    Plan with `copies`
State:  one Ray task while it measures
Limits: nodes are taken to be as fast as the one that the task came to, and other work on them is not counted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import ray
from ray.exceptions import RayTaskError

from operators.errors import GraphError, MaskstreamError
from pipelines.demand import bundle, totals
from pipelines.graph import Graph, RunContext
from pipelines.plan import Plan, PlanConfig, Progress, plan
from pipelines.plan_groups import share_of
from pipelines.serving.config import ServeConfig
from pipelines.serving.deployed import deployed

MORE_S = 300.0
"""For the task to find a place and to load the network, beside the time of measuring."""


def plan_on_cluster(serving: ServeConfig, config: PlanConfig, tell: Progress) -> Plan:
    """Raises: GraphError where no node has what the graph wants, or none has it free in time; as `plan`."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    found = deployed(serving, *totals(nodes, RunContext(device=serving.device)))
    wants = _whole(found.graph)
    copies = copies_of(wants, nodes)
    if copies == 0:
        said = ", ".join(f"{amount:g} {name}" for name, amount in wants.items())
        raise GraphError(f"no node of the cluster has {said}, which one process with this graph wants. Lower num_cpus "
                         f"or num_gpus, or add a node.")  # fmt: skip
    tell(f"measuring one process on the cluster, of {copies} that it has room for")
    asked = share_of(found.graph).copies
    others = {name: amount for name, amount in wants.items() if name not in ("CPU", "GPU")}
    options = {"num_cpus": wants.get("CPU", 0), "num_gpus": wants.get("GPU", 0), "resources": others, "max_retries": 0}
    cpus = max(1, int(wants.get("CPU", 1)))
    task = ray.remote(plan).options(**options).remote(found.graph, found.context, config, cpus=cpus)
    try:
        answer = ray.get(task, timeout=config.seconds + MORE_S)
        return replace(answer, copies=copies, hints=(*answer.hints, *_replicas_hint(asked, copies, cpus)))
    except ray.exceptions.GetTimeoutError:
        ray.cancel(task, force=True)
        raise GraphError(f"no process of the cluster measured within {config.seconds + MORE_S:g} s. Is all of it "
                         f"in use?") from None  # fmt: skip
    except RayTaskError as error:
        if isinstance(error.cause, MaskstreamError):
            raise error.cause from None
        raise


def _replicas_hint(asked: int, copies: int, cpus: int) -> list[str]:
    """Where as many processes as there is room for are not those that the graph asks for."""
    if asked == copies:
        return []
    return [f"The graph asks for {asked} such process{'es' * (asked != 1)}: for {copies}, say replicas: {copies} and "
            f"num_cpus: {cpus} in its placement."]  # fmt: skip


def _whole(graph: Graph) -> dict[str, float]:
    """What a process with all stages wants: what a replica of each of its groups does, together."""
    whole: dict[str, float] = {}
    for group in graph.placement:
        for name, amount in bundle(group).items():
            whole[name] = whole.get(name, 0.0) + amount
    return whole


def copies_of(wants: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How many processes fit side by side."""
    return sum(
        int(min((node.get(name, 0.0) / amount + 1e-6 for name, amount in wants.items()), default=0.0)) for node in nodes
    )
