"""Training of the second stage: which regions are looked at, what they are to say, and the losses.

In:     proposals and ground truth of each image; what the heads said of the regions
Out:    `Regions`; losses of classes, boxes, masks, matches and identities
State:  none
Source: He et al., Mask R-CNN, ICCV 2017, 3.1; Yang et al., Video Instance Segmentation, ICCV 2019, equations 1 and 2;
        CrossVIS specification 5.2; IAI specification 5 for identities. They leave open how the true mask becomes 28 x
        28: here by bilinear samples at the centres of the cells, from one half up, the exact reverse of how masks are
        painted (operators/masks.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from models.anchors import decode_boxes, encode_boxes
from models.losses import at_least_float32, mean_or_zero
from models.nms import pairwise_iou
from models.sampling import BACKGROUND, SamplingConfig, match_boxes, sample
from models.targets import FrameTargets

DELTA_STDS = (0.1, 0.1, 0.2, 0.2)
"""Deltas of the second stage are in these units, so that they are near 1."""


@dataclass(frozen=True)
class Regions:
    """R boxes of all images of a batch, drawn for training; positives stand before negatives within an image."""

    boxes: Tensor
    """(R, 4) float32 xyxy in input pixels."""
    image: Tensor
    """(R,) int64: which image of the batch."""
    instance: Tensor
    """(R,) int64: which ground truth of that image, BACKGROUND for none."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def positives(self) -> Regions:
        found = self.instance >= 0
        return Regions(self.boxes[found], self.image[found], self.instance[found])

    def truth(self, values: list[Tensor]) -> Tensor:
        """Of `values`, (G_b, ...) for each image b, the row of each region's instance. For positives only."""
        begin = torch.tensor([0, *(len(v) for v in values)], device=self.image.device).cumsum(0)
        return torch.cat(values)[begin[self.image] + self.instance]


def draw_regions(proposals: list[Tensor], targets: list[FrameTargets], cfg: SamplingConfig) -> Regions:
    """From the proposals (R_b, 4) of each image and its true boxes, which join them and answer for themselves."""
    boxes, image, instance = [], [], []
    for b, (found, frame) in enumerate(zip(proposals, targets, strict=True)):
        own = torch.arange(len(frame), device=found.device)
        owner = torch.cat([own, match_boxes(pairwise_iou(frame.boxes, found), cfg)])
        drawn = torch.cat(sample(owner, cfg))
        boxes.append(torch.cat([frame.boxes, found])[drawn])
        image.append(torch.full_like(drawn, b))
        instance.append(owner[drawn])
    return Regions(torch.cat(boxes), torch.cat(image), torch.cat(instance))


def refine_boxes(deltas: Tensor, boxes: Tensor) -> Tensor:
    """(N, 4) deltas of the second stage, (N, 4) boxes -> (N, 4) boxes, unclipped."""
    return decode_boxes(deltas * deltas.new_tensor(DELTA_STDS), boxes)


def region_classes(regions: Regions, targets: list[FrameTargets]) -> Tensor:
    """(R,) int64: 0 for the background, 1 + the 0-based class for the others."""
    classes = torch.zeros_like(regions.instance)
    classes[regions.instance != BACKGROUND] = 1 + regions.positives.truth([t.labels for t in targets])
    return classes


