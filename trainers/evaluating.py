"""Scores while training: the network as it stands, over videos that it never learns from.

In:     `EvaluationConfig`; every so many steps the weights of the moment (the moving average where there is one)
Out:    in the run's folder evaluations.jsonl, a line each; of the latest, evaluation/: scores.json, results.json,
        pictures/, precision_recall.png; scalars and pictures in TensorBoard; AP, by which the best checkpoint is told
State:  the folder: an evaluation that was cut goes on with the videos it had not done
Limits: worker 0 runs all videos in its own process, the others wait for the next checkpoint; its device holds the
        network a second time meanwhile

The graph, its stages and the scoring are those of `maskstream evaluate run` (pipelines/evaluation.py).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image

from operators.errors import ConfigError, DatasetError
from operators.youtube_vis_data import Dataset, read_dataset
from operators.youtube_vis_plots import curves_by_threshold, write_plots
from operators.youtube_vis_results import read_results
from pipelines.evaluation import RESULTS_FILE, Evaluation, EvaluationPlan, evaluate_network
from pipelines.networks import load_network
from trainers.config import EvaluationConfig
from trainers.curves import read_metrics
from trainers.export import export
from trainers.pictures import side_by_side
from trainers.watch import Watcher, Worker
from trainers.writing import Events, Lines, say

EVALUATIONS_FILE = "evaluations.jsonl"
FOLDER = "evaluation"
STEP_FILE = "step.json"
WEIGHTS = "weights.safetensors"


def check_evaluation(cfg: EvaluationConfig, trained_on: Dataset, where: str) -> None:
    """Before any training. Raises DatasetError for a dataset that is not there or has no truth, ConfigError for one of
    other categories."""
    for path, key in ((cfg.annotations, "annotations"), (cfg.image_root, "image_root")):
        if not Path(path).exists():
            hint = how_to_come_by(cfg.made_by, f"evaluation.{key}")
            raise DatasetError(f"{where}, evaluation.{key}: {path} does not exist. {hint}")
    dataset = read_dataset(cfg.annotations, image_root=cfg.image_root)
    if not dataset.annotated:
        raise DatasetError(f"{where}, evaluation.annotations: {cfg.annotations} has no annotations to score against.")
    ours, theirs = ([(c.id, c.name) for c in one.categories] for one in (trained_on, dataset))
    if ours != theirs:
        raise ConfigError(f"{where}, evaluation.annotations: {cfg.annotations} has categories {theirs}, the training "
                          f"set has {ours}; expected the same ids and names.")


def how_to_come_by(made_by: str, key: str) -> str:
    """What to do about a part of a dataset that is not there: the command that makes it, or how to say where it is."""
    return f"Make it by: {made_by}" if made_by else f"Put it there, or say where it is by --set {key}=PATH."


def read_evaluations(out: Path) -> list[dict[str, float]]:
    """The evaluations of a run by step; [] where there are none."""
    path = out / EVALUATIONS_FILE
    return read_metrics(path) if path.exists() else []


class Evaluate(Watcher):
    """Every `every` steps and after the last. In all workers, which thereby agree on when; worker 0 does the work."""

    def __init__(self, worker: Worker, cfg: EvaluationConfig) -> None:
        self._worker, self._cfg = worker, cfg
        self._last = worker.steps
        self._folder = worker.job.out / FOLDER
        self._done = {int(row["step"]): row for row in read_evaluations(worker.job.out)}
        self._events = Events(worker.job.out / "tensorboard") if worker.rank == 0 else None

    def due(self, steps_done: int) -> bool:
        return steps_done % self._cfg.every == 0 or steps_done == self._last

    def score(self, steps_done: int) -> float | None:
        """AP, 0..1, of the weights after this step."""
        if self._worker.rank != 0 or not self.due(steps_done):
            return None
        if steps_done in self._done:        # a run that went back to an earlier checkpoint comes by again
            return self._done[steps_done]["AP"]
        spec = replace(self._worker.job.network, weights=self._weights(steps_done))
        plan = EvaluationPlan(device=self._worker.device.type, num_cpus=self._worker.job.config.workers.cpus_per_worker,
                              **({"graph": self._cfg.graph} if self._cfg.graph else {}))
        annotations, root = Path(self._cfg.annotations), Path(self._cfg.image_root)
        with _threads_kept():
            try:
                found = evaluate_network(spec, annotations, root, self._folder, plan)
            finally:
                load_network.cache_clear()
        self._write(steps_done, found, read_dataset(annotations, image_root=root))
        return found.scores["AP"]

    def close(self) -> None:
        if self._events is not None:
            self._events.close()

    def _weights(self, steps_done: int) -> Path:
        """The weights to be scored, in a folder cleared of the evaluation before."""
        step = self._folder / STEP_FILE
        if not step.exists() or step.read_text() != str(steps_done):
            shutil.rmtree(self._folder, ignore_errors=True)
            export(self._worker.job, self._worker.progress, self._worker.index, self._folder / WEIGHTS)
            step.write_text(str(steps_done))
        return self._folder / WEIGHTS

    def _write(self, step: int, found: Evaluation, dataset: Dataset) -> None:
        """Line, plots, pictures and events of one evaluation; the line last, so that a torn one is made anew."""
        results = read_results(self._folder / RESULTS_FILE)
        write_plots(found.detail, self._folder)
        self._curves(found, step)
        for name, value in found.scores.items():
            self._events.add_scalar(f"evaluation/{name}", value, step)
        self._events.add_scalar("evaluation/id_switches", found.switches.switches, step)
        pictures = self._folder / "pictures"
        pictures.mkdir(exist_ok=True)
        for number, (name, picture) in enumerate(side_by_side(dataset, results, self._cfg.pictures)):
            Image.fromarray(picture).save(pictures / f"{number}.png")
            (pictures / f"{number}.txt").write_text(name, encoding="utf-8")
            self._events.add_image(f"truth_and_prediction/{number}", picture, step, dataformats="HWC")
        self._events.flush()
        line = {"step": step, **found.scores, "id_switches": found.switches.switches,
                "frames_per_s": round(found.frames_per_s, 3)}
        out = self._worker.job.out
        if not Lines(out / EVALUATIONS_FILE).append(f"{json.dumps(line)}\n".encode()):
            say(out, f"{out / EVALUATIONS_FILE}: the scores after step {step} could not be written. Is the disk full?")
        self._done[step] = line

    def _curves(self, found: Evaluation, step: int) -> None:
        figure = curves_by_threshold(found.detail)
        figure.canvas.draw()
        picture = np.asarray(figure.canvas.buffer_rgba())[..., :3]
        self._events.add_image("evaluation/precision_recall", picture, step, dataformats="HWC")
        plt.close(figure)


def evaluator_of(worker: Worker) -> list[Watcher]:
    """The watcher of a run that asks for evaluations; else none."""
    cfg = worker.job.config.evaluation
    return [] if cfg is None else [Evaluate(worker, cfg)]


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Torch's threads as they were: the graph sets its own, and sums depend on them in the last bit."""
    number = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(number)
