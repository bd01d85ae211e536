"""Who answers for whom, table by table; and how many are drawn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from models.sampling import BACKGROUND, IGNORED, SamplingConfig, match_boxes, sample

ANCHORS = SamplingConfig(count=8, positive_share=0.5, positive_iou=0.7, negative_iou=0.3, least_best_iou=0.3)
REGIONS = SamplingConfig(count=8, positive_share=0.25, positive_iou=0.5, negative_iou=0.5, least_best_iou=0.5)
B, X = BACKGROUND, IGNORED


@pytest.mark.parametrize("overlap, cfg, owner", [
    pytest.param(torch.zeros(0, 3), ANCHORS, [B, B, B], id="no instance: all is background"),
    pytest.param(torch.zeros(2, 0), ANCHORS, [], id="no box"),
    pytest.param(torch.zeros(0, 0), ANCHORS, [], id="neither"),
    pytest.param([[0.9, 0.7, 0.69, 0.3, 0.29]], ANCHORS, [0, 0, X, X, B], id="from 0.7 positive, below 0.3 negative"),
    pytest.param([[0.9, 0.5, 0.49]], REGIONS, [0, 0, B], id="one bound for both: nothing is left out"),
    pytest.param([[0.8, 0.1], [0.75, 0.9]], ANCHORS, [0, 1], id="the instance it overlaps most"),
    pytest.param([[0.9, 0.8], [0.1, 0.2]], ANCHORS, [0, 0], id="its most counts, not the best box of each alone"),
    pytest.param([[0.8, 0.9], [0.8, 0.1]], ANCHORS, [1, 0], id="a box both overlap alike is the best of the second"),
    pytest.param([[0.4, 0.2, 0.1]], ANCHORS, [0, B, B], id="the best of an instance, from 0.3 on"),
    pytest.param([[0.29, 0.2, 0.1]], ANCHORS, [B, B, B], id="its best is below 0.3: it has none"),
    pytest.param([[0.4, 0.4, 0.1]], ANCHORS, [0, 0, B], id="all of its best"),
    pytest.param([[0.9, 0.8], [0.1, 0.4]], ANCHORS, [0, 1], id="its best, though that overlaps another more"),
    pytest.param([[0.6, 0.1], [0.6, 0.2]], ANCHORS, [1, B], id="the best of two: the later's"),
    pytest.param([[0.45, 0.1]], REGIONS, [B, B], id="regions: the best counts from 0.5 on alone"),
])
def test_match(overlap, cfg, owner):
    found = match_boxes(torch.as_tensor(overlap), cfg)
    assert found.dtype == torch.int64 and found.tolist() == owner


@pytest.mark.parametrize("owner, cfg, positives, negatives", [
    pytest.param([], ANCHORS, 0, 0, id="nothing"),
    pytest.param([X] * 20, ANCHORS, 0, 0, id="all left out"),
    pytest.param([B] * 20, ANCHORS, 0, 8, id="background alone: it fills up"),
    pytest.param([0, 1] * 10 + [B] * 20, ANCHORS, 4, 4, id="half and half"),
    pytest.param([0, 1] * 10 + [B] * 20, REGIONS, 2, 6, id="a quarter"),
    pytest.param([3] + [B] * 20, ANCHORS, 1, 7, id="few positives: more negatives"),
    pytest.param([0, 1] * 10 + [B] * 3, ANCHORS, 4, 3, id="few negatives: no more positives"),
    pytest.param([0, 1] * 10 + [B] * 3, replace(ANCHORS, positive_share=0.0), 0, 3, id="no positives wanted"),
])
def test_how_many_are_drawn(owner, cfg, positives, negatives):
    owner = torch.tensor(owner, dtype=torch.int64)
    drawn = sample(owner, cfg)
    assert [len(d) for d in drawn] == [positives, negatives]
    assert (owner[drawn[0]] >= 0).all() and (owner[drawn[1]] == B).all()
    assert all(len(set(d.tolist())) == len(d) for d in drawn), "none twice"


def test_every_box_may_be_drawn():
    owner = torch.tensor([0] * 10 + [B] * 10 + [X] * 10)
    seen = torch.stack([torch.bincount(torch.cat(sample(owner, ANCHORS)), minlength=30) for _ in range(200)]).sum(0)
    assert not seen[20:].any()
    assert seen[:20].min() > 40 and seen[:20].max() < 130, "each 80 times in 200 draws of 4 out of 10"


@pytest.mark.parametrize("change, message", [
    pytest.param({"count": 0}, "count is 0", id="none"),
    pytest.param({"positive_share": 1.5}, "positive_share is 1.5", id="share"),
    pytest.param({"positive_iou": 0.2}, "negative_iou 0.3, positive_iou 0.2", id="bounds crossed"),
    pytest.param({"negative_iou": 0.0}, "negative_iou 0.0", id="nothing could be background"),
    pytest.param({"least_best_iou": 1.1}, "least_best_iou 1.1", id="above 1"),
])
def test_settings_out_of_range(change, message):
    with pytest.raises(ValueError, match=message):
        replace(ANCHORS, **change)
