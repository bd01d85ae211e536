"""Which processes a placement amounts to, as far as a plan is concerned, and what of it no forecast says.

In:     a Graph whose amounts are known
Out:    Share: so many processes with all stages, side by side, and the CPUs of each; sentences for people
State:  `on_share` holds this process to its CPUs while it lasts
Limits: replicas are taken to be alike, each with an equal part of the streams; groups are not played through one by one
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from operators.cpus import usable_cpus
from pipelines.graph import Graph


@dataclass(frozen=True)
class Share:
    """What one of several equal processes has."""

    copies: int
    cpus: float
    """Of each."""


def share_of(graph: Graph) -> Share:
    """One process for each replica of the group that has fewest of them, and the placement's CPUs shared out."""
    copies = min(group.replicas for group in graph.placement)
    cpus = sum(group.replicas * float(group.num_cpus) for group in graph.placement)
    return Share(copies, cpus / copies)


def left_out(graph: Graph) -> tuple[str, ...]:
    """What the placement says and the forecast does not know, a sentence each."""
    share, told = share_of(graph), []
    if share.cpus < 1:
        told.append(f"Each of {share.copies} processes has {share.cpus:.2g} of a CPU, and was measured on a whole one: "
                    f"count on no more than {share.cpus:.0%} of what is said here.")  # fmt: skip
    if len(graph.placement) == 1:
        return tuple(told)
    named = "; ".join(f"{group.replicas} x '{', '.join(group.stages)}'" for group in graph.placement)
    told.append(
        f"The graph is split into {len(graph.placement)} groups ({named}). They were measured as one process with all "
        f"of their CPUs: frames take time to travel between groups, and groups work side by side; neither is in the "
        f"forecast. Try it with real cameras."
    )
    return tuple(told)


@contextmanager
def on_share(share: Share) -> Iterator[None]:
    """Threads that are begun meanwhile run on as many CPUs as the share has, where other processes want the rest."""
    count = max(1, round(share.cpus))
    if share.copies == 1 or count >= usable_cpus() or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
