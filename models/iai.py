"""IAI: CondInst that says of every location which known identity is there, or a new one; memory is before the heads.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32, and per row the `Memory` of its stream
Out:    `features()` the backbone's maps, stateless, of any frames together; `associate()` the pyramid of a frame that
        has read its stream's memory; `heads()` a `DenseOutputs` with identity logits; in training, `forward()` the
        losses of clips
State:  none; the memory of a stream lies in operators/identify.py, that of a clip in `forward`
Limits: one frame of a stream at a time, since its finished masks are what the next one reads
Source: Zhu et al., Instance As Identity, ECCV 2022; IAI specification 2, 3. Where paper and release differ, the release
        is followed, but for two of its faults: new instances are told by position (models/clip_targets.py), and the
        padding of a batch is background (`fix_pad`). Ours: the release runs frame 1's block again before storing it in
        training, which draws other dropped tokens and nothing else; here it runs once. `id_loss: ce` is our reading.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.association_block import AssociationConfig, HybridAssociation, Memory, Read, mapped_channels, write
from models.backbones import BackboneConfig
from models.clip_targets import coded, memory_labels, without_surplus
from models.condinst import Average, CondInst, CondInstConfig, DenseOutputs, SlotOutputs
from models.fcos import PRIOR_BIAS, FCOSConfig, init_head_conv, make_tower
from models.inputs import InputConfig
from models.losses import at_least_float32, sigmoid_focal_loss
from models.resnet import ResNetConfig
from models.targets import ClipBatch

PIXELS = InputConfig(
    channel_order="rgb", mean=(123.68, 116.779, 103.939), std=(58.393, 57.12, 57.375), antialias=False
)


@dataclass(frozen=True, kw_only=True)
class IAIConfig(CondInstConfig):
    """The defaults are IAI + CondInst R-50 as released for YouTube-VIS 2019."""

    num_classes: int = 40
    num_slots: int = 20
    """N, outputs of the identity head: N - 1 identities and "new". More: more objects at once; high slots are seen less
    in training. 25 for YouTube-VIS 2021 and OVIS."""
    input: InputConfig = PIXELS
    backbone: BackboneConfig = field(
        default_factory=lambda: ResNetConfig(stride_in="3x3", norm="frozen_statistics", frozen_stages=2)
    )
    fcos: FCOSConfig = field(default_factory=lambda: FCOSConfig(tower_bias=False, center_sampling="moments"))
    giou_added: float = 0.0
    """Added above and below in the IoU of the box loss: 0 the plain GIoU, as released."""
    max_mask_positives: int | None = None
    """Positives of a frame's batch that the mask loss looks at; of more, so many are drawn. null: all, as released."""
    association: AssociationConfig = field(default_factory=AssociationConfig)
    use_id: bool = True
    """Identity head and identity bank. Without, memory still helps the features, and tracks need another rule."""
    id_loss: Literal["focal", "ce"] = "focal"
    """`focal` as released; `ce`: binary cross-entropies of the same outputs, summed and divided alike, since detection
    reads them as independent probabilities either way. The paper does not say which form its table 7 compares."""
    id_tower_depth: int = 1
    """Hidden convolutions of the identity head. More than 2 scored worse (paper's table 8, which counts the last)."""
    interval: int = 3
    """Frames between writes to global memory. Larger: less memory, staler. Trained at 6 frames a second."""
    fix_pad: bool = True
    """Padding that a batch adds to smaller frames counts as background in memory; false: as identity 0, a fault of the
    release."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_slots < 2 or self.interval < 1:
            raise ValueError(f"num_slots {self.num_slots}, interval {self.interval}: expected at least 2 and 1")
        if not 1 <= self.id_tower_depth <= 4:
            raise ValueError(f"id_tower_depth is {self.id_tower_depth}, expected 1 to 4")
        if self.id_loss not in ("focal", "ce"):
            raise ValueError(f"id_loss is {self.id_loss!r}, expected 'focal' or 'ce'")


class IdentityHead(nn.Module):
    """A short tower of its own beside FCOS's two, and one logit per slot.  levels (B, C, h_l, w_l) -> (B, P, N)"""

    def __init__(self, channels: int, num_slots: int, depth: int, config: FCOSConfig) -> None:
        super().__init__()
        self.tower = make_tower(channels, depth, config)
        self.logits = init_head_conv(nn.Conv2d(channels, num_slots, 3, padding=1), PRIOR_BIAS)

    def forward(self, levels: tuple[Tensor, ...]) -> Tensor:
        maps = [self.logits(self.tower(level)) for level in levels]
        return torch.cat([m.flatten(2) for m in maps], dim=2).transpose(1, 2)


