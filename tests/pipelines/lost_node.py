"""A run on two simulated nodes, one of which is lost half-way: python -m tests.pipelines.lost_node OUT.

The lost node has the first group, so what it gave is lost too, while the calls that gave it are told as done. Another
one joins. Writes to OUT 'equal' if the results are those of a calm run, 'rewound' if streams were done again,
'blameless' if no frame was suspected of the death.
"""

from __future__ import annotations

import logging
import sys
from dataclasses import replace
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

from pipelines import crew
from pipelines.actors import run_actors
from pipelines.graph import RunContext
from pipelines.local import run_local
from pipelines.placement import Recovery
from pipelines.status import Status
from tests.pipelines.small_stages import graph, source, told

CPU = RunContext(device="cpu")
HERE, THERE = {"num_cpus": 0.5, "resources": {"here": 1}}, {"num_cpus": 0.5, "resources": {"there": 1}}
GROUPS = [{"stages": ["unpack"], **THERE}, {"stages": ["paint", "window", "total"], **HERE}]
QUICK = {
    "worker_niceness": 0,
    "health_check_initial_delay_ms": 1000,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 10_000,  # of a node that is there; of one that is gone there is an answer at once
    "health_check_failure_threshold": 4,
}
"""Ray's own settings find out after half a minute that a node is gone."""


def main(out: Path) -> None:
    head = {"num_cpus": 2, "resources": {"here": 4}, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    lost = cluster.add_node(num_cpus=2, resources={"there": 4})
    ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
    of_node, blamed = crew.of_node, []

    def noted(error: ray.exceptions.RayError) -> bool:
        blamed.append(not of_node(error))
        return not blamed[-1]

    crew.of_node = noted
    sources = [source(f"s{i}", length=80) for i in range(3)]
    split = replace(graph(GROUPS, {"frames": 6}, unpack={"side": 400}), recovery=Recovery(snapshot_every=10))
    statuses: list[Status] = []
    given = []
    for result in run_actors(split, sources, CPU, on_status=statuses.append):
        given.append(result)
        if len(given) == 90:
            cluster.remove_node(lost, allow_graceful=False)
            cluster.add_node(num_cpus=2, resources={"there": 4})
    is_equal = told(given) == told(run_local(graph(unpack={"side": 400}), sources, CPU))
    words = ["equal" if is_equal else "different", "rewound" if statuses[-1].rewinds else "calm"]
    words.append("blamed" if any(blamed) else "blameless")
    out.write_text(" ".join(words))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
