"""IAI: CondInst that says of every location which known identity is there, or a new one; memory is before the heads.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32, and per row the `Memory` of its stream
Out:    `features()` C3..C5 and `associate()` P3..P7, as models/remembering.py has them; `heads()` a `DenseOutputs` with
        identity logits; in training, `forward()` the losses of clips
State:  none; the memory of a stream lies in operators/identify.py
Source: Zhu et al., Instance As Identity, ECCV 2022; IAI specification 2, 3. Where paper and release differ, the release
        is followed (but for what models/remembering.py says). `id_loss: ce` is our reading.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.backbones import BackboneConfig
from models.condinst import Average, CondInst, CondInstConfig, DenseOutputs, SlotOutputs
from models.fcos import PRIOR_BIAS, FCOSConfig, init_head_conv, make_tower
from models.inputs import InputConfig
from models.losses import at_least_float32, sigmoid_focal_loss
from models.remembering import PIXELS, MemoryConfig, Remembering
from models.resnet import ResNetConfig
from models.targets import ClipBatch


@dataclass(frozen=True, kw_only=True)
class IAIConfig(CondInstConfig, MemoryConfig):
    """The defaults are IAI + CondInst R-50 as released for YouTube-VIS 2019."""

    num_classes: int = 40
    input: InputConfig = PIXELS
    backbone: BackboneConfig = field(
        default_factory=lambda: ResNetConfig(stride_in="3x3", norm="frozen_statistics", frozen_stages=2)
    )
    fcos: FCOSConfig = field(default_factory=lambda: FCOSConfig(tower_bias=False, center_sampling="moments"))
    giou_added: float = 0.0
    """Added above and below in the IoU of the box loss: 0 the plain GIoU, as released."""
    max_mask_positives: int | None = None
    """Positives of a frame's batch that the mask loss looks at; of more, so many are drawn. null: all, as released."""
    id_loss: Literal["focal", "ce"] = "focal"
    """`focal` as released; `ce`: binary cross-entropies of the same outputs, summed and divided alike, since detection
    reads them as independent probabilities either way. The paper does not say which form its table 7 compares."""
    id_tower_depth: int = 1
    """Hidden convolutions of the identity head. More than 2 scored worse (paper's table 8, which counts the last)."""

    def __post_init__(self) -> None:
        CondInstConfig.__post_init__(self)
        MemoryConfig.__post_init__(self)
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


class IAI(Remembering, CondInst):
    """CondInst with a memory. `num_identities` is taken so that all networks are built alike."""

    config: IAIConfig

    def __init__(self, config: IAIConfig, num_identities: int | None = None) -> None:
        super().__init__(config)
        for layer in self.mask_branch.modules():           # PyTorch's own initialisation (specification 2.7)
            if isinstance(layer, nn.Conv2d):
                layer.reset_parameters()
        self.association = self.make_association()
        self.identity_head = None
        if config.use_id:
            self.identity_head = IdentityHead(config.channels, config.num_slots, config.id_tower_depth, config.fcos)

    def heads(self, levels: tuple[Tensor, ...]) -> DenseOutputs:
        """P3..P7 -> everything said of every location; stateless."""
        dense = super().heads(levels)
        return dense if self.identity_head is None else replace(dense, identity_logits=self.identity_head(levels))

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: ClipBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised, each the mean over the frames (specification 3).
        `average` takes the mean of a number over all workers."""
        return self._still_losses(self.slots(batch), average)

    def slots(self, batch: ClipBatch) -> list[SlotOutputs]:
        """What was said of each frame of the clips, in order, beside what is true."""
        return [
            self.assigned(self.heads(tuple(self._gate(level) for level in pyramid)), targets)
            for pyramid, targets in self.clip_frames(batch)
        ]

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
