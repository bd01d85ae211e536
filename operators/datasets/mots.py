"""MOTS text files to Truth and back: a line for each mask of each frame.

In:     NAME.txt of lines `time_frame id class_id height width rle`, in the folder or its instances_txt/;
        evaluate_mots.seqmap* with the numbers of frames, and images/NAME/, where there are
Out:    Truth; or OUT/instances_txt/NAME.txt, OUT/evaluate_mots.seqmap and, with images, OUT/images/NAME/000000.jpg
State:  none
Limits: lines of MAX_LINE bytes, MAX_FRAMES frames, MAX_CELLS frames x tracks of a sequence; one sequence at a time
Source: the text format of "MOTS: Multi-Object Tracking and Segmentation" (Voigtlaender et al., CVPR 2019): frames
        from 0 (KITTI) or 1 (MOTSChallenge); id 10000 of class 10 is what is to be ignored; a line of a seqmap is
        `NAME empty 000000 LAST`, the last frame being counted
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Literal

from pycocotools import mask as coco

from operators.datasets.files import ImageMode, ImagePlacer, new_folder
from operators.datasets.truth import Notes, Progress, TrackTruth, Truth, VideoTruth, unique_names
from operators.errors import DatasetError
from operators.folders import IMAGE_SUFFIXES, natural_key
from operators.probe import image_size, read_image_file
from operators.youtube_vis_data import Category
from operators.youtube_vis_rle import MAX_PIXELS, MaskTrack, Rle, check_compressed, counts_text, text_rle

MAX_LINE = 16 << 20
MAX_FRAMES = 100_000
MAX_CELLS = 1 << 25
IGNORE_ID, IGNORE_CLASS = 10_000, 10
IMAGE_FOLDERS = ("images", "training/image_02", "image_02", "JPEGImages")

IdRule = Literal["annotation", "class"]


@dataclass(frozen=True)
class Outline:
    """What a first reading of a sequence's file tells."""

    first: int
    """Smallest frame number; 0 in an empty file."""
    last: int
    """Largest frame number; -1 in an empty file."""
    size: tuple[int, int] | None
    """(height, width); None in an empty file."""
    classes: dict[int, int]
    """id -> class."""


def open_mots(path: Path, image_root: Path | None = None, class_names: dict[int, str] | None = None) -> Truth:
    """A folder of MOTS text files, or one of them; sequences in the order of the seqmap, else in natural order.

    Frame numbers are those in the names of the images, and the video begins with the smallest; without images with 0.
    Ids are kept where no two sequences share one, else numbered anew. Classes are called by `class_names`, else
    "class 1". A sequence without a line is kept only where images tell its size. Each file is read twice.
    Raises DatasetError naming file and line.
    """
    path, notes = Path(path), Notes()
    files = _files(path)
    lengths = _seqmap(path)
    files.sort(key=lambda file: (list(lengths).index(file.stem) if file.stem in lengths else len(lengths),
                                 natural_key(file.stem)))                                          # fmt: skip
    outlines = {file: _outline(file) for file in files}
    root = _image_root(path, files, image_root)
    keep_ids = sum(len(o.classes) for o in outlines.values()) == len({i for o in outlines.values() for i in o.classes})
    frames = {file: _frames(file, outlines[file], lengths.get(file.stem), root, notes) for file in files}
    kept = [file for file in files if frames[file] is not None]
    names = dict(enumerate(unique_names([file.stem for file in kept]), start=1))

    def videos(wanted: Collection[int] | None) -> Iterator[VideoTruth]:
        next_id = 1
        for video_id, file in enumerate(kept, start=1):
            if wanted is not None and video_id not in wanted:
                continue
            video = _read(file, outlines[file], frames[file], video_id, names[video_id], None if keep_ids else next_id,
                          notes)                                                                    # fmt: skip
            next_id += len(video.tracks)
            yield video

    classes = sorted({class_id for outline in outlines.values() for class_id in outline.classes.values()})
    categories = tuple(Category(c, (class_names or {}).get(c, f"class {c}")) for c in classes)
    if not keep_ids:
        notes.say("Sequences share ids of objects: they are numbered anew, as YouTube-VIS needs.")
    return Truth(path, categories, len(kept), root, videos, notes, names)


