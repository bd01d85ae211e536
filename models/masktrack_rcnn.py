"""MaskTrack R-CNN: the two-stage baseline. Mask R-CNN, and a vector for each box that tells instances apart.

In:     images (B, 3, Hp, Wp), normalised RGB, sides multiples of 32
Out:    `features()` the pyramid P2..P6, `heads()` a `RegionOutputs`, from which operators/detect_regions.py asks the
        second stage image by image; in training, `forward()` the losses of pairs
State:  none. The release keeps the 7x7 features of a track's latest box and embeds them anew in every frame; weights do
        not change while a stream runs, so keeping the embedding, 1024 numbers, is the same.
Source: Yang et al., Video Instance Segmentation, ICCV 2019; CrossVIS specification 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from models.fcos_losses import Average
from models.mask_rcnn import MaskRCNN, MaskRCNNConfig, RegionOutputs, by_cells
from models.region_losses import Regions, match_loss
from models.regions import BOX_SIZE, TrackHead, region_features
from models.targets import FrameTargets, PairBatch


@dataclass(frozen=True, kw_only=True)
class MaskTrackConfig(MaskRCNNConfig):
    """The defaults are MaskTrack R-CNN R-50 as released."""

    hidden: int = 1024
    """Width of the box and tracking heads, and length of the association vector; state of a stream grows with it."""


class MaskTrackRCNN(MaskRCNN):
    """Mask R-CNN and a tracking head. `num_identities` is taken so that all networks are built alike; pairs alone teach
    matching."""

    config: MaskTrackConfig

    def __init__(self, config: MaskTrackConfig, num_identities: int | None = None) -> None:
        super().__init__(config, spare_background=True)
        self.track_head = TrackHead(config.channels, config.hidden)

    def embeddings(self, out: RegionOutputs, image: int, boxes: Tensor) -> Tensor:
        """(N, 4) detected boxes -> (N, D), not normalised."""
        return self.track_head(self._of_image(out, image, boxes, BOX_SIZE))

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: PairBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised.

        Slot 0 has the key frames, which all losses look at; of the references, slot 1, only the true boxes' features
        enter, for matching. `average`, the mean over all workers, is not needed: all means are a worker's own.
        """
        (images, targets), (references, known) = batch.slots
        losses, sampled = self.region_losses(self.heads(self.features(images)), targets)
        positives = sampled.regions.positives
        embeddings = self.track_head(sampled.features[sampled.regions.instance >= 0])
        return losses | {"match": self._match_loss(embeddings, positives, references, known, batch.counterparts[0])}

    def _match_loss(
        self, embeddings: Tensor, regions: Regions, images: Tensor, known: list[FrameTargets], into: list[Tensor]
    ) -> Tensor:
        boxes = torch.cat([t.boxes for t in known])
        image = torch.cat([torch.full((len(t),), b, device=boxes.device) for b, t in enumerate(known)])
        features = region_features(by_cells(self.features(images)), boxes, image, BOX_SIZE)
        return match_loss(embeddings, self.track_head(features), regions, image, into, len(known))
