"""What Ray's errors mean for a run: an actor is dead, an object is lost, or a stage raised.

In:     what `ray.get` raised of a call
Out:    which of the three it is, and the error as if it had been raised here
"""

from __future__ import annotations

import re

import ray.exceptions

from operators.errors import MaskstreamError, StageError

DEATHS = (
    ray.exceptions.RayActorError,
    ray.exceptions.WorkerCrashedError,
    ray.exceptions.NodeDiedError,
    ray.exceptions.LocalRayletDiedError,
    ray.exceptions.OutOfMemoryError,
)


def is_death(error: ray.exceptions.RayError) -> bool:
    """The actor is gone, or out of reach, which is made the same by ending it."""
    return isinstance(error, DEATHS)


def is_loss(error: ray.exceptions.RayError) -> bool:
    """An object is gone with its node: what the call was to take, or what it gave."""
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    return isinstance(cause, (ray.exceptions.ObjectLostError, ray.exceptions.GetTimeoutError))


def of_node(error: ray.exceptions.RayError) -> bool:
    """The whole node is gone: no frame did that."""
    return isinstance(error, ray.exceptions.NodeDiedError) or "node has died" in str(error) or "node died" in str(error)


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
