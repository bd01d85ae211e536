"""Step 8: results as people look at them.

In:     a frame (H, W, 3) uint8 RGB, its FrameTracks, the Categories of the network
Out:    a new frame with masks, outlines, boxes and labels; sheets and moving pictures of such frames
State:  none; the colour of a track follows from its id alone, so it is the same in every frame, run and process
Limits: NUM_COLORS colours, then they repeat; only the pixels inside a mask's own bounds are touched
Source: colours by farthest-point sampling in CIELAB (D65, CIE 1976); contrast of text by WCAG 2.1
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from operators.errors import ConfigError
from operators.formats import Categories, cropped_mask, painting_order
from operators.records import FrameTracks
from operators.replacing import replacing

NUM_COLORS = 32
"""More would be harder to tell apart: the closest two of 32 are 27 apart in CIELAB, of 64 only 18."""
FIRST_COLOR = (255, 60, 60)
MAX_NAME = 24
"""Letters of a category's name in a label."""

Box = tuple[int, int, int, int]
"""Whole pixels x1, y1, x2, y2; x2 and y2 are just outside."""


def track_color(track_id: int) -> tuple[int, int, int]:
    """The RGB colour of a track in every frame; ids that are NUM_COLORS apart share one."""
    return _colors()[track_id % NUM_COLORS]


