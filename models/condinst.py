"""CondInst: FCOS whose every location also gives the weights of a small mask network. Still images.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32
Out:    `features()` the pyramid, `heads()` a `DenseOutputs` without embeddings; in training, `forward()` the losses
State:  none
Source: Tian et al., CondInst, ECCV 2020; CrossVIS specification 2 and 3.8. CrossVIS is this network and one tower more
        (models/crossvis.py), so weights trained on COCO stills begin its training.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from models.backbones import BackboneConfig, make_backbone
from models.dynamic_mask import LAYER_SHAPES, NUM_FILTER_VALUES, MaskBranch, dynamic_mask_logits
from models.fcos import FCOSConfig, FCOSHead, Locations, init_head_conv
from models.fcos_losses import Average, fcos_losses
from models.fpn import FPN
from models.inputs import InputConfig
from models.losses import at_least_float32, dice_loss, mean_or_zero
from models.resnet import ResNetConfig
from models.targets import Assignment, FrameTargets, PairBatch, StillBatch, assign


@dataclass(frozen=True, kw_only=True)
class CondInstConfig:
    """The defaults are CondInst R-50 for COCO."""

    num_classes: int = 80
    input: InputConfig = field(default_factory=lambda: InputConfig(short_side=800, long_side=1333))
    backbone: BackboneConfig = field(default_factory=ResNetConfig)
    """Which trunk, told by `name`: resnet or dla34."""
    channels: int = 256
    """Width of pyramid and towers. Cost grows with its square."""
    fcos: FCOSConfig = field(default_factory=FCOSConfig)
    mask_channels: int = 128
    """Width of the mask branch."""
    coordinates: Literal["first", "last"] = "first"
    """Where the two coordinates stand among the inputs of the mask network: `first` as released, `last` as in the
    paper's equation 1. Only weights care."""
    giou_added: float = 1.0
    """Added above and below in the IoU of the box loss, in squared cells of the location's level: 1 as released, which
    is kinder to small boxes; 0 the plain GIoU."""
    max_mask_positives: int | None = 500
    """Positives of a frame's batch that the mask loss looks at; of more, so many are drawn. null: all. Higher: every
    location's filters learn, memory of a training step grows."""
    dice_epsilon: float = 1e-5
    """Added to the denominator of the mask loss; 0 is the paper's equation 8."""
    gradient_gate: float = 1.0
    """Share of the gradient that reaches backbone and pyramid. 0.1 protects pre-trained weights; 1 is for training from
    scratch."""

    def __post_init__(self) -> None:
        if min(self.num_classes, self.channels, self.mask_channels) < 1:
            raise ValueError("num_classes, channels and mask_channels must be at least 1")
        if self.max_mask_positives is not None and self.max_mask_positives < 1:
            raise ValueError(f"max_mask_positives is {self.max_mask_positives}, expected at least 1, or null for all")
        if self.giou_added < 0:
            raise ValueError(f"giou_added is {self.giou_added}, expected 0 or more")
        if not 0 <= self.gradient_gate <= 1 or not 0 <= self.dice_epsilon < 1:
            raise ValueError(f"gradient_gate {self.gradient_gate}, dice_epsilon {self.dice_epsilon}: expected 0 to 1")


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
    """(B, P, D); D = 0 for a network of still images."""
    mask_features: Tensor
    """(B, 8, Hp/8, Wp/8)."""
    at: Locations
    identity_logits: Tensor | None = None
    """(B, P, N) of a network that says which of N identities is where (IAI), else None."""


@dataclass(frozen=True)
class SlotOutputs:
    """One pass of B images in training: what was said, what is true, and which locations answer for which instance."""

    dense: DenseOutputs
    targets: list[FrameTargets]
    found: Assignment
    kept: Tensor
    """(n,) the positives the mask losses look at: all, or `max_mask_positives` at random (specification 3.3)."""

    def offsets(self) -> Tensor:
        """(B,) where the instances of each image begin when those of all images stand in one list."""
        counts = torch.tensor([0, *(len(t) for t in self.targets)], device=self.found.image.device)
        return counts.cumsum(0)[:-1]

    def of_instances(self, name: str, positives: Tensor) -> Tensor:
        """The field `name` of the ground truth that each of the chosen positives (n,) answers for."""
        table = torch.cat([getattr(t, name) for t in self.targets])
        return table[self.instances(positives)]

    def instances(self, positives: Tensor) -> Tensor:
        """(n,) place of each chosen positive's instance in the list of those of all images."""
        return self.offsets()[self.found.image[positives]] + self.found.instance[positives]


