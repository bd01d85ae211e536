"""Each norm against its formula: by hand, or written out in float64; `sync` among real processes too."""

from __future__ import annotations

import math
import multiprocessing
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from models.norms import FrozenBatchNorm2d, make_norm


@pytest.mark.parametrize("x, weight, bias, mean, var, expected", [
    pytest.param(3.0, 1.0, 0.0, 0.0, 1 - 1e-5, 3.0, id="nothing to do"),
    pytest.param(3.0, 2.0, 1.0, 0.0, 1 - 1e-5, 7.0, id="caffe origin: weight and bias alone"),
    pytest.param(3.0, 2.0, 1.0, 1.0, 4.0, (3 - 1) * 2 / math.sqrt(4.00001) + 1, id="all four"),
    pytest.param(0.0, 2.0, 1.0, 1.0, 0.0, -1 * 2 / math.sqrt(1e-5) + 1, id="no variance: eps alone"),
])
def test_frozen_norm_follows_its_formula(x, weight, bias, mean, var, expected):
    norm = FrozenBatchNorm2d(1)
    norm.load_state_dict({
        "weight": torch.tensor([weight]), "bias": torch.tensor([bias]),
        "running_mean": torch.tensor([mean]), "running_var": torch.tensor([var]),
    })
    assert norm(torch.full((1, 1, 1, 1), x)).item() == pytest.approx(expected, rel=1e-5)


def test_fresh_frozen_norm_hands_on_what_came():
    """Caffe files fill weight and bias alone: the variance left behind, with eps, must make exactly one."""
    norm, x = FrozenBatchNorm2d(2), torch.randn(1, 2, 3, 3)
    assert (norm.running_var.double() + 1e-5).tolist() == pytest.approx([1, 1], abs=2e-7)
    assert torch.allclose(norm(x), x, rtol=1e-6, atol=0)


def test_frozen_norm_treats_channels_apart():
    norm = FrozenBatchNorm2d(2)
    norm.weight.copy_(torch.tensor([2.0, -1.0]))
    norm.bias.copy_(torch.tensor([0.0, 5.0]))
    out = norm(torch.ones(3, 2, 2, 2))
    assert torch.allclose(out[:, 0], torch.tensor(2.0)) and torch.allclose(out[:, 1], torch.tensor(4.0))


def test_frozen_norm_has_nothing_to_train_and_does_not_move():
    norm = FrozenBatchNorm2d(3).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.randn(4, 3, 5, 5))
    assert list(norm.parameters()) == []
    assert before.keys() == {"weight", "bias", "running_mean", "running_var"}
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())


def test_frozen_norm_lets_the_gradient_through_scaled():
    norm = FrozenBatchNorm2d(1)
    norm.weight.fill_(3.0)
    x = torch.zeros(1, 1, 2, 2, requires_grad=True)
    norm(x).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 3.0))


def test_batch_norm_has_the_momentum_and_eps_of_the_specification():
    norm = make_norm("batch", 7)
    assert isinstance(norm, nn.BatchNorm2d) and norm.num_features == 7
    assert (norm.momentum, norm.eps, norm.affine) == (0.1, 1e-5, True)


# ------------------------------------------------------------------------------------------ frozen statistics


def test_frozen_statistics_train_their_affine_alone():
    norm = make_norm("frozen_statistics", 2).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([2.0, 3.0]))
        norm.bias.copy_(torch.tensor([1.0, -1.0]))
        norm.running_mean.copy_(torch.tensor([1.0, 0.0]))
        norm.running_var.copy_(torch.tensor([4.0, 1.0]) - 1e-5)
    x = torch.tensor([[3.0, 5.0], [7.0, 2.0]])[:, :, None, None].requires_grad_()       # two images, two channels
    out = norm(x)
    out.sum().backward()
    assert out.flatten().tolist() == pytest.approx([2 * 2 / 2 + 1, 3 * 5 - 1, 2 * 6 / 2 + 1, 3 * 2 - 1])
    assert norm.weight.grad.tolist() == pytest.approx([2 / 2 + 6 / 2, 5 + 2]) and norm.bias.grad.tolist() == [2, 2]
    assert x.grad.flatten().tolist() == pytest.approx([1, 3, 1, 3])
    assert norm.running_mean.tolist() == [1, 0] and norm.num_batches_tracked == 0


def test_frozen_statistics_answer_alike_in_both_modes_and_take_batch_norm_weights():
    trained, norm = make_norm("batch", 3), make_norm("frozen_statistics", 3)
    for _ in range(3):
        trained(torch.randn(4, 3, 5, 5) * 2 + 1)
    norm.load_state_dict(trained.state_dict())
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(norm.train()(x), norm.eval()(x))
    assert torch.equal(norm(x), trained.eval()(x))


@pytest.mark.parametrize("name", ["frozen_statistics", "batch", "sync"])
def test_norms_that_train_are_known_as_batch_norms(name):
    """What spares them weight decay in trainers/step.py."""
    assert isinstance(make_norm(name, 2), nn.modules.batchnorm._BatchNorm)


# ------------------------------------------------------------------------------------------ synchronised


def lively_sync() -> nn.Module:
    norm = make_norm("sync", 2).train()
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.5, 0.5]))
        norm.bias.copy_(torch.tensor([0.25, -2.0]))
        norm.running_mean.copy_(torch.tensor([3.0, -1.0]))
    return norm


