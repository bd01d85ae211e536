"""Stills of COCO train CondInst by the trainer that trains videos, and its weights begin the training of CrossVIS."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml

from operators.datasets.coco import write_coco
from operators.datasets.truth import open_youtube_vis
from operators.errors import ConfigError
from operators.weights import read_weights
from tests.trainers.small_runs import NETWORK, write_run
from trainers.curves import read_metrics
from trainers.job import METRICS_FILE
from trainers.loop import train_alone
from trainers.train import make_job

STILLS = {"format": "coco", "kind": "stills", "group_shapes": True,
          "scale": {"short_sides": [48, 64], "long_side": [96, 96]}}  # fmt: skip


@pytest.fixture
def configs(tmp_path) -> tuple[Path, Path]:
    """Training files of the stills and of the videos, of one generated dataset."""
    videos = write_run(tmp_path, steps=2)
    write_coco(open_youtube_vis(tmp_path / "data" / "instances.json"), tmp_path / "data" / "coco.json")
    model = {k: v for k, v in NETWORK["model"].items() if k != "embedding_dim"}
    (tmp_path / "stills_net.yaml").write_text(yaml.safe_dump({"network": "condinst", "model": model}))
    content = yaml.safe_load(videos.read_text())
    content["network"], content["steps"] = str(tmp_path / "stills_net.yaml"), 3
    content["data"] = {"annotations": str(tmp_path / "data" / "coco.json"),
                       "image_root": str(tmp_path / "data" / "JPEGImages"), **STILLS}  # fmt: skip
    stills = tmp_path / "stills.yaml"
    stills.write_text(yaml.safe_dump(content))
    return stills, videos


def test_stills_train_and_begin_videos(configs, tmp_path):
    stills, videos = configs
    job = make_job(stills, (), tmp_path / "stills")
    job.out.mkdir()
    weights = train_alone(job, torch.device("cpu"))
    rows = read_metrics(job.out / METRICS_FILE)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert {"class", "box", "centerness", "mask", "total"} <= set(rows[0]) and "crossover" not in rows[0]
    started = make_job(videos, [f"start_from={weights}"], tmp_path / "videos")
    started.out.mkdir()
    found = read_weights(train_alone(started, torch.device("cpu"))).state
    assert any(name.startswith("embedding.") for name in found)
    assert {name for name in read_weights(weights).state} <= set(found)


def test_a_network_of_pairs_does_not_learn_from_stills(configs, tmp_path):
    stills, videos = configs
    network = yaml.safe_load(videos.read_text())["network"]
    with pytest.raises(ConfigError, match="data.kind: 'stills', but the network 'crossvis' learns from 'pairs'"):
        make_job(stills, [f"network={network}"], tmp_path / "out")
