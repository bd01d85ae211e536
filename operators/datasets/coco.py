"""COCO instances to Truth, each still a video, and back.

In:     instances JSON: images, annotations with polygons or RLE, categories
Out:    Truth of pseudo-videos of N equal frames; or a COCO JSON with an image a frame
State:  none
Limits: MAX_PIXELS an image, MAX_COPIES frames of a still; the file is in memory as a whole
Source: the COCO data format; polygons are rasterised by COCO's own mask code
"""

from __future__ import annotations

import itertools
import math
import reprlib
from collections.abc import Collection, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from operators.datasets.files import ImageMode, ImagePlacer, new_folder, new_json, write_json
from operators.datasets.truth import Notes, Progress, TrackTruth, Truth, VideoTruth, find_images, unique_names
from operators.datasets.youtube_vis import image_prefix
from operators.errors import ConfigError, DatasetError
from operators.json_files import is_finite, read_json
from operators.youtube_vis_data import Annotation, Category, Dataset, Video
from operators.youtube_vis_rle import MAX_PIXELS, MaskTrack, segmentation_to_rle

MAX_COPIES = 1000


def open_coco(path: Path, image_root: Path | None = None, frames: int = 1) -> Truth:
    """A COCO instances JSON: image 7 is video 7, `frames` times the same; ids, boxes and crowds are kept.

    Images are looked for as those of YouTube-VIS. Raises DatasetError naming file, image and annotation; for damaged
    masks, while iterating. ConfigError for a number of frames out of 1..MAX_COPIES.
    """
    if not 1 <= frames <= MAX_COPIES:
        raise ConfigError(f"--frames {frames}: expected 1 to {MAX_COPIES} frames of a still.")
    path = Path(path)
    images, categories, objects = _read(path)
    stems = unique_names([PurePosixPath(entry["file_name"]).stem for entry in images])
    names = {entry["id"]: name for entry, name in zip(images, stems, strict=True)}
    notes = Notes()

    def videos(wanted: Collection[int] | None) -> Iterator[VideoTruth]:
        for entry in images:
            if wanted is not None and entry["id"] not in wanted:
                continue
            tracks = (_track(o, entry, frames, path, notes) for o in objects.get(entry["id"], ()))
            yield VideoTruth(entry["id"], names[entry["id"]], entry["width"], entry["height"],
                             (entry["file_name"],) * frames, tuple(tracks))                       # fmt: skip

    root = find_images(path, [entry["file_name"] for entry in images], image_root)
    return Truth(path, categories, len(images), root, videos, notes, names)


def read_stills(path: Path | str, image_root: Path | str | None = None) -> Dataset:
    """A COCO instances JSON as a dataset of videos of one frame each, its masks as they are in the file.

    Unlike `open_coco` no polygon is rasterised: that takes minutes for COCO as a whole, and training wants them at
    another size. With `image_root`, the first image must be there. Raises DatasetError naming file, image, annotation.
    """
    path = Path(path)
    images, categories, objects = _read(path)
    root = None if image_root is None else Path(image_root)
    if root is not None and images and not (root / images[0]["file_name"]).is_file():
        raise DatasetError(f"{path}: image {images[0]['id']}: {images[0]['file_name']} is not in {root}. Is this the "
                           "right image root?")  # fmt: skip
    videos = tuple(Video(e["id"], e["width"], e["height"], 1, (e["file_name"],)) for e in images)
    found = tuple(_still(o, path) for entry in images for o in objects.get(entry["id"], ()))
    return Dataset(path, root, videos, categories, found, True)


def _read(path: Path) -> tuple[list[dict], tuple[Category, ...], dict[int, list[dict]]]:
    """Images and categories by ascending id, and the annotations of each image by its id; all checked."""
    raw = read_json(path, "a COCO instances file")
    if not isinstance(raw, dict):
        raise DatasetError(f"{path}: holds {reprlib.repr(raw)}; expected an object with images, annotations and "
                           f"categories.")  # fmt: skip
    images = [_image(entry, f"{path}: images[{i}]") for i, entry in enumerate(_list(raw, "images", path))]
    categories = [_category(entry, f"{path}: categories[{i}]")
                  for i, entry in enumerate(_list(raw, "categories", path))]                      # fmt: skip
    _unique((entry["id"] for entry in images), f"{path}: image id")
    _unique((category.id for category in categories), f"{path}: category id")
    objects = _by_image(raw, path, {entry["id"] for entry in images}, {category.id for category in categories})
    images.sort(key=lambda entry: entry["id"])
    return images, tuple(sorted(categories, key=lambda category: category.id)), objects


