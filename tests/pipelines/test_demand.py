"""What a placement wants, held against what a cluster has: each kind of shortage has its own sentence."""

from __future__ import annotations

from dataclasses import replace

import pytest

from operators.errors import GraphError
from pipelines.demand import bundle, check_demand, totals
from pipelines.graph import RunContext
from tests.pipelines.small_stages import graph

ALL = ["unpack", "paint", "window", "total"]
ONE = [{"stages": ALL, "num_cpus": 1}]
RACK = [{"stages": ALL[:1], "num_cpus": 1, "resources": {"rack": 1}}, {"stages": ALL[1:], "num_cpus": 1}]
THREE = [RACK[0], RACK[1] | {"replicas": 2}]


@pytest.mark.parametrize(
    ("placement", "nodes", "device", "strategy", "message"),
    [
        pytest.param(
            ONE, [], "cpu", "pack", "placement wants 1 CPUs for 'unpack, paint, window, total', the ", id="no-node"
        ),
        pytest.param(
            [{"stages": ALL, "num_gpus": 2}],
            [{"CPU": 8.0, "GPU": 1.0}],
            "auto",
            "pack",
            "placement wants 2 GPUs for 'unpack, paint, window, total', the largest node has 1. Lower replicas or ",
            id="gpus-of-one-actor",
        ),
        pytest.param(
            [{"stages": ALL[:1]}, {"stages": ALL[1:], "replicas": 3, "num_cpus": 2}],
            [{"CPU": 2.0}, {"CPU": 2.0}],
            "auto",
            "pack",
            "placement wants 6.2 CPUs (1 x 0.2 for 'unpack'; 3 x 2 for 'paint, window, total'), the cluster has 4. ",
            id="cpus-of-all",
        ),
        pytest.param(
            ONE, [{"CPU": 2.0}], "cuda", "pack", "the device is to be 'cuda', the cluster has no GPU.", id="no-gpu"
        ),
        pytest.param(
            RACK,
            [{"CPU": 4.0}],
            "cpu",
            "pack",
            "placement wants 1 'rack' for 'unpack', the largest node has 0. Lower replicas or resources.rack, or add",
            id="no-custom-resource",
        ),
        pytest.param(
            [{"stages": ALL, "num_cpus": 2, "resources": {"rack": 1}}],
            [{"CPU": 4.0}, {"CPU": 1.0, "rack": 1.0}],
            "cpu",
            "pack",
            "placement wants a node with 2 CPU, 1 rack for 'unpack, paint, window, total'; no node has all of that.",
            id="all-there-on-no-one-node",
        ),
        pytest.param(
            THREE,
            [{"CPU": 2.0, "rack": 1.0}, {"CPU": 2.0}],
            "cpu",
            "strict_pack",
            "strategy strict_pack wants all replicas on one node, together 3 CPU, 1 rack; no node has that.",
            id="strict-pack",
        ),
        pytest.param(
            THREE,
            [{"CPU": 8.0, "rack": 1.0}, {"CPU": 8.0}],
            "cpu",
            "strict_spread",
            "strategy strict_spread wants a node for each of 3 replicas; of the cluster's 2 nodes only 2 can be given",
            id="strict-spread",
        ),
    ],
)
def test_demand_is_held_against_the_cluster(placement, nodes, device, strategy, message):
    placed = replace(graph(placement).placed(2, 0), strategy=strategy)
    with pytest.raises(GraphError) as raised:
        check_demand(placed, nodes, RunContext(device=device))
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("placement", "nodes", "strategy"),
    [
        pytest.param(ONE, [{"CPU": 1.0}], "pack", id="just-so"),
        pytest.param([{"stages": ALL, "replicas": 3}], [{"CPU": 1.0}], "pack", id="three-thirds"),
        pytest.param(THREE, [{"CPU": 3.0, "rack": 1.0}], "strict_pack", id="strict-pack"),
        # the first node found for the two without a rack is the only one with it: they must make way
        pytest.param(THREE, [{"CPU": 1.0, "rack": 1.0}, {"CPU": 1.0}, {"CPU": 1.0}], "strict_spread", id="way-is-made"),
    ],
)
def test_what_fits_is_let_through(placement, nodes, strategy):
    context = RunContext(device="cpu")
    check_demand(replace(graph(placement).placed(*totals(nodes, context)), strategy=strategy), nodes, context)


def test_a_bundle_has_what_a_replica_wants_and_no_zeros():
    (group,) = graph([{"stages": ALL, "num_cpus": 0.5, "num_gpus": 0, "resources": {"rack": 2}}]).placement
    assert bundle(group) == {"CPU": 0.5, "rack": 2.0}
