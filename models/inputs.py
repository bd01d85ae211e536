"""Step 3's settings: what a network wants frames to look like; operators/preprocess.py and trainers/pixels.py obey.

Source: CrossVIS specification 1.6; the defaults are CrossVIS as released. `fit: box`: CiCo specification 1.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Fit = Literal["short_side", "box"]


@dataclass(frozen=True, kw_only=True)
class InputConfig:
    """How frames become network input."""

    short_side: int = 360
    """The frame's short side is brought to this. Larger: finer masks, cost grows with its square."""
    long_side: int = 640
    """Limit of the long side; a longer frame is shrunk further, aspect kept."""
    fit: Fit = "short_side"
    """`short_side`: as the two above say, whichever way the frame lies. `box`: they are the height and width of a box,
    into which every frame is brought as large as it fits, and which all of them are padded to: one shape for a network
    that learns none but this, and less of the picture for frames that stand upright."""
    channel_order: Literal["bgr", "rgb"] = "bgr"
    mean: tuple[float, float, float] = (103.530, 116.280, 123.675)
    """Subtracted per channel, in `channel_order`, from 0..255."""
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    """What is left is divided by this, in `channel_order`."""
    antialias: bool = True
    """Widen the filter where frames shrink, as PIL does and CrossVIS was trained; False is plain bilinear, as OpenCV
    does and IAI was trained. Weights want the one they have seen."""
    divisor: int = 32
    """Sides are padded at the right and bottom to a multiple of this."""
