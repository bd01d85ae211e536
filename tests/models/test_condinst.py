"""The network of still images: what CrossVIS is without its third tower."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from models import NETWORKS
from models.condinst import CondInst, CondInstConfig
from models.crossvis import CrossVISConfig
from models.fcos import FCOSConfig
from models.resnet import ResNetConfig
from models.targets import StillBatch
from tests.models import oracles
from tests.models import pair_oracle as oracle
from tests.models.small import SMALL, frame, images, pairs, shake, small_network

SMALL_STILLS = CondInstConfig(**{f.name: getattr(SMALL, f.name) for f in fields(CondInstConfig)})
NAMES = ("class", "box", "centerness", "mask")


def stills(**changes) -> CondInst:
    network = CondInst(replace(SMALL_STILLS, **changes))
    shake(network, 0)
    return network


def truth() -> list:
    return [frame([(3, 3, 40, 33), (20, 18, 62, 61)], seed=6), frame([]), frame([(8, 9, 30, 44)], seed=7)]


@pytest.mark.parametrize("blocks, total", [((3, 4, 6, 3), 34_111_179), ((3, 4, 23, 3), 53_051_083)], ids=["50", "101"])
def test_size_is_the_specified_one(blocks, total):
    with torch.device("meta"):
        network = CondInst(CondInstConfig(backbone=ResNetConfig(blocks=blocks)))
    assert sum(p.numel() for p in network.parameters()) == total


def test_what_coco_weights_leave_fresh_in_crossvis():
    """Specification 6.3 rule 3: 16 of the identity tower, 2 of its 1x1, 5 of its norm, 2 proxies; and the class logits,
    which are there but of another number of classes."""
    with torch.device("meta"):
        (stills, _), (crossvis, _) = NETWORKS["condinst"], NETWORKS["crossvis"]
        coco, video = stills(CondInstConfig()).state_dict(), crossvis(CrossVISConfig(), 3774).state_dict()
    fresh = {name for name in video if name not in coco or coco[name].shape != video[name].shape}
    assert not coco.keys() - video.keys() and len(fresh) == 27
    assert {name for name in fresh if name in coco} == {"fcos.class_logits.weight", "fcos.class_logits.bias"}


def test_there_are_no_embeddings():
    dense = stills().eval().heads(stills().eval().features(images(2)))
    assert dense.embeddings.shape == (2, 86, 0) and dense.filters.shape == (2, 86, 169)


def test_losses_of_stills_are_the_loops():
    network, batch = stills(), StillBatch(images(3), truth())
    with torch.no_grad():
        dense = network.heads(network.features(batch.images))
    slot = oracle.Slot(dense, batch.targets, SMALL.fcos.size_bounds, (64, 64))
    expected, losses = oracle.frame_losses(slot), network(batch)
    assert len(slot.found) > 5 and losses.keys() == set(NAMES)
    for name in NAMES:
        assert losses[name].item() == pytest.approx(expected[name], rel=1e-4), name


def test_a_pair_counts_as_two_passes_of_stills():
    network = stills().eval()               # fixed norms: passes cannot tell each other apart
    batch = pairs((truth(), truth()[::-1]), ([[-1] * 2, [], [-1]], [[-1], [], [-1] * 2]))
    both = [network(StillBatch(*slot)) for slot in batch.slots]
    for name, value in network(batch).items():
        assert value.item() == pytest.approx((both[0][name].item() + both[1][name].item()) / 2, rel=1e-5)


# ------------------------------------------------------------------------------------------ the papers' forms


def test_coordinates_last_are_the_last_two_inputs():
    """The same filters, their first layer's inputs written in the paper's order, give the same masks."""
    first, last = stills().eval(), stills(coordinates="last").eval()
    dense = first.heads(first.features(images(1)))
    layer = dense.filters[..., :80].unflatten(2, (8, 10))
    moved = torch.cat([layer[..., 2:], layer[..., :2]], dim=3).flatten(2)
    chosen = torch.tensor([0, 64 + 5, 84])
    masks = first.mask_logits(dense, 0, chosen)
    again = last.mask_logits(replace(dense, filters=torch.cat([moved, dense.filters[..., 80:]], dim=2)), 0, chosen)
    assert torch.allclose(masks, again, atol=1e-6) and not torch.allclose(masks, last.mask_logits(dense, 0, chosen))


def test_dice_without_epsilon():
    batch = StillBatch(images(3), truth())
    with_it, without = stills(dice_epsilon=0.5)(batch)["mask"].item(), stills(dice_epsilon=0.0)(batch)["mask"].item()
    assert with_it > without + 1e-4


def test_centres_of_boxes_choose_other_locations():
    """An L-shaped mask: its centroid lies elsewhere than its box's centre, and so do the positives."""
    target = frame([(4, 4, 60, 60)])
    target.masks[0] = False
    target.masks[0, 4:60, 4:12], target.masks[0, 52:60, 4:60] = True, True
    bounds = (64, 128, 256, 512)
    found = {}
    for center in ("mask", "box"):
        network = stills(fcos=FCOSConfig(tower_convs=1, groups=2, size_bounds=bounds, center_sampling=center))
        slot = network.assigned(network.heads(network.features(images(1))), [target])
        found[center] = [slot.dense.at.points[i].tolist() for i in slot.found.location]
    x, y = oracles.centroid(target.masks[0].numpy())
    assert x < 24 and y > 40
    around = {name: [(px, py) for px in range(4, 64, 8) for py in range(4, 64, 8)
                     if abs(px - cx) < 12 and abs(py - cy) < 12 and 4 < px < 60 and 4 < py < 60]
              for name, (cx, cy) in {"mask": (x, y), "box": (32, 32)}.items()}
    for name in around:
        assert sorted(map(tuple, found[name])) == sorted(around[name]), name


# ------------------------------------------------------------------------------------------ crossover's options


def determined():
    boxes = [(5, 5, 19, 19), (24, 24, 56, 56)]
    frames = [frame(boxes, seed=1), frame([])], [frame(boxes[::-1], [1, 0], seed=2), frame([])]
    return pairs(frames, ([[1, 0], []], [[1, 0], []]))


def test_both_directions_summed():
    batch = determined()
    mean = small_network()(batch)["crossover"].item()
    assert small_network(crossover_reduction="sum")(batch)["crossover"].item() == pytest.approx(2 * mean, rel=1e-5)


def test_without_crossover():
    losses = small_network(crossover=False)(determined())
    assert losses.keys() == {*NAMES, "identity"}
    assert losses["mask"].item() == pytest.approx(small_network()(determined())["mask"].item(), rel=1e-6)


def test_the_most_central_place():
    """Two places on offer, drawn from at random or, by setting, always the one in the middle."""
    frames = [frame([(5, 5, 19, 19)], seed=1), frame([])], [frame([(13, 13, 33, 27)], seed=2), frame([])]
    batch = pairs(frames, ([[0], []], [[-1], []]))
    network = small_network(crossover_place="center")
    slots = oracle.run(network, batch)
    offered = {slots[1].places[p][2:]: oracles.centerness(sides) for (_, p), (_, sides) in slots[1].found.items()}
    assert len(offered) > 1 and len(set(offered.values())) > 1
    (losses,) = oracle.crossover_choices(*slots, batch.counterparts[0])
    best = max(range(len(offered)), key=list(offered.values()).__getitem__)
    got = {round(network(batch)["crossover"].item(), 7) for _ in range(8)}
    assert len(got) == 1 and got.pop() == pytest.approx(losses[best] / 2, rel=1e-4)
