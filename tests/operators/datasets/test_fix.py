"""What is repaired has no errors any more and is read by the strict reader; what was sound is as it was."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from operators.datasets.check import find_faults, open_dataset
from operators.datasets.faults import KINDS
from operators.datasets.fix import fix_dataset, write_fixed
from operators.datasets.fix_videos import Ids, whole
from operators.errors import ConfigError, DatasetError
from operators.youtube_vis_data import read_dataset
from tests.operators.datasets.damaged_datasets import (
    ALL,
    NAN,
    SECOND_VIDEO,
    add,
    ann,
    both,
    damaged,
    null_frames,
    put,
    take,
    uncompressed,
    with_occlusion,
    write_sound,
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("sound"))


def repaired(path: Path, **how) -> tuple[dict, list[str]]:
    """The repaired file, written and read again, and what was told."""
    dataset = open_dataset(path, **how)
    before = copy.deepcopy(dataset.raw) if "NaN" not in json.dumps(dataset.raw) else None
    fixed = fix_dataset(dataset)
    assert before is None or dataset.raw == before
    out = path.with_name("fixed.json")
    write_fixed(dataset, fixed, out)
    return json.loads(out.read_bytes()), [str(repair) for repair in fixed.repairs]


@pytest.mark.parametrize(("damage", "faults"), ALL)
def test_repaired_is_sound(damage, faults, sound, tmp_path):
    path = damaged(sound, tmp_path, damage)
    raw, repairs = repaired(path)
    out = tmp_path / "fixed.json"
    left = list(find_faults(open_dataset(out, images=tmp_path / "JPEGImages"), decode=True))
    assert [fault for fault in left if fault.severity == "error"] == []
    dataset = read_dataset(out, image_root=tmp_path / "JPEGImages")
    for annotation in dataset.annotations:
        dataset.masks(annotation)
    if any(KINDS[kind].severity == "error" for kind, _ in faults):
        # a video is dropped with its five annotations at most, or the one annotation at fault
        assert repairs and len(dataset.videos) >= 1
        assert len(dataset.annotations) >= (5 if dataset.annotated else 0)
    else:
        assert repairs == [] and raw == json.loads(path.read_bytes())


def repair_of(sound: Path, tmp_path: Path, damage) -> tuple[dict, list[str]]:
    return repaired(damaged(sound, tmp_path, damage))


def test_boxes_and_areas_follow_from_masks(sound, tmp_path):
    damage = both(take("annotations", 1, "bboxes"), ann(8, "areas", 1, 5), ann(8, "areas", 3, None))
    raw, repairs = repair_of(sound, tmp_path, damage)
    assert raw["annotations"] == json.loads(sound.read_bytes())["annotations"]
    assert repairs == ["video 1, annotation 2, frames 0, 1, 2, 3: boxes computed from the masks",
                       "video 2, annotation 9, frames 1, 3: areas computed from the masks"]  # fmt: skip


def test_a_damaged_mask_goes_with_its_box_and_area(sound, tmp_path):
    raw, repairs = repair_of(sound, tmp_path, uncompressed(lambda runs: runs[:2]))
    assert [raw["annotations"][3][key][3] for key in ("segmentations", "bboxes", "areas")] == [None] * 3
    assert [key for key in raw["annotations"][3]["bboxes"][:3] if key is None] == []
    assert repairs == ["video 1, annotation 4, frame 3: damaged masks taken out, with their boxes and areas"]


@pytest.mark.parametrize(("damage", "told"), [
    pytest.param(null_frames(2), "annotations[2], video 1, annotation 3: dropped, no frame is left in which it has a "
                 "pixel", id="empty"),
    pytest.param(ann(2, "segmentations", [None, None, {"size": [1, 1], "counts": [0, 1]}, 5]),
                 "annotations[2], video 1, annotation 3: dropped, no frame is left in which it has a pixel",
                 id="all damaged"),
    pytest.param(ann(2, "video_id", 7), "annotations[2], video 7, annotation 3: dropped, the file lists no video 7",
                 id="unknown video"),
    pytest.param(ann(2, "category_id", None), "annotations[2], video 1, annotation 3: dropped, the file lists no "
                 "category None", id="unknown category"),
    pytest.param(lambda raw: raw["annotations"][2]["segmentations"].pop(), "annotations[2], video 1, annotation 3: "
                 "dropped, it has 3 segmentations for 4 frames, and nothing tells which are whose", id="too short"),
    pytest.param(lambda raw: raw["annotations"][2]["segmentations"].append({"size": [64, 96], "counts": "x"}),
                 "annotations[2], video 1, annotation 3: dropped, it has 5 segmentations for 4 frames, and nothing "
                 "tells which are whose", id="too long"),
    pytest.param(take("annotations", 2, "segmentations"), "annotations[2], video 1, annotation 3: dropped, it has no "
                 "list of segmentations", id="no masks"),
])  # fmt: skip
def test_what_cannot_be_repaired_is_dropped(damage, told, sound, tmp_path):
    raw, repairs = repair_of(sound, tmp_path, damage)
    assert repairs == [told]
    assert [annotation["id"] for annotation in raw["annotations"]] == [1, 2, 4, 5, 6, 7, 8, 9, 10]


def test_lengths_are_repaired_where_nothing_is_guessed(sound, tmp_path):
    def change(raw: dict) -> None:
        raw["annotations"][0]["segmentations"] += [None, None]
        raw["annotations"][1]["segmentations"].pop()
        raw["annotations"][1]["bboxes"][3] = None
        raw["annotations"][1]["areas"].pop()

    raw, repairs = repair_of(sound, tmp_path, change)
    assert [len(raw["annotations"][k][key]) for k in (0, 1) for key in ("segmentations", "bboxes", "areas")] == [4] * 6
    assert raw["annotations"][1]["segmentations"][3] is None and raw["annotations"][1]["areas"][3] is None
    assert repairs == ["video 1, annotation 1: 6 segmentations made 4: those too many were null",
                       "video 1, annotation 2: 3 segmentations made 4: there is no box in those too few",
                       "video 1, annotation 2, frames 0, 1, 2: areas computed from the masks"]  # fmt: skip


def test_ids_are_renumbered(sound, tmp_path):
    damage = both(ann(3, "id", 1), ann(9, "id", "10"), ann(7, "id", None), ann(5, "video_id", "2"))
    raw, repairs = repair_of(sound, tmp_path, damage)
    assert [annotation["id"] for annotation in raw["annotations"]] == [1, 2, 3, 11, 5, 6, 7, 12, 9, 10]
    assert all(annotation["video_id"] == 2 for annotation in raw["annotations"][5:])
    assert "annotations[3], video 1: id 1 set to 11" in repairs
    assert "video '2', annotation 6: video_id '2' set to 2" in repairs


def test_a_video_that_is_there_twice_is_dropped(sound, tmp_path):
    raw, repairs = repair_of(sound, tmp_path, both(add("videos", SECOND_VIDEO), ann(0, "iscrowd", 3)))
    assert repairs[0] == "videos[2], video 2: dropped, it repeats videos[1]"
    assert len(raw["videos"]) == 2 and len(raw["annotations"]) == 10


def test_annotations_go_to_the_one_video_of_their_id_that_they_fit(sound, tmp_path):
    other = {"id": 2, "width": 10, "height": 10, "file_names": ["x/0.jpg", "x/1.jpg"]}
    mask = {"size": [10, 10], "counts": [0, 100]}
    of_other = {"id": 11, "video_id": 2, "category_id": 1, "iscrowd": 0, "segmentations": [mask, None],
                "bboxes": [[0, 0, 10, 10], None], "areas": [100, None]}  # fmt: skip
    path = damaged(sound, tmp_path, both(add("videos", other), add("annotations", of_other)))
    (tmp_path / "JPEGImages").rename(tmp_path / "elsewhere")
    raw, repairs = repaired(path)
    assert [video["id"] for video in raw["videos"]] == [1, 2, 3]
    assert [annotation["video_id"] for annotation in raw["annotations"]] == [1] * 5 + [2] * 5 + [3]
    assert "videos[2], video 2: id 2 set to 3" in repairs


def test_annotations_that_fit_two_videos_of_their_id_are_dropped(sound, tmp_path):
    raw, repairs = repair_of(sound, tmp_path, put("videos", 1, "id", 1))
    assert [video["id"] for video in raw["videos"]] == [1, 2] and raw["annotations"] == []
    assert "annotations[0], video 1, annotation 1: dropped, it fits 2 of 2 videos that share its video_id" in repairs


@pytest.mark.parametrize("with_images", [True, False])
def test_width_and_height_that_were_exchanged(with_images, sound, tmp_path):
    path = damaged(sound, tmp_path, both(put("videos", 0, "width", 64), put("videos", 0, "height", 96)))
    if not with_images:
        (tmp_path / "JPEGImages").rename(tmp_path / "elsewhere")
    raw, repairs = repaired(path)
    assert raw == json.loads(sound.read_bytes())
    assert repairs == ["videos[0], video 1: height 96 set to 64", "videos[0], video 1: width 64 set to 96"]


def test_a_frame_without_an_image_leaves_its_video_and_its_tracks(sound, tmp_path):
    def change(raw: dict, images: Path) -> None:
        (images / "clip_00001/00001.jpg").unlink()
        raw["annotations"][6]["bboxes"][2] = None
        with_occlusion("no_occlusion", "slight_occlusion", "severe_occlusion", None, at=5)(raw)

    raw, repairs = repaired(damaged(sound, tmp_path, change))
    before = json.loads(sound.read_bytes())
    assert raw["videos"][0] == before["videos"][0] and raw["videos"][1]["length"] == 3
    assert raw["videos"][1]["file_names"] == [f"clip_00001/0000{k}.jpg" for k in (0, 2, 3)]
    for now, then in zip(raw["annotations"][5:], before["annotations"][5:], strict=True):
        assert now["segmentations"] == [then["segmentations"][k] for k in (0, 2, 3)] and now["length"] == 3
    assert raw["annotations"][5]["occlusion"] == ["no_occlusion", "severe_occlusion", None]
    assert "videos[1], video 2, frame 1: frames taken out, their images are missing" in repairs
    assert "video 2, annotation 7, frame 2: boxes computed from the masks" in repairs      # as the old file counts


def test_names_that_lead_elsewhere(sound, tmp_path):
    def change(raw: dict, images: Path) -> None:
        raw["videos"][0]["file_names"] = [
            str(images.resolve() / "clip_00000/00000.jpg"), "clip_00000\\00001.jpg", "x/../clip_00000/00002.jpg",
            "../../etc/passwd",
        ]  # fmt: skip

    raw, repairs = repaired(damaged(sound, tmp_path, change))
    assert raw["videos"][0]["file_names"] == [f"clip_00000/0000{k}.jpg" for k in range(3)]
    assert "videos[0], video 1, frame 3: frames taken out, their file names lead elsewhere or are none" in repairs
    assert "videos[0], video 1, frames 0, 1, 2: file names written as paths inside the folder" in repairs


def test_the_wrong_folder_of_images_empties_nothing(sound, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no video can be kept, by the images in .*empty. Is this the right folder"):
        fix_dataset(open_dataset(sound, images=tmp_path / "empty"))


@pytest.mark.parametrize(
    ("value", "fixed"), [([], 0), (None, 0), (2, 1), (-1, 1), ("0", 0), ("1", 1), (True, 1), (NAN, 1)]
)
def test_iscrowd(value, fixed, sound, tmp_path):
    raw, _ = repair_of(sound, tmp_path, ann(0, "iscrowd", value))
    assert raw["annotations"][0]["iscrowd"] == fixed


def test_categories_that_are_missing_are_made_of_their_use(sound, tmp_path):
    raw, repairs = repair_of(sound, tmp_path, take("categories"))
    assert [category["id"] for category in raw["categories"]] == [1, 3, 4, 5, 6, 7] and len(raw["annotations"]) == 10
    assert repairs == ["categories: there is no list; 6 made of the ids that are used"]


def test_values_that_json_does_not_have_become_null(sound, tmp_path):
    nested: list = []
    for _ in range(100):
        nested = [nested]
    damage = both(put("info", "a", [1, {"b": NAN}]), put("videos", 0, "fps", NAN), ann(0, "score", -NAN),
                  put("categories", 0, "tree", nested))  # fmt: skip
    raw, repairs = repair_of(sound, tmp_path, damage)
    assert raw["info"]["a"] == [1, {"b": None}] and raw["videos"][0]["fps"] is None
    assert raw["annotations"][0]["score"] is None and len(repairs) == 4


def test_nothing_of_the_input_is_overwritten(sound, tmp_path):
    path = damaged(sound, tmp_path, null_frames(0))
    before, dataset = path.read_bytes(), open_dataset(path)
    (tmp_path / "link.json").symlink_to(path)
    for out in (path, tmp_path / "JPEGImages/../instances.json", tmp_path / "link.json"):
        with pytest.raises(ConfigError, match="is the input"):
            write_fixed(dataset, fix_dataset(dataset), out)
    assert path.read_bytes() == before


@pytest.mark.parametrize(("value", "number"), [
    (None, None), (True, None), (7, 7), (-3, -3), (7.0, 7), (7.5, None), (NAN, None), (1e300, None), ("7", 7),
    ("-7", None), ("x", None), ("٧", None), ("9" * 30, None), ([7], None),
])  # fmt: skip
def test_numbers_that_ids_mean(value, number):
    assert whole(value) == number


def test_ids_are_kept_where_they_are_free():
    ids = Ids([5, 2, "9", None, 5])
    assert [ids.take(value) for value in (5, 2, "9", None, 5)] == [5, 2, 9, 10, 11]
    assert Ids([]).take(None) == 1 and Ids([-4]).take(None) == 1
