"""TLTM and its baseline in the graph: which stages fit which networks, whole videos, in one process and on Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from models.fused import InferenceConfig
from operators.errors import ConfigError
from operators.object_graph import PRESETS as WEIGHTS
from operators.object_graph import ObjectGraphConfig
from operators.previous import Previous
from operators.proposals import ProposalsConfig
from operators.relate import ByBoxes, ByEdges, Relate
from operators.shapes import PRESETS, write_youtube_vis
from operators.sinks import SinkConfig
from operators.youtube_vis_results import read_results
from pipelines.evaluation import EvaluationPlan, evaluate_network
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.manifest import digest_of
from pipelines.mark import mark_of
from pipelines.networks import NetworkSpec, as_plain, default_graph, read_network
from pipelines.stages import STAGES, association_of
from tests.pipelines.small_relations import MODEL, spec_of, with_weights

pytestmark = pytest.mark.usefixtures("one_thread")

TLTM_GRAPH, BASELINE, HEADS, IAI = (
    f"configs/graphs/offline{name}.yaml" for name in ("_tltm", "_centermask", "", "_iai")
)
@pytest.fixture(scope="module")
def tltm(tmp_path_factory) -> NetworkSpec:
    return with_weights(tmp_path_factory.mktemp("tltm"))


@pytest.fixture(scope="module")
def centermask(tmp_path_factory) -> NetworkSpec:
    return with_weights(tmp_path_factory.mktemp("centermask"), "centermask")


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "data"
    write_youtube_vis(folder, replace(PRESETS["easy"], num_frames=6), seed=4, num_clips=3)
    return folder


def graph_of(path: str, *overrides: str) -> Graph:
    return load_graph(path, STAGES, overrides)


def one_stage(graph, name):
    return replace(graph, stages=tuple(stage for stage in graph.stages if stage.name == name))


def built(graph: Graph, name: str, spec: NetworkSpec):
    (found,) = [stage for stage in graph.stages if stage.name == name]
    return found.kind.build(found.settings, RunContext(spec, "cpu"))


# ------------------------------------------------------------------------------------------ what fits what


@pytest.mark.parametrize("network, settings, path, rule", [
    pytest.param("tltm", {}, TLTM_GRAPH, "edges", id="tltm"),
    pytest.param("tltm", {"association": "boxes"}, TLTM_GRAPH, "boxes", id="tltm by boxes: row C of table 3"),
    pytest.param("tltm", {"model": MODEL | {"fuser": "none"}}, BASELINE, "edges", id="without a fuser"),
    pytest.param("centermask", {}, BASELINE, "boxes", id="the baseline"),
    pytest.param("centermask", {"association": "cosine_iou"}, HEADS, "cosine_iou", id="stills of one's own"),
])
def test_each_network_has_its_graph_and_its_rule(tmp_path, network, settings, path, rule):
    spec = spec_of(tmp_path, network, **settings)
    assert default_graph(spec) == path and association_of(graph_of(path), spec) == rule


def test_the_graph_may_ask_for_another_rule(tmp_path):
    """`score_a0_zero`: the released baseline's, on CenterMask."""
    spec = spec_of(tmp_path, "centermask", edges={"edge_weight": 0.0})
    assert association_of(graph_of(BASELINE, "relate.rule=edges"), spec) == "edges"
    assert association_of(graph_of(TLTM_GRAPH, "relate.rule=boxes"), spec_of(tmp_path)) == "boxes"


def test_stages_have_the_network_its_detector_and_the_settings(tltm, centermask):
    graph = graph_of(TLTM_GRAPH, "relate.max_unseen=30", "relate.max_tracks=99", "relate.max_per_frame=3")
    relate = built(graph, "relate", tltm)
    assert isinstance(relate, Relate) and isinstance(relate.rule, ByEdges) and relate.fuses
    assert relate.rule.config == ObjectGraphConfig(max_unseen=30, max_tracks=99) and relate.config.max_per_frame == 3
    assert relate.heads.detect.keywords["cfg"].max_per_frame == 12 and relate.heads.config.batch == 4
    assert relate.rule.edges.__self__ is relate.heads.network
    assert isinstance(built(graph, "previous", tltm), Previous)
    baseline = built(graph_of(BASELINE, "relate.boxes.min_hits=2"), "relate", centermask)
    assert isinstance(baseline.rule, ByBoxes) and baseline.rule.config.min_hits == 2 and not baseline.fuses
    flat = built(graph_of(BASELINE, "relate.rule=edges"), "relate", centermask)
    assert flat.rule.config == ObjectGraphConfig(edge_weight=0.0), "without a graph all edges count the same"


