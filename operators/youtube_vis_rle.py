"""Masks of YouTube-VIS files: checked, and brought to compressed RLE.

In:     one mask of a file: null, uncompressed RLE, compressed RLE or polygons
Out:    a COCO compressed RLE {"size": [H, W], "counts": str}, column-major, or None where there is no mask
State:  none
Limits: a frame has at most MAX_PIXELS pixels; counts must fill it exactly; an outline may be about as long as the frame
        has pixels. All this is checked before pycocotools sees a mask: its C code trusts what it is given, and
        counts that do not fit crash it or make it read and reserve memory without bound.
Source: CrossVIS specification 1.2; the compressed form is COCO's: numbers of 5 bits a character, from character 48 on,
        lowest first, bit 5 set where more follow, bit 4 of the last one the sign; from the fourth number on each is
        the difference to the last but one.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from operators.errors import DatasetError

MAX_PIXELS = 1 << 28
"""Pixels of a frame, 16384 x 16384. Runs up to here fit pycocotools' 32 bits with room for their differences."""

MAX_DIGITS = 6
"""Characters of one number in compressed counts: 6 x 5 bits hold every difference of two runs within MAX_PIXELS."""

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
            areas[present] = coco_mask.area([masks[frame] for frame in present])
        return cls(tuple(masks), areas)


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
        if size != good or size is None:
            if not (isinstance(size, list) and len(size) == 2 and all(type(s) is int and s >= 1 for s in size)):
                raise DatasetError(f"{where(index)}: size is {_shown(size)}; expected [height, width] in pixels.")
            if size[0] * size[1] > MAX_PIXELS:
                raise DatasetError(f"{where(index)}: size {_shown(size)} is over the limit of {MAX_PIXELS} pixels.")
            good = size
    counts = [rle["counts"] for rle in rles]
    pixels = [rle["size"][0] * rle["size"][1] for rle in rles]
    if not rles or _fill(counts, pixels):
        return
    index = next(i for i in range(len(rles)) if not _fill(counts[i : i + 1], pixels[i : i + 1]))
    height, width = rles[index]["size"]
    raise DatasetError(f"{where(index)}: counts {_shown(counts[index])} are no compressed RLE that fills "
                       f"{height} x {width} pixels. Damaged, or cut short?")  # fmt: skip


def _fill(counts: list[str], pixels: list[int]) -> bool:
    """Does each string consist of whole numbers, and those of runs >= 0 that sum up to its pixels?

    E characters, R numbers, S strings.
    """
    text = "".join(counts)
    lengths = np.array([len(string) for string in counts])                                 # (S,)
    if not text.isascii() or not lengths.all():
        return False
    codes = np.frombuffer(text.encode("ascii"), dtype=np.uint8) - np.uint8(48)              # (E,); below 48 wraps round
    is_end = codes < 32                                                                     # (E,)
    if codes.max() > 63 or not is_end[np.cumsum(lengths) - 1].all():
        return False
    ends = np.flatnonzero(is_end)                                                           # (R,)
    digits = np.diff(ends, prepend=-1)                                                      # (R,)
    if digits.max() > MAX_DIGITS:
        return False
    top = codes[ends].astype(np.int32)                                                      # (R,)
    values = (top - ((top & 16) << 1)) << (5 * (digits - 1)).astype(np.int32)               # (R,); bit 4 is the sign
    for digit in range(1, digits.max()):                                                    # from the top down
        more = np.flatnonzero(digits > digit)
        values[more] += (codes[ends[more] - digit] & 31).astype(np.int32) << 5 * (digits[more] - 1 - digit)
    numbers = np.add.reduceat(is_end, np.cumsum(lengths) - lengths, dtype=np.int64)         # (S,)
    runs = _undo_differences(values, numbers)                                               # (R,)
    sums = np.add.reduceat(runs, np.cumsum(numbers) - numbers)                              # (S,)
    return bool(runs.min() >= 0 and (sums == pixels).all())


