"""Settings of a deployment: what is refused, and the graph that comes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from operators.errors import ConfigError
from operators.live.addresses import NotAllowed
from operators.live.camera import Camera
from operators.live.pushed import Pushed
from operators.live.queue import LiveQueue
from operators.live.stage import LiveConfig
from pipelines.config import load_yaml, resolve
from pipelines.graph import load_graph
from pipelines.serving.config import read_config
from pipelines.serving.deployed import deployed, live, source_of
from pipelines.serving.streams import StreamSpec
from pipelines.stages import STAGES


def test_no_setting_gives_the_shipped_graph() -> None:
    served = deployed(read_config({}), 2, 0)
    assert [stage.name for stage in served.graph.stages][:2] == ["receive", "preprocess"]
    assert served.graph.placement[0].num_cpus == 2 and served.context.network.weights.is_absolute()


def test_the_deployment_file_is_one() -> None:
    (application,) = load_yaml(resolve("configs/deployments/live.yaml"))["applications"]
    assert application["import_path"] == "pipelines.serving.app:build"
    assert read_config(application["args"]) == replace(read_config({}), graph="configs/graphs/live.yaml")


def test_the_live_graph_is_the_offline_one_but_for_its_first_stage() -> None:
    offline = load_graph("configs/graphs/offline.yaml", STAGES)
    shipped = load_graph("configs/graphs/live.yaml", STAGES)
    filled = [replace(one, settings=replace(one.settings, least=None)) if hasattr(one.settings, "least") else one
              for one in shipped.stages[1:]]  # fmt: skip
    assert tuple(filled) == offline.stages[1:] != shipped.stages[1:], "only what a short batch is filled up to differs"
    assert shipped.stages[0].kind is live(offline).stages[0].kind is STAGES["receive"]


@pytest.mark.parametrize("network", ["iai_tiny", "tltm_tiny"])
def test_any_network_s_own_graph_is_served(network: str) -> None:
    graph = deployed(read_config({"network": f"configs/networks/{network}.yaml", "replicas": 2}), 2, 0).graph
    assert isinstance(graph.stages[0].settings, LiveConfig) and graph.placement[0].replicas == 2


def test_a_graph_that_is_none_for_the_network_is_told_before_anything_is_started() -> None:
    args = {"network": "configs/networks/iai_tiny.yaml", "graph": "configs/graphs/live.yaml"}
    with pytest.raises(ConfigError, match="'iai_condinst' remembers past frames .* needs the stage 'identify'"):
        deployed(read_config(args), 2, 0)


@pytest.mark.parametrize(
    "args, said",
    [
        pytest.param({"camera": {"silence": 3}}, "camera.silence: no such setting", id="unknown"),
        pytest.param({"max_streams": 0}, "max_streams is 0", id="too small"),
        pytest.param({"cameras": {"a": 3}}, "cameras.a: expected a text", id="no address"),
        pytest.param({"allow": {"schemes": ["gopher"]}}, "gopher", id="scheme"),
        pytest.param({"guard": {"max_streams": 0}}, "max_streams is 0", id="guard"),
        pytest.param({"policy": "block_all"}, "'block'", id="policy"),
    ],
)
def test_settings_that_are_refused(args: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read_config(args)


@pytest.mark.parametrize("name", ["", "a/b", "..", ".hidden", "x" * 65, "a b", "a\n", "ä"])
def test_ids_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be used"):
        StreamSpec(id=name)


def test_own_cameras_may_be_anywhere_and_others_not() -> None:
    """A camera of the settings is allowed under its own name and address alone."""
    config = read_config({"cameras": {"own": "rtsp://10.0.0.5/live"}})
    queue = LiveQueue(1)
    assert isinstance(source_of(config, config.specs()[0], queue), Camera)
    assert isinstance(source_of(config, StreamSpec(id="pushed"), queue), Pushed)
    for name, url in (("other", "rtsp://10.0.0.5/live"), ("own", "rtsp://10.0.0.6/live"), ("x", "file:///etc/passwd")):
        with pytest.raises(NotAllowed):
            config.allow.check(url)
            source_of(config, StreamSpec(id=name, url=url), queue)
