"""Which replica a call goes to: the one that it names, for whoever has a stream; else by the hash of its session.

In:     handle.options(session_id=...): the id of a replica, or of a stream
Out:    that replica alone; for a stream always the same one, as long as it lives
State:  the ring of ConsistentHashRouter
"""

from __future__ import annotations

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import PendingRequest, RunningReplica


class OwnerRouter(ConsistentHashRouter):
    """A call for a replica that is gone goes to another, which says that it does not have the stream."""

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        key = self._routing_key(pending_request)
        named = [replica for replica in candidate_replicas if replica.replica_id.unique_id == key]
        if named:
            return [named]
        return await super().choose_replicas(candidate_replicas, pending_request)
