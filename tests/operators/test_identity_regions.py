"""IAI with two stages: masks in boxes pasted by loops, who becomes a candidate, and its life in the stage `identify`.

Source of what is expected: IAI specification 5, and 4 for what both forms share.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.outputs import Detections
from operators.detectors import DETECTORS
from operators.identities import rank_weights
from operators.identity_regions import RegionIdentityConfig, find_region_identities, paste
from operators.masks import EncodeMasks, decode_masks, encode_box_masks
from operators.records import FrameDetections
from tests.operators.small_identities import PADDED, clip, frame, run, small_iai_maskrcnn, stage
from tests.operators.test_nms import naive
from tests.pipelines.contract import check_stream_stage, plain

SIZE, ORIGINAL = (44, 60), (33, 80)

# ------------------------------------------------------------------------------------------------------- masks in boxes


def lerp(values: list[float], place: float) -> float:
    place = min(max(place, 0.0), len(values) - 1.0)
    low = min(int(place), len(values) - 2)
    return values[low] * (1 - (place - low)) + values[low + 1] * (place - low)


def pasted(logits: np.ndarray, box: list[float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Pixel by pixel: the mask, and where the probability is too near one half to tell."""
    probability = 1 / (1 + np.exp(-logits.astype(np.float64)))
    mask, unclear = np.zeros(size, bool), np.zeros(size, bool)
    for y in range(size[0]):
        for x in range(size[1]):
            if box[0] <= x + 0.5 < box[2] and box[1] <= y + 0.5 < box[3]:
                row = (y + 0.5 - box[1]) / (box[3] - box[1]) * len(probability) - 0.5
                column = (x + 0.5 - box[0]) / (box[2] - box[0]) * len(probability[0]) - 0.5
                value = lerp([lerp(cells.tolist(), column) for cells in probability], row)
                mask[y, x], unclear[y, x] = value > 0.5, abs(value - 0.5) < 1e-5
    return mask, unclear


BOXES = [
    pytest.param([4.0, 3.0, 20.0, 19.0], id="whole pixels"),
    pytest.param([4.3, 3.7, 17.2, 9.1], id="parts of pixels"),
    pytest.param([4.5, 3.5, 12.5, 9.5], id="edges on centres: the low one is in, the high one is not"),
    pytest.param([-6.0, -3.5, 9.0, 40.0], id="out of the frame on three sides"),
    pytest.param([0.0, 0.0, 30.0, 24.0], id="all of the frame"),
    pytest.param([7.2, 5.1, 7.9, 12.0], id="one column"),
    pytest.param([7.6, 5.1, 8.4, 12.0], id="between two columns"),
    pytest.param([7.5, 5.5, 7.5, 12.0], id="no width"),
    pytest.param([9.0, 5.0, 7.0, 12.0], id="the wrong way round"),
    pytest.param([50.0, 5.0, 60.0, 12.0], id="beside the frame"),
]


@pytest.mark.parametrize("box", BOXES)
def test_pasting_by_loops(box):
    """28 x 28 cells that fill a box; also against how masks become results, at the same size."""
    logits = torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(0))
    logits[:, [0, -1]] = logits[:, :, [0, -1]] = 3.0            # so that edges show
    found = paste(logits, torch.tensor([box]), (24, 30))[0].numpy()
    expected, unclear = pasted(logits[0].numpy(), box, (24, 30))
    np.testing.assert_array_equal(found[~unclear], expected[~unclear])
    on_the_host = decode_masks(encode_box_masks(logits, torch.tensor([box]), 24, 30), 24, 30)[:, :, 0] > 0
    np.testing.assert_array_equal(found[~unclear], on_the_host[~unclear])


