"""CrossVIS: CondInst with crossover learning and a global balanced embedding.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32
Out:    `features()` the pyramid P3..P7, `heads()` a `DenseOutputs`; in training, `forward()` the losses of pairs
State:  none; what is remembered from frame to frame lies in operators/association.py
Source: Yang et al., Crossover Learning for Fast Online Video Instance Segmentation, ICCV 2021. Where paper and release
        differ, the release is followed: mean of the two crossover directions, 0.1 gradient gate on the pyramid,
        biased and scaled identity logits, coordinates before mask features (specification 8.1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models.dynamic_mask import NUM_FILTER_VALUES, MaskBranch, dynamic_mask_logits
from models.embedding import EmbeddingHead, IdentityProxies
from models.fcos import FCOSConfig, FCOSHead, Locations, init_head_conv
from models.fpn import FPN
from models.losses import centerness_loss, dice_loss, giou_loss, mean_or_zero, sigmoid_focal_loss
from models.resnet import ResNet, ResNetConfig
from models.targets import Assignment, FrameTargets, assign

MAX_MASK_POSITIVES = 500
"""Positives of one slot that the mask losses look at; more are sampled (specification 3.3)."""


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How frames become network input."""

    short_side: int = 360
    """The frame's short side is brought to this. Larger: finer masks, cost grows with its square."""
    long_side: int = 640
    """Limit of the long side; a longer frame is shrunk further, aspect kept."""
    channel_order: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[float, float, float] = (103.530, 116.280, 123.675)
    """Subtracted per channel, in `channel_order`, from 0..255."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    divisor: int = 32
    """Sides are padded at the right and bottom to a multiple of this."""


@dataclass(frozen=True, kw_only=True)
class CrossVISConfig:
    """The defaults are CrossVIS R-50 as released."""

    num_classes: int = 40
    input: InputConfig = field(default_factory=InputConfig)
    backbone: ResNetConfig = field(default_factory=ResNetConfig)
    channels: int = 256
    """Width of pyramid and towers. Cost grows with its square."""
    fcos: FCOSConfig = field(default_factory=FCOSConfig)
    mask_channels: int = 128
    """Width of the mask branch."""
    embedding_dim: int = 256
    """Length of the association vector; state of a stream grows with it."""
    gradient_gate: float = 0.1
    """Share of the gradient that reaches backbone and pyramid. 0.1 protects pre-trained weights; 1 is for training from
    scratch."""


@dataclass(frozen=True)
class DenseOutputs:
    """What the heads say of every one of P locations."""

    class_logits: Tensor
    """(B, P, K)."""
    distances: Tensor
    """(B, P, 4) left, top, right, bottom, in strides, >= 0."""
    centerness: Tensor
    """(B, P) logits."""
    filters: Tensor
    """(B, P, 169) weights of the dynamic mask head."""
    embeddings: Tensor
    """(B, P, D)."""
    mask_features: Tensor
    """(B, 8, Hp/8, Wp/8)."""
    at: Locations


@dataclass(frozen=True)
class PairBatch:
    """B pairs of frames of one video each; slot 0 holds the key frames, slot 1 the references."""

    images: tuple[Tensor, Tensor]
    """Two of (B, 3, Hp, Wp)."""
    targets: tuple[list[FrameTargets], list[FrameTargets]]
    counterparts: tuple[list[Tensor], list[Tensor]]
    """counterparts[s][b][i]: index in the other slot of instance i of slot s, -1 where it is not there."""

    def __len__(self) -> int:
        return len(self.targets[0])

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(
            tuple(image.to(device) for image in self.images),
            tuple([t.to(device) for t in slot] for slot in self.targets),
            tuple([c.to(device) for c in slot] for slot in self.counterparts),
        )


@dataclass(frozen=True)
class _Slot:
    """One frame of every pair after the forward pass: what the mask losses draw from."""

    dense: DenseOutputs
    targets: list[FrameTargets]
    found: Assignment
    kept: Tensor
    """(n,) the positives the mask losses look at: all, or a random 500."""


class CrossVIS(nn.Module):
    """Parts joined. `num_identities` is the number of training identities; None (inference) leaves the proxies out."""

    def __init__(self, config: CrossVISConfig, num_identities: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = ResNet(config.backbone)
        self.fpn = FPN(self.backbone.channels, config.channels)
        self.fcos = FCOSHead(config.channels, config.num_classes, config.fcos)
        self.controller = init_head_conv(nn.Conv2d(config.channels, NUM_FILTER_VALUES, 3, padding=1))
        self.mask_branch = MaskBranch(config.channels, config.mask_channels)
        self.embedding = EmbeddingHead(config.channels, config.embedding_dim, config.fcos)
        self.proxies = IdentityProxies(config.embedding_dim, num_identities) if num_identities else None

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> P3..P7, finest first."""
        return self.fpn(*self.backbone(images))

    def heads(self, levels: tuple[Tensor, ...]) -> DenseOutputs:
        """P3..P7 -> everything said of every location; stateless."""
        mask_features = self.mask_branch(*levels[:3])
        per_level = self.fcos(levels)
        embeddings = self.embedding(levels)
        columns = [(*maps[:3], self.controller(maps[3]), e) for maps, e in zip(per_level, embeddings, strict=True)]
        flat = [torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2) for maps in zip(*columns, strict=True)]
        at = Locations.of([level.shape[-2:] for level in levels], levels[0].device)
        classes, distances, centerness, filters, embeddings = flat               # each (B, P, .)
        return DenseOutputs(classes, distances, centerness.squeeze(2), filters, embeddings, mask_features, at)

    def mask_logits(self, dense: DenseOutputs, image: int, locations: Tensor) -> Tensor:
        """Masks of the instances found at `locations` (N,) of one image: (N, Hp/4, Wp/4)."""
        filters, points = dense.filters[image, locations], dense.at.points[locations]
        features = dense.mask_features[image].expand(len(locations), -1, -1, -1)
        return dynamic_mask_logits(features, filters, points, self._divisors(dense, locations))

    def _divisors(self, dense: DenseOutputs, locations: Tensor) -> Tensor:
        table = torch.tensor(self.config.fcos.divisors, device=locations.device, dtype=torch.float32)
        return table[dense.at.levels[locations]]

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: PairBatch, average: Callable[[Tensor], Tensor] = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised (specification 3.1 to 3.6).

        `average` takes the mean of a number over all workers: positives are counted over all of them, the means of
        mask, crossover and identity loss are a worker's own. The slots are separate passes: one batch of both would
        change the batch norms.
        """
        gated = [tuple(self._gate(level) for level in self.features(images)) for images in batch.images]
        slots = [self._slot(self.heads(levels), targets) for levels, targets in zip(gated, batch.targets, strict=True)]
        parts = [self._frame_losses(slot, average) for slot in slots]
        losses = {name: (parts[0][name] + parts[1][name]) / 2 for name in parts[0]}
        crossed = [self._crossover(slots[s], slots[1 - s], batch.counterparts[s]) for s in (0, 1)]
        losses["crossover"] = (crossed[0] + crossed[1]) / 2
        losses["identity"] = self._identity_loss(slots)
        return losses

    def _gate(self, level: Tensor) -> Tensor:
        """The value unchanged, its gradient scaled."""
        share = self.config.gradient_gate
        return level if share == 1 else share * level + (1 - share) * level.detach()

    def _slot(self, dense: DenseOutputs, targets: list[FrameTargets]) -> _Slot:
        found = assign(targets, dense.at, self.config.fcos.ranges)
        count = len(found.image)
        kept = torch.arange(count, device=found.image.device)
        if count > MAX_MASK_POSITIVES:
            kept = torch.randperm(count, device=found.image.device)[:MAX_MASK_POSITIVES]
        return _Slot(dense, targets, found, kept)

    def _frame_losses(self, slot: _Slot, average: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
        dense, found = slot.dense, slot.found
        image, location = found.image, found.location
        one_hot = torch.zeros_like(dense.class_logits, dtype=torch.float32)
        one_hot[image, location, found.labels[image, location]] = 1
        centerness = found.centerness
        positives = average(torch.tensor(float(len(image)), device=image.device)).clamp(min=1)
        total_centerness = average(centerness.sum()).clamp(min=1e-6)
        logits = self._paint(slot, slot.kept, slot)
        return {
            "class": sigmoid_focal_loss(dense.class_logits, one_hot) / positives,
            "box": giou_loss(dense.distances[image, location], found.distances, centerness) / total_centerness,
            "centerness": centerness_loss(dense.centerness[image, location], centerness) / positives,
            "mask": mean_or_zero(dice_loss(logits, _masks_of(slot, slot.kept))),
        }

    def _paint(self, source: _Slot, chosen: Tensor, canvas: _Slot, at: Tensor | None = None) -> Tensor:
        """Masks by the filters of positives `chosen` of `source`, on the mask features of `canvas`.  -> (n, Hp/4, Wp/4)

        `at` (n,) are the positives of `canvas` whose place and level count; by default the chosen ones' own.
        """
        image, location = source.found.image[chosen], source.found.location[chosen]
        place = location if at is None else canvas.found.location[at]
        filters, features = source.dense.filters[image, location], canvas.dense.mask_features[image]
        points = canvas.dense.at.points[place]
        return dynamic_mask_logits(features.float(), filters.float(), points, self._divisors(canvas.dense, place))

    def _crossover(self, source: _Slot, other: _Slot, counterparts: list[Tensor]) -> Tensor:
        """Filters of one frame paint the other (specification 3.4): mean dice over positives that have a partner."""
        chosen, partner = _draw_partners(source, other, counterparts)
        logits = self._paint(source, chosen, other, at=partner)
        return mean_or_zero(dice_loss(logits, _masks_of(other, partner)))

    def _identity_loss(self, slots: list[_Slot]) -> Tensor:
        """Focal loss of every positive against all training identities (specification 3.5); no cap of 500."""
        if self.proxies is None:
            raise ValueError("CrossVIS was built without num_identities, so it has no identity loss to train with")
        embeddings = torch.cat([s.dense.embeddings[s.found.image, s.found.location] for s in slots])
        labels = torch.cat([_instance_values(s, "identities", s.found.image, s.found.instance) for s in slots])
        logits = self.proxies(embeddings.float())
        one_hot = torch.zeros_like(logits)
        one_hot[torch.arange(len(labels), device=labels.device), labels] = 1
        return sigmoid_focal_loss(logits, one_hot) / max(len(labels), 1)


def _offsets(targets: list[FrameTargets]) -> Tensor:
    """(B,) where the instances of each image begin when those of all images stand in one list."""
    counts = torch.tensor([0, *(len(t) for t in targets)])
    return counts.cumsum(0)[:-1]


def _instance_values(slot: _Slot, name: str, image: Tensor, instance: Tensor) -> Tensor:
    """The field `name` of the targets of `slot`, for each (image, instance)."""
    table = torch.cat([getattr(t, name) for t in slot.targets])
    return table[_offsets(slot.targets).to(image.device)[image] + instance]


def _masks_of(slot: _Slot, positives: Tensor) -> Tensor:
    """The true stride-4 masks of the chosen positives: (n, Hp/4, Wp/4)."""
    return _instance_values(slot, "masks_stride4", slot.found.image[positives], slot.found.instance[positives])


def _draw_partners(source: _Slot, other: _Slot, counterparts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """For each kept positive of `source` whose instance has positives in `other`: itself, and one of those at random.

    Positives of `other` are sorted by instance, so that those of one instance form a run; a uniform draw picks from it.
    """
    into = torch.cat(counterparts)                                                          # (sum G,)
    begin = _offsets(other.targets).to(into.device)
    mine = _offsets(source.targets).to(into.device)
    image = source.found.image[source.kept]
    partner = into[mine[image] + source.found.instance[source.kept]]                        # (n,), -1 for none
    keys = begin[other.found.image[other.kept]] + other.found.instance[other.kept]          # (m,)
    order = torch.argsort(keys, stable=True)
    wanted = begin[image] + partner
    first = torch.searchsorted(keys[order], wanted)
    count = torch.searchsorted(keys[order], wanted, right=True) - first
    usable = (partner >= 0) & (count > 0)
    draw = (torch.rand(len(first), device=into.device) * count).long().minimum(count - 1)
    return source.kept[usable], other.kept[order[(first + draw)[usable]]]
