"""Both forms of IAI, small enough for loops to check, with lively weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from models.association_block import AssociationConfig, HybridAssociation
from models.fcos import FCOSConfig
from models.iai import IAI, IAIConfig
from models.iai_maskrcnn import IAIMaskRCNN, IAIMaskRCNNConfig
from models.resnet import ResNetConfig
from models.rpn import RPNConfig
from tests.models.small import shake

BLOCK = AssociationConfig(
    dim=8, self_heads=2, memory_heads=2, hidden=12, groups=3, radius=1, class_channels=6, drop_path=0.0
)
SMALL = IAIConfig(
    num_classes=3,
    num_slots=5,
    backbone=ResNetConfig(
        blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, stride_in="3x3", norm="batch", frozen_stages=0
    ),
    channels=8,
    fcos=FCOSConfig(
        tower_convs=1, groups=2, tower_bias=False, size_bounds=(16, 32, 64, 128), center_sampling="moments"
    ),
    mask_channels=8,
    association=BLOCK,
)
SMALL_REGIONS = IAIMaskRCNNConfig(
    num_classes=3, num_slots=5, backbone=SMALL.backbone, channels=16, rpn=RPNConfig(anchor_scale=3.0), hidden=32,
    mask_convs=1, association=BLOCK,
)  # fmt: skip
"""Anchors fit a 64 x 64 frame."""


def enliven(association: HybridAssociation, seed: int = 0) -> None:
    """On top of `shake`: relative terms, gate and bank as strong as what they are added to."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in association.named_parameters():
            if "relative" in name or ".gate." in name:
                value.normal_(0, 0.5, generator=generator)
            elif name == "bank.conv.weight":
                value.normal_(0, 1 / 33, generator=generator)


def small_association(
    seed: int = 0, in_channels: int = 10, num_slots: int | None = 5, **changes: Any
) -> HybridAssociation:  # fmt: skip
    """Evaluation mode. `changes` replace fields of BLOCK."""
    association = HybridAssociation(replace(BLOCK, **changes), in_channels, num_slots)
    shake(association, seed)
    enliven(association, seed)
    return association.eval()


def small_iai(seed: int = 0, **changes: Any) -> IAI:
    """Training mode, as built. `changes` replace fields of SMALL."""
    network = IAI(replace(SMALL, **changes))
    shake(network, seed)
    enliven(network.association, seed)
    return network


def small_iai_maskrcnn(seed: int = 0, **changes: Any) -> IAIMaskRCNN:
    """Training mode, as built. `changes` replace fields of SMALL_REGIONS."""
    network = IAIMaskRCNN(replace(SMALL_REGIONS, **changes))
    shake(network, seed)
    enliven(network.association, seed)
    return network
