"""`maskstream dataset show`: ground truth drawn over its frames, as a video or a contact sheet.

In:     a Truth of any format, and which of its videos
Out:    .mp4, .mkv or .webm of all their frames; or a .png with ROWS x COLUMNS frames, evenly spaced in time
State:  none; colours follow from the ids of tracks (draw.py), so they stay with them
Limits: a video holds one frame in memory; a sheet MAX_CELLS frames, each drawn at the size it has there

A frame whose image is missing, damaged or not looked for is grey and says its name; masks are drawn over it all the
same. An image of another size than its video is stretched to it, and counted.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco

from operators.datasets.truth import Progress, TrackTruth, Truth, VideoTruth
from operators.draw import contact_sheet, draw_tracks, letterbox, text_size
from operators.errors import ConfigError, DatasetError, did_you_mean
from operators.formats import Categories
from operators.images import decode_image
from operators.probe import read_image_file
from operators.records import FrameInfo, FrameTracks
from operators.replacing import replacing
from operators.video_writer import CONTAINERS, VideoWriter
from operators.youtube_vis_rle import Rle, counts_text

MAX_CELLS = 400
SHEET_WIDTH = 2560
CELL_WIDTHS = (160, 640)
"""Of a cell of a sheet: as wide as SHEET_WIDTH allows, within these, never higher than the second, nor larger than its
frame."""
GREY = 96


@dataclass
class Shown:
    """What was drawn, and which frames have no image of their own."""

    path: Path
    videos: int = 0
    frames: int = 0
    missing: int = 0
    first_missing: str = ""
    resized: int = 0
    """Images of another size than their video."""


def choose_videos(truth: Truth, wanted: Sequence[str], default: int) -> list[int]:
    """Ids of the videos that are called so or have this id, in the order asked for; the first `default` without any.

    A name counts before an id. Raises DatasetError for one that there is not, and where there are no videos.
    """
    if not truth.names:
        raise DatasetError(f"{truth.path}: has no videos to show.")
    by_name = {name: video_id for video_id, name in truth.names.items()}
    found = []
    for word in wanted:
        number = int(word) if re.fullmatch(r"-?[0-9]{1,18}", word) else None
        if word not in by_name and number not in truth.names:
            raise DatasetError(f"{truth.path}: no video is called or numbered '{word}'.{did_you_mean(word, by_name)}")
        found.append(by_name.get(word, number))
    return list(dict.fromkeys(found)) or list(truth.names)[:default]


def parse_sheet(text: str) -> tuple[int, int]:
    """'3x4' -> 3 rows, 4 columns. Raises ConfigError for anything else, and for more than MAX_CELLS cells."""
    match = re.fullmatch(r"([1-9][0-9]{0,2})[xX]([1-9][0-9]{0,2})", text)
    if not match or int(match[1]) * int(match[2]) > MAX_CELLS:
        raise ConfigError(f"--sheet {text}: expected ROWSxCOLUMNS, as in 3x4, of at most {MAX_CELLS} cells.")
    return int(match[1]), int(match[2])


def show_video(
    truth: Truth, video_ids: Sequence[int], out: Path | str, fps: float = 6.0, progress: Progress | None = None
) -> Shown:
    """Draw every frame of these videos, one after the other, in the size of the first; `progress` counts frames.

    Raises ConfigError for an unknown suffix or rate, DatasetError for damaged masks; then `out` is as it was.
    """
    out = Path(out)
    codec = next((name for name, suffixes in CONTAINERS.items() if out.suffix.lower() in suffixes), None)
    if codec is None:
        raise ConfigError(f"{out}: cannot be written as '{out.suffix}'; expected .mp4, .mkv, .webm, or .png for a "
                          f"sheet.")  # fmt: skip
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error}).") from error
    shown, writer = Shown(out), None
    part = out.with_name(f".{out.stem}.part{out.suffix}")      # the suffix says which container it is
    try:
        for video in _in_order(truth, video_ids):
            writer = writer or VideoWriter(part, video.width, video.height, fps, codec)
            for frame in range(video.length):
                image = draw_frame(truth, video, frame, shown)
                writer.write(letterbox(image, writer.height, writer.width))
                if progress:
                    progress(frame + 1, video.length)
            shown.videos += 1
        writer.close()
        os.replace(part, out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error}).") from error
    finally:
        if writer is not None:
            writer.close()
        part.unlink(missing_ok=True)
    return shown


def show_sheet(
    truth: Truth, video_ids: Sequence[int], out: Path | str, rows: int, columns: int, progress: Progress | None = None
) -> Shown:
    """Draw a sheet of these videos: as many frames of each as there is room for, in order; as many videos as rows have
    a row each. Videos beyond the number of cells are left out.

    Raises ConfigError where `out` cannot be written, DatasetError for damaged masks.
    """
    out = Path(out)
    if out.suffix.lower() != ".png":
        raise ConfigError(f"{out}: a sheet is a .png, not '{out.suffix}'.")
    video_ids = list(video_ids)[: rows * columns]
    share, more = divmod(rows * columns, len(video_ids))
    shown, cells = Shown(out), []
    low, high = CELL_WIDTHS
    for number, video in enumerate(_in_order(truth, video_ids)):
        room = share + (number < more)
        scale = min(1, np.clip(SHEET_WIDTH // columns, low, high) / video.width, high / video.height)
        height, width = max(1, round(video.height * scale)), max(1, round(video.width * scale))
        for frame in np.unique(np.linspace(0, video.length - 1, min(room, video.length)).round().astype(int)).tolist():
            image = draw_frame(truth, video, frame, shown, (height, width))
            cells.append(_captioned(image, f"{video.name}  {frame}"))
            if progress:
                progress(len(cells), rows * columns)
        blank = np.full_like(cells[-1], 255)
        cells += [blank] * (room - min(room, video.length))
        shown.videos += 1
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as part:
            Image.fromarray(contact_sheet(cells, columns)).save(part, format="PNG")
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror or error}).") from error
    return shown


def draw_frame(
    truth: Truth, video: VideoTruth, frame: int, shown: Shown, size: tuple[int, int] | None = None
) -> np.ndarray:
    """A frame with masks, boxes, classes and ids, the smaller of two masks on top: (h, w, 3) uint8 of `size`, else that
    of the video. Counted in `shown`."""
    height, width = size or (video.height, video.width)
    image = _image(truth, video, frame, (height, width), shown)
    shown.frames += 1
    return draw_tracks(image, frame_tracks(truth, video, frame, height, width), _categories(truth),
                       show_scores=False)


def frame_tracks(truth: Truth, video: VideoTruth, frame: int, height: int, width: int) -> FrameTracks:
    """The tracks that have a mask or a box in a frame, brought to height x width, the smallest mask first."""
    present = [t for t in video.tracks if t.masks[frame] is not None or t.bboxes[frame] is not None]
    areas = [0 if t.masks[frame] is None else int(coco.area(t.masks[frame])) for t in present]
    present = [present[i] for i in np.argsort(np.array(areas), kind="stable").tolist()]
    scale = np.array([width / video.width, height / video.height] * 2)
    labels = {category.id: label for label, category in enumerate(truth.categories)}
    known = [labels[track.category_id] + len(labels) * track.iscrowd for track in present]
    return FrameTracks(
        FrameInfo(video.name, frame, 0.0, height, width),
        track_ids=np.array([track.id for track in present], np.int64),
        labels=np.array(known, np.int64),
        scores=np.ones(len(present), np.float32),
        boxes=(np.array([_box(t, frame) for t in present], np.float64).reshape(-1, 4) * scale).astype(np.float32),
        masks=tuple(_resized(track.masks[frame], height, width) for track in present),
    )


def _resized(mask: Rle | None, height: int, width: int) -> Rle:
    """To height x width, by the nearest pixel; of None, no pixels."""
    if mask is not None and mask["size"] == [height, width]:
        return mask
    pixels = np.zeros((height, width), np.uint8, order="F")
    if mask is not None:
        y, x = ((np.arange(new) + 0.5) * old / new for new, old in zip((height, width), mask["size"], strict=True))
        pixels[:] = coco.decode(mask)[np.ix_(y.astype(int), x.astype(int))]
    return {"size": [height, width], "counts": counts_text(coco.encode(pixels)["counts"])}


def _categories(truth: Truth) -> Categories:
    """The classes, and once more for crowds."""
    names = [category.name for category in truth.categories]
    return Categories.numbered([*names, *(f"crowd: {name}" for name in names)])


def _box(track: TrackTruth, frame: int) -> list[float]:
    """xyxy, as annotated, else around the mask."""
    box = track.bboxes[frame]
    x, y, w, h = box if box is not None else coco.toBbox(track.masks[frame]).tolist()
    return [x, y, x + w, y + h]


def _in_order(truth: Truth, video_ids: Sequence[int]) -> Iterator[VideoTruth]:
    """In the order asked for, each read on its own. A single pass for those that are in the dataset's order."""
    if list(video_ids) == [video_id for video_id in truth.names if video_id in set(video_ids)]:
        yield from truth.only(set(video_ids))
        return
    for video_id in video_ids:
        yield from truth.only({video_id})


