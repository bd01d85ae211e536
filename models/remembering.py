"""What makes a network an IAI: frames read their stream's memory before the pyramid, and clips teach it in order.

In:     images (B, 3, Hp, Wp), normalised, sides multiples of 32, and per row the `Memory` of its stream
Out:    `features()` the backbone's maps, stateless, of any frames together; `associate()` the pyramid of a frame that
        has read its stream's memory; in training, `clip_frames()` the pyramids of clips, frame by frame
State:  none; the memory of a stream lies in operators/identify.py, that of a clip in `clip_frames`
Limits: one frame of a stream at a time, since its finished masks are what the next one reads
Source: Zhu et al., Instance As Identity, ECCV 2022; IAI specification 2.2, 3.1. Where paper and release differ, the
        release is followed, but for two of its faults: new instances are told by position (models/clip_targets.py), and
        the padding of a batch is background (`fix_pad`). Ours: the release runs frame 1's block again before storing it
        in training, which draws other dropped tokens and nothing else; here it runs once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from models.association_block import AssociationConfig, HybridAssociation, Memory, Read, mapped_channels, write
from models.clip_targets import coded, memory_labels, without_surplus
from models.fpn import FPN
from models.inputs import InputConfig
from models.targets import ClipBatch, FrameTargets

PIXELS = InputConfig(
    channel_order="rgb", mean=(123.68, 116.779, 103.939), std=(58.393, 57.12, 57.375), antialias=False
)


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The defaults are IAI as released for YouTube-VIS 2019."""

    num_slots: int = 20
    """N, outputs of the identity head: N - 1 identities and "new". More: more objects at once; high slots are seen less
    in training. 25 for YouTube-VIS 2021 and OVIS."""
    association: AssociationConfig = field(default_factory=AssociationConfig)
    use_id: bool = True
    """Identity head and identity bank. Without, memory still helps the features, and tracks need another rule."""
    interval: int = 3
    """Frames between writes to global memory: in training, and where the graph names no other. Larger: less memory,
    staler. Trained at 6 frames a second."""
    fix_pad: bool = True
    """Padding that a batch adds to smaller frames counts as background in memory; false: as identity 0, a fault of the
    release."""

    def __post_init__(self) -> None:
        if self.num_slots < 2 or self.interval < 1:
            raise ValueError(f"num_slots {self.num_slots}, interval {self.interval}: expected at least 2 and 1")


class Remembering(nn.Module):
    """To stand before a network of `backbone`, `fpn` and heads among the bases of a class, which sets `association` by
    `make_association` and never calls `heads(features(images))`: `associate` stands between."""

    config: MemoryConfig
    backbone: nn.Module
    fpn: FPN
    association: HybridAssociation

    def make_association(self) -> HybridAssociation:
        slots = self.config.num_slots if self.config.use_id else None
        return HybridAssociation(self.config.association, self.backbone.channels[-1], slots)

    def pyramid_inputs(self) -> tuple[int, ...]:
        """Channels of the maps that the pyramid is built of."""
        *finer, coarsest = self.backbone.channels
        return *finer, mapped_channels(self.config.association, coarsest)

    def features(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, Hp, Wp) -> the backbone's maps, raw, C5 last; frames of any streams and times may share a batch."""
        return self.backbone(images)

    def associate(
        self, levels: tuple[Tensor, ...], memories: Sequence[Memory | None]
    ) -> tuple[tuple[Tensor, ...], Read]:
        """The backbone's maps of B frames of different streams, and what those remember -> the pyramid, and what to
        store of each.

        None is the memory of a stream's first frame. Raises ValueError: see `HybridAssociation.read`.
        """
        read = self.association.read(levels[-1], memories)
        return self.fpn(*levels[:-1], read.mapped), read

    def clip_frames(self, batch: ClipBatch) -> Iterator[tuple[tuple[Tensor, ...], list[FrameTargets]]]:
        """The frames of the clips in order, the memory of each holding those before: pyramids of B rows, and targets
        whose identities are codes.

        Memory is written with what is true, not what was found, and nothing in it is detached: later frames teach
        earlier ones. Raises ValueError where `fix_pad` is off and the batch does not tell the sizes of its frames.
        """
        slots = self.config.num_slots
        frames = without_surplus(batch.targets, slots)
        levels = self.features(torch.cat(batch.images))                                        # frame-major: T * B
        steps = list(zip(*(level.split(len(batch)) for level in levels), strict=True))
        memories: list[Memory | None] = [None] * len(batch)
        for t, (maps, targets) in enumerate(zip(steps, coded(frames, slots), strict=True)):
            pyramid, read = self.associate(maps, memories)
            yield pyramid, targets
            if t + 1 == len(steps):
                break                                                   # nobody reads what the last frame would write
            entries = self.association.entries(read, memory_labels(frames[t], slots, self._sizes(batch, t)), t + 1)
            memories = [
                write(memory, entry, False, self.config.interval)       # as released: new objects write at test alone
                for memory, entry in zip(memories, entries, strict=True)
            ]

    def _sizes(self, batch: ClipBatch, t: int) -> list[tuple[int, int]] | None:
        if self.config.fix_pad:
            return None
        if batch.sizes is None:
            raise ValueError("IAI: fix_pad is off, which needs the sizes of the frames (ClipBatch.sizes); none came")
        return batch.sizes[t]
