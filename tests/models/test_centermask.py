"""CenterMask: its parts layer by layer, decoding by hand, and its losses against loops.

Source of what is expected: TLTM specification 2.4, 2.5, 2.7, 3.2 to 3.4.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import NETWORKS
from models.centermask import CenterMask, CenterMaskConfig, CenterMaskOutputs
from models.fcos import Locations
from models.fcos_decode import FCOSDecodeConfig, decode
from models.sag_mask import SpatialAttention, SpatialMaskHead
from models.targets import StillBatch
from tests.models import oracles
from tests.models import tltm_oracle as oracle
from tests.models.oracles import conv
from tests.models.small import frame, images, shake
from tests.models.small_tltm import SMALL_CENTERMASK, small_centermask, three_pairs

NAMES = ("class", "box", "centerness", "mask")


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_counts():
    with torch.device("meta"):
        network = CenterMask(CenterMaskConfig())
    assert NETWORKS["centermask"] == (CenterMask, CenterMaskConfig)
    assert (count(network.fpn), count(network.fcos), count(network.mask_head)) == (3_868_672, 4_828_466, 2_633_018)


# ------------------------------------------------------------------------------------------ the mask head


@torch.no_grad()
def test_spatial_attention_against_the_loop():
    attention, x = SpatialAttention(), torch.randn(2, 5, 6, 7)
    shake(attention, 0)
    for one, out in zip(x, attention(x), strict=True):
        expected = oracle.spatial_attention(one.double().numpy(), attention.conv.weight.double().numpy())
        np.testing.assert_allclose(out.numpy(), expected, atol=1e-6)
    assert attention.conv.bias is None and attention.conv.weight.shape == (1, 2, 3, 3)


@torch.no_grad()
def test_mask_head_layer_by_layer_and_each_its_own_class():
    head = SpatialMaskHead(3, 2, 4)
    shake(head, 0)
    regions, labels = torch.randn(3, 3, 14, 14), torch.tensor([3, 0, 1])
    x = regions.double()
    for layer in head.convs:
        x = conv(x, layer.weight, layer.bias).clamp(min=0)
    weight = head.attention.conv.weight.double().numpy()
    x = torch.stack([torch.from_numpy(oracle.spatial_attention(one.numpy(), weight)) for one in x])
    large = torch.zeros(3, 3, 28, 28, dtype=torch.float64) + head.upsample.bias.double()[:, None, None]
    for i in range(2):
        for j in range(2):                                                          # 2 x 2 pixels a cell, apart
            large[:, :, i::2, j::2] += torch.einsum("nchw,cd->ndhw", x, head.upsample.weight.double()[:, :, i, j])
    large = large.clamp(min=0)
    out = head(regions)
    expected = conv(large, head.logits.weight, head.logits.bias)
    assert out.shape == (3, 4, 28, 28) and torch.allclose(out.double(), expected, atol=1e-4)
    assert torch.equal(head.of_classes(regions, labels), torch.stack([out[0, 3], out[1, 0], out[2, 1]]))


def test_no_region_has_no_mask():
    head, none = SpatialMaskHead(3, 1, 4), torch.zeros(0, 3, 14, 14)
    assert head(none).shape == (0, 4, 28, 28)
    assert head.of_classes(none, torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)


def test_mask_head_starts_as_specified():
    head = SpatialMaskHead(16, 2, 40)
    for layer, std in ((head.convs[0], math.sqrt(2 / (16 * 9))), (head.upsample, math.sqrt(2 / (16 * 4))),
                       (head.logits, 0.001)):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.15) and not layer.bias.any()


# ------------------------------------------------------------------------------------------ decoding


def said(p_class: list[list[float]], p_center: list[float], sides: list[list[float]]) -> CenterMaskOutputs:
    """One image whose first P3 cells, at (4, 4), (12, 4), .., say this; 32 x 32 pixels, other cells silent."""
    sizes = [(4, 4), (2, 2), (1, 1), (1, 1), (1, 1)]
    places = sum(h * w for h, w in sizes)
    logits = torch.full((1, places, len(p_class[0])), -20.0)
    distances, centerness = torch.ones(1, places, 4), torch.zeros(1, places)
    logits[0, : len(p_class)] = torch.tensor(p_class).logit()
    centerness[0, : len(p_class)] = torch.tensor(p_center).logit()
    distances[0, : len(p_class)] = torch.tensor(sides)
    levels = tuple(torch.zeros(1, 8, *size) for size in sizes[:3])
    return CenterMaskOutputs(logits, distances, centerness, Locations.of(sizes, torch.device("cpu")), levels)


WIDE = [1.0, 0.5, 2.0, 0.25]
"""Strides: at (4, 4) on P3 a box from (-4, 0) to (20, 6)."""


@pytest.mark.parametrize("p_class, p_center, settings, found", [
    pytest.param([[0.04, 0.01]], [1 - 1e-6], {}, [], id="nothing above the threshold"),
    pytest.param([[0.9, 0.1]], [0.4], {}, [(0, 0.6), (1, 0.2)], id="one cell, two classes; roots of the products"),
    pytest.param([[0.06, 0.01]], [1 / 600], {}, [(0, 0.01)], id="the threshold is held against the class alone"),
    pytest.param([[0.9, 0.1]], [0.4], {"min_class": 0.25}, [(0, 0.6)], id="DAVIS's threshold"),
    pytest.param([[0.9, 0.1]], [0.4], {"max_per_level": 1}, [(0, 0.6)], id="the best of the level"),
    pytest.param([[0.9, 0.1]], [0.4], {"max_per_frame": 1}, [(0, 0.6)], id="the best of the frame"),
    pytest.param([[0.9, 0.9]], [0.4], {"max_per_frame": 1}, [(0, 0.6), (1, 0.6)], id="and all tied with it"),
])
def test_decoding_by_hand(p_class, p_center, settings, found):
    out = decode(said(p_class, p_center, [WIDE]), 0, FCOSDecodeConfig(**settings))
    assert [(k, pytest.approx(s, rel=1e-4)) for k, s in zip(out.labels.tolist(), out.scores.tolist(), strict=True)] \
        == found                                                                                          # fmt: skip
    assert all(box == [-4.0, 0.0, 20.0, 6.0] for box in out.boxes.tolist()), "not clipped"


@pytest.mark.parametrize("labels, kept", [
    pytest.param([[0.9, 0.01], [0.8, 0.01]], 1, id="one class: the better stays"),
    pytest.param([[0.9, 0.01], [0.01, 0.8]], 2, id="two classes: both"),
])
def test_suppression_is_within_a_class(labels, kept):
    """Boxes (-4, 0, 20, 6) and (-4, 0, 22, 6): IoU 24 / 26."""
    out = decode(said(labels, [0.5, 0.5], [WIDE, [2.0, 0.5, 1.25, 0.25]]), 0, FCOSDecodeConfig())
    assert len(out.labels) == kept and out.boxes[0].tolist() == [-4, 0, 20, 6]


def test_what_is_not_finite_is_left_out():
    out = decode(said([[0.9, 0.2]] * 3, [0.5] * 3, [WIDE, [math.inf, 1, 1, 1], [math.nan, 1, 1, 1]]), 0,
                 FCOSDecodeConfig())                                                                      # fmt: skip
    assert out.locations.unique().tolist() == [0]


@pytest.mark.parametrize("settings", [{"min_class": -0.1}, {"max_iou": 1.5}, {"max_per_frame": 0}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match="must"):
        FCOSDecodeConfig(**settings)


# ------------------------------------------------------------------------------------------ training


def truth() -> list:
    return [frame([(3, 3, 40, 33), (20, 18, 62, 61)], seed=6), frame([]), frame([(8, 9, 30, 44)], seed=7)]


def by_loops(network: CenterMask, batch: StillBatch, areas: list[float]) -> dict[str, float]:
    """Specification 3.3 and 3.4, for true boxes as regions."""
    with torch.no_grad():
        out = network.heads(network.features(batch.images))
    found, mask = [], []
    head = copy.deepcopy(network.mask_head).double()
    for b, target in enumerate(batch.targets):
        found += [(b, p, *rest) for p, rest in positives(target.boxes.numpy()).items()]
        for box, label, true in zip(target.boxes.tolist(), target.labels.tolist(), target.masks.numpy(), strict=True):
            k = oracle.level(box, areas[b])
            region = oracle.roi_align(out.levels[k - 3][b].double().numpy(), box, 14, 1 / 2**k)
            logits = head(torch.from_numpy(region)[None])[0, label].detach().numpy()
            mask.append(oracle.cross_entropy(logits, oracle.mask_target(true, box)))
    one_hot = np.zeros(out.class_logits.shape)
    for b, p, g, _ in found:
        one_hot[b, p, batch.targets[b].labels[g]] = 1
    sides = np.array([s for *_, s in found])
    centers = np.array([oracles.centerness(s) for s in sides])
    boxes = out.distances.double().numpy()[[f[0] for f in found], [f[1] for f in found]]
    at = out.centerness.double().numpy()[[f[0] for f in found], [f[1] for f in found]]
    return {
        "class": oracles.focal(out.class_logits.double().numpy(), one_hot) / len(found),
        "box": oracles.box_loss(boxes, sides, centers) / centers.sum(),
        "centerness": oracles.cross_entropy(at, centers) / len(found),
        "mask": sum(mask) / len(mask),
    }


def positives(boxes: np.ndarray) -> dict[int, tuple[int, tuple[float, ...]]]:
    """3.3 in a frame of 64 x 64: location -> (instance, (l, t, r, b) in strides). The window lies around the box."""
    found, bounds = {}, SMALL_CENTERMASK.fcos.size_bounds
    for p, (level, s, x, y) in enumerate(oracles.locations(64, 64)):
        best = math.inf
        for g, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
            cx, cy = (x1 + x2) / 2, (y1 + y2) / 2
            inside = max(x1, cx - 1.5 * s) < x < min(x2, cx + 1.5 * s) and max(y1, cy - 1.5 * s) < y < min(
                y2, cy + 1.5 * s)                                                                         # fmt: skip
            sides = (x - x1, y - y1, x2 - x, y2 - y)
            low, high = oracles.size_range(level, bounds)
            area = (x2 - x1) * (y2 - y1)
            if inside and low <= max(sides) <= high and area < best:
                best, found[p] = area, (g, tuple(side / s for side in sides))
    return found


@pytest.mark.parametrize("sizes", [None, [(64, 64), (64, 64), (30, 24)]], ids=["padded size", "true sizes"])
def test_losses_are_the_loops(sizes):
    network = small_centermask(regions="truth")
    batch = StillBatch(images(3), truth(), sizes=None if sizes is None else (sizes,))
    losses = network(batch)
    expected = by_loops(network, batch, [64.0 * 64] * 3 if sizes is None else [float(h * w) for h, w in sizes])
    assert losses.keys() == set(NAMES)
    for name in NAMES:
        assert losses[name].item() == pytest.approx(expected[name], rel=1e-4), name


def test_a_smaller_image_reads_coarser_levels():
    """The box of the third image fills all of 30 x 24: P5, not P3."""
    network = small_centermask(regions="truth")
    losses = [network(StillBatch(images(3), truth(), sizes=(sizes,) if sizes else None))["mask"].item()
              for sizes in (None, [(64, 64), (64, 64), (30, 24)])]                                        # fmt: skip
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)


def test_both_frames_of_a_pair_are_added():
    network, batch = small_centermask(regions="truth"), three_pairs()
    alone = [network(StillBatch(*slot)) for slot in batch.slots]
    for name, value in network(batch).items():
        assert value.item() == pytest.approx(alone[0][name].item() + alone[1][name].item(), rel=1e-5)


def test_nothing_to_see():
    losses = small_centermask()(StillBatch(images(2), [frame([]), frame([])]))
    assert losses["class"] > 0 and [losses[name].item() for name in NAMES[1:]] == [0, 0, 0]
    sum(losses.values()).backward()


def test_positives_are_averaged_over_workers():
    network, batch = small_centermask(regions="truth"), StillBatch(images(3), truth())
    one, four = network(batch), network(batch, lambda x: 4 * x)
    for name, share in (("class", 4), ("box", 4), ("centerness", 4), ("mask", 1)):
        assert one[name].item() == pytest.approx(share * four[name].item(), rel=1e-5), name


def test_every_parameter_learns():
    network = small_centermask()
    sum(network(StillBatch(images(3), truth())).values()).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_proposals_that_overlap_an_instance_by_half_are_regions_too():
    """At (12, 4) on P3 a box of IoU 24 * 6 / 24 * 8 with the truth, at (4, 4) one of a third."""
    network = small_centermask()
    out = said([[0.9, 0.01, 0.01], [0.9, 0.01, 0.01]], [0.5, 0.5], [[0, 0.5, 1, 0.5], WIDE])
    target = frame([(4, 0, 28, 8)], size=32)
    regions, features = network._sampled(out, [target], None)
    assert sorted(regions.boxes.tolist()) == [[4, 0, 28, 6], [4, 0, 28, 8]] and features.shape == (2, 8, 14, 14)
    assert regions.instance.tolist() == [0, 0] and not regions.boxes.requires_grad
    alone, _ = small_centermask(regions="truth")._sampled(out, [target], None)
    assert alone.boxes.tolist() == [[4, 0, 28, 8]]


def test_at_most_a_quarter_of_the_regions_drawn_are_positive():
    network = small_centermask(sampling=replace(SMALL_CENTERMASK.sampling, count=8))
    target = frame([(0, 0, 10 + i, 12) for i in range(5)], size=32)
    regions, _ = network._sampled(said([[0.01] * 3], [0.5], [WIDE]), [target], None)
    assert len(regions) == 2


# ------------------------------------------------------------------------------------------ of a batch


@torch.no_grad()
def test_a_batch_of_two_is_two_of_one():
    network, both = small_centermask().eval(), images(2)
    together = network.heads(network.features(both))
    boxes, size, labels = torch.tensor([[3.0, 4, 40, 50], [10, 10, 20, 22]]), (60, 50), torch.tensor([2, 0])
    for b in range(2):
        alone = network.heads(network.features(both[b : b + 1]))
        for name in ("class_logits", "distances", "centerness"):
            assert torch.allclose(getattr(together, name)[b], getattr(alone, name)[0], atol=1e-5), name
        regions = network.region_features(together, b, boxes, size)
        assert torch.allclose(regions, network.region_features(alone, 0, boxes, size), atol=1e-5)
        assert network.mask_logits(regions, labels).shape == (2, 28, 28)
    assert together.padded == (64, 64)


@pytest.mark.parametrize("changes, message", [
    ({"channels": 0}, "at least 1"), ({"regions": "all"}, "regions is 'all', expected"), ({"giou_added": -1}, "giou"),
])
def test_settings_that_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        replace(SMALL_CENTERMASK, **changes)


