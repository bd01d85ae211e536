"""The registry as a named actor, found or made by whoever needs it first.

In:     a name of a method of Registry, and its arguments
Out:    what it gives, or the error that it raises
State:  none here; the actor is detached: it outlives every replica and ends with the cluster
Limits: an actor that died is made anew, empty: owners tell it what they have
"""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import ray
import ray.exceptions

from operators.errors import MaskstreamError
from pipelines.serving.registry import Registry

NAMESPACE = "maskstream"
NAME = "registry"
SERVE_NAMESPACE = "serve"
TIMEOUT_S = 20.0


def is_dead(actor: str) -> bool:
    """Whether there is no living actor of this name among Serve's replicas."""
    try:
        ray.get_actor(actor, namespace=SERVE_NAMESPACE)
    except ValueError:
        return True
    return False


class RegistryActor:
    """Registry, whose own errors travel as values: out of an actor they would come wrapped."""

    def __init__(self) -> None:
        self._registry = Registry(is_dead)

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._registry, method)(*arguments)
        except MaskstreamError as error:
            return error


@functools.lru_cache(maxsize=8)
def registry(app: str) -> ray.actor.ActorHandle:
    """The registry of an application; made if there is none."""
    options = {"name": f"{NAME} of {app}", "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    return ray.remote(RegistryActor).options(num_cpus=0, max_restarts=-1, max_task_retries=3, **options).remote()


async def call_registry(app: str, method: str, *arguments: Any) -> Any:
    """Raises what the method raises; ray.exceptions.RayError where the registry cannot be reached."""
    try:
        given = await registry(app).call.remote(method, *arguments)
    except ray.exceptions.RayActorError:
        registry.cache_clear()                  # the next call finds, or makes, another one
        raise
    if isinstance(given, MaskstreamError):
        raise given
    return given


def forget_registry(app: str) -> None:
    """End the registry of an application that is not there any more; none is fine too."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(f"{NAME} of {app}", namespace=NAMESPACE))
    registry.cache_clear()
