"""CrossVIS: CondInst with crossover learning and a global balanced embedding.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32
Out:    `features()` the pyramid P3..P7, `heads()` a `DenseOutputs`; in training, `forward()` the losses of pairs
State:  none; what is remembered from frame to frame lies in operators/association.py
Source: Yang et al., Crossover Learning for Fast Online Video Instance Segmentation, ICCV 2021. Where paper and release
        differ, the release is followed: mean of the two crossover directions, 0.1 gradient gate on the pyramid,
        biased and scaled identity logits, coordinates before mask features (specification 8.1). The paper's forms are
        settings; so are the embeddings of its table 7, and CondInst-VIS, its baseline (specification 5.1). How
        calibration was attached for OVIS is unpublished; specification 5.4's reading is followed (`heads`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from models.calibration import CalibrationConfig, FeatureCalibration
from models.condinst import Average, CondInst, CondInstConfig, DenseOutputs, SlotOutputs
from models.crossover import draw_partners
from models.embedding import EmbeddingHead, IdentityConfig, IdentityProxies
from models.identity_losses import global_loss, pairwise_loss
from models.inputs import InputConfig
from models.targets import PairBatch


@dataclass(frozen=True, kw_only=True)
class CrossVISConfig(CondInstConfig):
    """The defaults are CrossVIS R-50 as released."""

    num_classes: int = 40
    input: InputConfig = field(default_factory=InputConfig)
    embedding_dim: int = 256
    """Length of the association vector; state of a stream grows with it."""
    gradient_gate: float = 0.1
    """Share of the gradient that reaches backbone and pyramid. 0.1 protects pre-trained weights; 1 is for training from
    scratch."""
    crossover: bool = True
    """Train the filters of one frame to paint the other too. Costs a fifth of a training step, nothing at inference."""
    crossover_reduction: Literal["mean", "sum"] = "mean"
    """Of the two directions: `mean` as released, `sum` as the paper's equation 16."""
    crossover_place: Literal["random", "center"] = "random"
    """Which positive of the other frame lends its place: any of the instance's, drawn anew for each filter, as
    released; or its most central one, our reading of the paper's "location"."""
    identity: IdentityConfig = field(default_factory=IdentityConfig)
    calibration: CalibrationConfig | None = None
    """Lend each frame the features of its neighbours before the heads, for scenes full of occlusion (OVIS); `{}` takes
    the published grid. The heads run once per neighbour. null is CrossVIS as released."""


class CrossVIS(CondInst):
    """`num_identities` is the number of training identities; None (inference) leaves the proxies out."""

    config: CrossVISConfig

    def __init__(self, config: CrossVISConfig, num_identities: int | None = None) -> None:
        super().__init__(config)
        self.embedding = EmbeddingHead(config.channels, config.embedding_dim, config.fcos)
        with_proxies = num_identities and config.identity.targets == "global"
        self.proxies = (
            IdentityProxies(config.embedding_dim, num_identities, config.identity.logits) if with_proxies else None
        )
        self.calibration = FeatureCalibration(config.channels, config.calibration) if config.calibration else None

    def heads(
        self,
        levels: tuple[Tensor, ...],
        references: tuple[tuple[Tensor, ...], ...] = (),
        counts: Tensor | None = None,
    ) -> DenseOutputs:
        """The pyramid, and with calibration R pyramids of neighbouring frames -> everything said of every location.

        Calibrated maps feed class and box tower, controller and mask branch, the plain ones the identity tower. All
        that the calibrated maps say is averaged over the references: class and centre-ness logits, distances, filters
        and mask features; of the last two and of centre-ness the publications say nothing. Image b looks at its first
        counts[b] >= 1 references alone (all, without counts), so frames with fewer may share a batch. Without any, a
        frame is its own reference, as in training where a video has no second frame.
        Raises ValueError for references without calibration.
        """
        if self.calibration is None:
            if references:
                raise ValueError(f"CrossVIS without calibration was given {len(references)} references; give none")
            return super().heads(levels)
        maps, mean = self._embedding_maps(levels), None
        for r, reference in enumerate(references or (levels,)):
            said = self._dense(self.calibration(levels, reference), maps)
            mean = said if mean is None else _running_mean(mean, said, r, counts)
        return mean

    def _embedding_maps(self, levels: tuple[Tensor, ...]) -> list[Tensor]:
        return self.embedding(levels)

    def slots(self, batch: PairBatch) -> list[SlotOutputs]:
        """With calibration, either frame of a pair is the other's reference, behind the gate."""
        if self.calibration is None:
            return super().slots(batch)
        gated = [tuple(self._gate(level) for level in self.features(images)) for images, _ in batch.slots]
        dense = [self.heads(gated[s], (gated[1 - s],)) for s in (0, 1)]
        return [self.assigned(d, targets) for d, (_, targets) in zip(dense, batch.slots, strict=True)]

    def forward(self, batch: PairBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, whose plain sum is to be minimised (specification 3.1 to 3.6).

        `average` takes the mean of a number over all workers: positives are counted over all of them, the means of
        mask, crossover and identity loss are a worker's own. The slots are separate passes: one batch of both would
        change the batch norms.
        """
        slots = self.slots(batch)
        losses = self._still_losses(slots, average)
        if self.config.crossover:
            crossed = [self.crossover_loss(slots[s], slots[1 - s], batch.counterparts[s]) for s in (0, 1)]
            share = 0.5 if self.config.crossover_reduction == "mean" else 1.0
            losses["crossover"] = share * (crossed[0] + crossed[1])
        losses["identity"] = self.identity_loss(slots, batch)
        return losses

    def crossover_loss(self, source: SlotOutputs, other: SlotOutputs, counterparts: list[Tensor]) -> Tensor:
        """Filters of one frame paint the other (specification 3.4): mean dice over positives that have a partner."""
        chosen, partner = draw_partners(source, other, counterparts, self.config.crossover_place)
        return self._painting_loss(source, chosen, other, partner)

    def identity_loss(self, slots: list[SlotOutputs], batch: PairBatch) -> Tensor:
        """Of the embeddings of all positives, as `identity` asks (specification 3.5, 5.1)."""
        kind = self.config.identity
        if kind.targets == "pairwise":
            directions = [pairwise_loss(slots[s], slots[1 - s], batch.counterparts[s], kind.loss) for s in (0, 1)]
            return (directions[0] + directions[1]) / 2
        if self.proxies is None:
            raise ValueError("CrossVIS was built without num_identities, so it has no identity loss to train with")
        return global_loss(slots, self.proxies, kind.loss)


_CALIBRATED = ("class_logits", "distances", "centerness", "filters", "mask_features")
"""Fields of DenseOutputs that depend on the reference."""


def _running_mean(mean: DenseOutputs, said: DenseOutputs, number: int, counts: Tensor | None) -> DenseOutputs:
    """The mean of `number` outputs and one more; images that have no more keep theirs, bit for bit."""
    changed = {}
    for name in _CALIBRATED:
        before, new = getattr(mean, name), getattr(said, name)
        value = before + (new - before) / (number + 1)
        if counts is not None:
            value = torch.where((counts > number).view(-1, *[1] * (value.dim() - 1)), value, before)
        changed[name] = value
    return replace(mean, **changed)
