"""IAI in the graph: which stages fit which networks, results of whole videos, streams that leave each other alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from models import NETWORKS
from models.fused import InferenceConfig
from models.iai import IAI
from operators.errors import ConfigError
from operators.formats import Categories
from operators.identify import Identify
from operators.masks import decode_masks
from operators.shapes import PRESETS, write_youtube_vis
from operators.sinks import SinkConfig
from operators.sources import find_sources
from operators.weights import save_weights
from operators.youtube_vis_results import read_results
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.networks import NetworkSpec, as_plain, read_network
from pipelines.outputs import Outputs
from pipelines.run import run
from pipelines.stages import STAGES, association_of
from tests.models.small import shake

GRAPH, OVERLAP, OTHER = (f"configs/graphs/offline{name}.yaml" for name in ("_iai", "_iai_overlap", ""))
CLASSES = tuple("abc")
MODEL = {
    "num_classes": 3, "num_slots": 6, "input": {"short_side": 64, "long_side": 96}, "channels": 16,
    "backbone": {"blocks": [1, 1, 1, 1], "stem_channels": 8, "mid_channels": 4, "norm": "batch", "frozen_stages": 0},
    "fcos": {"tower_convs": 1, "groups": 4, "tower_bias": False, "size_bounds": [16, 32, 64, 128]}, "mask_channels": 8,
    "association": {"dim": 16, "self_heads": 2, "memory_heads": 2, "hidden": 16, "groups": 2, "class_channels": 96},
}  # fmt: skip


TWO_STAGES = {
    **{name: MODEL[name] for name in ("num_classes", "num_slots", "input", "channels", "backbone", "association")},
    "rpn": {"anchor_scale": 4.0, "max_per_level": 50, "max_proposals": 50}, "hidden": 24, "mask_convs": 1,
}  # fmt: skip


def spec_of(folder: Path, **settings) -> NetworkSpec:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"network": "iai_condinst", "association": "identities", "model": MODEL} | settings))
    return read_network(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> NetworkSpec:
    """A network with weights, though not with good ones: it finds something everywhere."""
    folder = tmp_path_factory.mktemp("weights")
    detect = {"min_class": 0.01, "min_identity": 0.01, "max_per_frame": 4}
    spec = spec_of(folder, weights=str(folder / "small.safetensors"), detect=detect)
    network = IAI(spec.config)
    shake(network, 6)
    save_weights(spec.weights, network.state_dict(), spec.name, as_plain(spec.config), CLASSES)
    return spec


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory) -> NetworkSpec:
    """The same on Mask R-CNN; its heads seldom see mere background, and its masks are seldom empty."""
    folder = tmp_path_factory.mktemp("regions")
    settings = {"network": "iai_maskrcnn", "model": TWO_STAGES, "weights": str(folder / "small.safetensors")}
    spec = spec_of(folder, **settings, detect={"max_per_frame": 4})
    network = NETWORKS[spec.name][0](spec.config)
    shake(network, 6)
    with torch.no_grad():
        for head, background in ((network.box_head.class_logits, 0), (network.identity_head.logits, -1)):
            head.weight.mul_(0.5)
            head.bias[background] -= 5
        network.mask_head.logits.bias += 1
    save_weights(spec.weights, network.state_dict(), spec.name, as_plain(spec.config), CLASSES)
    return spec


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "data"
    write_youtube_vis(folder, replace(PRESETS["easy"], num_frames=7), seed=4, num_clips=3)
    return folder


def stage_of(graph: Graph, name: str):
    (found,) = [stage for stage in graph.stages if stage.name == name]
    return found


def graph_of(path: str, *overrides: str) -> Graph:
    return load_graph(path, STAGES, overrides)


@pytest.mark.parametrize("path, association, rule", [
    pytest.param(GRAPH, "identities", "identities", id="the network's own"),
    pytest.param(OVERLAP, "cosine_iou", "cosine_iou", id="without an identity head: those of the stage behind"),
])
def test_which_association_is_in_use(tmp_path, path, association, rule):
    assert association_of(graph_of(path), spec_of(tmp_path, association=association)) == rule


def test_the_stage_has_the_network_its_detector_and_the_graphs_settings(trained):
    graph = graph_of(GRAPH, "identify.mode=stream", "identify.interval_s=0.5", "identify.stale_s=3")
    stage = stage_of(graph, "identify")
    built = stage.kind.build(stage.settings, RunContext(trained, "cpu"))
    assert isinstance(built, Identify) and isinstance(built.network, IAI)
    assert (built.config.mode, built.config.cap, built.config.stale_s) == ("stream", 10, 3.0)
    assert built.find.keywords["cfg"].max_per_frame == 4


@pytest.mark.parametrize("path, name, settings, message", [
    pytest.param(OTHER, "heads", {}, "'iai_condinst' remembers past frames .*offline_iai.yaml", id="heads"),
    pytest.param(OTHER, "associate", {}, "must not have an 'associate' stage", id="association"),
    pytest.param(OTHER, "associate", {"network": "tltm", "association": "edges", "model": {}},
                 "tracks live in pixels of the network input .*offline_tltm.yaml", id="edge scores"),
    pytest.param(GRAPH, "identify", {"network": "crossvis", "association": "cosine_iou", "model": {}},
                 "'crossvis' remembers nothing. .*offline.yaml", id="another network"),
])
def test_stages_and_networks_that_do_not_fit(tmp_path, path, name, settings, message):
    stage, context = stage_of(graph_of(path), name), RunContext(spec_of(tmp_path, **settings), "cpu")
    with pytest.raises(ConfigError, match=message):
        stage.kind.build(stage.settings, context)
    with pytest.raises(ConfigError, match=message):
        replace(graph_of(path), stages=(stage,)).check(context)


def test_identities_are_no_rule_of_the_stage_that_associates():
    with pytest.raises(ConfigError, match="associate.rule: expected .*, got 'identities'"):
        graph_of(OTHER, "associate.rule=identities")


def ran(spec: NetworkSpec, videos: Path, out: Path, *overrides: str, only: int | None = None, **sinks) -> Path:
    sources, _ = find_sources([str(videos / "instances.json")], image_root=str(videos / "JPEGImages"))
    graph = graph_of(GRAPH, *overrides)
    outputs = Outputs(out, ("jsonl", "ytvis"), Categories.numbered(CLASSES), SinkConfig(**sinks),
                      association_of(graph, spec))
    before = torch.get_num_threads()
    summary = run(sources if only is None else sources[only : only + 1], [], graph, RunContext(spec, "cpu"), outputs)
    torch.set_num_threads(before)
    assert all(row.state == "done" and row.frames == 7 for row in summary.sources), summary.sources
    return out


def test_videos_from_images_to_ranked_results(trained, videos, tmp_path):
    out = ran(trained, videos, tmp_path / "out", min_video_score=0.0)
    results = read_results(out / "results.json")
    by_video = {video: [one["score"] for one in results if one["video_id"] == video] for video in (1, 2, 3)}
    for scores in by_video.values():
        assert 0 < len(scores) <= 10 and scores == sorted(scores, reverse=True)
    for entry in results:
        begun = [mask is not None for mask in entry["segmentations"]]
        assert len(begun) == 7 and begun == sorted(begun), "null until it comes, a mask ever after"
    fewer = ran(trained, videos, tmp_path / "fewer", min_video_score=0.0, max_per_video=2)
    assert len(read_results(fewer / "results.json")) == 6


@pytest.mark.parametrize("overrides", [
    pytest.param((), id="as released"),
    pytest.param(("identify.mode=stream", "identify.batch_streams=2", "batching.streams=2"), id="endless streams"),
])
def test_videos_run_together_equal_each_alone(trained, videos, tmp_path, overrides):
    together = ran(trained, videos, tmp_path / "together", *overrides)
    lines = [path.read_text() for path in sorted(together.glob("*/tracks.jsonl"))]
    alone = []
    for only in range(3):
        out = ran(trained, videos, tmp_path / str(only), *overrides, only=only)
        alone += [path.read_text() for path in out.glob("*/tracks.jsonl")]
    assert lines == alone
    instances = [instance for text in lines for line in text.splitlines() for instance in json.loads(line)["instances"]]
    assert len(instances) > 10 and len({instance["track_id"] for instance in instances}) > 1


def frames_of(out: Path) -> list[dict]:
    lines = [line for path in sorted(out.glob("*/tracks.jsonl")) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_two_stages_from_images_to_results(two_stages, videos, tmp_path):
    """Masks fill boxes, and no two of a frame share a pixel; tracks last, and end up in the ranked results."""
    out = ran(two_stages, videos, tmp_path / "out", only=0, min_video_score=0.0)
    frames = frames_of(out)
    assert len(frames) == 7 and sum(len(frame["instances"]) for frame in frames) > 7
    for frame in frames:
        masks = [instance["segmentation"] for instance in frame["instances"]]
        pixels = decode_masks(masks, *(masks[0]["size"] if masks else (1, 1)))
        assert pixels.sum(2).max(initial=0) <= 1
        for instance, mask in zip(frame["instances"], pixels.transpose(2, 0, 1), strict=True):
            y, x = mask.nonzero()
            x1, y1, x2, y2 = instance["box"]
            assert len(x) == 0 or (x1 - 1 < x.min() and x.max() < x2 and y1 - 1 < y.min() and y.max() < y2)
    seen = [{instance["track_id"] for instance in frame["instances"]} for frame in frames]
    assert any(one & other for one, other in zip(seen, seen[1:], strict=False))
    results = read_results(out / "results.json")
    assert results and all(len(entry["segmentations"]) == 7 for entry in results)


@pytest.mark.parametrize("form", ["trained", "two_stages"])
def test_the_fused_form_runs_in_the_graph(request, form, videos, tmp_path):
    """As long as nothing is remembered both forms must agree; later a last bit may decide who is who."""
    spec = request.getfixturevalue(form)
    fused = replace(spec, inference=InferenceConfig(form="fused", dtype="float32"))
    plain, found = (frames_of(ran(one, videos, tmp_path / one.inference.form, only=1)) for one in (spec, fused))
    assert len(found) == len(plain) == 7 and any(frame["instances"] for frame in found[1:])
    first, same = plain[0]["instances"], found[0]["instances"]
    assert [one["track_id"] for one in same] == [one["track_id"] for one in first] and first
    for one, other in zip(same, first, strict=True):
        assert one["box"] == pytest.approx(other["box"], abs=0.1)
        assert one["score"] == pytest.approx(other["score"], abs=1e-3)
