"""Annotation files small enough to draw by hand, and what is in one, in a form that can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from operators.datasets.convert import Format, convert
from operators.datasets.truth import Truth, open_youtube_vis

HEIGHT, WIDTH = 6, 8


def rle(mask: np.ndarray) -> dict:
    encoded = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def rectangle(top: int, left: int, bottom: int, right: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[top:bottom, left:right] = True
    return mask


def video(video_id: int, name: str, length: int, height: int = HEIGHT, width: int = WIDTH) -> dict:
    return {"id": video_id, "width": width, "height": height, "length": length,
            "file_names": [f"{name}/{5 * frame:05d}.jpg" for frame in range(length)]}              # fmt: skip


def track(track_id: int, video_id: int, masks: Sequence[np.ndarray | None], category_id: int = 1, **more) -> dict:
    """With the tight boxes of its masks, None for one without pixels."""
    rles = [None if mask is None else rle(mask) for mask in masks]
    shown = [mask is not None and bool(mask.any()) for mask in masks]
    boxes = [coco.toBbox(r).tolist() if there else None for r, there in zip(rles, shown, strict=True)]
    areas = [int(mask.sum()) if there else None for mask, there in zip(masks, shown, strict=True)]
    return {"id": track_id, "video_id": video_id, "category_id": category_id, "iscrowd": 0, "segmentations": rles,
            "bboxes": boxes, "areas": areas, **more}                                               # fmt: skip


def write(path: Path, videos: list[dict], tracks: list[dict], categories: Sequence[str] = ("cat", "dog")) -> Path:
    """A YouTube-VIS file; classes 1, 2, .. are called so."""
    listed = [{"id": number, "name": name} for number, name in enumerate(categories, start=1)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": videos, "categories": listed, "annotations": tracks}))
    return path


def write_images(folder: Path, videos: list[dict]) -> None:
    """A PNG under each file name, its grey the number of the frame."""
    for entry in videos:
        for frame, name in enumerate(entry["file_names"]):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            picture = np.full((entry["height"], entry["width"], 3), frame, np.uint8)
            Image.fromarray(picture).save(folder / name, format="PNG")


def there_and_back(path: Path, folder: Path, by: Format, there=None, back=None) -> Truth:
    """The file converted to another format and back to YouTube-VIS, with options of the ways `there` and `back`."""
    middle = folder / ("middle.json" if by == "coco" else "middle")
    convert(path, middle, "youtube-vis", by, there)
    convert(middle, folder / "back.json", by, "youtube-vis", back)
    return open_youtube_vis(folder / "back.json")


def content(truth: Truth, *, ids: bool = True) -> list[tuple]:
    """(video name, size, [(id, class, crowd, masks as nested lists or None)]) of every video; masks without pixels
    count as None."""
    return [(v.name, v.height, v.width, [(t.id if ids else 0, t.category_id if ids else 0, t.iscrowd,
                                          [m and coco.area(m) and m["counts"] for m in t.masks]) for t in v.tracks])
            for v in truth]                                                                        # fmt: skip