def write_mots(
    truth: Truth, out: Path, images: ImageMode = "none", *, ids: IdRule = "annotation", progress: Progress | None = None
) -> None:
    """Write a text file for each video, frames from 0, and a seqmap that keeps order and lengths.

    ids     "annotation": the annotation's id; "class": class * 1000 + 0, 1, .. within video and class, as in MOTS PNGs
    Crowds become the region to be ignored. Masks that overlap are all written, and counted: MOTS evaluation refuses
    them. Raises DatasetError for a track whose id would mean something else.
    """
    notes, placer = truth.notes, ImagePlacer(images, truth.notes)
    with new_folder(out) as folder:
        (folder / "instances_txt").mkdir()
        with (folder / "evaluate_mots.seqmap").open("w", encoding="utf-8") as seqmap:
            for video in truth.each(progress):
                seqmap.write(f"{video.name} empty 000000 {video.length - 1:06d}\n")
                with (folder / "instances_txt" / f"{video.name}.txt").open("w", encoding="ascii") as file:
                    _write_lines(file, video, ids, notes)
                for frame, name in enumerate(video.file_names if images != "none" else ()):
                    target = folder / "images" / video.name / f"{frame:06d}{PurePosixPath(name).suffix or '.jpg'}"
                    placer.place(truth.image(video, frame), target, f"video {video.id}, frame {frame}")
    notes.say("MOTS names no classes, only their numbers: give --classes 1=NAME,2=NAME where it is read back.")


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    folder = next((found for found in (path / "instances_txt", path) if found.is_dir()), None)
    files = [file for file in folder.glob("*.txt") if file.name[0] != "."] if folder else []
    if not files:
        raise DatasetError(f"{path}: has no MOTS text files; expected NAME.txt in it or in its instances_txt/.")
    return files


def _seqmap(path: Path) -> dict[str, int]:
    """Sequence -> number of frames, by the evaluate_mots.seqmap* of the folder; {} without one."""
    found = sorted(path.glob("evaluate_mots.seqmap*")) if path.is_dir() else []
    lengths = {}
    for file in found:
        try:
            rows = [line.split() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
        except (OSError, ValueError) as error:
            raise DatasetError(f"{file}: cannot be read ({error}).") from error
        for number, row in enumerate(rows, start=1):
            if len(row) != 4 or not re.fullmatch(r"[0-9]{1,7}", row[3]) or int(row[3]) >= MAX_FRAMES:
                raise DatasetError(f"{file}, line {number}: is {' '.join(row)[:80]!r}; expected 'NAME empty 000000 "
                                   f"LAST', LAST below {MAX_FRAMES}.")  # fmt: skip
            lengths[row[0]] = int(row[3]) + 1
    return lengths


def _lines(path: Path) -> Iterator[tuple[str, list[int], bytes]]:
    """(place, [time_frame, id, class_id, height, width], counts) of each line."""
    try:
        with path.open("rb") as file:
            number = 0
            while line := file.readline(MAX_LINE + 1):
                number += 1
                where = f"{path}, line {number}"
                fields = line.split()
                if len(line) > MAX_LINE or len(fields) not in (0, 6):
                    raise DatasetError(f"{where}: has {len(fields)} fields in {len(line)} bytes; expected time_frame, "
                                       f"id, class_id, height, width and rle.")  # fmt: skip
                if fields:
                    if not all(re.fullmatch(rb"[0-9]{1,9}", field) for field in fields[:5]):
                        raise DatasetError(f"{where}: begins with {line[:60]!r}; expected five whole numbers.")
                    yield where, [int(field) for field in fields[:5]], fields[5]
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror}).") from error


