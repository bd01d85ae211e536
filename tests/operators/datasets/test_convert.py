"""Conversion between all formats: what comes back exactly, and what is said of the rest."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.datasets.convert import FORMATS, ConvertOptions, convert, guess_format, open_truth
from operators.datasets.truth import open_youtube_vis
from operators.errors import ConfigError, DatasetError
from operators.youtube_vis_data import read_dataset
from tests.operators.datasets.small_truth import content, rectangle, there_and_back, track, video, write, write_images

A, B, C = rectangle(0, 0, 2, 3), rectangle(3, 4, 6, 8), rectangle(1, 1, 5, 7)


@pytest.fixture
def path(tmp_path):
    """Two videos, the higher id first; a track that comes back, one that is never there, one over others."""
    videos = [video(9, "zoo", 3), video(4, "park", 2, 4, 5)]
    tracks = [
        track(70, 9, [A, None, A]), track(20, 9, [None, B, B], 2), track(31, 4, [np.eye(4, 5, dtype=bool)] * 2, 2),
        track(99, 9, [None] * 3),
    ]  # fmt: skip
    return write(tmp_path / "in" / "a.json", videos, tracks)


@pytest.mark.parametrize("by", list(FORMATS))
def test_nothing(tmp_path, by):
    path = write(tmp_path / "a.json", [], [])
    if by == "davis":       # no folder, no sequence: not to be told from a folder of something else
        convert(path, tmp_path / "out", "youtube-vis", by)
        with pytest.raises(DatasetError, match="has no folders with PNG"):
            open_truth(tmp_path / "out", by)
    elif by == "mots":
        convert(path, tmp_path / "out", "youtube-vis", by)
        with pytest.raises(DatasetError, match="has no MOTS text files"):
            open_truth(tmp_path / "out", by)
    else:
        assert list(there_and_back(path, tmp_path, by)) == []


@pytest.mark.parametrize(
    ("options", "to", "said"),
    [
        (ConvertOptions(frames=2), "ovis", "--frames: is for --from coco alone; this is --from youtube-vis."),
        (ConvertOptions(subset="val"), "davis", "--subset: is for --from davis alone; this is --from youtube-vis."),
        (ConvertOptions(class_names={1: "car"}), "mots", "--classes: is for --from mots alone"),
        (ConvertOptions(mots_ids="class"), "davis", "--mots-ids: is for --to mots alone; this is --to davis."),
        (ConvertOptions(renumber=True), "mots", "--renumber: is for --to davis alone; this is --to mots."),
    ],
)  # fmt: skip
def test_an_option_of_another_format_is_refused(path, tmp_path, options, to, said):
    with pytest.raises(ConfigError) as error:
        convert(path, tmp_path / "out", "youtube-vis", to, options)
    assert said in str(error.value) and not (tmp_path / "out").exists()


@pytest.mark.parametrize("by", ["youtube-vis", "ovis"])
def test_json_and_back_is_equal(path, tmp_path, by):
    back = there_and_back(path, tmp_path, by)
    assert content(back) == content(open_youtube_vis(path))
    assert {c.id: c.name for c in back.categories} == {1: "cat", 2: "dog"} and back.names == {4: "park", 9: "zoo"}
    assert [v.file_names for v in back] == [v.file_names for v in open_youtube_vis(path)]


def test_davis_and_back_keeps_masks_that_do_not_overlap(path, tmp_path):
    back = there_and_back(path, tmp_path, "davis")
    found = {name: tracks for name, *_, tracks in content(back, ids=False)}
    for name, *_, tracks in content(open_youtube_vis(path), ids=False):
        assert found[name] == [track for track in tracks if any(track[3])]
    assert [c.name for c in back.categories] == ["object"]
    assert {v.name: v.file_names for v in back}["zoo"] == ("zoo/00000.jpg", "zoo/00005.jpg", "zoo/00010.jpg")


def test_mots_and_back_keeps_all_masks_and_ids(path, tmp_path):
    raw = json.loads(path.read_text())
    raw["annotations"].append(track(50, 9, [C, C, np.zeros((6, 8), bool)], 2))      # over both others; no pixel
    path.write_text(json.dumps(raw))
    back = there_and_back(path, tmp_path, "mots", back=ConvertOptions(class_names={1: "cat", 2: "dog"}))
    found = {name: sorted(tracks) for name, *_, tracks in content(back)}
    for name, _, _, tracks in content(open_youtube_vis(path)):
        assert found[name] == sorted(track for track in tracks if track[0] != 99), name
    assert [c.name for c in back.categories] == ["cat", "dog"]
    assert list(back.names.values()) == ["park", "zoo"]            # of the seqmap: in the order of the ids


@given(st.lists(st.lists(st.sampled_from([None, "A", "B", "C"]), min_size=3, max_size=3), max_size=4), st.booleans())
@settings(max_examples=25, deadline=None)
def test_mots_and_back_of_anything(tracks, class_ids):
    masks = {"A": A, "B": B, "C": C, None: None}
    with tempfile.TemporaryDirectory() as folder:
        entries = [track(11 * k + 3, 1, [masks[name] for name in names], 1 + k % 2) for k, names in enumerate(tracks)]
        path = write(Path(folder) / "a.json", [video(1, "a", 3)], [*entries, track(1000, 1, [A] * 3)])
        options = ConvertOptions(mots_ids="class" if class_ids else "annotation")
        back = content(there_and_back(path, Path(folder), "mots", options))
    (_, _, _, found), = back
    expected = content_of(entries + [track(1000, 1, [A] * 3)])
    if class_ids:       # other numbers, the same masks and classes
        assert sorted((t[1:] for t in found), key=str) == sorted((t[1:] for t in expected), key=str)
        assert all(t[0] // 1000 == t[1] for t in found)
    else:
        assert sorted(found, key=str) == sorted(expected, key=str)


def content_of(tracks: list[dict]) -> list[tuple]:
    return [(t["id"], t["category_id"], False, [m and m["counts"] for m in t["segmentations"]])
            for t in tracks if any(t["segmentations"])]                                            # fmt: skip


def test_coco_and_back(path, tmp_path):
    back = there_and_back(path, tmp_path, "coco")
    stills = json.loads((tmp_path / "middle.json").read_text())
    assert [image["file_name"] for image in stills["images"]][:3] == ["park/00000.jpg", "park/00005.jpg",
                                                                       "zoo/00000.jpg"]             # fmt: skip
    assert [(a["id"], a["image_id"], a["instance_id"]) for a in stills["annotations"]] == [
        (1, 1, 31), (2, 2, 31), (3, 3, 70), (4, 4, 20), (5, 5, 70), (6, 5, 20),
    ]  # fmt: skip
    assert stills["annotations"][2]["bbox"] == [0, 0, 3, 2] and stills["annotations"][2]["area"] == 6
    assert [v.length for v in back] == [1] * 5
    masks = [t.masks[0]["counts"] for v in back for t in v.tracks]
    assert masks == [a["segmentation"]["counts"] for a in stills["annotations"]]


def test_what_is_lost_is_said(tmp_path):
    crowd = track(3, 1, [None, C], iscrowd=1)
    labelled = track(1, 1, [A, A], occlusion=["no_occlusion", None])
    boxed = track(2, 1, [C, None], 2) | {"bboxes": [[0, 0, 8, 6], [1, 1, 2, 2]]}
    path = write(tmp_path / "a.json", [video(1, "a", 2)], [labelled, boxed, crowd])
    said = {by: " ".join(convert(path, tmp_path / f"{by}{'.json' if by in JSONS else ''}", "ovis", by).notes)
            for by in FORMATS}                                                                     # fmt: skip
    assert "occlusion labels, which YouTube-VIS does not have, left out: 1" in said["youtube-vis"]
    assert "occlusion" not in said["ovis"]
    assert "both are lost" in said["davis"] and "crowds, written as void: 1" in said["davis"]
    assert "pixels lost where masks overlapped (the smaller mask of the frame is on top): 2" in said["davis"]
    assert "boxes other than those around their masks, left out: 2" in said["mots"]
    assert "frames whose masks overlap, all kept; MOTS evaluation refuses such files: 1" in said["mots"]
    assert "COCO knows no tracks" in said["coco"] and "boxes without a mask, left out: 1" in said["coco"]


JSONS = ("youtube-vis", "ovis", "coco")


def test_labels_of_ovis_are_kept(tmp_path):
    levels = ["severe_occlusion", None]
    path = write(tmp_path / "a.json", [video(1, "a", 2)], [track(1, 1, [A, None], occlusion=levels)])
    (found,) = there_and_back(path, tmp_path, "ovis")
    assert found.tracks[0].occlusion is None        # back in YouTube-VIS
    raw = json.loads((tmp_path / "middle").read_text())
    assert raw["annotations"][0]["occlusion"] == levels
    done = convert(tmp_path / "back.json", tmp_path / "b.json", "youtube-vis", "ovis")
    assert done.notes[-1].startswith("The input has no occlusion labels")


@pytest.mark.parametrize("out, names", [
    pytest.param("in/b.json", "zoo/00000.jpg", id="beside, images in JPEGImages"),
    pytest.param("b.json", "in/JPEGImages/zoo/00000.jpg", id="above"),
    pytest.param("in/JPEGImages/b.json", "zoo/00000.jpg", id="in the folder of images"),
    pytest.param("other/b.json", "zoo/00000.jpg", id="elsewhere"),
])  # fmt: skip
def test_names_of_images_stay_valid(path, tmp_path, out, names):
    write_images(tmp_path / "in" / "JPEGImages", json.loads(path.read_text())["videos"])
    done = convert(path, tmp_path / out, "youtube-vis", "youtube-vis")
    truth = open_youtube_vis(tmp_path / out)
    (zoo,) = truth.only({9})
    assert zoo.file_names[0] == names
    if out.startswith("other"):
        assert truth.image_root is None and "The images stay in" in done.notes[1]
    else:
        assert truth.image(zoo, 2).is_file() and len(done.notes) == 1


@pytest.mark.parametrize("mode", ["link", "copy"])
@pytest.mark.parametrize("by", list(FORMATS))
def test_images_come_along(path, tmp_path, by, mode):
    write_images(tmp_path / "in", json.loads(path.read_text())["videos"])
    (tmp_path / "in" / "zoo" / "00010.jpg").unlink()
    out = tmp_path / "out" / ("b.json" if by in JSONS else "set")
    done = convert(path, out, "youtube-vis", by, ConvertOptions(images=mode))
    assert done.missing_images == 1 and "zoo/00010.jpg" in " ".join(done.notes)
    truth = open_truth(out, by)
    images = {truth.image(v, frame) for v in truth for frame in range(v.length)}
    there = [image for image in images if image.is_file()]
    assert len(there) == 4 and all(image.is_symlink() == (mode == "link") for image in there)


def test_the_input_is_never_touched(path, tmp_path):
    before = path.read_bytes()
    for out in (path, path.parent / ".." / "in" / "a.json"):
        with pytest.raises(ConfigError, match="is the input"):
            convert(path, out, "youtube-vis", "ovis")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ConfigError, match="is there already"):
        convert(path, tmp_path / "full", "youtube-vis", "davis")
    assert path.read_bytes() == before


@pytest.mark.parametrize("by", list(FORMATS))
def test_damage_leaves_nothing_behind(path, tmp_path, by):
    raw = json.loads(path.read_text())
    raw["annotations"][1]["segmentations"][2]["counts"] = "0000"
    path.write_text(json.dumps(raw))
    (tmp_path / "out").mkdir()
    with pytest.raises(DatasetError, match="video 9, annotation 20, frame 2"):
        convert(path, tmp_path / "out" / "b", "youtube-vis", by)
    assert list((tmp_path / "out").iterdir()) == []


def test_formats(path, tmp_path):
    with pytest.raises(ConfigError, match="no format is called 'kitti'"):
        convert(path, tmp_path / "b", "youtube-vis", "kitti")
    with pytest.raises(ConfigError, match="no format is called 'youtube-vos'. Did you mean youtube-vis?"):
        open_truth(path, "youtube-vos")
    convert(path, tmp_path / "d", "youtube-vis", "davis")
    convert(path, tmp_path / "m", "youtube-vis", "mots")
    places = (path, tmp_path / "d", tmp_path / "m", tmp_path / "m" / "instances_txt" / "zoo.txt")
    assert [guess_format(place) for place in places] == ["youtube-vis", "davis", "mots", "mots"]


def test_real_annotations(media, tmp_path):
    """Eight videos with polygons' and painters' masks; in `crossing` two overlap."""
    path = media / "annotated" / "instances.json"
    truth = {name: tracks for name, *_, tracks in content(open_youtube_vis(path), ids=False)}
    back = {name: tracks for name, *_, tracks in content(there_and_back(path, tmp_path, "davis"), ids=False)}
    assert back.keys() == truth.keys()
    assert [name for name in truth if back[name] != truth[name]] == ["crossing"]
    (tmp_path / "m").mkdir()
    mots = there_and_back(path, tmp_path / "m", "mots")
    found = {name: sorted(map(str, tracks)) for name, *_, tracks in content(mots)}
    assert found == {name: sorted(map(str, tracks)) for name, *_, tracks in content(open_youtube_vis(path))}
    assert len(read_dataset(tmp_path / "m" / "back.json").annotations) == 14
