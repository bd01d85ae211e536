"""Save and resume: the rest of a run as if it had not been cut, and every file that must be refused."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn

from operators.errors import CheckpointError
from trainers import checkpoint
from trainers.checkpoint import Progress
from trainers.step import Average, OptimizerConfig, make_optimizer, update


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
        losses.append(update(run, progress.network, progress.optimizer, [x], 0.05, None)["total"])
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
    if progress.scaler is not None:
        numbers |= {f"scaler.{name}": torch.as_tensor(value) for name, value in progress.scaler.state_dict().items()}
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
    checkpoint.restore(tmp_path / "new" / "folder", resumed, "f")
    assert resumed.steps_done == 3
    assert_equal(resumed, cut)
    assert go_on(resumed, 3) == losses[3:]
    assert_equal(resumed, uncut)


def test_before_the_first_step(tmp_path):
    start, other = fresh(1), fresh(2)
    checkpoint.save(tmp_path, start, "f")
    checkpoint.restore(tmp_path, other, "f")
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
    checkpoint.restore(tmp_path, loaded, "f")
    assert loaded.steps_done == 2
    assert all(torch.equal(before[name], value) for name, value in everything(loaded).items())
    go_on(loaded, 1)
    again = fresh(4)
    checkpoint.restore(tmp_path, again, "f")
    assert again.steps_done == 2, "training on does not write into the file"


# ------------------------------------------------------------------------------------------------------- many of them


def test_a_folder_that_is_not_there_changes_nothing(tmp_path):
    progress, as_it_was = fresh(1), fresh(1)
    assert checkpoint.restore(tmp_path / "no", progress, "f") == []
    assert_equal(progress, as_it_was)
    assert checkpoint.found(tmp_path / "no") == [] and checkpoint.last_step(tmp_path / "no") == 0


@pytest.mark.parametrize("keep, steps", [(1, [4]), (2, [4, 3]), (3, [4, 3, 2]), (9, [4, 3, 2, 1])])
def test_the_last_are_kept(tmp_path, keep, steps):
    progress = fresh(1)
    for _ in range(4):
        go_on(progress, 1)
        checkpoint.save(tmp_path, progress, "f", keep)
    assert [int(path.name[5:13]) for path in checkpoint.found(tmp_path)] == steps
    assert checkpoint.last_step(tmp_path) == 4


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path):
    (tmp_path / ".step-00000001-0123456789abcdef.pt.part").write_bytes(b"half of it")
    (tmp_path / "notes.txt").write_text("not ours")
    path = saved(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", path.name]


def test_best_score_position_and_scaler_go_along(tmp_path):
    ours, theirs = fresh(1), fresh(2)
    ours.scaler, theirs.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (512.0, 2.0))
    ours.scaler.scale(torch.ones(()))                   # a scaler has no state before it is first used
    theirs.scaler.scale(torch.ones(()))
    ours.best, ours.samples_done, ours.steps_done = 0.25, 96, 12
    checkpoint.save(tmp_path, ours, "f")
    checkpoint.restore(tmp_path, theirs, "f")
    assert (theirs.best, theirs.samples_done, theirs.steps_done) == (0.25, 96, 12)
    assert theirs.scaler.get_scale() == 512.0
    assert_equal(ours, theirs)


@contextmanager
def files_up_to(size: int) -> Iterator[None]:
    """The operating system lets no file of this process grow beyond `size` bytes: EFBIG, as ENOSPC of a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_leaves_the_one_before(tmp_path):
    progress = fresh(1)
    go_on(progress, 1)
    size = checkpoint.save(tmp_path, progress, "f").stat().st_size
    go_on(progress, 1)
    with files_up_to(size // 2), pytest.raises(OSError, match="File too large"):
        checkpoint.save(tmp_path, progress, "f", keep=1)
    assert [int(name[5:13]) for name in os.listdir(tmp_path)] == [1], "whole, and nothing beside it"
    old = fresh(2)
    assert checkpoint.restore(tmp_path, old, "f") == [] and old.steps_done == 1
    checkpoint.save(tmp_path, progress, "f", keep=1)
    checkpoint.restore(tmp_path, old, "f")
    assert old.steps_done == 2 and len(os.listdir(tmp_path)) == 1


# ----------------------------------------------------------------------------------------------------------------- torn


def cut(share: float):
    return lambda whole: whole[: int(share * len(whole))]


def turned(share: float):
    def change(whole: bytes) -> bytes:
        at = int(share * len(whole))
        return whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

    return change


DAMAGE = [
    *(pytest.param(cut(share), id=f"cut at {share}") for share in (0.0, 0.01, 0.3, 0.9, 0.999)),
    *(pytest.param(turned(share), id=f"one bit turned at {share}") for share in (0.0, 0.3, 0.5, 0.7, 0.999)),
    pytest.param(lambda whole: whole + b"\0", id="a byte too many"),
    pytest.param(lambda whole: bytes(len(whole)), id="zeros"),
]


@pytest.mark.parametrize("damage", DAMAGE)
def test_of_a_torn_file_the_one_before_is_loaded(tmp_path, damage):
    """Of a turned bit torch itself would say nothing: it does not look at the checksums of its files."""
    progress = fresh(1)
    for _ in range(3):
        go_on(progress, 1)
        path = checkpoint.save(tmp_path, progress, "f", keep=3)
    path.write_bytes(damage(path.read_bytes()))
    loaded, same = fresh(2), fresh(1)
    go_on(same, 2)
    (told,) = checkpoint.restore(tmp_path, loaded, "f")
    assert str(path) in told and "torn" in told
    assert_equal(loaded, same)
    assert checkpoint.last_step(tmp_path) == 2, "put aside, it does not count among the last"
    go_on(loaded, 1)
    assert checkpoint.save(tmp_path, loaded, "f") == path, "the same numbers come out"


def test_who_does_not_write_puts_nothing_aside(tmp_path):
    path = saved(tmp_path)
    later = path.with_name("step-00000009-0123456789abcdef.pt")
    later.write_bytes(b"torn")
    loaded = fresh(2)
    assert len(checkpoint.restore(tmp_path, loaded, "f", put_aside=False)) == 1 and loaded.steps_done == 2
    assert later.exists()


def test_one_that_is_gone_since_it_was_listed_is_one_that_cannot_be_read(tmp_path):
    """Worker 0 puts a torn file aside while another is about to read it."""
    saved(tmp_path)
    (tmp_path / "step-00000009-0123456789abcdef.pt").symlink_to(tmp_path / "nowhere")
    loaded = fresh(2)
    (told,) = checkpoint.restore(tmp_path, loaded, "f")
    assert "No such file" in told and loaded.steps_done == 2


def test_where_all_are_torn_nothing_begins_anew_by_itself(tmp_path):
    path = saved(tmp_path)
    path.write_bytes(b"")
    assert_refused(tmp_path, f"no checkpoint can be read.*{path.name}.*Begin anew by another --out")


# -------------------------------------------------------------------------------------------------------------- refused


def saved(folder: Path) -> Path:
    progress = fresh(1)
    go_on(progress, 2)
    return checkpoint.save(folder, progress, "f")


def assert_refused(folder: Path, message: str, fingerprint: str = "f") -> None:
    """A CheckpointError, and a run that is as it was."""
    progress, as_it_was = fresh(5), fresh(5)
    with pytest.raises(CheckpointError, match=message):
        checkpoint.restore(folder, progress, fingerprint)
    assert_equal(progress, as_it_was)


def placed(folder: Path, content: bytes) -> str:
    """A file whose name says that it is whole; gives the name."""
    path = folder / f"step-00000002-{hashlib.sha256(content).hexdigest()[:16]}.pt"
    path.write_bytes(content)
    return path.name


def packed(content: object) -> bytes:
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def test_a_checkpoint_of_another_run(tmp_path):
    name = saved(tmp_path).name
    assert_refused(tmp_path, f"{name}: of a run with other settings", fingerprint="g")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")     # torch's, before it refuses the file
@pytest.mark.parametrize("content", [
    pytest.param(b"no checkpoint, but text", id="text"), pytest.param(bytes(1000), id="zeros"),
    pytest.param(b"PK\x03\x04" + bytes(100), id="a broken zip"),
    pytest.param(pickle.dumps({"fingerprint": "f"}), id="a plain pickle"),
])
def test_files_of_another_kind(tmp_path, content):
    assert_refused(tmp_path, placed(tmp_path, content))


@pytest.mark.parametrize("content", [
    pytest.param({"model": {"weight": torch.zeros(2)}}, id="somebody else's dictionary"),
    pytest.param([1, 2, 3], id="a list"), pytest.param(torch.zeros(3), id="a tensor"),
    pytest.param({"fingerprint": "f"}, id="ours, with all but the fingerprint missing"),
])
def test_files_that_torch_reads_but_are_no_checkpoint(tmp_path, content):
    assert_refused(tmp_path, f"{placed(tmp_path, packed(content))}: not a checkpoint")


class Code:
    """Unpickled carelessly, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")     # torch's, before it refuses the file
@pytest.mark.parametrize("write", [
    pytest.param(lambda content: packed(content), id="as torch saves"),
    pytest.param(lambda content: pickle.dumps(content), id="a bare pickle"),
])
def test_code_in_a_file_is_refused_and_not_run(tmp_path, write):
    trap = tmp_path / "code was run"
    placed(tmp_path, write({"fingerprint": "f", "steps_done": Code(trap)}))
    assert_refused(tmp_path, "cannot be read")
    assert not trap.exists()