def _outline(path: Path) -> Outline:
    first, last, size, classes = MAX_FRAMES, -1, None, {}
    for where, (frame, object_id, class_id, height, width), _ in _lines(path):
        size = size or (height, width)
        if (height, width) != size:
            raise DatasetError(f"{where}: is of {height} x {width} pixels, the first line of {size[0]} x {size[1]}.")
        if not 1 <= height * width <= MAX_PIXELS or frame >= MAX_FRAMES:
            raise DatasetError(f"{where}: frame {frame} of {height} x {width} pixels; expected frames below "
                               f"{MAX_FRAMES} of 1 to {MAX_PIXELS} pixels.")  # fmt: skip
        if classes.setdefault(object_id, class_id) != class_id:
            raise DatasetError(f"{where}: object {object_id} is of class {class_id}, before it was of "
                               f"{classes[object_id]}; a track has one class.")  # fmt: skip
        first, last = min(first, frame), max(last, frame)
    return Outline(0 if last < 0 else first, last, size, classes)


def _image_root(path: Path, files: list[Path], image_root: Path | None) -> Path | None:
    if image_root is not None:
        if not Path(image_root).is_dir():
            raise DatasetError(f"{image_root}: is no folder; expected the images of {path}.")
        return Path(image_root)
    base = path if path.is_dir() else path.parent
    roots = [base / name for name in IMAGE_FOLDERS]
    return next((root for root in roots if any((root / file.stem).is_dir() for file in files)), None)


@dataclass(frozen=True)
class Frames:
    """The frames of a sequence."""

    first: int
    """The number of the first one."""
    names: tuple[str, ...]
    """Images, relative to the image root, whether or not they are there."""
    size: tuple[int, int]
    """(height, width)"""


def _frames(file: Path, outline: Outline, length: int | None, root: Path | None, notes: Notes) -> Frames | None:
    """All frames of a sequence that a line, an image or the seqmap knows of; None for one of unknown size."""
    images = _numbered_images(root, file.stem) if root else {}
    size = outline.size or (_size_of(root / min(images.items())[1]) if images else None)
    if size is None:
        notes.count("sequences without a line or images: their size is not known, left out", file.stem)
        return None
    first = min(min(images), outline.first if outline.classes else min(images)) if images else 0
    end = max(outline.last + 1, length or 0, max(images, default=-1) + 1)
    if end - first > MAX_FRAMES:
        raise DatasetError(f"{file}: frames and images are numbered from {first} to {end - 1}; expected at most "
                           f"{MAX_FRAMES}.")  # fmt: skip
    pattern = PurePosixPath(min(images.items())[1] if images else f"{file.stem}/000000.jpg")
    names = (images.get(n) or f"{pattern.parent}/{n:0{len(pattern.stem)}d}{pattern.suffix}" for n in range(first, end))
    notes.count("frames without an image of their number; a name is made up", file.stem, end - first - len(images))
    return Frames(first, tuple(names), size)


def _numbered_images(root: Path, sequence: str) -> dict[int, str]:
    """Number -> path relative to `root` of a sequence's images; {} unless every name is a number of its own."""
    folder = next((found for name in ("img1", "") if (found := root / sequence / name).is_dir()), None)
    if folder is None:
        return {}
    files = [file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES and file.name[0] != "."]
    numbers = {int(file.stem): file.relative_to(root).as_posix() for file in files
               if re.fullmatch(r"[0-9]{1,9}", file.stem)}                                          # fmt: skip
    return numbers if len(numbers) == len(files) else {}


def _size_of(image: Path) -> tuple[int, int]:
    try:
        return image_size(read_image_file(image))
    except ValueError as error:
        raise DatasetError(f"{image}: {error}; its size is needed, as its sequence has no masks.") from error


