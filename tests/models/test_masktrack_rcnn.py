"""The two-stage baseline as a whole: counts, what is frozen, batches, its losses put together, and that it learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.inputs import InputConfig
from models.masktrack_rcnn import MaskTrackConfig, MaskTrackRCNN, RegionOutputs
from models.rpn import RPNConfig
from models.targets import PairBatch
from tests.models.small import frame, images, pairs
from tests.models.small_regions import SMALL_REGIONS, one_pair, small_regions

NAMES = ["rpn_class", "rpn_box", "class", "box", "mask", "match"]


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.fixture(scope="module")
def resnet_50() -> MaskTrackRCNN:
    with torch.device("meta"):
        return MaskTrackRCNN(MaskTrackConfig())


def test_counts_of_resnet_50(resnet_50):
    assert count(resnet_50) == 58_081_093
    assert count(resnet_50.track_head) == 13_895_680
    assert resnet_50.box_head.class_logits.weight.shape == (41, 1024)
    assert resnet_50.box_head.deltas.weight.shape == (4 * 41, 1024)


def test_stem_and_first_stage_are_frozen_the_other_norms_train(resnet_50):
    frozen = {name.split(".")[1] for name, p in resnet_50.named_parameters() if not p.requires_grad}
    assert frozen == {"stem", "res2"}
    assert resnet_50.backbone.res3[0].conv1.norm.weight.requires_grad


def test_defaults_are_the_released_ones():
    cfg = MaskTrackConfig()
    assert cfg.input == InputConfig(short_side=360, long_side=640, channel_order="rgb", mean=(123.675, 116.28, 103.53),
                                    std=(58.395, 57.12, 57.375), divisor=32)
    backbone, sampling = cfg.backbone, cfg.sampling
    assert (backbone.stride_in, backbone.norm, backbone.frozen_stages) == ("3x3", "frozen_statistics", 2)
    assert (sampling.count, sampling.positive_share) == (128, 0.25)
    assert (sampling.positive_iou, sampling.negative_iou, sampling.least_best_iou) == (0.5, 0.5, 0.5)


def test_maps_of_the_standard_input(resnet_50):
    with torch.device("meta"):
        levels = resnet_50.features(torch.zeros(1, 3, 384, 640))
    assert [tuple(level.shape) for level in levels] == [
        (1, 256, h, w) for h, w in ((96, 160), (48, 80), (24, 40), (12, 20), (6, 10))]


@pytest.mark.parametrize("change", [{"num_classes": 0}, {"hidden": 0}, {"mask_convs": -1}])
def test_settings_out_of_range(change):
    with pytest.raises(ValueError, match="at least"):
        replace(SMALL_REGIONS, **change)


# ------------------------------------------------------------------------------------------ inference


@torch.no_grad()
def said(network: MaskTrackRCNN, pictures: torch.Tensor) -> RegionOutputs:
    return network.heads(network.features(pictures))


@torch.no_grad()
def everything(network: MaskTrackRCNN, out: RegionOutputs, image: int) -> list[torch.Tensor]:
    """All that is said of one image; masks and embeddings of its first five proposals."""
    boxes = network.proposals(out, image, (60, 64))
    labels = torch.tensor([0, 1, 2, 1, 0])
    return [boxes, *network.second_stage(out, image, boxes, (60, 64)),
            network.mask_logits(out, image, boxes[:5], labels), network.embeddings(out, image, boxes[:5])]


def test_shapes_of_what_is_said():
    network = small_regions().eval()
    out = said(network, images(2))
    assert out.padded == (64, 64) and [tuple(x.shape) for x in out.levels] == [(2, 16, s, s) for s in (16, 8, 4, 2)]
    boxes, probability, refined, masks, embeddings = everything(network, out, 1)
    r = len(boxes)
    assert 5 < r <= 200
    assert (probability.shape, refined.shape) == ((r, 4), (r, 4, 4))
    assert (masks.shape, embeddings.shape) == ((5, 28, 28), (5, 32))
    assert torch.allclose(probability.sum(1), torch.ones(r))
    assert refined.min() >= 0 and refined[..., 2].max() <= 64 and refined[..., 3].max() <= 60


@torch.no_grad()
def test_each_class_has_its_own_box_and_mask():
    network = small_regions().eval()
    out = said(network, images(1))
    boxes = torch.tensor([[4.0, 6.0, 40.0, 50.0]])
    _, refined = network.second_stage(out, 0, boxes, (64, 64))
    masks = [network.mask_logits(out, 0, boxes, torch.tensor([k])) for k in range(3)]
    network.box_head.deltas.bias[4 * 2 : 4 * 3] += torch.tensor([1.0, 0, 0, 0])      # a tenth of the width to the right
    network.mask_head.logits.bias[2] += 5
    _, after = network.second_stage(out, 0, boxes, (64, 64))
    assert torch.equal(after[:, [0, 1, 3]], refined[:, [0, 1, 3]])
    assert torch.allclose(after[0, 2, [0, 2]].clamp(max=63), (refined[0, 2, [0, 2]] + 3.6).clamp(max=63), atol=1e-4)
    moved = [network.mask_logits(out, 0, boxes, torch.tensor([k])) for k in range(3)]
    assert [torch.allclose(a + 5, b) for a, b in zip(masks, moved, strict=True)] == [False, True, False]


def test_batch_of_two_equals_two_of_one():
    network = small_regions().eval()
    pictures = images(2)
    both = said(network, pictures)
    for b in (0, 1):
        alone = said(network, pictures[b : b + 1])
        for together, single in zip(everything(network, both, b), everything(network, alone, 0), strict=True):
            assert together.shape == single.shape and torch.allclose(together, single, atol=1e-3)


def test_an_image_does_not_see_its_batch_mates():
    network = small_regions().eval()
    pictures = images(3)
    other = torch.cat([pictures[:1], 100 * images(2, seed=9)])
    first, second = said(network, pictures), said(network, other)
    for a, b in zip(everything(network, first, 0), everything(network, second, 0), strict=True):
        assert a.shape == b.shape and torch.allclose(a, b, atol=1e-4)
    assert not torch.allclose(first.rpn.logits[1], second.rpn.logits[1], atol=1e-2)


def test_nothing_is_remembered_at_inference():
    network = small_regions().eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    first, _, again = (everything(network, said(network, images(1, seed=s)), 0) for s in (0, 1, 0))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


# ------------------------------------------------------------------------------------------ training


def test_every_part_learns():
    """Anchors of one stride, all of them drawn, so that each level has some inside of the frame."""
    drawn = replace(SMALL_REGIONS.rpn.sampling, count=4000)
    network = small_regions(rpn=RPNConfig(anchor_scale=1.0, sampling=drawn))
    losses = network(one_pair())
    assert list(losses) == NAMES and all(loss.shape == () and loss > 0 for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_frozen_parts_do_not_learn():
    backbone = replace(SMALL_REGIONS.backbone, norm="frozen_statistics", frozen_stages=2)
    network = small_regions(backbone=backbone)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    sum(network(one_pair()).values()).backward()
    still = {name for name, p in network.named_parameters() if p.grad is None}
    assert still and all(name.startswith(("backbone.stem", "backbone.res2")) for name in still)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())


@pytest.mark.parametrize("part, moves", [
    pytest.param("rpn.logits", {"rpn_class"}, id="objectness"),
    pytest.param("box_head.fc2", {"class", "box"}, id="box head"),
    pytest.param("mask_head.upsample", {"mask"}, id="mask head"),
    pytest.param("track_head.fc1", {"match"}, id="tracking head"),
])
def test_which_loss_teaches_what(part, moves):
    network = small_regions()
    weight = network.get_submodule(part).weight
    losses = network(one_pair())
    taught = {name for name in NAMES
              if torch.autograd.grad(losses[name], weight, retain_graph=True, allow_unused=True)[0] is not None}
    assert taught == moves


def test_the_reference_matters_for_matching_alone():
    network = small_regions().eval()                        # evaluation: norms do not see the other slot
    batch = one_pair()
    other = replace(batch, images=(batch.images[0], images(1, seed=77)))
    values = []
    for each in (batch, other):
        torch.manual_seed(5)
        values.append({name: loss.item() for name, loss in network(each).items()})
    assert {name for name in NAMES if values[0][name] != values[1][name]} == {"match"}


def test_match_is_between_positives_and_true_boxes_of_the_reference():
    """One instance, no other proposal is near: the only positive is the true box, so the loss can be put together."""
    network = small_regions().eval()
    key, reference = frame([(6, 8, 9, 61)]), frame([(30, 5, 50, 40), (2, 10, 6, 60)])
    batch = pairs(([key], [reference]), ([[1]], [[-1, 0]]))
    with torch.no_grad():
        loss = network(batch)["match"]
        own = network.embeddings(said(network, batch.images[0]), 0, key.boxes)
        theirs = network.embeddings(said(network, batch.images[1]), 0, reference.boxes)
        logits = torch.cat([torch.zeros(1), (own @ theirs.T)[0]]).double()
    assert loss.item() == pytest.approx((logits.logsumexp(0) - logits[2]).item(), rel=1e-4)


EMPTY = pairs(([frame([])], [frame([])]), ([[]], [[]]))
ONE_SIDED = pairs(([frame([(6, 8, 26, 30)])], [frame([])]), ([[-1]], [[]]))


@pytest.mark.parametrize("batch, zero", [
    pytest.param(EMPTY, {"rpn_box", "box", "mask", "match"}, id="no instance in either frame"),
    pytest.param(ONE_SIDED, {"match"}, id="none in the reference: new for sure"),
])
def test_frames_without_instances(batch, zero):
    network = small_regions()
    losses = network(batch)
    assert {name for name, loss in losses.items() if loss == 0} == zero
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()), "all stay in the graph"


def test_losses_of_two_pairs():
    """All anchors and regions are drawn: of two equal pairs each loss is that of one."""
    everything_drawn = dict(
        rpn=replace(SMALL_REGIONS.rpn, sampling=replace(SMALL_REGIONS.rpn.sampling, count=4000)),
        sampling=replace(SMALL_REGIONS.sampling, count=4000),
    )
    network = small_regions(**everything_drawn).eval()
    one = one_pair()
    two = PairBatch(tuple(torch.cat([i, i]) for i in one.images), tuple(t * 2 for t in one.targets),
                    tuple(c * 2 for c in one.counterparts))
    with torch.no_grad():
        alone, both = network(one), network(two)
    for name in NAMES:
        assert both[name].item() == pytest.approx(alone[name].item(), rel=1e-4), name


def test_the_loss_falls():
    """To 0.41 of what it was, at worst of 8 seeds."""
    network = small_regions(seed=None)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.005)
    batch, totals = one_pair(), []
    for _ in range(15):
        total = sum(network(batch).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert sum(totals[-3:]) < 0.7 * sum(totals[:3])
