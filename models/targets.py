"""What each location of the pyramid is to learn: FCOS's assignment, around mask centroids.

In:     locations, and per image the ground truth: boxes, labels, identities, full-resolution masks
Out:    `Assignment`: the positives of all images of a batch, level by level as in the release
State:  none
Source: Tian et al., FCOS, ICCV 2019, 3.1; CrossVIS specification 3.2 (mask centroid, window of 1.5 strides, inclusive
        size ranges, smallest box area wins). The papers centre the window on the box: `center="box"`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from models.fcos import Locations

Center = Literal["mask", "moments", "box"]
"""What the sampling window lies around: the mask's centroid, as released, where an empty mask's is its box's centre
(`mask`) or (0, 0) (`moments`); or the box's centre, as in the papers."""
CENTER_RADIUS = 1.5
"""Half side of the sampling window around the centroid, in strides."""


@dataclass(frozen=True)
class FrameTargets:
    """Ground truth of one frame, in pixels of the padded network input."""

    boxes: Tensor
    """(G, 4) float32 xyxy, clipped to the image."""
    labels: Tensor
    """(G,) int64, 0-based class."""
    identities: Tensor
    """(G,) int64, 0-based over the whole training set."""
    masks: Tensor
    """(G, Hp, Wp) bool; or soft, float16 0..1, for networks that say `soft_masks`."""

    def __len__(self) -> int:
        return len(self.boxes)

    @property
    def masks_stride4(self) -> Tensor:
        """(G, Hp/4, Wp/4): the mask sampled at rows and columns 2, 6, 10, ...; not pooled."""
        return self.masks[:, 2::4, 2::4]

    def to(self, device: torch.device) -> FrameTargets:
        return FrameTargets(*(getattr(self, f).to(device) for f in ("boxes", "labels", "identities", "masks")))


Slot = tuple[Tensor, list[FrameTargets]]
"""Images (B, 3, Hp, Wp) of one pass through the network, and what is true of each."""


@dataclass(frozen=True)
class StillBatch:
    """B images that have nothing to do with each other."""

    images: Tensor
    """(B, 3, Hp, Wp)."""
    targets: list[FrameTargets]
    sizes: tuple[list[tuple[int, int]], ...] | None = None
    """One of B: (h, w) of each image before it was padded; None: not told."""

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def slots(self) -> tuple[Slot, ...]:
        return ((self.images, self.targets),)

    def to(self, device: torch.device) -> StillBatch:
        return StillBatch(self.images.to(device), [t.to(device) for t in self.targets], self.sizes)


@dataclass(frozen=True)
class PairBatch:
    """B pairs of frames of one video each; slot 0 holds the key frames, slot 1 the references."""

    images: tuple[Tensor, Tensor]
    """Two of (B, 3, Hp, Wp)."""
    targets: tuple[list[FrameTargets], list[FrameTargets]]
    counterparts: tuple[list[Tensor], list[Tensor]]
    """counterparts[s][b][i]: index in the other slot of instance i of slot s, -1 where it is not there."""
    sizes: tuple[list[tuple[int, int]], ...] | None = None
    """Two of B: (h, w) of each frame before it was padded; None: not told."""

    def __len__(self) -> int:
        return len(self.targets[0])

    @property
    def slots(self) -> tuple[Slot, Slot]:
        return (self.images[0], self.targets[0]), (self.images[1], self.targets[1])

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(
            tuple(image.to(device) for image in self.images),
            tuple([t.to(device) for t in slot] for slot in self.targets),
            tuple([c.to(device) for c in slot] for slot in self.counterparts),
            self.sizes,
        )


@dataclass(frozen=True)
class ClipBatch:
    """B clips of T frames each, in order of time; slot t holds the t-th frame of every clip."""

    images: tuple[Tensor, ...]
    """T of (B, 3, Hp, Wp), all of one size."""
    targets: tuple[list[FrameTargets], ...]
    """T of B; `identities` count the instances of a clip from 0, by ascending annotation id."""
    sizes: tuple[list[tuple[int, int]], ...] | None = None
    """T of B: (h, w) of each frame, sides multiples of 32, before it was padded to the largest; None: not told."""

    def __len__(self) -> int:
        return len(self.targets[0])

    @property
    def slots(self) -> tuple[Slot, ...]:
        return tuple(zip(self.images, self.targets, strict=True))

    def to(self, device: torch.device) -> ClipBatch:
        return ClipBatch(
            tuple(image.to(device) for image in self.images),
            tuple([t.to(device) for t in slot] for slot in self.targets),
            self.sizes,
        )