def test_pasting_many_at_once_is_pasting_each():
    logits = torch.randn(len(BOXES), 28, 28, generator=torch.Generator().manual_seed(1))
    boxes = torch.tensor([case.values[0] for case in BOXES])
    together = paste(logits, boxes, (24, 30))
    assert together.dtype == torch.bool and together.shape == (len(BOXES), 24, 30) and together.any()
    for n in range(len(BOXES)):
        assert torch.equal(paste(logits[n : n + 1], boxes[n : n + 1], (24, 30))[0], together[n])
    assert paste(logits[:0], boxes[:0], (24, 30)).shape == (0, 24, 30)


# ---------------------------------------------------------------------------------------------------------- candidates


def spoken(classes: list[float], identities: list[float], proposals: int = 60):
    """Every proposal has these probabilities, the background first among classes, last among identities; its box stays.
    """
    network = small_iai_maskrcnn(num_slots=len(identities) - 1)
    with torch.no_grad():
        for layer in (network.box_head.class_logits, network.box_head.deltas, network.identity_head.logits):
            layer.weight.zero_()
            layer.bias.zero_()
        network.box_head.class_logits.bias.copy_(torch.tensor(classes).log())
        network.identity_head.logits.bias.copy_(torch.tensor(identities).log())
    network.config = replace(network.config, rpn=replace(network.config.rpn, max_proposals=proposals))
    return network


@torch.inference_mode()
def heads(network, seed: int = 0, count: int = 1):
    pictures = torch.randn(count, 3, *PADDED, generator=torch.Generator().manual_seed(seed))
    pyramid, _ = network.associate(network.features(pictures), [None] * count)
    return network.heads(pyramid)


@torch.inference_mode()
def candidates(network, weights=(1.0, 0.5), image: int = 0, out=None, **settings):
    out = heads(network) if out is None else out
    return find_region_identities(network, out, image, frame(0), weights, RegionIdentityConfig(**settings))


def test_defaults_and_the_table_of_detectors():
    cfg = RegionIdentityConfig()
    assert (cfg.min_class, cfg.min_identity, cfg.max_iou, cfg.max_per_frame, cfg.min_visible) == (.05, .1, .5, 10, .1)
    kind = DETECTORS["iai_maskrcnn"]
    assert (kind.settings, kind.function, kind.remembers) == (RegionIdentityConfig, find_region_identities, True)


def test_a_quiet_frame_has_no_candidates():
    found = candidates(spoken([0.97, 0.01, 0.01, 0.01], [0.1, 0.1, 0.7, 0.1]))
    assert (len(found.scores), found.boxes.shape, found.classes.shape) == (0, (0, 4), (0, 3))
    assert (found.identities.shape, found.mask_logits.shape, found.masks.shape) == ((0, 3), (0, 28, 28), (0, 64, 64))
    assert found.mask_frame == "box"


@pytest.mark.parametrize("classes, identities, passes", [
    pytest.param([0.9, 0.1, 0.0, 0.0], [0.05, 0.05, 0.02, 0.88], False, id="sure of the class alone"),
    pytest.param([0.97, 0.01, 0.01, 0.01], [0.0, 0.9, 0.0, 0.1], False, id="sure of the identity alone"),
    pytest.param([0.9, 0.0, 0.1, 0.0], [0.0, 0.0, 0.2, 0.8], True, id="a little sure of both: new counts"),
    pytest.param([0.0, 0.02, 0.0, 0.98], [0.0, 0.0, 0.0, 1.0], False, id="background is no identity"),
    pytest.param([0.8, 0.0, 0.0, 0.2], [0.0, 0.0, 0.1, 0.9], False, id="strictly above is asked"),
])
def test_both_thresholds_must_be_passed(classes, identities, passes):
    assert (len(candidates(spoken(classes, identities, proposals=1), min_identity=0.1 + 1e-6).scores) == 1) == passes


@pytest.mark.parametrize("mode, first, rank", [
    ("reference", True, 0.5 + 0.5 * 0.6), ("reference", False, 0.5 * 0.5 + 0.6), ("paper", True, 0.5 * (0.5 + 0.6)),
])
def test_what_a_candidate_says(mode, first, rank):
    found = candidates(spoken([0.2, 0.1, 0.5, 0.2], [0.6, 0.1, 0.1, 0.2], proposals=1), rank_weights(mode, first))
    assert found.scores.item() == pytest.approx(rank)
    assert found.classes[0].tolist() == pytest.approx([0.1, 0.5, 0.2])
    assert found.identities[0].tolist() == pytest.approx([0.6, 0.1, 0.1])


