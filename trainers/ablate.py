"""`maskstream ablate NAME`: train what a paper compares, several times each, and set the outcome beside the paper's.

In:     a file of configs/ablations, a folder
Out:    in the folder: pretraining/, a folder for each run; after every run anew results.json, table.md, ablation.png;
        at the end, where the file asks for `cases`, cases.md and pictures of them
State:  the folder is the state: the same command goes on where it was cut. What is scored is not made again, what was
        training goes on from its last checkpoint
Limits: a run is one process; many run at once, as tasks of a Ray cluster whose nodes share the folder

A run that fails does not end the others: it is told, and the exit code is 1.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import ray
from ray.exceptions import RayError
from rich.console import Console

from operators.errors import CheckpointError, ConfigError, DatasetError, did_you_mean
from operators.object_graph import ObjectGraphConfig
from operators.shapes import PRESETS, ShapesConfig, write_youtube_vis
from pipelines.config import build, load_yaml
from pipelines.evaluation import GRAPH
from pipelines.graph import load_graph
from pipelines.interrupts import Interrupts
from pipelines.local import usable_cpus
from pipelines.networks import NetworkSpec, as_plain, read_network
from pipelines.stages import STAGES, association_of
from trainers.ablation_cases import write_cases
from trainers.ablation_config import (
    PRETRAINING,
    SCORES_FILE,
    TRAINING_FILE,
    AblationConfig,
    Changes,
    GeneratedData,
    Run,
    planned,
    read_ablation,
    write_pretraining,
    write_settings,
)
from trainers.ablation_progress import Follow
from trainers.ablation_report import write_report
from trainers.ablation_run import run_one, train_in
from trainers.config import TrainConfig, WorkersConfig
from trainers.fingerprint import fingerprint
from trainers.fit import cluster_for
from trainers.job import WEIGHTS_FILE
from trainers.train import FINGERPRINT_FILE

POLL_S = 2.0
MAX_NUMBER = 1000
"""Of seeds, as in a file of configs/ablations, and of runs at a time."""
MAX_RETRIES = 2
"""Times that a run whose process was lost is taken up again."""


@dataclass(frozen=True)
class Ablation:
    """What `ablate` was asked for, all of it read and checked."""

    config: AblationConfig
    changes: Changes
    out: Path
    runs: list[Run]
    jobs: int | None
    """Runs at a time; None: as many as the cluster has room for."""
    command: str

    @property
    def start_from(self) -> Path | None:
        """The weights that every run begins with."""
        return None if self.config.pretraining is None else self.out / PRETRAINING / WEIGHTS_FILE


def ablate(
    path: str | Path, overrides: Sequence[str] = (), *, out: str | Path, seeds: int | None = None,
    only: Sequence[str] = (), jobs: int | None = None, address: str | None = None, command: str = "",
) -> int:
    """Make (or go on with) an ablation; returns how many runs failed.

    Raises ConfigError, DatasetError, CheckpointError before any training.
    """
    for name, number in (("seeds", seeds), ("jobs", jobs)):
        if number is not None and not 1 <= number <= MAX_NUMBER:
            raise ConfigError(f"--{name} {number}: expected 1 to {MAX_NUMBER}.")
    changes = Changes.of(overrides)
    config = read_ablation(path, changes)
    held_out = replace(config.held_out, folder=os.path.abspath(config.held_out.folder))
    config, out = replace(config, held_out=held_out), Path(out).absolute()
    asked = Ablation(config, changes, out, planned(config, out, seeds, only), jobs, command)
    console = Console(soft_wrap=True)
    workers = check(asked)
    if asked.start_from is None or _pretrained(asked):
        _unscored(asked)                        # what was scored with other settings is told before Ray starts
    for data in (*config.datasets, held_out):
        make_data(data, console)
    with cluster_for(address, workers), Interrupts() as interrupts:
        _pretrain(asked, console, interrupts)
        failed = _make_runs(asked, console, interrupts)
    report(asked)
    written = [out / "table.md", out / "ablation.png"]
    if config.cases:
        written += write_cases(config, held_out, planned(config, out, _most_seeds(asked)), out)
    for name, reason in failed.items():
        console.print(f"failed: {name}: {reason}", style="red")
    console.print("\n".join(map(str, written)))
    return len(failed)


def check(asked: Ablation) -> WorkersConfig:
    """Read every run's settings as the run will; gives what one run takes from the cluster. Writes nothing."""
    settings = [_settings_of(asked, run) for run in asked.runs]
    for run, (_, spec) in zip(asked.runs, settings, strict=True):
        association_of(load_graph(run.graph, STAGES), spec)     # a ConfigError now, not when the run is trained
    taken = [cfg.workers for cfg, _ in settings]
    if asked.config.pretraining is not None:
        taken.append(_settings_of(asked, None)[0].workers)
    if any(workers.num_workers != 1 for workers in taken):
        raise ConfigError("training.workers.num_workers: a run of an ablation is one process; expected 1. Runs are "
                          "what goes on at once: see --jobs.")
    return WorkersConfig(cpus_per_worker=max(w.cpus_per_worker for w in taken), use_gpu=any(w.use_gpu for w in taken))


