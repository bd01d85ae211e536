"""Step 6: from what the heads say at every anchor of every slot to the tubes of a clip, painted.

In:     `ClipOutputs` of a batch, one clip at a time
Out:    `Tubes`, best score first; boxes are not clipped
State:  none
Limits: at most `most` tubes are painted and compared, all pairs at once: 300 of 96x160 and T = 3 take 55 MB of masks
Source: Li & Zhang, CiCo, 2022, 3.4; CiCo specification 4.2, 4.3: fast suppression, class by class, by boxes, unions of
        boxes and masks together. A tube that was suppressed suppresses all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import Tensor

from models.cico_anchors import areas, decode, iou, union_box

NMS_PIXELS = 5
"""Cells that a mask must have more than, in some frame; frames where either has fewer say nothing of a pair."""
SAME_MASK = 0.9
"""Masks that overlap by more than this in some frame count as equal."""
MIN_FILL = 0.1
"""A mask must have more than this share of its box's cells, in some frame."""


@dataclass(frozen=True, kw_only=True)
class TubeConfig:
    """The defaults are CiCo as released, but for a slip of its suppression."""

    min_score: float = 0.1
    """Smallest class probability, and smallest product with the centre-ness. Lower: more weak tubes, more tracks."""
    most: int = 300
    """Candidates that are painted; never more than 100 for each frame of a clip. Higher: slower in clutter."""
    max_same: float = 0.9
    """Of tubes whose boxes overlap by more than this only the best is painted. Higher: slower."""
    max_overlap: float = 0.5
    """Tubes of a class that overlap a better one by more than this go. Higher: more duplicates, fewer lost
    neighbours."""
    nms_union: Literal["aligned", "rows_only"] = "aligned"
    """`aligned`: all overlaps of a pair are the pair's. `rows_only`, to repeat published detections exactly: that of
    the unions is read at the worse tube's rank in its class, as if that were its place in the list."""

    def __post_init__(self) -> None:
        for name in ("min_score", "max_same", "max_overlap"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected 0 to 1")
        if self.most < 1:
            raise ValueError(f"most is {self.most}, expected at least 1")


@dataclass(frozen=True)
class Tubes:
    """n instances of one clip of T frames. Indexing indexes every field."""

    boxes: Tensor
    """(n, T, 4) float32 xyxy, divided by the padded width and height, unclipped."""
    masks: Tensor
    """(n, T, Hp/4, Wp/4) float32, 0..1."""
    labels: Tensor
    """(n,) int64, 0-based class."""
    scores: Tensor
    """(n,) float32: class probability, without centre-ness."""
    embeddings: Tensor
    """(n, D) of length 1."""
    parameters: Tensor
    """(n, k') for painting on the prototypes of a later clip."""
    levels: Tensor
    """(n,) int64, 0 for P3."""

    def __post_init__(self) -> None:
        n = len(self.boxes)
        for f in fields(self):
            if len(getattr(self, f.name)) != n:
                raise ValueError(f"Tubes.{f.name} has {len(getattr(self, f.name))} rows, boxes have {n}")

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor | slice) -> Tubes:
        return Tubes(**{f.name: getattr(self, f.name)[index] for f in fields(self)})

    @property
    def unions(self) -> Tensor:
        """(n, 4): the box around each tube's boxes."""
        return union_box(self.boxes)


@dataclass(frozen=True)
class Candidates:
    """n tubes in falling rank, before their masks."""

    boxes: Tensor
    """(n, T, 4)"""
    anchors: Tensor
    """(n,) int64"""
    slots: Tensor
    """(n,) int64"""
    probabilities: Tensor
    """(n, K)"""
    quality: Tensor
    """(n,) centre-ness, 0..1."""

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: Tensor) -> Candidates:
        return Candidates(*(getattr(self, f.name)[index] for f in fields(self)))


@torch.no_grad()
def find_tubes(network: Any, out: Any, clip: int, cfg: TubeConfig) -> Tubes:
    """The instances of one clip of the batch, painted; a tube stands there once for each class that it survives in.

    Nothing above the threshold: n = 0.
    """
    found = distinct(candidates(network, out, clip, cfg), cfg)
    levels, parameters = out.anchors.levels[found.anchors], out.tubes.parameters[clip, found.slots, found.anchors]
    masks = network.paint(out.prototypes[clip], parameters, union_box(found.boxes), levels, network.test_window())
    kept = visible(found.boxes, masks)
    found, masks = found[kept], masks[kept]
    rows, labels = suppress(found.probabilities * found.quality[:, None], overlaps(found.boxes, masks > 0.5), cfg)
    scores = found.probabilities[rows, labels]
    order = scores.argsort(descending=True, stable=True)
    rows, labels = rows[order], labels[order]
    return Tubes(
        boxes=found.boxes[rows],
        masks=masks[rows],
        labels=labels,
        scores=scores[order],
        embeddings=out.tubes.embeddings[clip, found.slots[rows], found.anchors[rows]].float(),
        parameters=parameters[kept][rows].float(),
        levels=levels[kept][rows],
    )


