"""CenterMask's and TLTM's detections of a frame: what is read where, of which class, and frames without any."""

from __future__ import annotations

import pytest
import torch

from models.fcos_decode import FCOSDecodeConfig, decode
from operators.detect_objects import detect_objects
from operators.detectors import DETECTORS
from tests.models.small import images
from tests.models.small_tltm import small_centermask, small_tltm

pytestmark = pytest.mark.usefixtures("one_thread")

SIZE = (60, 50)


@torch.no_grad()
@pytest.mark.parametrize("make, dim", [(small_centermask, 0), (small_tltm, 16)], ids=["centermask", "tltm"])
def test_masks_and_vectors_are_those_of_the_boxes(make, dim):
    network, cfg = make().eval(), FCOSDecodeConfig(max_per_frame=20)
    network.fcos.class_logits.bias.zero_()                              # all classes alike, boxes of some size
    network.fcos.distances.bias.fill_(5.0)
    dense = network.heads(network.features(images(2)))
    expected, found = decode(dense, 1, cfg), detect_objects(network, dense, 1, SIZE, cfg)
    assert len(found) == len(expected.labels) >= 20 and len(found.labels.unique()) > 1
    assert torch.equal(found.boxes, expected.boxes) and torch.equal(found.scores, expected.scores)
    assert (found.boxes[:, :2] < 0).any() or (found.boxes[:, 2:] > 64).any(), "boxes are not clipped"
    for n in range(len(found)):
        region = network.region_features(dense, 1, found.boxes[n : n + 1], SIZE)
        logits = network.mask_head(region)[0, found.labels[n]]
        assert torch.allclose(found.mask_logits[n], logits, atol=1e-5)
        if dim:
            assert torch.allclose(found.embeddings[n], network.encoder(region)[0], atol=1e-5)
    assert found.embeddings.shape == (len(found), dim) and found.mask_frame == "box"


@torch.no_grad()
@pytest.mark.parametrize("make", [small_centermask, small_tltm], ids=["centermask", "tltm"])
def test_nothing_found(make):
    network = make().eval()
    dense = network.heads(network.features(images(1)))
    found = detect_objects(network, dense, 0, SIZE, FCOSDecodeConfig(min_class=1.0))
    assert len(found) == 0 and found.mask_logits.shape == (0, 28, 28) and found.boxes.shape == (0, 4)


def test_it_is_what_the_networks_are_read_by():
    for name in ("centermask", "tltm"):
        assert DETECTORS[name].settings is FCOSDecodeConfig and DETECTORS[name].function is detect_objects
