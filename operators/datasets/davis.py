"""DAVIS folders to Truth and back: a palette PNG a frame, whose values are the objects.

In:     Annotations_unsupervised/480p/NAME/00000.png and the like, or NAME/00000.png alone; JPEGImages where there are
Out:    Truth; or a folder as DAVIS 2019 unsupervised is laid out, which its evaluation reads
State:  none
Limits: 254 objects a sequence (0 is background, 255 void); one frame's map is in memory at a time
Source: evaluation specification, "DAVIS 2019"; the layout of the published sets

Values are numbered anew for each sequence and say nothing of classes. A pixel has one object: where masks overlap, the
smaller one of the frame is on top (of equal ones the earlier), as a small object would vanish under a large one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from operators.datasets.files import ImageMode, ImagePlacer, new_folder
from operators.datasets.truth import Notes, Progress, TrackTruth, Truth, VideoTruth, unique_names
from operators.errors import DatasetError
from operators.folders import IMAGE_SUFFIXES, natural_key
from operators.formats import MAX_INDEX, cropped_mask, davis_palette
from operators.sources import safe_name
from operators.youtube_vis_data import Category
from operators.youtube_vis_rle import MAX_PIXELS, MaskTrack, Rle, text_rle

VOID = 255
RESOLUTIONS = ("480p", "Full-Resolution", "1080p")
ANNOTATIONS = ("Annotations_unsupervised", "Annotations")
MAX_FRAMES = 1_000_000
OBJECT = Category(1, "object")
"""DAVIS knows no classes: everything is of this one."""


def open_davis(path: Path, image_root: Path | None = None, subset: str | None = None) -> Truth:
    """A DAVIS folder, its sequences in natural order, or those of ImageSets/*/`subset`.txt in the order of that file.

    A video has the frames that have a label map. Void pixels are left out, and counted. Raises DatasetError naming
    file and sequence; for damaged label maps, while iterating.
    """
    path = Path(path)
    folder = annotation_folder(path)
    notes = Notes()
    sequences = _listed(path, folder, subset) if subset else _sequences(folder, notes)
    if not sequences:
        raise DatasetError(f"{folder}: has no folders with PNG label maps; expected SEQUENCE/00000.png.")
    names = dict(enumerate(unique_names(sequences), start=1))
    root = _image_root(path, folder, sequences, image_root)
    if root is None:
        notes.say("The images were not found; they are named SEQUENCE/FRAME.jpg, as in DAVIS.")

    def videos(wanted: Collection[int] | None) -> Iterator[VideoTruth]:
        next_id = 1
        for video_id, sequence in enumerate(sequences, start=1):
            if wanted is not None and video_id not in wanted:
                continue
            video = _read(folder / sequence, root, sequence, video_id, names[video_id], next_id, notes)
            next_id += len(video.tracks)
            yield video

    notes.say("DAVIS names no classes: every object is of the class 'object'; ids are numbered anew.")
    return Truth(path, (OBJECT,), len(sequences), root, videos, notes, names)


def annotation_folder(path: Path) -> Path:
    """The folder whose sub-folders are the sequences. Raises DatasetError where `path` is no folder."""
    if not path.is_dir():
        raise DatasetError(f"{path}: is no folder; expected a DAVIS folder, or one with SEQUENCE/00000.png in it.")
    folder = next((path / name for name in ANNOTATIONS if (path / name).is_dir()), path)
    return next((folder / name for name in RESOLUTIONS if (folder / name).is_dir()), folder)


def read_label_map(path: Path) -> np.ndarray:
    """A palette or grey PNG -> its values (H, W) uint8. Raises DatasetError for anything else."""
    try:
        with Image.open(path, formats=["PNG"]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise DatasetError(f"{path}: has {image.width} x {image.height} pixels, more than the {MAX_PIXELS} "
                                   f"supported.")  # fmt: skip
            if image.mode not in ("P", "L"):
                raise DatasetError(f"{path}: is a PNG of mode {image.mode}; expected a palette or 8 bit grey, whose "
                                   f"values are the objects. Was it saved as colours?")  # fmt: skip
            return np.array(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{path}: cannot be read as a PNG ({error}).") from error


def write_davis(
    truth: Truth, out: Path, images: ImageMode = "none", *, renumber: bool = False, progress: Progress | None = None
) -> None:
    """Write OUT/Annotations_unsupervised/480p/NAME/FRAME.png, ImageSets/2017/val.txt and, with images, JPEGImages/480p.

    Objects are 1.. in the order of a video's tracks, crowds are void. Frames keep the stems of their images, unless
    `renumber`, or stems that repeat or are out of order, make them 00000 and on. The notes say what is lost.
    Raises DatasetError for a video of more than MAX_INDEX objects, ConfigError where `out` is there already.
    """
    placer = ImagePlacer(images, truth.notes)
    with new_folder(out) as folder:
        names = []
        for video in truth.each(progress):
            names.append(video.name)
            stems = _stems(video, renumber, truth.notes)
            _write_maps(video, folder / "Annotations_unsupervised" / "480p" / video.name, stems, truth.notes)
            for frame, stem in enumerate(stems if images != "none" else ()):
                suffix = PurePosixPath(video.file_names[frame]).suffix or ".jpg"
                target = folder / "JPEGImages" / "480p" / video.name / f"{stem}{suffix}"
                placer.place(truth.image(video, frame), target, f"video {video.id}, frame {frame}")
        listed = folder / "ImageSets" / "2017" / "val.txt"
        listed.parent.mkdir(parents=True)
        listed.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    if len(truth.categories) > 1 or any(category.name != OBJECT.name for category in truth.categories):
        truth.notes.say("DAVIS has no classes and no ids of annotations: both are lost; objects are 1, 2, .. in every "
                        "video.")  # fmt: skip


def paint(masks: Sequence[tuple[int, Rle]], height: int, width: int) -> tuple[np.ndarray, int]:
    """(value, mask) of one frame -> label map (H, W) uint8, and the pixels lost to overlap; no masks give zeros.

    The smaller mask is on top, of equal ones the earlier; void lies under everything, and loses nothing.
    """
    labels = np.zeros((height, width), np.uint8)
    areas = [int(coco.area(mask)) for _, mask in masks]
    order = sorted(range(len(masks)), key=lambda i: (masks[i][0] != VOID, -areas[i], -i))
    for i in order:
        value, mask = masks[i]
        rows, columns, inside = cropped_mask(mask)
        labels[rows, columns][inside] = value
    wanted = sum(area for area, (value, _) in zip(areas, masks, strict=True) if value != VOID)
    return labels, wanted - int(np.count_nonzero((labels != 0) & (labels != VOID)))


def _listed(path: Path, folder: Path, subset: str) -> list[str]:
    lists = sorted((path / "ImageSets").glob(f"*/{safe_name(subset)}.txt"))
    if not lists:
        raise DatasetError(f"{path}: has no ImageSets/*/{subset}.txt, which the subset '{subset}' asks for.")
    try:
        names = lists[-1].read_text(encoding="utf-8").split()
    except (OSError, ValueError) as error:
        raise DatasetError(f"{lists[-1]}: cannot be read ({error}).") from error
    for name in names:
        if safe_name(name) != name or not (folder / name).is_dir():
            raise DatasetError(f"{lists[-1]}: lists the sequence {name!r}, of which {folder} has no folder.")
    return list(dict.fromkeys(names))