def test_the_graph_for_cameras_is_bounded(tltm):
    relate = built(graph_of("configs/graphs/live_tltm.yaml"), "relate", tltm)
    assert relate.rule.config.max_unseen == 300 and relate.rule.config.max_tracks == 200


@pytest.mark.parametrize("name, weights", [
    ("tltm_r50", "r50"), ("tltm_r50_paper", "r50"), ("tltm_r101", "r101"), ("tltm_r101_davis", "r101_davis"),
])  # fmt: skip
def test_shipped_files_have_the_released_weights(name, weights):
    assert read_network(f"configs/networks/{name}.yaml").edges == WEIGHTS[weights]


def test_davis_is_two_settings_away():
    """The weights of one network work under both files; proposals are 20, whatever else a run says of DAVIS."""
    spec = read_network("configs/networks/tltm_r101.yaml", ("detect.min_class=0.25", "edges.iou_weight=2.0"))
    assert spec.edges == WEIGHTS["r101_davis"] and spec.detect.min_class == 0.25
    shipped = read_network("configs/networks/tltm_r101_davis.yaml")
    assert replace(shipped, where=spec.where) == spec and default_graph(shipped) == TLTM_GRAPH
    assert SinkConfig().davis == ProposalsConfig(choice="best", on_top="best", max_proposals=20, min_score=0.0)


@pytest.mark.parametrize("path, name, network, settings, message", [
    pytest.param(HEADS, "heads", "tltm", {}, "'previous' and 'relate' instead of 'heads'.*offline_tltm", id="heads"),
    pytest.param(HEADS, "associate", "tltm", {}, r"\(association: edges\).*offline_tltm.yaml", id="associate"),
    pytest.param(HEADS, "associate", "centermask", {}, r"\(association: boxes\).*offline_centermask", id="by boxes"),
    pytest.param(TLTM_GRAPH, "previous", "centermask", {}, "fuses no frame.*offline_centermask", id="nothing fused"),
    pytest.param(TLTM_GRAPH, "relate", "crossvis", {"association": "masktrack", "model": {}, "detect": {}},
                 "not those of 'crossvis'. Take --graph configs/graphs/offline.yaml", id="another network"),
    pytest.param(BASELINE, "relate", "tltm", {"association": "cosine_iou"}, "association: cosine_iou; expected edges",
                 id="another rule"),
    pytest.param(IAI, "identify", "tltm", {}, "'tltm' remembers nothing", id="identities"),
])
def test_stages_and_networks_that_do_not_fit(tmp_path, path, name, network, settings, message):
    spec = spec_of(tmp_path, network, **settings)
    with pytest.raises(ConfigError, match=message):
        built(graph_of(path), name, spec)
    with pytest.raises(ConfigError, match=message):
        one_stage(graph_of(path), name).check(RunContext(spec))


@pytest.mark.parametrize("path, network, settings, message", [
    pytest.param(BASELINE, "tltm", {}, "no 'previous' stage.*offline_tltm.yaml", id="nothing keeps the frame before"),
    pytest.param(BASELINE, "crossvis", {"association": "masktrack", "model": {}, "detect": {}},
                 "follows the objects of tltm and centermask", id="another network"),
    pytest.param(HEADS, "centermask", {}, "offline_centermask.yaml", id="the baseline on heads"),
])
def test_misfits_are_told_before_any_work(tmp_path, path, network, settings, message):
    with pytest.raises(ConfigError, match=message):
        association_of(graph_of(path), spec_of(tmp_path, network, **settings))


