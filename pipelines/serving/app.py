"""The application: each placement group of the graph a deployment, in front of them an ingress.

In:     `args` of a deployment's file, or the settings of `maskstream serve`
Out:    what `serve run pipelines.serving.app:build` runs

    ingress ─poll, push─► <graph>-0 (owns streams) ─batches─► <graph>-1 ─► ... ─► back to <graph>-0
       └────── who has what ──────► registry ◄── twice a second ──┘
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle, serve
from ray.serve.config import RequestRouterConfig

from operators.cpus import usable_cpus
from pipelines.demand import totals
from pipelines.graph import RunContext
from pipelines.placement import Placement
from pipelines.serving import routing
from pipelines.serving.config import ServeConfig, read_config
from pipelines.serving.deployed import deployed
from pipelines.serving.ingress import Ingress
from pipelines.serving.later import Later
from pipelines.serving.owner import RELEASE_S, Owner


def _router() -> RequestRouterConfig:
    """OwnerRouter by value, under its base's name: `serve status` and the dashboard import what they are named, and
    need not have this code."""
    cloudpickle.register_pickle_by_value(routing)
    try:
        router = cloudpickle.dumps(routing.OwnerRouter)
    finally:
        cloudpickle.unregister_pickle_by_value(routing)
    base = routing.ConsistentHashRouter
    named = {"request_router_class": f"{base.__module__}:{base.__name__}"}
    return RequestRouterConfig.from_serialized_request_router_cls(named, router)


ROUTER = _router()
HEALTH_S = 1.0
"""Serve notices a process that died with its next look, so often. A look costs less than a millisecond."""
STOP_LOOK_S = 0.2
"""A process that is to stop looks so often whether calls of it are under way, first after so long. Deployments are
stopped one after the other: it counts for each of them."""
MOST_CALLS = 4096
"""Under way at once in a process: a socket is one, for as long as it is open."""


def build(args: Mapping[str, Any] | ServeConfig) -> serve.Application:
    """The application. Raises: ConfigError, GraphError, CheckpointError, NotAllowed before anything is deployed."""
    config = args if isinstance(args, ServeConfig) else read_config(args)
    config.specs()
    served = deployed(config, *_amounts(config))
    name = Path(config.graph).stem if config.graph else "live"
    groups = served.graph.placement
    later = [
        _deployment(Later, f"{name}-{number}", groups[number], config.surge_percent).bind(served, number)
        for number in range(1, len(groups))
    ]
    owner = _deployment(Owner, f"{name}-0", groups[0], config.surge_percent).bind(config, served, *later)
    ingress = serve.deployment(Ingress, name="ingress").options(
        num_replicas=config.num_ingress, max_ongoing_requests=MOST_CALLS, ray_actor_options={"num_cpus": 0},
        graceful_shutdown_wait_loop_s=STOP_LOOK_S, graceful_shutdown_timeout_s=5.0, health_check_period_s=HEALTH_S,
        max_surge_percent=100,          # it asks for no CPU: a new one answers before the old one is stopped
    )  # fmt: skip
    return ingress.bind(config, owner)


def _deployment(cls: type, name: str, group: Placement, surge: int) -> serve.Deployment:
    """A deployment of one placement group: as many replicas, with what each of them is to have."""
    resources = {"num_cpus": group.num_cpus, "num_gpus": group.num_gpus, "resources": dict(group.resources)}
    return serve.deployment(cls, name=name).options(
        num_replicas=group.replicas, ray_actor_options={**resources, "runtime_env": {"env_vars": _ENVIRONMENT}},
        max_ongoing_requests=MOST_CALLS, request_router_config=ROUTER, health_check_period_s=HEALTH_S,
        health_check_timeout_s=20.0, max_surge_percent=surge,
        graceful_shutdown_wait_loop_s=STOP_LOOK_S, graceful_shutdown_timeout_s=RELEASE_S + 10,
    )  # fmt: skip


_ENVIRONMENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Before torch is loaded; pipelines/cli.py says why."""


def _amounts(config: ServeConfig) -> tuple[float, float]:
    """CPUs of a node and GPUs of the cluster, for amounts that are 'auto'."""
    if not ray.is_initialized():
        return float(usable_cpus()), 0.0
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return totals(nodes, RunContext(None, config.device))
