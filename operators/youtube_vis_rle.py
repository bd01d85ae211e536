"""Masks of YouTube-VIS files: checked, and brought to compressed RLE.

In:     one mask of a file: null, uncompressed RLE, compressed RLE or polygons
Out:    a COCO compressed RLE {"size": [H, W], "counts": str}, column-major, or None where there is no mask
State:  none
Limits: a frame has at most MAX_PIXELS pixels; counts must fill it exactly; an outline may be about as long as the frame
        has pixels, and no longer than MAX_OUTLINE. All this is checked before pycocotools sees a mask: its C code
        trusts what it is given, and counts that do not fit crash it or make it read and reserve memory without bound.
Source: CrossVIS specification 1.2; run lengths are read in youtube_vis_runs.py
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from operators.errors import DatasetError
from operators.youtube_vis_runs import MAX_PIXELS, compressed_extents, plain_extents

MAX_OUTLINE = 1 << 22
"""Pixels of a mask's outline, all its polygons together: COCO's rasteriser reserves some 50 bytes for each."""

Rle = dict[str, Any]
Where = Callable[[int], str]


@dataclass(frozen=True)
class MaskTrack:
    """The checked masks of one object over T frames, None where it has none; and their areas in pixels, (T,) int64.

    Area 0 is that of a frame without a mask, and of a mask without pixels.
    """

    masks: tuple[Rle | None, ...]
    areas: np.ndarray

    @classmethod
    def of(cls, masks: Sequence[Rle | None]) -> MaskTrack:
        areas = np.zeros(len(masks), dtype=np.int64)
        present = [frame for frame, mask in enumerate(masks) if mask is not None]
        if present:
            areas[present] = mask_areas([masks[frame] for frame in present])
        return cls(tuple(masks), areas)


def mask_areas(rles: Sequence[Rle]) -> np.ndarray:
    """Pixels of checked compressed RLEs, (S,) int64; [] gives none.

    pycocotools 2.0.11 fails on more than 255 masks at once (OverflowError), and long tracks have more.
    """
    parts = [coco_mask.area(list(rles[start : start + 255])) for start in range(0, len(rles), 255)]
    return np.concatenate([np.zeros(0, dtype=np.int64), *parts]).astype(np.int64)


def segmentation_to_rle(segmentation: Any, height: int, width: int, where: str = "the mask") -> Rle | None:
    """One mask of a file -> compressed RLE of height x width; None for null, {} and [].

    Polygons are rasterised as COCO's mask code does; rings of fewer than three points are left out, and a mask of such
    rings alone has no pixels. Raises DatasetError, opening with `where`, for anything else or another size.
    """
    return segmentations_to_rles([segmentation], height, width, lambda _: where)[0]


def segmentations_to_rles(segmentations: Sequence[Any], height: int, width: int, where: Where) -> list[Rle | None]:
    """`segmentation_to_rle` for many masks of one size, with `where(i)` the place of mask i.

    All compressed counts are checked at once: 13 us a mask in tracks of 36 frames, 100 us one by one.
    """
    rles: list[Rle | None] = [None] * len(segmentations)
    compressed = []
    for index, segmentation in enumerate(segmentations):
        if not segmentation:
            continue
        if isinstance(segmentation, list):
            rles[index] = _from_polygons(segmentation, height, width, where(index))
        elif not isinstance(segmentation, dict):
            raise DatasetError(f"{where(index)}: {_shown(segmentation)} is no mask; expected null, RLE or polygons.")
        else:
            check_size(segmentation, height, width, where(index))
            if isinstance(segmentation.get("counts"), (str, bytes)):
                rles[index] = {"size": [height, width], "counts": counts_text(segmentation["counts"])}
                compressed.append(index)
            else:
                rles[index] = _from_runs(segmentation.get("counts"), height, width, where(index))
    check_compressed([rles[index] for index in compressed], lambda i: where(compressed[i]))
    return rles


def check_compressed(rles: Sequence[Rle], where: Where) -> None:
    """Refuse what is no compressed RLE with text for counts, and counts that do not fill their size. [] is fine.

    Raises DatasetError, opening with `where(i)` of the first mask i at fault.
    """
    good = None                     # masks of a track share a size: most are looked at once
    for index, rle in enumerate(rles):
        if not isinstance(rle, dict) or not isinstance(rle.get("counts"), str):
            raise DatasetError(f"{where(index)}: {_shown(rle)} is no compressed RLE.")
        size = rle.get("size")
        if size is None or size != good or {type(side) for side in size} != {int}:      # 4.0 equals 4, and True 1
            check_rle_size(rle, where(index))
            good = size
    counts = [rle["counts"] for rle in rles]
    pixels = np.array([rle["size"][0] * rle["size"][1] for rle in rles], dtype=np.int64)
    if compressed_extents(counts, pixels) is not None:
        return
    index = next(i for i in range(len(rles)) if compressed_extents(counts[i : i + 1], pixels[i : i + 1]) is None)
    raise DatasetError(f"{where(index)}: {damage(rles[index])}")


def check_rle_size(rle: Rle, where: str) -> None:
    """Raise DatasetError, opening with `where`, unless an RLE's size is [height, width] of a frame."""
    size = rle.get("size")
    if not (isinstance(size, list) and len(size) == 2 and all(type(side) is int and side >= 1 for side in size)):
        raise DatasetError(f"{where}: size is {_shown(size)}; expected [height, width] in pixels.")
    if size[0] * size[1] > MAX_PIXELS:
        raise DatasetError(f"{where}: size {_shown(size)} is over the limit of {MAX_PIXELS} pixels.")


