"""Opening datasets: occlusion labels, images, names of videos; and the notes that are kept on the way."""

from __future__ import annotations

import json

import numpy as np
import pytest

from operators.datasets.truth import Notes, TrackTruth, find_images, is_inside, open_youtube_vis, unique_names
from operators.errors import DatasetError
from tests.operators.datasets.small_truth import rectangle, rle, track, video, write, write_images

SQUARE = rectangle(0, 0, 2, 2)


def test_notes():
    notes = Notes()
    assert notes.lines() == []
    notes.count("masks lost", "nowhere", 0)
    notes.say("All is well.")
    notes.count("masks lost", "video 1", 1200)
    notes.count("masks lost", "video 2", 34)
    notes.say("All is well.")
    assert notes.lines() == ["All is well.", "masks lost: 1,234 (the first: video 1)."]
    assert (notes.number("masks lost"), notes.number("boxes lost")) == (1234, 0)


@pytest.mark.parametrize("masks, boxes, areas", [
    pytest.param([], (), (), id="no frame"),
    pytest.param([None], (None,), (None,), id="no mask"),
    pytest.param([np.zeros((6, 8), bool), rectangle(1, 2, 4, 7)], (None, [2, 1, 5, 3]), (None, 15), id="no pixel"),
])  # fmt: skip
def test_track(masks, boxes, areas):
    found = TrackTruth.of(1, 1, False, [None if mask is None else rle(mask) for mask in masks])
    assert (found.bboxes, found.areas) == (boxes, areas)


def test_a_track_longer_than_pycocotools_counts():
    found = TrackTruth.of(1, 1, False, [rle(SQUARE)] * 300)
    assert found.areas == (4,) * 300 and len(found.bboxes) == 300


@pytest.mark.parametrize("names, unique", [
    pytest.param([], [], id="none"),
    pytest.param(["a", "b"], ["a", "b"], id="all differ"),
    pytest.param(["a", "A", "a"], ["a", "A-2", "a-3"], id="capitals do not count"),
    pytest.param(["a-2", "a", "a"], ["a-2", "a", "a-3"], id="a number that is taken"),
    pytest.param(["../x", "..", ""], ["_x", "source", "source-2"], id="unsafe"),
])  # fmt: skip
def test_unique_names(names, unique):
    assert unique_names(names) == unique


@pytest.mark.parametrize("name, inside", [
    ("", False), ("a/0.jpg", True), ("0.jpg", True), ("/etc/passwd", False), ("a/../../b", False), ("c:/x", False),
    ("a\\b", False), ("a\0b", False), ("a/b:c.jpg", True),
])  # fmt: skip
def test_is_inside(name, inside):
    assert is_inside(name) is inside


def test_no_videos_and_no_annotations(tmp_path):
    assert list(open_youtube_vis(write(tmp_path / "a.json", [], []))) == []
    path = tmp_path / "b.json"
    path.write_text(json.dumps({"videos": [video(1, "a", 2)], "categories": [], "annotations": None}))
    truth = open_youtube_vis(path)
    assert [v.tracks for v in truth] == [()] and "has no annotations" in truth.notes.lines()[0]


def test_videos_one_by_one(tmp_path):
    videos = [video(7, "same", 2), video(3, "same", 1)]
    truth = open_youtube_vis(write(tmp_path / "a.json", videos, [track(5, 7, [SQUARE, None], 2)]))
    assert truth.names == {3: "same", 7: "same-2"} and truth.num_videos == 2 and truth.image_root is None
    assert [(v.id, v.length, [t.id for t in v.tracks]) for v in truth] == [(3, 1, []), (7, 2, [5])]
    assert [v.id for v in truth.only({7})] == [7] and list(truth.only(set())) == []
    calls = []
    list(truth.each(lambda done, total: calls.append((done, total))))
    assert calls == [(1, 2), (2, 2)]


@pytest.mark.parametrize("labels, kept", [
    pytest.param(None, None, id="null"),
    pytest.param([None, "slight_occlusion"], (None, "slight_occlusion"), id="one frame"),
])  # fmt: skip
def test_occlusion(tmp_path, labels, kept):
    tracks = [track(5, 1, [None, SQUARE], occlusion=labels), track(6, 1, [None, SQUARE])]
    (found,) = open_youtube_vis(write(tmp_path / "a.json", [video(1, "a", 2)], tracks))
    assert [t.occlusion for t in found.tracks] == [kept, None]


@pytest.mark.parametrize("labels, message", [
    pytest.param(["no_occlusion"], "entry for each of the 2 frames", id="too few"),
    pytest.param("no_occlusion", "expected a list", id="text"),
    pytest.param([None, "some"], "frame 1: occlusion is 'some'", id="another word"),
    pytest.param([None, []], "frame 1: occlusion is", id="a list in the list"),
])  # fmt: skip
def test_occlusion_that_is_none(tmp_path, labels, message):
    path = write(tmp_path / "a.json", [video(1, "a", 2)], [track(5, 1, [None, SQUARE], occlusion=labels)])
    with pytest.raises(DatasetError, match=f"annotation 5.*{message}"):
        open_youtube_vis(path)


def test_images(tmp_path):
    videos = [video(1, "a", 1)]
    path = write(tmp_path / "set" / "a.json", videos, [])
    write_images(tmp_path / "set" / "JPEGImages", videos)
    truth = open_youtube_vis(path)
    assert truth.image(next(iter(truth)), 0) == tmp_path / "set" / "JPEGImages" / "a" / "00000.jpg"
    assert open_youtube_vis(path, tmp_path).image_root == tmp_path
    assert find_images(path, ["/etc/passwd", "../set/a.json"], None) is None
    with pytest.raises(DatasetError, match="nowhere: is no folder"):
        open_youtube_vis(path, tmp_path / "nowhere")


def test_a_name_that_leaves_the_folder(tmp_path):
    bad = video(1, "a", 1) | {"file_names": ["../../secret.jpg"]}
    truth = open_youtube_vis(write(tmp_path / "a.json", [bad], []))
    with pytest.raises(DatasetError, match="video 1, frame 0 names the image .* leaves the folder"):
        truth.image(next(iter(truth)), 0)