def _settings_of(asked: Ablation, run: Run | None) -> tuple[TrainConfig, NetworkSpec]:
    """Of a run, or with None of the pre-training; read from files that are gone again: the folder may hold others."""
    home = asked.out / PRETRAINING if run is None else run.folder
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            if run is None:
                write_pretraining(asked.config, asked.changes, folder)
            else:
                write_settings(asked.config, asked.changes, replace(run, folder=folder), asked.start_from)
            config = build(TrainConfig, load_yaml(folder / TRAINING_FILE), str(home / TRAINING_FILE))
            return config, read_network(config.network)
        except ConfigError as error:
            raise ConfigError(str(error).replace(name, str(home))) from error


def make_data(data: GeneratedData, console: Console) -> None:
    """Generate a dataset that is not there. Raises DatasetError where the folder holds another one."""
    if data.preset not in PRESETS:
        raise ConfigError(f"datasets, preset: no preset '{data.preset}'.{did_you_mean(data.preset, PRESETS)}")
    config = build(ShapesConfig, {**asdict(PRESETS[data.preset]), **data.settings}, "datasets", "settings")
    if data.annotations.exists():
        info = json.loads(data.annotations.read_text())["info"]
        if (info.get("config"), info.get("seed"), info.get("num_clips")) != (asdict(config), data.seed, data.clips):
            raise DatasetError(f"{data.folder}: holds another dataset than is asked for (preset {data.preset}, seed "
                               f"{data.seed}, {data.clips} clips). Move it away, or name another folder.")
        return
    console.print(f"generating {data.clips} clips: {data.folder}")
    write_youtube_vis(data.folder, config, data.seed, data.clips, workers=usable_cpus())


def _pretrain(asked: Ablation, console: Console, interrupts: Interrupts) -> None:
    """The weights that all runs begin with, where they are not there."""
    if asked.start_from is None or _pretrained(asked):
        return
    folder, (cfg, _) = asked.start_from.parent, _settings_of(asked, None)
    write_pretraining(asked.config, asked.changes, folder)
    with Follow({folder: cfg.steps}, WEIGHTS_FILE, console, "pre-training") as follow:
        task = ray.remote(train_in).options(**_share(cfg.workers), max_retries=MAX_RETRIES)
        waiting = task.remote(folder, _device(cfg.workers))
        while not interrupts.waited(lambda: ray.wait([waiting], timeout=POLL_S))[0]:
            follow.update()
        ray.get(waiting)


def _pretrained(asked: Ablation) -> bool:
    """Whether the weights that all runs begin with are there. Raises CheckpointError for those of other settings."""
    if asked.start_from is None or not asked.start_from.exists():
        return False
    folder = asked.start_from.parent
    if (folder / FINGERPRINT_FILE).read_text().strip() != fingerprint(*_settings_of(asked, None)):
        raise CheckpointError(f"{folder}: made with other settings. Go on with the same, or use another --out.")
    return True


@dataclass(frozen=True)
class _Job:
    """A run, what it takes from the cluster, and what its scores will be known by."""

    run: Run
    workers: WorkersConfig
    mark: str

    def start(self, held_out: GeneratedData) -> ray.ObjectRef:
        task = ray.remote(run_one).options(**_share(self.workers), max_retries=MAX_RETRIES)
        return task.remote(self.run, held_out, self.mark, self.workers.cpus_per_worker, _device(self.workers))


