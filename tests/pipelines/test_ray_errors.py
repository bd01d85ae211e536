"""What Ray's errors mean: the very objects that Ray makes."""

from __future__ import annotations

import socket

import pytest
from ray import exceptions
from ray.core.generated.common_pb2 import ActorDiedErrorContext

from pipelines.ray_errors import answers, is_death, line, of_node

ACTOR = bytes(range(16))


def died(message: str) -> exceptions.ActorDiedError:
    at = {"actor_id": ACTOR, "class_name": "Replica", "node_ip_address": "192.0.2.1"}
    return exceptions.ActorDiedError(ActorDiedErrorContext(error_message=message, **at))


BROKEN = exceptions.ActorUnavailableError("The actor is temporarily unavailable: RpcError: Socket closed", ACTOR)


@pytest.mark.parametrize("error, found", [
    pytest.param(exceptions.ActorDiedError(), False, id="no cause"),
    pytest.param(exceptions.WorkerCrashedError(), False, id="a worker crashed"),
    pytest.param(died("The actor is dead because its worker process has died."), False, id="the process of an actor"),
    pytest.param(died("The actor died because its node has died. Node Id: 00ff"), True, id="its node"),
    pytest.param(exceptions.NodeDiedError("gone"), True, id="a node"),
    pytest.param(exceptions.ActorUnavailableError("no", None), False, id="out of reach, nobody knows which actor"),
    pytest.param(BROKEN, False, id="out of reach, no cluster to ask"),
])  # fmt: skip
def test_what_no_frame_did(error, found):
    assert is_death(error) and of_node(error) is found
    assert "class_name" not in line(error) and "\n" not in line(error)


def test_a_node_answers_while_its_port_is_open():
    with socket.create_server(("127.0.0.1", 0)) as server:
        node = {"NodeManagerAddress": "127.0.0.1", "NodeManagerPort": server.getsockname()[1]}
        assert answers(node)
    assert not answers(node)
