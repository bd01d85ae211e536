"""What the results of a run depend on, as a mark: results of one folder have one mark.

In:     a network with its weights, a graph, the settings of the sinks
Out:    Mark, a digest of each: a run that goes on with another one says which it is (manifest.py)
State:  none

Not in it: how stages are spread over processes, how many streams are open, how far a decoder reads ahead, on which
device: results are the same, on another device but for rounding. Nor which outputs are saved: more may follow.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from operators.detectors import DETECTORS
from operators.proposals import ProposalsConfig
from operators.sinks import SinkConfig
from pipelines.graph import Graph
from pipelines.manifest import Mark, digest_of
from pipelines.networks import NetworkSpec, as_plain

NOT_OF_RESULTS = {"prefetch"}
"""Settings of stages that change when frames come, never what they are."""


def mark_of(spec: NetworkSpec, graph: Graph, sinks: SinkConfig) -> Mark:
    """Of everything that results depend on, but the videos. The network must have weights."""
    assert spec.weights is not None, "read_checkpoint comes first"
    network = [spec.name, as_plain(spec.config), as_plain(spec.detect), spec.association, as_plain(spec.inference)]
    if DETECTORS[spec.name].relates:
        network.append(as_plain(spec.edges))
    stages = [
        [stage.name, type(stage.settings).__name__,
         {name: value for name, value in as_plain(stage.settings).items() if name not in NOT_OF_RESULTS}]
        for stage in graph.stages
    ]  # fmt: skip
    return {
        "graph": digest_of(stages),
        "network": digest_of(network),
        "sinks": digest_of(_of_sinks(sinks)),
        "weights": _digest_of_file(spec.weights),
    }


def _of_sinks(sinks: SinkConfig) -> dict[str, Any]:
    """Settings that came later do not count at their defaults: folders from before go on."""
    plain = as_plain(sinks)
    if sinks.davis == ProposalsConfig():
        plain.pop("davis")
    return plain


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()[:16]
