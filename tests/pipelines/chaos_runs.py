"""A trial on a simulated cluster, in a process of its own: python -m tests.pipelines.chaos_runs OUT.

Of a graph of small stages whose replica is killed half-way, one of which forgets what it is told to restore. Writes
the report, as `maskstream chaos` does, to OUT.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from pipelines.chaos import trial
from pipelines.chaos_cluster import simulated
from pipelines.chaos_report import write_report
from pipelines.chaos_scenario import Blow, Delay, Limits, Nodes, Scenario
from pipelines.chaos_verdict import judge
from pipelines.graph import Graph, RunContext
from pipelines.placement import Recovery
from tests.pipelines.small_stages import Total, graph, source

SCENARIO = Scenario(
    seed=3,
    nodes=Nodes(count=1, cpus=2, store_mb=80),
    blows=(Blow(kind="process", every=1000, first=60),),
    delays=(Delay(stage="total", every=4, seconds=0.01),),
    limits=Limits(recovery_s=300, settle_s=120),             # a machine that runs tests may be busy
)
SOURCES = [source("a", length=70), source("b", length=50), source("c", "fault", length=40)]


class Forgetful(Total):
    """Counts from the start again, wherever it is restored."""

    def restore(self, stream: str, state: bytes) -> None:
        self.open(stream)


def forgetful() -> Graph:
    whole = graph(batching={"frames": 6})
    *stages, last = whole.stages
    kind = replace(last.kind, build=lambda settings, context: Forgetful(settings))
    return replace(whole, stages=(*stages, replace(last, kind=kind)), recovery=Recovery(snapshot_every=8))


def main(out: Path) -> None:
    with simulated(SCENARIO.nodes, forgetful(), "cpu") as nodes:
        done = trial(forgetful(), SOURCES, RunContext(device="cpu"), SCENARIO, nodes)
    write_report(done, judge(done), "a graph that forgets", out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
