"""`maskstream train CONFIG`: check everything, run the workers, draw the curves.

In:     a file of configs/training, overrides, a folder for the run
Out:    the folder: metrics.jsonl, tensorboard/, checkpoints/, weights.safetensors, and report.html, however it ended
State:  the folder is the state: `--resume` goes on from its last good checkpoint, and gives what an uncut run had
        given

Also `python -m trainers.train CONFIG`, and under `ray job submit --working-dir . -- maskstream train CONFIG`.
"""

from __future__ import annotations

import shlex
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

from operators.errors import CheckpointError, ConfigError
from operators.replacing import check_folder, replacing
from pipelines.config import apply_overrides, build, resolve
from pipelines.file_kinds import load_settings
from pipelines.networks import NetworkSpec, read_network
from trainers import checkpoint as checkpoints
from trainers.checks import check_dataset, check_network, check_start
from trainers.config import TrainConfig
from trainers.fingerprint import fingerprint
from trainers.job import METRICS_FILE, WEIGHTS_FILE, Job
from trainers.progress import following
from trainers.report import reported

FINGERPRINT_FILE = "fingerprint"
"""Of the settings that the run's course depends on: it is resumed with no others."""


def train(
    config_path: str | Path, overrides: Sequence[str] = (), *, out: str | Path, resume: bool = False,
    address: str | None = None,
) -> Path:
    """Run (or go on with) a training run; returns the file of weights.

    Raises ConfigError, DatasetError, CheckpointError before any training; TrainingError when the workers fail for good;
    SystemExit 143 after SIGTERM. What ends it once it has begun stands in the folder's report too.
    """
    job = checked(config_path, overrides, Path(out), resume)
    from trainers.fit import cluster_for, fit  # Ray takes seconds, which a wrong setting need not wait for

    with cluster_for(address, job.config.workers):      # a run that the cluster has no room for leaves nothing behind
        claim(job, resume)
        with reported(job), leaving_on_sigterm(), following(job):
            fit(job)
    return job.out / WEIGHTS_FILE


def prepare(config_path: str | Path, overrides: Sequence[str], out: Path, resume: bool) -> Job:
    """`checked`, and the folder made this run's own."""
    job = checked(config_path, overrides, out, resume)
    claim(job, resume)
    return job


def checked(config_path: str | Path, overrides: Sequence[str], out: Path, resume: bool) -> Job:
    """Everything that can be known before training and without a cluster. Writes nothing."""
    check_folder(out, "--out")                  # a moment; the dataset may take a minute
    job = make_job(config_path, overrides, out)
    _check_apart(job)
    if not resume and ((job.out / METRICS_FILE).exists() or checkpoints.found(job.out / checkpoints.FOLDER)):
        raise ConfigError(f"{out}: holds an earlier run. Go on with it by --resume, or name another folder by --out.")
    if resume and not holds_run(out):
        raise ConfigError(f"{out}: holds no run to resume. Leave --resume out to begin one.")
    _check_settings(job, resume)
    return job


def holds_run(out: str | Path) -> bool:
    """Whether a run was begun in this folder."""
    return (Path(out) / FINGERPRINT_FILE).exists()


def make_job(config_path: str | Path, overrides: Sequence[str], out: Path) -> Job:
    """The run that a file of settings asks for; reads settings, dataset and weights, writes nothing.

    Raises ConfigError, DatasetError, CheckpointError.
    """
    where = resolve(config_path)
    config = build(TrainConfig, apply_overrides(load_settings(where, "training"), overrides, str(where)), str(where))
    paths = {key: _absolute(path) for key, path in config.data.paths.items()}
    begin = None if config.start_from is None else _absolute(str(resolve(config.start_from)))
    stills = tuple(replace(one, annotations=_absolute(one.annotations), image_root=_absolute(one.image_root))
                   for one in config.data.stills)  # fmt: skip
    data = replace(config.data, **paths, stills=stills)
    config = replace(config, data=data, start_from=begin)       # workers have folders of their own
    if config.evaluation is not None:
        held_out = {key: _absolute(getattr(config.evaluation, key)) for key in ("annotations", "image_root")}
        config = replace(config, evaluation=replace(config.evaluation, **held_out))
    network = _network(config.network, str(where))
    check_network(config, network, str(where))
    check_dataset(config, network, str(where))
    check_start(config, network)
    command = shlex.join(["maskstream", "train", str(config_path), *(f"--set={o}" for o in overrides)])
    return Job(config, network, out.absolute(), fingerprint(config, network), command)


def _network(path: str, where: str) -> NetworkSpec:
    """Raises ConfigError naming file and key: those of the run where there is no such network."""
    try:
        return read_network(path)
    except ConfigError as error:
        if resolve(path).exists():
            raise
        raise ConfigError(f"{where}, network: {error}") from error


def _check_apart(job: Job) -> None:
    """Raises ConfigError for the folder of the dataset's images or videos itself. One below it is fine: what is read
    is what annotations name."""
    for root in (job.config.data.image_root, job.config.data.videos):
        if root is not None and Path(root).resolve() == job.out.resolve():
            raise ConfigError(f"--out {job.out}: the dataset's images or videos are there. Name another folder.")


def _check_settings(job: Job, resume: bool) -> None:
    """Raises CheckpointError where the folder holds a run with other settings."""
    mark = job.out / FINGERPRINT_FILE
    if resume and mark.exists() and mark.read_text().strip() != job.fingerprint:
        raise CheckpointError(f"{job.out}: holds a run with other settings. Resume with the same, or use another "
                              "--out.")


def claim(job: Job, resume: bool) -> None:
    """Make the folder this run's own, or see that it is. Raises CheckpointError for a run with other settings,
    ConfigError for what can be no folder."""
    out, mark = job.out, job.out / FINGERPRINT_FILE
    _check_settings(job, resume)
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not mark.exists() or not resume:         # on a disk that is full a run can still be resumed
            with replacing(mark) as part:
                part.write_text(job.fingerprint + "\n")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be the folder of a run: {error.strerror}. Name another by --out.") from error


@contextmanager
def leaving_on_sigterm() -> Iterator[None]:
    """SIGTERM, by which clusters stop their jobs, as SystemExit 143, so that what is open is closed. In a thread other
    than the main one, where Python knows no signals, this does nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)       # a second one would tear what is being closed
    raise SystemExit(128 + number)


def _absolute(path: str) -> str:
    return str(Path(path).expanduser().absolute())


if __name__ == "__main__":
    from pipelines.cli import main

    sys.exit(main(["train", *sys.argv[1:]]))
