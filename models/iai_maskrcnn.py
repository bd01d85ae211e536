"""IAI on Mask R-CNN: every proposal says which known identity it is, a new one, or background.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32, and per row the `Memory` of its stream
Out:    `features()` C2..C5 and `associate()` P2..P6, as models/remembering.py has them; `heads()` a `RegionOutputs`,
        from which operators/identity_regions.py asks the second stage image by image; in training, `forward()` the
        losses of clips
State:  none; the memory of a stream lies in operators/identify.py
Limits: time of a frame grows with `rpn.max_proposals`, 14 GMAC for 1000; memory of a training step with what
        `sampling` draws, 0.3 GB an image for 512 regions, 6 GB for 4 clips of 5 frames
Source: Zhu et al., Instance As Identity, ECCV 2022, 3.2, 3.3 and table 6 (AP 31.7); IAI specification 5.

No code, settings or weights of this form were ever published. Known is that it is Mask R-CNN R-50 with an identity head
beside those of class, box and mask, that this head reads the same features and scores every proposal, and that its loss
has the form of the class loss. Reconstruction is all the rest:
- memory as in the CondInst form, with the pyramid begun at C2 (its top reads C5')
- one layer on the box head's two hidden ones, with a softmax over N + 1 codes, the last being background; `own_layer`
  for one more that is its own
- cross-entropy, a mean over the regions drawn; all losses are means over the frames of a clip
- boxes and masks of each class, none of the background
- proposals, anchors and regions drawn as in Mask R-CNN: 1000 of a frame, 256 of an image, 512 of an image
- what is not said here, and how regions are read, as in MaskTrack R-CNN (models/mask_rcnn.py)
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.anchors import clip_to_image
from models.fcos_losses import Average
from models.inputs import InputConfig
from models.mask_rcnn import MaskRCNN, MaskRCNNConfig, RegionOutputs
from models.region_losses import identity_loss, refine_boxes
from models.regions import BOX_SIZE, RegionIdentityHead
from models.remembering import PIXELS, MemoryConfig, Remembering
from models.rpn import RPNConfig
from models.sampling import SamplingConfig
from models.targets import ClipBatch, FrameTargets


@dataclass(frozen=True, kw_only=True)
class IAIMaskRCNNConfig(MaskRCNNConfig, MemoryConfig):
    """The defaults are our reconstruction of IAI + Mask R-CNN R-50 for YouTube-VIS 2019."""

    input: InputConfig = PIXELS
    rpn: RPNConfig = field(default_factory=lambda: RPNConfig(
        max_per_level=1000, max_proposals=1000, sampling=SamplingConfig(
            count=256, positive_share=0.5, positive_iou=0.7, negative_iou=0.3, least_best_iou=0.3)))
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(
        count=512, positive_share=0.25, positive_iou=0.5, negative_iou=0.5, least_best_iou=0.5))
    """Which proposals the second stage's losses look at."""
    own_layer: bool = False
    """The identity head reads regions by a hidden layer of its own, not by the box head's two: 12.8 M parameters."""

    def __post_init__(self) -> None:
        MaskRCNNConfig.__post_init__(self)
        MemoryConfig.__post_init__(self)


@dataclass(frozen=True)
class Identified:
    """What the second stage says of R proposals of an image."""

    classes: Tensor
    """(R, K) probabilities; what lacks to 1 is background."""
    identities: Tensor
    """(R, N) probabilities, likewise; N = 0 without an identity head."""
    boxes: Tensor
    """(R, 4) float32: the better box of the likeliest class, clipped to the image."""


class IAIMaskRCNN(Remembering, MaskRCNN):
    """Mask R-CNN with a memory. `num_identities` is taken so that all networks are built alike."""

    config: IAIMaskRCNNConfig

    def __init__(self, config: IAIMaskRCNNConfig, num_identities: int | None = None) -> None:
        super().__init__(config)
        self.association = self.make_association()
        self.identity_head = None
        if config.use_id:
            self.identity_head = RegionIdentityHead(config.channels, config.hidden, config.num_slots, config.own_layer)

    def identified(self, out: RegionOutputs, image: int, boxes: Tensor, size: tuple[int, int]) -> Identified:
        """Of proposals (R, 4) of `image` of the batch, (h, w) before padding."""
        features = self._of_image(out, image, boxes, BOX_SIZE)
        shared = self.box_head.shared(features)
        logits, deltas = self.box_head.predict(shared)
        classes = logits.float().softmax(1)[:, 1:]
        everyone = torch.arange(len(boxes), device=boxes.device)
        chosen = deltas[everyone, 1 + classes.argmax(1)].float()                                  # (R, 4)
        identities = classes[:, :0]
        if self.identity_head is not None:
            identities = self.identity_head(features, shared).float().softmax(1)[:, :-1]
        return Identified(classes, identities, clip_to_image(refine_boxes(chosen, boxes), *size))

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: ClipBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised, each the mean over the frames.

        `average`, the mean over all workers, is not needed: all means are a worker's own.
        """
        parts = [self.frame_losses(self.heads(pyramid), targets) for pyramid, targets in self.clip_frames(batch)]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def frame_losses(self, out: RegionOutputs, targets: list[FrameTargets]) -> dict[str, Tensor]:
        """Of one frame of B clips; `targets` have codes for identities."""
        losses, sampled = self.region_losses(out, targets)
        if self.identity_head is not None:
            logits = self.identity_head(sampled.features, sampled.shared)
            losses["identity"] = identity_loss(logits, sampled.regions, targets)
        return losses
