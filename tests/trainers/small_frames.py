"""Datasets of few small frames, generated or made by hand, and pairs loaded from them: what tests of loaders share."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models.inputs import InputConfig
from models.targets import PairBatch
from operators.shapes import ShapesConfig, write_youtube_vis
from operators.youtube_vis_data import read_dataset
from trainers.data import PairLoader
from trainers.frames import FrameIndex
from trainers.pairs import PairDraw

CPU = torch.device("cpu")
CLIPS = ShapesConfig(
    width=125, height=75, num_frames=5, min_objects=4, max_objects=5, min_classes=3, num_twins=0, full_occlusions=0,
    re_entries=0,
)  # fmt: skip
"""Resized to 83 x 50: the source index of no pixel is a whole number, so nearest has no ties."""
INPUT = InputConfig(short_side=50, long_side=90)
SIZE = (50, 83)


def generated(root: Path) -> FrameIndex:
    """Two generated clips as a real dataset."""
    path = write_youtube_vis(root, CLIPS, seed=3, num_clips=2)
    return FrameIndex(read_dataset(path, image_root=root / "JPEGImages"))


def load(index: FrameIndex, *draws: PairDraw, config: InputConfig = INPUT, device: torch.device = CPU) -> PairBatch:
    """One batch of exactly these draws, as a worker gets it."""
    loader = PairLoader(itertools.cycle(draws), index, config, batch=len(draws), device=device)
    try:
        return next(loader)
    finally:
        loader.close()


def draw(index: FrameIndex, video: int, key: int, reference: int, flip: bool = False) -> PairDraw:
    """Places among the usable frames of a video."""
    return PairDraw((index.videos[video][key], index.videos[video][reference]), flip)


LANDSCAPE, PORTRAIT = (48, 64), (64, 48)
Box = tuple[float, float, float, float]


def hand_made(root: Path, *videos: tuple[tuple[int, int], dict[int, Sequence[Box | None]]]) -> FrameIndex:
    """(height, width) and, for each annotation id, its box x, y, w, h in each frame or None. A mask fills its box, the
    pixels whose centres lie in it; images are of one grey a frame."""
    content = {"videos": [], "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}], "annotations": []}
    for number, ((height, width), tracks) in enumerate(videos, start=1):
        length = max(len(track) for track in tracks.values())
        names = [f"{number}/{t}.jpg" for t in range(length)]
        (root / str(number)).mkdir(parents=True)
        for t, name in enumerate(names):
            Image.new("RGB", (width, height), (20 * t, 90, 200)).save(root / name, quality=95)
        content["videos"].append({
            "id": number, "width": width, "height": height, "length": length, "file_names": names})
        for id, boxes in tracks.items():
            content["annotations"].append({
                "id": id, "video_id": number, "category_id": 4 if id % 2 else 9, "iscrowd": 0,
                "segmentations": [None if box is None else runs(box, height, width) for box in boxes],
                "bboxes": [None if box is None else list(box) for box in boxes],
                "areas": [None if box is None else box[2] * box[3] for box in boxes]})
    (root / "instances.json").write_text(json.dumps(content))
    return FrameIndex(read_dataset(root / "instances.json", image_root=root))


def runs(box: Box, height: int, width: int) -> dict:
    """Uncompressed run lengths of a box, column by column."""
    x, y, w, h = box
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    inside = ((rows > y) & (rows < y + h))[:, None] & ((columns > x) & (columns < x + w))[None]
    flat = inside.T.reshape(-1).astype(int)
    changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
    return {"size": [height, width], "counts": np.diff([0, *changes, len(flat)]).tolist()}


HALF = InputConfig(short_side=24, long_side=32)
"""Both shapes shrink to a half."""
