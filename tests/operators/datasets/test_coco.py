"""COCO stills: polygons as COCO rasterises them, crowds, copies, and files that are none."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco

from operators.datasets.coco import open_coco
from operators.datasets.convert import ConvertOptions, convert
from operators.datasets.truth import open_youtube_vis
from operators.errors import ConfigError, DatasetError
from tests.operators.datasets.small_truth import rectangle

IMAGE = {"id": 7, "file_name": "train/a.jpg", "width": 8, "height": 6}
RING = [1.3, 0.6, 6.7, 1.2, 4.1, 5.4]
CROWD = {"size": [6, 8], "counts": [12, 6, 30]}
OBJECT = {"id": 5, "image_id": 7, "category_id": 3, "segmentation": [RING, [0, 4, 2, 4, 2, 6, 0, 6]], "iscrowd": 0,
          "area": 11.5, "bbox": [0.5, 0.6, 6.2, 5.4]}                                              # fmt: skip


def file_of(tmp_path, **changes):
    raw = {"images": [IMAGE], "annotations": [OBJECT], "categories": [{"id": 3, "name": "kite"}]} | changes
    path = tmp_path / "coco.json"
    path.write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return path


@pytest.mark.parametrize("annotations", [[], None, "absent"])
def test_no_annotations(tmp_path, annotations):
    (still,) = open_coco(file_of(tmp_path, annotations=annotations))
    assert (still.id, still.name, still.length, still.tracks) == (7, "a", 1, ())
    assert list(open_coco(file_of(tmp_path, images=[], annotations=[]))) == []


@pytest.mark.parametrize("frames", [1, 3])
def test_polygons_and_crowds(tmp_path, frames):
    crowd = {"id": 2, "image_id": 7, "category_id": 3, "segmentation": CROWD, "iscrowd": 1}
    (still,) = open_coco(file_of(tmp_path, annotations=[OBJECT, crowd]), frames=frames)
    assert still.file_names == ("train/a.jpg",) * frames
    polygon, region = still.tracks
    expected = coco.decode(coco.merge(coco.frPyObjects(OBJECT["segmentation"], 6, 8)))
    assert len(polygon.masks) == frames and all((coco.decode(mask) == expected).all() for mask in polygon.masks)
    assert polygon.bboxes == (OBJECT["bbox"],) * frames and polygon.areas == (int(expected.sum()),) * frames
    assert (region.id, region.iscrowd, region.bboxes[0]) == (2, True, [2, 0, 1, 6])
    assert (coco.decode(region.masks[0]) == rectangle(0, 2, 6, 3)).all()


def test_in_youtube_vis(tmp_path):
    images = [IMAGE | {"id": 9, "file_name": "train/b.jpg"}, IMAGE]
    boxed = {"id": 6, "image_id": 9, "category_id": 3, "segmentation": [], "bbox": [1, 1, 2, 2]}
    path = file_of(tmp_path, images=images, annotations=[boxed, OBJECT])
    done = convert(path, tmp_path / "out.json", "coco", "youtube-vis", ConvertOptions(frames=2))
    assert (done.videos, done.frames, done.tracks, done.masks) == (2, 4, 2, 2)
    assert "annotations without a mask (boxes are kept): 1" in done.notes[-1]
    seven, nine = open_youtube_vis(tmp_path / "out.json")
    assert (seven.id, nine.id, seven.tracks[0].id) == (7, 9, 5)
    assert (nine.tracks[0].masks, nine.tracks[0].bboxes) == ((None, None), ([1, 1, 2, 2],) * 2)


def test_into_davis_a_still_has_frames_of_its_own(tmp_path):
    convert(file_of(tmp_path), tmp_path / "out", "coco", "davis", ConvertOptions(frames=2))
    maps = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.png"))
    assert maps == [f"Annotations_unsupervised/480p/a/0000{n}.png" for n in range(2)]


FAULTS = [
    pytest.param({"images": "absent"}, "images is None", id="no images"),
    pytest.param({"images": "absent", "videos": []}, "images is None.*say --from youtube-vis", id="a YouTube-VIS file"),
    pytest.param({"images": [5]}, r"images\[0\]: id is 5", id="an image is a number"),
    pytest.param({"images": [IMAGE, IMAGE]}, "image id 7 occurs more than once", id="image twice"),
    pytest.param({"images": [IMAGE | {"width": 10**9}]}, "is 1000000000 x 6", id="10^10 pixels"),
    pytest.param({"images": [IMAGE | {"height": 0}]}, "is 8 x 0", id="no height"),
    pytest.param({"images": [IMAGE | {"file_name": None}]}, "file_name is None", id="no name"),
    pytest.param({"categories": [{"id": 3}]}, "name is None", id="no name of a class"),
    pytest.param({"annotations": {}}, "annotations is {}", id="annotations are an object"),
    pytest.param({"annotations": [OBJECT, OBJECT]}, "annotation id 5 occurs", id="annotation twice"),
    pytest.param({"annotations": [OBJECT | {"id": "5"}]}, "id is '5'", id="id as text"),
    pytest.param({"annotations": [OBJECT | {"image_id": 8}]}, "image_id is 8, which no image has", id="no such image"),
    pytest.param({"annotations": [OBJECT | {"category_id": 8}]}, "category_id is 8, which no", id="no such class"),
    pytest.param({"annotations": [OBJECT | {"iscrowd": 2}]}, "iscrowd is 2", id="crowd of 2"),
    pytest.param({"annotations": [OBJECT | {"bbox": [1, 2, 3]}]}, r"bbox is \[1, 2, 3\]", id="box of three"),
    pytest.param({"annotations": [OBJECT | {"bbox": [1, 2, -3, 4]}]}, "bbox is", id="box of negative width"),
    pytest.param({"annotations": [OBJECT | {"bbox": [1, 2, 10**400, 4]}]}, "bbox is", id="box beyond every float"),
    pytest.param({"annotations": [OBJECT | {"segmentation": [[1, 2, "x", 4, 5, 6]]}]}, "a ring is", id="text"),
    pytest.param({"annotations": [OBJECT | {"segmentation": {"size": [8, 6], "counts": "0"}}]}, "size is", id="turned"),
]


@pytest.mark.parametrize("changes, message", FAULTS)
def test_faults_are_named(tmp_path, changes, message):
    with pytest.raises(DatasetError, match=f"coco.json: .*{message}"):
        list(open_coco(file_of(tmp_path, **changes)))


@pytest.mark.parametrize("frames", [0, -1, 1001])
def test_numbers_of_frames(tmp_path, frames):
    with pytest.raises(ConfigError, match=f"--frames {frames}: expected 1 to 1000"):
        open_coco(file_of(tmp_path), frames=frames)


def test_not_a_file_of_objects(tmp_path):
    path = tmp_path / "a.json"
    for text, message in (("[1]", "holds"), ("{", "is not valid JSON"), ('{"images": NaN}', "NaN")):
        path.write_text(text)
        with pytest.raises(DatasetError, match=message):
            open_coco(path)


def test_many_polygons_against_pycocotools(tmp_path):
    rng = np.random.default_rng(5)
    rings = [rng.uniform(-2, 10, size=2 * rng.integers(3, 9)).round(2).tolist() for _ in range(60)]
    objects = [OBJECT | {"id": k, "segmentation": [ring]} for k, ring in enumerate(rings)]
    (still,) = open_coco(file_of(tmp_path, annotations=objects))
    for ring, found in zip(rings, still.tracks, strict=True):
        assert (coco.decode(found.masks[0]) == coco.decode(coco.frPyObjects([ring], 6, 8))[..., 0]).all()
