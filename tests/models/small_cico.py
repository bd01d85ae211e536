"""A CiCo small enough for loops to check, with lively weights, and hand-made clips for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from models.cico import CiCo, CiCoConfig
from models.cico_masks import MaskForm
from models.cico_targets import ClipTargets
from models.resnet import ResNetConfig
from models.targets import ClipBatch, FrameTargets
from tests.models.small import shake

SMALL = CiCoConfig(
    num_classes=3,
    backbone=ResNetConfig(
        blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=2, stride_in="3x3", norm="batch", frozen_stages=0
    ),
    channels=6,
    mask_channels=5,
    tower_convs=2,
    embedding_dim=4,
    masks=MaskForm(prototypes=4),
)
YOLACT, OFFSETS, GAUSS = SMALL.masks, MaskForm(kind="condinst", prototypes=3), MaskForm(
    kind="condinst", prototypes=3, rel_coord="gauss1"
)  # fmt: skip
SIZE = (64, 96)


def small_cico(seed: int = 0, **changes) -> CiCo:
    """Training mode, as built. `changes` replace fields of SMALL."""
    network = CiCo(replace(SMALL, **changes))
    shake(network, seed)
    return network


def clip_images(clips: int, frames: int = 3, size: tuple[int, int] = SIZE, seed: int = 0) -> Tensor:
    """(clips * frames, 3, H, W)"""
    return torch.randn(clips * frames, 3, *size, generator=torch.Generator().manual_seed(seed))


def drawn(boxes: Sequence[Sequence[float]], size: tuple[int, int] = SIZE, **named) -> FrameTargets:
    """A frame of objects that fill their boxes (x1, y1, x2, y2 in pixels); `identities` and `labels` count up."""
    masks = torch.zeros(len(boxes), *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        mask[int(y1) : int(y2), int(x1) : int(x2)] = True
    places = torch.arange(len(boxes))
    identities, labels = (torch.tensor(named[k]) if k in named else places for k in ("identities", "labels"))
    return FrameTargets(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), labels % 3, identities, masks)


def clip_batch(clips: Sequence[Sequence[FrameTargets]], seed: int = 0) -> ClipBatch:
    """Random images around the given truth."""
    frames = len(clips[0])
    images = clip_images(len(clips), frames, tuple(clips[0][0].masks.shape[-2:]), seed).unflatten(0, (-1, frames))
    return ClipBatch(tuple(images.unbind(1)), tuple(list(row) for row in zip(*clips, strict=True)))


def targets_of(boxes: Tensor, labels: Sequence[int], size: tuple[int, int] = (16, 24), seed: int = 0) -> ClipTargets:
    """Boxes (n, T, 4) in 0..1, random masks of `size`."""
    generator = torch.Generator().manual_seed(seed)
    masks = (torch.rand(*boxes.shape[:2], *size, generator=generator) < 0.4).float()
    return ClipTargets(boxes, torch.tensor(labels), masks)
