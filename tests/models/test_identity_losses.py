"""The four embedding losses of table 7, by loops over float64 numbers from specification 3.5 and 5.1."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.embedding import IdentityConfig, IdentityProxies
from models.targets import PairBatch
from tests.models import oracles
from tests.models import pair_oracle as oracle
from tests.models.small import NONE, ONE_ON_P3, ONE_ON_P4, frame, moved, pairs, small_network

TWO_WIDE = (13, 13, 35, 27)
"""Two P3 points: (20, 20) and (28, 20)."""
GLOBAL_CE, GLOBAL_FOCAL = IdentityConfig(loss="ce"), IdentityConfig()
PAIR_CE, PAIR_FOCAL = IdentityConfig(targets="pairwise", loss="ce"), IdentityConfig(targets="pairwise")


def determined() -> PairBatch:
    """No instance has more than one positive, so nothing is drawn. Pair 0: three in the reference, one of them new and
    in another order. Pair 1: all new. Pair 2: one instance has no positive in the reference. Pair 3: nobody there."""
    key = [
        frame([ONE_ON_P3, moved(ONE_ON_P4, 16, 16)], [3, 7], seed=1),
        frame([ONE_ON_P3], [4], seed=2),
        frame([moved(ONE_ON_P3, 16, 24), moved(ONE_ON_P3, 40, 40)], [1, 2], seed=3),
        frame([moved(ONE_ON_P3, 8, 8)], [5], seed=4),
    ]
    reference = [
        frame([moved(ONE_ON_P3, 40, 40), moved(ONE_ON_P3, 0, 40), moved(ONE_ON_P4, 16, 0)], [9, 7, 3], seed=5),
        frame([moved(ONE_ON_P3, 24, 8)], [11], seed=6),
        frame([NONE, moved(ONE_ON_P3, 8, 0)], [2, 1], seed=7),
        frame([]),
    ]
    return pairs((key, reference), ([[2, 1], [-1], [1, 0], [-1]], [[-1, 1, 0], [-1], [1, 0], []]))


def pairwise(slots: tuple[oracle.Slot, oracle.Slot], batch: PairBatch, loss: str) -> float:
    """5.1: positives of one frame against the single positives of the other's instances; mean of both directions."""
    total = 0.0
    for s in (0, 1):
        key, reference, values = slots[s], slots[1 - s], []
        for (b, p), (g, _) in key.found.items():
            partner = int(batch.counterparts[s][b][g])
            others = {n: place for place, (n, _) in reference.found.items() if place[0] == b}
            if partner >= 0 and partner not in others:
                continue
            own = key.at("embeddings", (b, p))
            products = {n: float(own @ reference.at("embeddings", place)) for n, place in others.items()}
            if loss == "ce":
                whole = 1 + sum(math.exp(z) for z in products.values())
                values.append(-math.log((math.exp(products[partner]) if partner >= 0 else 1) / whole))
            else:
                truth = np.array([float(n == partner) for n in products])
                values.append(oracles.focal(np.array(list(products.values())), truth))
        total += sum(values) / max(len(values), 1) / 2
    return total


@pytest.mark.parametrize("kind", [PAIR_CE, PAIR_FOCAL], ids=["ce", "focal"])
@pytest.mark.parametrize("seed", range(2))
def test_pairwise_losses_are_the_loops(kind, seed):
    network, batch = small_network(seed, identity=kind), determined()
    slots = oracle.run(network, batch)
    assert [len(slot.found) for slot in slots] == [6, 5]
    assert network(batch)["identity"].item() == pytest.approx(pairwise(slots, batch, kind.loss), rel=1e-4)


@pytest.mark.parametrize("kind", [PAIR_CE, PAIR_FOCAL], ids=["ce", "focal"])
def test_another_pairing_would_show(kind):
    network, batch = small_network(identity=kind), determined()
    wrong = ([[1, 2], [0], [1, 0], [-1]], [[-1, 0, 1], [0], [1, 0], []])
    other = replace(batch, counterparts=tuple([torch.tensor(c).long() for c in slot] for slot in wrong))
    loops = pairwise(oracle.run(network, other), other, kind.loss)
    assert network(other)["identity"].item() == pytest.approx(loops, rel=1e-4)
    assert abs(network(batch)["identity"].item() - loops) > 1e-3


