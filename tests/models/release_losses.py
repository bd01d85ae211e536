"""Oracle of CrossVIS's training step: targets by loops, every loss from its formula, in float64.

In:     the released state (its running statistics move), and two slots of images and targets
Out:    losses of one device; the crossover only where each painted instance has one positive, so that nothing is drawn
Source: crossvis.md 3.1-3.6
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tests.models import release_oracle as oracle

RANGES = {3: (-1.0, 64.0), 4: (64.0, 128.0), 5: (128.0, 256.0), 6: (256.0, 512.0), 7: (512.0, math.inf)}


class Truth(NamedTuple):
    """One image: boxes (G, 4), classes (G,) from 0, identities (G,) from 0, masks (G, H, W) bool at the padded size."""

    boxes: Tensor
    classes: Tensor
    identities: Tensor
    masks: Tensor


class Positive(NamedTuple):
    """A location that answers for an instance: where it is, and what it should say."""

    level: int
    image: int
    row: int
    column: int
    instance: int
    x: float
    y: float
    sides: tuple[float, float, float, float]
    center: float


def positives(truths: list[Truth], sizes: list[tuple[int, int]]) -> list[Positive]:
    """3.2 for a slot, in order of level, image, location; `sizes` are (h, w) of P3 to P7."""
    found = []
    for level, (h, w) in zip(oracle.LEVELS, sizes, strict=True):
        for image, truth in enumerate(truths):
            for row in range(h):
                for column in range(w):
                    one = _assign(truth, level, image, row, column)
                    if one is not None:
                        found.append(one)
    return found


def _assign(truth: Truth, level: int, image: int, row: int, column: int) -> Positive | None:
    stride = 2 ** level
    x, y = stride * column + stride / 2, stride * row + stride / 2
    best, smallest = None, math.inf
    for g in range(len(truth.boxes)):
        x1, y1, x2, y2 = truth.boxes[g].double().tolist()
        rows, columns = truth.masks[g].nonzero(as_tuple=True)
        cx, cy = float(columns.double().mean()), float(rows.double().mean())
        inside = (max(cx - 1.5 * stride, x1) < x < min(cx + 1.5 * stride, x2)
                  and max(cy - 1.5 * stride, y1) < y < min(cy + 1.5 * stride, y2))
        sides = (x - x1, y - y1, x2 - x, y2 - y)
        low, high = RANGES[level]
        area = (x2 - x1) * (y2 - y1)
        if inside and low <= max(sides) <= high and area < smallest:
            left, top, right, bottom = sides
            center = math.sqrt(min(left, right) / max(left, right) * min(top, bottom) / max(top, bottom))
            unit = (left / stride, top / stride, right / stride, bottom / stride)
            best, smallest = Positive(level, image, row, column, g, x, y, unit, center), area
    return best


def focal(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over everything: -a_t (1 - p_t)^2 ln p_t."""
    p = logits.sigmoid()
    p_t = torch.where(targets > 0, p, 1 - p)
    log_p_t = torch.where(targets > 0, -torch.log1p((-logits).exp()), -torch.log1p(logits.exp()))
    return -(torch.where(targets > 0, 0.25, 0.75) * (1 - p_t) ** 2 * log_p_t).sum()


def dice(logits: Tensor, truth: Tensor) -> Tensor:
    m, t = logits.sigmoid(), truth.double()
    return 1 - 2 * (m * t).sum() / ((m * m).sum() + (t * t).sum() + 1e-5)


def giou(sides: Tensor, truth: Tensor) -> Tensor:
    left, top, right, bottom = zip(sides, truth, strict=True)
    inter = (min(left) + min(right)) * (min(top) + min(bottom))
    hull = (max(left) + max(right)) * (max(top) + max(bottom))
    union = sum((s[0] + s[2]) * (s[1] + s[3]) for s in (sides, truth)) - inter
    return (inter + 1) / (union + 1) - (hull - union) / hull