class IAI(CondInst):
    """`heads(features(images))` is CondInst's way, not IAI's: `associate` stands between. `num_identities` is taken so
    that all networks are built alike."""

    config: IAIConfig

    def __init__(self, config: IAIConfig, num_identities: int | None = None) -> None:
        super().__init__(config)
        for layer in self.mask_branch.modules():           # PyTorch's own initialisation (specification 2.7)
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        slots = config.num_slots if config.use_id else None
        self.association = HybridAssociation(config.association, self.backbone.channels[-1], slots)
        self.identity_head = (
            IdentityHead(config.channels, config.num_slots, config.id_tower_depth, config.fcos) if slots else None
        )

    def pyramid_inputs(self) -> tuple[int, ...]:
        *finer, coarsest = self.backbone.channels
        return *finer, mapped_channels(self.config.association, coarsest)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> C3, C4, C5, raw; frames of any streams and times may share a batch."""
        return self.backbone(images)

    def associate(
        self, levels: tuple[Tensor, ...], memories: Sequence[Memory | None]
    ) -> tuple[tuple[Tensor, ...], Read]:
        """C3, C4, C5 of B frames of different streams, and what those remember -> P3..P7, and what to store of each.

        None is the memory of a stream's first frame. Raises ValueError: see `HybridAssociation.read`.
        """
        read = self.association.read(levels[-1], memories)
        return self.fpn(*levels[:-1], read.mapped), read

    def heads(self, levels: tuple[Tensor, ...]) -> DenseOutputs:
        """P3..P7 -> everything said of every location; stateless."""
        dense = super().heads(levels)
        return dense if self.identity_head is None else replace(dense, identity_logits=self.identity_head(levels))

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: ClipBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised, each the mean over the frames (specification 3).

        Memory is written with what is true, not what was found, and nothing in it is detached: later frames teach
        earlier ones. `average` takes the mean of a number over all workers.
        """
        return self._still_losses(self.slots(batch), average)

    def slots(self, batch: ClipBatch) -> list[SlotOutputs]:
        """The frames of the clips in order, the memory of each holding those before."""
        frames = without_surplus(batch.targets, self.config.num_slots)
        levels = self.features(torch.cat(batch.images))                                        # frame-major: T * B
        steps = list(zip(*(level.split(len(batch)) for level in levels), strict=True))
        memories: list[Memory | None] = [None] * len(batch)
        slots = []
        for t, (maps, targets) in enumerate(zip(steps, coded(frames, self.config.num_slots), strict=True)):
            pyramid, read = self.associate(maps, memories)
            slots.append(self.assigned(self.heads(tuple(self._gate(level) for level in pyramid)), targets))
            if t + 1 == len(steps):
                break                                                   # nobody reads what the last frame would write
            labels = memory_labels(frames[t], self.config.num_slots, self._sizes(batch, t))
            entries = self.association.entries(read, labels, t + 1)
            memories = [
                write(memory, entry, False, self.config.interval)       # as released: new objects write at test alone
                for memory, entry in zip(memories, entries, strict=True)
            ]
        return slots

    def _sizes(self, batch: ClipBatch, t: int) -> list[tuple[int, int]] | None:
        if self.config.fix_pad:
            return None
        if batch.sizes is None:
            raise ValueError("IAI: fix_pad is off, which needs the sizes of the frames (ClipBatch.sizes); none came")
        return batch.sizes[t]

    def frame_losses(self, slot: SlotOutputs, average: Average = lambda x: x) -> dict[str, Tensor]:
        """CondInst's, and that of the identities: all locations, all N outputs, none true but for positives."""
        losses = super().frame_losses(slot, average)
        if slot.dense.identity_logits is not None:
            losses["identity"] = self._identity_loss(slot, average)
        return losses

    def _identity_loss(self, slot: SlotOutputs, average: Average) -> Tensor:
        image, location = slot.found.image, slot.found.location
        logits = at_least_float32(slot.dense.identity_logits)
        truth = torch.zeros_like(logits)
        everyone = torch.arange(len(image), device=image.device)
        truth[image, location, slot.of_instances("identities", everyone)] = 1
        positives = average(torch.tensor(float(len(image)), device=image.device)).clamp(min=1)
        if self.config.id_loss == "ce":
            return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / positives
        return sigmoid_focal_loss(logits, truth) / positives
