"""What Ray's errors mean for a run: an actor is dead, an object is lost, or a stage raised.

In:     what `ray.get` raised of a call
Out:    which of the three it is, and the error as if it had been raised here
Limits: a machine that has lost its power is found out by a connection that is not made within ANSWER_S
"""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from typing import Any

import ray
import ray.exceptions
from ray._private import state  # where an actor lives the public API tells by a dashboard alone

from operators.errors import MaskstreamError, StageError

DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
)
ANSWER_S = 2.0


def is_death(error: ray.exceptions.RayError) -> bool:
    """The actor is gone, or out of reach, which is made the same by ending it."""
    return isinstance(error, DEATHS)


def is_loss(error: ray.exceptions.RayError) -> bool:
    """An object is gone with its node: what the call was to take, or what it gave."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return isinstance(cause, (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError))


def of_node(error: ray.exceptions.RayError) -> bool:
    """The whole node is gone: no frame did that. Asks the cluster, and the node, where the error leaves it open."""
    if isinstance(error, ray.exceptions.NodeDiedError) or "node has died" in str(error) or "node died" in str(error):
        return True
    # Ray waits a second for the word of a death. Of a process it comes at once, from its node; of a node the cluster
    # finds out after half a minute. Until then there is this error, which says no more than that a connection broke.
    return isinstance(error, ray.exceptions.ActorUnavailableError) and _node_is_silent(error.actor_id)


def _node_is_silent(actor_id: str | None) -> bool:
    """Whether the node of an actor is known to be dead, or answers no more. False where it is not known which it is."""
    if actor_id is None or not ray.is_initialized():
        return False
    home = state.actors(actor_id).get("Address", {}).get("NodeID")
    node = next((node for node in ray.nodes() if node["NodeID"] == home), None)
    return node is not None and not (node["Alive"] and answers(node))


def answers(node: Mapping[str, Any]) -> bool:
    """Whether the raylet of a node of `ray.nodes()` takes a connection. It is a node's life: Ray ends the workers of a
    node that has none."""
    try:
        with socket.create_connection((node["NodeManagerAddress"], node["NodeManagerPort"]), ANSWER_S):
            return True
    except OSError:     # refused, no way there, or no answer in time
        return False


def told(error: ray.exceptions.RayError, name: str) -> MaskstreamError:
    """What a worker of the group `name` ran into, as if it had been raised here."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(cause, MaskstreamError):
        return cause
    return StageError(f"a worker of {name} failed: {type(cause).__name__}: {line(cause)}")


def line(error: BaseException) -> str:
    """What an error says, on one line; of a death without Ray's names for the actor and its guesses at causes."""
    said = re.sub(r"class_name: .*? ip: \S+ ", "", " ".join(str(error).split()))
    return said.partition(" Some common causes include:")[0][:500]