def test_as_many_as_asked_for_even_of_equal_rank():
    assert len(candidates(spoken([0.1, 0.9, 0.0, 0.0], [0.9, 0.0, 0.1, 0.0]), max_per_frame=3, max_iou=1.0).scores) == 3


@pytest.mark.parametrize("seed", range(3))
def test_against_a_loop_over_all_proposals(seed):
    """The box of the best class alone competes, whatever the class; boxes and masks are of where they should be."""
    network = small_iai_maskrcnn(seed=seed)
    out, settings = heads(network, seed, count=2), {"min_class": 0.3, "min_identity": 0.2, "max_iou": 0.4}
    found = candidates(network, (0.5, 1.0), 1, out, max_per_frame=6, **settings)
    with torch.inference_mode():
        said = network.identified(out, 1, network.proposals(out, 1, SIZE), SIZE)
        rows = [r for r in range(len(said.boxes)) if said.classes[r].max() > 0.3 and said.identities[r].max() > 0.2]
        scores = torch.stack([0.5 * said.classes[r].max() + said.identities[r].max() for r in rows])
        original = said.boxes[rows] * torch.tensor([80 / 60, 33 / 44, 80 / 60, 33 / 44])
        kept = [rows[k] for k in naive(original, scores, torch.zeros(len(rows), dtype=torch.int64), 0.4, 6)]
        assert 1 <= len(kept) < len(rows), "every rule must have had something to do"
        torch.testing.assert_close(found.classes, said.classes[kept])
        torch.testing.assert_close(found.identities, said.identities[kept])
        torch.testing.assert_close(found.boxes, said.boxes[kept] * torch.tensor([80 / 60, 33 / 44, 80 / 60, 33 / 44]))
        for n, r in enumerate(kept):
            label = said.classes[r].argmax()[None]
            mask = network.mask_logits(out, 1, said.boxes[r : r + 1], label)
            torch.testing.assert_close(found.mask_logits[n], mask[0], rtol=1e-4, atol=1e-4)
            assert torch.equal(found.masks[n], paste(found.mask_logits[n : n + 1], said.boxes[r : r + 1], PADDED)[0])
    assert not found.masks[:, 44:].any() and not found.masks[:, :, 60:].any(), "boxes end with the frame"


def test_without_identities_the_class_alone_ranks():
    network = small_iai_maskrcnn(use_id=False)
    found = candidates(network)
    assert found.identities.shape == (len(found.scores), 0) and len(found.scores) > 1
    torch.testing.assert_close(found.scores, found.classes.amax(1))


