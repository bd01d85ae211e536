"""A network over a dataset whose truth is known: what is scored is what was run."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from operators.errors import CheckpointError, ConfigError, DatasetError, StageError
from operators.shapes import PRESETS, write_youtube_vis
from operators.sinks import SinkConfig
from operators.youtube_vis import evaluate
from operators.youtube_vis_data import read_dataset
from operators.youtube_vis_results import read_results
from pipelines.evaluation import EvaluationPlan, evaluate_network
from pipelines.networks import default_graph, read_network

TINY = "configs/networks/tiny.yaml"
ONE = EvaluationPlan(num_cpus=1)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("evaluation") / "data"
    write_youtube_vis(folder, replace(PRESETS["easy"], num_frames=5), seed=9, num_clips=2)
    return folder


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_scores_are_those_of_the_results_it_leaves(data, tmp_path):
    found = evaluate_network(read_network(TINY), data / "instances.json", data / "JPEGImages", tmp_path, ONE)
    dataset = read_dataset(data / "instances.json")
    assert found.scores == evaluate(dataset, read_results(tmp_path / "results.json")).overall
    assert found.scores["AP"] > 0.3, "the shipped network sees easy shapes"
    tracks = json.loads((data / "instances.json").read_text())["annotations"]
    seen = [box for track in tracks for box in track["bboxes"]]
    assert found.switches.visible == sum(box is not None for box in seen)
    assert found.association == "cosine_iou" and found.frames_per_s > 0


def test_the_network_says_how_its_detections_find_their_tracks(data, tmp_path):
    spec = read_network(TINY, ("association=masktrack",))
    found = evaluate_network(spec, data / "instances.json", data / "JPEGImages", tmp_path, ONE)
    assert found.association == "masktrack"


def test_a_frame_that_cannot_be_read_is_no_score(data, tmp_path):
    moved = shutil.copytree(data, tmp_path / "data")
    (moved / "JPEGImages" / "clip_00001" / "00003.jpg").write_bytes(b"no image")
    with pytest.raises(StageError, match="1 of 2 videos of .* could not be run to their end, the first is .*00001"):
        evaluate_network(read_network(TINY), moved / "instances.json", moved / "JPEGImages", tmp_path / "out")


def test_images_that_are_not_there(data, tmp_path):
    with pytest.raises(DatasetError):
        evaluate_network(read_network(TINY), data / "instances.json", tmp_path, tmp_path / "out")


def test_a_network_without_weights(data, tmp_path):
    with pytest.raises(CheckpointError, match="names no weights"):
        evaluate_network(read_network(TINY, ("weights=null",)), data / "instances.json", data / "JPEGImages", tmp_path)


def test_videos_that_are_done_are_not_run_again(data, tmp_path):
    """A run that a damaged video ended goes on from there; the same scores as one that was never cut."""
    moved = shutil.copytree(data, tmp_path / "data")
    frame = moved / "JPEGImages" / "clip_00001" / "00003.jpg"
    whole = frame.read_bytes()
    frame.write_bytes(b"no image")
    where = read_network(TINY), moved / "instances.json", moved / "JPEGImages", tmp_path / "out"
    with pytest.raises(StageError):
        evaluate_network(*where, ONE)
    frame.write_bytes(whole)
    assert not (tmp_path / "out" / "scores.json").exists()
    saved = json.loads((tmp_path / "out" / "manifest.json").read_text())["videos"]
    (done,) = [entry["video"] for entry in saved if entry["state"] == "done"]
    before = (tmp_path / "out" / done / "results.json").stat().st_mtime_ns
    found = evaluate_network(*where, ONE)
    assert (tmp_path / "out" / done / "results.json").stat().st_mtime_ns == before
    uncut = evaluate_network(*where[:3], tmp_path / "uncut", ONE)
    assert found.detail.as_json() == uncut.detail.as_json() and found.switches == uncut.switches
    again = evaluate_network(*where, ONE)
    assert again.frames_per_s == 0 and again.scores == found.scores
    saved = json.loads((tmp_path / "out" / "scores.json").read_text())
    assert saved["AP"] == found.scores["AP"] and saved["id_switches"] == found.switches.switches


@pytest.mark.parametrize("network, plan", [
    pytest.param(("detect.min_score=0.2",), ONE, id="another threshold"),
    pytest.param((), replace(ONE, settings=("associate.min_match=0.7",)), id="another setting of the graph"),
    pytest.param((), replace(ONE, sinks=SinkConfig(max_per_video=50)), id="another setting of the sinks"),
])
def test_results_of_something_else_are_not_mixed_in(data, tmp_path, network, plan):
    where = data / "instances.json", data / "JPEGImages", tmp_path
    evaluate_network(read_network(TINY), *where, ONE)
    before = (tmp_path / "results.json").read_bytes()
    with pytest.raises(ConfigError, match="holds results of .*other settings of .*--fresh"):
        evaluate_network(read_network(TINY, network), *where, plan)
    assert (tmp_path / "results.json").read_bytes() == before


def test_fresh_runs_all_anew(data, tmp_path):
    where = data / "instances.json", data / "JPEGImages", tmp_path
    evaluate_network(read_network(TINY), *where, ONE)
    other = replace(ONE, settings=("associate.min_match=0.7",), fresh=True)
    found = evaluate_network(read_network(TINY), *where, other)
    assert found.frames_per_s > 0
    assert evaluate_network(read_network(TINY), *where, replace(other, fresh=False)).frames_per_s == 0


def test_truth_that_is_corrected_is_scored_without_a_run(data, tmp_path):
    truth = json.loads((data / "instances.json").read_text())
    first = evaluate_network(read_network(TINY), data / "instances.json", data / "JPEGImages", tmp_path / "out", ONE)
    truth["annotations"] = truth["annotations"][:1]
    (tmp_path / "less.json").write_text(json.dumps(truth))
    second = evaluate_network(read_network(TINY), tmp_path / "less.json", data / "JPEGImages", tmp_path / "out", ONE)
    assert second.frames_per_s == 0 and second.switches.visible < first.switches.visible


@pytest.mark.parametrize("network, graph", [
    (TINY, "configs/graphs/offline.yaml"),
    ("configs/networks/masktrack_rcnn_r50.yaml", "configs/graphs/offline.yaml"),
    ("configs/networks/iai_condinst_r50.yaml", "configs/graphs/offline_iai.yaml"),
    ("configs/networks/iai_tiny.yaml", "configs/graphs/offline_iai.yaml"),
    ("configs/networks/tltm_tiny.yaml", "configs/graphs/offline_tltm.yaml"),
    ("configs/networks/centermask_r50.yaml", "configs/graphs/offline_centermask.yaml"),
])  # fmt: skip
def test_a_network_that_remembers_has_a_graph_of_its_own(network, graph):
    assert default_graph(read_network(network)) == graph