def _still(entry: dict, path: Path) -> Annotation:
    """An annotation as a track of one frame."""
    box, area = entry.get("bbox"), entry.get("area")
    where = f"{path}: image {entry['image_id']}, annotation {entry['id']}"
    if box is not None and not _is_box(box):
        raise DatasetError(f"{where}: bbox is {reprlib.repr(box)}; expected [x, y, width, height] in pixels.")
    if area is not None and (type(area) not in (int, float) or not 0 <= area < math.inf):
        raise DatasetError(f"{where}: area is {reprlib.repr(area)}; expected a number of pixels.")
    segmentation = entry.get("segmentation")
    if segmentation is not None and not isinstance(segmentation, (dict, list)):
        raise DatasetError(f"{where}: segmentation is {reprlib.repr(segmentation)}; expected polygons or RLE.")
    return Annotation(entry["id"], entry["image_id"], entry["category_id"], bool(entry.get("iscrowd", 0)),
                      (segmentation or None,), (box,), (area,))  # fmt: skip


def write_coco(truth: Truth, out: Path, images: ImageMode = "none", *, progress: Progress | None = None) -> None:
    """Write each frame as an image and each mask as an annotation, both numbered from 1, masks as compressed RLE.

    Beside the fields of COCO an image has video_id and frame_id, an annotation instance_id, the id of its track, which
    other programs pass over. Raises as `write_youtube_vis`.
    """
    placer, notes = ImagePlacer(images, truth.notes), truth.notes
    with ExitStack() as stack:
        file = stack.enter_context(new_json(out))
        folder = stack.enter_context(new_folder(Path(out).parent / "JPEGImages")) if images != "none" else None
        prefix = "" if folder else image_prefix(truth, Path(out))
        stills: list[dict] = []
        number = itertools.count(1)

        def annotations() -> Iterator[dict]:
            for video in truth.each(progress):
                for frame, name in enumerate(video.file_names):
                    if folder:
                        placer.place(truth.image(video, frame), folder / name, f"video {video.id}, frame {frame}")
                    stills.append({"id": len(stills) + 1, "file_name": prefix + name, "width": video.width,
                                   "height": video.height, "video_id": video.id, "frame_id": frame})  # fmt: skip
                    for track in video.tracks:
                        entry = _annotation(track, frame, len(stills))
                        if entry:
                            yield {"id": next(number), **entry}
                _count_losses(video, notes)

        write_json(file, {
            "info": {"description": f"{Path(truth.path).name}, converted by Maskstream", "version": "1"},
            "licenses": [],
            "categories": [{"id": c.id, "name": c.name, "supercategory": "object"} for c in truth.categories],
            "annotations": annotations(),
            "images": iter(stills),                 # filled while the annotations are written
        })  # fmt: skip
    notes.say("COCO knows no tracks: each mask is an annotation of its own; instance_id keeps the id of its track.")


def _annotation(track: TrackTruth, frame: int, image_id: int) -> dict | None:
    mask = track.masks[frame]
    tight = TrackTruth.of(track.id, track.category_id, track.iscrowd, [mask])
    if not tight.areas[0]:
        return None
    return {"image_id": image_id, "category_id": track.category_id, "iscrowd": int(track.iscrowd),
            "segmentation": mask, "area": track.areas[frame] or tight.areas[0],
            "bbox": track.bboxes[frame] or tight.bboxes[0], "instance_id": track.id}               # fmt: skip


def _count_losses(video: VideoTruth, notes: Notes) -> None:
    where = f"video {video.id}"
    for track in video.tracks:
        empty = sum(m is not None and not a for m, a in zip(track.masks, MaskTrack.of(track.masks).areas, strict=True))
        notes.count("masks without a pixel, left out", where, empty)
        boxes = sum(m is None and b is not None for m, b in zip(track.masks, track.bboxes, strict=True))
        notes.count("boxes without a mask, left out", where, boxes)
        notes.count("occlusion labels, left out", where, sum(map(bool, track.occlusion or ())))