def _sequences(folder: Path, notes: Notes) -> list[str]:
    try:
        found = sorted((entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] != "."),
                       key=natural_key)                                                            # fmt: skip
    except OSError as error:
        raise DatasetError(f"{folder}: cannot be read ({error.strerror}).") from error
    kept = [name for name in found if _maps(folder / name)]
    for name in (name for name in found if name not in set(kept)):
        notes.count("folders without PNG label maps, left out", name)
    return kept


def _maps(folder: Path) -> list[str]:
    """The names of the label maps of a sequence, in natural order."""
    names = [entry.name for entry in os.scandir(folder) if re.fullmatch(r"[^.].*\.png", entry.name, re.IGNORECASE)]
    if len(names) > MAX_FRAMES:
        raise DatasetError(f"{folder}: has {len(names)} label maps, more than the {MAX_FRAMES} supported.")
    return sorted(names, key=natural_key)


def _image_root(path: Path, folder: Path, sequences: Sequence[str], image_root: Path | None) -> Path | None:
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise DatasetError(f"{image_root}: is no folder; expected the images of {path}.")
        return Path(image_root)
    beside = [base / "JPEGImages" for base in (path, folder.parent, folder.parent.parent)]
    roots = [root / name for root in beside for name in (folder.name, *RESOLUTIONS, "")]
    return next((root for root in roots if any(_images(root / name) for name in sequences[:10])), None)


