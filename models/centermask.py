"""CenterMask: FCOS, and a mask head with spatial attention on what it finds. Still images; TLTM's baseline and start.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32
Out:    `features()` the pyramid P3..P7, `heads()` a `CenterMaskOutputs`, from which operators/detect_objects.py asks
        regions and masks image by image; in training, `forward()` the losses
State:  none
Source: Lee and Park, CenterMask, CVPR 2020; TLTM specification 2, 3. Its mask IoU head is off there and not here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models.area_regions import STRIDES, aligned_masks, area_features
from models.backbones import BackboneConfig, make_backbone
from models.fcos import FCOSConfig, FCOSHead, Locations
from models.fcos_decode import FCOSDecodeConfig, decode
from models.fcos_losses import Average, fcos_losses
from models.fpn import FPN, channels_last
from models.inputs import InputConfig
from models.region_losses import Regions, draw_regions, mask_loss
from models.resnet import ResNetConfig
from models.sag_mask import SpatialMaskHead
from models.sampling import SamplingConfig
from models.targets import FrameTargets, PairBatch, StillBatch, assign

Sizes = list[tuple[int, int]]
"""(h, w) of each image of a batch before it was padded."""


@dataclass(frozen=True, kw_only=True)
class CenterMaskConfig:
    """The defaults are CenterMask R-50 as TLTM begins with it."""

    num_classes: int = 40
    input: InputConfig = field(default_factory=lambda: InputConfig(short_side=800, long_side=1333))
    backbone: BackboneConfig = field(default_factory=ResNetConfig)
    """Which trunk, told by `name`."""
    channels: int = 256
    """Width of pyramid, towers and mask head. Cost grows with its square."""
    fcos: FCOSConfig = field(default_factory=lambda: FCOSConfig(center_sampling="box"))
    mask_convs: int = 4
    """3x3 convolutions of the mask head. More: finer masks, and most of the cost of an instance."""
    giou_added: float = 1.0
    """Added above and below in the IoU of the box loss, in squared cells of the location's level."""
    regions: Literal["proposals", "truth"] = "proposals"
    """What training reads masks from: FCOS's `proposals` beside the true boxes, as in inference, or the true boxes
    alone, which is faster and never shows a box that is a little off."""
    proposals: FCOSDecodeConfig = field(default_factory=lambda: FCOSDecodeConfig(max_per_frame=100))
    """Which of FCOS's boxes are proposals."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(
        count=512, positive_share=0.25, positive_iou=0.5, negative_iou=0.5, least_best_iou=1.0))
    """Which regions training looks at; of these the positive alone."""

    def __post_init__(self) -> None:
        if min(self.num_classes, self.channels) < 1 or self.mask_convs < 0:
            raise ValueError("num_classes and channels must be at least 1, mask_convs at least 0")
        if self.giou_added < 0:
            raise ValueError(f"giou_added is {self.giou_added}, expected 0 or more")
        if self.regions not in ("proposals", "truth"):
            raise ValueError(f"regions is {self.regions!r}, expected 'proposals' or 'truth'")


@dataclass(frozen=True)
class CenterMaskOutputs:
    """What FCOS says of every one of P locations, and the maps that regions are read from."""

    class_logits: Tensor
    """(B, P, K)."""
    distances: Tensor
    """(B, P, 4) left, top, right, bottom, in strides, >= 0."""
    centerness: Tensor
    """(B, P) logits."""
    at: Locations
    levels: tuple[Tensor, ...]
    """P3..P5, (B, C, h_l, w_l), channels last: the numbers of a cell side by side, since regions are read by cells."""

    @property
    def padded(self) -> tuple[int, int]:
        """(Hp, Wp) of the input."""
        h, w = self.levels[0].shape[-2:]
        return h * STRIDES[0], w * STRIDES[0]


class CenterMask(nn.Module):
    """Parts joined. `num_identities` is taken so that all networks are built alike; stills have no identities."""

    config: CenterMaskConfig

    def __init__(self, config: CenterMaskConfig, num_identities: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone)
        extra = "p6p7" if config.fcos.num_levels == 5 else "none"
        self.fpn = FPN(self.backbone.channels, config.channels, extra=extra)
        self.fcos = FCOSHead(config.channels, config.num_classes, config.fcos)
        self.mask_head = SpatialMaskHead(config.channels, config.mask_convs, config.num_classes)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> P3..P7, finest first."""
        return self.fpn(*self.backbone(images))

    def heads(self, levels: tuple[Tensor, ...]) -> CenterMaskOutputs:
        """The pyramid -> everything said of every location; stateless."""
        return self._outputs(levels, levels)

    def _outputs(self, levels: tuple[Tensor, ...], regions: tuple[Tensor, ...]) -> CenterMaskOutputs:
        """FCOS on `levels`; masks and objects will be read from `regions`."""
        columns = zip(*(maps[:3] for maps in self.fcos(levels)), strict=True)
        flat = [torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2) for maps in columns]   # (B, P, .)
        at = Locations.of([level.shape[-2:] for level in levels], levels[0].device)
        return CenterMaskOutputs(flat[0], flat[1], flat[2].squeeze(2), at, by_cells(regions))

    # ------------------------------------------------------------------------------------------ of one image

    def region_features(self, out: CenterMaskOutputs, image: int, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, 4) boxes of `image` of the batch, (h, w) before padding -> (N, C, 14, 14)."""
        which = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        areas = torch.tensor([float(size[0] * size[1])], device=boxes.device)
        return area_features(tuple(level[image : image + 1] for level in out.levels), boxes, which, areas)

    def mask_logits(self, regions: Tensor, labels: Tensor) -> Tensor:
        """(N, C, 14, 14), 0-based classes (N,) -> masks that fill the boxes (N, 28, 28)."""
        return self.mask_head.of_classes(regions, labels)

    def objects(self, regions: Tensor) -> Tensor:
        """(N, C, 14, 14) -> a vector for each, by which it is known again: none here, (N, 0)."""
        return regions.new_zeros(len(regions), 0)

    def edges(self, known: Tensor, current: Tensor) -> Tensor:
        """Logits of each of N objects of a frame being each of M known ones: none are told apart here, all are 0.
        (M, D), (N, D) -> (N, M)"""
        return known.new_zeros(len(current), len(known))

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: StillBatch | PairBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised; those of both frames of a pair are added.

        `average` takes the mean of a number over all workers: positives are counted over all of them, the mean of the
        mask loss is a worker's own. The slots are separate passes: one batch of both would change the batch norms.
        """
        sizes = batch.sizes or (None,) * len(batch.slots)
        parts = []
        for (images, targets), true_sizes in zip(batch.slots, sizes, strict=True):
            out = self.heads(self.features(images))
            regions, features = self._sampled(out, targets, true_sizes)
            parts.append(self._frame_losses(out, targets, regions, features, average))
        return added(parts)

    def _sampled(
        self, out: CenterMaskOutputs, targets: list[FrameTargets], sizes: Sizes | None
    ) -> tuple[Regions, Tensor]:
        """The positive regions of a frame's batch, image by image, and their features (n, C, 14, 14)."""
        with torch.no_grad():
            regions = draw_regions(self._proposals(out), targets, self.config.sampling).positives
        features = area_features(out.levels, regions.boxes, regions.image, areas_of(out, sizes))
        return regions, features

    def _proposals(self, out: CenterMaskOutputs) -> list[Tensor]:
        if self.config.regions == "truth":
            return [out.distances.new_zeros(0, 4, dtype=torch.float32) for _ in out.distances]
        return [decode(out, b, self.config.proposals).boxes for b in range(len(out.distances))]

    def _frame_losses(
        self, out: CenterMaskOutputs, targets: list[FrameTargets], regions: Regions, features: Tensor, average: Average
    ) -> dict[str, Tensor]:
        """Class, box, centre-ness and mask loss of one frame's batch (specification 3.4)."""
        found = assign(targets, out.at, self.config.fcos.ranges, self.config.fcos.center_sampling)
        logits = self.mask_head.of_classes(features, regions.truth([t.labels for t in targets]))
        wanted = aligned_masks([t.masks for t in targets], regions, logits.shape[-1])
        losses = fcos_losses(out, found, average, self.config.giou_added)
        return losses | {"mask": mask_loss(logits, wanted)}


def areas_of(out: CenterMaskOutputs, sizes: Sizes | None) -> Tensor:
    """(B,) float32 pixels of each image before padding; where sizes are not told, those of the padded input."""
    sizes = sizes or [out.padded] * len(out.distances)
    return torch.tensor([float(h * w) for h, w in sizes], device=out.distances.device)


def by_cells(levels: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """P3..P5, channels last."""
    return channels_last(levels[: len(STRIDES)])


def added(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Losses of equal names summed."""
    return {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