def candidates(network: Any, out: Any, clip: int, cfg: TubeConfig) -> Candidates:
    """The tubes of all slots whose best class passes; ranked by its probability times the centre-ness."""
    probabilities = network.class_probabilities(out.tubes.class_logits[clip])                   # (S, N, K)
    slots, count, _ = probabilities.shape
    best = probabilities.amax(2).flatten()                                                      # (S * N,)
    place = (best > cfg.min_score).nonzero().squeeze(1)
    most = min(100 * slots, cfg.most)
    if len(place) > most:
        place = place[best[place].argsort(descending=True, stable=True)[:most]]
    slot, anchor = place // count, place % count
    boxes = decode(out.tubes.deltas[clip, slot, anchor].float(), out.anchors.boxes[anchor, None])
    quality = network.quality(out.tubes.centerness[clip, slot, anchor])
    order = (best[place] * quality).argsort(descending=True, stable=True)
    found = Candidates(boxes, anchor, slot, probabilities[slot, anchor], quality)[order]
    return found[found.boxes.flatten(1).isfinite().all(1)]


def distinct(found: Candidates, cfg: TubeConfig) -> Candidates:
    """Without tubes that nearly repeat a better one, and those whose centre is in the picture in too few frames. A tube
    that goes takes others with it all the same."""
    unions = union_box(found.boxes)
    same = iou(found.boxes[:, None], found.boxes).mean(2) / 2 + iou(unions[:, None], unions) / 2
    repeats = (same.triu(1) > cfg.max_same).any(0)
    center = (found.boxes[..., :2] + found.boxes[..., 2:]) / 2
    inside = ((center > 0) & (center < 1)).all(2).sum(1)                                        # (n,) frames
    return found[~repeats & (inside >= max(found.boxes.shape[1] // 2, 1))]


def visible(boxes: Tensor, masks: Tensor) -> Tensor:
    """Tubes that show enough of themselves in some frame.  (n, T, 4), (n, T, h, w) -> (n,) bool"""
    h, w = masks.shape[2:]
    cells = (masks > 0.5).sum((2, 3))                                                           # (n, T)
    return (cells > NMS_PIXELS).any(1) & (cells > MIN_FILL * areas(boxes) * h * w).any(1)


@dataclass(frozen=True)
class Overlaps:
    """Of all pairs of n tubes, each (n, n)."""

    boxes: Tensor
    """Mean IoU over the frames that both show."""
    unions: Tensor
    """IoU of the boxes around all frames."""
    masks: Tensor
    """Mean IoU over the frames that both show; 1 where it is above 0.9 in one of them."""


def overlaps(boxes: Tensor, masks: Tensor) -> Overlaps:
    """(n, T, 4), (n, T, h, w) bool -> `Overlaps`"""
    shown = masks.sum((2, 3)) > NMS_PIXELS                                                      # (n, T)
    both = shown[:, None] & shown                                                               # (n, n, T)
    frames = both.sum(2).clamp(min=1)
    per_frame = mask_iou(masks, masks)                                                          # (n, n, T)
    mean = (per_frame * both).sum(2) / frames
    unions = union_box(boxes)
    return Overlaps(
        boxes=(iou(boxes[:, None], boxes) * both).sum(2) / frames,
        unions=iou(unions[:, None], unions),
        masks=torch.where(((per_frame > SAME_MASK) & both).any(2), 1.0, mean),
    )


def mask_iou(a: Tensor, b: Tensor) -> Tensor:
    """Frame by frame, of all pairs; 0 / 0 is 0.  (n, T, h, w), (m, T, h, w) bool -> (n, m, T) float32

    Products of zeros and ones: sums of up to 2^24 cells are exact.
    """
    a, b = (x.flatten(2).transpose(0, 1).float() for x in (a, b))                               # (T, ., h * w)
    common = (a @ b.transpose(1, 2)).permute(1, 2, 0)                                           # (n, m, T)
    union = a.sum(2).T[:, None] + b.sum(2).T - common
    return common / union.clamp(min=1)


def suppress(scores: Tensor, pairs: Overlaps, cfg: TubeConfig) -> tuple[Tensor, Tensor]:
    """Tubes, in the order of their list, and the classes they survive in.  (n, K) -> (m,), (m,) int64"""
    order = scores.argsort(dim=0, descending=True, stable=True).T                                # (K, n) tubes by rank
    worse, better = order[:, None], order[:, :, None]
    column = worse if cfg.nms_union == "aligned" else torch.arange(len(scores), device=scores.device)
    overlap = 0.5 * (0.5 * pairs.boxes[better, worse] + 0.5 * pairs.unions[better, column])
    overlap = overlap + 0.5 * pairs.masks[better, worse]                                        # (K, n, n)
    ranked = scores.T.gather(1, order)
    stays = ~(overlap.triu(1) > cfg.max_overlap).any(1) & (ranked > cfg.min_score)
    labels, rank = stays.nonzero().unbind(1)
    return order[labels, rank], labels
