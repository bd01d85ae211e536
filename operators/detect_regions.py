"""Step 6, two-stage networks: from proposals to the instances of a frame.

In:     RegionOutputs of a batch, one image at a time
Out:    Detections in pixels of the padded network input, best score first; each mask fills its box
State:  none
Source: CrossVIS specification 5.2: class probability above 0.05, class-aware NMS at 0.5, 10 per frame. Masks and
        embeddings are read anew from the detected boxes, not from the proposals.
"""

from __future__ import annotations

from dataclasses import dataclass

from models.mask_rcnn import RegionOutputs
from models.masktrack_rcnn import MaskTrackRCNN
from models.outputs import Detections
from operators.nms import class_aware_nms


@dataclass(frozen=True, kw_only=True)
class RegionDetectConfig:
    """The defaults are MaskTrack R-CNN as released."""

    min_score: float = 0.05
    """Smallest class probability. Lower: more weak detections, more tracks."""
    max_iou: float = 0.5
    """Boxes of a class that overlap a better one by more than this go. Higher: more duplicates, fewer lost
    neighbours."""
    max_per_frame: int = 10
    """Instances a frame gives. Higher: more masks to paint and associate."""

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1 or not 0 <= self.max_iou <= 1:
            raise ValueError(f"min_score {self.min_score} and max_iou {self.max_iou} must lie between 0 and 1")
        if self.max_per_frame < 1:
            raise ValueError("max_per_frame must be at least 1")


def detect_regions(
    network: MaskTrackRCNN, dense: RegionOutputs, image: int, size: tuple[int, int], cfg: RegionDetectConfig
) -> Detections:
    """The instances of one image of the batch, its `size` (h, w) before padding. Nothing above the threshold: N = 0.

    Boxes are clipped to `size`; their x2 is the edge behind the last pixel. Of equal scores the likelier proposal's
    comes first. `mask_logits` (N, 28, 28) are those of the instance's own class; `embeddings` (N, D).
    """
    proposals = network.proposals(dense, image, size)
    probability, refined = network.second_stage(dense, image, proposals, size)
    region, label = (probability[:, 1:] > cfg.min_score).nonzero(as_tuple=True)                  # without background
    scores, boxes = probability[region, label + 1], refined[region, label + 1]
    kept = class_aware_nms(boxes, scores, label, cfg.max_iou, cfg.max_per_frame)[: cfg.max_per_frame]
    boxes, label = boxes[kept], label[kept]
    return Detections(
        boxes=boxes,
        scores=scores[kept],
        labels=label,
        embeddings=network.embeddings(dense, image, boxes).float(),
        mask_logits=network.mask_logits(dense, image, boxes, label).float(),
        mask_frame="box",
    )
