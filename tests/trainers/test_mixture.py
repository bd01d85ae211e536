"""Stills beside videos: classes by the tables, ids that do not meet, how often each is shown."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.errors import ConfigError, DatasetError
from operators.youtube_vis_data import Category, Dataset, read_dataset
from pipelines.config import build
from tests.trainers.test_pairs import dataset
from trainers.config import DataConfig, StillsConfig
from trainers.frames import FrameIndex
from trainers.mixture import mix

OURS = ((1, "person"), (6, "sedan"), (36, "mouse"))


@pytest.fixture
def videos(tmp_path) -> Dataset:
    """One video of two frames, its one object a sedan, under three classes of YouTube-VIS."""
    raw = json.loads(dataset(tmp_path, {3: "##"}).path.read_text())
    raw["categories"] = [{"id": id, "name": name} for id, name in OURS]
    raw["annotations"][0]["category_id"] = 6
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(raw))
    return read_dataset(path)


def coco_file(folder: Path, objects: dict[int, list[int]], names: dict[int, str]) -> StillsConfig:
    """Image -> categories of its objects, in a folder with a file for each image."""
    folder.mkdir()
    for image in objects:
        Image.fromarray(np.zeros((4, 6, 3), np.uint8)).save(folder / f"{image}.jpg")
    pairs = [(image, category) for image, found in objects.items() for category in found]
    (folder / "stills.json").write_text(json.dumps({
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 6, "height": 4} for i in objects],
        "categories": [{"id": id, "name": name} for id, name in names.items()],
        "annotations": [{"id": n, "image_id": image, "category_id": category, "bbox": [0, 0, 2, 2], "iscrowd": 0,
                         "segmentation": {"size": [4, 6], "counts": [0, 2, 22]}, "area": 2}
                        for n, (image, category) in enumerate(pairs, start=1)]}))  # fmt: skip
    return StillsConfig(annotations=str(folder / "stills.json"), image_root=str(folder), classes="coco")


def test_without_stills_nothing_changes(videos):
    mixture = mix(videos, 8, ())
    assert mixture.dataset is videos and mixture.stills == frozenset() and mixture.repeats == {1: 8}


def test_stills_join_under_our_classes(videos, tmp_path):
    """COCO's person and car come as person and sedan, its (computer) mouse and its bicycle do not come; an image with
    nothing else is no sample."""
    names = {1: "person", 2: "bicycle", 3: "car", 74: "mouse"}
    stills = coco_file(tmp_path / "coco", {1: [3, 2, 1], 7: [74], 9: [1]}, names)
    mixture = mix(videos, 8, (stills,))
    found = mixture.dataset
    assert found.categories == tuple(Category(*one) for one in OURS)
    assert [v.id for v in found.videos] == [1, 2, 3] and mixture.stills == {2, 3}
    assert mixture.repeats == {1: 8, 2: 1, 3: 1}
    told = [(a.id, a.video_id, a.category_id) for a in found.annotations]
    assert told == [(3, 1, 6), (4, 2, 6), (5, 2, 1), (6, 3, 1)]
    assert replace(found, image_root=tmp_path).frame_path(found.videos[1], 0) == tmp_path / "coco" / "1.jpg"
    index = FrameIndex(found, repeats=mixture.repeats, stills=mixture.stills)
    assert [index.place.count((v, i)) for v, i in ((0, 0), (0, 1), (1, 0), (2, 0))] == [8, 8, 1, 1] and len(index) == 18


def test_frames_of_videos_as_stills(videos, tmp_path):
    """Each frame with an object stands by itself; several sources count on."""
    (tmp_path / "more").mkdir()
    raw = json.loads(dataset(tmp_path / "more", {5: "#.#", 6: "#.."}).path.read_text())
    raw["categories"] = [{"id": 4, "name": "lizard"}, {"id": 9, "name": "mouse"}]                # 5 is a 9, 6 a 4
    for t in range(3):
        (tmp_path / "more" / "v1").mkdir(exist_ok=True)
        Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "more" / "v1" / f"{t:05d}.jpg")
    path = tmp_path / "more" / "instances.json"
    path.write_text(json.dumps(raw))
    source = StillsConfig(annotations=str(path), image_root=str(path.parent), format="youtube_vis", repeat=3)
    mixture = mix(videos, 1, (source, source))
    assert len(mixture.stills) == 4 and [mixture.repeats[id] for id in sorted(mixture.stills)] == [3] * 4
    stills = [v for v in mixture.dataset.videos if v.id in mixture.stills]
    assert [v.file_names[0][-9:] for v in stills] == ["00000.jpg", "00002.jpg"] * 2
    kept = [mixture.dataset.annotations_of[v.id] for v in stills]
    assert [[a.category_id for a in one] for one in kept] == [[36]] * 4 and kept[1][0].bboxes == ([5, 2, 10, 20],)
    ids = [a.id for a in mixture.dataset.annotations]
    assert len(set(ids)) == len(ids)


def test_stills_without_a_class_of_ours(videos, tmp_path):
    stills = coco_file(tmp_path / "coco", {1: [2]}, {2: "bicycle"})
    with pytest.raises(DatasetError, match="none of its 1 categories .bicycle. has a counterpart"):
        mix(videos, 1, (stills,))


STILL = {"annotations": "a.json", "image_root": "a"}


@pytest.mark.parametrize("changes, message", [
    pytest.param({"stills": [STILL]}, "stills go with kind: stills; or with kind: pairs, direction: forward and pseudo",
                 id="pairs of what does not move"),
    pytest.param({"stills": [STILL], "direction": "forward"}, "and pseudo: {}", id="forward, but nothing moves"),
    pytest.param({"stills": [STILL], "kind": "clips"}, "stills go with kind", id="clips"),
    pytest.param({"direction": "forward", "kind": "clips"}, "direction: forward is of pairs", id="clips forward"),
    pytest.param({"repeat": 0}, "repeat is 0", id="never"),
    pytest.param({"kind": "stills", "stills": [{**STILL, "clases": "coco"}]}, "Did you mean classes", id="misspelt"),
    pytest.param({"kind": "stills", "stills": [{**STILL, "classes": "ovis"}]}, "classes: expected", id="no such table"),
])  # fmt: skip
def test_settings_that_contradict_each_other(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(DataConfig, {"annotations": "v.json", "image_root": "v", **changes}, "test")
