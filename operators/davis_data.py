"""DAVIS folders: which label maps belong together, and the maps themselves.

In:     the folder of the ground truth, the folder of the results
Out:    a Sequence each, with a path of the one and of the other for every frame; label maps (H, W) uint8
State:  none
Limits: PNG files of at most MAX_IMAGE_BYTES and MAX_PIXELS, one in memory at a time; sizes are read before pixels are
Source: the layout of DAVIS 2017, unsupervised task; evaluation specification, "DAVIS 2019", 10

A ground truth is either a DAVIS folder, or any folder of label maps:

    GT/Annotations_unsupervised/480p/SEQUENCE/00000.png        GT/SEQUENCE/00000.png
    GT/ImageSets/2017/val.txt      (all sequences if absent)

Results are RESULTS/SEQUENCE/00000.png, or RESULTS/SEQUENCE/davis/00000.png as `maskstream run --save davis` leaves
them, or else `masks`. Only frames that the ground truth has are looked at, in the order of their names as text.
"""

from __future__ import annotations

import io
import os
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from operators.errors import DatasetError
from operators.probe import MAX_PIXELS, read_image_file

ANNOTATIONS = "Annotations_unsupervised"
RESOLUTION = "480p"
YEARS = ("2017", "2019")
"""Folders of ImageSets: `val` and `train` lie in the first, the test sets in the second."""
INDEXED = ("P", "L", "1", "I", "I;16")
"""Pillow's modes with one whole number a pixel."""
MAX_LIST_BYTES = 1 << 20


@dataclass(frozen=True)
class Sequence:
    """One video: T label maps of the ground truth, and the T of the results that bear the same names."""

    name: str
    truth: tuple[Path, ...] = field(repr=False)
    found: tuple[Path, ...] = field(repr=False)

    def __len__(self) -> int:
        return len(self.truth)


@dataclass(frozen=True)
class Truth:
    """A ground truth that is to be run over."""

    names: tuple[str, ...]
    """Of its sequences, in order."""
    images: Path
    """The folder of the folders of their images."""


def find_truth(truth: Path | str, images: Path | str | None = None, subset: str = "val") -> Truth:
    """The sequences of a ground truth, and where their images lie: in `images`, else in JPEGImages where DAVIS has
    them, or beside the label maps. Raises DatasetError as `find_sequences`, and where images are absent."""
    truth = _folder(truth, "ground truth")
    names, _, beside = _named_sequences(truth, subset)
    root = Path(images) if images is not None else beside or truth.parent / "JPEGImages"
    missing = [name for name in names if not (root / name).is_dir()]
    if missing:
        raise DatasetError(f"{root}: has no folder of images for {_first_of(missing, 'sequence')} of {truth}. Name the "
                           f"folder of SEQUENCE/00000.jpg with --image-root.")  # fmt: skip
    return Truth(tuple(names), root)


def find_sequences(truth: Path | str, results: Path | str, subset: str = "val") -> list[Sequence]:
    """The sequences to evaluate, at least one, in the order of the list in ImageSets, else by name.

    `subset` names that list, and counts for a DAVIS folder alone. Raises DatasetError for a folder that is not there
    or holds no sequences, and for sequences and frames that either side lacks, naming them.
    """
    truth, results = _folder(truth, "ground truth"), _folder(results, "results")
    names, root, images = _named_sequences(truth, subset)
    missing = [name for name in names if not (results / name).is_dir()]
    if missing:
        raise DatasetError(f"{results}: has no folder for {_first_of(missing, 'sequence')} of {truth}. All must be "
                           f"there; results are expected as {results / missing[0] / '00000.png'} and on.")  # fmt: skip
    return [_sequence(name, root / name, results / name, images / name if images else None) for name in names]


def _folder(path: Path | str, what: str) -> Path:
    if not Path(path).is_dir():
        raise DatasetError(f"{path}: is no folder; expected the {what}, a folder of sequences of PNG label maps.")
    return Path(path)


def read_label_map(path: Path) -> np.ndarray:
    """A PNG of labels as (H, W) uint8. Raises DatasetError naming the file for one that is none, RGB above all."""
    try:
        data = read_image_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)     # the bound below is the stricter one
            with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
                _check_kind(image)
                labels = np.asarray(image)
    except UnidentifiedImageError:
        raise DatasetError(f"{path}: is no PNG image; expected a PNG of labels.") from None
    except Image.DecompressionBombError as error:
        raise DatasetError(f"{path}: has far more than the {MAX_PIXELS} pixels allowed.") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DatasetError(f"{path}: {error}. Expected a whole PNG of labels, 0 for background.") from error
    if labels.dtype.itemsize > 1 and labels.max() > 255:
        raise DatasetError(f"{path}: holds label {labels.max()}; expected labels of at most 255.")
    return labels.astype(np.uint8, copy=False)


