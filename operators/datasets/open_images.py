"""Masks of Open Images to Truth, each image a still: read only.

In:     the CSV of a set's masks (train-annotations-object-segmentation.csv); beside it the CSV of class names
        (class-descriptions-boxable.csv), the PNGs of the masks, in a folder or several named after masks, and images
Out:    Truth of videos of one frame; boxes as annotated
State:  none
Limits: MAX_CSV_BYTES, MAX_ROWS; the CSV is in memory as a whole, of the masks those of one image. Images and masks have
        at most as many pixels as any (operators/probe.py)
Source: Open Images V5 to V7, their download page; TLTM specification 1.3: masks may be of another size than their
        image, and are brought to it by nearest. Images are read for their sizes, which no CSV has
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from operators.datasets.check_images import DAMAGED, see_image
from operators.datasets.truth import Notes, TrackTruth, Truth, VideoTruth
from operators.errors import DatasetError
from operators.probe import image_size, read_image_file
from operators.youtube_vis_data import Category
from operators.youtube_vis_rle import Rle, text_rle

MAX_CSV_BYTES = 1 << 30
MAX_ROWS = 4_000_000
"""Of masks: the training set has 2.7 million."""
COLUMNS = ("MaskPath", "ImageID", "LabelName", "BoxXMin", "BoxXMax", "BoxYMin", "BoxYMax")
IMAGE_ID = re.compile(r"[0-9A-Za-z_-]{1,64}")
MASK_NAME = re.compile(r"[0-9A-Za-z_-]{1,160}\.png")
DESCRIPTIONS = "*class-descriptions*.csv"
IMAGE_FOLDERS = ("images", "train", "validation", "test", "")


@dataclass(frozen=True)
class _Mask:
    """A line of the CSV."""

    number: int
    """Of the line, from 1 after the header: what its object is known by."""
    name: str
    category_id: int
    box: tuple[float, float, float, float]
    """x1, x2, y1, y2 in shares of the image."""


def open_open_images(path: Path, image_root: Path | None = None, only: Collection[str] | None = None) -> Truth:
    """The images of a CSV that are there, by rising id; of classes called as `only` says, or of all.

    Images are looked for in `image_root`, else in images/, train/, validation/ or test/ beside the CSV. Raises
    DatasetError naming file and line; for masks that are missing or damaged, while iterating.
    """
    path = Path(path)
    names = _class_names(path)
    wanted = {label: id for id, (label, name) in enumerate(names.items(), start=1) if only is None or name in only}
    masks = _masks_of(path, wanted, names)
    root, notes = _image_root(path, image_root, masks), Notes()
    folders = _MaskFolders(path)

    def videos(chosen: Collection[int] | None) -> Iterator[VideoTruth]:
        for number, (image_id, lines) in enumerate(masks.items(), start=1):
            if chosen is not None and number not in chosen:
                continue
            size = _size_of(root / f"{image_id}.jpg", notes)
            if size is not None:
                tracks = tuple(_track(line, size, folders) for line in lines)
                yield VideoTruth(number, image_id, size[1], size[0], (f"{image_id}.jpg",), tracks)

    found = {line.category_id for lines in masks.values() for line in lines}
    categories = tuple(Category(id, name) for id, name in enumerate(names.values(), start=1) if id in found)
    order = dict(enumerate(masks, start=1))
    return Truth(path, categories, len(masks), root, videos, notes, order)


def _class_names(path: Path) -> dict[str, str]:
    """Label -> name of every class, in the order of the file beside `path`."""
    files = sorted(path.parent.glob(DESCRIPTIONS))
    if not files:
        raise DatasetError(f"{path.parent}: has no {DESCRIPTIONS}, the names of the classes of Open Images. Download "
                           "class-descriptions-boxable.csv into it.")  # fmt: skip
    rows = [row for row in _rows(files[0]) if row and row[0].startswith("/")]         # a header has no slash
    if not rows:
        raise DatasetError(f"{files[0]}: names no class; expected lines as '/m/01g317,Person'.")
    if other := [row for row in rows if len(row) != 2]:
        raise DatasetError(f"{files[0]}: the line {','.join(other[0])[:80]!r} has {len(other[0])} values, expected a "
                           "label and a name, as '/m/01g317,Person'.")                                    # fmt: skip
    return dict(rows)


def _masks_of(path: Path, wanted: dict[str, int], names: dict[str, str]) -> dict[str, list[_Mask]]:
    """The masks of each image, by rising image id, in the order of the file; of the classes `wanted` alone."""
    rows = _rows(path)
    header = next(rows, [])
    if missing := [column for column in COLUMNS if column not in header]:
        raise DatasetError(f"{path}: has no column {', '.join(missing)}; expected the masks of Open Images, whose "
                           f"first line is {','.join(COLUMNS[:3])},...")  # fmt: skip
    places = [header.index(column) for column in COLUMNS]
    found: dict[str, list[_Mask]] = {}
    for number, row in enumerate(rows, start=1):
        where = f"{path}: line {number + 1}"
        if number > MAX_ROWS:
            raise DatasetError(f"{where}: more than the {MAX_ROWS} masks supported.")
        if len(row) != len(header):
            raise DatasetError(f"{where}: has {len(row)} values, the header {len(header)}. Was it cut short?")
        mask_name, image_id, label, *box = (row[place] for place in places)
        if label not in names:
            raise DatasetError(f"{where}: LabelName is {label[:40]!r}, which no class has.")
        if not MASK_NAME.fullmatch(mask_name) or not IMAGE_ID.fullmatch(image_id):
            raise DatasetError(f"{where}: MaskPath is {mask_name[:80]!r}, ImageID {image_id[:80]!r}; expected names of "
                               "files without folders.")  # fmt: skip
        if label in wanted:
            line = _Mask(number, mask_name, wanted[label], _box(box, where))
            found.setdefault(image_id, []).append(line)
    return dict(sorted(found.items()))


def _rows(path: Path) -> Iterator[list[str]]:
    try:
        if path.stat().st_size > MAX_CSV_BYTES:
            raise DatasetError(f"{path}: is over the limit of {MAX_CSV_BYTES >> 20} MiB.")
        with path.open(newline="", encoding="utf-8-sig") as file:   # spreadsheets begin theirs with a mark
            yield from csv.reader(file, strict=True)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV ({error}).") from error


def _box(values: list[str], where: str) -> tuple[float, float, float, float]:
    try:
        x1, x2, y1, y2 = map(float, values)
    except ValueError:
        x1 = x2 = y1 = y2 = math.nan
    if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
        raise DatasetError(f"{where}: the box is {', '.join(values)[:80]}; expected BoxXMin, BoxXMax, BoxYMin, BoxYMax "
                           "from 0 to 1, rising.")  # fmt: skip
    return x1, x2, y1, y2


def _image_root(path: Path, image_root: Path | None, masks: dict[str, list[_Mask]]) -> Path:
    """Where images are; the folder of the CSV where none are found, so that all are told as missing."""
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise DatasetError(f"{image_root}: is no folder; expected the images of {path}.")
        return Path(image_root)
    roots = [path.parent / name for name in IMAGE_FOLDERS]
    firsts = list(masks)[:100]
    return next((root for root in roots if any((root / f"{id}.jpg").is_file() for id in firsts)), path.parent)


def _size_of(image: Path, notes: Notes) -> tuple[int, int] | None:
    """(height, width), upright; None for an image that is not there: of Open Images few have all."""
    if not image.is_file():
        notes.count("images that are not there, left out with their masks", image.name)
        return None
    seen = see_image(image, decode=False)
    if seen.size is None:
        raise DatasetError(f"{image}: is no image that can be read; its size is needed. {seen.wrong}")
    return seen.size


class _MaskFolders:
    """Where masks lie: the sixteen parts of a set come as archives, each unpacked anywhere beside the CSV."""

    def __init__(self, path: Path) -> None:
        named = [entry for entry in sorted(path.parent.iterdir()) if entry.is_dir() and "mask" in entry.name.lower()]
        inner = [entry for folder in named for entry in sorted(folder.iterdir()) if entry.is_dir()]
        self._folders, self._csv = [*named, *inner, path.parent], path
        self._last: dict[str, Path] = {}
        """First letter of a name -> the folder where one with it was found: archives are split by it."""

    def find(self, name: str) -> Path:
        """Raises DatasetError for a mask that is nowhere."""
        last = self._last.get(name[0])
        for folder in ([last] if last else []) + self._folders:
            if (folder / name).is_file():
                self._last[name[0]] = folder
                return folder / name
        raise DatasetError(f"{self._csv}: the mask {name} is in none of {len(self._folders)} folders beside it. Unpack "
                           "the archives of masks into folders named after masks, as masks/.")  # fmt: skip


def _track(line: _Mask, size: tuple[int, int], folders: _MaskFolders) -> TrackTruth:
    height, width = size
    x1, x2, y1, y2 = line.box
    track = TrackTruth.of(line.number, line.category_id, False, [_read_mask(folders.find(line.name), size)])
    return replace(track, bboxes=([x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height],))


def _read_mask(path: Path, size: tuple[int, int]) -> Rle:
    """A PNG, everything but 0 being the object, at the image's size."""
    try:
        data = read_image_file(path)
        image_size(data)                                        # bounds the pixels before any is decoded
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            pixels = np.asarray(image if image.mode == "P" else image.convert("L")) > 0           # (h, w)
    except DAMAGED as error:
        raise DatasetError(f"{path}: is no mask that can be read ({error}).") from error
    rows, columns = (_nearest(*pair) for pair in zip(pixels.shape, size, strict=True))
    return text_rle(coco.encode(np.asfortranarray(pixels[rows][:, columns], dtype=np.uint8)))


def _nearest(stored: int, wanted: int) -> np.ndarray:
    """Where each of `wanted` places looks among `stored`.  (wanted,) int64"""
    return (2 * np.arange(wanted) + 1) * stored // (2 * wanted)