def _images(folder: Path) -> dict[str, str]:
    """Stem -> name of the images of a folder; {} where there is none."""
    if not folder.is_dir():
        return {}
    names = sorted(entry.name for entry in os.scandir(folder) if entry.name.lower().endswith(IMAGE_SUFFIXES))
    return {PurePosixPath(name).stem: name for name in names if name[0] != "."}


def _read(
    folder: Path, root: Path | None, sequence: str, video_id: int, name: str, first_id: int, notes: Notes
) -> VideoTruth:
    maps = _maps(folder)
    if not maps:
        raise DatasetError(f"{folder}: has no PNG label maps.")
    images = _images(root / sequence) if root else {}
    stems = [PurePosixPath(entry).stem for entry in maps]
    notes.count("images without a label map, left out", sequence, len(images.keys() - set(stems)))
    files = tuple(f"{sequence}/{images.get(stem, stem + '.jpg')}" for stem in stems)
    objects: dict[int, list[Rle | None]] = {}
    size = None
    for frame, entry in enumerate(maps):
        labels = read_label_map(folder / entry)
        size = size or labels.shape
        if labels.shape != size:
            raise DatasetError(f"{folder / entry}: is {labels.shape[1]} x {labels.shape[0]}, the first label map of "
                               f"its sequence {size[1]} x {size[0]}.")  # fmt: skip
        for value in np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist():
            if value == VOID:
                notes.count("void pixels, left out", f"{sequence}/{entry}", int((labels == VOID).sum()))
            elif value:
                objects.setdefault(value, [None] * len(maps))[frame] = _encode(labels == value)
    tracks = [TrackTruth.of(first_id + k, OBJECT.id, False, objects[value]) for k, value in enumerate(sorted(objects))]
    if not tracks:
        notes.count("sequences without an object (DAVIS 2016 has its objects as 255, which is void here)", sequence)
    return VideoTruth(video_id, name, size[1], size[0], files, tuple(tracks))


def _encode(mask: np.ndarray) -> Rle:
    return text_rle(coco.encode(np.asfortranarray(mask, dtype=np.uint8)))


def _stems(video: VideoTruth, renumber: bool, notes: Notes) -> list[str]:
    stems = [PurePosixPath(name).stem for name in video.file_names]
    orderly = sorted(set(stems)) == stems and all(safe_name(stem) == stem for stem in stems)
    if orderly and not renumber:
        return stems
    if not orderly:
        notes.count("videos whose frames are numbered anew, as the names of their images repeat or are out of order",
                    f"video {video.id}")                                                            # fmt: skip
    return [f"{frame:05d}" for frame in range(video.length)]


def _write_maps(video: VideoTruth, folder: Path, stems: Sequence[str], notes: Notes) -> None:
    where = f"video {video.id}"
    areas = [MaskTrack.of(track.masks).areas for track in video.tracks]
    present = [k for k, track in enumerate(video.tracks) if areas[k].any() and not track.iscrowd]
    if len(present) > MAX_INDEX:
        raise DatasetError(f"{where} has {len(present)} objects; a DAVIS label map holds at most {MAX_INDEX}. "
                           f"Leave this video out, with `dataset split` for one.")  # fmt: skip
    values = {k: value for value, k in enumerate(present, start=1)}
    values |= {k: VOID for k, track in enumerate(video.tracks) if track.iscrowd}
    notes.count("crowds, written as void", where, len(values) - len(present))
    notes.count("tracks without a pixel, left out", where, len(video.tracks) - len(values))
    late = sum(not areas[k][0] for k in present)
    notes.count("objects not in their video's first frame, which the DAVIS evaluation may not look for", where, late)
    folder.mkdir(parents=True)
    palette = davis_palette().tobytes()
    for frame, stem in enumerate(stems):
        masks = [(v, video.tracks[k].masks[frame]) for k, v in values.items() if areas[k][frame]]
        labels, lost = paint(masks, video.height, video.width)
        notes.count("pixels lost where masks overlapped (the smaller mask of the frame is on top)",
                    f"{where}, frame {frame}", lost)                                                # fmt: skip
        image = Image.fromarray(labels)
        image.putpalette(palette)
        image.save(folder / f"{stem}.png")
