"""Reading a YouTube-VIS file: what is taken, in which order, and that each fault is named by its place."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from operators.errors import DatasetError
from operators.youtube_vis_data import read_dataset

VIDEO = {"id": 3, "width": 4, "height": 2, "length": 3, "file_names": ["cat/0.jpg", "cat/1.jpg", "cat/2.jpg"]}
CAT = {"id": 8, "name": "cat", "supercategory": "animal"}
TRACK = {
    "id": 5, "video_id": 3, "category_id": 8, "iscrowd": 0, "width": 4, "height": 2, "length": 3,
    "segmentations": [{"size": [2, 4], "counts": [2, 4, 2]}, None, [[0, 0, 4, 0, 4, 2, 0, 2]]],
    "bboxes": [[1, 0, 2, 2], None, [0.0, 0.0, 4.0, 2.0]],
    "areas": [4, None, 8.0],
}  # fmt: skip


def file_of(**changes) -> dict:
    raw = {"info": {}, "licenses": [], "videos": [VIDEO], "categories": [CAT], "annotations": [TRACK]} | changes
    return {key: value for key, value in copy.deepcopy(raw).items() if value != "absent"}


@pytest.fixture
def write(tmp_path):
    def to_file(raw: dict):
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(raw))
        return path

    return to_file


@pytest.mark.parametrize("annotations, annotated", [("absent", False), (None, False), ([], True)])
def test_no_annotations(write, annotations, annotated):
    dataset = read_dataset(write(file_of(annotations=annotations)))
    assert (dataset.annotations, dataset.annotated, dataset.annotations_of) == ((), annotated, {3: ()})


def test_fields(write):
    dataset = read_dataset(write(file_of()))
    video, (track,) = dataset.videos[0], dataset.annotations
    assert (video.id, video.width, video.height, video.length, video.name) == (3, 4, 2, 3, "cat")
    assert (track.id, track.video_id, track.category_id, track.iscrowd) == (5, 3, 8, False)
    assert [box is not None for box in track.bboxes] == [True, False, True]
    assert track.areas == (4, None, 8.0)
    assert dataset.annotations_of == {3: (track,)} and dataset.labels == {8: 0} and dataset.video_of[3] is video
    masks = dataset.masks(track)
    assert [None if mask is None else coco_mask.decode(mask).tolist() for mask in masks] == [
        [[0, 1, 1, 0], [0, 1, 1, 0]], None, [[1, 1, 1, 1], [1, 1, 1, 1]],
    ]  # fmt: skip
    assert dataset.mask(track, 0) == masks[0] and dataset.mask(track, 1) is None
    assert "counts" not in repr(dataset) + repr(track)


def test_videos_and_categories_by_id_annotations_as_in_the_file(write):
    videos = [{**VIDEO, "id": video_id} for video_id in (9, 3)]
    categories = [{"id": 12, "name": "star"}, {"id": 8, "name": "cat"}]
    annotations = [{**TRACK, "id": 7}, {**TRACK, "id": 2, "category_id": 12}]
    dataset = read_dataset(write(file_of(videos=videos, categories=categories, annotations=annotations)))
    assert [video.id for video in dataset.videos] == [3, 9]
    assert dataset.labels == {8: 0, 12: 1}
    assert [annotation.id for annotation in dataset.annotations_of[3]] == [7, 2]
    assert dataset.annotations_of[9] == ()


def test_for_evaluation_less_is_asked_for(write):
    bare = {key: value for key, value in TRACK.items() if key not in ("bboxes", "iscrowd")}
    video = {key: value for key, value in VIDEO.items() if key not in ("file_names", "length")}
    odd = {**bare, "id": 6, "segmentations": [None] * 9 + [{"size": [4, 2], "counts": [8]}], "areas": [8]}
    others = [{**bare, "id": 6, "category_id": 1}, {**bare, "id": 7, "category_id": 1}, {**bare, "id": 7}]
    path = write(file_of(videos=[video], categories=[{"id": 8}], annotations=[bare, odd, *others]))
    dataset = read_dataset(path, for_evaluation=True)
    assert [annotation.id for annotation in dataset.annotations] == [5, 6, 7]
    assert (dataset.num_left_out, dataset.num_repeated, dataset.superseded) == (2, 2, {6})
    assert dataset.annotations[0].bboxes == () and len(dataset.annotations[1].segmentations) == 10
    assert (dataset.videos[0].name, dataset.videos[0].length) == ("video 3", 0)
    assert dataset.categories[0].name == "category 8"
    with pytest.raises(DatasetError, match="file_names is missing"):
        read_dataset(path)


LABELS = ["no_occlusion", None, "severe_occlusion"]


@pytest.mark.parametrize("changes, expected", [
    pytest.param({}, None, id="no labels"),
    pytest.param({"occlusion": None}, None, id="null"),
    pytest.param({"occlusion": []}, (), id="of no frame"),
    pytest.param({"occlusion": LABELS}, tuple(LABELS), id="labels"),
])
def test_occlusion(write, changes, expected):
    path = write(with_track(**changes))
    assert read_dataset(path, for_evaluation=True).annotations[0].occlusion == expected
    assert read_dataset(path).annotations[0].occlusion is None


@pytest.mark.parametrize("labels, message", [
    ("no_occlusion", "annotation 5: occlusion is text; expected a list"),
    (["none"], "frame 0: occlusion is 'none'; expected no_occlusion, slight"),
    ([None, ["no_occlusion"]], "frame 1: occlusion is"),
])
def test_faulty_occlusion(write, labels, message):
    with pytest.raises(DatasetError, match=message):
        read_dataset(write(with_track(occlusion=labels)), for_evaluation=True)


def test_image_root(write, tmp_path):
    path = write(file_of())
    with pytest.raises(DatasetError, match="nowhere: is no folder"):
        read_dataset(path, image_root=tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="video 3: cat/0.jpg is not in"):
        read_dataset(path, image_root=tmp_path)
    with pytest.raises(DatasetError, match="without its folder of images"):
        read_dataset(path).frame_path(read_dataset(path).videos[0], 0)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.jpg").touch()
    dataset = read_dataset(path, image_root=tmp_path)
    assert dataset.frame_path(dataset.videos[0], 2) == tmp_path / "cat" / "2.jpg"


def with_track(**changes) -> dict:
    return file_of(annotations=[{**TRACK, **changes}])


def with_video(**changes) -> dict:
    return file_of(videos=[{**VIDEO, **changes}])


OTHER_SIZE = {"size": [4, 2], "counts": [8]}

FAULTS = [
    pytest.param([], "expected an object", id="a list"),
    pytest.param(file_of(videos="absent"), "videos is missing", id="no videos"),
    pytest.param(file_of(categories=None), "categories is null", id="categories null"),
    pytest.param(file_of(videos=[7]), r"videos\[0\]: is a number", id="a video is a number"),
    pytest.param(with_video(id="3"), r"videos\[0\]: id is '3'", id="video id as text"),
    pytest.param(with_video(width=0), "width is 0", id="a video without width"),
    pytest.param(with_video(width=10**9, height=10**9), "more than", id="a video of 10^18 pixels"),
    pytest.param(with_video(length=4), "length is 4, but file_names names 3", id="length of other than the names"),
    pytest.param(with_video(file_names=[], length=0), "length is 0", id="a video without frames"),
    pytest.param(with_video(file_names=["a", None, "b"]), r"file_names\[1\] is None", id="a name is null"),
    pytest.param(file_of(videos=[VIDEO, VIDEO]), "video id 3 occurs more than once", id="video twice"),
    pytest.param(file_of(categories=[CAT, CAT]), "category id 8 occurs", id="category twice"),
    pytest.param(file_of(categories=[{"id": 8}]), "name is None", id="a category without name"),
    pytest.param(file_of(annotations=[TRACK, TRACK]), "annotation id 5 occurs", id="annotation twice"),
    pytest.param(file_of(annotations={}), "annotations is an object", id="annotations are an object"),
    pytest.param(with_track(video_id=4), "annotation 5: no video has this id", id="unknown video"),
    pytest.param(with_track(category_id=1), "annotation 5 has category_id 1", id="unknown category"),
    pytest.param(with_track(iscrowd=2), "iscrowd is 2", id="crowd of 2"),
    pytest.param(with_track(areas=[1, 2]), "areas has 2 entries, its video has 3", id="too few areas"),
    pytest.param(with_track(segmentations=None), "segmentations is null", id="no masks"),
    pytest.param(with_track(segmentations=[None, 5, None]), "frame 1: 5 is neither", id="a number for a mask"),
    pytest.param(with_track(segmentations=[None, None, OTHER_SIZE]), "frame 2: .*its video's is", id="other size"),
    pytest.param(with_track(segmentations=[{"size": [2, 4]}, None, None]), "frame 0: .*neither", id="no counts"),
    pytest.param(with_track(bboxes=[[1, 2, 3], None, None]), "frame 0: bboxes is", id="box of three numbers"),
    pytest.param(with_track(bboxes=[[1, 2, 3, 4], None, [1, 2, 3, "4"]]), "frame 2: bboxes is", id="text in a box"),
    pytest.param(with_track(bboxes=[None, [1, 2, -3, 4], None]), "frame 1: bboxes is", id="box of negative width"),
    pytest.param(with_track(areas=[1, -1, None]), "frame 1: areas is -1", id="negative area"),
    pytest.param(with_track(areas=[1, [1], None]), "frame 1: areas is", id="a list for an area"),
    pytest.param(with_track(areas=[1, 10**400, None]), "frame 1: areas is", id="area beyond every float"),
]


@pytest.mark.parametrize("raw, message", FAULTS)
def test_faults_are_named(write, raw, message):
    with pytest.raises(DatasetError, match=f"truth.json: .*{message}"):
        read_dataset(write(raw))


def test_infinite_numbers(write):
    path = write(with_track(areas=[1, 2, 3]))
    for number in ("1e999", "NaN", "-Infinity"):
        path.write_text(json.dumps(with_track(areas=[1, 2, 3])).replace("[1, 2, 3]", f"[1, 2, {number}]"))
        with pytest.raises(DatasetError, match="truth.json: .*(frame 2: areas is inf|holds (NaN|-Infinity))"):
            read_dataset(path)


def test_a_damaged_mask_is_named_when_it_is_used(write):
    dataset = read_dataset(write(with_track(segmentations=[None, {"size": [2, 4], "counts": "99"}, None])))
    with pytest.raises(DatasetError, match="truth.json: video 3, annotation 5, frame 1: counts '99'"):
        dataset.masks(dataset.annotations[0])


def test_real_annotations(media):
    folder = media / "annotated"
    dataset = read_dataset(folder / "instances.json", image_root=folder / "JPEGImages")
    assert (len(dataset.videos), len(dataset.annotations), len(dataset.categories)) == (8, 14, 42)
    for annotation in dataset.annotations:
        areas = [0 if mask is None else int(coco_mask.area(mask)) for mask in dataset.masks(annotation)]
        np.testing.assert_array_equal(areas, [area or 0 for area in annotation.areas])
