"""Truth and prediction side by side: what an evaluation's numbers look like.

In:     a dataset with annotations and its images, the results of an evaluation on it
Out:    (H, 2 W + gap, 3) uint8 pictures, truth on the left, one frame of each of a few videos
State:  none; the same videos and frames are chosen every time, so that pictures of two evaluations can be compared
Limits: results below MIN_SCORE are left out
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image
from pycocotools import mask as coco

from operators.draw import contact_sheet, draw_tracks
from operators.errors import DatasetError
from operators.formats import Categories
from operators.images import decode_image
from operators.probe import read_image_file
from operators.records import FrameInfo, FrameTracks
from operators.youtube_vis_data import Dataset, Video

MIN_SCORE = 0.5
MAX_SIDE = 640
"""Pixels of the longer side of one half: enough to see masks, small enough for a log."""


def side_by_side(dataset: Dataset, results: Sequence[dict], number: int) -> Iterator[tuple[str, np.ndarray]]:
    """Name and picture of the middle frame of `number` videos, evenly spaced among those of the dataset; of fewer
    videos all, of none nothing. Raises DatasetError for an image that cannot be read."""
    chosen = np.linspace(0, len(dataset.videos) - 1, min(number, len(dataset.videos))).round().astype(int)
    categories = Categories(tuple(c.name for c in dataset.categories), tuple(c.id for c in dataset.categories))
    for video in (dataset.videos[i] for i in chosen.tolist()):
        frame = video.length // 2
        image = frame_image(dataset, video, frame)
        own = [result for result in results if result["video_id"] == video.id]
        halves = [
            draw_tracks(image, true_tracks(dataset, video, frame), categories, show_scores=False),
            draw_tracks(image, found_tracks(dataset, video, frame, own), categories, min_score=MIN_SCORE),
        ]
        yield f"{video.name}, frame {frame}", _small(contact_sheet(halves, columns=2))


def true_tracks(dataset: Dataset, video: Video, frame: int) -> FrameTracks:
    """The annotated objects of a frame; their `track_ids` count from 0 in the order of the file."""
    entries = []
    for number, annotation in enumerate(dataset.annotations_of[video.id]):
        mask = dataset.mask(annotation, frame)
        if mask is not None:
            entries.append((number, dataset.labels[annotation.category_id], 1.0, mask))
    return _tracks(video, frame, entries)


def found_tracks(dataset: Dataset, video: Video, frame: int, results: Sequence[Mapping]) -> FrameTracks:
    """The entries of a results file that have a mask in the frame; `track_ids` are their places in `results`."""
    entries = []
    for number, result in enumerate(results):
        mask = result["segmentations"][frame] if frame < len(result["segmentations"]) else None
        if mask and result["category_id"] in dataset.labels:
            entries.append((number, dataset.labels[result["category_id"]], result["score"], mask))
    return _tracks(video, frame, entries)


def _tracks(video: Video, frame: int, entries: list[tuple[int, int, float, dict]]) -> FrameTracks:
    """Of (track id, label, score, RLE); what has no pixel is left out."""
    entries = [entry for entry in entries if coco.area(entry[3]) > 0]
    boxes = np.array([coco.toBbox(mask) for *_, mask in entries], np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return FrameTracks(
        FrameInfo(video.name, frame, 0.0, video.height, video.width),
        track_ids=np.array([entry[0] for entry in entries], np.int64),
        labels=np.array([entry[1] for entry in entries], np.int64),
        scores=np.array([entry[2] for entry in entries], np.float32),
        boxes=boxes,
        masks=tuple(entry[3] for entry in entries),
    )


def frame_image(dataset: Dataset, video: Video, frame: int) -> np.ndarray:
    """(H, W, 3) uint8 RGB. Raises DatasetError where it is missing, damaged, or of another size than its video."""
    path = dataset.frame_path(video, frame)
    try:
        image = decode_image(read_image_file(path))
    except ValueError as error:
        raise DatasetError(f"{path}: {error}.") from error
    if image.shape[:2] != (video.height, video.width):
        raise DatasetError(f"{path}: {image.shape[1]}x{image.shape[0]} pixels, {dataset.path} says "
                           f"{video.width}x{video.height}.")
    return image


def _small(image: np.ndarray) -> np.ndarray:
    picture = Image.fromarray(image)
    picture.thumbnail((2 * MAX_SIDE, MAX_SIDE))
    return np.asarray(picture)
