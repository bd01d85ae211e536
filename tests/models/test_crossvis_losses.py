"""Training: every loss of a batch of pairs against loops, the crossover's partners, normalisers, gate and gradients."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.condinst import CondInstConfig
from models.crossvis import CrossVIS, CrossVISConfig
from models.targets import PairBatch
from pipelines.networks import read_network
from tests.models import oracles
from tests.models import pair_oracle as oracle
from tests.models.small import (
    NONE,
    NUM_IDENTITIES,
    ONE_ON_P3,
    ONE_ON_P4,
    SMALL,
    frame,
    images,
    moved,
    pairs,
    small_network,
)

FRAME_LOSSES = ("class", "box", "centerness", "mask")
TWO_WIDE, TWO_HIGH = (13, 13, 35, 27), (13, 13, 27, 35)
"""Two P3 points each, and no other: (20, 20) and (28, 20), or (20, 28)."""


def determined() -> PairBatch:
    """Three pairs in which every instance has one positive or none, so that the crossover has nothing to draw.

    Pair 0 has its instances in another order and at other levels in the reference; pair 1 is empty in its key frame; in
    pair 2, one instance has no positive in the key frame.
    """
    key = [
        frame([ONE_ON_P3, moved(ONE_ON_P4, 16, 16)], [3, 7], seed=1),
        frame([]),
        frame([moved(ONE_ON_P3, 16, 24), NONE], [1, 2], seed=2),
    ]
    reference = [
        frame([moved(ONE_ON_P3, 40, 40), moved(ONE_ON_P3, 0, 40), moved(ONE_ON_P4, 16, 0)], [9, 7, 3], seed=3),
        frame([ONE_ON_P3], [11], seed=4),
        frame([moved(ONE_ON_P3, 8, 0), moved(ONE_ON_P4, 0, 16)], [2, 1], seed=5),
    ]
    return pairs((key, reference), ([[2, 1], [], [1, 0]], [[-1, 1, 0], [-1], [1, 0]]))


def crowded() -> PairBatch:
    """Two pairs with many positives on several levels, some of them wanted by two instances."""
    key = [
        frame([(3, 3, 40, 33), (20, 18, 62, 61), TWO_WIDE], [0, 5, 2], seed=6),
        frame([(0, 0, 64, 64), (8, 9, 30, 44)], [8, 9], seed=7),
    ]
    reference = [
        frame([(10, 2, 50, 34), moved(TWO_HIGH, 0, 8)], [0, 2], seed=8),
        frame([(2, 2, 60, 63), (30, 20, 52, 55)], [8, 9], seed=9),
    ]
    return pairs((key, reference), ([[0, -1, 1], [0, 1]], [[0, 2], [0, 1]]))


def no_positive(boxes: list[tuple[float, ...]]) -> PairBatch:
    """Two pairs of frames that all hold `boxes`."""
    frames = [frame(boxes) for _ in range(2)]
    same = [list(range(len(boxes)))] * 2
    return pairs((frames, frames), (same, same))


def total(losses: dict[str, torch.Tensor]) -> torch.Tensor:
    return sum(losses.values())


# ------------------------------------------------------------------------------------------ every loss by loops


def test_all_losses_are_the_loops():
    network, batch = small_network(), determined()
    slots = oracle.run(network, batch)
    having = [sorted((b, g) for (b, _), (g, _) in slot.found.items()) for slot in slots]
    assert having == [[(0, 0), (0, 1), (2, 0)], [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]]
    losses = network(batch)
    assert losses.keys() == {*FRAME_LOSSES, "crossover", "identity"}
    parts = [oracle.frame_losses(slot) for slot in slots]
    for name in FRAME_LOSSES:
        assert losses[name].item() == pytest.approx((parts[0][name] + parts[1][name]) / 2, rel=1e-4), name
    assert losses["crossover"].item() == pytest.approx(oracle.crossover(slots, batch), rel=1e-4)
    assert losses["identity"].item() == pytest.approx(oracle.identity(network, slots), rel=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_losses_of_crowded_frames_are_the_loops(seed):
    network, batch = small_network(seed), crowded()
    slots = oracle.run(network, batch)
    levels = {slot.places[p][0] for slot in slots for _, p in slot.found}
    assert len(levels) >= 3 and min(len(slot.found) for slot in slots) > 10
    losses = network(batch)
    parts = [oracle.frame_losses(slot) for slot in slots]
    for name in FRAME_LOSSES:
        assert losses[name].item() == pytest.approx((parts[0][name] + parts[1][name]) / 2, rel=1e-4), name
    assert losses["identity"].item() == pytest.approx(oracle.identity(network, slots), rel=1e-4)


def test_fresh_identity_loss():
    """One positive of probability 0.01 costs 1.128; eleven more identities at 0.01 hardly anything."""
    loss = CrossVIS(SMALL, NUM_IDENTITIES)(determined())["identity"]
    assert loss.item() == pytest.approx(1.13, abs=0.05)


def test_without_identities_there_is_no_identity_loss_to_train_with():
    with pytest.raises(ValueError, match="num_identities"):
        small_network(num_identities=None)(determined())


# ------------------------------------------------------------------------------------------ crossover


def test_the_same_frame_twice_crosses_over_to_the_static_mask_loss():
    """Acceptance 6."""
    boxes = [ONE_ON_P3, moved(ONE_ON_P4, 16, 16)]
    frames = [frame(boxes, seed=1), frame(boxes[:1], seed=2)]
    batch = replace(pairs((frames, frames), ([[0, 1], [0]],) * 2), images=(images(2), images(2)))
    losses = small_network()(batch)
    assert losses["crossover"].item() == pytest.approx(losses["mask"].item(), rel=1e-5)


@pytest.mark.parametrize("key, reference, told_apart", [
    pytest.param([[2, 1], [], [1, 0]], [[-1, 1, 0], [-1], [1, 0]], False, id="as it is"),
    pytest.param([[1, 2], [], [1, 0]], [[-1, 0, 1], [-1], [1, 0]], True, id="pair 0 paired wrongly"),
    pytest.param([[2, 1], [], [0, 1]], [[-1, 1, 0], [-1], [0, 1]], True, id="pair 2 paired wrongly"),
])
def test_another_pairing_would_show(key, reference, told_apart):
    """That the batch above tells pairings apart, in every pair: the offsets of several pairs are what goes wrong."""
    network, batch = small_network(), determined()
    other = replace(batch, counterparts=tuple([torch.tensor(c).long() for c in slot] for slot in (key, reference)))
    difference = abs(network(batch)["crossover"].item() - oracle.crossover(oracle.run(network, batch), other))
    assert (difference > 1e-3) == told_apart and (difference < 1e-5) != told_apart


def test_partners_are_drawn_anew_for_every_positive_and_evenly():
    """Two positives, each with two to draw from: four outcomes, mixed ones too, about equally often."""
    frames = [frame([TWO_WIDE], seed=1), frame([])], [frame([TWO_HIGH], seed=2), frame([])]
    batch = pairs(frames, ([[0], []], [[-1], []]))                     # key frame into reference alone
    network = small_network()
    slots = oracle.run(network, batch)
    (a, b), (c, d) = oracle.crossover_choices(*slots, batch.counterparts[0])
    outcomes = torch.tensor([(x + y) / 4 for x in (a, b) for y in (c, d)])      # mean of two, half of both directions
    assert outcomes.sort().values.diff().min() > 1e-4
    with torch.no_grad():
        drawn = torch.tensor([network(batch)["crossover"].item() for _ in range(64)])
    distance, which = (drawn[:, None] - outcomes).abs().min(1)
    assert distance.max() < 1e-5
    assert torch.bincount(which, minlength=4).min() >= 6                # 16 expected


def test_without_any_counterpart_the_crossover_is_zero():
    batch = determined()
    alone = tuple([torch.full_like(c, -1) for c in slot] for slot in batch.counterparts)
    losses = small_network()(replace(batch, counterparts=alone))
    assert losses["crossover"].item() == 0
    total(losses).backward()


def test_filters_cross_over_and_partners_give_nothing_but_a_place():
    """From key frames into references alone: gradient to the filters of slot 0 and the mask features of slot 1."""
    network, batch = small_network(), determined()
    key, reference = batch.counterparts
    batch = replace(batch, counterparts=(key, [torch.full_like(c, -1) for c in reference]))
    seen = {"controller": [], "mask_branch": []}
    for name, outputs in seen.items():
        network.get_submodule(name).register_forward_hook(lambda m, i, out, outputs=outputs: outputs.append(out))
    loss = network(batch)["crossover"]
    filters = torch.autograd.grad(loss, seen["controller"], retain_graph=True, allow_unused=True)
    features = torch.autograd.grad(loss, seen["mask_branch"], allow_unused=True)

    def reached(gradients: tuple[torch.Tensor | None, ...]) -> bool:
        return any(g is not None and bool(g.any()) for g in gradients)

    assert (len(filters), len(features)) == (10, 2)
    assert [reached(filters[:5]), reached(filters[5:])] == [True, False]
    assert [reached(features[:1]), reached(features[1:])] == [False, True]


# ------------------------------------------------------------------------------------------ normalisers, the cap


@pytest.mark.parametrize("factor", [
    pytest.param(2.0, id="other workers have more"),
    pytest.param(0.01, id="others have next to none: at least one positive, centre-ness as it is"),
])
def test_positives_are_counted_over_all_workers(factor):
    network, batch = small_network(), crowded()
    slots = oracle.run(network, batch)
    asked = []

    def average(value: torch.Tensor) -> torch.Tensor:
        asked.append(value.item())
        return value * factor

    torch.manual_seed(1)
    losses = network(batch, average)
    torch.manual_seed(1)
    own = network(batch)
    parts = [oracle.frame_losses(slot, lambda x: x * factor) for slot in slots]
    for name in FRAME_LOSSES:
        assert losses[name].item() == pytest.approx((parts[0][name] + parts[1][name]) / 2, rel=1e-4), name
    for name in ("mask", "crossover", "identity"):
        assert losses[name].item() == pytest.approx(own[name].item(), rel=1e-5), name
    counts = [len(slot.found) for slot in slots]
    centerness = [sum(oracles.centerness(s) for _, s in slot.found.values()) for slot in slots]
    assert sorted(asked) == pytest.approx(sorted([*counts, *centerness]), rel=1e-5)


def test_the_mask_losses_look_at_500_positives():
    assert CrossVISConfig().max_mask_positives == CondInstConfig().max_mask_positives == 500


def test_the_cap_is_a_random_choice_for_the_mask_losses_alone():
    """Two of four positives: six possible means, all of which come; the other losses see all four."""
    key = [frame([TWO_WIDE, moved(TWO_WIDE, 0, 24)], [0, 1], seed=1), frame([])]
    reference = [frame([ONE_ON_P3], [0], seed=2), frame([])]
    batch = pairs((key, reference), ([[0, -1], []], [[0], []]))
    network = small_network()
    slots = oracle.run(network, batch)
    dices, (single,) = oracle.mask_dices(slots[0]), oracle.mask_dices(slots[1])
    means = torch.tensor([((dices[i] + dices[j]) / 2 + single) / 2 for i in range(4) for j in range(i)])
    assert len(dices) == 4 and means.sort().values.diff().min() > 1e-4
    capped = small_network(max_mask_positives=2)
    with torch.no_grad():
        runs = [capped(batch) for _ in range(40)]
    distance, which = (torch.stack([run["mask"] for run in runs])[:, None] - means).abs().min(1)
    assert distance.max() < 1e-5 and len(which.unique()) == 6
    assert runs[0]["identity"].item() == pytest.approx(oracle.identity(network, slots), rel=1e-4)
    assert runs[0]["class"].item() == pytest.approx(
        sum(oracle.frame_losses(slot)["class"] for slot in slots) / 2, rel=1e-4
    )


# ------------------------------------------------------------------------------------------ order of passes


def test_slots_are_separate_passes_and_levels_separate_batches():
    """The identity norm sees frame 0's P3..P7, then frame 1's: ten updates a step; the mask branch's norms two."""
    network, batch = small_network(), determined()
    mean, seen = network.embedding.norm.running_mean.clone(), []
    network.embedding.norm.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].detach()))
    network(batch)
    assert [tuple(x.shape) for x in seen] == 2 * [(3, 6, n, n) for n in (8, 4, 2, 1, 1)]
    for x in seen:
        mean = 0.9 * mean + 0.1 * x.mean((0, 2, 3))
    assert torch.allclose(network.embedding.norm.running_mean, mean, atol=1e-5)
    assert network.embedding.norm.num_batches_tracked == 10
    tracked = {int(v) for name, v in network.mask_branch.named_buffers() if name.endswith("num_batches_tracked")}
    assert tracked == {2}