def test_the_other_frames_embedding_is_drawn_evenly():
    """One positive in the key frame, two of its instance in the reference: either product, about equally often."""
    frames = [frame([ONE_ON_P3], seed=1), frame([])], [frame([TWO_WIDE], seed=2), frame([])]
    batch = pairs(frames, ([[0], []], [[0], []]))
    network = small_network(identity=PAIR_CE)
    key, reference = slots = oracle.run(network, batch)
    (own,), both = key.found, list(reference.found)
    products = [float(key.at("embeddings", own) @ reference.at("embeddings", place)) for place in both]
    losses = [-math.log(math.exp(z) / (1 + math.exp(z))) for z in products]
    backward = sum(losses) / 2                          # both positives of the reference see the one of the key
    outcomes = torch.tensor([(loss + backward) / 2 for loss in losses])
    assert len(slots[1].found) == 2 and abs(outcomes[0] - outcomes[1]) > 1e-4
    with torch.no_grad():
        drawn = torch.tensor([network(batch)["identity"].item() for _ in range(48)])
    distance, which = (drawn[:, None] - outcomes).abs().min(1)
    assert distance.max() < 1e-5 and 10 <= which.sum() <= 38


def test_global_cross_entropy_is_the_loops():
    network, batch = small_network(identity=GLOBAL_CE), determined()
    slots, proxies = oracle.run(network, batch), network.proxies.proxies
    weight, bias = proxies.weight.detach().double().numpy(), proxies.bias.detach().double().numpy()
    values = []
    for slot in slots:
        for (b, p), (g, _) in slot.found.items():
            z = oracles.identity_logits(slot.at("embeddings", (b, p)), weight, bias)
            values.append(math.log(np.exp(z).sum()) - z[int(slot.targets[b].identities[g])])
    assert network(batch)["identity"].item() == pytest.approx(sum(values) / 11, rel=1e-4)


def test_a_fresh_global_cross_entropy():
    """Acceptance 9.3: 3,774 fresh proxies say the same of everyone, ln 3774 = 8.24."""
    torch.manual_seed(0)
    proxies = IdentityProxies(256, 3774)
    loss = torch.nn.functional.cross_entropy(proxies(torch.randn(20, 256)), torch.arange(20))
    assert proxies.scale == pytest.approx(11.64693, abs=1e-5) and loss.item() == pytest.approx(8.24, abs=0.1)


def test_plain_logits_are_the_products():
    """The paper's equation 13."""
    proxies = IdentityProxies(6, 12, "plain")
    embeddings = torch.randn(3, 6)
    assert torch.allclose(proxies(embeddings), embeddings @ proxies.proxies.weight.T, atol=1e-7)
    assert proxies.proxies.bias is None
    network, batch = small_network(identity=IdentityConfig(logits="plain")), determined()
    weight = network.proxies.proxies.weight.detach().double().numpy()
    total = 0.0
    for slot in oracle.run(network, batch):
        for (b, p), (g, _) in slot.found.items():
            truth = np.eye(12)[int(slot.targets[b].identities[g])]
            total += oracles.focal(weight @ slot.at("embeddings", (b, p)), truth)
    assert network(batch)["identity"].item() == pytest.approx(total / 11, rel=1e-4)


@pytest.mark.parametrize("kind", [GLOBAL_FOCAL, GLOBAL_CE, PAIR_FOCAL, PAIR_CE], ids=lambda k: f"{k.targets} {k.loss}")
@pytest.mark.parametrize("boxes", [
    pytest.param([], id="no instance"), pytest.param([NONE], id="no positive"),
])
def test_nothing_to_learn_from_is_zero_and_trains(kind, boxes):
    frames = [frame(boxes), frame(boxes)]
    same = [list(range(len(boxes)))] * 2
    losses = small_network(identity=kind)(pairs((frames, frames), (same, same)))
    assert losses["identity"].item() == 0
    sum(losses.values()).backward()


@pytest.mark.parametrize("kind", [GLOBAL_FOCAL, GLOBAL_CE, PAIR_FOCAL, PAIR_CE], ids=lambda k: f"{k.targets} {k.loss}")
def test_gradients_are_the_slopes(kind):
    """The gradient of each loss by the embeddings' bias, against finite differences."""
    network, batch = small_network(identity=kind).double(), determined()
    batch = replace(batch, images=tuple(image.double() for image in batch.images))
    bias = network.embedding.norm.bias
    (gradient,) = torch.autograd.grad(network(batch)["identity"], bias)
    for i in (0, 3, 5):
        values = []
        for step in (1e-3, -1e-3):
            with torch.no_grad():
                bias[i] += step
                values.append(network(batch)["identity"].item())
                bias[i] -= step
        assert gradient[i].item() == pytest.approx((values[0] - values[1]) / 2e-3, rel=1e-2, abs=1e-5)


def test_pairwise_networks_have_no_proxies():
    assert small_network(identity=PAIR_CE).proxies is None
    assert not [name for name in small_network(identity=PAIR_CE).state_dict() if name.startswith("proxies")]
