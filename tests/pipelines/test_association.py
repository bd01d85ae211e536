"""Which association is in use, from the network's file to the stage, the classes in results.json and the summary."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from rich.console import Console

from operators.association import Associate
from operators.errors import ConfigError
from operators.formats import Categories
from operators.records import FrameInfo, FrameTracks, StreamEnd
from operators.sinks import SinkConfig
from operators.sources import Source
from pipelines.graph import Graph, RunContext, load_graph
from pipelines.networks import NetworkSpec, read_network
from pipelines.outputs import Files, Outputs
from pipelines.run import RunSummary
from pipelines.show import print_summary
from pipelines.stages import STAGES, association_of
from tests.pipelines.small_stages import graph

CATEGORIES = Categories.numbered(["cat", "dog"])
MASK = {"size": [2, 2], "counts": "04"}


def spec_of(folder: Path, **settings) -> NetworkSpec:
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump({"network": "crossvis", **settings}))
    return read_network(path)


def offline(*overrides: str) -> Graph:
    return load_graph("configs/graphs/offline.yaml", STAGES, overrides)


@pytest.mark.parametrize("settings, overrides, rule", [
    pytest.param({}, [], "cosine_iou", id="neither says anything"),
    pytest.param({"association": "masktrack"}, [], "masktrack", id="the network's file"),
    pytest.param({"association": "masktrack"}, ["associate.rule=cosine_iou"], "cosine_iou", id="the graph has the say"),
    pytest.param({}, ["associate.rule=masktrack"], "masktrack", id="the graph alone"),
])
def test_the_stage_follows_the_network_unless_the_graph_says_otherwise(tmp_path, settings, overrides, rule):
    spec, offline_graph = spec_of(tmp_path, **settings), offline(*overrides)
    (stage,) = [stage for stage in offline_graph.stages if stage.name == "associate"]
    built = stage.kind.build(stage.settings, RunContext(spec))
    assert isinstance(built, Associate) and built.rule == rule == association_of(offline_graph, spec)


def test_without_a_network_it_is_mode_a_and_without_the_stage_there_is_none():
    (stage,) = [stage for stage in offline().stages if stage.name == "associate"]
    assert stage.kind.build(stage.settings, RunContext()).rule == "cosine_iou" == association_of(offline(), None)
    assert association_of(graph(), None) is None


def test_weights_of_mode_b_are_settings_of_the_stage():
    settings = offline("associate.masktrack.class_weight=3", "associate.max_unseen=7").stages[4].settings
    assert (settings.masktrack.class_weight, settings.masktrack.iou_weight, settings.max_unseen) == (3.0, 2.0, 7)


def test_an_unknown_rule_is_refused_in_both_files(tmp_path):
    with pytest.raises(ConfigError, match="small.yaml, association: expected 'cosine_iou' or 'masktrack'"):
        spec_of(tmp_path, association="hungarian")
    with pytest.raises(ConfigError, match="associate.rule: expected 'cosine_iou' or .* or 'network', got 'hungarian'"):
        offline("associate.rule=hungarian")


def flickering(outputs: Outputs) -> dict:
    """The one entry of results.json of a track that is seen as cat, dog and dog, and its lines' categories."""
    with Files(outputs, [Source("clip", "images", "nowhere")]) as files:
        for index, label in enumerate((0, 1, 1)):
            info = FrameInfo("clip", index, index / 10, 2, 2)
            box, score = np.array([[0, 0, 2, 2]], np.float32), np.array([0.5], np.float32)
            files.take(FrameTracks(info, np.array([0]), np.array([label]), score, box, (MASK,)))
        files.take(StreamEnd("clip", 3))
    (entry,) = json.loads((outputs.directory / "clip" / "results.json").read_text())
    lines = (outputs.directory / "clip" / "tracks.jsonl").read_text().splitlines()
    return {"track": entry["category_id"], "frames": [json.loads(one)["instances"][0]["category_id"] for one in lines]}


@pytest.mark.parametrize("association, category, track", [
    pytest.param("cosine_iou", "network", 1, id="mode A: the first record's"),
    pytest.param("masktrack", "network", 2, id="mode B: the majority's"),
    pytest.param("masktrack", "first", 1, id="first, as asked"),
    pytest.param("cosine_iou", "majority", 2, id="majority, as asked"),
    pytest.param(None, "network", 1, id="tracks of some other origin"),
])
def test_the_class_of_a_track_follows_the_association(tmp_path, association, category, track):
    outputs = Outputs(tmp_path / "out", ("jsonl", "ytvis"), CATEGORIES, SinkConfig(category=category), association)
    assert flickering(outputs) == {"track": track, "frames": [1, 2, 2]}, "a frame's record keeps the frame's class"


@pytest.mark.parametrize("association, said", [
    ("cosine_iou", "association: cosine_iou; class of a whole track: first"),
    ("masktrack", "association: masktrack; class of a whole track: majority"),
    (None, ""),
])
def test_the_summary_says_which_was_used(tmp_path, association, said):
    told, outputs = io.StringIO(), Outputs(tmp_path, ("jsonl",), CATEGORIES, association=association)
    print_summary(RunSummary((), {}, 0, 0.0, 0.0), outputs, Console(file=told, width=100))
    assert said in told.getvalue() and ("association" in told.getvalue()) == bool(said)
