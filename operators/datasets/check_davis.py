"""A DAVIS folder: label maps that are missing, of another kind or size, and objects that the evaluation cannot see.

In:     a folder with Annotations/ or Annotations_unsupervised/ (480p/ or another size in it, or none), with JPEGImages/
        and ImageSets/ where they are there; or a plain folder of SEQUENCE/00000.png
Out:    the faults of each sequence, in the order of their names
State:  none
Limits: label maps of at most MAX_PIXELS; a window of them is in memory at a time
Source: evaluation specification, DAVIS 1, 2, 3 and 10; numbers in square brackets below are its rules
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from operators.datasets.check_images import DAMAGED, Size, Wrong, in_threads, see_image, see_images
from operators.datasets.faults import Fault, Place, printable
from operators.errors import DatasetError
from operators.folders import IMAGE_SUFFIXES, natural_key
from operators.probe import IMAGE_FORMATS

VOID = 255
LABEL_FOLDERS = ("Annotations_unsupervised", "Annotations")
MAX_LIST_BYTES = 1 << 20
"""Of a list of sequences in ImageSets."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LabelledSequence:
    """Files of one sequence, in natural order; `images` None where there is no folder of images at all."""

    name: str
    maps: tuple[str, ...] = field(repr=False)
    images: tuple[str, ...] | None = field(repr=False)


@dataclass(frozen=True)
class DavisDataset:
    """What the folders list; no file was opened yet."""

    path: Path
    labels: Path
    images: Path | None
    sequences: tuple[LabelledSequence, ...] = field(repr=False)
    layout = "davis"

    @property
    def summary(self) -> str:
        num_maps = sum(len(sequence.maps) for sequence in self.sequences)
        images = f"images in {self.images}" if self.images else "images not looked at (none found; --images)"
        return f"davis: {len(self.sequences)} sequences of {num_maps} label maps in {self.labels}; {images}"


@dataclass(frozen=True)
class LabelMap:
    """One label map: its size (height, width) and mode, and which of the values 0..255 it has; or what is wrong."""

    size: Size | None = None
    mode: str = ""
    values: np.ndarray | None = field(default=None, repr=False)
    """(256,) bool; None where pixels are no values."""
    wrong: Wrong | None = None


def open_davis(path: Path, images: Path | None) -> DavisDataset:
    """List the sequences of a folder. Raises DatasetError where it has no label maps."""
    try:
        labels = _label_folder(path)
        images = images or _image_folder(path, labels)
        names = _folders(labels)
        sequences = tuple(
            LabelledSequence(name, _files(labels / name, (".png",)), images and _files(images / name, IMAGE_SUFFIXES))
            for name in names
            if labels != path or name not in ("JPEGImages", "ImageSets")
        )
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}).") from error
    if not any(sequence.maps for sequence in sequences):
        jsons = _files(path, (".json",))
        hint = f" To check annotations, name the file, such as {path / jsons[0]}." if jsons else ""
        raise DatasetError(f"{path}: has no label maps; expected a DAVIS folder, with "
                           f"Annotations/480p/SEQUENCE/00000.png or SEQUENCE/00000.png in it.{hint}")  # fmt: skip
    return DavisDataset(path, labels, images, sequences)


def davis_faults(dataset: DavisDataset, decode: bool = False, progress: Progress | None = None) -> Iterator[Fault]:
    """Every fault of every sequence, and sequences of the lists that are not there."""
    total, done = sum(len(s.maps) + len(s.images or ()) for s in dataset.sequences), 0
    yield from _list_faults(dataset)
    for sequence in dataset.sequences:
        yield from _sequence_faults(dataset, sequence, decode)
        done += len(sequence.maps) + len(sequence.images or ())
        if progress is not None:
            progress(done, total)


def read_label_map(path: Path) -> LabelMap:
    """The values of one label map; `wrong` for a file that is none."""
    seen = see_image(path, decode=False)
    if seen.wrong is not None:
        _, found, _ = seen.wrong
        return LabelMap(wrong=("label-map-unreadable", found, "a PNG with a palette"))
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.mode not in ("P", "L", "1"):
                return LabelMap(seen.size, image.mode)
            pixels = np.asarray(image).astype(np.uint8)                                  # (H, W)
            return LabelMap(seen.size, image.mode, np.bincount(pixels.ravel(), minlength=256) > 0)
    except DAMAGED as error:
        return LabelMap(seen.size, wrong=("label-map-unreadable", f"its pixels cannot be decoded ({error})", "a PNG"))


