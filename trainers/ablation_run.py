"""One run of an ablation, in the process that Ray gives it: train, score on clips never seen, write down.

In:     a `Run`, whose folder holds its settings; the held-out dataset
Out:    DIR/<variant>-<seed>/: weights.safetensors, metrics.jsonl, evaluation/results.json; last of all scores.json
State:  the folder: a run that was cut goes on from its last checkpoint, a trained one is only scored
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import torch

from operators.replacing import replacing
from pipelines.evaluation import EvaluationPlan, evaluate_network
from pipelines.networks import read_network
from trainers.ablation_config import NETWORK_FILE, SCORES_FILE, TRAINING_FILE, GeneratedData, Run
from trainers.job import WEIGHTS_FILE
from trainers.loop import train_alone
from trainers.train import claim, make_job

METRICS = ("AP", "AP50", "AP75", "AR1", "AR10")


def train_in(folder: Path, device: Literal["cpu", "cuda"]) -> Path:
    """The weights of the run whose settings lie in `folder`; trains only what is not there yet."""
    job = make_job(folder / TRAINING_FILE, (), folder)
    claim(job, resume=True)
    if not (folder / WEIGHTS_FILE).exists():
        train_alone(job, torch.device(device))
    return folder / WEIGHTS_FILE


def run_one(run: Run, held_out: GeneratedData, fingerprint: str, num_cpus: int, device: Literal["cpu", "cuda"]) -> dict:
    """The scores of one run, in AP of 1; they are in its folder too."""
    began = time.perf_counter()
    train_in(run.home, device)
    trained = time.perf_counter()
    spec = read_network(run.folder / NETWORK_FILE)
    found = evaluate_network(spec, held_out.annotations.absolute(), held_out.image_root.absolute(),
                             run.folder / "evaluation",
                             EvaluationPlan(graph=run.graph, device=device, num_cpus=num_cpus))  # fmt: skip
    scores = {
        "variant": run.variant, "seed": run.seed, "fingerprint": fingerprint, "association": found.association,
        **{name: found.scores[name] for name in METRICS}, **asdict(found.switches),
        "training_s": round(trained - began, 1), "evaluation_s": round(time.perf_counter() - trained, 1),
    }  # fmt: skip
    with replacing(run.folder / SCORES_FILE) as part:
        part.write_text(json.dumps(scores, indent=1) + "\n")
    return scores