@pytest.mark.parametrize("wrong", [{"min_class": -0.1}, {"max_iou": math.nan}, {"max_per_frame": 0}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        RegionIdentityConfig(**wrong)


# ---------------------------------------------------------------------------------------------- in the stage `identify`

EASY = RegionIdentityConfig(min_class=0.05, min_identity=0.05, max_iou=0.7, max_per_frame=5)


@pytest.fixture(scope="module")
def network():
    torch.set_num_threads(1)
    return small_iai_maskrcnn(seed=6)


def test_a_clip_has_identities_that_last(network):
    """What the other tests of this part stand on: tracks are found again, and new ones come."""
    ids = [record.detections.track_ids.tolist() for record in run(stage(network, EASY, mode="paper"), clip(network, 0))]
    assert sum(map(len, ids)) > 15 and len({id_ for one in ids for id_ in one}) > 2
    assert any(set(one) & set(other) for one, other in zip(ids[1:], ids[2:], strict=False))


@pytest.mark.parametrize("settings", [
    pytest.param({}, id="reference"),
    pytest.param({"mode": "stream", "max_stored": 2, "stale_s": 0.3, "local_age_s": 0.4}, id="stream"),
])
def test_it_keeps_the_contract_of_stages(network, settings):
    records = clip(network, 1, frames=6)
    check_stream_stage(lambda: stage(network, EASY, **settings), [records[:2], records[2:4], records[4:]], "s")


@pytest.mark.parametrize("batch_streams", [1, 3])
def test_two_streams_interleaved_equal_each_alone(network, batch_streams):
    settings = {"mode": "stream", "batch_streams": batch_streams, "max_stored": 3, "stale_s": 0.3}
    clips = {name: clip(network, seed, name, frames=8) for seed, name in enumerate("ab", start=2)}
    alone = {name: run(stage(network, EASY, **settings), records) for name, records in clips.items()}
    waiting = {name: iter(records) for name, records in clips.items()}
    together = run(stage(network, EASY, **settings), [next(waiting[name]) for name in "aaabbabbababaabb"], per_call=5)
    for name in "ab":
        assert plain([one for one in together if one.info.stream == name]) == plain(alone[name]), name


def test_a_frame_depends_on_earlier_ones_and_on_no_later_one(network):
    records, others = clip(network, 0), clip(network, 6)
    whole = run(stage(network, EASY), records, per_call=3)
    changed = run(stage(network, EASY), records[:4] + others[4:], per_call=3)
    assert plain(changed[:4]) == plain(whole[:4]) and plain(changed[4]) != plain(whole[4])
    assert plain(run(stage(network, EASY), others[:5] + records[5:])[5]) != plain(whole[5])


def test_masks_that_reach_the_memory_and_the_file_are_exclusive_and_fill_boxes(network):
    """What is painted is each kept candidate's mask at padded size less those of better ones; results at the original
    size likewise."""
    records = clip(network, 0)
    identify, painted, found = stage(network, EASY, mode="stream", stale_s=0.01), [], []        # nobody is dropped
    find, entry = identify.find, network.association.entry
    identify.find = lambda *args: (found.append(find(*args)), found[-1])[1]
    network.association.entry = lambda *args: (painted.append(args[2]), entry(*args))[1]
    try:
        given = run(identify, records)
    finally:
        del network.association.entry
    several = 0
    for labels, one, record in zip(painted, found, given, strict=True):
        free = torch.ones(PADDED, dtype=torch.bool)
        visible = []
        for mask in one.masks:
            visible.append(mask & free)
            free &= ~mask
        kept = [n for n, mask in enumerate(visible) if mask.any() and mask.sum() >= 0.1 * one.masks[n].sum()]
        assert len(set(labels[labels != 6].tolist())) == len(record.detections) == len(kept)
        for n in kept:
            (slot,) = set(labels[visible[n]].tolist())
            assert slot != 6 and torch.equal(labels == slot, visible[n])
        several += len(kept) > 1
        detections = record.detections
        assert detections.mask_frame == "box" and detections.exclusive
        torch.testing.assert_close(detections.boxes, one.boxes[kept])
        (tracks,) = EncodeMasks()([record])
        masks = decode_masks(tracks.masks, *ORIGINAL)
        assert masks.sum(2).max() <= 1
        alone = EncodeMasks()([FrameDetections(record.info, replace(detections, exclusive=False), record.size, PADDED)])
        union = decode_masks(alone[0].masks, *ORIGINAL).max(2)
        np.testing.assert_array_equal(masks.max(2), union)
    assert several > 3


def test_a_network_without_identity_head_remembers_and_leaves_ids_to_the_next_stage():
    network = small_iai_maskrcnn(seed=6, use_id=False)
    records = clip(network, 0, frames=4)
    found = run(stage(network, EASY), records)
    assert all(record.detections.track_ids is None for record in found) and any(len(one.detections) for one in found)
    assert isinstance(found[0].detections, Detections) and found[0].detections.mask_frame == "box"
    assert plain(found[3]) != plain(run(stage(network, EASY), [records[3]])[0])