def _make_runs(asked: Ablation, console: Console, interrupts: Interrupts) -> dict[str, str]:
    """All runs that have no scores yet; gives those that failed, with the reason."""
    steps = {run.folder: _settings_of(asked, run)[0].steps if run.trained_in is None else 0 for run in asked.runs}
    todo = deque(_unscored(asked))
    for job in todo:
        write_settings(asked.config, asked.changes, job.run, asked.start_from)
    failed: dict[str, str] = {}
    going: dict[ray.ObjectRef, Run] = {}
    with Follow(steps, SCORES_FILE, console, "runs") as follow:
        while todo or going:
            while todo and len(going) < _places(asked, todo[0].workers):
                job = next((one for one in todo if not _waits(one.run, todo, going.values())), None)
                if job is None:
                    break
                todo.remove(job)
                going[job.start(asked.config.held_out)] = job.run
            for reference in interrupts.waited(lambda: ray.wait(list(going), timeout=POLL_S))[0]:
                run = going.pop(reference)
                try:
                    scores = ray.get(reference)
                except RayError as error:
                    failed[run.name] = " ".join(str(getattr(error, "cause", None) or error).split())
                    follow.say(f"{run.name} failed")
                else:
                    report(asked)
                    follow.finished(run, scores)
            follow.update()
    return failed


def _waits(run: Run, todo: Iterable[_Job], going: Iterable[Run]) -> bool:
    """Whether another run is still to make the weights that this one scores."""
    if run.trained_in is None or (run.trained_in / WEIGHTS_FILE).exists():
        return False
    return run.trained_in in {*(job.run.folder for job in todo), *(one.folder for one in going)}


def _unscored(asked: Ablation) -> list[_Job]:
    """Runs that have no scores yet, in order. Raises CheckpointError for scores of others."""
    jobs = []
    for run in asked.runs:
        cfg, spec = _settings_of(asked, run)
        job = _Job(run, cfg.workers, _mark(asked.config, run, cfg, spec))
        if not (run.folder / SCORES_FILE).exists():
            jobs.append(job)
        elif json.loads((run.folder / SCORES_FILE).read_text())["fingerprint"] != job.mark:
            raise CheckpointError(f"{run.folder}: scored with other settings. Go on with the same, or use another "
                                  "--out.")
    return jobs


def _places(asked: Ablation, workers: WorkersConfig) -> int:
    """Runs at a time. No more than the cluster has room for now: of tasks that wait, Ray may begin any first."""
    share = _share(workers)
    have = ray.cluster_resources()
    room = [have.get(name, 0) // wanted for name, wanted in (("CPU", share["num_cpus"]), ("GPU", share["num_gpus"]))
            if wanted]
    return max(1, min([*room, *([asked.jobs] if asked.jobs else [])]))


def _share(workers: WorkersConfig) -> dict[str, int]:
    return {"num_cpus": workers.cpus_per_worker, "num_gpus": int(workers.use_gpu)}


def _device(workers: WorkersConfig) -> str:
    return "cuda" if workers.use_gpu else "cpu"


def _mark(config: AblationConfig, run: Run, cfg: TrainConfig, spec: NetworkSpec) -> str:
    """Of all settings that the scores of a run depend on; where files lie is not among them."""
    data = [{**asdict(one), "folder": ""} for one in (*config.datasets, config.held_out)]
    plain = [fingerprint(cfg, spec), as_plain(spec.detect), spec.association, data]
    if spec.edges != ObjectGraphConfig():
        plain.append(as_plain(spec.edges))
    if run.graph != GRAPH:
        plain.append([[stage.name, as_plain(stage.settings)] for stage in load_graph(run.graph, STAGES).stages])
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def report(asked: Ablation) -> None:
    """Table and picture of all runs in the folder that have scores."""
    found = [run.folder / SCORES_FILE for run in planned(asked.config, asked.out, seeds=_most_seeds(asked))]
    write_report(asked.config, [json.loads(p.read_text()) for p in found if p.exists()], asked.out, asked.command)


def _most_seeds(asked: Ablation) -> int:
    """Seeds of which the folder may hold scores, of this or of an earlier command."""
    of_tables = (table.seeds or 0 for table in asked.config.tables.values())
    return max([asked.config.seeds, *of_tables, *(run.seed + 1 for run in asked.runs)])