def train_in_a_group(rank: int, size: int, folder: str) -> None:
    """One worker: its share through the norm and back; what came of it is written to `folder`."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=300))
    try:
        share = torch.load(f"{folder}/in{rank}.pt", weights_only=True)
        norm, x = lively_sync(), share["x"].requires_grad_()
        y = norm(x)
        (y * share["pull"]).sum().backward()
        found = {"y": y.detach(), "x": x.grad, "weight": norm.weight.grad, "bias": norm.bias.grad,
                 "mean": norm.running_mean, "var": norm.running_var, "steps": norm.num_batches_tracked}
        if rank == 0:
            found["alone"] = norm.eval()(x.detach())         # the others do not take part: must not wait for them
        torch.save(found, f"{folder}/out{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()


def over_all(x: Tensor, pull: Tensor) -> dict[str, Tensor]:
    """Batch norm of the joined batch in float64, from its definition."""
    x = x.double().requires_grad_()
    weight = torch.tensor([1.5, 0.5]).double().requires_grad_()
    bias = torch.tensor([0.25, -2.0]).double().requires_grad_()
    values = x.transpose(0, 1).flatten(1)                                       # (2, n)
    n, mean = values.shape[1], values.mean(1)
    var = ((values - mean[:, None]) ** 2).sum(1) / n
    spread = (var + 1e-5).sqrt()[:, None, None]
    y = (x - mean[:, None, None]) / spread * weight[:, None, None] + bias[:, None, None]
    (y * pull).sum().backward()
    running_mean = 0.9 * torch.tensor([3.0, -1.0]).double() + 0.1 * mean
    return {"y": y, "x": x.grad, "weight": weight.grad, "bias": bias.grad, "mean": running_mean,
            "var": 0.9 + 0.1 * var * n / (n - 1)}


@pytest.mark.parametrize("images", [
    pytest.param((3,), id="a group of one"),
    pytest.param((2, 1), id="two workers, one with twice the images"),
])
def test_sync_is_batch_norm_of_the_joined_batch(images, tmp_path):
    x = torch.randn(sum(images), 2, 3, 4) * torch.tensor([2.0, 0.1])[:, None, None] + 5
    pull = torch.randn_like(x)
    for rank, (share, by) in enumerate(zip(x.split(images), pull.split(images), strict=True)):
        torch.save({"x": share.clone(), "pull": by.clone()}, tmp_path / f"in{rank}.pt")
    run_workers(len(images), tmp_path)
    found = [torch.load(tmp_path / f"out{rank}.pt", weights_only=True) for rank in range(len(images))]
    expected = over_all(x, pull)
    for name in ("y", "x"):
        joined = torch.cat([one[name] for one in found]).double()
        assert torch.allclose(joined, expected[name], atol=2e-5), name
    for name in ("weight", "bias"):
        assert torch.allclose(sum(one[name] for one in found).double(), expected[name], atol=1e-4), name
    for one in found:
        assert torch.allclose(one["mean"].double(), expected["mean"], atol=1e-6) and one["steps"] == 1
        assert torch.allclose(one["var"].double(), expected["var"], atol=1e-6)
    channels = (slice(None), None, None)
    by_running = (x[: images[0]] - expected["mean"][channels]) / (expected["var"][channels] + 1e-5).sqrt()
    by_running = by_running * torch.tensor([1.5, 0.5])[channels] + torch.tensor([0.25, -2.0])[channels]
    assert torch.allclose(found[0]["alone"].double(), by_running, atol=1e-4)


def run_workers(count: int, folder: Path) -> None:
    if count == 1:
        train_in_a_group(0, 1, str(folder))
        return
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=train_in_a_group, args=(rank, count, str(folder))) for rank in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=300)
    codes = [worker.exitcode for worker in workers]
    for worker in workers:
        worker.kill()
    assert codes == [0] * count


def test_sync_without_a_group_is_batch_norm():
    x = torch.randn(3, 2, 4, 5)
    sync, batch = lively_sync(), make_norm("batch", 2)
    batch.load_state_dict(sync.state_dict())
    assert torch.equal(sync(x), batch(x)) and torch.equal(sync.running_var, batch.running_var)
    assert torch.equal(sync.eval()(x), batch.eval()(x))


def test_sync_keeps_half_precision_without_losing_the_statistics(tmp_path):
    """bfloat16 holds 8 bits: the mean of 1000 + small numbers is only right when summed in float32."""
    store = f"file://{tmp_path}/store"
    dist.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        norm = make_norm("sync", 1).train()
        x = torch.tensor([1000.0, 1008, 1016, 1024]).reshape(1, 1, 2, 2).bfloat16()
        out = norm(x)
    finally:
        dist.destroy_process_group()
    assert out.dtype == torch.bfloat16
    assert out.flatten().tolist() == pytest.approx([-1.342, -0.447, 0.447, 1.342], rel=0.01)    # (x - 1012) / sqrt(80)
    assert norm.running_mean.item() == pytest.approx(101.2)
    assert norm.running_var.item() == pytest.approx(0.9 + 0.1 * 320 / 3)


# ------------------------------------------------------------------------------------------ by name


def test_make_norm_frozen():
    assert isinstance(make_norm("frozen", 2), FrozenBatchNorm2d)


def test_an_unknown_norm_is_refused():
    with pytest.raises(KeyError):
        make_norm("group", 8)
