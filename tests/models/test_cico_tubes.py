"""Selection and suppression of tubes, against the specification's steps in loops over pairs, frames and classes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.cico import CiCo, ClipOutputs
from models.cico_anchors import TubeAnchors, decode, union_box
from models.cico_tubes import Overlaps, TubeConfig, Tubes, find_tubes, mask_iou, overlaps, suppress
from tests.models.small_cico import GAUSS, YOLACT, small_cico
from tests.models.test_cico_anchors import plain_iou
from tests.models.test_cico_losses import outputs

ANCHORS = TubeAnchors.of([(8, 12), (4, 6), (2, 3)], torch.device("cpu"))


def crowd(network: CiCo, clips: int = 1, frames: int = 3, seed: int = 0, strong: int = 40) -> ClipOutputs:
    """`strong` tubes a clip that say something, on a few neighbouring anchors; all others are background."""
    generator = torch.Generator().manual_seed(seed)
    out = outputs(network, clips, frames, seed)
    tubes = out.tubes
    logits = torch.full_like(tubes.class_logits, -6).detach()
    logits[..., : network.config.background] = 6
    for clip in range(clips):
        for _ in range(strong):
            slot = int(torch.randint(frames, (), generator=generator))
            anchor = int(torch.randint(116, 126, (), generator=generator)) * 3
            logits[clip, slot, anchor] = torch.randn(logits.shape[-1], generator=generator) * 2
    deltas = tubes.deltas.detach() * 0.7
    centerness = tubes.centerness.detach() + 2
    return replace(out, tubes=replace(tubes, class_logits=logits, deltas=deltas, centerness=centerness))


# ------------------------------------------------------------------------------------------ the plain form


def plain_union(boxes: list[list[float]]) -> list[float]:
    return [min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes)]


def plain_selection(network: CiCo, out: ClipOutputs, clip: int, cfg: TubeConfig) -> list[dict]:
    """4.2: every tube as a dict of numbers, in falling rank."""
    tubes, found = out.tubes, []
    slots, count = tubes.centerness.shape[1:]
    for s in range(slots):
        for a in range(count):
            p = network.class_probabilities(tubes.class_logits[clip, s, a]).tolist()
            if max(p) > cfg.min_score:
                boxes = decode(tubes.deltas[clip, s, a], out.anchors.boxes[a]).tolist()
                found.append({"slot": s, "anchor": a, "p": p, "boxes": boxes, "union": plain_union(boxes),
                              "quality": float(tubes.centerness[clip, s, a].sigmoid())})
    found = sorted(found, key=lambda one: -max(one["p"]))[: min(100 * slots, cfg.most)]
    found.sort(key=lambda one: -max(one["p"]) * one["quality"])
    kept = []
    for i, one in enumerate(found):
        same = [sum(plain_iou(a, b) for a, b in zip(one["boxes"], other["boxes"], strict=True)) / slots / 2
                + plain_iou(one["union"], other["union"]) / 2 for other in found[:i]]
        inside = sum(0 < (b[0] + b[2]) / 2 < 1 and 0 < (b[1] + b[3]) / 2 < 1 for b in one["boxes"])
        if not any(v > cfg.max_same for v in same) and inside >= max(slots // 2, 1):
            kept.append(one)
    return [one for one in kept if plain_visible(network, out, clip, one)]


def plain_visible(network: CiCo, out: ClipOutputs, clip: int, one: dict) -> bool:
    """Paints the tube by itself; how is checked in test_cico_masks.py."""
    theta = out.tubes.parameters[clip, one["slot"], one["anchor"]][None]
    level = out.anchors.levels[one["anchor"]][None]
    union = torch.tensor([one["union"]])
    one["mask"] = network.paint(out.prototypes[clip], theta, union, level, network.test_window())[0]
    h, w = one["mask"].shape[1:]
    cells = (one["mask"] > 0.5).sum((1, 2)).tolist()
    shares = [c / ((b[2] - b[0]) * (b[3] - b[1]) * h * w) for c, b in zip(cells, one["boxes"], strict=True)]
    return max(cells) > 5 and max(shares) > 0.1


def plain_pair(a: dict, b: dict) -> tuple[float, float, float]:
    """4.3: b, u, m of one pair."""
    boxes, masks = [], []
    for box, other, mask, other_mask in zip(a["boxes"], b["boxes"], a["mask"] > 0.5, b["mask"] > 0.5, strict=True):
        if mask.sum() > 5 and other_mask.sum() > 5:
            boxes.append(plain_iou(box, other))
            masks.append(int((mask & other_mask).sum()) / int((mask | other_mask).sum()))
    mean = sum(masks) / len(masks) if masks else 0
    return sum(boxes) / len(boxes) if boxes else 0, plain_iou(a["union"], b["union"]), 1 if any(
        m > 0.9 for m in masks) else mean  # fmt: skip


def plain_nms(found: list[dict], cfg: TubeConfig) -> list[tuple[float, int, int]]:
    """(score, class, place in the list) of the survivors."""
    pairs = [[plain_pair(a, b) for b in found] for a in found]
    out = []
    for k in range(len(found[0]["p"]) if found else 0):
        order = sorted(range(len(found)), key=lambda i: -found[i]["p"][k] * found[i]["quality"])
        for j, worse in enumerate(order):
            gone = False
            for better in order[:j]:
                b, u, m = pairs[better][worse]
                if cfg.nms_union == "rows_only":
                    u = pairs[better][j][1]
                gone |= 0.5 * (0.5 * b + 0.5 * u) + 0.5 * m > cfg.max_overlap
            if not gone and found[worse]["p"][k] * found[worse]["quality"] > cfg.min_score:
                out.append((found[worse]["p"][k], k, worse))
    return sorted(out, key=lambda one: -one[0])


@pytest.mark.parametrize("changes, cfg", [
    pytest.param({}, TubeConfig(), id="yolact"),
    pytest.param({"masks": GAUSS, "crop_test": 1.5}, TubeConfig(nms_union="rows_only"), id="condinst, as released"),
    pytest.param({"cls_loss": "ohem"}, TubeConfig(nms_union="rows_only", max_overlap=0.3), id="with background"),
    pytest.param({}, TubeConfig(most=9, max_same=0.5), id="few"),
])  # fmt: skip
@torch.no_grad()
def test_tubes_are_those_of_the_plain_form(changes, cfg):
    for seed in range(2):
        network = small_cico(**changes)
        out = crowd(network, 2, seed=seed)
        for clip in range(2):
            found = find_tubes(network, out, clip, cfg)
            listed = plain_selection(network, out, clip, cfg)
            expected = plain_nms(listed, cfg)
            assert found.labels.tolist() == [k for _, k, _ in expected]
            assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)
            rows = [listed[place] for _, _, place in expected]
            assert torch.allclose(found.boxes, torch.tensor([row["boxes"] for row in rows]), atol=1e-6)
            assert torch.allclose(found.masks, torch.stack([row["mask"] for row in rows]), atol=1e-6)
            places = [(row["slot"], row["anchor"]) for row in rows]
            for name in ("embeddings", "parameters"):
                said = torch.stack([getattr(out.tubes, name)[clip, s, a] for s, a in places])
                assert torch.equal(getattr(found, name), said)
            assert found.levels.tolist() == [int(out.anchors.levels[a]) for _, a in places]


@torch.no_grad()
def test_the_cases_above_are_not_empty_ones():
    network = small_cico()
    out = crowd(network)
    listed = plain_selection(network, out, 0, TubeConfig())
    aligned, rows_only = (plain_nms(listed, TubeConfig(nms_union=n)) for n in ("aligned", "rows_only"))
    assert len(listed) > 10 and 3 < len(aligned) < 3 * len(listed)
    assert len({place for _, _, place in aligned}) < len(aligned), "one tube stays in several classes"
    assert aligned != rows_only


# ------------------------------------------------------------------------------------------ single cases


@torch.no_grad()
def test_nothing_above_the_threshold():
    network = small_cico()
    found = find_tubes(network, crowd(network, strong=0), 0, TubeConfig())
    assert len(found) == 0 and found.masks.shape == (0, 3, 16, 24) and found.boxes.shape == (0, 3, 4)


@torch.no_grad()
def test_boxes_that_are_not_finite_are_no_tubes():
    network = small_cico()
    out = crowd(network)
    deltas = out.tubes.deltas.clone()
    deltas[..., 2] = 1e4
    assert len(find_tubes(network, replace(out, tubes=replace(out.tubes, deltas=deltas)), 0, TubeConfig())) == 0


@torch.no_grad()
def test_without_quality_tubes_are_ranked_by_class_alone():
    network = small_cico(quality=False)
    out = crowd(network)
    blind = replace(out, tubes=replace(out.tubes, centerness=out.tubes.centerness - 30))
    found, again = (find_tubes(network, one, 0, TubeConfig()) for one in (out, blind))
    assert len(found) and torch.equal(found.scores, again.scores)


def pairs(of_boxes: list[list[float]], of_unions: list[list[float]] | None = None) -> Overlaps:
    boxes = torch.tensor(of_boxes)
    return Overlaps(boxes, torch.tensor(of_unions) if of_unions else boxes, boxes)


@pytest.mark.parametrize("nms_union, survivors", [("aligned", [0, 2]), ("rows_only", [0, 2])])
def test_what_was_suppressed_suppresses_all_the_same(nms_union, survivors):
    """0 removes 1, and 1 removes 2 though it is gone."""
    chain = pairs([[1, 0.9, 0.0], [0.9, 1, 0.9], [0.0, 0.9, 1]])
    rows, labels = suppress(torch.tensor([[0.9], [0.8], [0.7]]), chain, TubeConfig(nms_union=nms_union))
    assert rows.tolist() == [0] and labels.tolist() == [0]
    parted = pairs([[1, 0.9, 0.0], [0.9, 1, 0.1], [0.0, 0.1, 1]])
    rows, _ = suppress(torch.tensor([[0.9], [0.8], [0.7]]), parted, TubeConfig(nms_union=nms_union))
    assert rows.tolist() == survivors


def test_unions_read_in_rows_alone():
    """Class order 1, 0, 2 is not the list's: tube 0, at rank 1, is tested with u[1, 1] = 1 instead of u[1, 0]."""
    tables = pairs([[1, 0.3, 0], [0.3, 1, 0], [0, 0, 1]], [[1, 0.2, 0], [0.2, 1, 0], [0, 0, 1]])
    scores = torch.tensor([[0.8], [0.9], [0.7]])
    assert suppress(scores, tables, TubeConfig(max_overlap=0.45))[0].tolist() == [1, 0, 2]
    assert suppress(scores, tables, TubeConfig(max_overlap=0.45, nms_union="rows_only"))[0].tolist() == [1, 2]
    ordered = torch.tensor([[0.9], [0.8], [0.7]])
    both = [suppress(ordered, tables, TubeConfig(max_overlap=0.45, nms_union=n))[0] for n in ("aligned", "rows_only")]
    assert torch.equal(*both), "with the list's own order the two agree"


