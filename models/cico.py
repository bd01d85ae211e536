"""CiCo: clips of T frames in, tubes out, each with T boxes and T masks. Yolact's or CondInst's masks.

In:     images (B * T, 3, Hp, Wp), the frames of a clip side by side, normalised, sides multiples of 32
Out:    `features()` P3..P7 and the merged mask map of single frames; `heads()` a `ClipOutputs`; in training,
        `forward()` the losses
State:  none; windows of a stream and what is remembered of its tracks lie in operators/
Source: Li & Zhang, One-stage Video Instance Segmentation: From Frame-in Frame-out to Clip-in Clip-out, 2022; CiCo
        specification 2, 3. Where paper and release differ, both forms are settings; the defaults are the
        specification's (its section 8). With all towers in 2D it is the paper's frame-in frame-out baseline: T = 1 the
        plain one, T > 1 trained by clips all the same. T = 1 without tracking is the form that stills are learnt in.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.backbones import BackboneConfig, make_backbone
from models.cico_anchors import TubeAnchors, decode, diou, encode
from models.cico_heads import ClipHeads, Dims, HeadWidths, TubeMaps
from models.cico_losses import CLASS_LOSSES, ClassLoss, box_loss, mask_loss, quality_losses, tracking_loss
from models.cico_masks import MaskForm, Window, paint
from models.cico_prototypes import ClipPrototypes, Enlarge
from models.cico_slots import SlotForm, Slots
from models.cico_targets import ClipTargets, MatchConfig, clip_targets, match
from models.fcos_losses import Average
from models.inputs import InputConfig
from models.losses import at_least_float32
from models.resnet import ResNetConfig
from models.sampling import IGNORED
from models.targets import ClipBatch, StillBatch
from models.yolact_fpn import YolactFPN

PIXELS = InputConfig(
    short_side=384, long_side=640, channel_order="rgb", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375),
    antialias=False, fit="box",
)  # fmt: skip
CLASS_WEIGHT = TRACKING_WEIGHT = 5.0
MASK_WEIGHT = 6.125
"""For each frame of the clip, of five at most."""


@dataclass(frozen=True, kw_only=True)
class CiCoConfig:
    """The defaults are CiCo-Yolact R-50."""

    num_classes: int = 40
    clip_length: int = 3
    """T. Longer: more context for every frame, and frames that have less to do with each other. 3 is best."""
    slots: SlotForm = "frames"
    """`frames`: each frame gives tubes. `three`: as in some runs of the release, clips of 4 to 7 frames have three
    slots that do, of several frames each."""
    input: InputConfig = PIXELS
    backbone: BackboneConfig = field(
        default_factory=lambda: ResNetConfig(stride_in="3x3", norm="batch", frozen_stages=0)
    )
    """Which trunk, told by `name`: resnet, swin or dla34."""
    channels: int = 256
    """Width of pyramid and towers. Cost grows with its square."""
    mask_channels: int = 256
    """Width of the clip-level mask head."""
    tower_convs: int = 4
    embedding_dim: int = 64
    tracking: bool = True
    """Tracking tower and loss. Without: for stills."""
    box_tower: Dims = "3d"
    """Of boxes and mask parameters. 3d gains 3.2 AP (table 1b)."""
    track_tower: Dims = "3d"
    """3d gains 0.9 AP."""
    cls_tower: Dims = "2d"
    """3d loses 1.3 AP."""
    cmh: Dims = "3d"
    """The mask head. 3d gains 0.3 AP (table 1d)."""
    cmh_upsample: Enlarge = "interpolate"
    """How prototypes come to a quarter of the input: `interpolate` as released; `deconv` as in the paper."""
    masks: MaskForm = field(default_factory=MaskForm)
    crop_train: float | None = 1.5
    """Masks are cut at their true box enlarged by this. null: not at all (the paper's CondInst)."""
    crop_test: float | None = 1.1
    """Masks are cut at their predicted box enlarged by this; 1.5 for CondInst as released, null as in the paper."""
    match: MatchConfig = field(default_factory=MatchConfig)
    cls_loss: ClassLoss = "focal"
    """`focal`, of the release for YouTube-VIS; `ohem`, for OVIS, with three hard negatives for each positive; `ce`, the
    paper's plain mean, which background drowns. The last two have a class for the background."""
    quality: bool = True
    """Learn the DIoU of boxes too, and a centre-ness that ranks by it. False: smooth L1 alone, as in the paper."""
    average_boxes: bool = True
    """The box loss is divided by the positives, as released. False: by all samples, as in the paper's equation 7, which
    leaves next to nothing of it."""

    def __post_init__(self) -> None:
        numbers = (self.num_classes, self.clip_length, self.channels, self.mask_channels, self.masks.prototypes)
        if min(*numbers, self.tower_convs, self.embedding_dim) < 1:
            raise ValueError("num_classes, clip_length, widths, tower_convs and embedding_dim must be at least 1")
        Slots.of(self.clip_length, self.slots)
        if any(crop is not None and crop <= 0 for crop in (self.crop_train, self.crop_test)):
            raise ValueError(f"crop_train {self.crop_train}, crop_test {self.crop_test}: expected above 0, or null")

    @property
    def background(self) -> int:
        """1 where the first class is the background, else 0."""
        return int(self.cls_loss != "focal")


@dataclass(frozen=True)
class ClipOutputs:
    """What the network says of B clips."""

    tubes: TubeMaps
    """Of S time slots, mostly T, and N anchors."""
    prototypes: Tensor
    """(B, Hp/4, Wp/4, T, k), not negative."""
    anchors: TubeAnchors


@dataclass(frozen=True)
class Positives:
    """The n tubes of a batch that answer for an object, and the samples of its class loss."""

    clip: Tensor
    """(n,) int64, rising."""
    slot: Tensor
    """(n,) int64: the time slot."""
    anchor: Tensor
    """(n,) int64."""
    instance: Tensor
    """(n,) int64: which object of the clip."""
    owner: Tensor
    """(B, S, N) int64: of every tube, the object; BACKGROUND, or IGNORED where it takes no part."""

    def __len__(self) -> int:
        return len(self.clip)

    def of(self, maps: Tensor) -> Tensor:
        """(B, S, N, ..) -> (n, ..)"""
        return maps[self.clip, self.slot, self.anchor]

    def true(self, targets: list[ClipTargets], name: str) -> Tensor:
        """The field `name` of each positive's object: (n, ..)."""
        begin = torch.tensor([0, *(len(t) for t in targets)], device=self.clip.device).cumsum(0)[:-1]
        return torch.cat([getattr(t, name) for t in targets])[begin[self.clip] + self.instance]

    def in_clip(self, clip: int) -> Positives:
        here = self.clip == clip
        return Positives(self.clip[here], self.slot[here], self.anchor[here], self.instance[here], self.owner)


class CiCo(nn.Module):
    """Parts joined. `num_identities` is taken so that all networks are built alike; clips count their own."""

    soft_masks = True
    """Masks to learn from may be shares, 0..1: `clip_targets` holds them against a half."""

    def __init__(self, config: CiCoConfig, num_identities: int | None = None) -> None:
        super().__init__()
        self.config = config
        frames, self.slots = config.clip_length, Slots.of(config.clip_length, config.slots)
        self.backbone = make_backbone(config.backbone)
        self.fpn = YolactFPN(self.backbone.channels, config.channels)
        widths = HeadWidths(
            frames=frames,
            classes=config.num_classes + config.background,
            embedding=config.embedding_dim if config.tracking else 0,
            parameters=config.masks.num_parameters,
            slots=self.slots,
        )
        dims = config.box_tower, config.track_tower, config.cls_tower
        self.clip_heads = ClipHeads(config.channels, widths, config.tower_convs, *dims, prior=not config.background)
        self.prototypes = ClipPrototypes(
            config.channels, config.mask_channels, config.masks.prototypes, frames, config.cmh, config.cmh_upsample
        )

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """Single frames (B, 3, Hp, Wp) -> P3..P7 and the merged mask map (B, F, Hp/8, Wp/8).

        All is of each frame alone: what clips share need not be computed twice.
        """
        levels = self.fpn(*self.backbone(images))
        merged = self.prototypes.merge(*(at_least_float32(level) for level in levels[:3]))  # a fused trunk gives half
        return (*levels, merged)

    def heads(self, levels: tuple[Tensor, ...]) -> ClipOutputs:
        """The features of B clips of T frames, each (B * T, F, h, w), frames of a clip side by side; stateless.

        Raises ValueError for frames that make no whole clips.
        """
        *pyramid, merged = levels
        if len(merged) % self.config.clip_length:
            raise ValueError(f"CiCo: {len(merged)} frames came, expected a multiple of T = {self.config.clip_length}")
        anchors = TubeAnchors.of([level.shape[-2:] for level in pyramid], merged.device)
        return ClipOutputs(self.clip_heads(tuple(pyramid)), self.prototypes(merged), anchors)

    def class_probabilities(self, logits: Tensor) -> Tensor:
        """(.., K) or (.., K + 1) -> (.., K), without background."""
        logits = logits.float()
        return logits.softmax(-1)[..., 1:] if self.config.background else logits.sigmoid()

    def quality(self, centerness: Tensor) -> Tensor:
        """What class probabilities are multiplied by to rank tubes: 0..1, or 1 where it was not learnt."""
        return centerness.float().sigmoid() if self.config.quality else torch.ones_like(centerness, dtype=torch.float32)

    def paint(
        self, prototypes: Tensor, parameters: Tensor, unions: Tensor, levels: Tensor, window: Window | None
    ) -> Tensor:
        """Masks of m tubes on the prototypes (h, w, T, k) of one clip, maybe a later one than theirs: (m, T, h, w)."""
        prototypes, parameters = at_least_float32(prototypes), at_least_float32(parameters)
        return paint(prototypes, parameters, unions, levels, self.config.masks, window)

    def test_window(self) -> Window | None:
        return None if self.config.crop_test is None else Window(self.config.crop_test)

    # ------------------------------------------------------------------------------------------ training

    def forward(self, batch: ClipBatch | StillBatch, average: Average = lambda x: x) -> dict[str, Tensor]:
        """The parts of the total, weighted, whose plain sum is to be minimised (specification 3.2).

        Each worker divides by its own positives, so `average` is not asked. Without any positive all parts are 0.
        Raises ValueError for clips of another length than the network's.
        """
        images = torch.stack([images for images, _ in batch.slots], dim=1)              # (B, T, 3, Hp, Wp)
        if images.shape[1] != self.config.clip_length:
            raise ValueError(f"CiCo: clips of {images.shape[1]} frames came, built for {self.config.clip_length}")
        targets = [clip_targets(frames) for frames in zip(*(targets for _, targets in batch.slots), strict=True)]
        return self.losses(self.heads(self.features(images.flatten(0, 1))), targets)

    def positives(self, out: ClipOutputs, targets: list[ClipTargets]) -> Positives:
        """Who answers for what. Tubes whose numbers, said or true, are not finite take no part."""
        owner = torch.stack([match(clip, out.anchors, self.config.match, self.slots) for clip in targets])
        clip, slot, anchor = (owner >= 0).nonzero().unbind(1)
        found = Positives(clip, slot, anchor, owner[clip, slot, anchor], owner)
        if not len(found):
            return found
        said = [found.of(x).flatten(1) for x in (out.tubes.deltas, out.tubes.class_logits, out.tubes.embeddings,
                                                 out.tubes.parameters, out.tubes.centerness[..., None])]
        true = encode(found.true(targets, "boxes"), out.anchors.boxes[anchor, None]).flatten(1)
        boxes = decode(at_least_float32(found.of(out.tubes.deltas)), out.anchors.boxes[anchor, None]).flatten(1)
        fine = torch.stack([x.isfinite().all(1) for x in (*said, true, boxes)]).all(0)
        owner[clip[~fine], slot[~fine], anchor[~fine]] = IGNORED
        return Positives(clip[fine], slot[fine], anchor[fine], found.instance[fine], owner)

    def losses(self, out: ClipOutputs, targets: list[ClipTargets]) -> dict[str, Tensor]:
        """Class, box, mask and tracking losses of B clips."""
        found = self.positives(out, targets)
        if not len(found):
            return dict.fromkeys(self._parts(), self._nothing(out))
        losses = {"class": CLASS_WEIGHT * self._class_loss(out, found, targets)}
        losses |= self._box_losses(out, found, targets)
        clips = [found.in_clip(b) for b in range(len(targets))]
        masks = [self._mask_loss(out, one, targets) for one in clips if len(one)]
        weight = MASK_WEIGHT * min(self.config.clip_length, 5)
        losses["mask"] = weight * torch.stack(masks).sum() / len(clips)
        if self.config.tracking:
            pairs = [tracking_loss(one.of(out.tubes.embeddings), one.instance) for one in clips if len(one)]
            losses["tracking"] = TRACKING_WEIGHT * torch.stack(pairs).sum() / len(clips)
        return losses

    def _parts(self) -> list[str]:
        quality = ["diou", "centerness"] if self.config.quality else []
        return ["class", "box", *quality, "mask", *(["tracking"] if self.config.tracking else [])]

    @staticmethod
    def _nothing(out: ClipOutputs) -> Tensor:
        """0, joined to everything that the network says."""
        tubes = out.tubes
        said = (tubes.deltas, tubes.centerness, tubes.class_logits, tubes.embeddings, tubes.parameters, out.prototypes)
        return torch.stack([at_least_float32(x).sum() * 0 for x in said]).sum()

    def _class_loss(self, out: ClipOutputs, found: Positives, targets: list[ClipTargets]) -> Tensor:
        labels = found.owner.clone()                                                    # BACKGROUND is -1 here too
        labels[found.clip, found.slot, found.anchor] = found.true(targets, "labels")
        taken = found.owner != IGNORED
        return CLASS_LOSSES[self.config.cls_loss](out.tubes.class_logits[taken], labels[taken])

    def _box_losses(self, out: ClipOutputs, found: Positives, targets: list[ClipTargets]) -> dict[str, Tensor]:
        deltas, anchors = at_least_float32(found.of(out.tubes.deltas)), out.anchors.boxes[found.anchor, None]
        boxes = found.true(targets, "boxes")                                            # (n, T, 4)
        samples = len(found) if self.config.average_boxes else int((found.owner != IGNORED).sum())
        losses = {"box": box_loss(deltas, encode(boxes, anchors), samples * self.config.clip_length)}
        if self.config.quality:
            overlaps = diou(decode(deltas, anchors), boxes)
            losses["diou"], losses["centerness"] = quality_losses(found.of(out.tubes.centerness), overlaps)
        return losses

    def _mask_loss(self, out: ClipOutputs, found: Positives, targets: list[ClipTargets]) -> Tensor:
        """Of the positives of one clip."""
        clip, window = int(found.clip[0]), self.config.crop_train
        truth = targets[clip]
        unions = truth.unions[found.instance]
        masks = self.paint(
            out.prototypes[clip], found.of(out.tubes.parameters), unions, out.anchors.levels[found.anchor],
            None if window is None else Window(window),
        )  # fmt: skip
        times = torch.tensor(self.slots.centers, device=masks.device)[found.slot]
        return mask_loss(masks, truth.masks[found.instance], unions, times)
