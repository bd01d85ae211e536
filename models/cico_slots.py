"""Time slots of a clip: each gives a tube for every anchor, and answers for one frame or for a few that follow.

In:     T, and the form
Out:    `Slots`: S of them; slot m looks at frames m * stride to m * stride + kernel - 1
State:  none
Source: CiCo specification 2.5, 3.1, as released: a slot a frame; for some of the longer clips three, whatever their
        length, by last convolutions that reach over several frames
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

SlotForm = Literal["frames", "three"]

THREE = {4: (2, 1), 5: (3, 1), 6: (2, 2), 7: (3, 2)}
"""T -> kernel and stride that leave three slots."""


@dataclass(frozen=True)
class Slots:
    """Of a clip of `frames`."""

    frames: int
    kernel: int = 1
    stride: int = 1

    @staticmethod
    def of(frames: int, form: SlotForm) -> Slots:
        """Raises ValueError for clips that have no three slots of several frames."""
        if form == "frames":
            return Slots(frames)
        if frames not in THREE:
            raise ValueError(f"slots: three is for clips of 4 to 7 frames, clip_length is {frames}; set slots: frames")
        return Slots(frames, *THREE[frames])

    @property
    def count(self) -> int:
        """S."""
        return (self.frames - self.kernel) // self.stride + 1

    @property
    def centers(self) -> list[float]:
        """The middle of each slot's frames, in frames."""
        return [slot * self.stride + (self.kernel - 1) / 2 for slot in range(self.count)]
