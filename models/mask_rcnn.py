"""Step 6, regions: Mask R-CNN, which the two-stage networks here are made of.

In:     images (B, 3, Hp, Wp), normalised RGB, sides multiples of 32
Out:    `features()` the pyramid P2..P6, `heads()` a `RegionOutputs`, from which the second stage is asked image by
        image; in training, `region_losses()`
State:  none
Source: He et al., Mask R-CNN, ICCV 2017; CrossVIS specification 5.2, IAI specification 5. A box's sides count its last
        pixel in there; models/anchors.py says where that stands here. Proposals are clipped to the frame in inference,
        in training to the padded input, since targets do not tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.anchors import STRIDES, clip_to_image
from models.fpn import FPN, channels_last
from models.inputs import InputConfig
from models.region_losses import (
    Regions,
    box_losses,
    draw_regions,
    mask_loss,
    mask_targets,
    refine_boxes,
    region_classes,
)
from models.regions import BOX_SIZE, LEVELS, MASK_SIZE, BoxHead, MaskHead, region_features
from models.resnet import ResNet, ResNetConfig
from models.rpn import RPN, RPNConfig, RPNOutputs, propose, rpn_losses
from models.sampling import SamplingConfig
from models.targets import FrameTargets


def _rgb() -> InputConfig:
    return InputConfig(channel_order="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig:
    """The defaults are those of MaskTrack R-CNN R-50 as released."""

    num_classes: int = 40
    input: InputConfig = field(default_factory=_rgb)
    backbone: ResNetConfig = field(
        default_factory=lambda: ResNetConfig(stride_in="3x3", norm="frozen_statistics", frozen_stages=2)
    )
    channels: int = 256
    """Width of pyramid and heads. Cost grows with its square."""
    rpn: RPNConfig = field(default_factory=RPNConfig)
    hidden: int = 1024
    """Width of the box head, and of what else reads a region for its class."""
    mask_convs: int = 4
    """3x3 convolutions of the mask head. More: finer masks, and most of the cost of an instance."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(
        count=128, positive_share=0.25, positive_iou=0.5, negative_iou=0.5, least_best_iou=0.5))
    """Which proposals the second stage's losses look at."""

    def __post_init__(self) -> None:
        if min(self.num_classes, self.channels, self.hidden) < 1 or self.mask_convs < 0:
            raise ValueError("num_classes, channels and hidden must be at least 1, mask_convs at least 0")


@dataclass(frozen=True)
class RegionOutputs:
    """The first stage of a batch, and what the second reads from."""

    rpn: RPNOutputs
    levels: tuple[Tensor, ...]
    """P2..P5, (B, C, h_l, w_l), channels last: the numbers of a cell side by side, since regions are read by cells."""
    padded: tuple[int, int]
    """(Hp, Wp) of the input."""


@dataclass(frozen=True)
class SampledRegions:
    """The regions that a frame's losses look at, and what the second stage read there."""

    regions: Regions
    features: Tensor
    """(R, C, 7, 7)."""
    shared: Tensor
    """(R, hidden): behind the box head's two layers."""


class MaskRCNN(nn.Module):
    """Parts joined."""

    def __init__(self, config: MaskRCNNConfig, spare_background: bool = False) -> None:
        """`spare_background`: a box and a mask of the background too, which are never used (models/regions.py)."""
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone, first_output=2)
        self.fpn = FPN(self.pyramid_inputs(), config.channels, extra="subsample")
        self.rpn = RPN(config.channels, config.rpn)
        self.box_head = BoxHead(config.channels, config.hidden, config.num_classes, spare_background)
        self.mask_head = MaskHead(config.channels, config.mask_convs, config.num_classes, spare_background)

    def pyramid_inputs(self) -> tuple[int, ...]:
        """Channels of the maps that the pyramid is built of."""
        return self.backbone.channels

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> P2..P6, finest first."""
        return self.fpn(*self.backbone(images))

    def heads(self, levels: tuple[Tensor, ...]) -> RegionOutputs:
        """P2..P6 -> the first stage, and the maps for the second; stateless."""
        h, w = levels[0].shape[-2:]
        return RegionOutputs(self.rpn(levels), by_cells(levels), (h * STRIDES[0], w * STRIDES[0]))

    # ------------------------------------------------------------------------------------------ of one image

    def proposals(self, out: RegionOutputs, image: int, size: tuple[int, int]) -> Tensor:
        """Where `image` of the batch, (h, w) before padding, may show objects: (R, 4), likeliest first."""
        return propose(out.rpn, image, size, self.config.rpn)

    def second_stage(
        self, out: RegionOutputs, image: int, boxes: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """(R, 4) proposals -> probabilities (R, 1 + K), 0 being the background, and of each class its box, clipped to
        `size`: (R, 1 + K, 4)."""
        logits, deltas = self.box_head(self._of_image(out, image, boxes, BOX_SIZE))
        starts = boxes[:, None].expand_as(deltas).reshape(-1, 4)
        refined = clip_to_image(refine_boxes(deltas.float().reshape(-1, 4), starts), *size)
        return logits.float().softmax(1), refined.view_as(deltas)

    def mask_logits(self, out: RegionOutputs, image: int, boxes: Tensor, labels: Tensor) -> Tensor:
        """(N, 4) detected boxes, their 0-based classes (N,) -> masks that fill the boxes: (N, 28, 28)."""
        return self.mask_head(self._of_image(out, image, boxes, MASK_SIZE), labels + 1)

    def _of_image(self, out: RegionOutputs, image: int, boxes: Tensor, size: int) -> Tensor:
        which = torch.full((len(boxes),), image, dtype=torch.int64, device=boxes.device)
        return region_features(out.levels, boxes, which, size)

    # ------------------------------------------------------------------------------------------ training

    def region_losses(
        self, out: RegionOutputs, targets: list[FrameTargets]
    ) -> tuple[dict[str, Tensor], SampledRegions]:
        """Both losses of the proposals, and class, box and mask of the regions drawn, for whoever has more to say of
        them. All means are a worker's own."""
        rpn_class, rpn_box = rpn_losses(out.rpn, targets, out.padded, self.config.rpn)
        proposals = [self.proposals(out, b, out.padded) for b in range(len(targets))]
        regions = draw_regions(proposals, targets, self.config.sampling)
        features = region_features(out.levels, regions.boxes, regions.image, BOX_SIZE)
        shared = self.box_head.shared(features)
        of_class, of_box = box_losses(*self.box_head.predict(shared), regions, targets)
        losses = {
            "rpn_class": rpn_class,
            "rpn_box": rpn_box,
            "class": of_class,
            "box": of_box,
            "mask": self._mask_loss(out, regions.positives, targets),
        }
        return losses, SampledRegions(regions, features, shared)

    def _mask_loss(self, out: RegionOutputs, regions: Regions, targets: list[FrameTargets]) -> Tensor:
        features = region_features(out.levels, regions.boxes, regions.image, MASK_SIZE)
        logits = self.mask_head(features, region_classes(regions, targets))
        return mask_loss(logits, mask_targets([t.masks for t in targets], regions, logits.shape[-1]))


def by_cells(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """P2..P5, channels last."""
    return channels_last(levels[:LEVELS])
