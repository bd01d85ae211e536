"""Losses of clips against the specification's sums in float64, number by number; and their weights in the network."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from models.cico import CiCo, ClipOutputs
from models.cico_anchors import TubeAnchors, encode, to_corners
from models.cico_heads import TubeMaps
from models.cico_losses import (
    box_loss,
    cross_entropy_loss,
    focal_loss,
    hard_negative_loss,
    mask_loss,
    quality_losses,
    tracking_loss,
)
from models.cico_targets import ClipTargets, MatchConfig, match
from models.sampling import BACKGROUND, IGNORED
from tests.models.oracles import sigmoid
from tests.models.small_cico import OFFSETS, small_cico, targets_of
from tests.models.test_cico_anchors import plain_diou
from tests.models.test_cico_masks import plain_window
from tests.models.test_cico_targets import random_tubes

CPU = torch.device("cpu")


def near(value: float) -> object:
    return pytest.approx(value, rel=1e-5, abs=1e-7)


# ------------------------------------------------------------------------------------------ classes


LABELS = torch.tensor([-1, 2, -1, 0, -1, -1, -1, -1, -1, -1, -1])


def test_focal():
    logits = torch.randn(11, 3)
    total = 0.0
    for row, label in zip(logits.tolist(), LABELS.tolist(), strict=True):
        for k, z in enumerate(row):
            p = sigmoid(z)
            total -= 0.25 * (1 - p) ** 2 * math.log(p) if k == label else 0.75 * p**2 * math.log(1 - p)
    assert focal_loss(logits, LABELS).item() == near(total / 2)


def entropies(logits: Tensor, labels: Tensor) -> list[float]:
    out = []
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        out.append(math.log(sum(math.exp(z) for z in row)) - row[label + 1])
    return out


def test_hard_negatives():
    logits = torch.randn(11, 4)
    all_of_them = entropies(logits, LABELS)
    negatives = sorted((i for i in range(11) if LABELS[i] < 0), key=lambda i: logits[i].softmax(0)[0].item())
    chosen = [1, 3, *negatives[:6]]
    assert hard_negative_loss(logits, LABELS).item() == near(sum(all_of_them[i] for i in chosen) / 8)


def test_fewer_negatives_than_three_for_each_positive():
    logits, labels = torch.randn(3, 4), torch.tensor([0, 1, -1])
    assert hard_negative_loss(logits, labels).item() == near(sum(entropies(logits, labels)) / 3)


def test_plain_cross_entropy():
    logits = torch.randn(11, 4)
    assert cross_entropy_loss(logits, LABELS).item() == near(sum(entropies(logits, LABELS)) / 11)


# ------------------------------------------------------------------------------------------ boxes


def test_smooth_l1():
    deltas, truth = torch.randn(4, 3, 4) * 2, torch.randn(4, 3, 4)
    total = 0.0
    for d in (deltas - truth).double().flatten().tolist():
        total += 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5
    assert box_loss(deltas, truth, 12).item() == near(total / 12)


def test_quality():
    logits = torch.randn(3)
    overlaps = torch.tensor([[0.9, 0.5], [-0.4, -0.2], [1.0, 1.0]])
    distance, entropy = quality_losses(logits, overlaps)
    assert distance.item() == near(sum(1 - m for m in (0.7, -0.3, 1.0)) / 3)
    expected = 0.0
    for z, target in zip(logits.tolist(), (0.7, 0.0, 1.0), strict=True):
        expected -= target * math.log(sigmoid(z)) + (1 - target) * math.log(1 - sigmoid(z))
    assert entropy.item() == near(expected / 3)


def test_what_centerness_learns_teaches_no_box():
    overlaps = torch.full((2, 3), 0.5, requires_grad=True)
    logits = torch.zeros(2, requires_grad=True)
    quality_losses(logits, overlaps)[1].backward()
    assert overlaps.grad is None and logits.grad is not None


# ------------------------------------------------------------------------------------------ masks


def test_masks():
    p, frames, h, w = 3, 3, 6, 8
    masks, truth = torch.rand(p, frames, h, w), (torch.rand(p, frames, h, w) < 0.5).float()
    truth[1, 2] = 0                                                     # absent there, and counts
    unions = torch.tensor([[0.1, 0.1, 0.8, 0.9], [0.5, 0.5, 0.51, 0.9], [0.0, 0.0, 1.0, 1.0]])
    slots = torch.tensor([0, 2, 1])
    areas = [math.floor(0.7 * 8) * math.floor(0.8 * 6), 1 * math.floor(0.4 * 6), 48]
    total = 0.0
    for i in range(p):
        weights = [0.9 ** abs(t - int(slots[i])) for t in range(frames)]
        parts = []
        for t in range(frames):
            cells = zip(masks[i, t].double().flatten().tolist(), truth[i, t].flatten().tolist(), strict=True)
            parts.append(sum(-math.log(m if g else 1 - m) for m, g in cells) / areas[i])
        total += sum(a * b for a, b in zip(weights, parts, strict=True)) / sum(weights)
    assert mask_loss(masks, truth, unions, slots).item() == near(total / p)


def test_perfect_masks_cost_nothing_and_what_is_cut_off_has_no_gradient():
    truth = torch.zeros(1, 1, 2, 2)
    truth[0, 0, 0, 0] = 1
    masks = truth.clone().requires_grad_()
    loss = mask_loss(masks, truth, torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([0]))
    loss.backward()
    assert loss == 0 and masks.grad.isfinite().all()


def test_gradient_of_masks():
    masks = (torch.rand(2, 2, 1, 2, dtype=torch.float64) * 0.8 + 0.1).requires_grad_()
    truth, unions = (torch.rand(2, 2, 1, 2) < 0.5).double(), torch.tensor([[0, 0, 1, 1.0], [0, 0, 0.5, 0.5]]).double()
    slots = torch.tensor([0, 1])
    assert torch.autograd.gradcheck(lambda m: mask_loss(m, truth, unions, slots), (masks,))


# ------------------------------------------------------------------------------------------ tracking


def test_tracking():
    embeddings = torch.nn.functional.normalize(torch.randn(5, 4), dim=1)
    objects = [0, 1, 0, 2, 1]
    total = 0.0
    for i in range(5):
        for j in range(5):
            s = (sum(a * b for a, b in zip(embeddings[i].tolist(), embeddings[j].tolist(), strict=True)) + 1) / 2
            total -= math.log(max(s if objects[i] == objects[j] else 1 - s, 1e-10))
    assert tracking_loss(embeddings, torch.tensor(objects)).item() == near(total / 25)


def test_embeddings_that_are_equal_and_should_be():
    one = torch.tensor([[1.0, 0], [1, 0]])
    assert tracking_loss(one, torch.tensor([4, 4])) == 0
    assert tracking_loss(one, torch.tensor([4, 5])).item() == near(-math.log(1e-10) / 2)


# ------------------------------------------------------------------------------------------ in the network

ANCHORS = TubeAnchors.of([(8, 12), (4, 6), (2, 3)], CPU)


def outputs(network: CiCo, clips: int, frames: int = 3, seed: int = 0) -> ClipOutputs:
    """Random numbers as the heads of `network` could say them."""
    generator = torch.Generator().manual_seed(seed)
    config, lead = network.config, (clips, frames, len(ANCHORS.boxes))

    def random(*shape: int) -> Tensor:
        return torch.randn(*lead, *shape, generator=generator, requires_grad=True)

    tubes = TubeMaps(random(frames, 4), random(), random(config.num_classes + config.background),
                     torch.nn.functional.normalize(random(config.embedding_dim), dim=-1),
                     random(config.masks.num_parameters).tanh())
    prototypes = torch.rand(clips, 16, 24, frames, config.masks.prototypes, generator=generator)
    return ClipOutputs(tubes, prototypes, ANCHORS)


def plain_losses(network: CiCo, out: ClipOutputs, targets: list[ClipTargets]) -> dict[str, float]:
    """3.2 over every positive of the batch, one by one."""
    config, frames = network.config, out.tubes.deltas.shape[1]
    owners = [match(t, ANCHORS, config.match) for t in targets]
    positives = [(b, s, a, int(owners[b][s, a])) for b in range(len(targets))
                 for s, a in (owners[b] >= 0).nonzero().tolist()]
    n = len(positives)
    box = distance = entropy = 0.0
    mask, tracking = [[] for _ in targets], [[] for _ in targets]
    for b, s, a, j in positives:
        truth, anchor = targets[b].boxes[j].double(), ANCHORS.boxes[a].double()
        said = out.tubes.deltas[b, s, a].detach().double()
        for d in (said - encode(truth, anchor)).flatten().tolist():
            box += 0.5 * d * d if abs(d) < 1 else abs(d) - 0.5
        sides = anchor[2:] * (said[:, 2:] * 0.2).exp()
        center = anchor[:2] + said[:, :2] * 0.1 * anchor[2:]
        boxes = to_corners(torch.cat([center, sides], dim=1))
        mean = sum(plain_diou(x, y) for x, y in zip(boxes.tolist(), truth.tolist(), strict=True)) / frames
        distance += 1 - mean
        p, mean = sigmoid(out.tubes.centerness[b, s, a].item()), min(max(mean, 0), 1)
        entropy -= mean * math.log(p) + (1 - mean) * math.log(1 - p)
        mask[b].append(plain_mask(network, out, targets[b], (b, s, a, j)))
        tracking[b].append((out.tubes.embeddings[b, s, a].detach().double(), j))
    pairs = [sum(-math.log(max((e @ f + 1) / 2 if i == j else 1 - (e @ f + 1) / 2, 1e-10)) for e, i in clip
                 for f, j in clip) / max(len(clip), 1) ** 2 for clip in tracking]
    return {
        "box": box / (n * frames),
        "diou": distance / n,
        "centerness": entropy / n,
        "mask": 6.125 * min(frames, 5) * sum(sum(m) / max(len(m), 1) for m in mask) / len(targets),
        "tracking": 5 * sum(pairs) / len(targets),
    }


def plain_mask(network: CiCo, out: ClipOutputs, truth: ClipTargets, at: tuple[int, int, int, int]) -> float:
    b, s, a, j = at
    union = truth.unions[j : j + 1]
    theta, level = out.tubes.parameters[b, s, a][None].detach(), ANCHORS.levels[a : a + 1]
    whole = network.paint(out.prototypes[b], theta, union, level, None)[0].double()     # checked in test_cico_masks.py
    h, w = whole.shape[1:]
    x1, y1, x2, y2 = (union[0] * torch.tensor([w, h, w, h])).tolist()
    area = max(math.floor(x2 - x1), 1) * max(math.floor(y2 - y1), 1)
    total = weights = 0.0
    left, top, right, bottom = scaled_window(union[0].tolist(), h, w)
    for t in range(len(whole)):
        cut = torch.zeros_like(whole[t])
        cut[max(top, 0) : bottom, max(left, 0) : right] = whole[t, max(top, 0) : bottom, max(left, 0) : right]
        g = truth.masks[j, t].double()
        cells = -(g * cut.log().clamp(min=-100) + (1 - g) * (1 - cut).log().clamp(min=-100)).sum().item()
        total, weights = total + 0.9 ** abs(t - s) * cells / area, weights + 0.9 ** abs(t - s)
    return total / weights


def scaled_window(box: list[float], height: int, width: int) -> tuple[int, int, int, int]:
    edges = []
    for low, high, cells in ((box[0], box[2], width), (box[1], box[3], height)):
        center, side = (low + high) / 2, max((high - low) * 1.5, 0.1)
        low, high = max(center - side / 2, 0), min(center + side / 2, 1)
        edges.append((math.floor(low * cells) - 1, math.floor(high * cells) + 1))
    return edges[0][0], edges[1][0], edges[0][1], edges[1][1]


def truths(frames: int = 3) -> list[ClipTargets]:
    first, second = random_tubes(4, frames, 1), random_tubes(2, frames, 2)
    nobody = ClipTargets(torch.zeros(0, frames, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, frames, 16, 24))
    return [targets_of(first, [0, 1, 2, 0]), nobody, targets_of(second, [2, 1], seed=3)]


@pytest.mark.parametrize("changes", [
    pytest.param({}, id="yolact"), pytest.param({"masks": OFFSETS}, id="condinst"),
    pytest.param({"cls_loss": "ohem", "match": MatchConfig(box="current", gain="all")}, id="as released for OVIS"),
])  # fmt: skip
def test_the_networks_losses_are_their_plain_sums(changes):
    network = small_cico(**changes)
    targets = truths()
    out = outputs(network, 3)
    found = network.losses(out, targets)
    for name, value in plain_losses(network, out, targets).items():
        assert found[name].item() == pytest.approx(value, rel=2e-5), name


@pytest.mark.parametrize("kind", ["focal", "ohem", "ce"])
def test_the_class_loss_is_over_all_that_is_not_neutral(kind):
    network, targets = small_cico(cls_loss=kind), truths()
    out = outputs(network, 3)
    owners = torch.stack([match(t, ANCHORS, network.config.match) for t in targets])
    labels = owners.clone()
    for b, t in enumerate(targets):
        for s, a in (owners[b] >= 0).nonzero().tolist():
            labels[b, s, a] = t.labels[owners[b, s, a]]
    taken = owners != IGNORED
    assert (owners[1] == IGNORED).all() and (owners == BACKGROUND).any()
    loss = {"focal": focal_loss, "ohem": hard_negative_loss, "ce": cross_entropy_loss}[kind]
    expected = 5 * loss(out.tubes.class_logits[taken], labels[taken])
    assert network.losses(out, targets)["class"].item() == near(expected.item())


def test_perfect_predictions():
    """Acceptance check 9: no box, mask or same-id tracking loss. One prototype shows the object, another the rest."""
    network, targets = small_cico(), [targets_of(random_tubes(1, 3, 1), [1])]
    out = outputs(network, 1)
    x1, y1, x2, y2 = (targets[0].unions[0] * torch.tensor([24, 16, 24, 16])).round().int().tolist()
    targets[0].masks[0] = 0
    targets[0].masks[0, :2, y1:y2, x1:x2] = 1                            # in the third frame it is not seen
    shown = targets[0].masks[0].permute(1, 2, 0)                         # (16, 24, T)
    prototypes = 200 * torch.stack([shown, 1 - shown, shown * 0, shown * 0], dim=3)[None]
    parameters = torch.zeros_like(out.tubes.parameters)
    parameters[..., 0], parameters[..., 1] = 1, -1
    out = replace(out, prototypes=prototypes, tubes=replace(out.tubes, parameters=parameters))
    deltas = encode(targets[0].boxes[0], ANCHORS.boxes[:, None])[None, None].expand(1, 3, -1, -1, -1)
    same = torch.zeros_like(out.tubes.embeddings)
    same[..., 0] = 1
    found = network.losses(replace(out, tubes=replace(out.tubes, deltas=deltas, embeddings=same)), targets)
    assert found["box"].item() == pytest.approx(0, abs=1e-5) and found["diou"].item() == pytest.approx(0, abs=1e-5)
    assert found["tracking"] == 0 and found["mask"].item() == 0 and shown.sum() > 4
    wrong = network.losses(replace(out, prototypes=prototypes[..., [1, 0, 2, 3]]), targets)["mask"]
    assert wrong > 1000, "each pixel counts up to the clamp"


def test_how_anchors_are_matched_does_not_change_what_boxes_learn():
    """Acceptance check 8: of tubes that are positive either way, the targets are the same."""
    targets = [targets_of(random_tubes(3, 3, 1), [0, 1, 2])]
    seen = []
    for box in ("current", "union3", "union3_unguarded"):
        network = small_cico(match=MatchConfig(box=box))
        found = network.positives(outputs(network, 1), targets)
        boxes = found.true(targets, "boxes")
        rows = zip(found.slot.tolist(), found.anchor.tolist(), found.instance.tolist(), boxes.tolist(), strict=True)
        seen.append({(s, a, j): b for s, a, j, b in rows})
    assert len({frozenset(s) for s in seen}) > 1, "the matching differs"
    for key in set(seen[0]) & set(seen[1]) & set(seen[2]):
        assert seen[0][key] == seen[1][key] == seen[2][key] == targets[0].boxes[key[2]].tolist()


@pytest.mark.parametrize("field", ["deltas", "class_logits", "parameters", "centerness", "embeddings"])
def test_what_is_not_finite_takes_no_part(field):
    network, targets = small_cico(), [targets_of(random_tubes(2, 3, 1), [0, 1])]
    out = outputs(network, 1)
    before = network.positives(out, targets)
    value = getattr(out.tubes, field).detach().clone()
    slot, anchor = int(before.slot[0]), int(before.anchor[0])
    value[0, slot, anchor] = torch.nan
    out = replace(out, tubes=replace(out.tubes, **{field: value}))
    after = network.positives(out, targets)
    assert len(after) == len(before) - 1 and after.owner[0, slot, anchor] == IGNORED
    assert all(loss.isfinite() for loss in network.losses(out, targets).values())


def test_the_box_loss_over_all_samples():
    targets = [targets_of(random_tubes(2, 3, 1), [0, 1])]
    by_positives, by_samples = small_cico(), small_cico(average_boxes=False)
    out = outputs(by_positives, 1)
    found = by_positives.positives(out, targets)
    ratio = len(found) / int((found.owner != IGNORED).sum())
    expected = by_positives.losses(out, targets)["box"].item() * ratio
    assert by_samples.losses(out, targets)["box"].item() == near(expected)


def test_window_of_the_plain_form_is_that_of_masks():
    """Two spellings of one rule, so that neither drifts."""
    from models.cico_masks import Window

    for box in random_tubes(6, 1, 4)[:, 0].tolist():
        assert scaled_window(box, 8, 12) == plain_window(box, Window(1.5))
