"""Scores while training: they are those of `evaluate run`, they change nothing, and a report tells of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from tensorboardX.proto import event_pb2

from operators.errors import ConfigError, DatasetError
from operators.shapes import ShapesConfig, write_youtube_vis
from operators.weights import read_weights
from operators.youtube_vis_data import read_dataset
from pipelines.evaluation import EvaluationPlan, evaluate_network
from tests.trainers.small_runs import NETWORK
from trainers.config import EvaluationConfig
from trainers.evaluating import check_evaluation, read_evaluations
from trainers.job import BEST_FILE, WEIGHTS_FILE
from trainers.loop import Alone, run_worker
from trainers.report import write_report
from trainers.train import claim, make_job

CLIPS = ShapesConfig(width=125, height=75, num_frames=4, min_objects=3, max_objects=4, min_classes=2, num_twins=0,
                     full_occlusions=0, re_entries=0)  # fmt: skip


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """A training file: 4 steps, evaluated every 3, on a set kept apart."""
    folder = tmp_path_factory.mktemp("evaluating")
    for name, seed in (("train", 5), ("held-out", 6)):
        write_youtube_vis(folder / name, CLIPS, seed=seed, num_clips=2)
    (folder / "network.yaml").write_text(yaml.safe_dump(NETWORK))
    sets = {name: {"annotations": str(folder / name / "instances.json"),
                   "image_root": str(folder / name / "JPEGImages")} for name in ("train", "held-out")}  # fmt: skip
    (folder / "run.yaml").write_text(yaml.safe_dump({
        "network": str(folder / "network.yaml"), "data": sets["train"], "steps": 4, "samples_per_step": 2,
        "checkpoint_every": 100, "log_every": 1, "workers": {"num_workers": 1, "cpus_per_worker": 1},
        "optimizer": {"learning_rate": 0.01, "warmup_steps": 1, "average_decay": 0.5},
        "evaluation": {**sets["held-out"], "every": 3, "pictures": 2}}))  # fmt: skip
    return folder / "run.yaml"


def trained(config: Path, out: Path, *overrides: str):
    job = make_job(config, overrides, out)
    claim(job, resume=False)
    run_worker(job, Alone(torch.device("cpu")))
    return job


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    return trained(config, tmp_path_factory.mktemp("run") / "watched")


def test_every_so_many_steps_and_after_the_last(run):
    assert [row["step"] for row in read_evaluations(run.out)] == [3, 4]


def test_scores_are_those_of_the_weights_alone(run, tmp_path):
    """The last evaluation, made again from the weights that the run gave for use."""
    cfg = run.config.evaluation
    spec = replace(run.network, weights=run.out / WEIGHTS_FILE)
    again = evaluate_network(spec, Path(cfg.annotations), Path(cfg.image_root), tmp_path, EvaluationPlan(device="cpu"))
    last = read_evaluations(run.out)[-1]
    assert {name: last[name] for name in again.scores} == again.scores
    assert (run.out / "evaluation" / "results.json").read_bytes() == (tmp_path / "results.json").read_bytes()


def test_training_is_the_same_without_it(run, config, tmp_path):
    alone = trained(config, tmp_path / "unwatched", "evaluation=null")
    one, other = (read_weights(job.out / WEIGHTS_FILE).state for job in (run, alone))
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
    assert not (alone.out / "evaluation").exists()


def test_best_weights_are_kept(run):
    best = read_weights(run.out / BEST_FILE).metadata["steps"]
    rows = read_evaluations(run.out)
    assert float(best) == max(rows, key=lambda row: row["AP"])["step"]


def test_events_hold_scores_and_pictures(run):
    tags = set()
    for path in (run.out / "tensorboard").iterdir():
        data, place = path.read_bytes(), 0
        while place < len(data):            # records: length, its checksum, the event, its checksum
            size = int.from_bytes(data[place : place + 8], "little")
            event = event_pb2.Event.FromString(data[place + 12 : place + 12 + size])
            tags.update(value.tag for value in event.summary.value)
            place += 16 + size
    assert {"evaluation/AP", "evaluation/id_switches", "evaluation/precision_recall", "truth_and_prediction/0",
            "truth_and_prediction/1"} <= tags  # fmt: skip
    assert "truth_and_prediction/2" not in tags


def test_report_is_one_file_with_everything(run):
    page = write_report(run).read_text()
    last = read_evaluations(run.out)[-1]
    assert f"<td>{100 * last['AP']:.1f}</td>" in page
    assert page.count("<img") == 5                                  # losses, scores, curves, two frames
    assert not re.findall(r'(?:src|href)="(?!data:image/png;base64,)', page)
    assert "learning_rate: 0.01" in page and "4 of 4 steps" in page


def test_no_report_before_the_first_line(config, tmp_path):
    job = make_job(config, (), tmp_path / "none")
    job.out.mkdir()
    assert write_report(job) is None


def broken(folder: Path, how: str) -> EvaluationConfig:
    text = json.loads((folder / "held-out" / "instances.json").read_text())
    if how == "categories":
        text["categories"][0]["name"] = "walrus"
    if how == "annotations":
        del text["annotations"]
    path = folder / f"{how}.json"
    path.write_text(json.dumps(text))
    if how == "missing":
        path = folder / "nowhere.json"
    return EvaluationConfig(annotations=str(path), image_root=str(folder / "held-out" / "JPEGImages"),
                            made_by="maskstream shapes --out here")


@pytest.mark.parametrize("how, error, said", [
    pytest.param("missing", DatasetError, "does not exist.*maskstream shapes --out here", id="not there"),
    pytest.param("annotations", DatasetError, "has no annotations", id="without truth"),
    pytest.param("categories", ConfigError, "walrus.*expected the same", id="other categories"),
])  # fmt: skip
def test_refused_before_training(config, how, error, said):
    trained_on = read_dataset(config.parent / "train" / "instances.json")
    with pytest.raises(error, match=said):
        check_evaluation(broken(config.parent, how), trained_on, "run.yaml")


@pytest.mark.parametrize("wrong", [{"every": 0}, {"pictures": -1}, {"pictures": 65}], ids=str)
def test_settings_out_of_bounds(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        EvaluationConfig(annotations="a", image_root="b", **wrong)
