"""The embedding head's norm, level by level, and the identity proxies: scale, start, and their plain product."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from models.embedding import EmbeddingHead, IdentityProxies
from models.fcos import FCOSConfig
from models.losses import sigmoid_focal_loss
from tests.models import oracles
from tests.models.oracles import conv, group_norm
from tests.models.small import shake

SMALL = FCOSConfig(tower_convs=2, groups=2)


def levels(batch: int = 2) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(5)
    return tuple((k + 1) * torch.randn(batch, 4, n, n, generator=generator) for k, n in enumerate((8, 4, 3, 2, 2)))


def head(seed: int = 1) -> EmbeddingHead:
    fresh = EmbeddingHead(4, 6, SMALL)
    shake(fresh, seed)
    return fresh


def projected(part: EmbeddingHead, x: torch.Tensor) -> torch.Tensor:
    """Tower and 1x1, before the norm, in float64."""
    for i in (0, 3):
        layer, norm = part.tower[i], part.tower[i + 1]
        x = group_norm(conv(x, layer.weight, layer.bias), 2, norm.weight, norm.bias).clamp(min=0)
    return conv(x, part.project.weight, part.project.bias)


def test_counts():
    with torch.device("meta"):
        part, proxies = EmbeddingHead(256, 256, FCOSConfig()), IdentityProxies(256, 3774)
    counts = [sum(p.numel() for p in m.parameters()) for m in (part.tower, part.project, part.norm, proxies)]
    assert counts == [2_362_368, 65_792, 512, 969_918]


def test_start():
    part = EmbeddingHead(64, 64, FCOSConfig())
    assert part.project.weight.std().item() == pytest.approx(0.01, rel=0.1) and not part.project.bias.any()
    assert part.project.kernel_size == (1, 1)
    assert (part.norm.eps, part.norm.momentum) == (1e-5, 0.1)


def test_in_training_every_level_has_its_own_statistics():
    part = head().train()
    for found, x in zip(part(levels()), levels(), strict=True):
        y = projected(part, x)
        mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3), unbiased=False)
        expected = oracles.batch_norm(y, part.norm.weight, part.norm.bias, mean, var)
        assert torch.allclose(found.double(), expected, atol=1e-4)


def test_running_averages_take_one_update_a_level_finest_first():
    part = head().train()
    mean, var = part.norm.running_mean.double(), part.norm.running_var.double()
    for x in levels():
        y = projected(part, x)
        mean, var = 0.9 * mean + 0.1 * y.mean((0, 2, 3)), 0.9 * var + 0.1 * y.var((0, 2, 3), unbiased=True)
    part(levels())
    assert part.norm.num_batches_tracked == 5
    assert torch.allclose(part.norm.running_mean.double(), mean, atol=1e-5)
    assert torch.allclose(part.norm.running_var.double(), var, atol=1e-5)


def test_at_inference_the_running_averages_count_on_every_level():
    part = head().eval()
    norm = part.norm
    for found, x in zip(part(levels()), levels(), strict=True):
        expected = oracles.batch_norm(projected(part, x), norm.weight, norm.bias, norm.running_mean, norm.running_var)
        assert found.shape == expected.shape and torch.allclose(found.double(), expected, atol=1e-4)
    assert part.norm.num_batches_tracked == 0


# ------------------------------------------------------------------------------------------ proxies


@pytest.mark.parametrize("identities, kappa", [
    pytest.param(3774, 11.64693, id="YouTube-VIS 2019"),
    pytest.param(6283, 12.3679, id="YouTube-VIS 2021"),
    pytest.param(3, math.sqrt(2) * math.log(2), id="the fewest"),
])
def test_kappa(identities, kappa):
    assert IdentityProxies(2, identities).scale == pytest.approx(kappa, abs=5e-5)


def test_start_of_the_proxies():
    part = IdentityProxies(64, 100).proxies
    assert part.weight.shape == (100, 64) and part.weight.std().item() == pytest.approx(0.01, rel=0.1)
    assert part.bias.tolist() == pytest.approx([-4.59512] * 100, abs=1e-5)


def test_logits_are_the_scaled_unit_embedding_times_proxies_plus_bias():
    part = IdentityProxies(5, 7)
    shake(part, seed=2)
    e = torch.randn(4, 5)
    weight, bias = part.proxies.weight.detach().double().numpy(), part.proxies.bias.detach().double().numpy()
    for row, found in zip(e.double().numpy(), part(e).detach().numpy(), strict=True):
        assert np.allclose(found, oracles.identity_logits(row, weight, bias), atol=1e-4)


def test_length_of_an_embedding_does_not_count_its_direction_does():
    part = IdentityProxies(5, 7)
    shake(part, seed=2)
    e = torch.randn(4, 5)
    assert torch.allclose(part(e), part(37 * e), atol=1e-5)
    assert not torch.allclose(part(e), part(-e), atol=1e-2)


def test_no_embedding_gives_no_logit():
    assert IdentityProxies(5, 7)(torch.zeros(0, 5)).shape == (0, 7)


def test_fresh_identity_loss():
    part = IdentityProxies(256, 3774)
    labels = torch.arange(0, 3774, 100)
    one_hot = torch.zeros(len(labels), 3774)
    one_hot[torch.arange(len(labels)), labels] = 1
    loss = sigmoid_focal_loss(part(torch.randn(len(labels), 256)), one_hot) / len(labels)
    assert loss.item() == pytest.approx(1.13, abs=0.05)


@pytest.mark.parametrize("identities", [0, 1, 2])
def test_too_few_identities_are_refused(identities):
    with pytest.raises(ValueError, match="identities"):
        IdentityProxies(8, identities)