def test_one_frame_of_nearly_equal_masks_makes_them_equal():
    masks = torch.zeros(2, 2, 6, 6, dtype=torch.bool)
    masks[:, 0] = True
    masks[0, 1, :3], masks[1, 1, 3:] = True, True
    boxes = torch.tensor([[[0.0, 0, 1, 1]] * 2] * 2)
    assert overlaps(boxes, masks).masks[0, 1] == 1
    masks[0, 0, :2] = False
    assert overlaps(boxes, masks).masks[0, 1].item() == pytest.approx((24 / 36 + 0) / 2)
    masks[0, 1, :, 1:] = False                                          # three cells: the frame no longer counts
    assert overlaps(boxes, masks).masks[0, 1].item() == pytest.approx(24 / 36)


def test_masks_frame_by_frame():
    a, b = torch.rand(3, 2, 4, 5) < 0.5, torch.rand(2, 2, 4, 5) < 0.5
    a[0, 0], b[0, 0] = False, False
    found = mask_iou(a, b)
    assert found[0, 0, 0] == 0, "0 / 0"
    for i in range(3):
        for j in range(2):
            for t in range(2):
                union = int((a[i, t] | b[j, t]).sum())
                assert found[i, j, t].item() == pytest.approx(int((a[i, t] & b[j, t]).sum()) / max(union, 1))


def test_records_index_all_their_fields_and_refuse_odd_lengths():
    one: dict[str, Tensor] = {
        "boxes": torch.rand(2, 3, 4), "masks": torch.rand(2, 3, 4, 4), "labels": torch.arange(2),
        "scores": torch.rand(2), "embeddings": torch.rand(2, 4), "parameters": torch.rand(2, YOLACT.num_parameters),
        "levels": torch.arange(2),
    }  # fmt: skip
    tubes = Tubes(**one)
    assert torch.equal(tubes.unions, union_box(one["boxes"]))
    assert len(tubes[torch.tensor([1])]) == 1 and tubes[1:].labels.tolist() == [1]
    with pytest.raises(ValueError, match="Tubes.scores has 3 rows, boxes have 2"):
        replace(tubes, scores=torch.rand(3))


@pytest.mark.parametrize("change", [{"min_score": 1.5}, {"max_overlap": -0.1}, {"most": 0}])
def test_settings_that_are_wrong(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        TubeConfig(**change)
