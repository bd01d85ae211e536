"""A MaskTrack R-CNN small enough for loops to check, with anchors that fit a 64 x 64 frame."""

from __future__ import annotations

from dataclasses import replace

from models.masktrack_rcnn import MaskTrackConfig, MaskTrackRCNN
from models.resnet import ResNetConfig
from models.rpn import RPNConfig
from models.targets import PairBatch
from tests.models.small import frame, pairs, shake

SMALL_REGIONS = MaskTrackConfig(
    num_classes=3,
    backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, stride_in="3x3", norm="batch",
                          frozen_stages=0),
    channels=16,
    rpn=RPNConfig(anchor_scale=3.0),
    hidden=32,
    mask_convs=1,
)


def small_regions(seed: int | None = 0, **changes) -> MaskTrackRCNN:
    """Training mode, weights at random by `seed`, None as built. `changes` replace fields of SMALL_REGIONS."""
    network = MaskTrackRCNN(replace(SMALL_REGIONS, **changes))
    if seed is not None:
        shake(network, seed)
    return network


def one_pair() -> PairBatch:
    """Two instances; the first is in the reference too, in second place there, the second is new."""
    key = frame([(6, 8, 26, 30), (34, 30, 58, 60)], [4, 7])
    reference = frame([(2, 40, 20, 62), (10, 6, 30, 28)], [9, 4])
    return pairs(([key], [reference]), ([[1, -1]], [[-1, 0]]))
