"""How tensors travel between groups without the object store: Ray's tensor transport, where a placement asks for it.

In:     placements with `transport: gloo` (CPU) or `nccl` (GPU to GPU), and the actors of these groups and the next ones
Out:    a communicator for each backend, through which tensors go from actor to actor
Limits: alpha in Ray. An actor is in one communicator of a backend, so all groups with that transport and the groups
        after them share one. What a call gave goes whole to each replica of the next group that takes a part of it.
        Nothing is kept on the way, and a communicator without one of its members is of no use: when one of these actors
        dies, all of them are made anew, and all streams begin again from their last snapshots

Only tensors go this way; arrays (decoded frames) and all else go through the object store, as everything does by
default. nccl has not been tried: it needs several GPUs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import ray.exceptions
from ray._private import worker  # what Ray holds of its transfers can be let go of by no public name

from operators.errors import GraphError
from pipelines.graph import Graph


def joined(graph: Graph) -> dict[str, list[int]]:
    """Backend -> numbers of the groups that share its communicator; none where all goes through the object store."""
    found: dict[str, set[int]] = {}
    for number, group in enumerate(graph.placement):
        if group.transport != "object_store":
            found.setdefault(group.transport, set()).update((number, number + 1))
    return {backend: sorted(numbers) for backend, numbers in found.items()}


def check_transports(graph: Graph) -> None:
    """Raises: GraphError where a transport cannot be had. All amounts of the graph must be known."""
    for number, group in enumerate(graph.placement):
        name = ", ".join(group.stages)
        if group.transport == "object_store":
            continue
        if number + 1 == len(graph.placement):
            raise GraphError(
                f"placement of '{name}' says transport: {group.transport}, but it is the last group: what leaves it "
                f"goes to the driver. Take the transport out."
            )
        without = [each for each in graph.placement[number : number + 2] if not each.num_gpus]
        if group.transport == "nccl" and without:
            raise GraphError(
                f"placement of '{name}' says transport: nccl, which goes from GPU to GPU, but "
                f"'{', '.join(without[0].stages)}' has no GPU. Give it one by num_gpus, or take gloo or object_store."
            )


def connect(actors: Sequence[Any], backend: str) -> Any:
    """A communicator of these actors. Raises: RayError if one of them dies meanwhile."""
    from ray.experimental.collective import create_collective_group  # alpha: only where it is asked for

    return create_collective_group(list(actors), backend=backend)


def disconnect(communicator: Any) -> None:
    """Forget a communicator whose actors are dead, and all that Ray holds of what went through it."""
    from ray.experimental.collective import destroy_collective_group

    _unwatch()
    # The actors cannot be told any more; and where one died while it sent, Ray has ended the communicator itself.
    with contextlib.suppress(ray.exceptions.RayError, ValueError):
        destroy_collective_group(communicator)


def _unwatch() -> None:
    """End the thread in which Ray watches transfers, of this process: it holds the last one's references until another
    comes, which begins the thread anew. What waits for it is let go too."""
    manager = worker.global_worker.rdt_manager
    manager.shutdown()
    while not manager._unmonitored_transfers.empty():
        manager._unmonitored_transfers.get()
