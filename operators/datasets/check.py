"""The dataset doctor: every fault of a YouTube-VIS, OVIS or DAVIS dataset, not the first alone.

In:     an annotation JSON, or a DAVIS folder, however damaged; the folder of images, where there is one
Out:    Fault after Fault, as they are found (faults.py); what can be repaired is repaired in fix.py
State:  none
Limits: beside the file itself one track and a window of images are held. Faults are not collected here: a damaged file
        may have one for every entry
Source: CrossVIS specification 1.2 and 1.4; what the strict reader of youtube_vis_data.py refuses is an error here

  check_file (a JSON as it stands) > check_tables (videos, categories, ids)
                                   > check_tracks (what an annotation holds, frame by frame)
                                   > check_images (headers and ends of files)
  check_davis (label maps)         > check_images
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from operators.datasets.check_davis import DavisDataset, davis_faults, open_davis
from operators.datasets.check_file import JsonDataset, Layout, VideoEntry, open_json, place_of, videos_for
from operators.datasets.check_images import see_images
from operators.datasets.check_tables import table_faults, value_faults
from operators.datasets.check_tracks import Tolerance, track_faults
from operators.datasets.faults import Fault, Place, printable, shown, shown_id
from operators.errors import DatasetError

__all__ = ["Checked", "JsonDataset", "Tolerance", "find_faults", "open_dataset"]

Checked = JsonDataset | DavisDataset
Progress = Callable[[int, int], None]

TRACK_FIELDS = ("id", "video_id", "category_id", "iscrowd", "width", "height", "length", "segmentations", "bboxes",
                "areas", "occlusion")  # fmt: skip
"""What of an annotation is checked by itself."""


def open_dataset(path: Path | str, layout: Layout | None = None, images: Path | str | None = None) -> Checked:
    """Find out what `path` is, and read it as far as all checks need: a JSON whole, of a DAVIS folder the listing.

    `layout` takes it for that whatever it looks like; `images` is the folder of images, by default the folder of the
    JSON or its JPEGImages, where any of them is there. Raises DatasetError for what cannot be read at all.
    """
    path, images = Path(path), None if images is None else Path(images)
    if images is not None and not images.is_dir():
        raise DatasetError(f"{images}: is no folder; expected the images of {path}.")
    if not path.exists():
        raise DatasetError(f"{path}: does not exist; expected an annotation JSON or a DAVIS folder.")
    if layout is not None and path.is_dir() != (layout == "davis"):
        wanted = "a DAVIS folder" if layout == "davis" else "an annotation JSON"
        raise DatasetError(f"{path}: is {'a folder' if path.is_dir() else 'a file'}; layout {layout} means {wanted}.")
    return open_davis(path, images) if path.is_dir() else open_json(path, layout, images)


def find_faults(
    dataset: Checked, *, decode: bool = False, tolerance: Tolerance | None = None, progress: Progress | None = None
) -> Iterator[Fault]:
    """Every fault, one after the other; none for a sound dataset.

    `decode` decodes images in place of looking at headers and ends. `progress` is called with what is done and what is
    to do: tracks and images, of DAVIS label maps.
    """
    if isinstance(dataset, DavisDataset):
        yield from davis_faults(dataset, decode, progress)
        return
    total = len(dataset.annotations) + (dataset.num_images if dataset.images else 0)
    told = progress or (lambda done, total: None)
    yield from table_faults(dataset)
    for index, raw in enumerate(dataset.annotations):
        yield from _annotation_faults(dataset, index, raw, tolerance or Tolerance())
        told(index + 1, total)
    done = len(dataset.annotations)
    for video in dataset.videos if dataset.images else ():
        yield from _image_faults(dataset.images, video, place_of(dataset, video), decode)
        done += len(video.names or ())
        told(done, total)


def _annotation_faults(dataset: JsonDataset, index: int, raw: Any, tolerance: Tolerance) -> Iterator[Fault]:
    if not isinstance(raw, dict):
        yield Place(str(dataset.path), place=f"annotations[{index}]").fault("structure", shown(raw), "an object")
        return
    video = next(iter(videos_for(dataset, raw)), None)
    place = _annotation_place(dataset, index, raw, video)
    yield from _reference_faults(dataset, index, raw, place)
    if video is not None:
        ovis = dataset.layout == "ovis"
        yield from track_faults(raw, place, video.length, video.size, ovis=ovis, tolerance=tolerance)
    yield from value_faults(raw, TRACK_FIELDS, place)


def _annotation_place(dataset: JsonDataset, index: int, raw: dict, video: VideoEntry | None) -> Place:
    annotation_id = raw.get("id")
    alone = type(annotation_id) is int and len(dataset.indices_of[annotation_id]) == 1
    name = None if video is None else video.name
    place = None if alone else f"annotations[{index}]"
    return Place(str(dataset.path), shown_id(raw.get("video_id")), name, shown_id(annotation_id), place)


def _reference_faults(dataset: JsonDataset, index: int, raw: dict, place: Place) -> Iterator[Fault]:
    """An annotation's own id, and those of its video and category."""
    said = {key: f"{key} is {shown(raw[key])}" if key in raw else f"no {key}" for key in TRACK_FIELDS[:3]}
    annotation_id, category_id = raw.get("id"), raw.get("category_id")
    if type(annotation_id) is not int:
        yield place.fault("bad-annotation-id", said["id"], "a whole number")
    elif (first := dataset.indices_of[annotation_id][0]) != index:
        yield place.fault("duplicate-annotation-id", f"{said['id']}, as of annotations[{first}]", "an id of its own")
    if not videos_for(dataset, raw):
        yield place.fault("unknown-video", said["video_id"], "the id of a video that the file lists")
    known = dataset.category_ids
    if known is not None and not (type(category_id) is int and category_id in known):
        yield place.fault("unknown-category", said["category_id"], "the id of a category that the file lists")


def _image_faults(root: Path, video: VideoEntry, place: Place, decode: bool) -> Iterator[Fault]:
    names = video.names or []
    for frame, (name, seen) in enumerate(zip(names, see_images(root, names, decode), strict=True)):
        if seen is None:                # its name is a fault, told with the tables
            continue
        file = printable(str(root / name), 4000)
        if seen.wrong is not None:
            yield place.fault(*seen.wrong, frame=frame, file=file)
        elif video.size is not None and seen.size is not None and seen.size != video.size:
            found = f"{seen.size[1]} x {seen.size[0]} pixels"
            yield place.fault("image-size", found, f"{video.size[1]} x {video.size[0]}, its video's", frame, file)