class Slot:
    """The maps of one slot, and its positives."""

    def __init__(self, state: oracle.State, images: Tensor, truths: list[Truth]) -> None:
        pyramid = [0.1 * level + 0.9 * level.detach() for level in oracle.features(state, images.double())]
        self.truths = truths
        self.masks = oracle.mask_features(state, pyramid, train=True)
        self.dense = oracle.heads(state, pyramid, train=True)
        self.positives = positives(truths, [tuple(level.shape[-2:]) for level in pyramid])

    def at(self, name: str, place: Positive) -> Tensor:
        """The numbers that the dense output `name` has at a positive."""
        return self.dense[place.level - 3][name][place.image, :, place.row, place.column]

    def paint(self, theta: Tensor, place: Positive) -> Tensor:
        """Dice loss of `theta` on the image, point and level of `place`, against the instance's sampled mask."""
        logits = oracle.mask_logits(self.masks[place.image], theta, place.x, place.y, place.level)
        return dice(logits, self.truths[place.image].masks[place.instance][2::4, 2::4])

    def losses(self) -> dict[str, Tensor]:
        """3.3: class, box, centerness, mask. One device, so its own counts normalise."""
        number = max(len(self.positives), 1)
        total_class = torch.zeros((), dtype=torch.float64)
        for level, out in zip(oracle.LEVELS, self.dense, strict=True):
            targets = torch.zeros_like(out["classes"])
            for p in self.positives:
                if p.level == level:
                    targets[p.image, self.truths[p.image].classes[p.instance], p.row, p.column] = 1
            total_class = total_class + focal(out["classes"], targets)
        box = center = mask = torch.zeros((), dtype=torch.float64)
        for p in self.positives:
            box = box + p.center * (1 - giou(self.at("boxes", p), torch.tensor(p.sides, dtype=torch.float64)))
            logit = self.at("centers", p)[0]
            center = center + p.center * torch.log1p((-logit).exp()) + (1 - p.center) * torch.log1p(logit.exp())
            mask = mask + self.paint(self.at("filters", p), p)
        return {"class": total_class / number, "box": box / max(sum(p.center for p in self.positives), 1e-6),
                "centerness": center / number, "mask": mask / number}


def crossover(source: Slot, target: Slot) -> Tensor:
    """3.4, one direction: filters of `source` paint `target`."""
    terms = []
    for p in source.positives:
        identity = source.truths[p.image].identities[p.instance]
        there = [q for q in target.positives
                 if q.image == p.image and target.truths[q.image].identities[q.instance] == identity]
        assert len(there) <= 1, "the oracle draws nothing: give every painted instance one positive"
        terms += [target.paint(source.at("filters", p), q) for q in there]
    return sum(terms) / len(terms) if terms else torch.zeros((), dtype=torch.float64)


def identity(state: oracle.State, slots: list[Slot]) -> Tensor:
    """3.5 over the positives of both slots."""
    weight, bias = state["cls.weight"], state["cls.bias"]
    scale = math.sqrt(2) * math.log(len(weight) - 1)
    total, number = torch.zeros((), dtype=torch.float64), 0
    for slot in slots:
        for p in slot.positives:
            e = slot.at("embeddings", p)
            target = torch.zeros(len(weight), dtype=torch.float64)
            target[slot.truths[p.image].identities[p.instance]] = 1
            total, number = total + focal(scale * weight @ (e / e.norm()) + bias, target), number + 1
    return total / max(number, 1)


def train_step(state: oracle.State, images: list[Tensor], truths: list[list[Truth]],
               crossed: bool = True) -> dict[str, Tensor]:
    """The losses of 3.6, each with its weight in the total, whose sum is `total`; `state`'s running averages move."""
    slots = [Slot(state, *slot) for slot in zip(images, truths, strict=True)]
    parts = [slot.losses() for slot in slots]
    losses = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
    if crossed:
        losses["crossover"] = (crossover(slots[0], slots[1]) + crossover(slots[1], slots[0])) / 2
    losses["identity"] = identity(state, slots)
    return losses | {"total": sum(losses.values())}