def _check_kind(image: Image.Image) -> None:
    """Raise ValueError for what is not to be decoded."""
    if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"has {image.width} x {image.height} pixels, more than the {MAX_PIXELS} allowed")
    if image.mode not in INDEXED:
        raise ValueError(f"is a colour image ({image.mode}), in which objects have no numbers; "
                         "save the label maps as palette PNGs, mode P in Pillow")  # fmt: skip


def _named_sequences(truth: Path, subset: str) -> tuple[list[str], Path, Path | None]:
    """Names, the folder of the ground truth's sequences, and that of the images where it can be told."""
    if not (truth / ANNOTATIONS).is_dir():
        if any((truth / folder).is_dir() for folder in ("Annotations", "ImageSets", "JPEGImages")):
            raise DatasetError(f"{truth}: is a DAVIS folder without {ANNOTATIONS}, the masks of the unsupervised task; "
                               f"unpack them there. Or name the folder of the sequences itself.")  # fmt: skip
        return _folders(truth, f"SEQUENCE/00000.png or {ANNOTATIONS}/{RESOLUTION}/SEQUENCE/00000.png"), truth, None
    root = truth / ANNOTATIONS / RESOLUTION
    if not root.is_dir():
        raise DatasetError(f"{root}: is no folder. For another resolution name the folder of its sequences itself, "
                           f"as {root.parent / 'Full-Resolution'}.")  # fmt: skip
    images = truth / "JPEGImages" / RESOLUTION
    lists = [truth / "ImageSets" / year / f"{subset}.txt" for year in YEARS]
    path = next((path for path in lists if path.is_file()), None)
    if path is None and (truth / "ImageSets").is_dir():
        raise DatasetError(f"{lists[0]}: there is no such file, so nothing says which sequences are in '{subset}'.")
    names = _read_list(path) if path else _folders(root, "SEQUENCE/00000.png")
    missing = [name for name in names if not (root / name).is_dir()]
    if missing:
        raise DatasetError(f"{root}: has no folder for {_first_of(missing, 'sequence')} that {path} lists.")
    return names, root, images if images.is_dir() else None


def _read_list(path: Path) -> list[str]:
    try:
        with path.open("rb") as file:
            lines = file.read(MAX_LIST_BYTES).decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{path}: cannot be read ({error}); expected the name of a sequence a line.") from error
    names = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
    odd = next((name for name in names if "\0" in name or Path(name).name != name), None)
    if odd is not None or not names:
        got = "is empty" if odd is None else f"has the line {odd[:80]!r}"
        raise DatasetError(f"{path}: {got}; expected the name of a sequence a line.")
    return names


def _folders(root: Path, expected: str) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise DatasetError(f"{root}: holds no folders of sequences; expected {expected}.")
    return names


def _sequence(name: str, truth: Path, found: Path, images: Path | None) -> Sequence:
    frames = _files(truth, ".png")
    if not frames:
        raise DatasetError(f"{truth}: holds no PNG label maps; expected 00000.png and on.")
    if images is not None and images.is_dir():
        bare = sorted({Path(image).stem for image in _files(images, ".jpg")} - {Path(frame).stem for frame in frames})
        if bare:
            raise DatasetError(f"{truth}: has no mask for {_first_of(bare, 'frame')} of {images}.")
    present = set(_files(found, ".png"))
    inside = next((found / kind for kind in ("davis", "masks") if (found / kind).is_dir()), None)
    if not present and inside is not None:
        found, present = inside, set(_files(inside, ".png"))
    missing = [frame for frame in frames if frame not in present]
    if missing:
        raise DatasetError(f"{found}: has no result for {_first_of(missing, 'frame')} of {truth}, "
                           f"which has {len(frames)}. A frame without objects needs its PNG too, all 0.")  # fmt: skip
    return Sequence(name, tuple(truth / frame for frame in frames), tuple(found / frame for frame in frames))


def _files(folder: Path, suffix: str) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.name.endswith(suffix) and entry.is_file())


def _first_of(names: list[str], what: str) -> str:
    """'sequence a', or '7 sequences (a, b, c, ...)'."""
    if len(names) == 1:
        return f"{what} {names[0]}"
    return f"{len(names)} {what}s ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