def _sequence_faults(dataset: DavisDataset, sequence: LabelledSequence, decode: bool) -> Iterator[Fault]:
    folder = dataset.labels / sequence.name
    place = Place(str(folder), video=printable(sequence.name))
    if not sequence.maps:
        yield place.fault("sequence-empty", "no label map", "a PNG for each frame")
        return
    stems = sorted({_stem(name) for name in (*sequence.maps, *(sequence.images or ()))}, key=natural_key)
    frames = {stem: frame for frame, stem in enumerate(stems)}
    yield from _missing(dataset, sequence, frames, place)
    size, seen = None, []
    for name, label_map in zip(sequence.maps, _read_all(folder, sequence.maps), strict=True):
        size = size or label_map.size
        file = printable(str(folder / name), 4000)
        for wrong in _map_wrongs(label_map, size):
            yield place.fault(*wrong, frame=frames[_stem(name)], file=file)
        seen.append(label_map.values)
    if all(values is not None for values in seen):
        indices = [frames[_stem(name)] for name in sequence.maps]
        for kind, found, expected, label, at in _object_faults(np.stack(seen), indices):
            yield Place(place.file, None, place.video, label).fault(kind, found, expected, at)
    if dataset.images is not None:
        yield from _image_faults(dataset.images / sequence.name, sequence, frames, size, place, decode)


def _map_wrongs(label_map: LabelMap, size: Size | None) -> Iterator[Wrong]:
    """What is wrong with one label map of a sequence whose others are of `size`."""
    if label_map.wrong is not None:
        yield label_map.wrong
        return
    if label_map.size != size and size is not None:
        (height, width), (other_height, other_width) = label_map.size, size
        yield "label-map-size", f"{width} x {height} pixels", f"{other_width} x {other_height}, as its sequence begins"
    if label_map.values is None:
        yield "label-map-mode", f"mode {label_map.mode}", "a palette (mode P), pixels that are object numbers"
    elif label_map.mode != "P":
        yield "label-map-grey", f"mode {label_map.mode}", "a palette (mode P)"


def _object_faults(seen: np.ndarray, frames: Sequence[int]) -> Iterator[tuple[str, str, str, int | None, int | None]]:
    """What the evaluation makes of the objects, from the values (T, 256) bool of all label maps: kind, found, expected,
    object, frame."""
    void, objects = seen[:, VOID], seen[:, 1:VOID].any(axis=0)                           # (T,), (254,)
    if void.any() and not objects.any():
        yield "only-void", f"no values but 0 and {VOID}", "objects 1, 2, ...", None, frames[int(void.argmax())]
        return
    if void.any():
        found = f"{VOID} in {int(void.sum())} of {len(seen)} label maps"
        yield "void-pixels", found, "no void, unless it is meant", None, frames[int(void.argmax())]
    highest = int(np.flatnonzero(seen[0, :VOID]).max(initial=0))                         # [1]
    if highest == 0:
        yield "first-frame-empty", "no object in the first label map", "its objects", None, frames[0]
        return
    for label in np.flatnonzero(objects) + 1:
        if label > highest:
            first = frames[int(seen[:, label].argmax())]
            yield "object-appears-later", f"object {label}", f"at most {highest}, as at first", int(label), first
    for label in range(1, highest):
        if not objects[label - 1]:
            yield "object-never-seen", f"no pixel of {label}, though {highest} is there", "objects 1..N", label, None


