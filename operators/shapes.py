"""The generated dataset `shapes`: endless, seeded clips of moving textured objects with exact masks and ids.

In:     `ShapesConfig` (or a name of `PRESETS`), a seed, the number of a clip
Out:    `Clip` in memory; a YouTube-VIS dataset (JPEG frames and instances.json); encoded videos
State:  none: a clip is a function of its config, seed and number alone, so any clip can be made anywhere, in any order
Limits: one clip is in memory at a time (in each worker): 0.65 MB a frame of 512 x 320

The way of one clip: shapes_config (settings) > shapes_forms (surfaces) > shapes_plan (who goes where) > shapes_scene
(whose pixel is whose) > shapes_paint (what colour it has) > here (into which file it goes).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from operators.errors import ConfigError, DatasetError
from operators.processes import in_processes
from operators.shapes_config import PRESETS, ShapesConfig
from operators.shapes_forms import CATEGORIES
from operators.shapes_paint import paint
from operators.shapes_plan import draw_scene
from operators.video_writer import write_video

__all__ = [
    "CATEGORIES", "PRESETS", "Clip", "ShapesConfig", "TrackedObject", "clip_name", "generate_clip", "write_videos",
    "write_youtube_vis",
]  # fmt: skip

JPEG_QUALITY = 92
"""Above 90 the blocks of JPEG stay below the noise of the presets; a 512 x 320 frame takes about 50 kB."""

Progress = Callable[[int, int], None]
"""Called after each clip with the number done and the number wanted."""

Result = TypeVar("Result")


@dataclass(frozen=True)
class TrackedObject:
    """One object of a clip."""

    object_id: int
    """1 to 255: its value in the clip's id map."""
    category_id: int
    """1-based: CATEGORIES[category_id - 1] is its class."""


@dataclass(frozen=True)
class Clip:
    """T frames and what is in them.

    frames  (T, H, W, 3) uint8 RGB
    ids     (T, H, W) uint8: `object_id` of what is seen at each pixel, 0 for background; so masks never overlap
    objects those that are seen in one frame at least
    """

    frames: np.ndarray
    ids: np.ndarray
    objects: tuple[TrackedObject, ...]

    def masks(self, k: int) -> np.ndarray:
        """Visible part (T, H, W) bool of objects[k]; all False in frames where it is hidden or outside."""
        return self.ids == self.objects[k].object_id

    def box(self, k: int, t: int) -> tuple[int, int, int, int] | None:
        """The smallest box (x1, y1, x2, y2) about the visible part of objects[k] in frame t, x2 and y2 exclusive.

        None where nothing of it is seen.
        """
        return _tight_box(self.ids[t] == self.objects[k].object_id)


def generate_clip(config: ShapesConfig, seed: int, index: int) -> Clip:
    """Clip number `index` of the endless dataset of (config, seed): the same arguments give the same bytes.

    Raises ConfigError for a negative seed or index, and where the settings ask for what does not fit into the frame.
    """
    if seed < 0 or index < 0:
        raise ConfigError(f"shapes: seed {seed} and clip {index} were asked for, expected numbers from 0 up.")
    rng = np.random.default_rng([seed, index])
    scene, coverage = draw_scene(config, rng)
    frames = np.stack(list(paint(scene, rng)))   # (T, H, W, 3)
    objects = tuple(
        TrackedObject(k + 1, CATEGORIES.index(mover.category) + 1)
        for k, mover in enumerate(scene.movers)
        if coverage.visible[k].any()
    )
    return Clip(frames, coverage.ids, objects)