def text_color(background: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on `background`; the contrast is never below 4.5 : 1."""
    luminance = float(_linear(np.array(background)) @ np.array([0.2126, 0.7152, 0.0722]))
    dark = (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05)
    return (0, 0, 0) if dark else (255, 255, 255)


def draw_tracks(
    image: np.ndarray, tracks: FrameTracks, categories: Categories, *, alpha: float = 0.45, min_score: float = 0.0,
    show_scores: bool = True,
) -> np.ndarray:
    """A copy of `image` (H, W, 3) uint8 RGB with every track of at least `min_score`; without any, a plain copy.

    Masks cover the image by `alpha` 0..1, the best score on top. Each has an outline, a box and a label "category #id
    score" beside its box, moved to stay within the frame and off other labels where there is room. Ground truth has no
    scores to show.
    Raises ValueError where the image and the tracks are not of the same size.
    """
    height, width = image.shape[:2]
    if (height, width) != (tracks.info.height, tracks.info.width):
        raise ValueError(
            f"{tracks.info}: image of {width} x {height} pixels, tracks of {tracks.info.width} x {tracks.info.height}"
        )
    canvas = image.copy()
    order = painting_order(tracks, min_score)
    thick = max(1, round(min(height, width) / 360))
    for i in order:
        _draw_mask(canvas, image, tracks.masks[i], track_color(int(tracks.track_ids[i])), alpha, thick)
    boxes = {i: _pixel_box(tracks.boxes[i], height, width) for i in order}
    for i in order:
        _draw_box(canvas, boxes[i], track_color(int(tracks.track_ids[i])), thick)
    taken: list[Box] = []
    for i in reversed(order):  # the best score has first choice of a place
        name = categories.names[int(tracks.labels[i])]
        patch = _label_patch(
            f"{_shortened(name)} #{tracks.track_ids[i]}" + (f"  {tracks.scores[i]:.2f}" if show_scores else ""),
            text_size(height, width),
            track_color(int(tracks.track_ids[i])),
        )[:height, :width]
        x1, y1, x2, y2 = place_label(boxes[i], (patch.shape[1], patch.shape[0]), (width, height), taken)
        canvas[y1:y2, x1:x2] = patch
        taken.append((x1, y1, x2, y2))
    return canvas


def text_size(height: int, width: int) -> int:
    """Letter height in pixels for a frame: legible at 360 lines, the same share of larger frames."""
    return int(np.clip(round(min(height, width) * 0.034), 9, 96))


def place_label(box: Box, label_wh: tuple[int, int], frame_wh: tuple[int, int], taken: Sequence[Box]) -> Box:
    """Where a label goes that is no larger than the frame: above its box, else inside at the top, below it, or inside
    at the bottom; at its left or right side. The first place free of `taken` counts; if none is, above."""
    (x1, y1, x2, y2), (w, h), (width, height) = box, label_wh, frame_wh
    places = [_at(x, y, w, h) for y in (y1 - h, y1, y2, y2 - h) for x in (x1, x2 - w)]
    inside = [p for p in places if p[0] >= 0 and p[1] >= 0 and p[2] <= width and p[3] <= height]
    moved = [_at(min(max(p[0], 0), width - w), min(max(p[1], 0), height - h), w, h) for p in places]
    free = (p for p in inside + moved if not any(_overlap(p, other) for other in taken))
    return next(free, (inside or moved)[0])


def letterbox(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """`image` (h, w, 3) uint8 shrunk or grown to fit (height, width, 3), its shape kept, black bars around it."""
    h, w = image.shape[:2]
    if (h, w) == (height, width):
        return image
    scale = min(height / h, width / w)
    size = max(1, round(w * scale)), max(1, round(h * scale))
    resized = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas = np.zeros((height, width, 3), np.uint8)
    canvas[top : top + size[1], left : left + size[0]] = resized
    return canvas


def contact_sheet(images: Sequence[np.ndarray], columns: int, gap: int = 4) -> np.ndarray:
    """Images (h, w, 3) uint8 side by side, row by row, in cells of the first one's size, white between and after them.

    Raises ValueError for no image, or less than one column.
    """
    if not images or columns < 1:
        raise ValueError(f"{len(images)} images in {columns} columns, expected at least one of each")
    height, width = images[0].shape[:2]
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = i // columns * (height + gap), i % columns * (width + gap)
        sheet[y : y + height, x : x + width] = letterbox(image, height, width)
    return sheet


def write_animation(path: Path | str, frames: Iterable[np.ndarray], fps: float, *, quality: int = 60) -> Path:
    """A moving picture that repeats for ever, .webp or .gif, of frames (H, W, 3) uint8 RGB; all are held in memory.

    `quality` 0..100 is WebP's; a GIF has 128 colours a frame, and is about four times as large.
    Raises ConfigError for another suffix, no frame, or a rate that browsers do not play (1 to 50 frames a second).
    """
    path, pictures = Path(path), [Image.fromarray(frame) for frame in frames]
    suffix = path.suffix.lower()
    if suffix not in (".webp", ".gif"):
        raise ConfigError(f"{path}: moving pictures cannot be written as '{path.suffix}', expected .webp or .gif.")
    if not pictures or not 1 <= fps <= 50:
        raise ConfigError(f"{path}: {len(pictures)} frames at {fps} a second, expected at least one, at 1 to 50.")
    tick = 10 if suffix == ".gif" else 1  # ms: GIF counts time in hundredths of a second
    ends = [round((i + 1) * 1000 / fps / tick) * tick for i in range(len(pictures))]
    durations = np.diff(ends, prepend=0).tolist()
    options = {"quality": quality, "method": 4}  # 6 makes files 6 % smaller in 25 times the time
    if suffix == ".gif":
        pictures = [p.quantize(128, Image.Quantize.FASTOCTREE) for p in pictures]
        options = {"optimize": True}
    with replacing(path) as part:
        pictures[0].save(
            part,
            format=suffix[1:],
            save_all=True,
            append_images=pictures[1:],
            duration=durations,
            loop=0,
            **options,
        )
    return path


@lru_cache(maxsize=1)
def _colors() -> tuple[tuple[int, int, int], ...]:
    """NUM_COLORS vivid colours, each as far as can be from all before it: the first few ids are told apart best."""
    steps = np.arange(0, 256, 15)
    rgb = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)  # (18^3, 3)
    lab = _lab(rgb)
    chroma = np.hypot(lab[:, 1], lab[:, 2])
    # stands out from dark, bright and grey scenes, without the glare of pure green
    vivid = (lab[:, 0] >= 42) & (lab[:, 0] <= 90) & (chroma >= 42) & (chroma <= 92)
    rgb, lab = rgb[vivid], lab[vivid]
    picked = [int(np.linalg.norm(lab - _lab(np.array(FIRST_COLOR)), axis=1).argmin())]
    distance = np.full(len(lab), np.inf)
    while len(picked) < NUM_COLORS:
        distance = np.minimum(distance, np.linalg.norm(lab - lab[picked[-1]], axis=1))
        picked.append(int(distance.argmax()))
    return tuple(tuple(color) for color in rgb[picked].tolist())


def _linear(rgb: np.ndarray) -> np.ndarray:
    """sRGB 0..255 -> linear light 0..1."""
    value = rgb / 255.0
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def _lab(rgb: np.ndarray) -> np.ndarray:
    """sRGB (..., 3) 0..255 -> CIELAB (..., 3), white point D65."""
    to_xyz = np.array([[0.4125, 0.3576, 0.1804], [0.2127, 0.7152, 0.0722], [0.0193, 0.1192, 0.9503]])
    xyz = _linear(rgb) @ (to_xyz / to_xyz.sum(1, keepdims=True)).T
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], -1)


def _draw_mask(
    canvas: np.ndarray, image: np.ndarray, rle: dict, color: tuple[int, int, int], alpha: float, thick: int
) -> None:
    """Where masks overlap, the image shows through the last one alone: its colour stays its own."""
    rows, columns, mask = cropped_mask(rle)
    region, below = canvas[rows, columns], image[rows, columns]
    # a table per channel: 256 multiplications instead of one a pixel
    table = np.rint(np.arange(256)[:, None] * (1 - alpha) + np.array(color) * alpha).astype(np.uint8)  # (256, 3)
    for channel in range(3):
        np.copyto(region[..., channel], table[below[..., channel], channel], where=mask)
    region[mask & ~_eroded(mask, thick)] = color


def _eroded(mask: np.ndarray, times: int) -> np.ndarray:
    """`mask` less its rim of `times` pixels, seen from four sides; outside of the array is no mask."""
    inner = np.pad(mask, times)
    for _ in range(times):
        inner[1:-1, 1:-1] = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    return inner[times:-times, times:-times]


def _pixel_box(box: np.ndarray, height: int, width: int) -> Box:
    """A float box as whole pixels within the frame, at least one pixel large."""
    x1, y1 = (int(np.clip(np.floor(v), 0, size - 1)) for v, size in zip(box[:2], (width, height), strict=True))
    x2, y2 = (int(np.clip(np.ceil(v), 1, size)) for v, size in zip(box[2:], (width, height), strict=True))
    return x1, y1, max(x2, x1 + 1), max(y2, y1 + 1)


def _draw_box(canvas: np.ndarray, box: Box, color: tuple[int, int, int], thick: int) -> None:
    x1, y1, x2, y2 = box
    region = canvas[y1:y2, x1:x2]
    for side in (region[:thick], region[-thick:], region[:, :thick], region[:, -thick:]):
        side[:] = color


def _shortened(name: str) -> str:
    return name if len(name) <= MAX_NAME else name[: MAX_NAME - 1] + "…"


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


@lru_cache(maxsize=512)
def _label_patch(text: str, size: int, color: tuple[int, int, int]) -> np.ndarray:
    """The text on its colour, (h, w, 3) uint8; all labels of one size are of one height."""
    font, pad = _font(size), max(2, size // 4)
    ascent, descent = font.getmetrics()
    picture = Image.new("RGB", (round(font.getlength(text)) + 2 * pad, ascent + descent + pad), color)
    ImageDraw.Draw(picture).text((pad, pad // 2), text, fill=text_color(color), font=font)
    return np.asarray(picture)


def _at(x: int, y: int, w: int, h: int) -> Box:
    return x, y, x + w, y + h


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