def _read(
    file: Path, outline: Outline, frames: Frames, video_id: int, name: str, first_id: int | None, notes: Notes
) -> VideoTruth:
    names, (height, width) = frames.names, frames.size
    if len(names) * len(outline.classes) > MAX_CELLS:
        raise DatasetError(f"{file}: {len(outline.classes)} objects in {len(names)} frames are more than the "
                           f"{MAX_CELLS} places supported. Is a frame number damaged?")  # fmt: skip
    objects: dict[int, list[Rle | None]] = {}
    for where, (frame, object_id, _, _, _), counts in _lines(file):
        masks, index = objects.setdefault(object_id, [None] * len(names)), frame - frames.first
        if masks[index] is not None:
            raise DatasetError(f"{where}: object {object_id} has a mask in frame {frame} already.")
        masks[index] = {"size": [height, width], "counts": counts_text(counts)}
        check_compressed([masks[index]], lambda _, where=where: where)
    tracks = []
    for number, (object_id, masks) in enumerate(objects.items()):
        class_id = outline.classes[object_id]
        ignored = (object_id, class_id) == (IGNORE_ID, IGNORE_CLASS)
        notes.count("regions to be ignored, kept as crowds", file.stem, int(ignored))
        track_id = object_id if first_id is None else first_id + number
        tracks.append(TrackTruth.of(track_id, class_id, ignored, masks))
    return VideoTruth(video_id, name, width, height, names, tuple(tracks))


def _write_lines(file: IO[str], video: VideoTruth, ids: IdRule, notes: Notes) -> None:
    numbers = _numbers(video, ids)
    for track in video.tracks:
        where = f"video {video.id}, annotation {track.id}"
        boxes = TrackTruth.of(track.id, track.category_id, False, track.masks).bboxes
        notes.count("boxes other than those around their masks, left out", where,
                    sum(b is not None and list(b) != tight for b, tight in zip(track.bboxes, boxes, strict=True)))
        notes.count("tracks without a mask, left out", where, int(not any(track.masks)))
        notes.count("occlusion labels, left out", where, sum(map(bool, track.occlusion or ())))
        notes.count("crowds, joined to the region that MOTS ignores", where, int(track.iscrowd))
    for frame in range(video.length):
        present = [track for track in video.tracks if track.masks[frame] is not None]
        masks = [track.masks[frame] for track in present if not track.iscrowd]
        crowds = [track.masks[frame] for track in present if track.iscrowd]
        lines = [(*numbers[track.id], track.masks[frame]) for track in present if not track.iscrowd]
        if crowds:
            lines.append((IGNORE_ID, IGNORE_CLASS, _union(crowds)))
        for object_id, class_id, mask in lines:
            file.write(f"{frame} {object_id} {class_id} {video.height} {video.width} {mask['counts']}\n")
        overlapping = masks and int(MaskTrack.of(masks).areas.sum()) != int(coco.area(coco.merge(masks)))
        notes.count("frames whose masks overlap, all kept; MOTS evaluation refuses such files",
                    f"video {video.id}, frame {frame}", int(bool(overlapping)))                    # fmt: skip


def _numbers(video: VideoTruth, ids: IdRule) -> dict[int, tuple[int, int]]:
    """Annotation id -> (id, class) in the file."""
    found, in_class = {}, {}
    for track in video.tracks:
        where = f"video {video.id}, annotation {track.id}"
        number = in_class[track.category_id] = in_class.get(track.category_id, -1) + 1
        if ids == "class" and number >= 1000:
            raise DatasetError(f"{where}: is object {number} of class {track.category_id}; class * 1000 + number holds "
                               f"1000 of a class.")  # fmt: skip
        object_id = track.id if ids == "annotation" else track.category_id * 1000 + number
        if not (0 <= object_id < 10**9 and 0 <= track.category_id < 10**9):
            raise DatasetError(f"{where}: id {object_id} of class {track.category_id}; MOTS takes numbers from 0 to "
                               f"999999999.")  # fmt: skip
        if (object_id, track.category_id) == (IGNORE_ID, IGNORE_CLASS) and not track.iscrowd:
            raise DatasetError(f"{where}: id {IGNORE_ID} of class {IGNORE_CLASS} is what MOTS ignores. Give the "
                               f"annotation or its class another number.")  # fmt: skip
        found[track.id] = object_id, track.category_id
    return found


def _union(masks: list[Rle]) -> Rle:
    return text_rle(coco.merge(masks))
