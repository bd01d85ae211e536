"""A run on a cluster, to its end: Ray Train's workers, started anew when some are lost.

In:     `Job`; a cluster that this process is connected to
Out:    what the workers write (trainers/loop.py); `notices.txt` says what was lost, and how training went on
State:  the run's folder: every attempt goes on from the last good checkpoint there
Limits: MAX_FAILURES in a row on the same machines, without a checkpoint between them, end the run; what would only
        happen again ends it at once: damaged data, bad settings, numbers that are none

Ray Train's own retries are off. It repeats whatever failed, and with a node gone it waits for as many workers as at
first, for ever and without a word; here the run waits `workers.wait_s`, and goes on with `workers.min_workers` or more.
"""

from __future__ import annotations

import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from operators.errors import ConfigError, MaskstreamError
from pipelines.cluster import cluster
from trainers import checkpoint as checkpoints
from trainers.config import TrainConfig, WorkersConfig
from trainers.job import Job, TrainingError
from trainers.writing import note

MAX_FAILURES = 3
POLL_S = 1.0
ANSWER_S = 20.0
"""The cluster notices late that a machine is gone; one that does not answer in this time is not counted on."""


@contextmanager
def cluster_for(address: str | None, workers: WorkersConfig) -> Iterator[None]:
    """A cluster by address (or RAY_ADDRESS, as under `ray job submit`), else a local one for as long as the run.

    Raises ConfigError where it has too little for the workers, GraphError where it cannot be reached.
    """
    with cluster(address or os.environ.get("RAY_ADDRESS")):
        _check_room(workers)
        yield


def _check_room(workers: WorkersConfig) -> None:
    for resource, share in share_of(workers).items():
        amount, have = workers.num_workers * share, ray.cluster_resources().get(resource, 0)
        if amount > have:
            less = "Set workers.use_gpu to false" if resource == "GPU" and not have else "Lower workers.num_workers"
            less += " or workers.cpus_per_worker" if resource == "CPU" else ""
            raise ConfigError(f"workers want {amount} {resource}s, the cluster has {have:g}. {less}, or add a node.")
    if (fit := room(workers)) < workers.num_workers:
        raise ConfigError(
            f"{workers.num_workers} workers want {_told(workers)} each, and a worker must find that on one machine: "
            f"those of the cluster hold {fit}. Lower workers.num_workers or workers.cpus_per_worker, or add a node."
        )


def _machines() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def share_of(workers: WorkersConfig) -> dict[str, int]:
    """What one worker takes from the cluster."""
    return {"CPU": workers.cpus_per_worker, **({"GPU": 1} if workers.use_gpu else {})}


def _told(workers: WorkersConfig) -> str:
    return " and ".join(f"{amount} {resource}s" for resource, amount in share_of(workers).items())


def room(workers: WorkersConfig, machines: set[str] | None = None) -> int:
    """Workers that machines hold, were nothing else on them: those of these ids; None: all that count as alive."""
    machines = _machines() if machines is None else machines
    shares = share_of(workers).items()
    there = [node["Resources"] for node in ray.nodes() if node["NodeID"] in machines]
    return sum(min(int(have.get(name, 0) // amount) for name, amount in shares) for have in there)


@ray.remote(num_cpus=0, max_retries=0)
def _here() -> bool:
    return True


def _answering() -> set[str]:
    """Machines of which a process answers."""
    asked = {
        _here.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)).remote(): node
        for node in _machines()
    }
    ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=ANSWER_S)
    answers = set()
    for reference in ready:
        try:
            ray.get(reference)
        except RayError:
            continue                # gone while it was asked
        answers.add(asked[reference])
    return answers


def fit(job: Job) -> None:
    """Train to the last step. Raises TrainingError, or what the workers raised of ours, when it cannot go on."""
    # By default the controller looks at its workers every 2 s.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # A process of its own beside them, to tell the workers that their machine is about to go: ours do not ask.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    num_workers, failures = job.config.workers.num_workers, 0
    while True:
        before, machines = checkpoints.last_step(job.out / checkpoints.FOLDER), _machines()
        error = _attempt(job, num_workers)
        if error is None:
            return
        _raise_if_final(error)
        reached = checkpoints.last_step(job.out / checkpoints.FOLDER)
        if _starved(error) and room(job.config.workers) >= num_workers:
            note(job.out, f"{num_workers} workers found no place in the cluster yet: others use it. Trying on.")
            continue
        failures = 1 if reached > before or _machines() != machines else failures + 1
        if failures >= MAX_FAILURES:
            raise TrainingError(f"{job.out}: training failed {failures} times without a checkpoint between: "
                                f"{_reason(error)}. Go on by --resume.")  # fmt: skip
        note(job.out, f"Workers were lost: {_reason(error)}. Going on from step {reached}.")
        num_workers = _wait_for_room(job)