@pytest.mark.parametrize("settings, message", [
    ({"association": "edges"}, "association: 'edges' is for centermask and tltm, not for 'crossvis'"),
    ({"association": "masktrack", "edges": {"edge_weight": 1.0}}, "edges: these weights are for centermask and tltm"),
])
def test_files_of_networks_without_objects(tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        spec_of(tmp_path, "crossvis", model={}, detect={}, **settings)


def test_a_folder_of_results_knows_the_weights_of_its_edges(tltm):
    graph, other = graph_of(TLTM_GRAPH), replace(tltm, edges=WEIGHTS["r101"])
    assert mark_of(tltm, graph, SinkConfig())["network"] != mark_of(other, graph, SinkConfig())["network"]
    first = SinkConfig(davis=ProposalsConfig(choice="first"))
    assert mark_of(tltm, graph, SinkConfig())["sinks"] != mark_of(tltm, graph, first)["sinks"]
    before = {name: value for name, value in as_plain(SinkConfig()).items() if name != "davis"}
    assert mark_of(tltm, graph, SinkConfig())["sinks"] == digest_of(before), "as in folders from before there was such"


# ------------------------------------------------------------------------------------------ whole videos


def evaluated(spec: NetworkSpec, videos: Path, out: Path, **plan) -> dict[str, bytes]:
    """What a run leaves, file by file."""
    found = evaluate_network(spec, videos / "instances.json", videos / "JPEGImages", out,
                             EvaluationPlan(device="cpu", **plan))                                        # fmt: skip
    assert found.association == spec.association
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("results.json")}


SPLIT = [{"stages": ["decode", "preprocess", "backbone", "previous"], "replicas": 2, "num_cpus": 1},
         {"stages": ["relate", "encode_masks"], "num_cpus": 1}]                                           # fmt: skip


@pytest.fixture(scope="module")
def local(tltm, videos, tmp_path_factory) -> dict[str, bytes]:
    """In one process, as the graph's file has it: all streams together."""
    return evaluated(tltm, videos, tmp_path_factory.mktemp("local"), num_cpus=1)


def test_one_process_and_ray_give_the_same_bytes(tltm, videos, local, tmp_path, cluster, in_time):
    """On Ray pyramids travel, streams are spread over two replicas, and other frames share a call."""
    graph = yaml.safe_load(Path(TLTM_GRAPH).read_text()) | {"placement": SPLIT}
    (tmp_path / "split.yaml").write_text(yaml.safe_dump(graph, sort_keys=False))
    on_ray = evaluated(tltm, videos, tmp_path / "ray", executor="ray", graph=str(tmp_path / "split.yaml"),
                       settings=("batching.streams=3", "batching.frames=2"))                              # fmt: skip
    assert on_ray == local and len(local) == 4
    tracks = json.loads(local["results.json"])
    assert all(len(track["segmentations"]) == 6 for track in tracks), "an entry for every frame of the video"
    assert sum(mask is not None for track in tracks for mask in track["segmentations"]) > 60
    assert any(sum(mask is not None for mask in track["segmentations"]) == 6 for track in tracks)


ALONE = {"settings": ("batching.streams=1", "batching.frames=1"), "num_cpus": 1}
"""One CPU: sums of several threads are rounded otherwise."""


def test_videos_together_equal_each_alone(tltm, videos, local, tmp_path):
    assert evaluated(tltm, videos, tmp_path, **ALONE) == local


def test_the_baseline_from_images_to_results(centermask, videos, tmp_path):
    together = evaluated(centermask, videos, tmp_path / "together", num_cpus=1)
    assert evaluated(centermask, videos, tmp_path / "alone", **ALONE) == together
    assert len(read_results(tmp_path / "alone" / "results.json")) > 10


def test_the_fused_form_runs_in_the_graph(tltm, videos, local, tmp_path):
    evaluated(replace(tltm, inference=InferenceConfig(form="fused", dtype="float32")), videos, tmp_path)
    count = len(json.loads(local["results.json"]))
    assert len(read_results(tmp_path / "results.json")) == pytest.approx(count, rel=0.1) and count > 10