def _undo_differences(values: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Runs (R,) from what is written: from place 3 of a string on, the difference to the run two places before.

    `numbers` (S,) of the values belong to each string.
    """
    # running sums over every other value, all strings joined; sums[j + 2] = values j + (j - 2) + (j - 4) + ...
    sums = np.zeros(len(values) + len(values) % 2 + 2, dtype=np.int64)
    sums[2 : len(values) + 2] = values
    np.cumsum(sums.reshape(-1, 2), axis=0, out=sums.reshape(-1, 2))
    first = np.cumsum(numbers) - numbers                                       # (S,), where each string begins
    is_odd = (np.arange(len(values)) - np.repeat(first, numbers)) & 1          # (R,)
    # a chain starts anew at place 1 and, as place 0 stands alone, at place 2
    before = np.where(is_odd, np.repeat(sums[first + 1], numbers), np.repeat(sums[first + 2], numbers))
    runs = sums[2 : len(values) + 2] - before
    runs[first] = values[first]
    return runs


def _from_runs(counts: Any, height: int, width: int, where: str) -> Rle:
    try:
        runs = np.asarray(counts)
    except ValueError:                    # lists of different lengths inside
        runs = np.zeros((0, 0))
    if not isinstance(counts, list) or runs.ndim != 1 or runs.dtype.kind != "i":
        raise DatasetError(f"{where}: counts are {_shown(counts)}; expected a string or a list of whole numbers.")
    pixels = height * width
    # no run above the frame's pixels: a sum of such runs cannot wrap around
    if runs.min() < 0 or runs.max() > pixels or runs.sum() != pixels:
        raise DatasetError(f"{where}: the runs of its RLE do not fill its {height} x {width} pixels; damaged?")
    return _with_text(coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width))


def _from_polygons(rings: list[Any], height: int, width: int, where: str) -> Rle:
    outline, kept = 0.0, []
    for ring in rings:
        try:
            points = np.asarray(ring)
        except ValueError:
            points = np.zeros((0, 0))
        flat = isinstance(ring, list) and points.ndim == 1 and points.size % 2 == 0
        if not flat or (ring and points.dtype.kind not in "if"):
            raise DatasetError(f"{where}: a ring is {_shown(ring)}; expected a list x1, y1, x2, y2, ... of numbers.")
        points = points.astype(np.float64).reshape(-1, 2)                         # (points, 2), x and y
        inside = np.abs(points - [width / 2, height / 2]) <= [1.5 * width, 1.5 * height]
        if not inside.all():                                                      # not a number is not inside either
            raise DatasetError(f"{where}: a polygon leaves its {height} x {width} frame by more than a frame's size.")
        if len(points) >= 3:
            outline += float(np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum())
            kept.append(ring)
    # COCO's rasteriser reserves some 50 bytes for every pixel of outline
    if outline > height * width + 8 * (height + width) + 1000:
        raise DatasetError(f"{where}: a polygon's outline is longer than the frame has pixels; damaged?")
    if not kept:
        return _from_runs([height * width], height, width, where)
    return _with_text(coco_mask.merge(coco_mask.frPyObjects(kept, height, width)))


def check_size(segmentation: dict, height: int, width: int, where: str) -> None:
    """Raise DatasetError, opening with `where`, if an RLE is not of height x width."""
    if segmentation.get("size") != [height, width]:
        size = _shown(segmentation.get("size"))
        raise DatasetError(f"{where}: the mask's size is {size}, its video's is [{height}, {width}] (height, width).")


def _with_text(rle: Rle) -> Rle:
    return {"size": rle["size"], "counts": counts_text(rle["counts"])}


def counts_text(counts: str | bytes) -> str:
    """Compressed counts as text, which JSON needs; pycocotools gives bytes."""
    return counts if isinstance(counts, str) else counts.decode("latin-1")


def _shown(value: Any) -> str:
    return reprlib.repr(value)    # a damaged file may hold megabytes here
