"""The generated dataset: its settings, and the named degrees of difficulty.

In:     settings, checked when made
Out:    `ShapesConfig`, `PRESETS`
State:  none
Limits: BOUNDS; at most 64 objects a clip
"""

from __future__ import annotations

from dataclasses import dataclass

from operators.errors import ConfigError
from operators.shapes_forms import CATEGORIES, COVERING


@dataclass(frozen=True, kw_only=True)
class ShapesConfig:
    """What a clip of the generated dataset holds. Speeds and sizes are relative, so a preset fits any frame size."""

    width: int = 512
    """Pixels. Larger: finer outlines, slower to make."""
    height: int = 320
    """Pixels; the shorter side is what object sizes refer to."""
    num_frames: int = 36
    """Frames a clip. More: longer tracks, more chances to lose an id."""
    fps: float = 12.0
    """Frames a second of encoded clips; motion is set per frame and does not depend on it."""
    min_objects: int = 6
    """Fewest objects of a clip. More: more crossings, less of each object to be seen."""
    max_objects: int = 8
    """Most objects of a clip."""
    min_classes: int = 5
    """Distinct classes that every clip holds at least. More: harder to tell by class alone, easier by elimination."""
    num_twins: int = 1
    """Objects that copy class, pattern, colours and size of another one. More: appearance alone fails more often."""
    min_size: float = 0.24
    """Smallest diameter over the shorter side. Smaller: less of an object to recognise."""
    max_size: float = 0.46
    """Largest diameter over the shorter side. Larger: more is hidden."""
    speed: float = 0.022
    """Usual top speed in widths a frame. Higher: boxes of one object overlap less from frame to frame, more blur."""
    rotation: float = 3.0
    """Fastest turn in degrees a frame."""
    scaling: float = 0.15
    """Share by which a diameter grows and shrinks. Higher: appearance changes more along a track."""
    full_occlusions: int = 1
    """Objects that a larger one hides wholly for a while, inside the frame. More: more ids to be carried over."""
    re_entries: int = 1
    """Objects that leave the frame wholly and come back. More: more ids to be carried over."""
    min_visibility: float = 0.6
    """Share of its frames in which every object shows over a quarter of its area. Higher: less clutter."""
    camera_motion: float = 0.06
    """Way of the background in widths; it also turns and zooms by as much. Higher: the background helps less."""
    motion_blur: float = 0.5
    """Share of a frame's time that the shutter is open. Higher: softer edges of what moves, slower to make."""
    noise: float = 4.0
    """Standard deviation of sensor noise in grey levels of 255. Higher: weaker texture."""
    background_contrast: float = 0.25
    """Brightness between the two colours of the background. Higher: outlines are harder to find."""

    def __post_init__(self) -> None:
        for name, low, high in BOUNDS:
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"shapes, {name}: {value} came, expected {low} to {high}.")
        if self.min_objects > self.max_objects or self.min_size > self.max_size:
            raise ConfigError(
                f"shapes: {self.min_objects} to {self.max_objects} objects of size {self.min_size} to {self.max_size} "
                "were asked for; the first of each pair must not exceed the second."
            )
        # what hides others is of one of two classes, so a third coverer brings no class of its own
        classes = self.min_classes + self.num_twins + max(0, self.full_occlusions - len(COVERING))
        roles = 2 * self.full_occlusions + self.re_entries + self.num_twins
        if max(classes, roles) > self.min_objects:
            raise ConfigError(
                f"shapes, min_objects: {self.min_objects} came; {self.min_classes} classes and {self.num_twins} twins "
                f"need {classes} objects, occlusions (2 each), re-entries and twins need {roles}. Raise min_objects."
            )
        if (self.full_occlusions or self.re_entries) and self.num_frames < 24:
            raise ConfigError(
                f"shapes, num_frames: {self.num_frames} came; hiding and coming back take at least 24 frames. "
                "Raise num_frames, or set full_occlusions and re_entries to 0."
            )


BOUNDS: tuple[tuple[str, float, float], ...] = (
    ("width", 64, 4096), ("height", 64, 4096), ("num_frames", 1, 10_000), ("fps", 0.1, 240),
    ("min_objects", 1, 64), ("max_objects", 1, 64), ("min_classes", 1, len(CATEGORIES)), ("num_twins", 0, 32),
    ("min_size", 0.05, 0.8), ("max_size", 0.05, 0.8), ("speed", 0.0, 0.1), ("rotation", 0.0, 45.0),
    ("scaling", 0.0, 0.5), ("full_occlusions", 0, 16), ("re_entries", 0, 16), ("min_visibility", 0.0, 1.0),
    ("camera_motion", 0.0, 0.3), ("motion_blur", 0.0, 1.0), ("noise", 0.0, 64.0), ("background_contrast", 0.0, 0.5),
)  # fmt: skip
"""Setting, lowest and highest value."""

PRESETS: dict[str, ShapesConfig] = {
    "easy": ShapesConfig(
        min_objects=3, max_objects=5, min_classes=2, num_twins=0, min_size=0.28, speed=0.01, rotation=2.0,
        scaling=0.1, full_occlusions=0, re_entries=0, min_visibility=0.8, camera_motion=0.02, motion_blur=0.2,
        noise=2.0, background_contrast=0.2,
    ),
    "medium": ShapesConfig(),
    "hard": ShapesConfig(
        min_objects=8, max_objects=12, num_twins=2, min_size=0.2, max_size=0.44, speed=0.028, rotation=6.0,
        scaling=0.25, full_occlusions=2, re_entries=2, min_visibility=0.5, camera_motion=0.12, motion_blur=0.9,
        noise=9.0, background_contrast=0.35,
    ),
}  # fmt: skip
"""Name -> settings. `medium` is what the shipped weights are measured on."""
