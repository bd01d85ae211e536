"""MaskTrack R-CNN: the two-stage baseline. Mask R-CNN, and a vector for each box that tells instances apart.

In:     images (B, 3, Hp, Wp), normalised RGB, sides multiples of 32
Out:    `features()` the pyramid P2..P6, `heads()` a `RegionOutputs`, from which operators/detect_regions.py asks the
        second stage image by image; in training, `forward()` the losses of pairs
State:  none. The release keeps the 7x7 features of a track's latest box and embeds them anew in every frame; weights do
        not change while a stream runs, so keeping the embedding, 1024 numbers, is the same.
Source: Yang et al., Video Instance Segmentation, ICCV 2019; CrossVIS specification 5.2. A box's sides count its last
        pixel in there; models/anchors.py says where that stands here. Proposals are clipped to the frame in inference,
        in training to the padded input, since targets do not tell them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.anchors import STRIDES, clip_to_image
from models.fpn import FPN
from models.inputs import InputConfig
from models.region_losses import (
    Regions,
    box_losses,
    draw_regions,
    mask_loss,
    mask_targets,
    match_loss,
    refine_boxes,
    region_classes,
)
from models.regions import BOX_SIZE, LEVELS, MASK_SIZE, BoxHead, MaskHead, TrackHead, region_features
from models.resnet import ResNet, ResNetConfig
from models.rpn import RPN, RPNConfig, RPNOutputs, propose, rpn_losses
from models.sampling import SamplingConfig
from models.targets import FrameTargets, PairBatch


def _rgb() -> InputConfig:
    return InputConfig(channel_order="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375))


@dataclass(frozen=True, kw_only=True)
class MaskTrackConfig:
    """The defaults are MaskTrack R-CNN R-50 as released."""

    num_classes: int = 40
    input: InputConfig = field(default_factory=_rgb)
    backbone: ResNetConfig = field(
        default_factory=lambda: ResNetConfig(stride_in="3x3", norm="frozen_statistics", frozen_stages=2)
    )
    channels: int = 256
    """Width of pyramid and heads. Cost grows with its square."""
    rpn: RPNConfig = field(default_factory=RPNConfig)
    hidden: int = 1024
    """Width of the box and tracking heads, and length of the association vector; state of a stream grows with it."""
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


class MaskTrackRCNN(nn.Module):
    """Parts joined. `num_identities` is taken so that all networks are built alike; pairs alone teach matching."""

    def __init__(self, config: MaskTrackConfig, num_identities: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone, first_output=2)
        self.fpn = FPN(self.backbone.channels, config.channels, extra="subsample")
        self.rpn = RPN(config.channels, config.rpn)
        self.box_head = BoxHead(config.channels, config.hidden, config.num_classes)
        self.mask_head = MaskHead(config.channels, config.mask_convs, config.num_classes)
        self.track_head = TrackHead(config.channels, config.hidden)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> P2..P6, finest first."""
        return self.fpn(*self.backbone(images))

    def heads(self, levels: tuple[Tensor, ...]) -> RegionOutputs:
        """P2..P6 -> the first stage, and the maps for the second; stateless."""
        h, w = levels[0].shape[-2:]
        return RegionOutputs(self.rpn(levels), _by_cells(levels), (h * STRIDES[0], w * STRIDES[0]))

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

    def embeddings(self, out: RegionOutputs, image: int, boxes: Tensor) -> Tensor:
        """(N, 4) detected boxes -> (N, D), not normalised."""
        return self.track_head(self._of_image(out, image, boxes, BOX_SIZE))

    def _of_image(self, out: RegionOutputs, image: int, boxes: Tensor, size: int) -> Tensor:
        which = torch.full((len(boxes),), image, dtype=torch.int64, device=boxes.device)
        return region_features(out.levels, boxes, which, size)

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: PairBatch, average: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised.

        Slot 0 has the key frames, which all losses look at; of the references, slot 1, only the true boxes' features
        enter, for matching. `average`, the mean over all workers, is not needed: all means are a worker's own.
        """
        (images, targets), (references, known) = batch.slots
        out = self.heads(self.features(images))
        rpn_class, rpn_box = rpn_losses(out.rpn, targets, out.padded, self.config.rpn)
        proposals = [self.proposals(out, b, out.padded) for b in range(len(targets))]
        regions = draw_regions(proposals, targets, self.config.sampling)
        features = region_features(out.levels, regions.boxes, regions.image, BOX_SIZE)
        of_class, of_box = box_losses(*self.box_head(features), regions, targets)
        embeddings = self.track_head(features[regions.instance >= 0])
        return {
            "rpn_class": rpn_class,
            "rpn_box": rpn_box,
            "class": of_class,
            "box": of_box,
            "mask": self._mask_loss(out, regions.positives, targets),
            "match": self._match_loss(embeddings, regions.positives, references, known, batch.counterparts[0]),
        }

    def _mask_loss(self, out: RegionOutputs, regions: Regions, targets: list[FrameTargets]) -> Tensor:
        features = region_features(out.levels, regions.boxes, regions.image, MASK_SIZE)
        logits = self.mask_head(features, region_classes(regions, targets))
        return mask_loss(logits, mask_targets([t.masks for t in targets], regions, logits.shape[-1]))

    def _match_loss(
        self, embeddings: Tensor, regions: Regions, images: Tensor, known: list[FrameTargets], into: list[Tensor]
    ) -> Tensor:
        boxes = torch.cat([t.boxes for t in known])
        image = torch.cat([torch.full((len(t),), b, device=boxes.device) for b, t in enumerate(known)])
        features = region_features(_by_cells(self.features(images)), boxes, image, BOX_SIZE)
        return match_loss(embeddings, self.track_head(features), regions, image, into, len(known))


def _by_cells(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(level.contiguous(memory_format=torch.channels_last) for level in levels[:LEVELS])