def _starved(error: Exception) -> bool:
    """Whether the workers waited in vain for a place."""
    return type(getattr(error, "controller_failure", None)).__name__ == "WorkerGroupStartupTimeoutError"


def _attempt(job: Job, num_workers: int) -> Exception | None:
    """So many workers, from the last checkpoint on; gives what ended them early."""
    from ray import train as ray_train
    from ray.train.torch import TorchTrainer

    from trainers.workers import train_worker

    workers = replace(job.config.workers, num_workers=num_workers, min_workers=None)
    job = replace(job, config=replace(job.config, workers=workers))
    with tempfile.TemporaryDirectory(prefix="maskstream-train-") as folder:     # Ray's notes on this attempt
        trainer = TorchTrainer(
            train_worker,
            train_loop_config=job,
            scaling_config=ray_train.ScalingConfig(
                num_workers=num_workers, use_gpu=workers.use_gpu, resources_per_worker=share_of(workers)
            ),
            run_config=ray_train.RunConfig(
                name="attempt",
                storage_path=folder,
                failure_config=ray_train.FailureConfig(max_failures=0, controller_failure_limit=0),
            ),
        )
        return _fitted(trainer, ray_train.TrainingFailedError)


def _fitted(trainer: Any, failed: type[Exception]) -> Exception | None:
    """`trainer.fit()`, from a thread: in the main one Ray takes Ctrl-C for a run that is done, and exits with 0."""
    ended: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # handed to the one who waits
            ended.append(error)

    thread = threading.Thread(target=fit, name="fit", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)             # with a limit: else Ctrl-C would wait for the thread
    if ended and not isinstance(ended[0], failed):
        raise ended[0]
    return ended[0] if ended else None


def _failures(error: Exception) -> list[Any]:
    """What happened, worker by worker, where workers failed."""
    found = getattr(error, "worker_failures", None) or {}
    # Ray wraps what a worker raised, and says nothing of it but the traceback.
    return [getattr(one, "_base_exc", one) for _, one in sorted(found.items())] or [error]


def _raise_if_final(error: Exception) -> None:
    """Raises what a worker raised of ours, which it would raise again. Others then fail too, for want of that one."""
    for one in _failures(error):
        if isinstance(one, MaskstreamError):
            raise one


def _reason(error: Exception) -> str:
    """In a line."""
    # A worker's failure, or what the failure to ask it is due to; of several the lost one: others fail for want of it.
    found = [getattr(one, "health_check_failure", one) for one in _failures(error)]
    first = next((one for one in found if isinstance(one, RayActorError)), found[0])
    text = " ".join(str(first).split())
    return f"{type(first).__name__}: {text[:200]}".rstrip(".: ")


def _wait_for_room(job: Job) -> int:
    """The number of workers to go on with. Waits for lost machines, and for what comes in their place."""
    workers = job.config.workers
    until, told = time.monotonic() + workers.wait_s, False
    while (fit := room(workers, _answering())) < workers.num_workers and time.monotonic() < until:
        if not told:
            note(job.out, f"The machines that are left hold {fit} of {workers.num_workers} workers. Waiting up to "
                         f"{workers.wait_s:.0f} s for others.")  # fmt: skip
            told = True
        time.sleep(POLL_S)
    found = _possible(job.config, min(fit, workers.num_workers))
    if found is None:
        raise TrainingError(
            f"{job.out}: {workers.num_workers} workers want {_told(workers)} each, and the machines that are left hold "
            f"{fit}. Add a node, or set workers.num_workers (workers.min_workers to go on at once the next time), then "
            "go on by --resume."
        )
    if found < workers.num_workers:
        note(job.out, f"Going on with {found} of {workers.num_workers} workers.")
    return found


def _possible(config: TrainConfig, most: int) -> int | None:
    """The largest number of workers, `most` and not under `min_workers`, that can share a step; None: there is none."""
    least = config.workers.min_workers or config.workers.num_workers
    for number in range(most, least - 1, -1):
        try:
            config.batch(number)
        except ValueError:
            continue
        return number
    return None
