"""Writing a YouTube-VIS JSON: every field of the format, and names of images that hold where the file is."""

from __future__ import annotations

import json

import pytest

from operators.datasets.truth import open_youtube_vis
from operators.datasets.youtube_vis import image_prefix, write_youtube_vis
from operators.errors import ConfigError
from operators.youtube_vis_data import read_dataset
from tests.operators.datasets.small_truth import rectangle, rle, track, video, write, write_images

MASK = rectangle(1, 2, 4, 7)


def test_nothing(tmp_path):
    write_youtube_vis(open_youtube_vis(write(tmp_path / "a.json", [], [], [])), tmp_path / "b.json")
    dataset = read_dataset(tmp_path / "b.json")
    assert dataset.annotated and not dataset.videos and not dataset.categories


@pytest.mark.parametrize("occlusion", [False, True])
def test_every_field(tmp_path, occlusion):
    labels = ["slight_occlusion", None]
    tracks = [track(8, 3, [MASK, None], 2, occlusion=labels) | {"areas": [99.5, None], "bboxes": [[0, 0, 8, 6], None]}]
    truth = open_youtube_vis(write(tmp_path / "a.json", [video(3, "v", 2)], tracks))
    write_youtube_vis(truth, tmp_path / "b.json", occlusion=occlusion)
    raw = json.loads((tmp_path / "b.json").read_text())
    assert raw["videos"] == [{
        "id": 3, "width": 8, "height": 6, "length": 2, "file_names": ["v/00000.jpg", "v/00005.jpg"], "license": 0,
        "coco_url": "", "flickr_url": "", "date_captured": "",
    }]  # fmt: skip
    entry = {
        "id": 8, "video_id": 3, "category_id": 2, "iscrowd": 0, "width": 8, "height": 6, "length": 2,
        "segmentations": [rle(MASK), None], "bboxes": [[0, 0, 8, 6], None], "areas": [99.5, None],
    }  # fmt: skip
    assert raw["annotations"] == [entry | {"occlusion": labels} if occlusion else entry]
    assert [(c["id"], c["name"]) for c in raw["categories"]] == [(1, "cat"), (2, "dog")]
    assert ("occlusion labels" in " ".join(truth.notes.lines())) == (not occlusion)


@pytest.mark.parametrize("images, out, prefix", [
    ("set", "set/b.json", ""), ("set/JPEGImages", "set/b.json", ""), ("set/JPEGImages", "b.json", "set/JPEGImages/"),
    ("set", "elsewhere/b.json", ""), (None, "set/b.json", ""),
])  # fmt: skip
def test_image_prefix(tmp_path, images, out, prefix):
    path = write(tmp_path / "set" / "a.json", [video(1, "v", 1)], [])
    if images:
        write_images(tmp_path / images, [video(1, "v", 1)])
    truth = open_youtube_vis(path)
    assert image_prefix(truth, tmp_path / out) == prefix
    said = " ".join(truth.notes.lines())
    assert ("The images stay in" in said, "were not found" in said) == ("elsewhere" in out, images is None)


def test_images_are_not_mixed_with_others(tmp_path):
    path = write(tmp_path / "a.json", [video(1, "v", 1)], [])
    write_images(tmp_path / "JPEGImages", [video(1, "v", 1)])
    with pytest.raises(ConfigError, match="JPEGImages: is there already"):
        write_youtube_vis(open_youtube_vis(path), tmp_path / "b.json", "copy")
    assert not (tmp_path / "b.json").exists()