@dataclass(frozen=True)
class Assignment:
    """The positives of a batch of B images, and the class of every location."""

    labels: Tensor
    """(B, P) int64 class, -1 for background."""
    image: Tensor
    """(N,) int64: which image of the batch a positive lies in."""
    location: Tensor
    """(N,) int64: which of the P locations."""
    instance: Tensor
    """(N,) int64: which ground truth of that image."""
    distances: Tensor
    """(N, 4) float32 (l, t, r, b) in strides of the location's level."""

    @property
    def centerness(self) -> Tensor:
        """(N,) float32: sqrt(min(l, r) / max(l, r) * min(t, b) / max(t, b))."""
        across, down = self.distances[:, 0::2], self.distances[:, 1::2]
        ratios = across.amin(1) / across.amax(1) * (down.amin(1) / down.amax(1))
        return ratios.sqrt()


def mask_centroids(masks: Tensor, boxes: Tensor) -> Tensor:
    """Mean pixel index (x, y) of each mask; the box's centre where a mask is empty.  (G, H, W), (G, 4) -> (G, 2)"""
    _, h, w = masks.shape
    rows, columns = masks.sum(2, dtype=torch.float32), masks.sum(1, dtype=torch.float32)          # (G, H), (G, W)
    area = rows.sum(1)
    x = columns @ torch.arange(w, device=masks.device, dtype=torch.float32) / area.clamp(min=1)
    y = rows @ torch.arange(h, device=masks.device, dtype=torch.float32) / area.clamp(min=1)
    box_centers = (boxes[:, :2] + boxes[:, 2:]) / 2
    return torch.where((area > 0)[:, None], torch.stack([x, y], dim=1), box_centers)


def _assign_image(targets: FrameTargets, at: Locations, ranges: Tensor, center: Center) -> tuple[Tensor, Tensor]:
    """Which instance each location answers for, -1 for none (P,); distances (P, G, 4) in pixels."""
    boxes, points = targets.boxes, at.points
    distances = torch.cat([points[:, None] - boxes[None, :, :2], boxes[None, :, 2:] - points[:, None]], dim=2)
    centers = (boxes[:, :2] + boxes[:, 2:]) / 2                                                    # (G, 2)
    if center != "box":
        centers = mask_centroids(targets.masks, boxes if center == "mask" else torch.zeros_like(boxes))
    reach = CENTER_RADIUS * at.strides[:, None, None]                                             # (P, 1, 1)
    low = torch.maximum(centers[None] - reach, boxes[None, :, :2])                                # (P, G, 2)
    high = torch.minimum(centers[None] + reach, boxes[None, :, 2:])
    inside = ((points[:, None] > low) & (points[:, None] < high)).all(2)                          # (P, G)
    largest = distances.amax(2)
    fits = (largest >= ranges[:, None, 0]) & (largest <= ranges[:, None, 1])
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    cost = areas[None].expand(len(points), -1).masked_fill(~(inside & fits), torch.inf)
    best, instance = cost.min(1)
    return instance.masked_fill(best.isinf(), -1), distances


def assign(
    targets: list[FrameTargets], at: Locations, ranges: tuple[tuple[float, float], ...], center: Center = "mask"
) -> Assignment:
    """Give every location of every image its instance, or background. Images without instances have no positives."""
    device = at.points.device
    per_location = torch.tensor(ranges, device=device)[at.levels]                                 # (P, 2)
    labels = torch.full((len(targets), len(at.points)), -1, dtype=torch.int64, device=device)
    image, location, instance, distances = [], [], [], []
    for b, frame in enumerate(targets):
        if not len(frame):
            continue
        owner, sides = _assign_image(frame, at, per_location, center)
        where = (owner >= 0).nonzero().squeeze(1)                                                 # (n,)
        labels[b, where] = frame.labels[owner[where]]
        image.append(torch.full_like(where, b))
        location.append(where)
        instance.append(owner[where])
        distances.append(sides[where, owner[where]] / at.strides[where, None])
    if not image:
        none = torch.zeros(0, dtype=torch.int64, device=device)
        return Assignment(labels, none, none, none, torch.zeros(0, 4, device=device))
    found = Assignment(labels, torch.cat(image), torch.cat(location), torch.cat(instance), torch.cat(distances))
    return _level_first(found, at)


def _level_first(found: Assignment, at: Locations) -> Assignment:
    """Positives ordered by level, then image, then place: the release's order, which its random draws depend on."""
    order = torch.argsort(at.levels[found.location], stable=True)
    return Assignment(
        found.labels, found.image[order], found.location[order], found.instance[order], found.distances[order]
    )
