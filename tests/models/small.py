"""A CrossVIS small enough for loops to check, with lively weights, and hand-made pairs of frames for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from models.crossvis import CrossVIS, CrossVISConfig
from models.fcos import FCOSConfig
from models.resnet import ResNetConfig
from models.targets import FrameTargets, PairBatch

SMALL = CrossVISConfig(
    num_classes=3,
    backbone=ResNetConfig(blocks=(1, 1, 1, 1), stem_channels=6, mid_channels=4, norm="batch", frozen_stages=0),
    channels=8,
    fcos=FCOSConfig(tower_convs=1, groups=2, size_bounds=(16, 32, 64, 128)),
    mask_channels=8,
    embedding_dim=6,
)
NUM_IDENTITIES = 12

ONE_ON_P3 = (5, 5, 19, 19)
"""Holds one P3 point, (12, 12), and P4's (8, 8), which is too coarse for it."""
ONE_ON_P4 = (8, 8, 40, 40)
"""Holds one P4 point strictly, (24, 24), 16 from each side; every P3 point inside is over 16 from some side."""
NONE = (5, 5, 7, 7)
"""Holds no point of any level."""


def shake(network: nn.Module, seed: int) -> None:
    """Weights and norms at random, of a size that keeps activations near 1: fresh heads say the same everywhere."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*network.named_parameters(), *network.named_buffers()]:
            if value.dim() > 1:
                value.normal_(0, value[0].numel() ** -0.5, generator=generator)
            elif name.endswith(("weight", "running_var", "scales")):
                value.uniform_(0.5, 1.5, generator=generator)
            elif name.endswith(("bias", "running_mean")):
                value.normal_(0, 0.3, generator=generator)


def small_network(seed: int = 0, num_identities: int | None = NUM_IDENTITIES, **changes) -> CrossVIS:
    """Training mode, as built. `changes` replace fields of SMALL."""
    network = CrossVIS(replace(SMALL, **changes), num_identities)
    shake(network, seed)
    return network


def moved(box: Sequence[float], dx: float, dy: float) -> tuple[float, ...]:
    return box[0] + dx, box[1] + dy, box[2] + dx, box[3] + dy


def frame(
    boxes: Sequence[Sequence[float]], identities: Sequence[int] = (), size: int = 64, seed: int = 0
) -> FrameTargets:
    """A square frame of `size`; masks fill their boxes but for holes at random; classes go round 0, 1, 2."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(len(boxes), size, size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, boxes, strict=True):
        part = mask[int(y1) : int(y2) + 1, int(x1) : int(x2) + 1]
        part[:] = torch.rand(part.shape, generator=generator) < 0.8
        part[len(part) // 2, part.shape[1] // 2] = True
    return FrameTargets(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.arange(len(boxes)) % 3,
        torch.tensor(identities if len(identities) else range(len(boxes)), dtype=torch.int64),
        masks,
    )


def images(count: int, size: int = 64, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def pairs(
    slots: tuple[list[FrameTargets], list[FrameTargets]],
    counterparts: tuple[list[list[int]], list[list[int]]],
    seed: int = 0,
) -> PairBatch:
    """Random images around the given truth; the two slots show different pictures."""
    size = slots[0][0].masks.shape[-1]
    looks = images(len(slots[0]), size, seed), images(len(slots[0]), size, seed + 1)
    into = tuple([torch.tensor(c, dtype=torch.int64) for c in slot] for slot in counterparts)
    return PairBatch(looks, slots, into)