class CondInst(nn.Module):
    """Parts joined. `num_identities` is taken so that all networks are built alike; stills have no identities."""

    def __init__(self, config: CondInstConfig, num_identities: int | None = None) -> None:
        super().__init__()
        self.config = config
        self.backbone = make_backbone(config.backbone)
        extra = "p6p7" if config.fcos.num_levels == 5 else "none"
        self.fpn = FPN(self.pyramid_inputs(), config.channels, extra=extra)
        self.fcos = FCOSHead(config.channels, config.num_classes, config.fcos)
        self.controller = init_head_conv(nn.Conv2d(config.channels, NUM_FILTER_VALUES, 3, padding=1))
        self.mask_branch = MaskBranch(config.channels, config.mask_channels)

    def pyramid_inputs(self) -> tuple[int, ...]:
        """Channels of the maps that the pyramid is built of."""
        return self.backbone.channels

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> P3..P7 (P3..P5 with three levels), finest first."""
        return self.fpn(*self.backbone(images))

    def heads(self, levels: tuple[Tensor, ...]) -> DenseOutputs:
        """The pyramid -> everything said of every location; stateless."""
        return self._dense(levels, self._embedding_maps(levels))

    def _embedding_maps(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        return [level.new_zeros(len(level), 0, *level.shape[-2:]) for level in levels]

    def _dense(self, levels: tuple[Tensor, ...], embedding_maps: list[Tensor]) -> DenseOutputs:
        mask_features = self.mask_branch(*levels[:3])
        per_level = self.fcos(levels)
        columns = [(*m[:3], self.controller(m[3]), e) for m, e in zip(per_level, embedding_maps, strict=True)]
        flat = [torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2) for maps in zip(*columns, strict=True)]
        at = Locations.of([level.shape[-2:] for level in levels], levels[0].device)
        classes, distances, centerness, filters, embeddings = flat               # each (B, P, .)
        return DenseOutputs(classes, distances, centerness.squeeze(2), filters, embeddings, mask_features, at)

    def mask_logits(self, dense: DenseOutputs, image: int, locations: Tensor) -> Tensor:
        """Masks of the instances found at `locations` (N,) of one image: (N, Hp/4, Wp/4)."""
        filters, points = self._ordered(dense.filters[image, locations]), dense.at.points[locations]
        return dynamic_mask_logits(dense.mask_features[image], filters, points, self._divisors(dense, locations))

    def _divisors(self, dense: DenseOutputs, locations: Tensor) -> Tensor:
        table = torch.tensor(self.config.fcos.divisors, device=locations.device, dtype=torch.float32)
        return table[dense.at.levels[locations]]

    def _ordered(self, filters: Tensor) -> Tensor:
        """(N, 169) as models/dynamic_mask.py reads them: coordinates before mask features in the first layer."""
        if self.config.coordinates == "first":
            return filters
        outputs, inputs = LAYER_SHAPES[0]
        first = filters[:, : outputs * inputs].reshape(-1, outputs, inputs).roll(2, dims=2)
        return torch.cat([first.flatten(1), filters[:, outputs * inputs :]], dim=1)

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: StillBatch | PairBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised (specification 3.3). The frames of a pair count
        as two stills.

        `average` takes the mean of a number over all workers: positives are counted over all of them, the mean of the
        mask loss is a worker's own. The slots are separate passes: one batch of both would change the batch norms.
        """
        return self._still_losses(self.slots(batch), average)

    def slots(self, batch: StillBatch | PairBatch) -> list[SlotOutputs]:
        """The forward pass of each slot, behind the gradient gate, and which locations answer for what."""
        gated = [tuple(self._gate(level) for level in self.features(images)) for images, _ in batch.slots]
        return [self.assigned(self.heads(levels), t) for levels, (_, t) in zip(gated, batch.slots, strict=True)]

    def _still_losses(self, slots: list[SlotOutputs], average: Average) -> dict[str, Tensor]:
        parts = [self.frame_losses(slot, average) for slot in slots]
        return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}

    def _gate(self, level: Tensor) -> Tensor:
        """The value unchanged, its gradient scaled."""
        share = self.config.gradient_gate
        return level if share == 1 else share * level + (1 - share) * level.detach()

    def assigned(self, dense: DenseOutputs, targets: list[FrameTargets]) -> SlotOutputs:
        """What was said of a slot's images beside what is true of them (specification 3.2)."""
        fcos = self.config.fcos
        found = assign(targets, dense.at, fcos.ranges, fcos.center_sampling)
        count, most = len(found.image), self.config.max_mask_positives
        kept = torch.arange(count, device=found.image.device)
        if most is not None and count > most:
            kept = torch.randperm(count, device=found.image.device)[:most]
        return SlotOutputs(dense, targets, found, kept)

    def frame_losses(self, slot: SlotOutputs, average: Average = lambda x: x) -> dict[str, Tensor]:
        """Class, box, centre-ness and mask loss of one slot (specification 3.3)."""
        losses = fcos_losses(slot.dense, slot.found, average, self.config.giou_added)
        return losses | {"mask": self._painting_loss(slot, slot.kept, slot, slot.kept)}

    def _painting_loss(self, source: SlotOutputs, chosen: Tensor, canvas: SlotOutputs, at: Tensor) -> Tensor:
        """Mean dice of the masks that the filters of positives `chosen` (n,) of `source` paint on `canvas`, as if found
        at its positives `at` (n,), against the masks of the instances there. 0 for none."""
        image, place = source.found.image[chosen], canvas.found.location[at]
        filters = self._ordered(at_least_float32(source.dense.filters[image, source.found.location[chosen]]))
        features, points = at_least_float32(canvas.dense.mask_features[image]), canvas.dense.at.points[place]
        logits = dynamic_mask_logits(features, filters, points, self._divisors(canvas.dense, place))
        return mean_or_zero(dice_loss(logits, canvas.of_instances("masks_stride4", at), self.config.dice_epsilon))