def damage(rle: Rle) -> str:
    """What to say of an RLE, compressed or not, whose runs do not fill its size."""
    height, width = rle["size"]
    if isinstance(rle["counts"], list):
        return f"the runs of its RLE do not fill its {height} x {width} pixels; damaged?"
    return (f"counts {_shown(rle['counts'])} are no compressed RLE that fills {height} x {width} pixels. "
            "Damaged, or cut short?")  # fmt: skip


def _from_runs(counts: Any, height: int, width: int, where: str) -> Rle:
    try:
        runs = np.asarray(counts)
    except ValueError:                    # lists of different lengths inside
        runs = np.zeros((0, 0))
    if not isinstance(counts, list) or runs.ndim != 1 or runs.dtype.kind != "i":
        raise DatasetError(f"{where}: counts are {_shown(counts)}; expected a string or a list of whole numbers.")
    rle = {"size": [height, width], "counts": counts}
    if plain_extents([counts], np.array([height * width])) is None:
        raise DatasetError(f"{where}: {damage(rle)}")
    return text_rle(coco_mask.frPyObjects(rle, height, width))


def _from_polygons(rings: list[Any], height: int, width: int, where: str) -> Rle:
    outline, kept = 0.0, []
    size, limit = np.array([width, height]), min(height * width + 8 * (height + width) + 1000, MAX_OUTLINE)
    for ring in rings:
        points = _points(ring, where)                                             # (points, 2), x and y
        if not len(points):
            continue
        low, high = points.min(axis=0), points.max(axis=0)
        if not (low >= -size).all() or not (high <= 2 * size).all():              # not a number is not inside either
            raise DatasetError(f"{where}: a polygon leaves its {height} x {width} frame by more than a frame's size.")
        if len(points) >= 3:
            longest = len(points) * float((high - low).max())       # most are far from the limit: a bound is enough
            outline += longest if longest < limit / len(rings) else _outline(points)
            kept.append(ring)
    if outline > limit:
        what = "the frame has pixels" if limit < MAX_OUTLINE else f"{MAX_OUTLINE} pixels"
        raise DatasetError(f"{where}: a polygon's outline is longer than {what}; damaged?")
    if not kept:
        return _from_runs([height * width], height, width, where)
    return text_rle(coco_mask.merge(coco_mask.frPyObjects(kept, height, width)))


def _points(ring: Any, where: str) -> np.ndarray:
    try:
        points = np.asarray(ring)
    except ValueError:
        points = np.zeros((0, 0))
    flat = isinstance(ring, list) and points.ndim == 1 and points.size % 2 == 0
    if not flat or (ring and points.dtype.kind not in "if"):
        raise DatasetError(f"{where}: a ring is {_shown(ring)}; expected a list x1, y1, x2, y2, ... of numbers.")
    return points.astype(np.float64).reshape(-1, 2)


def _outline(points: np.ndarray) -> float:
    """Pixels that the sides of a polygon (points, 2) pass."""
    return float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())


def check_size(segmentation: dict, height: int, width: int, where: str) -> None:
    """Raise DatasetError, opening with `where`, if an RLE is not of height x width."""
    if segmentation.get("size") != [height, width]:
        size = _shown(segmentation.get("size"))
        raise DatasetError(f"{where}: the mask's size is {size}, its video's is [{height}, {width}] (height, width).")


def text_rle(rle: Rle) -> Rle:
    """One of pycocotools' compressed RLEs as JSON takes it: whole numbers of Python, and text."""
    return {"size": [int(side) for side in rle["size"]], "counts": counts_text(rle["counts"])}


def counts_text(counts: str | bytes) -> str:
    """Compressed counts as text, which JSON needs; pycocotools gives bytes."""
    return counts if isinstance(counts, str) else counts.decode("latin-1")


def _shown(value: Any) -> str:
    return reprlib.repr(value)    # a damaged file may hold megabytes here
