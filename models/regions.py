"""Step 6, regions: what the second stage says of each box: class and better box, mask, and who it is.

In:     P2..P5, R boxes in input pixels, and in which image each lies
Out:    features of each region (R, C, size, size), and of these the heads' outputs
State:  none
Source: He et al., Mask R-CNN, ICCV 2017, section 3; Yang et al., Video Instance Segmentation, ICCV 2019, 4.1 for the
        tracking head; CrossVIS specification 5.2; IAI specification 5 for the identity head, which is reconstruction.
        Weights start from COCO; how what is not loaded starts is not published: Xavier for hidden layers of the box and
        identity heads, N(0, 0.01^2) for classes, identities and the tracking head, N(0, 0.001^2) for deltas, Kaiming
        for the mask head; all biases 0.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.anchors import STRIDES
from models.roi_align import roi_align

LEVELS = 4
"""P2..P5; P6 is for proposals alone."""
FINEST_SIDE = 56.0
"""Pixels: boxes of up to twice this side, as the root of their area, are read from P2, twice as large ones from P3."""
BOX_SIZE, MASK_SIZE = 7, 14
"""Side of a region's features for the box and tracking heads, and for the mask head."""


def region_levels(boxes: Tensor) -> Tensor:
    """Which level each box is read from: floor(log2(sqrt(w h) / 56)), 0 (P2) to 3 (P5).  (R, 4) -> (R,) int64"""
    area = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    return torch.log2(area.sqrt() / FINEST_SIDE).floor().clamp(0, LEVELS - 1).long()


def region_features(levels: tuple[Tensor, ...], boxes: Tensor, image: Tensor, size: int) -> Tensor:
    """Each box from its own level, 2 x 2 samples a bin, without a half-pixel shift.  -> (R, C, size, size)

    `levels` P2 and on, (B, C, h_l, w_l); boxes (R, 4), image (R,). No boxes: (0, C, size, size).
    """
    return features_of_levels(levels[:LEVELS], STRIDES[:LEVELS], region_levels(boxes), boxes, image, size)


def features_of_levels(
    levels: tuple[Tensor, ...], strides: tuple[int, ...], level: Tensor, boxes: Tensor, image: Tensor, size: int,
    samples: int = 2, half_pixel: bool = False,
) -> Tensor:  # fmt: skip
    """Each box from the level (R,) chosen for it; `samples` and `half_pixel` as models/roi_align.py has them.
    -> (R, C, size, size)"""
    rows = [(level == i).nonzero().squeeze(1) for i in range(len(levels))]
    parts = [
        roi_align(features, boxes[at], image[at], size, 1 / stride, samples, half_pixel)
        for features, stride, at in zip(levels, strides, rows, strict=True)
    ]
    return torch.cat(parts)[torch.argsort(torch.cat(rows))]


def _linear(inputs: int, outputs: int, std: float | None = None) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    if std is None:
        nn.init.xavier_uniform_(layer.weight)
    else:
        nn.init.normal_(layer.weight, std=std)
    nn.init.zeros_(layer.bias)
    return layer


class BoxHead(nn.Module):
    """Two hidden layers, then classes (0 is the background) and a box for each class.

    `spare_background` gives the background a box too, as the weights of some releases have it; nobody reads it.
    """

    def __init__(self, channels: int, hidden: int, num_classes: int, spare_background: bool = True) -> None:
        super().__init__()
        self.spare = 0 if spare_background else 1
        self.fc1 = _linear(channels * BOX_SIZE**2, hidden)
        self.fc2 = _linear(hidden, hidden)
        self.class_logits = _linear(hidden, num_classes + 1, std=0.01)
        self.deltas = _linear(hidden, 4 * (num_classes + 1 - self.spare), std=0.001)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """(R, C, 7, 7) -> class logits (R, 1 + K), deltas (R, 1 + K, 4) in units of models/region_losses.py."""
        return self.predict(self.shared(regions))

    def shared(self, regions: Tensor) -> Tensor:
        """(R, C, 7, 7) -> (R, hidden): both hidden layers."""
        return F.relu(self.fc2(F.relu(self.fc1(regions.flatten(1)))))

    def predict(self, shared: Tensor) -> tuple[Tensor, Tensor]:
        """The rest of `forward`; deltas of a background without a box are 0."""
        return self.class_logits(shared), F.pad(self.deltas(shared).unflatten(1, (-1, 4)), (0, 0, self.spare, 0))


class MaskHead(nn.Module):
    """3x3 convolutions with ReLU, enlarged by two, and a mask for each class; with `spare_background` one of the
    background too, as the weights of some releases have it, which nobody reads."""

    def __init__(self, channels: int, convs: int, num_classes: int, spare_background: bool = True) -> None:
        super().__init__()
        self.spare = 0 if spare_background else 1
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convs))
        self.upsample = nn.ConvTranspose2d(channels, channels, 2, stride=2)
        self.logits = nn.Conv2d(channels, num_classes + 1 - self.spare, 1)
        for layer in (*self.convs, self.upsample, self.logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, regions: Tensor, classes: Tensor) -> Tensor:
        """(N, C, 14, 14), (N,) from 1, 0 being the background -> logits of each region's own class (N, 28, 28)."""
        x = regions
        for conv in self.convs:
            x = F.relu(conv(x))
        logits = self.logits(F.relu(self.upsample(x)))                                    # (N, K or 1 + K, 28, 28)
        return logits[torch.arange(len(classes), device=classes.device), classes - self.spare]


class TrackHead(nn.Module):
    """Two layers, ReLU after the first alone: the vector that association multiplies.  (N, C, 7, 7) -> (N, D)"""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = _linear(channels * BOX_SIZE**2, hidden, std=0.01)
        self.fc2 = _linear(hidden, hidden, std=0.01)

    def forward(self, regions: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(regions.flatten(1))))


class RegionIdentityHead(nn.Module):
    """One logit per slot, and behind them one of the background, on the box head's hidden layers.  -> (R, N + 1)

    With `own_layer` on a hidden layer of its own, which reads the region itself.
    """

    def __init__(self, channels: int, hidden: int, num_slots: int, own_layer: bool) -> None:
        super().__init__()
        self.fc = _linear(channels * BOX_SIZE**2, hidden) if own_layer else None
        self.logits = _linear(hidden, num_slots + 1, std=0.01)

    def forward(self, regions: Tensor, shared: Tensor) -> Tensor:
        """(R, C, 7, 7), (R, hidden) of `BoxHead.shared`."""
        return self.logits(shared if self.fc is None else F.relu(self.fc(regions.flatten(1))))
