"""What becomes of a failed attempt: which errors end a run, what is told, with how many workers it goes on.

Whole runs, with what is killed in them, are in tests/end_to_end/test_train_survival.py.
"""

from __future__ import annotations

import signal
import threading

import pytest
from ray.exceptions import ActorDiedError
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback, WorkerHealthCheckFailedError

from operators.errors import DatasetError
from trainers.config import DataConfig, TrainConfig, WorkersConfig
from trainers.fit import _fitted, _possible, _raise_if_final, _reason, share_of
from trainers.job import TrainingError

LOST = WorkerHealthCheckFailedError("A worker health check failed.", ActorDiedError())
CUT_OFF = UserExceptionWithTraceback(RuntimeError("Connection closed by peer [10.0.0.7]:24739."), "Traceback ...")


def config(samples: int, **workers: object) -> TrainConfig:
    return TrainConfig(network="n", data=DataConfig(annotations="a", image_root="b"), samples_per_step=samples,
                       workers=WorkersConfig(**workers))  # fmt: skip


@pytest.mark.parametrize("samples, workers, most, found", [
    pytest.param(16, {"num_workers": 8}, 0, None, id="nothing left"),
    pytest.param(16, {"num_workers": 8}, 8, 8, id="all came back"),
    pytest.param(16, {"num_workers": 8}, 7, None, id="one is missing, and nobody said that fewer will do"),
    pytest.param(16, {"num_workers": 8, "min_workers": 2}, 7, 4, id="7, 6 and 5 cannot share 16"),
    pytest.param(16, {"num_workers": 8, "min_workers": 2}, 2, 2, id="the fewest"),
    pytest.param(16, {"num_workers": 8, "min_workers": 2}, 1, None, id="too few"),
    pytest.param(16, {"num_workers": 8, "min_workers": 5}, 7, None, id="none that can share a step is allowed"),
    pytest.param(24, {"num_workers": 8, "min_workers": 1}, 7, 6, id="6 can share 24"),
])
def test_with_how_many_workers_a_run_goes_on(samples, workers, most, found):
    assert _possible(config(samples, **workers), most) == found


@pytest.mark.parametrize("workers, share", [
    ({"cpus_per_worker": 6}, {"CPU": 6}), ({"cpus_per_worker": 6, "use_gpu": True}, {"CPU": 6, "GPU": 1})], ids=str)
def test_what_a_worker_takes(workers, share):
    assert share_of(WorkersConfig(**workers)) == share


@pytest.mark.parametrize("error", [
    WorkerGroupError("", {0: CUT_OFF, 1: LOST}), WorkerGroupError("", {0: CUT_OFF}), ControllerError(OSError("no"))],
    ids=["a worker lost, another for want of it", "cut off", "the controller"])
def test_what_may_have_been_chance_is_tried_again(error):
    _raise_if_final(error)


@pytest.mark.parametrize("ours", [DatasetError("a.jpg: cannot be decoded."), TrainingError("step 7: not finite.")],
                         ids=lambda error: type(error).__name__)
def test_what_would_happen_again_ends_the_run(ours):
    """Also where others failed for want of the one that raised it, and are named first."""
    error = WorkerGroupError("", {0: CUT_OFF, 1: UserExceptionWithTraceback(ours, "Traceback ...")})
    with pytest.raises(type(ours)) as caught:
        _raise_if_final(error)
    assert caught.value is ours


def test_of_several_failures_the_cause_is_told():
    assert _reason(WorkerGroupError("", {0: CUT_OFF, 1: LOST})).startswith("ActorDiedError: ")
    assert _reason(WorkerGroupError("", {0: CUT_OFF})) == "RuntimeError: Connection closed by peer [10.0.0.7]:24739"
    assert "\n" not in _reason(ControllerError(OSError("two\nlines"))) and len(_reason(LOST)) < 300


class Endless:
    """A trainer whose run never ends; Ctrl-C comes once it has begun."""

    def __init__(self) -> None:
        self.over = threading.Event()

    def fit(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        signal.raise_signal(signal.SIGINT)      # heard by this thread: the main one sleeps on, as far as it may
        self.over.wait()


def test_ctrl_c_comes_through_while_a_run_is_waited_for(in_time):
    """Where Ray waits in the main thread, it takes Ctrl-C itself and ends the process with 0, as if all were done."""
    endless = Endless()
    with pytest.raises(KeyboardInterrupt):
        _fitted(endless, WorkerGroupError)
    endless.over.set()


class Ending:
    def __init__(self, error: Exception | None) -> None:
        self.error = error

    def fit(self) -> None:
        if self.error is not None:
            raise self.error


def test_how_a_run_ended():
    failed = WorkerGroupError("", {0: CUT_OFF})
    assert _fitted(Ending(None), WorkerGroupError) is None
    assert _fitted(Ending(failed), WorkerGroupError) is failed
    with pytest.raises(ZeroDivisionError):
        _fitted(Ending(ZeroDivisionError()), WorkerGroupError)
