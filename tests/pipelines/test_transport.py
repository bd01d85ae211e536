"""Tensors from process to process: which groups are joined, what is refused, and that results are the same."""

from __future__ import annotations

import pytest

from operators.errors import GraphError
from pipelines.transport import check_transports, disconnect, joined
from tests.pipelines.small_stages import graph

ALL = ["unpack", "paint", "window", "total"]


def _split(*transports: str, **settings) -> list[dict]:
    return [{"stages": [n], "transport": t, **settings} for n, t in zip(ALL, transports, strict=True)]


@pytest.mark.parametrize(
    ("transports", "expected"),
    [
        pytest.param(["object_store"] * 4, {}, id="none"),
        pytest.param(["gloo", "object_store", "object_store", "object_store"], {"gloo": [0, 1]}, id="one-edge"),
        pytest.param(["gloo", "object_store", "gloo", "object_store"], {"gloo": [0, 1, 2, 3]}, id="one-communicator"),
        pytest.param(["gloo", "nccl", "object_store", "object_store"], {"gloo": [0, 1], "nccl": [1, 2]}, id="two"),
    ],
)
def test_groups_are_joined_by_backend(transports, expected):
    assert joined(graph(_split(*transports))) == expected


@pytest.mark.parametrize(
    ("transports", "settings", "message"),
    [
        pytest.param(
            ["object_store"] * 3 + ["gloo"],
            {},
            "placement of 'total' says transport: gloo, but it is the last group",
            id="to-the-driver",
        ),
        pytest.param(
            ["nccl", "object_store", "object_store", "object_store"],
            {"num_gpus": 0},
            "placement of 'unpack' says transport: nccl, which goes from GPU to GPU, but 'unpack' has no GPU.",
            id="nccl-without-gpus",
        ),
    ],
)
def test_transports_that_cannot_be_had(transports, settings, message):
    with pytest.raises(GraphError) as raised:
        check_transports(graph(_split(*transports, **settings)).placed(4, 0))
    assert str(raised.value).startswith(message)
    check_transports(graph(_split(*["object_store"] * 4)).placed(4, 0))


def test_a_communicator_that_ray_ended_itself_is_forgotten_all_the_same():
    """As it does where an actor dies while it sends: then the run that goes on finds it gone."""
    disconnect("ended before")
