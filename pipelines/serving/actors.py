"""The registry as a named actor, found or made by whoever needs it first.

In:     a name of a method of Registry, and its arguments
Out:    what it gives, or the error that it raises
State:  none here; the actor is detached: it outlives every replica, and ends with Serve (`serve shutdown`)
Limits: an actor that died is made anew, empty: owners tell it what they have
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import threading
import time
from typing import Any

import ray
import ray.exceptions
from ray import serve

from operators.errors import MaskstreamError
from pipelines.serving.registry import Registry

NAMESPACE = "maskstream"
NAME = "registry"
SERVE_NAMESPACE = "serve"
CONTROLLER = "SERVE_CONTROLLER_ACTOR"
"""Lives as long as Serve runs on the cluster, over its own restarts."""
LOOK_S = 1.0
SHUTDOWN_S = 30.0
"""Longest wait for Serve's processes to end."""


def is_dead(actor: str) -> bool:
    """Whether there is no living actor of this name among Serve's replicas."""
    try:
        ray.get_actor(actor, namespace=SERVE_NAMESPACE)
    except ValueError:
        return True
    return False


class RegistryActor:
    """Registry, whose own errors travel as values: out of an actor they would come wrapped."""

    def __init__(self, name: str) -> None:
        self._registry = Registry(is_dead)
        threading.Thread(target=_end_with_serve, args=(name,), daemon=True).start()

    def call(self, method: str, *arguments: Any) -> Any:
        try:
            return getattr(self._registry, method)(*arguments)
        except MaskstreamError as error:
            return error


def _end_with_serve(name: str) -> None:
    """End this process once Serve was shut down: what it served is not to come back with the next application."""
    look = threading.Event()
    while not look.wait(LOOK_S):
        try:
            ray.get_actor(CONTROLLER, namespace=SERVE_NAMESPACE)
        except ValueError:
            ray.kill(ray.get_actor(name, namespace=NAMESPACE))
            return
        except ray.exceptions.RayError:         # the cluster's head is away; it may come back
            continue


@functools.lru_cache(maxsize=8)
def registry(app: str) -> ray.actor.ActorHandle:
    """The registry of an application; made if there is none."""
    name = f"{NAME} of {app}"
    options = {"name": name, "namespace": NAMESPACE, "lifetime": "detached", "get_if_exists": True}
    return ray.remote(RegistryActor).options(num_cpus=0, max_restarts=-1, max_task_retries=3, **options).remote(name)


async def call_registry(app: str, method: str, *arguments: Any) -> Any:
    """Raises what the method raises; ray.exceptions.RayError where the registry cannot be reached.

    The call itself is made to its end when nobody waits for it any more. Ray would take it back with its caller, whose
    next calls an actor that is being started then lets wait for 30 s, for the one that never comes: a probe that gives
    up after a second was enough for no answer at all.
    """
    calling = asyncio.ensure_future(_called(app, method, *arguments))
    _CALLS.add(calling)
    calling.add_done_callback(_over)
    return await asyncio.shield(calling)


_CALLS: set[asyncio.Future[Any]] = set()
"""Under way: asyncio itself holds on to none."""


def _over(calling: asyncio.Future[Any]) -> None:
    _CALLS.discard(calling)
    if not calling.cancelled():
        calling.exception()                     # looked at: whoever waited may be gone


async def _called(app: str, method: str, *arguments: Any) -> Any:
    try:
        given = await registry(app).call.remote(method, *arguments)
    except ray.exceptions.RayActorError:
        registry.cache_clear()                  # the next call finds, or makes, another one
        raise
    if isinstance(given, MaskstreamError):
        raise given
    return given


def shut_down_serve() -> None:
    """serve.shutdown(), without the line that it leaves on the terminal: it waits within a call of the controller, of
    which Ray says on stdout that it failed, since it ends with the controller. This one asks, and looks."""
    with contextlib.suppress(ValueError, ray.exceptions.RayError):
        controller = ray.get_actor(CONTROLLER, namespace=SERVE_NAMESPACE)
        ray.get(controller.graceful_shutdown.remote(wait=False), timeout=SHUTDOWN_S)
        until = time.monotonic() + SHUTDOWN_S
        while time.monotonic() < until:
            ray.get_actor(CONTROLLER, namespace=SERVE_NAMESPACE)
            time.sleep(0.05)
    serve.shutdown()        # of what this process knew of it


def forget_registry(app: str) -> None:
    """End the registry of an application that is not there any more; none is fine too."""
    with contextlib.suppress(ValueError):
        ray.kill(ray.get_actor(f"{NAME} of {app}", namespace=NAMESPACE))
    registry.cache_clear()
