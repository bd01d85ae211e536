"""`maskstream evaluate run`: a dataset, a network, numbers; in either executor."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from operators.shapes import PRESETS, write_youtube_vis

TINY = "configs/networks/tiny.yaml"


@pytest.fixture(scope="module")
def truth(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("truth")
    write_youtube_vis(folder, replace(PRESETS["easy"], num_frames=4), seed=5, num_clips=2)
    return folder / "instances.json"


def test_results_then_scores(maskstream, truth, tmp_path):
    done = maskstream("evaluate", "run", TINY, truth, "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert scores["AP"] > 0.3 and scores["association"] == "cosine_iou"
    assert "association: cosine_iou" in done.stdout and "frames/s" in done.stdout
    again = maskstream("evaluate", "run", TINY, truth, "--out", tmp_path)
    assert again.returncode == 0 and "frames/s" not in again.stdout, "all was done before"
    other = maskstream("evaluate", "youtube-vis", truth, tmp_path / "results.json", "--json", tmp_path / "again.json")
    assert other.returncode == 0 and json.loads((tmp_path / "again.json").read_text())["AP"] == scores["AP"]
    refused = maskstream("evaluate", "run", TINY, truth, "--out", tmp_path, "--set", "associate.rule=masktrack")
    assert refused.returncode == 2 and "other settings of its stages" in refused.stderr


@pytest.mark.slow
def test_on_ray_the_same(maskstream, truth, tmp_path):
    for executor in ("local", "ray"):
        done = maskstream("evaluate", "run", TINY, truth, "--executor", executor, "--out", tmp_path / executor,
                          afresh=executor == "ray")  # fmt: skip
        assert done.returncode == 0, done.stderr
    local, ray = ((tmp_path / executor / "results.json").read_bytes() for executor in ("local", "ray"))
    assert local == ray


def test_a_dataset_that_is_not_there(maskstream, tmp_path):
    done = maskstream("evaluate", "run", TINY, "configs/datasets/shapes_held_out.yaml", "--out", tmp_path,
                      cwd=tmp_path)  # fmt: skip
    assert done.returncode == 2 and "Make it by: maskstream shapes" in done.stderr