def test_what_the_other_slot_shows_does_not_change_the_first():
    batch, seen = determined(), []
    for reference in (batch.images[1], 100 * batch.images[1]):
        network = small_network()
        network.embedding.norm.register_forward_hook(lambda m, inputs, out: seen.append(inputs[0].detach()))
        network(replace(batch, images=(batch.images[0], reference)))
    assert all(torch.equal(first, second) for first, second in zip(seen[:5], seen[10:15], strict=True))
    assert not torch.equal(seen[5], seen[15])


# ------------------------------------------------------------------------------------------ gradients


def gradients(network: CrossVIS, batch: PairBatch) -> dict[str, torch.Tensor]:
    total(network(batch)).backward()
    return {name: p.grad for name, p in network.named_parameters()}


def test_the_gate_lets_a_tenth_of_the_gradient_into_the_trunk():
    """Acceptance 7: the forward pass is the same to rounding, heads learn in full, backbone and pyramid at a tenth."""
    gated, open_ = small_network(gradient_gate=0.1), small_network(gradient_gate=1.0)
    batch = determined()
    values = [{name: v.item() for name, v in network(batch).items()} for network in (gated, open_)]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    first, second = gradients(gated, batch), gradients(open_, batch)
    for prefix, share in (("backbone.", 0.1), ("fpn.", 0.1), ("fpn.p6", 0.1), ("fpn.p7", 0.1), ("fcos.", 1.0),
                          ("controller.", 1.0), ("mask_branch.", 1.0), ("embedding.", 1.0), ("proxies.", 1.0)):
        ours, theirs = (torch.cat([g.flatten() for name, g in all_of.items() if name.startswith(prefix)])
                        for all_of in (first, second))
        assert (ours.norm() / theirs.norm()).item() == pytest.approx(share, rel=1e-3), prefix
        assert torch.allclose(ours, share * theirs, atol=1e-3 * share * theirs.abs().max().item()), prefix


