"""TLTM's inference, frame by frame, as its specification tells it (2.2 to 2.10, 4.1 to 4.4): a slow composition.

Float64 throughout, loops where something is decided. Of the network it takes the weights, and the pyramid, which
tests/models/ holds against oracles of its own.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from models.tltm import TLTM
from tests.models import tltm_oracle as oracle

STRIDES = (8, 16, 32, 64, 128)


@dataclass
class Rules:
    """Of decoding (2.5) and association (4.3)."""

    min_class: float = 0.05
    max_iou: float = 0.6
    most: int = 50
    a0: float = 0.5
    a1: float = 1.5
    a2: float = 2.5
    a3: float = 10.0
    shown: int = 15


@dataclass
class SlowTLTM:
    """One stream. `frame` is to be called in order; each call gives ids, boxes, scores, labels, mask logits."""

    network: TLTM
    rules: Rules
    previous: list[Tensor] | None = None
    feats: list[np.ndarray] = field(default_factory=list)
    boxes: list[list[float]] = field(default_factory=list)
    classes: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = copy.deepcopy(self.network).double()

    @torch.no_grad()
    def frame(self, image: Tensor, size: tuple[int, int], original: tuple[int, int]) -> list[tuple[Any, ...]]:
        """(3, Hp, Wp), (h, w) before padding, (H, W) of the source -> (id, class, score, box, mask logits) of each."""
        raw = [level[0] for level in self.network.features(image[None].double())]
        before = self.previous or raw
        self.previous = raw
        fused = [self._fuse(i, a, b) for i, (a, b) in enumerate(zip(before, raw, strict=True))]
        found = []
        for score, label, box in self._decoded(fused):
            o = self._region(raw, box, size)
            found.append((score, label, box, self._mask(o, label), self._encoded(o)))
        named = [(id_, *one) for id_, one in zip(self._associated(found), found, strict=True) if id_ >= 0]
        shown = []
        for id_, score, label, box, mask, _ in named:
            placed = self._clipped(box, size, original)
            if placed[2] > placed[0] and placed[3] > placed[1]:
                shown.append((id_, label, score, placed, mask))
        return shown[: self.rules.shown]

    def _fuse(self, level: int, reference: Tensor, current: Tensor) -> Tensor:
        """2.3"""
        if self.network.fuser is None:
            return current
        part = self.network.fuser.levels[level]
        x = torch.cat([reference, current])[None]
        x = F.conv2d(F.conv2d(x, part.conv1.weight, part.conv1.bias, padding=1).relu(), part.conv2.weight,
                     part.conv2.bias, padding=1)                                                          # fmt: skip
        return current + x[0]

    def _tower(self, tower: Any, x: Tensor) -> Tensor:
        for i in range(0, len(tower), 3):
            conv, norm = tower[i], tower[i + 1]
            x = F.conv2d(x, conv.weight, conv.bias, padding=1)
            x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias).relu()
        return x

    def _decoded(self, levels: list[Tensor]) -> list[tuple[float, int, list[float]]]:
        """2.4, 2.5: scores, classes and unclipped boxes, best first."""
        fcos, found = self.network.fcos, []
        for i, (level, stride) in enumerate(zip(levels, STRIDES, strict=True)):
            box_features = self._tower(fcos.box_tower, level[None])
            head = lambda conv, x: F.conv2d(x, conv.weight, conv.bias, padding=1)[0]  # noqa: E731
            classes = head(fcos.class_logits, self._tower(fcos.class_tower, level[None])).sigmoid()
            sides = (head(fcos.distances, box_features) * fcos.scales[i]).relu() * stride
            quality = head(fcos.centerness, box_features).sigmoid()[0]
            for y in range(level.shape[1]):
                for x in range(level.shape[2]):
                    px, py = x * stride + stride // 2, y * stride + stride // 2
                    left, top, right, bottom = sides[:, y, x].tolist()
                    for k, p in enumerate(classes[:, y, x].tolist()):
                        if p > self.rules.min_class:
                            score = math.sqrt(p * float(quality[y, x]))
                            found.append((score, k, [px - left, py - top, px + right, py + bottom]))
        kept: list[tuple[float, int, list[float]]] = []
        for one in sorted(found, key=lambda one: -one[0]):
            if all(one[1] != other[1] or iou(one[2], other[2], 0) <= self.rules.max_iou for other in kept):
                kept.append(one)
        return kept[: self.rules.most]

    def _region(self, raw: list[Tensor], box: list[float], size: tuple[int, int]) -> Tensor:
        """2.6"""
        level = oracle.level(box, size[0] * size[1]) - 3
        return torch.from_numpy(oracle.roi_align(raw[level].numpy(), box, 14, 1 / STRIDES[level]))

    def _mask(self, o: Tensor, label: int) -> np.ndarray:
        """2.7: logits of the class (28, 28)."""
        head, x = self.network.mask_head, o[None]
        for conv in head.convs:
            x = F.conv2d(x, conv.weight, conv.bias, padding=1).relu()
        x = torch.from_numpy(oracle.spatial_attention(x[0].numpy(), head.attention.conv.weight.numpy()))[None]
        x = F.conv_transpose2d(x, head.upsample.weight, head.upsample.bias, stride=2).relu()
        return F.conv2d(x, head.logits.weight, head.logits.bias)[0, label].numpy()

    def _encoded(self, o: Tensor) -> np.ndarray:
        """2.9"""
        net, x = self.network.encoder, o[None]
        x = F.max_pool2d(F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1).relu(), 2)
        x = F.conv2d(x, net.conv2.weight, net.conv2.bias, padding=1).relu()
        x = F.conv2d(x, net.conv3.weight, net.conv3.bias, padding=1).relu()
        return F.linear(x.flatten(1), net.fc.weight, net.fc.bias)[0].numpy()

    def _associated(self, found: list[tuple[Any, ...]]) -> list[int]:
        """4.3, 4.4: an id for each, -1 for those that are discarded; ids are rows of the memory."""
        known = len(self.boxes)
        logits = oracle.graph(self.network.graph, np.array(self.feats).reshape(known, self.network.config.object_dim),
                              np.array([one[4] for one in found]))                                        # fmt: skip
        ids, best, holder = [], [-100.0] * known, [None] * known
        for k, (score, label, box, _, feat) in enumerate(found):
            row = self._values(score, label, box, [oracle.sigmoid(z) for z in logits[:, k]])
            j = max(range(known + 1), key=lambda j: (row[j], -j))
            if j == 0:
                ids.append(len(self.boxes))
                self.feats.append(feat)
                self.boxes.append(box)
                self.classes.append(label)
            elif row[j] > best[j - 1]:
                if holder[j - 1] is not None:
                    ids[holder[j - 1]] = -1
                best[j - 1], holder[j - 1] = row[j], k
                ids.append(j - 1)
            else:
                ids.append(-1)
        for j, k in enumerate(holder):      # only now, so that all rows were compared with the memory as it was
            if k is not None:
                self.feats[j], self.boxes[j] = found[k][4], found[k][2]
        return ids

    def _values(self, score: float, label: int, box: list[float], s: list[float]) -> list[float]:
        """4.3: one row, column 0 is new."""
        rules, total = self.rules, sum(math.exp(one) for one in [0.0, *s])
        row = []
        for j, one in enumerate([0.0, *s]):
            u = d = 0.0
            if j == 0:
                d = 1.0
            else:
                overlap = iou(box, self.boxes[j - 1], 1)
                u, d = overlap if overlap >= 0.3 else -10000.0, float(label == self.classes[j - 1])
            row.append(rules.a0 * math.log(math.exp(one) / total) + rules.a1 * math.log(score) + rules.a2 * u
                       + rules.a3 * d)                                                                    # fmt: skip
        return row

    @staticmethod
    def _clipped(box: list[float], size: tuple[int, int], original: tuple[int, int]) -> list[float]:
        """4.2 step 5."""
        (h, w), (height, width) = size, original
        x1, x2 = (min(max(x * width / w, 0), width) for x in box[0::2])
        y1, y2 = (min(max(y * height / h, 0), height) for y in box[1::2])
        return [x1, y1, x2, y2]


def iou(a: list[float], b: list[float], plus: int) -> float:
    """Of two boxes whose sides are x2 - x1 + `plus`; 0 where both are empty."""
    side = lambda low, high: max(high - low + plus, 0)  # noqa: E731
    inner = side(max(a[0], b[0]), min(a[2], b[2])) * side(max(a[1], b[1]), min(a[3], b[3]))
    union = side(a[0], a[2]) * side(a[1], a[3]) + side(b[0], b[2]) * side(b[1], b[3]) - inner
    return inner / union if union else 0.0