def box_losses(logits: Tensor, deltas: Tensor, regions: Regions, targets: list[FrameTargets]) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the classes (R, 1 + K); smooth L1 of the positives' deltas (R, 1 + K, 4) for their own class.

    Both are sums divided by R: () and (); 0 for no region.
    """
    classes, positives = region_classes(regions, targets), regions.positives
    at = (regions.instance >= 0).nonzero().squeeze(1)
    wanted = encode_boxes(positives.truth([t.boxes for t in targets]), positives.boxes) / deltas.new_tensor(DELTA_STDS)
    right = F.cross_entropy(at_least_float32(logits), classes, reduction="sum")
    found = at_least_float32(deltas[at, classes[at]])
    close = F.smooth_l1_loss(found, wanted.to(found.dtype), reduction="sum")
    return right / max(len(regions), 1), close / max(len(regions), 1)


def mask_targets(masks: list[Tensor], regions: Regions, side: int) -> Tensor:
    """What each positive region's mask is to be: (n, side, side) float32 of 0 and 1, from (G_b, Hp, Wp) of each image.

    Cell i of an axis looks at begin + (i + 0.5) / side of the box, bilinear between pixel centres.
    """
    height, width = masks[0].shape[-2:]
    within = (torch.arange(side, device=regions.boxes.device) + 0.5) / side
    low, extent = regions.boxes[:, :2], regions.boxes[:, 2:] - regions.boxes[:, :2]
    at = low[:, :, None] + within * extent[:, :, None] - 0.5                                      # (n, 2, side)
    limit = torch.tensor([width - 1, height - 1], device=at.device)[:, None]
    at = at.clamp(min=0).minimum(limit)
    first = at.floor().long()
    second, share = (first + 1).minimum(limit), at - first
    begin = torch.tensor([0, *(len(m) for m in masks)], device=at.device).cumsum(0)
    whose = (begin[regions.image] + regions.instance)[:, None, None]
    table, value = torch.cat(masks), 0.0
    for row, down in ((first[:, 1], 1 - share[:, 1]), (second[:, 1], share[:, 1])):
        for column, across in ((first[:, 0], 1 - share[:, 0]), (second[:, 0], share[:, 0])):
            corner = table[whose, row[:, :, None], column[:, None]]                               # (n, side, side)
            value = value + corner * (down[:, :, None] * across[:, None])
    return (value >= 0.5).float()


def mask_loss(logits: Tensor, wanted: Tensor) -> Tensor:
    """Mean binary cross-entropy over regions and cells.  (n, 28, 28) x2 -> (); 0 for none"""
    logits = at_least_float32(logits)
    return mean_or_zero(F.binary_cross_entropy_with_logits(logits, wanted.to(logits.dtype), reduction="none"))


def identity_loss(logits: Tensor, regions: Regions, targets: list[FrameTargets]) -> Tensor:
    """Cross-entropy of the codes (models/clip_targets.py) of R regions; the last column is the background, which is
    true of the negatives. Mean over regions.  (R, N + 1) -> (), 0 for no region"""
    codes = torch.full_like(regions.instance, logits.shape[1] - 1)
    codes[regions.instance != BACKGROUND] = regions.positives.truth([t.identities for t in targets])
    return F.cross_entropy(at_least_float32(logits), codes, reduction="sum") / max(len(regions), 1)


def match_loss(
    embeddings: Tensor, known: Tensor, regions: Regions, known_image: Tensor, counterparts: list[Tensor], images: int
) -> Tensor:
    """Which instance of the reference each positive region of the key frame is, or a new one: cross-entropy of the
    logits [0, e . f_1, ..., e . f_m], mean over an image's regions, then over all `images`.

    embeddings (n, D) of `regions`, all positive; known (m, D) of the reference's true boxes, in their order, of the
    images `known_image` (m,); counterparts[b][i] is where instance i of the key stands in the reference, -1 if new.
    """
    logits = embeddings.float() @ known.float().T                                                 # (n, m)
    logits = logits.masked_fill(regions.image[:, None] != known_image, -torch.inf)
    partner = regions.truth(counterparts)                                                         # (n,), -1 for new
    begin = torch.bincount(known_image, minlength=images).cumsum(0) - torch.bincount(known_image, minlength=images)
    column = torch.where(partner >= 0, begin[regions.image] + partner + 1, 0)
    losses = F.cross_entropy(F.pad(logits, (1, 0)), column, reduction="none")                     # column 0: new
    count = torch.bincount(regions.image, minlength=images)
    return (losses / count[regions.image]).sum() / images