def _by_image(raw: dict, path: Path, images: set[int], categories: set[int]) -> dict[int, list[dict]]:
    """Image id -> its annotations in file order, what they refer to checked."""
    found: dict[int, list[dict]] = {}
    entries = [] if raw.get("annotations") is None else _list(raw, "annotations", path)
    ids = []
    for index, entry in enumerate(entries):
        where = f"{path}: annotations[{index}]"
        ids.append(_integer(entry, "id", where))
        where = f"{path}: annotation {entry['id']}"
        if _integer(entry, "image_id", where) not in images:
            raise DatasetError(f"{where}: image_id is {entry['image_id']}, which no image has.")
        if _integer(entry, "category_id", where) not in categories:
            raise DatasetError(f"{where}: category_id is {entry['category_id']}, which no category has.")
        if entry.get("iscrowd", 0) not in (0, 1):
            raise DatasetError(f"{where}: iscrowd is {reprlib.repr(entry['iscrowd'])}; expected 0 or 1.")
        found.setdefault(entry["image_id"], []).append(entry)
    _unique(ids, f"{path}: annotation id")
    return found


def _track(entry: dict, image: dict, frames: int, path: Path, notes: Notes) -> TrackTruth:
    where = f"{path}: image {image['id']}, annotation {entry['id']}"
    mask = segmentation_to_rle(entry.get("segmentation"), image["height"], image["width"], where)
    notes.count("annotations without a mask (boxes are kept)", where, int(mask is None))
    track = TrackTruth.of(entry["id"], entry["category_id"], bool(entry.get("iscrowd", 0)), [mask] * frames)
    box = entry.get("bbox")
    if box is None:
        return track
    if not _is_box(box):
        raise DatasetError(f"{where}: bbox is {reprlib.repr(box)}; expected [x, y, width, height] in pixels.")
    return replace(track, bboxes=(box,) * frames)


def _is_box(box: Any) -> bool:
    if not isinstance(box, list) or len(box) != 4 or any(type(number) not in (int, float) for number in box):
        return False
    return all(map(is_finite, box)) and box[2] >= 0 and box[3] >= 0


def _image(entry: Any, where: str) -> dict:
    image_id = _integer(entry, "id", where)
    where = f"{where} (id {image_id})"
    width, height = _integer(entry, "width", where), _integer(entry, "height", where)
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise DatasetError(f"{where}: is {width} x {height}; expected sides from 1 and at most {MAX_PIXELS} pixels.")
    name = entry.get("file_name")
    if not isinstance(name, str) or not name or "\0" in name:
        raise DatasetError(f"{where}: file_name is {reprlib.repr(name)}; expected the path of an image.")
    return {"id": image_id, "width": width, "height": height, "file_name": name}


def _category(entry: Any, where: str) -> Category:
    category_id = _integer(entry, "id", where)
    if not isinstance(entry.get("name"), str):
        raise DatasetError(f"{where} (id {category_id}): name is {reprlib.repr(entry.get('name'))}; expected text.")
    return Category(category_id, entry["name"])


def _integer(entry: Any, key: str, where: str) -> int:
    if not isinstance(entry, dict) or type(entry.get(key)) is not int:
        got = reprlib.repr(entry.get(key)) if isinstance(entry, dict) else reprlib.repr(entry)
        raise DatasetError(f"{where}: {key} is {got}; expected a whole number.")
    return entry[key]


def _list(raw: dict, key: str, path: Path) -> list:
    if not isinstance(raw.get(key), list):
        hint = " Is it a YouTube-VIS file? Then say --from youtube-vis." if "videos" in raw else ""
        raise DatasetError(f"{path}: {key} is {reprlib.repr(raw.get(key))}; expected a list.{hint}")
    return raw[key]


def _unique(ids: Any, what: str) -> None:
    seen: set[int] = set()
    for entry in ids:
        if entry in seen:
            raise DatasetError(f"{what} {entry} occurs more than once; ids must be unique.")
        seen.add(entry)
