"""Step 1 of training on pseudo-videos: a still, and what a camera that moves on would see of it.

In:     `FrameIndex` (trainers/frames.py), of COCO images or of the frames of videos
Out:    `PseudoSampler`: an endless, seeded sequence of `Draw`s of T frames, a function of (seed, position) alone
State:  the position, one integer
Source: TLTM specification 1.4; the defaults are its release's, for pairs. It says nothing of more than two frames:
        there the one motion that is drawn is made in even steps, so that objects go on as they began
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from operators.youtube_vis_data import Annotation
from trainers.augment import (
    Affine,
    Augment,
    Blur,
    Changes,
    Colour,
    PhotometricConfig,
    motion_about,
    move_boxes,
    one_after_other,
)
from trainers.frames import MIN_BOX_SIDE, Draw, EpochSampler, FrameAnnotations, FrameIndex, lying_or_standing


@dataclass(frozen=True, kw_only=True)
class PseudoConfig:
    """How the last frame of a pseudo-video differs from its first."""

    translate: float = 0.2
    """Largest shift either way, in widths and in heights. Higher: more is learnt of fast objects, more leave the frame.
    """
    rotate: float = 20.0
    """Largest turn about the centre, either way, in degrees."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Smallest and largest; 1 keeps the size."""
    blur: float = 0.5
    """Probability that the frames after the first are blurred by motion."""
    blur_sizes: tuple[int, ...] = (7, 9)
    """Sides of the kernel in pixels of the stored frame, odd, each drawn as often."""
    photometric: PhotometricConfig | None = field(default_factory=PhotometricConfig)
    """Of the frames after the first; null: their colours stay."""
    exclusive: bool = True
    """In frames that moved, a pixel is that of the last instance that claims it, as released; false: masks overlap as
    they do in the still."""

    def __post_init__(self) -> None:
        if not (0 <= self.translate <= 1 and 0 <= self.rotate <= 180 and 0 <= self.blur <= 1):
            raise ValueError(f"translate {self.translate}, rotate {self.rotate}, blur {self.blur}: expected 0 to 1, 0 "
                             "to 180, 0 to 1")  # fmt: skip
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ValueError(f"scale is {list(self.scale)}, expected the smallest and the largest, 0.1 to 10")
        if not self.blur_sizes or not all(side % 2 and 1 <= side <= 63 for side in self.blur_sizes):
            raise ValueError(f"blur_sizes are {list(self.blur_sizes)}, expected odd numbers from 1 to 63")


@dataclass(frozen=True)
class Motion:
    """What was drawn for a pseudo-video."""

    shift: tuple[float, float]
    """In widths and heights of the frame."""
    degrees: float
    scale: float
    blur: Blur | None
    colour: Colour | None

    def at(self, share: float, width: int, height: int) -> Affine:
        """The motion after a share of it, 0 to 1, in pixels of the frame."""
        shift = share * self.shift[0] * width, share * self.shift[1] * height
        return motion_about((width / 2, height / 2), share * self.degrees, self.scale**share, shift)


class PseudoSampler(EpochSampler[Draw]):
    """An epoch shows every usable frame once, as the first of a pseudo-video of `frames` T.

    All frames look alike, as `augment` says; those after the first moved besides. An instance whose moved box lies
    outside the frame is not in it; a frame that no instance is left in does not move. `group`: see EpochSampler. Raises
    ValueError for fewer than two frames.
    """

    def __init__(
        self, index: FrameIndex, *, frames: int, pseudo: PseudoConfig, augment: Augment, seed: int, rank: int = 0,
        world_size: int = 1, group: int | None = None,
    ) -> None:  # fmt: skip
        if frames < 2:
            raise ValueError(f"pseudo-videos of {frames} frames, expected 2 or more")
        shapes = None if group is None else lying_or_standing(index, index.place)
        super().__init__(len(index), seed=seed, rank=rank, world_size=world_size, shapes=shapes, group=group or 1)
        self.index, self.frames, self.pseudo, self.augment = index, frames, pseudo, augment

    def _draw(self, item: int, rng: np.random.Generator) -> Draw:
        video, i = self.index.place[item]
        return self.of(self.index.videos[video][i], rng)

    def of(self, still: FrameAnnotations, rng: np.random.Generator) -> Draw:
        """The pseudo-video of one frame."""
        look = self.augment.draw(rng, self.frames)
        motion = self._motion(rng)
        shared = look.changes or (Changes(),) * self.frames
        shares = (t / (self.frames - 1) for t in range(self.frames))
        seen = [self._moved(still, one, motion, share) for one, share in zip(shared, shares, strict=True)]
        frames, changes = zip(*seen, strict=True)
        return Draw(frames, look.flips, look.scales, changes)

    def _motion(self, rng: np.random.Generator) -> Motion:
        cfg = self.pseudo
        shift = rng.uniform(-cfg.translate, cfg.translate, 2)
        degrees, scale = rng.uniform(-cfg.rotate, cfg.rotate), rng.uniform(*cfg.scale)
        blurred, size = rng.random() < cfg.blur, cfg.blur_sizes[int(rng.integers(len(cfg.blur_sizes)))]
        angle, direction = rng.uniform(0, 360), rng.uniform(-1, 1)
        colour = None if cfg.photometric is None else cfg.photometric.draw(rng)
        return Motion((float(shift[0]), float(shift[1])), float(degrees), float(scale),
                      Blur(size, float(angle), float(direction)) if blurred else None, colour)  # fmt: skip

    def _moved(
        self, still: FrameAnnotations, shared: Changes, motion: Motion, share: float
    ) -> tuple[FrameAnnotations, Changes]:
        """The still after a share of the motion: what is left in it, and what is done to it."""
        if not share:
            return still, shared
        affine = motion.at(share, still.video.width, still.video.height)
        kept = _left(still, affine)
        if not kept:
            return still, shared
        colour = one_after_other(shared.colour, motion.colour)
        changes = Changes(colour, affine, motion.blur, shared.window, self.pseudo.exclusive)
        return replace(still, annotations=kept), changes


def _left(still: FrameAnnotations, affine: Affine) -> tuple[Annotation, ...]:
    """The instances whose moved boxes reach into the frame."""
    boxes = move_boxes(still.boxes(), affine, still.video.width, still.video.height)
    sides = (boxes[:, 2:] - boxes[:, :2]).min(1)
    return tuple(a for a, side in zip(still.annotations, sides, strict=True) if side > MIN_BOX_SIDE)