def _image(truth: Truth, video: VideoTruth, frame: int, size: tuple[int, int], shown: Shown) -> np.ndarray:
    path = truth.image(video, frame)
    try:
        if path is None:
            raise ValueError("images were not found")
        image = decode_image(read_image_file(path))
    except ValueError as error:
        shown.missing += 1
        name = video.file_names[frame]
        shown.first_missing = shown.first_missing or f"video {video.id}, frame {frame}: {name} {error}"
        return _grey(size, name)
    shown.resized += image.shape[:2] != (video.height, video.width)
    if image.shape[:2] == size:
        return image
    return np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def _grey(size: tuple[int, int], name: str) -> np.ndarray:
    picture = Image.new("RGB", size[::-1], (GREY,) * 3)
    font = ImageFont.load_default(size=text_size(*size))
    text = name if len(name) <= 48 else "…" + name[-47:]
    place = (size[1] / 2, size[0] - 3)              # at the bottom, where objects cover it least
    ImageDraw.Draw(picture).text(place, f"no image: {text}", fill=(220,) * 3, font=font, anchor="md")
    return np.array(picture)


def _captioned(image: np.ndarray, text: str) -> np.ndarray:
    """With a line of text under it, outside of the picture."""
    height, width = image.shape[:2]
    size = text_size(height, width)
    picture = Image.new("RGB", (width, height + size + 6), (255, 255, 255))
    picture.paste(Image.fromarray(image))
    font = ImageFont.load_default(size=size)
    ImageDraw.Draw(picture).text((2, height + 1), text, fill=(0, 0, 0), font=font)
    return np.asarray(picture)
