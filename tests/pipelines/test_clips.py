"""CiCo in the graph: which stages fit which networks, a record for every frame, streams that leave each other alone,
and the same bytes on Ray."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from models import NETWORKS
from operators.clip_tracking import ClipTrackConfig
from operators.errors import ConfigError
from operators.find_tubes import FindTubes
from operators.formats import Categories
from operators.shapes import PRESETS, write_youtube_vis
from operators.sinks import SinkConfig
from operators.sources import Source, find_sources
from operators.track_tubes import TrackTubes
from operators.weights import save_weights
from operators.windows import Windows
from operators.youtube_vis_results import read_results
from pipelines.actors import run_actors
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.local import run_local
from pipelines.networks import NetworkSpec, as_plain, default_graph, read_network
from pipelines.outputs import Outputs
from pipelines.placement import Placement
from pipelines.reports import stream_of
from pipelines.run import run
from pipelines.serving.config import ServeConfig
from pipelines.serving.deployed import deployed
from pipelines.stages import STAGES, association_of
from tests.models.small import shake
from tests.pipelines.contract import plain

GRAPH, NONE_SHARED, TWO_SHARED = (f"configs/graphs/offline_cico{name}.yaml" for name in ("", "_overlap0", "_overlap2"))
LIVE = "configs/graphs/live_cico.yaml"
OTHER, IAI = "configs/graphs/offline.yaml", "configs/graphs/offline_iai.yaml"
FRAMES = 7
CLASSES = tuple("abc")
MODEL = {
    "num_classes": 3, "input": {"short_side": 64, "long_side": 96, "fit": "box", "std": [57.375, 57.12, 58.395]},
    "channels": 8, "mask_channels": 8,
    "backbone": {"blocks": [1, 1, 1, 1], "stem_channels": 6, "mid_channels": 2, "norm": "batch", "frozen_stages": 0},
    "tower_convs": 1, "embedding_dim": 4, "masks": {"prototypes": 4},
}  # fmt: skip
SINGLE = {"box_tower": "2d", "track_tower": "2d", "cmh": "2d"}
FORMS = {
    "yolact": {},
    "condinst": {"masks": {"kind": "condinst", "prototypes": 3}, "crop_test": 1.5},
    "frame by frame": {"clip_length": 1, **SINGLE},
    "frame by frame, by clips": SINGLE,
    "clips of five": {"clip_length": 5},
}


def spec_of(folder: Path, **settings) -> NetworkSpec:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"network": "cico", "model": MODEL} | settings))
    return read_network(path)


@pytest.fixture(scope="module", params=FORMS)
def trained(request, tmp_path_factory) -> NetworkSpec:
    return with_weights(tmp_path_factory.mktemp("weights"), request.param)


@pytest.fixture(scope="module")
def clips_of_three(tmp_path_factory) -> NetworkSpec:
    return with_weights(tmp_path_factory.mktemp("weights"), "yolact")


def with_weights(folder: Path, form: str) -> NetworkSpec:
    """A network with weights, though not with good ones: it finds something near every anchor, filled by its mask."""
    weights, detect = folder / "small.safetensors", {"most": 12}
    spec = spec_of(folder, model=MODEL | FORMS[form], weights=str(weights), detect=detect)
    network = NETWORKS[spec.name][0](spec.config)
    shake(network, 5)
    with torch.no_grad():
        for value in network.clip_heads.boxes.parameters():
            value.mul_(0.2)
        network.clip_heads.mask_parameters.bias.add_(1)
    save_weights(weights, network.state_dict(), spec.name, as_plain(spec.config), CLASSES)
    return spec


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos") / "data"
    config = replace(PRESETS["easy"], width=144, height=96, num_frames=FRAMES)
    write_youtube_vis(folder, config, seed=4, num_clips=3)
    return folder


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def graph_of(path: str, *overrides: str) -> Graph:
    return load_graph(path, STAGES, overrides)


def built(graph: Graph, name: str, spec: NetworkSpec):
    (stage,) = [stage for stage in graph.stages if stage.name == name]
    return stage.kind.build(stage.settings, RunContext(spec, "cpu"))


def sources_of(videos: Path) -> list[Source]:
    return find_sources([str(videos / "instances.json")], image_root=str(videos / "JPEGImages"))[0]


def ran(spec: NetworkSpec, sources: list[Source], out: Path, *overrides: str, graph: str = GRAPH) -> Path:
    read = graph_of(graph, *overrides)
    outputs = Outputs(out, ("jsonl", "ytvis"), Categories.numbered(CLASSES), SinkConfig(), association_of(read, spec))
    summary = run(sources, [], read, RunContext(spec, "cpu"), outputs)
    assert all(row.state == "done" and row.frames == FRAMES for row in summary.sources), summary.sources
    return out


def lines_of(out: Path) -> list[list[dict]]:
    return [[json.loads(line) for line in path.read_text().splitlines()] for path in sorted(out.glob("*/tracks.jsonl"))]


# ------------------------------------------------------------------------------------------ what fits what


def test_the_stages_have_the_networks_settings_and_the_graphs(clips_of_three):
    graph = graph_of(GRAPH, "windows.overlap=2", "tubes.batch=3", "track_tubes.max_unseen=9")
    windows, tubes, track = (built(graph, name, clips_of_three) for name in ("windows", "tubes", "track_tubes"))
    assert isinstance(windows, Windows) and (windows.clip_length, windows.new) == (3, 1)
    assert isinstance(tubes, FindTubes) and (tubes.batch, tubes.find.keywords["cfg"].most) == (3, 12)
    assert isinstance(track, TrackTubes) and track.config == ClipTrackConfig(max_unseen=9)
    assert track.masks == clips_of_three.config.masks


@pytest.mark.parametrize("path, new", [(GRAPH, 2), (NONE_SHARED, 3), (TWO_SHARED, 1), (LIVE, 2)])
def test_graphs_of_each_overlap(tmp_path, path, new):
    assert built(graph_of(path), "windows", spec_of(tmp_path)).new == new
    assert association_of(graph_of(path), spec_of(tmp_path)) == "clips"


def test_live_streams_are_bounded_by_themselves(clips_of_three):
    """What is served of a network without a graph of its own choice."""
    made = deployed(ServeConfig(network=clips_of_three.where), num_cpus=1, num_gpus=0)
    assert made.graph.stages[0].kind is STAGES["receive"]
    assert built(made.graph, "track_tubes", clips_of_three).config.max_unseen == 30
    assert association_of(made.graph, clips_of_three) == "clips"


@pytest.mark.parametrize("path", sorted(Path("configs/networks").glob("*cico*")) + sorted(
    Path("configs/networks").glob("fifo*")), ids=lambda path: path.stem)  # fmt: skip
def test_every_clip_network_has_its_graph(path):
    spec = read_network(path)
    graph = graph_of(default_graph(spec))
    assert association_of(graph, spec) == "clips"
    length = spec.config.clip_length
    assert built(graph, "windows", spec).new == max(length - 1, 1)


@pytest.mark.parametrize("path, name, settings, message", [
    pytest.param(OTHER, "heads", {}, "'cico' speaks of clips, .* Take --graph .*offline_cico.yaml", id="heads"),
    pytest.param(OTHER, "associate", {}, "'associate' does not give. Take --graph .*offline_cico.yaml",
                 id="association"),
    pytest.param(IAI, "identify", {}, "'cico' remembers nothing", id="a stage that remembers"),
    pytest.param(GRAPH, "windows", {"network": "crossvis", "model": {}},
                 "'windows' stage, but 'crossvis' sees single frames. Take --graph .*offline.yaml", id="windows"),
    pytest.param(GRAPH, "tubes", {"network": "crossvis", "model": {}}, "'tubes' stage, but 'crossvis'", id="tubes"),
    pytest.param(GRAPH, "track_tubes", {"network": "iai_condinst", "association": "identities", "model": {}},
                 "'track_tubes' stage, but 'iai_condinst' .*offline_iai.yaml", id="tracks"),
    pytest.param(TWO_SHARED, "windows", {"model": MODEL | {"clip_length": 2}},
                 "overlap is 2, expected less than the network's clip_length, 2", id="an overlap that is too long"),
])
def test_stages_and_networks_that_do_not_fit(tmp_path, path, name, settings, message):
    spec, graph = spec_of(tmp_path, **settings), graph_of(path)
    with pytest.raises(ConfigError, match=message):
        built(graph, name, spec)
    alone = replace(graph, stages=tuple(stage for stage in graph.stages if stage.name == name))
    with pytest.raises(ConfigError, match=message):
        alone.check(RunContext(spec))


@pytest.mark.parametrize("path, settings, message", [
    pytest.param(OTHER, {}, "'cico' speaks of clips", id="a graph without clips"),
    pytest.param(GRAPH, {"network": "crossvis", "model": {}}, "'crossvis' sees single frames", id="another network"),
])
def test_what_does_not_fit_is_said_before_weights_are_there(tmp_path, path, settings, message):
    with pytest.raises(ConfigError, match=message):
        association_of(graph_of(path), spec_of(tmp_path, **settings))


@pytest.mark.parametrize("override, message", [
    pytest.param("windows.overlap=-1", "windows: overlap is -1", id="overlap"),
    pytest.param("tubes.batch=0", "tubes: batch is 0", id="batch"),
    pytest.param("track_tubes.decay=2", "track_tubes: decay is 2", id="decay"),
    pytest.param("track_tubes.max_unsen=2", "Did you mean max_unseen", id="a slip of the pen"),
])
def test_settings_out_of_range(override, message):
    with pytest.raises(ConfigError, match=message):
        graph_of(GRAPH, override)


# ------------------------------------------------------------------------------------------ whole videos


def test_videos_to_one_record_a_frame(trained, videos, tmp_path):
    out = ran(trained, sources_of(videos), tmp_path / "out")
    overlap = min(trained.config.clip_length - 1, 1)
    new = trained.config.clip_length - overlap
    for lines in lines_of(out):
        assert [line["frame"] for line in lines] == list(range(FRAMES))
        first = [trained.config.clip_length - 1 - r for r in range(new)]
        assert [line["delay_frames"] for line in lines[:new]] == first and lines[-1]["delay_frames"] == 0
        for line in lines:
            for one in line["instances"]:
                x1, y1, x2, y2 = one["box"]
                assert 0 <= x1 <= x2 <= line["width"] and 0 <= y1 <= y2 <= line["height"]
    counts = Counter(one["track_id"] for lines in lines_of(out) for line in lines for one in line["instances"])
    assert sum(counts.values()) > 3 * FRAMES and len(counts) > 1


def test_a_track_has_the_score_and_class_of_its_clips(clips_of_three, videos, tmp_path):
    """Seven frames in clips that give out 2, 2, 2 and 1: each counts once, however many frames it gave."""
    out = ran(clips_of_three, sources_of(videos), tmp_path / "out")
    results, tracks = read_results(out / "results.json"), 0
    for video_id, lines in enumerate(lines_of(out), 1):
        seen: dict[int, list[dict]] = {}
        for one in (one for line in lines[::2] for one in line["instances"]):
            seen.setdefault(one["track_id"], []).append(one)
        entries = [entry for entry in results if entry["video_id"] == video_id]
        tracks += len(entries)
        for entry, (track_id, clips) in zip(entries, seen.items(), strict=True):
            assert entry["score"] == pytest.approx(sum(one["score"] for one in clips) / len(clips), abs=1e-4)
            votes = Counter(one["category_id"] for one in clips)
            assert entry["category_id"] == min(votes, key=lambda id_: (-votes[id_], id_))
            there = [any(one["track_id"] == track_id for one in line["instances"]) for line in lines]
            assert [mask is not None for mask in entry["segmentations"]] == there
    assert tracks > 3


@pytest.mark.parametrize("overrides", [
    pytest.param(("windows.overlap=2", "tubes.batch=3", "batching.frames=3", "track_tubes.max_unseen=2"),
                 id="two shared, other batches"),
    pytest.param(("windows.overlap=0", "batching.streams=2", "batching.frames=5"), id="none shared, two at a time"),
])
def test_videos_run_together_equal_each_alone(clips_of_three, videos, tmp_path, overrides):
    sources = sources_of(videos)
    together = lines_of(ran(clips_of_three, sources, tmp_path / "together", *overrides))
    alone = []
    for number, source in enumerate(sources):
        alone += lines_of(ran(clips_of_three, [source], tmp_path / str(number), *overrides))
    assert together == alone and sum(len(line["instances"]) for lines in together for line in lines) > 20


@pytest.mark.usefixtures("cluster", "in_time")
def test_on_ray_the_same_to_the_last_bit(clips_of_three, videos):
    """Clips go from process to process, with frames that two of them share; snapshots are taken of what waits and of
    tracks."""
    graph = graph_of(GRAPH, "batching.streams=2", "batching.frames=3", "recovery.snapshot_every=4")
    names = [stage.name for stage in graph.stages]
    cut = names.index("tubes")
    groups = tuple(Placement(stages=tuple(part), num_cpus=1) for part in (names[:cut], names[cut:]))
    graph = replace(graph, placement=groups)
    context, sources = RunContext(clips_of_three, "cpu"), sources_of(videos)
    local, ray = (list(start(graph, sources, context)) for start in (run_local, run_actors))
    for source in sources:
        told = [[plain(one) for one in given if stream_of(one) == source.name] for given in (local, ray)]
        assert told[0] == told[1] and len(told[0]) == FRAMES + 1
