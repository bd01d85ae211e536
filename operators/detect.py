"""Step 6: from what the heads say of every location to the instances of a frame.

In:     DenseOutputs of a batch, one image at a time
Out:    `Detections` in pixels of the network input, best score first; their boxes are not clipped
State:  none
Source: CrossVIS specification 4.1 steps 1 to 3: threshold on class x centre-ness before the root, 1000 per level,
        class-aware NMS at 0.6, 100 per frame.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.condinst import CondInst, DenseOutputs
from models.fcos_decode import Selected, best_per_level, boxes_at
from models.outputs import Detections
from operators.nms import class_aware_nms


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """The defaults are CrossVIS as released."""

    min_score: float = 0.05
    """Smallest class probability x centre-ness, before the square root. Lower: more weak detections, more tracks."""
    max_per_level: int = 1000
    """Candidates a pyramid level may send into suppression. Higher: slower in clutter."""
    max_iou: float = 0.6
    """Boxes of a class that overlap a better one by more than this go. Higher: more duplicates, fewer lost
    neighbours."""
    max_per_frame: int = 100
    """Instances a frame gives. Higher: more masks to paint and associate."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1 or not 0 <= self.max_iou <= 1:
            raise ValueError(f"min_score {self.min_score} and max_iou {self.max_iou} must lie between 0 and 1")
        if min(self.max_per_level, self.max_per_frame) < 1:
            raise ValueError("max_per_level and max_per_frame must be at least 1")


def detect(network: CondInst, dense: DenseOutputs, image: int, size: tuple[int, int], cfg: DetectConfig) -> Detections:
    """The instances of one image of the batch, painted. `size` (h, w) of the image before padding is not asked for."""
    found = select(dense, image, cfg)
    return Detections(
        boxes=found.boxes,
        scores=found.scores,
        labels=found.labels,
        embeddings=dense.embeddings[image, found.locations].float(),
        mask_logits=network.mask_logits(dense, image, found.locations).float(),
    )


def select(dense: DenseOutputs, image: int, cfg: DetectConfig) -> Selected:
    """The instances of one image of the batch. None above the threshold: N = 0."""
    classes = dense.class_logits[image].float().sigmoid()
    locations, labels = (classes > cfg.min_score).nonzero(as_tuple=True)        # centre-ness can only lower it
    scores = classes[locations, labels] * dense.centerness[image, locations].float().sigmoid()       # (n,)
    above = scores > cfg.min_score
    locations, labels, scores = locations[above], labels[above], scores[above]
    best = best_per_level(scores, dense.at.levels[locations], cfg.max_per_level)
    locations, labels, scores = locations[best], labels[best], scores[best].sqrt()
    boxes = boxes_at(dense, image, locations)
    kept = class_aware_nms(boxes, scores, labels, cfg.max_iou, cfg.max_per_frame)
    return Selected(locations[kept], labels[kept], scores[kept], boxes[kept])
