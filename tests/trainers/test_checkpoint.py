"""Save and resume: the rest of a run as if it had not been cut, and every file that must be refused."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from operators.errors import CheckpointError
from trainers import checkpoint
from trainers.checkpoint import STATE_FILE, Progress
from trainers.step import Average, OptimizerConfig, make_optimizer, train_step


def fresh(seed: int, optimizer: str = "sgd", averaged: bool = True) -> Progress:
    """A small network with running statistics, random weights of `seed`."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 1))
    cfg = OptimizerConfig(name=optimizer, average_decay=0.9)
    return Progress(network, make_optimizer(network, cfg), Average(network, 0.9) if averaged else None)


def go_on(progress: Progress, steps: int) -> list[float]:
    """Steps whose data depend on the step alone, as those of a real run."""
    losses = []
    for step in range(progress.steps_done, progress.steps_done + steps):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        run = lambda batch: {"loss": (progress.network(batch) - 1).pow(2).mean()}  # noqa: E731
        losses.append(train_step(run, progress.network, progress.optimizer, x, 0.05, None)["total"])
        if progress.average is not None:
            progress.average.update(progress.network, step)
        progress.steps_done = step + 1
    return losses


def everything(progress: Progress) -> dict[str, torch.Tensor]:
    """All numbers of a run under their names."""
    numbers = {f"network.{name}": value for name, value in progress.network.state_dict().items()}
    for i, state in progress.optimizer.state_dict()["state"].items():
        present = {name: value for name, value in state.items() if value is not None}
        numbers |= {f"optimizer.{i}.{name}": torch.as_tensor(value) for name, value in present.items()}
    if progress.average is not None:
        numbers |= {f"average.{name}": value for name, value in progress.average.state.items()}
    return numbers


def assert_equal(a: Progress, b: Progress) -> None:
    ours, theirs = everything(a), everything(b)
    assert ours.keys() == theirs.keys() and a.steps_done == b.steps_done
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


# ------------------------------------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("averaged", [True, False])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_steps_after_loading_are_those_of_an_uncut_run(tmp_path, optimizer, averaged):
    uncut, cut = fresh(1, optimizer, averaged), fresh(1, optimizer, averaged)
    losses = go_on(uncut, 6)
    assert go_on(cut, 3) == losses[:3]
    checkpoint.save(tmp_path / "new" / "folder", cut, "f")
    resumed = fresh(2, optimizer, averaged)                             # other weights, until it is loaded
    checkpoint.load(tmp_path / "new" / "folder", resumed, "f")
    assert resumed.steps_done == 3
    assert_equal(resumed, cut)
    assert go_on(resumed, 3) == losses[3:]
    assert_equal(resumed, uncut)


def test_before_the_first_step(tmp_path):
    start, other = fresh(1), fresh(2)
    checkpoint.save(tmp_path, start, "f")
    checkpoint.load(tmp_path, other, "f")
    assert go_on(other, 2) == go_on(start, 2)
    assert_equal(other, start)


def test_saving_changes_nothing_and_what_is_saved_stays(tmp_path):
    progress = fresh(1)
    go_on(progress, 2)
    before = {name: value.clone() for name, value in everything(progress).items()}
    checkpoint.save(tmp_path, progress, "f")
    assert all(torch.equal(before[name], value) for name, value in everything(progress).items())
    go_on(progress, 2)
    loaded = fresh(3)
    checkpoint.load(tmp_path, loaded, "f")
    assert loaded.steps_done == 2
    assert all(torch.equal(before[name], value) for name, value in everything(loaded).items())
    go_on(loaded, 1)
    again = fresh(4)
    checkpoint.load(tmp_path, again, "f")
    assert again.steps_done == 2, "training on does not write into the file"


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    progress = fresh(1)
    go_on(progress, 1)
    checkpoint.save(tmp_path, progress, "f")
    go_on(progress, 1)

    def full(state, path):
        Path(path).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, progress, "f")
    monkeypatch.undo()
    old = fresh(2)
    checkpoint.load(tmp_path, old, "f")
    assert old.steps_done == 1
    checkpoint.save(tmp_path, progress, "f")
    checkpoint.load(tmp_path, old, "f")
    assert old.steps_done == 2 and os.listdir(tmp_path) == [STATE_FILE]


# -------------------------------------------------------------------------------------------------------------- refused


def saved(folder: Path) -> Path:
    progress = fresh(1)
    go_on(progress, 2)
    checkpoint.save(folder, progress, "f")
    return folder / STATE_FILE


def assert_refused(folder: Path, message: str, fingerprint: str = "f") -> None:
    """A CheckpointError that names the file, and a run that is as it was."""
    progress, as_it_was = fresh(5), fresh(5)
    with pytest.raises(CheckpointError, match=message) as error:
        checkpoint.load(folder, progress, fingerprint)
    assert str(folder / STATE_FILE) in str(error.value)
    assert_equal(progress, as_it_was)


def test_a_checkpoint_of_another_run(tmp_path):
    saved(tmp_path)
    assert_refused(tmp_path, "other settings", fingerprint="g")


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file(tmp_path, share):
    path = saved(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    assert_refused(tmp_path, "cannot be read")


def test_no_file(tmp_path):
    assert_refused(tmp_path, "cannot be read")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")     # torch's, before it refuses the file
@pytest.mark.parametrize("content", [
    pytest.param(b"no checkpoint, but text", id="text"), pytest.param(bytes(1000), id="zeros"),
    pytest.param(b"PK\x03\x04" + bytes(100), id="a broken zip"),
    pytest.param(pickle.dumps({"fingerprint": "f"}), id="a plain pickle"),
])
def test_files_of_another_kind(tmp_path, content):
    (tmp_path / STATE_FILE).write_bytes(content)
    assert_refused(tmp_path, ".")


@pytest.mark.parametrize("content", [
    pytest.param({"model": {"weight": torch.zeros(2)}}, id="somebody else's dictionary"),
    pytest.param([1, 2, 3], id="a list"), pytest.param(torch.zeros(3), id="a tensor"),
    pytest.param({"fingerprint": "f"}, id="ours, with all but the fingerprint missing"),
])
def test_files_that_torch_reads_but_are_no_checkpoint(tmp_path, content):
    torch.save(content, tmp_path / STATE_FILE)
    assert_refused(tmp_path, ".")


class Code:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")     # torch's, before it refuses the file
@pytest.mark.parametrize("write", [
    pytest.param(lambda content, path: torch.save(content, path), id="as torch saves"),
    pytest.param(lambda content, path: path.write_bytes(pickle.dumps(content)), id="a bare pickle"),
    pytest.param(lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False), id="old torch"),
])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, write):
    trap = tmp_path / "code was run"
    write({"fingerprint": "f", "steps_done": Code(trap)}, tmp_path / STATE_FILE)
    assert_refused(tmp_path, "cannot be read")
    assert not trap.exists()