def write_youtube_vis(
    root: Path | str,
    config: ShapesConfig,
    seed: int,
    num_clips: int,
    *,
    first: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> Path:
    """Write clips first .. first + num_clips - 1 as a YouTube-VIS dataset; gives the path of its instances.json.

    root/JPEGImages/<clip>/<frame>.jpg, root/instances.json with every field of the format, masks as compressed RLE.
    The JSON is written last and at once, so a folder that has it is complete; a cut run is taken up by the same call.
    The same arguments give the same bytes, for any number of workers.
    Raises DatasetError where `root` holds anything but this very dataset; ConfigError for a count below 1.
    """
    root = Path(root)
    _check_counts(num_clips, first, workers)
    info = _info(config, seed, num_clips, first)
    unfinished = _claim(root, info)
    work = partial(_write_clip, root / "JPEGImages", config, seed)
    written = _in_order(work, range(first, first + num_clips), workers, progress)
    videos, annotations = [], []
    for number, (file_names, tracks) in enumerate(written, start=1):
        videos.append(_video_record(number, file_names, config))
        annotations += [{"id": len(annotations) + k, "video_id": number, **track} for k, track in enumerate(tracks, 1)]
    categories = [{"id": k, "name": name, "supercategory": "shape"} for k, name in enumerate(CATEGORIES, start=1)]
    dataset = {
        "info": info, "licenses": [], "videos": videos, "categories": categories, "annotations": annotations,
    }  # fmt: skip
    unfinished.write_text(json.dumps(dataset))
    os.replace(unfinished, root / "instances.json")
    return root / "instances.json"


def write_videos(
    root: Path | str,
    config: ShapesConfig,
    seed: int,
    num_clips: int,
    codec: str = "h264",
    *,
    bframes: int = 2,
    first: int = 0,
    workers: int = 1,
    progress: Progress | None = None,
) -> list[Path]:
    """Encode the same clips as root/<clip>.mp4 (H.264 with `bframes` B-frames) or .webm (VP9); gives the paths.

    A file appears under its name when it is complete; one that was there is replaced.
    Raises ConfigError for an unknown codec or a count below 1.
    """
    _check_counts(num_clips, first, workers)
    Path(root).mkdir(parents=True, exist_ok=True)
    work = partial(_encode_clip, Path(root), config, seed, codec, bframes if codec == "h264" else 0)
    return list(_in_order(work, range(first, first + num_clips), workers, progress))


def clip_name(index: int) -> str:
    """Folder or file name of clip `index`."""
    return f"clip_{index:05d}"


def _in_order(
    work: Callable[[int], Result], indices: range, workers: int, progress: Progress | None
) -> Iterator[Result]:
    """work(index) for each index, in order, in this process or in `workers` fresh ones."""
    if workers == 1:
        yield from _counted(map(work, indices), len(indices), progress)
        return
    with closing(in_processes(work, indices, workers)) as results:
        yield from _counted(results, len(indices), progress)


def _counted(results: Iterator[Result], total: int, progress: Progress | None) -> Iterator[Result]:
    for done, result in enumerate(results, start=1):
        if progress is not None:
            progress(done, total)
        yield result


def _write_clip(images: Path, config: ShapesConfig, seed: int, index: int) -> tuple[list[str], list[dict]]:
    """Write one clip's frames; gives their names relative to `images`, and its annotations without ids."""
    clip = generate_clip(config, seed, index)
    (images / clip_name(index)).mkdir(parents=True, exist_ok=True)
    file_names = [f"{clip_name(index)}/{t:05d}.jpg" for t in range(len(clip.frames))]
    for name, frame in zip(file_names, clip.frames, strict=True):
        Image.fromarray(frame).save(images / name, quality=JPEG_QUALITY)
    return file_names, [_annotation(clip, k) for k in range(len(clip.objects))]


def _encode_clip(root: Path, config: ShapesConfig, seed: int, codec: str, bframes: int, index: int) -> Path:
    path = root / f"{clip_name(index)}{'.mp4' if codec == 'h264' else '.webm'}"
    unfinished = path.with_name(f"unfinished-{path.name}")
    write_video(unfinished, generate_clip(config, seed, index).frames, config.fps, codec, bframes=bframes)
    os.replace(unfinished, path)
    return path


def _annotation(clip: Clip, k: int) -> dict:
    """The track of objects[k] as the format has it: a list entry for each frame, None where it is not seen."""
    segmentations, bboxes, areas = [], [], []
    for mask in clip.masks(k):
        box = _tight_box(mask)
        if box is None:
            rle = xywh = area = None
        else:
            x1, y1, x2, y2 = box
            xywh, area = [x1, y1, x2 - x1, y2 - y1], int(mask.sum())
            # not through operators/masks.py, which would load torch into every worker
            rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
            rle = {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode("ascii")}
        segmentations.append(rle)
        bboxes.append(xywh)
        areas.append(area)
    num_frames, height, width = clip.ids.shape
    return {
        "category_id": clip.objects[k].category_id, "iscrowd": 0, "width": width, "height": height,
        "length": num_frames, "segmentations": segmentations, "bboxes": bboxes, "areas": areas,
    }  # fmt: skip


def _tight_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if not len(rows):
        return None
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _video_record(number: int, file_names: list[str], config: ShapesConfig) -> dict:
    return {
        "id": number, "width": config.width, "height": config.height, "length": len(file_names),
        "file_names": file_names, "license": 0, "coco_url": "", "flickr_url": "", "date_captured": "",
    }  # fmt: skip


def _info(config: ShapesConfig, seed: int, num_clips: int, first: int) -> dict:
    """What the dataset was made of: enough to make it again. No date, which would change the bytes."""
    preset = next((name for name, known in PRESETS.items() if known == config), "custom")
    return {
        "description": "Maskstream shapes", "version": "1", "preset": preset, "config": asdict(config),
        "seed": seed, "first": first, "num_clips": num_clips,
    }  # fmt: skip


def _claim(root: Path, info: dict) -> Path:
    """Mark `root` as the place of this dataset and give the path of the mark, which the JSON is to replace."""
    finished, unfinished = root / "instances.json", root / "instances.json.unfinished"
    if root.exists() and not root.is_dir():
        raise DatasetError(f"{root} is a file; the dataset needs a folder. Choose another place.")
    if root.is_dir() and any(root.iterdir()):
        mark = next((path for path in (finished, unfinished) if path.is_file()), None)
        if mark is None or _info_in(mark) != info:
            raise DatasetError(
                f"{root} is not empty and holds something else than the shapes dataset that was asked for "
                f"(preset {info['preset']}, seed {info['seed']}, {info['num_clips']} clips from {info['first']}). "
                "Choose another folder, or empty this one."
            )
    root.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps({"info": info}))
    return unfinished


def _info_in(mark: Path) -> dict | None:
    """The `info` of a dataset's JSON; None where it is no such file."""
    try:
        content = json.loads(mark.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError):
        return None
    return content.get("info") if isinstance(content, dict) else None


def _check_counts(num_clips: int, first: int, workers: int) -> None:
    if num_clips < 1 or first < 0 or workers < 1:
        raise ConfigError(
            f"shapes: {num_clips} clips from number {first} with {workers} workers; expected at least one clip, "
            "a first number from 0 up and at least one worker."
        )
