"""Step 1 of training, the last part: what is done to the pixels of a sample's frames. One draw for all of them.

In:     settings, and the generator that belongs to the sample
Out:    `Look`: mirroring, sizes, `Changes`, drawn here in Python and handed to DALI as numbers, so that a sample never
        depends on its batch, its worker or a restart
State:  none
Source: sizes: CrossVIS specification 1.6 and 3.8, IAI 1, TLTM 1.5, CiCo 3.4; `jitter`: CiCo 1.6; motion: TLTM 1.4. Hue
        and saturation turn and stretch the two colour axes of YIQ: a matrix, where HSV has none

Order of effect: colour, motion, blur, in pixels of the stored frame; then resizing, the window, mirroring, normalising.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

Affine = tuple[float, float, float, float, float, float]
"""(a, b, c, d, e, f): the point (x, y) goes to (a x + b y + c, d x + e y + f); pixel centres lie at halves."""
Colour = tuple[float, ...]
"""12 numbers, (3, 4) row by row: what makes a new RGB of (R, G, B, 1), all from 0 to 255."""

TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
MAX_SIDE = 1 << 13


@dataclass(frozen=True)
class Window:
    """Resize to `factor` of the size, then keep a window of the size: its place is a share of the room there is."""

    factor: float
    left: float
    top: float

    def place(self, size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """For a frame of `size` (h, w): what it is resized to, the window's (top, left), its (h, w)."""
        resized = tuple(max(math.floor(side * self.factor + 0.5), 1) for side in size)
        kept = tuple(min(pair) for pair in zip(size, resized, strict=True))
        start = tuple(int(share * (side - keep + 1))
                      for share, side, keep in zip((self.top, self.left), resized, kept, strict=True))  # fmt: skip
        return resized, start, kept


@dataclass(frozen=True)
class Blur:
    """A straight way of the camera while the shutter is open."""

    size: int
    """Side of the kernel, odd."""
    angle: float
    """Degrees, from right to down."""
    direction: float
    """-1..1: how much more the one end weighs than the other."""


@dataclass(frozen=True)
class Changes:
    """What is done to the pixels of one frame, resizing and mirroring aside; None: nothing of the kind."""

    colour: Colour | None = None
    motion: Affine | None = None
    blur: Blur | None = None
    window: Window | None = None
    exclusive: bool = False
    """A pixel is that of the last instance that claims it."""


UNCHANGED = Changes()


