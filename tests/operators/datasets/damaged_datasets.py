"""Small datasets with one thing wrong each: what is done to a sound one, and all faults that must be found.

The sound one: videos 1 and 2 of 4 frames of 96 x 64, annotations 1..5 in video 1 and 6..10 in video 2, all visible in
all frames, categories 1..7.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from operators.shapes import PRESETS, write_youtube_vis

NAN, INF = math.nan, math.inf
Where = tuple[Any, Any, Any]
"""Of a fault: video id, annotation id, frame."""


def write_sound(root: Path) -> Path:
    """The sound dataset: root/instances.json and root/JPEGImages."""
    return write_youtube_vis(root, replace(PRESETS["easy"], width=96, height=64, num_frames=4), seed=0, num_clips=2)


def damaged(sound: Path, root: Path, damage: Callable) -> Path:
    """A copy of the sound dataset in `root` after `damage(raw)`, or of its images after `damage(raw, images)`."""
    raw = copy.deepcopy(json.loads(sound.read_bytes()))
    shutil.copytree(sound.parent / "JPEGImages", root / "JPEGImages")
    if damage.__code__.co_argcount == 2:
        damage(raw, root / "JPEGImages")
    else:
        damage(raw)
    (root / "instances.json").write_text(json.dumps(raw))
    return root / "instances.json"


def put(*path: Any) -> Callable[[dict], None]:
    """Set a value: put("videos", 0, "width", 7) is raw["videos"][0]["width"] = 7."""
    *keys, last, value = path

    def change(raw: dict) -> None:
        for key in keys:
            raw = raw[key]
        raw[last] = value

    return change


def take(*path: Any) -> Callable[[dict], None]:
    """Remove an entry."""
    *keys, last = path

    def change(raw: dict) -> None:
        for key in keys:
            raw = raw[key]
        del raw[last]

    return change


def add(table: str, entry: Any) -> Callable[[dict], None]:
    return lambda raw: raw[table].append(copy.deepcopy(entry))


def both(*changes: Callable[[dict], None]) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        for one in changes:
            one(raw)

    return change


def case(name: str, damage: Callable, *faults: tuple[str, Where]) -> Any:
    return pytest.param(damage, list(faults), id=name)


def ann(index: int, key: str, *rest: Any) -> Callable[[dict], None]:
    return put("annotations", index, key, *rest)


def null_frames(index: int) -> Callable[[dict], None]:
    """A track without a pixel: null in all lists."""
    return both(*(ann(index, key, [None] * 4) for key in ("segmentations", "bboxes", "areas")))


def move_box(by: float) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        raw["annotations"][1]["bboxes"][2][0] += by

    return change


def change_area(share: float) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        raw["annotations"][8]["areas"][1] *= share

    return change


def uncompressed(change: Callable[[list[int]], list[int]]) -> Callable[[dict], None]:
    """Annotation 4, frame 3 (a mask of one row: 10 pixels from place 5 on) as a list of runs, after `change`."""
    counts = change([5, 10, 96 * 64 - 15])
    return ann(3, "segmentations", 3, {"size": [64, 96], "counts": counts})


def cut_counts(raw: dict) -> None:
    mask = raw["annotations"][3]["segmentations"][3]
    mask["counts"] = mask["counts"][:-2]


def with_occlusion(*labels: Any, at: int = 0) -> Callable[[dict], None]:
    def change(raw: dict) -> None:
        for annotation in raw["annotations"]:
            annotation["occlusion"] = ["no_occlusion"] * 4
        if labels:
            raw["annotations"][at]["occlusion"] = list(labels)

    return change


def polygon(ring: list, box: list, area: float) -> Callable[[dict], None]:
    """Annotation 1, frame 0 as a polygon."""
    return both(ann(0, "segmentations", 0, [ring]), ann(0, "bboxes", 0, box), ann(0, "areas", 0, area))


def cut_image(num_bytes: int) -> Callable[[dict, Path], None]:
    def change(raw: dict, images: Path) -> None:
        path = images / "clip_00001/00002.jpg"
        path.write_bytes(path.read_bytes()[:num_bytes])

    return change


def remove_image(raw: dict, images: Path) -> None:
    (images / "clip_00001/00002.jpg").unlink()


def shrink_image(raw: dict, images: Path) -> None:
    from PIL import Image

    path = images / "clip_00001/00002.jpg"
    with Image.open(path) as image:
        image.resize((48, 32)).save(path)


def image_as_folder(raw: dict, images: Path) -> None:
    (images / "clip_00001/00002.jpg").unlink()
    (images / "clip_00001/00002.jpg").mkdir()


def text_as_image(raw: dict, images: Path) -> None:
    (images / "clip_00001/00002.jpg").write_text("<html>not found</html>")


SOUND_RING = [10, 10, 40, 10, 40, 30, 10, 30]
IMAGE = ((2, None, 2),)
SECOND_VIDEO = {"id": 2, "width": 96, "height": 64, "length": 4,
                "file_names": [f"clip_00001/{frame:05d}.jpg" for frame in range(4)]}  # fmt: skip

TABLES = [
    case("sound", lambda raw: None),
    case("annotations null", put("annotations", None)),
    case("no annotations", take("annotations")),
    case("annotations are no list", put("annotations", {}), ("structure", (None, None, None))),
    case("no categories", take("categories"), ("structure", (None, None, None))),
    case("a video is text", add("videos", "clip"), ("structure", (None, None, None))),
    case("an annotation is null", add("annotations", None), ("structure", (None, None, None))),
    case("NaN in info", put("info", "seed", NAN), ("non-finite", (None, None, None))),
    case("infinity deep in a video", put("videos", 1, "tags", [{"fps": [1, INF]}]), ("non-finite", (2, None, None))),
    case("NaN beside an annotation", ann(6, "score", NAN), ("non-finite", (2, 7, None))),
    case("video id as text", both(put("videos", 1, "id", "2"), lambda raw: raw.update(annotations=None)),
         ("bad-video-id", ("'2'", None, None))),
    case("video without id", both(take("videos", 1, "id"), lambda raw: raw.update(annotations=None)),
         ("bad-video-id", (None, None, None))),
    case("a video twice", add("videos", SECOND_VIDEO), ("duplicate-video-id", (2, None, None)),
         *(("frame-used-twice", (2, None, frame)) for frame in range(4))),
    case("a video without width", take("videos", 0, "width"), ("bad-video-size", (1, None, None))),
    case("a video of 10^18 pixels", both(put("videos", 0, "width", 10**9), put("videos", 0, "height", 10**9), *(
         take("annotations", k, key) for k in range(5) for key in ("width", "height"))),
         ("bad-video-size", (1, None, None))),
    case("a video without frames", both(put("videos", 0, "file_names", []), put("videos", 0, "length", 0), *(
         take("annotations", k, "length") for k in range(5))), ("video-without-frames", (1, None, None))),
    case("length of other than the names", put("videos", 1, "length", 5), ("video-length", (2, None, None))),
    case("a file name is null", put("videos", 0, "file_names", 2, None), ("bad-file-name", (1, None, 2))),
    case("a file name is half a surrogate", put("videos", 0, "file_names", 2, "a/\ud800.jpg"),
         ("bad-file-name", (1, None, 2))),
    case("an absolute file name", put("videos", 0, "file_names", 1, "/etc/passwd"),
         ("file-name-leaves-root", (1, None, 1))),
    case("a file name that climbs", put("videos", 0, "file_names", 1, "clip_00000/../../x.jpg"),
         ("file-name-leaves-root", (1, None, 1))),
    case("a file name of Windows", put("videos", 0, "file_names", 1, "clip_00000\\00001.jpg"),
         ("file-name-leaves-root", (1, None, 1))),
    case("a frame twice in a video", put("videos", 0, "file_names", 3, "clip_00000/00000.jpg"),
         ("frame-used-twice", (1, None, 3))),
    case("a frame in two videos", put("videos", 1, "file_names", 0, "clip_00000/./00000.jpg"),
         ("frame-used-twice", (2, None, 0))),
    case("category id as text", add("categories", {"id": "8", "name": "x"}),
         ("bad-category", (None, None, None))),
    case("category without name", add("categories", {"id": 8}), ("bad-category", (None, None, None))),
    case("category id twice", add("categories", {"id": 7, "name": "x"}),
         ("duplicate-category-id", (None, None, None))),
    case("category name twice", put("categories", 1, "name", "circle"),
         ("duplicate-category-name", (None, None, None))),
    case("a gap in the categories", add("categories", {"id": 9, "name": "x"}),
         ("category-gaps", (None, None, None))),
    case("annotation id as text", ann(9, "id", "10"), ("bad-annotation-id", (2, "'10'", None))),
    case("annotation without id", take("annotations", 9, "id"), ("bad-annotation-id", (2, None, None))),
    case("annotation id twice", ann(9, "id", 9), ("duplicate-annotation-id", (2, 9, None))),
    case("annotation ids from 11 on", ann(9, "id", 11), ("annotation-ids", (None, None, None))),
    case("unknown video", ann(9, "video_id", 3), ("unknown-video", (3, 10, None))),
    case("video id of an annotation as text", ann(9, "video_id", "2"), ("unknown-video", ("'2'", 10, None))),
    case("unknown category", ann(9, "category_id", 8), ("unknown-category", (2, 10, None))),
    case("category id true", ann(9, "category_id", True), ("unknown-category", (2, 10, None))),
]
"""What is wrong with videos, categories and ids."""

TRACKS = [
    case("iscrowd 2", ann(9, "iscrowd", 2), ("odd-iscrowd", (2, 10, None))),
    case("iscrowd null", ann(9, "iscrowd", None), ("odd-iscrowd", (2, 10, None))),
    case("iscrowd 1 and none", both(ann(9, "iscrowd", 1), take("annotations", 8, "iscrowd"))),
    case("width of an annotation", ann(4, "width", 64), ("size-copy", (1, 5, None))),
    case("length of an annotation", ann(4, "length", 5), ("size-copy", (1, 5, None))),
    case("an empty track", null_frames(2), ("empty-track", (1, 3, None))),
    case("no boxes", take("annotations", 2, "bboxes"), ("structure", (1, 3, None))),
    case("areas null", ann(2, "areas", None), ("structure", (1, 3, None))),
    case("segmentations too short", lambda raw: raw["annotations"][2]["segmentations"].pop(),
         ("wrong-length", (1, 3, None))),
    case("segmentations too long", lambda raw: raw["annotations"][2]["segmentations"].append(None),
         ("wrong-length", (1, 3, None))),
    case("boxes too short", lambda raw: raw["annotations"][2]["bboxes"].pop(), ("wrong-length", (1, 3, None))),
    case("areas too long", lambda raw: raw["annotations"][2]["areas"].append(5), ("wrong-length", (1, 3, None))),
    case("a mask is a number", ann(5, "segmentations", 1, 7), ("not-a-mask", (2, 6, 1))),
    case("a mask without counts", ann(5, "segmentations", 1, {"size": [64, 96]}), ("not-a-mask", (2, 6, 1))),
    case("RLE of the transposed size", ann(5, "segmentations", 1, "size", [96, 64]), ("rle-size", (2, 6, 1))),
    case("RLE of a size of 10^9", ann(5, "segmentations", 1, "size", [10**9, 10**9]), ("rle-size", (2, 6, 1))),
    case("compressed counts cut short", cut_counts, ("rle-counts", (1, 4, 3))),
    case("counts that are not ASCII", ann(3, "segmentations", 3, "counts", "é"), ("rle-counts", (1, 4, 3))),
    case("runs that sum up to less", uncompressed(lambda runs: runs[:2]), ("rle-counts", (1, 4, 3))),
    case("a run below 0", uncompressed(lambda runs: [*runs, -5, 5]), ("rle-counts", (1, 4, 3))),
    case("a run of 2^70", uncompressed(lambda runs: [*runs, 2**70]), ("rle-counts", (1, 4, 3))),
    case("runs of text", uncompressed(lambda runs: ["5"]), ("rle-counts", (1, 4, 3))),
    case("a polygon", polygon(SOUND_RING, [10, 10, 30, 20], 600.0)),
    case("a polygon by COCO's area", polygon(SOUND_RING, [10, 10, 30, 20], 640.0)),
    case("a polygon with NaN", polygon([1, 1, 5, NAN, 9, 9], [1, 1, 8, 8], 30), ("bad-polygon", (1, 1, 0))),
    case("a polygon far outside", polygon([1, 1, 5, 9, 900, 9], [1, 1, 8, 8], 30), ("bad-polygon", (1, 1, 0))),
    case("a box of three numbers", ann(1, "bboxes", 2, [1, 2, 3]), ("bad-box", (1, 2, 2))),
    case("a box below 0", ann(1, "bboxes", 2, [34, 44, -17, 18]), ("bad-box", (1, 2, 2))),
    case("a box with NaN", ann(1, "bboxes", 2, [34, NAN, 17, 18]), ("non-finite", (1, 2, 2))),
    case("a box of 10^400", ann(1, "bboxes", 2, [34, 10**400, 17, 18]), ("non-finite", (1, 2, 2))),
    case("a box 2 pixels off", move_box(2)),
    case("a box 3 pixels off", move_box(-3), ("box-off-mask", (1, 2, 2))),
    case("a box as corners", ann(1, "bboxes", 2, [34, 44, 51, 62]), ("box-off-mask", (1, 2, 2))),
    case("a box alone", both(ann(1, "segmentations", 2, None), ann(1, "areas", 2, None)),
         ("box-without-mask", (1, 2, 2))),
    case("a mask without box", ann(1, "bboxes", 2, None), ("mask-without-box", (1, 2, 2))),
    case("a box about a mask without pixels", both(ann(1, "segmentations", 2, {"size": [64, 96], "counts": [64 * 96]}),
         ann(1, "areas", 2, 0)), ("box-off-mask", (1, 2, 2))),
    case("an area as text", ann(8, "areas", 1, "437"), ("bad-area", (2, 9, 1))),
    case("an area below 0", ann(8, "areas", 1, -437), ("bad-area", (2, 9, 1))),
    case("an area of infinity", ann(8, "areas", 1, INF), ("non-finite", (2, 9, 1))),
    case("an area 1 % off", change_area(1.009)),
    case("an area 2 % off", change_area(1.02), ("area-disagrees", (2, 9, 1))),
    case("no area", ann(8, "areas", 1, None), ("area-disagrees", (2, 9, 1))),
    case("an area alone", both(ann(8, "segmentations", 1, None), ann(8, "bboxes", 1, None)),
         ("area-disagrees", (2, 9, 1))),
    case("OVIS", with_occlusion("no_occlusion", "slight_occlusion", "severe_occlusion", None)),
    case("an occlusion that is none", with_occlusion("no_occlusion", "heavy", None, None),
         ("bad-occlusion", (1, 1, 1))),
    case("occlusion too short", with_occlusion("no_occlusion", at=7), ("wrong-length", (2, 8, None))),
    case("one annotation without occlusion", both(with_occlusion(), take("annotations", 7, "occlusion")),
         ("structure", (2, 8, None))),
]
"""What is wrong within an annotation."""

IMAGES = [
    case("an image is missing", remove_image, ("image-missing", *IMAGE)),
    case("an image is empty", cut_image(0), ("image-unreadable", *IMAGE)),
    case("an image is text", text_as_image, ("image-unreadable", *IMAGE)),
    case("an image is a folder", image_as_folder, ("image-unreadable", *IMAGE)),
    case("an image is a header alone", cut_image(300), ("image-unreadable", *IMAGE)),
    case("an image is cut", cut_image(-500), ("image-damaged", *IMAGE)),
    case("an image is of another size", shrink_image, ("image-size", *IMAGE)),
]
"""What is wrong with images."""

COMBINED = [
    case("a damaged mask, a box and an area elsewhere", both(cut_counts, move_box(9), change_area(3)),
         ("box-off-mask", (1, 2, 2)), ("rle-counts", (1, 4, 3)), ("area-disagrees", (2, 9, 1))),
    case("three in one annotation", both(ann(5, "category_id", 99), ann(5, "segmentations", 1, "size", [1, 1]),
         ann(5, "bboxes", 3, None)), ("unknown-category", (2, 6, None)), ("rle-size", (2, 6, 1)),
         ("mask-without-box", (2, 6, 3))),
    case("tables, tracks and NaN", both(put("info", "seed", NAN), put("videos", 0, "length", 9), null_frames(9)),
         ("non-finite", (None, None, None)), ("video-length", (1, None, None)), ("empty-track", (2, 10, None))),
]
ALL = TABLES + TRACKS + IMAGES + COMBINED
