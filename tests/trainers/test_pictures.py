"""Truth beside prediction: which frames, which objects, and what is left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from operators.errors import DatasetError
from operators.youtube_vis_data import Dataset, read_dataset
from trainers.pictures import MAX_SIDE, found_tracks, side_by_side, true_tracks

HEIGHT, WIDTH, FRAMES = 100, 160, 3


def rle(x: int, y: int, w: int, h: int) -> dict:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8, order="F")
    mask[y : y + h, x : x + w] = 1
    packed = coco.encode(mask)
    return {"size": packed["size"], "counts": packed["counts"].decode()}


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Five videos of grey frames; in each an object of category 7 at (20, 10), 50 x 40, not seen in its last frame."""
    videos, annotations = [], []
    for number in range(1, 6):
        names = [f"v{number}/{t}.png" for t in range(FRAMES)]
        for name in names:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            Image.new("RGB", (WIDTH, HEIGHT), (100, 100, 100)).save(tmp_path / name)
        videos.append({"id": number, "height": HEIGHT, "width": WIDTH, "length": FRAMES, "file_names": names})
        annotations.append({
            "id": number, "video_id": number, "category_id": 7, "iscrowd": 0, "height": HEIGHT, "width": WIDTH,
            "segmentations": [rle(20, 10, 50, 40)] * 2 + [None], "bboxes": [[20, 10, 50, 40]] * 2 + [None],
            "areas": [2000, 2000, None]})  # fmt: skip
    categories = [{"id": 3, "name": "a"}, {"id": 7, "name": "b"}]
    text = {"videos": videos, "annotations": annotations, "categories": categories}
    (tmp_path / "instances.json").write_text(json.dumps(text))
    return read_dataset(tmp_path / "instances.json", image_root=tmp_path)


def result(video_id: int, category_id: int = 7, score: float = 0.9, **frames: dict) -> dict:
    return {"video_id": video_id, "category_id": category_id, "score": score,
            "segmentations": [frames.get(f"at{t}") for t in range(FRAMES)]}


@pytest.mark.parametrize("number, expected", [
    pytest.param(0, [], id="none asked for"),
    pytest.param(1, ["v1"], id="one"),
    pytest.param(3, ["v1", "v3", "v5"], id="evenly spaced, both ends"),
    pytest.param(9, ["v1", "v2", "v3", "v4", "v5"], id="more than there are"),
])  # fmt: skip
def test_videos_are_chosen_evenly(dataset, number, expected):
    assert [name.split(",")[0] for name, _ in side_by_side(dataset, [], number)] == expected


def test_true_objects_have_class_and_box(dataset):
    tracks = true_tracks(dataset, dataset.videos[0], 1)
    assert tracks.labels.tolist() == [1]                        # category 7 is the second
    assert tracks.boxes.tolist() == [[20, 10, 70, 50]]
    assert len(true_tracks(dataset, dataset.videos[0], 2)) == 0


def test_found_objects_are_those_with_a_mask_in_the_frame(dataset):
    results = [result(1, at0=rle(0, 0, 2, 2)), result(1, at1=rle(5, 5, 3, 2)), result(1, at1=rle(0, 0, 0, 0)),
               result(1, category_id=99, at1=rle(1, 1, 2, 2))]
    tracks = found_tracks(dataset, dataset.videos[0], 1, results)
    assert tracks.track_ids.tolist() == [1]                     # one is elsewhere, one empty, one of no known class
    assert tracks.boxes.tolist() == [[5, 5, 8, 7]]


def test_left_half_is_truth_right_half_prediction(dataset):
    results = [result(1, at1=rle(100, 60, 40, 30)), result(1, score=0.1, at1=rle(10, 70, 20, 20))]
    (_, picture), = side_by_side(dataset, results, 1)
    assert picture.shape == (HEIGHT, 2 * WIDTH + 4, 3)
    coloured = picture.max(2) != picture.min(2)                 # grey frames, white gap
    left, right = coloured[:, :WIDTH], coloured[:, WIDTH + 4 :]
    assert left[30, 45] and not left[75, 120]
    assert right[75, 120] and not right[30, 45]
    assert not right[80, 20]                                    # too weak to be shown


def test_large_frames_are_made_smaller(tmp_path):
    Image.new("RGB", (1920, 1080)).save(tmp_path / "0.png")
    video = {"id": 1, "height": 1080, "width": 1920, "length": 1, "file_names": ["0.png"]}
    text = {"videos": [video], "annotations": [], "categories": [{"id": 1, "name": "a"}]}
    (tmp_path / "x.json").write_text(json.dumps(text))
    (_, picture), = side_by_side(read_dataset(tmp_path / "x.json", image_root=tmp_path), [], 1)
    assert max(picture.shape) <= 2 * MAX_SIDE


def test_missing_image_is_named(dataset):
    path = dataset.image_root / "v1" / "1.png"
    path.unlink()
    with pytest.raises(DatasetError, match="1.png"):
        list(side_by_side(dataset, [], 1))