@dataclass(frozen=True, kw_only=True)
class ScaleConfig:
    """Sizes of the resized frame, both sides drawn evenly from whole numbers, either end included, and independently.
    The defaults are IAI's as released."""

    short_side: tuple[int, int] = (360, 480)
    """Smallest and largest; `model.input` says the size in use. A wider range: calmer towards object size; cost grows
    with the square."""
    short_sides: tuple[int, ...] = ()
    """Draw the short side among these, not from the range: 640, 672, ... 800 for COCO."""
    long_side: tuple[int, int] = (649, 960)
    """Of the limit of the long side."""
    each: Literal["clip", "frame"] = "clip"
    """What is drawn for. `frame`: an object changes its size from frame to frame, as in IAI's settings for OVIS."""

    def __post_init__(self) -> None:
        for name, (low, high) in (("short_side", self.short_side), ("long_side", self.long_side)):
            if not 1 <= low <= high <= MAX_SIDE:
                raise ValueError(f"{name} is {[low, high]}, expected the smallest and the largest, from 1 on, up to "
                                 f"{MAX_SIDE}")  # fmt: skip
        if not all(1 <= side <= MAX_SIDE for side in self.short_sides):
            raise ValueError(f"short_sides are {list(self.short_sides)}, expected sides from 1 to {MAX_SIDE}")

    def draw(self, rng: np.random.Generator, frames: int) -> tuple[tuple[int, int], ...]:
        """(short, long) of every frame of a clip."""
        times = 1 if self.each == "clip" else frames
        drawn = [(self._short(rng), int(rng.integers(*self.long_side, endpoint=True))) for _ in range(times)]
        return tuple(drawn * (frames // times))

    def _short(self, rng: np.random.Generator) -> int:
        if self.short_sides:
            return self.short_sides[int(rng.integers(len(self.short_sides)))]
        return int(rng.integers(*self.short_side, endpoint=True))


@dataclass(frozen=True, kw_only=True)
class PhotometricConfig:
    """Changes of colour, each drawn evenly from minus to plus its setting; 0: never."""

    brightness: float = 20.0
    """Added to all channels, of 255. Higher: calmer towards exposure."""
    contrast: float = 0.0
    """Share by which differences from middle grey grow or shrink, below 1."""
    saturation: float = 0.1
    """Share by which colours grow or fade, 1 at most."""
    hue: float = 14.0
    """Degrees by which colours turn. 14 is 10 of 255 parts of the circle."""
    pick: Literal["some", "all"] = "some"
    """Which of brightness, contrast, and saturation with hue come to a sample: `some`, at least one, their number drawn
    evenly; or all."""

    def __post_init__(self) -> None:
        if not (0 <= self.brightness <= 255 and 0 <= self.contrast < 1 and 0 <= self.saturation <= 1):
            raise ValueError(f"brightness {self.brightness}, contrast {self.contrast}, saturation {self.saturation}: "
                             "expected 0 to 255, 0 to below 1, 0 to 1")  # fmt: skip
        if not 0 <= self.hue <= 180:
            raise ValueError(f"hue is {self.hue}, expected 0 to 180 degrees")

    def draw(self, rng: np.random.Generator) -> Colour | None:
        """None where all settings are 0."""
        kinds = [{"brightness": self.brightness}, {"contrast": self.contrast},
                 {"saturation": self.saturation, "hue": self.hue}]  # fmt: skip
        kinds = [kind for kind in kinds if any(kind.values())]
        if not kinds:
            return None
        count = len(kinds) if self.pick == "all" else int(rng.integers(1, len(kinds), endpoint=True))
        chosen = [kinds[i] for i in sorted(rng.permutation(len(kinds))[:count])]
        return colour(**{name: float(rng.uniform(-most, most)) for kind in chosen for name, most in kind.items()})


@dataclass(frozen=True, kw_only=True)
class JitterConfig:
    """Frames shrunk within their size, or enlarged and cut to it. The defaults are CiCo's."""

    probability: float = 0.5
    factor: tuple[float, float] = (0.5, 1.5)
    """Smallest and largest. What a shrunk frame leaves free is padding."""

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ValueError(f"probability is {self.probability}, expected 0 to 1")
        if not 0.05 <= self.factor[0] <= self.factor[1] <= 8:
            raise ValueError(f"factor is {list(self.factor)}, expected the smallest and the largest, 0.05 to 8")

    def draw(self, rng: np.random.Generator) -> Window | None:
        drawn, factor, left, top = rng.random(), rng.uniform(*self.factor), rng.random(), rng.random()
        return Window(float(factor), float(left), float(top)) if drawn < self.probability else None


@dataclass(frozen=True)
class Look:
    """What is done to the T frames of a sample."""

    flips: tuple[bool, ...]
    """T: whether the frame is mirrored."""
    scales: tuple[tuple[int, int], ...] | None
    """T: (short, long) side to resize to; None: as the network has its input in use."""
    changes: tuple[Changes, ...] | None
    """T; None: none of any frame."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """How looks are drawn."""

    flip: float
    """Probability of being mirrored."""
    flip_sync: bool = True
    """All frames alike, or each for itself."""
    scale: ScaleConfig | None = None
    photometric: PhotometricConfig | None = None
    jitter: JitterConfig | None = None

    def draw(self, rng: np.random.Generator, frames: int) -> Look:
        flips = rng.random(1 if self.flip_sync else frames) < self.flip
        scales = None if self.scale is None else self.scale.draw(rng, frames)
        changes = Changes(None if self.photometric is None else self.photometric.draw(rng),
                          window=None if self.jitter is None else self.jitter.draw(rng))  # fmt: skip
        return Look(tuple(np.broadcast_to(flips, frames).tolist()), scales,
                    None if changes == UNCHANGED else (changes,) * frames)  # fmt: skip


def colour(brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0, hue: float = 0.0) -> Colour:
    """The change that adds `brightness`, moves colours from grey 128 by 1 + `contrast`, from grey by 1 + `saturation`,
    and turns them by `hue` degrees."""
    turn = (1 + saturation) * _turned(hue)                                                      # (2, 2), of I and Q
    matrix = (1 + contrast) * np.linalg.inv(TO_YIQ) @ np.block([[np.eye(1), np.zeros((1, 2))],
                                                                [np.zeros((2, 1)), turn]]) @ TO_YIQ  # fmt: skip
    offset = np.full((3, 1), brightness - 128 * contrast)
    return tuple(np.hstack([matrix, offset]).ravel().tolist())


def one_after_other(first: Colour | None, second: Colour | None) -> Colour | None:
    """Both changes as one; what runs out of 0..255 on the way comes back."""
    if first is None or second is None:
        return first if second is None else second
    a, b = (np.vstack([np.reshape(one, (3, 4)), [0, 0, 0, 1]]) for one in (first, second))
    return tuple((b @ a)[:3].ravel().tolist())


def motion_about(center: tuple[float, float], degrees: float, scale: float, shift: tuple[float, float]) -> Affine:
    """Turn from right to down and scale about `center` (x, y), then shift by pixels."""
    turn = scale * _turned(degrees)
    moved = np.array(center) + shift - turn @ center
    (a, b), (d, e) = turn.tolist()
    return (a, b, float(moved[0]), d, e, float(moved[1]))


def move_boxes(boxes: np.ndarray, motion: Affine, width: int, height: int) -> np.ndarray:
    """The upright hull of each box's moved corners, clipped to the frame: (G, 4) xyxy -> (G, 4) float32."""
    corners = boxes[:, [[0, 1], [2, 1], [2, 3], [0, 3]]].astype(np.float64)                       # (G, 4, 2)
    matrix = np.reshape(motion, (2, 3))
    moved = corners @ matrix[:, :2].T + matrix[:, 2]
    hull = np.concatenate([moved.min(1), moved.max(1)], axis=1) if len(boxes) else np.zeros((0, 4))
    return hull.clip(0, [width, height] * 2).astype(np.float32)


def blur_kernel(blur: Blur) -> np.ndarray:
    """(size, size) float32, not negative, sum 1: a line through the middle, its weights rising along it as told."""
    middle = blur.size // 2
    steps = np.linspace(-middle, middle, 8 * blur.size)                      # fine enough to leave no gap
    weights = 1 + blur.direction * steps / max(middle, 1)
    angle = math.radians(blur.angle)
    kernel = np.zeros((blur.size, blur.size))
    for x, y, weight in zip(middle + steps * math.cos(angle), middle + steps * math.sin(angle), weights, strict=True):
        _add(kernel, x, y, weight)
    return (kernel / kernel.sum()).astype(np.float32)


def _add(kernel: np.ndarray, x: float, y: float, weight: float) -> None:
    """`weight` shared among the four cells round the place (x, y)."""
    column, row = math.floor(x), math.floor(y)
    for r, share_y in ((row, 1 - (y - row)), (row + 1, y - row)):
        for c, share_x in ((column, 1 - (x - column)), (column + 1, x - column)):
            if share_x * share_y > 0 and 0 <= r < len(kernel) and 0 <= c < len(kernel):
                kernel[r, c] += weight * share_x * share_y


def _turned(degrees: float) -> np.ndarray:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])