def _missing(
    dataset: DavisDataset, sequence: LabelledSequence, frames: dict[str, int], place: Place
) -> Iterator[Fault]:
    """Images without a label map and label maps without an image; without images, gaps in the numbers."""
    maps = {_stem(name) for name in sequence.maps}
    if not sequence.images:
        if dataset.images is not None:
            folder = printable(str(dataset.images / sequence.name), 4000)
            yield place.fault("image-missing", "no images of this sequence", f"{len(maps)}, as label maps", file=folder)
        yield from _gaps(sequence.maps, frames, place)
        return
    images = {_stem(name) for name in sequence.images}
    for stem, frame in frames.items():
        if stem not in maps:
            file = printable(str(dataset.labels / sequence.name / f"{stem}.png"), 4000)
            yield place.fault("label-map-missing", "no label map for this image", "a PNG of its name", frame, file)
        if stem not in images:
            file = printable(str(dataset.images / sequence.name / stem), 4000)
            yield place.fault("image-missing", "no image for this label map", "an image of its name", frame, file)


def _gaps(maps: Sequence[str], frames: dict[str, int], place: Place) -> Iterator[Fault]:
    """Where numbers go up by more than they mostly do; sequences may be stored every fourth frame."""
    stems = [_stem(name) for name in maps]
    if not all(re.fullmatch("[0-9]{1,18}", stem) for stem in stems) or len(stems) < 3:
        return
    steps = [int(after) - int(before) for before, after in zip(stems, stems[1:], strict=False)]
    usual, count = Counter(steps).most_common(1)[0]
    for before, after, step in zip(stems, stems[1:], steps, strict=False):
        if step > usual and 2 * count > len(steps):
            found = f"nothing between {before} and {after}"
            yield place.fault("label-map-missing", found, f"a label map every {usual}", frames[after])


def _image_faults(
    folder: Path, sequence: LabelledSequence, frames: dict[str, int], size: Size | None, place: Place, decode: bool
) -> Iterator[Fault]:
    names = sequence.images or ()
    for name, seen in zip(names, see_images(folder, names, decode), strict=True):
        frame, file = frames[_stem(name)], printable(str(folder / name), 4000)
        wrong = ("image-unreadable", "a name of no use", "an image") if seen is None else seen.wrong
        if wrong is not None:
            yield place.fault(*wrong, frame=frame, file=file)
        elif size is not None and seen.size != size:
            (height, width), (map_height, map_width) = seen.size, size
            expected = f"{map_width} x {map_height}, as its label maps"
            yield place.fault("image-size", f"{width} x {height} pixels", expected, frame, file)


def _list_faults(dataset: DavisDataset) -> Iterator[Fault]:
    """Sequences that a file of ImageSets lists and that are not there, each once."""
    known = {sequence.name for sequence in dataset.sequences}
    for path in sorted((dataset.path / "ImageSets").glob("*/*.txt")):
        with open(path, encoding="utf-8", errors="replace") as file:
            lines = file.read(MAX_LIST_BYTES).split("\n")
        for name in map(str.strip, lines):
            if name and "/" not in name and name not in known:       # DAVIS 2016 lists paths of single images
                known.add(name)
                yield Place(str(path), video=printable(name)).fault("sequence-missing", "no folder", "its label maps")


def _read_all(folder: Path, names: Sequence[str]) -> Iterator[LabelMap]:
    return in_threads(lambda name: read_label_map(folder / name), names)


def _label_folder(path: Path) -> Path:
    """The folder whose folders are sequences."""
    root = next((path / name for name in LABEL_FOLDERS if (path / name).is_dir()), path)
    inner = _folders(root)
    sizes = [name for name in inner if not _files(root / name, (".png",)) and _holds_maps(root / name)]
    if not sizes:
        return root
    return root / ("480p" if "480p" in sizes else sizes[0])


def _holds_maps(folder: Path) -> bool:
    return any(_files(folder / name, (".png",)) for name in _folders(folder))


def _image_folder(path: Path, labels: Path) -> Path | None:
    root = path / "JPEGImages"
    return next((folder for folder in (root / labels.name, root) if folder.is_dir()), None)


def _folders(path: Path) -> list[str]:
    with os.scandir(path) as entries:
        return sorted((e.name for e in entries if e.is_dir() and not e.name.startswith(".")), key=natural_key)


def _files(path: Path, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    """Names that end so, in natural order; () where there is no such folder."""
    if not path.is_dir():
        return ()
    with os.scandir(path) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(suffixes) and not e.name.startswith(".")]
    return tuple(sorted(names, key=natural_key))


def _stem(name: str) -> str:
    return name.rpartition(".")[0]
