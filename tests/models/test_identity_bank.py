"""The identity bank: loops over pixels, runs against the convolution, weights that change, single identities erased."""

from __future__ import annotations

import copy
import math

import pytest
import torch

from models.identity_bank import IdentityBank
from tests.models import iai_oracle as oracle

N, DIM = 4, 3


def bank(num_slots: int = N, dim: int = DIM) -> IdentityBank:
    made = IdentityBank(num_slots, dim)
    torch.nn.init.normal_(made.conv.weight, generator=torch.Generator().manual_seed(1))
    return made


def blobs(*size: int, num_slots: int = N, seed: int = 0) -> torch.Tensor:
    """Labels in squares of 16 pixels, -1 and background among them, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(-1, num_slots + 1, (*size[:-2], size[-2] // 16, size[-1] // 16), generator=generator)
    labels = coarse.repeat_interleave(16, -2).repeat_interleave(16, -1)
    noise = torch.randint(-1, num_slots + 1, size, generator=generator)
    return torch.where(torch.rand(size, generator=generator) < 0.02, noise, labels)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.int32])
def test_both_forms_are_the_sum_over_pixels(dtype):
    made, labels = bank(), blobs(64, 96)
    weight, bias = oracle.array(made.conv.weight), oracle.array(made.conv.bias)
    expected = torch.tensor(oracle.bank(labels.numpy(), weight, bias))
    convolved = made(labels[None].to(dtype))
    with torch.no_grad():
        looked_up = made(labels[None].to(dtype))
    assert convolved.requires_grad and convolved.shape == looked_up.shape == (1, 6, DIM)
    for found in (convolved, looked_up):
        assert (found[0].double() - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size, tokens", [((384, 640), 12 * 20), ((480, 480), 15 * 15)])
def test_output_sizes_of_the_specification(size, tokens):
    made, labels = bank(), blobs(1, *size)
    convolved = made(labels)
    with torch.no_grad():
        looked_up = made(labels)
    assert convolved.shape == looked_up.shape == (1, tokens, DIM)
    assert (convolved - looked_up).abs().max() < 1e-5 * convolved.abs().max()


@pytest.mark.parametrize("label", [-1, 0, N])
def test_one_label_everywhere(label):
    made, labels = bank(), torch.full((2, 64, 64), label)
    with torch.no_grad():
        looked_up = made(labels)
    assert (looked_up - made(labels)).abs().max() < 1e-5 * looked_up.abs().max()
    if label == -1:
        assert torch.equal(looked_up, made.conv.bias.expand(2, 4, DIM))


def test_a_row_of_a_batch_is_what_it_is_alone():
    made, labels = bank(), blobs(3, 64, 96)
    with torch.no_grad():
        assert torch.equal(made(labels), torch.cat([made(one[None]) for one in labels]))


@pytest.mark.parametrize("change", [
    pytest.param(lambda m: m.conv.weight.mul_(2), id="written in place"),
    pytest.param(lambda m: (m.conv.weight.data.mul_(2), m.eval()), id="written past autograd, then eval"),
    pytest.param(lambda m: m.load_state_dict({k: 3 * v for k, v in m.state_dict().items()}), id="loaded"),
    pytest.param(lambda m: m.half().float(), id="rounded to half and back"),
    pytest.param(lambda m: m.double(), id="another dtype"),
])  # fmt: skip
def test_looked_up_weights_follow_the_weights(change):
    made, labels = bank(), blobs(1, 64, 64)
    with torch.no_grad():
        made(labels)
        change(made)
        looked_up = made(labels)
    convolved = made(labels)
    assert looked_up.dtype == convolved.dtype
    assert (looked_up - convolved).abs().max() < 1e-5 * convolved.abs().max()


def test_copies_and_inference_mode():
    made, labels = bank(), blobs(1, 64, 64)
    with torch.inference_mode():
        first = made(labels).clone()
        assert torch.equal(copy.deepcopy(made)(labels), first)
        inside = bank()
        assert torch.equal(inside(labels), inside(labels))
    with torch.no_grad():
        assert torch.equal(made(labels), first)
    assert made(labels).requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(dtype):
    made, labels = bank(), blobs(1, 64, 64)
    rounded = copy.deepcopy(made).to(dtype)
    exact = copy.deepcopy(rounded).float()
    with torch.no_grad():
        found, expected = rounded(labels), exact(labels)
    assert found.dtype == dtype
    assert (found.float() - expected).abs().max() <= 2 * torch.finfo(dtype).eps * expected.abs().max()


def test_gradients():
    """E is linear in the weights, so a step of any length says whether the gradient is right."""
    made, labels = bank().double(), blobs(2, 64, 64)
    towards = torch.randn(2, 4, DIM, dtype=torch.float64)
    weight, bias = torch.autograd.grad((made(labels) * towards).sum(), list(made.parameters()))
    step, lift = torch.randn_like(weight), torch.randn_like(bias)
    moved = copy.deepcopy(made)
    with torch.no_grad():
        moved.conv.weight += step
        moved.conv.bias += lift
        change = ((moved(labels) - made(labels)) * towards).sum()
    assert change.item() == pytest.approx(((weight * step).sum() + (bias * lift).sum()).item(), rel=1e-9)


@pytest.mark.parametrize("slot, other", [(0, N), (2, 1)])
def test_difference_is_that_of_painting(slot, other):
    made, labels = bank().double(), blobs(64, 96)
    painted = blobs(64, 96, seed=3) > 1
    before, after = (torch.where(painted, torch.tensor(label), labels)[None] for label in (other, slot))
    with torch.no_grad():
        found, expected = made.difference(painted, slot, other), (made(after) - made(before))[0]
    assert torch.allclose(found, expected, atol=1e-9)


def test_beginning():
    """2.7: Xavier uniform, 4.5e-3 for N = 20; a bias as PyTorch begins it."""
    weight, bias = IdentityBank(20, 256).conv.parameters()
    assert 4.4e-3 < weight.max().item() < 4.47e-3 and -4.47e-3 < weight.min().item() < -4.4e-3
    assert 0 < bias.abs().max().item() <= 1 / math.sqrt(21 * 33 * 33)


@pytest.mark.parametrize("labels, message", [
    (torch.full((1, 64, 64), N + 1), f"labels run from {N + 1} to {N + 1}, expected -1..{N}"),
    (torch.full((1, 64, 64), -2), "labels run from -2"),
    (torch.zeros(1, 64, 70, dtype=torch.int64), "multiples of 32"),
])  # fmt: skip
def test_labels_that_cannot_be(labels, message):
    with pytest.raises(ValueError, match=message):
        bank()(labels)


@pytest.mark.parametrize("num_slots", [1, 127])
def test_slots_that_cannot_be(num_slots):
    with pytest.raises(ValueError, match=r"expected 2\.\.126"):
        IdentityBank(num_slots, DIM)
