"""The second stage's parts: which level a box is read from, and each head layer by layer.

Source of what is expected: CrossVIS specification 5.2, rows RoI, box head, mask head, track head.
"""

from __future__ import annotations

import math

import pytest
import torch

from models.regions import BoxHead, MaskHead, TrackHead, region_features, region_levels
from models.roi_align import plain_roi_align
from tests.models.oracles import conv
from tests.models.small import shake


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("width, height, level", [
    pytest.param(1, 1, 0, id="a pixel"),
    pytest.param(0, 40, 0, id="no area"),
    pytest.param(56, 56, 0, id="56: log2 is 0"),
    pytest.param(111.9, 111.9, 0, id="just below 112"),
    pytest.param(112, 112, 1, id="112"),
    pytest.param(56, 224, 1, id="long, of the same area"),
    pytest.param(223, 223, 1, id="just below 224"),
    pytest.param(224, 224, 2, id="224"),
    pytest.param(448, 448, 3, id="448"),
    pytest.param(4000, 4000, 3, id="never P6"),
])
def test_level_of_a_box(width, height, level):
    assert region_levels(torch.tensor([[7.0, 9.0, 7 + width, 9 + height]])).tolist() == [level]


@pytest.mark.parametrize("size", [7, 14])
def test_each_region_is_read_from_its_own_level_in_its_own_image(size):
    levels = tuple(torch.randn(2, 3, 512 // stride, 640 // stride) for stride in (4, 8, 16, 32, 64))
    boxes = torch.tensor([[0, 0, 300, 300], [10, 20, 40, 44], [600, 3, 640, 30], [0, 0, 640, 512], [5, 5, 135, 135.0]])
    image = torch.tensor([1, 0, 1, 0, 1])
    found = region_features(levels, boxes, image, size)
    assert found.shape == (5, 3, size, size)
    for r, level in enumerate((2, 0, 0, 3, 1)):
        alone = plain_roi_align(levels[level], boxes[r : r + 1], image[r : r + 1], size, 1 / (4 * 2**level), samples=2)
        assert torch.equal(found[r], alone[0]), r


def test_no_region():
    levels = tuple(torch.randn(2, 3, 64 // stride, 64 // stride) for stride in (4, 8, 16, 32, 64))
    none = region_features(levels, torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 7)
    assert none.shape == (0, 3, 7, 7)
    assert [x.shape for x in BoxHead(3, 5, 4)(none)] == [(0, 5), (0, 5, 4)]
    assert TrackHead(3, 5)(none).shape == (0, 5)
    assert MaskHead(3, 1, 4)(torch.zeros(0, 3, 14, 14), torch.zeros(0, dtype=torch.int64)).shape == (0, 28, 28)


def test_counts_of_the_baseline():
    with torch.device("meta"):
        assert count(BoxHead(256, 1024, 40)) == 12_846_080 + 1_049_600 + 42_025 + 168_100
        assert count(MaskHead(256, 4, 40)) == 4 * 590_080 + 262_400 + 10_537
        assert count(TrackHead(256, 1024)) == 13_895_680


@torch.no_grad()
def test_box_head_by_its_matrices():
    head = BoxHead(3, 5, 2)
    shake(head, 0)
    regions = torch.randn(4, 3, 7, 7)
    x = torch.stack([region.reshape(-1) for region in regions]).double()           # channel, row, column
    for layer in (head.fc1, head.fc2):
        x = (x @ layer.weight.double().T + layer.bias.double()).clamp(min=0)
    classes, deltas = head(regions)
    assert torch.allclose(classes.double(), x @ head.class_logits.weight.double().T + head.class_logits.bias.double())
    flat = x @ head.deltas.weight.double().T + head.deltas.bias.double()           # four a class, class by class
    assert deltas.shape == (4, 3, 4)
    for k in range(3):
        assert torch.allclose(deltas[:, k].double(), flat[:, 4 * k : 4 * k + 4], atol=1e-5)


@torch.no_grad()
def test_track_head_has_no_relu_at_its_end():
    head = TrackHead(3, 5)
    shake(head, 0)
    regions = torch.randn(6, 3, 7, 7)
    hidden = (regions.flatten(1) @ head.fc1.weight.T + head.fc1.bias).clamp(min=0)
    out = head(regions)
    assert torch.allclose(out, hidden @ head.fc2.weight.T + head.fc2.bias, atol=1e-5)
    assert (out < 0).any()


@torch.no_grad()
def test_mask_head_layer_by_layer_and_each_its_own_class():
    head = MaskHead(3, 2, 4)
    shake(head, 0)
    regions, classes = torch.randn(3, 3, 14, 14), torch.tensor([4, 1, 2])
    x = regions
    for layer in head.convs:
        x = conv(x, layer.weight, layer.bias).clamp(min=0)
    x, up = x.double(), head.upsample.weight.double()                               # (in, out, 2, 2)
    large = torch.zeros(3, 3, 28, 28, dtype=torch.float64) + head.upsample.bias.double()[:, None, None]
    for i in range(2):
        for j in range(2):                                                          # 2 x 2 pixels a cell, apart
            large[:, :, i::2, j::2] += torch.einsum("nchw,cd->ndhw", x, up[:, :, i, j])
    large = large.clamp(min=0)
    out = head(regions, classes)
    assert out.shape == (3, 28, 28)
    for n, k in enumerate(classes.tolist()):
        weight = head.logits.weight.double()[k, :, 0, 0]
        expected = torch.einsum("chw,c->hw", large[n], weight) + head.logits.bias.double()[k]
        assert torch.allclose(out[n].double(), expected, atol=1e-4)


def test_start():
    box, mask, track = BoxHead(8, 64, 40), MaskHead(16, 2, 40), TrackHead(8, 64)
    assert box.fc1.weight.abs().max() <= math.sqrt(6 / (8 * 49 + 64))
    assert box.fc1.weight.std().item() == pytest.approx(math.sqrt(2 / (8 * 49 + 64)), rel=0.05)
    for layer, std in ((box.class_logits, 0.01), (box.deltas, 0.001), (track.fc1, 0.01), (track.fc2, 0.01),
                       (mask.convs[0], math.sqrt(2 / (16 * 9))), (mask.upsample, math.sqrt(2 / (16 * 4)))):
        assert layer.weight.std().item() == pytest.approx(std, rel=0.1)
    biases = [value for head in (box, mask, track) for name, value in head.named_parameters() if name.endswith("bias")]
    assert len(biases) == 4 + 4 + 2 and not any(bias.any() for bias in biases)