@pytest.mark.parametrize("boxes", [
    pytest.param([], id="no instance"),
    pytest.param([NONE], id="an instance without a location"),
])
def test_no_positives_is_a_finite_loss_with_a_gradient_to_all(boxes):
    network = small_network()
    losses = network(no_positive(boxes))
    assert {name for name, value in losses.items() if value.item() != 0} == {"class"}
    assert all(value.isfinite() for value in losses.values())
    total(losses).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert network.backbone.stem.conv.weight.grad.any()


def test_frozen_parts_of_the_backbone_stay_without_gradient():
    network = small_network(backbone=replace(SMALL.backbone, norm="frozen", frozen_stages=2))
    found = gradients(network, determined())
    assert {name.split(".")[1] for name, g in found.items() if g is None} == {"stem", "res2"}


def test_every_parameter_of_the_tiny_network_learns():
    """`embedding.project.bias` alone gets (nearly) zero: the norm behind it takes every constant away again."""
    network = CrossVIS(read_network("configs/networks/tiny.yaml").config, num_identities=30)
    assert sum(p.numel() for p in network.parameters()) < 3_000_000
    boxes = [(10, 10, 40, 38), (60, 20, 118, 70), (2, 2, 126, 120)]
    frames = [frame(boxes, [0, 1, 2], size=128, seed=1), frame(boxes[:2], [3, 4], size=128, seed=2)]
    found = gradients(network, pairs((frames, frames), ([[0, 1, 2], [0, 1]],) * 2))
    assert [name for name, g in found.items() if g is None or not g.isfinite().all()] == []
    assert {name for name, g in found.items() if not g.any()} <= {"embedding.project.bias"}
    assert (found["fcos.scales"][:3] != 0).all()
