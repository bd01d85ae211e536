"""From proposals to instances: heads set by hand so that each rule decides alone, and a loop over all candidates.

Source of what is expected: CrossVIS specification 5.2, row test.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.masktrack_rcnn import MaskTrackRCNN, RegionOutputs
from operators.detect_regions import RegionDetectConfig, detect_regions
from tests.models.small import images
from tests.models.small_regions import SMALL_REGIONS, small_regions
from tests.operators.test_nms import naive

SIZE = (60, 64)


def spoken(probabilities: list[float], proposals: int = 200) -> MaskTrackRCNN:
    """Every region has these class probabilities, the background first, and keeps its proposal as its box."""
    network = small_regions(rpn=replace(SMALL_REGIONS.rpn, max_proposals=proposals)).eval()
    with torch.no_grad():
        for layer in (network.box_head.class_logits, network.box_head.deltas):
            layer.weight.zero_()
            layer.bias.zero_()
        network.box_head.class_logits.bias.copy_(torch.tensor(probabilities).log())
    return network


@torch.inference_mode()
def heads(network: MaskTrackRCNN, seed: int = 0, count: int = 1) -> RegionOutputs:
    return network.heads(network.features(images(count, seed=seed)))


def found(network: MaskTrackRCNN, **settings):
    with torch.inference_mode():
        return detect_regions(network, heads(network), 0, SIZE, RegionDetectConfig(**settings))


def test_defaults_are_the_released_ones():
    assert RegionDetectConfig() == RegionDetectConfig(min_score=0.05, max_iou=0.5, max_per_frame=10)


def test_nothing_above_the_threshold():
    nothing = found(spoken([0.97, 0.01, 0.01, 0.01]))
    assert len(nothing) == 0 and nothing.mask_frame == "box"
    assert nothing.boxes.shape == (0, 4) and nothing.mask_logits.shape == (0, 28, 28)
    assert nothing.embeddings.shape == (0, 32) and nothing.labels.dtype == torch.int64


@pytest.mark.parametrize("probabilities, min_score, labels", [
    pytest.param([0.9, 0.0, 0.1, 0.0], 0.05, [1], id="column 2 is class 1: the background comes first"),
    pytest.param([0.9, 0.0, 0.0, 0.1], 0.05, [2], id="the last class"),
    pytest.param([0.9, 0.02, 0.04, 0.04], 0.05, [], id="the background itself is no instance"),
    pytest.param([0.5, 0.0, 0.5, 0.0], 0.5, [], id="strictly above is asked"),
    pytest.param([0.1, 0.2, 0.4, 0.3], 0.05, [1, 2, 0], id="a region may be several, best first"),
    pytest.param([0.1, 0.2, 0.4, 0.3], 0.25, [1, 2], id="a higher threshold"),
])
def test_class_and_threshold(probabilities, min_score, labels):
    instances = found(spoken(probabilities, proposals=1), min_score=min_score)
    assert instances.labels.tolist() == labels
    assert instances.scores.tolist() == pytest.approx([probabilities[k + 1] for k in labels], rel=1e-5)


@pytest.mark.parametrize("most", [1, 4, 10])
def test_no_more_than_asked_though_all_scores_are_tied(most):
    assert len(found(spoken([0.4, 0.6, 0.0, 0.0]), max_per_frame=most, max_iou=1.0)) == most


def test_masks_and_embeddings_are_of_the_detected_box_and_class():
    network = small_regions().eval()
    with torch.no_grad():
        network.box_head.class_logits.weight.mul_(0.1)                       # all classes likely everywhere
    with torch.inference_mode():
        dense = heads(network)
        instances = detect_regions(network, dense, 0, SIZE, RegionDetectConfig())
        boxes, labels = instances.boxes, instances.labels
        assert len(set(labels.tolist())) > 1 and len(boxes) == 10
        for n in range(10):
            mask = network.mask_logits(dense, 0, boxes[n : n + 1], labels[n : n + 1])[0]
            assert torch.allclose(instances.mask_logits[n], mask, atol=1e-4)
            assert torch.allclose(instances.embeddings[n], network.embeddings(dense, 0, boxes[n : n + 1])[0], atol=1e-4)
    assert boxes.min() >= 0 and boxes[:, 2].max() <= 64 and boxes[:, 3].max() <= 60


@pytest.mark.parametrize("seed", range(4))
def test_against_a_loop_over_all_candidates(seed):
    network = small_regions(seed).eval()
    cfg = RegionDetectConfig(min_score=0.2, max_iou=0.4, max_per_frame=6)
    with torch.inference_mode():
        dense = heads(network, seed, count=2)
        proposals = network.proposals(dense, 1, SIZE)
        probability, refined = network.second_stage(dense, 1, proposals, SIZE)
        instances = detect_regions(network, dense, 1, SIZE, cfg)
    candidates = [(probability[r, k].item(), k - 1, refined[r, k].tolist())
                  for r in range(len(proposals)) for k in (1, 2, 3) if probability[r, k] > 0.2]
    scores, labels, boxes = (torch.tensor(column) for column in zip(*candidates, strict=True))
    order = naive(boxes, scores, labels, 0.4, 6)
    assert 1 <= len(order) < len(candidates), "every rule must have had something to do"
    assert instances.labels.tolist() == labels[order].tolist()
    torch.testing.assert_close(instances.scores, scores[order])
    torch.testing.assert_close(instances.boxes, boxes[order])


def test_only_the_asked_image_is_looked_at():
    network = small_regions().eval()
    with torch.inference_mode():
        alone = detect_regions(network, heads(network), 0, SIZE, RegionDetectConfig())
        pictures = torch.cat([images(1, seed=5), images(1), 50 * images(1, seed=6)])
        among = detect_regions(network, network.heads(network.features(pictures)), 1, SIZE, RegionDetectConfig())
    assert alone.labels.tolist() == among.labels.tolist()
    torch.testing.assert_close(among.boxes, alone.boxes, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(among.mask_logits, alone.mask_logits, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("settings, message", [
    pytest.param({"min_score": -0.1}, "min_score -0.1", id="negative threshold"),
    pytest.param({"max_iou": 1.1}, "max_iou 1.1", id="IoU above 1"),
    pytest.param({"max_per_frame": 0}, "at least 1", id="no instance"),
])
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        RegionDetectConfig(**settings)
