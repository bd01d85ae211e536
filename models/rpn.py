"""Step 6, regions: the region proposal network. Where something is, whatever its class.

In:     P2..P6 (B, C, h_l, w_l)
Out:    `RPNOutputs` for all anchors; proposals of an image (R, 4); in training, two losses
State:  none
Source: Ren et al., Faster R-CNN, NIPS 2015, section 3.1; Lin et al., Feature Pyramid Networks, CVPR 2017, 4.1; CrossVIS
        specification 5.2. Start of the weights is not published: N(0, 0.01^2), bias 0.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anchors import Anchors, clip_to_image, decode_boxes, encode_boxes
from models.fcos import init_head_conv
from models.losses import at_least_float32
from models.nms import greedy_nms, pairwise_iou
from models.sampling import IGNORED, SamplingConfig, match_boxes, sample
from models.targets import FrameTargets

SMOOTH_L1_BETA = 1 / 9
"""Where the box loss turns from a square to a line, in sides of the anchor."""


@dataclass(frozen=True, kw_only=True)
class RPNConfig:
    """The defaults are MaskTrack R-CNN as released; training and inference propose alike."""

    anchor_scale: float = 8.0
    """Side of a level's square anchor, in strides. Halve for small inputs."""
    anchor_ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Height over width of the anchors of a cell, all of one area. More: closer starts, larger heads."""
    max_per_level: int = 200
    """Candidates a pyramid level may send into suppression. Higher: slower in clutter."""
    max_iou: float = 0.7
    """Proposals that overlap a better one of their level by more than this go. Higher: more duplicates."""
    max_proposals: int = 200
    """Proposals of an image. Higher: fewer lost objects; the second stage's cost grows with it."""
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(
        count=64, positive_share=0.5, positive_iou=0.7, negative_iou=0.3, least_best_iou=0.3))
    """Which anchors the losses look at."""

    def __post_init__(self) -> None:
        if not self.anchor_ratios or min(self.anchor_ratios) <= 0 or self.anchor_scale <= 0:
            raise ValueError(
                f"rpn: anchor_scale is {self.anchor_scale}, anchor_ratios are {self.anchor_ratios}; expected a number "
                "above 0, and at least one of them"
            )
        if min(self.max_per_level, self.max_proposals) < 1 or not 0 <= self.max_iou <= 1:
            raise ValueError("rpn: max_per_level and max_proposals must be at least 1, max_iou between 0 and 1")


@dataclass(frozen=True)
class RPNOutputs:
    """What is said of every one of A anchors."""

    logits: Tensor
    """(B, A) of there being an object."""
    deltas: Tensor
    """(B, A, 4) from the anchor to the object, as models/anchors.py encodes them."""
    anchors: Anchors


class RPN(nn.Module):
    """3x3 convolution, ReLU, then two 1x1 ones: objectness and deltas. One set of weights for all levels."""

    def __init__(self, channels: int, config: RPNConfig) -> None:
        super().__init__()
        self.config = config
        ratios = len(config.anchor_ratios)
        self.conv = init_head_conv(nn.Conv2d(channels, channels, 3, padding=1))
        self.logits = init_head_conv(nn.Conv2d(channels, ratios, 1))
        self.deltas = init_head_conv(nn.Conv2d(channels, 4 * ratios, 1))

    def forward(self, levels: tuple[Tensor, ...]) -> RPNOutputs:
        logits, deltas = [], []
        for level in levels:
            x = F.relu(self.conv(level))
            logits.append(self.logits(x).permute(0, 2, 3, 1).flatten(1))                          # (B, h*w*ratios)
            deltas.append(self.deltas(x).permute(0, 2, 3, 1).reshape(len(x), -1, 4))              # (B, h*w*ratios, 4)
        sizes = [tuple(level.shape[-2:]) for level in levels]
        anchors = Anchors.of(sizes, self.config.anchor_scale, self.config.anchor_ratios, levels[0].device)
        return RPNOutputs(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), anchors)


@torch.no_grad()
def propose(out: RPNOutputs, image: int, size: tuple[int, int], cfg: RPNConfig) -> Tensor:
    """Where one image of the batch may show objects, likeliest first: (R, 4) float32 in pixels of the network input,
    clipped to `size` (h, w). No gradient."""
    logits = out.logits[image].float()
    begin, chosen = 0, []
    for count in out.anchors.counts:
        chosen.append(begin + logits[begin : begin + count].topk(min(cfg.max_per_level, count)).indices)
        begin += count
    rows = torch.cat(chosen)
    boxes = clip_to_image(decode_boxes(out.deltas[image, rows].float(), out.anchors.boxes[rows]), *size)
    kept = greedy_nms(boxes, logits[rows], out.anchors.levels[rows], cfg.max_iou, cfg.max_proposals)
    return boxes[kept[: cfg.max_proposals]]


def rpn_losses(
    out: RPNOutputs, targets: list[FrameTargets], size: tuple[int, int], cfg: RPNConfig
) -> tuple[Tensor, Tensor]:
    """Objectness: binary cross-entropy of the anchors drawn; box: smooth L1 of the positive ones' deltas. Both are sums
    over all images, divided by the number of anchors drawn. () and ()

    Anchors that reach out of `size` (h, w) are left out.
    """
    boxes = out.anchors.boxes
    limit = torch.tensor([size[1], size[0]], device=boxes.device)
    inside = ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= limit)).all(1).nonzero().squeeze(1)
    image, anchor, truth, wanted = [], [], [], []
    for b, frame in enumerate(targets):
        owner = torch.full((len(boxes),), IGNORED, dtype=torch.int64, device=boxes.device)
        owner[inside] = match_boxes(pairwise_iou(frame.boxes, boxes[inside]), cfg.sampling)
        positives, negatives = sample(owner, cfg.sampling)
        drawn = torch.cat([positives, negatives])
        image.append(torch.full_like(drawn, b))
        anchor.append(drawn)
        truth.append(owner[drawn] >= 0)
        wanted.append(encode_boxes(frame.boxes[owner[positives]], boxes[positives]))
    image, anchor, truth = torch.cat(image), torch.cat(anchor), torch.cat(truth)
    count = max(len(anchor), 1)
    logits, deltas = (at_least_float32(x) for x in (out.logits[image, anchor], out.deltas[image[truth], anchor[truth]]))
    objectness = F.binary_cross_entropy_with_logits(logits, truth.to(logits.dtype), reduction="sum")
    distance = F.smooth_l1_loss(deltas, torch.cat(wanted).to(deltas.dtype), reduction="sum", beta=SMOOTH_L1_BETA)
    return objectness / count, distance / count
