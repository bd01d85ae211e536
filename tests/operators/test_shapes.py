"""The dataset on disk is the clip in memory, the same bytes each time; no folder that is not its own is touched."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from operators.errors import ConfigError, DatasetError
from operators.shapes import (
    CATEGORIES,
    PRESETS,
    Clip,
    ShapesConfig,
    TrackedObject,
    generate_clip,
    write_videos,
    write_youtube_vis,
)

SMALL = ShapesConfig(width=128, height=96, num_frames=24)
TINY = replace(PRESETS["easy"], width=96, height=64, num_frames=3)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def test_a_clip_is_a_function_of_config_seed_and_index():
    first, again = generate_clip(SMALL, 3, 5), generate_clip(SMALL, 3, 5)
    np.testing.assert_array_equal(first.frames, again.frames)
    np.testing.assert_array_equal(first.ids, again.ids)
    assert first.objects == again.objects
    for other in (generate_clip(SMALL, 3, 6), generate_clip(SMALL, 4, 5), generate_clip(SMALL, 5, 3)):
        assert not np.array_equal(first.frames, other.frames)


def test_shapes_of_a_medium_clip():
    clip = generate_clip(PRESETS["medium"], 1, 0)
    assert clip.frames.shape == (36, 320, 512, 3) and clip.frames.dtype == np.uint8
    assert clip.ids.shape == (36, 320, 512) and clip.ids.dtype == np.uint8
    assert 6 <= len(clip.objects) <= 8
    assert len({found.category_id for found in clip.objects}) >= 5
    assert all(1 <= found.category_id <= len(CATEGORIES) for found in clip.objects)
    masks = np.stack([clip.masks(k) for k in range(len(clip.objects))])
    assert masks.sum(axis=0).max() == 1                       # disjoint
    np.testing.assert_array_equal(masks.any(axis=0), clip.ids > 0)
    assert masks.any(axis=(1, 2, 3)).all()


DRAWN = np.array([
    [[0, 0, 0, 0, 0],
     [0, 2, 2, 0, 1],
     [0, 0, 2, 0, 1]],
    [[0, 0, 0, 0, 0],
     [0, 0, 0, 0, 0],
     [0, 0, 0, 0, 2]],
], dtype=np.uint8)  # fmt: skip


@pytest.mark.parametrize("k, t, expected", [
    pytest.param(0, 1, None, id="unseen"),
    pytest.param(0, 0, (4, 1, 5, 3), id="a column at the edge"),
    pytest.param(1, 0, (1, 1, 3, 3), id="a corner piece"),
    pytest.param(1, 1, (4, 2, 5, 3), id="one pixel"),
])  # fmt: skip
def test_boxes_are_tight(k, t, expected):
    clip = Clip(np.zeros((2, 3, 5, 3), np.uint8), DRAWN, (TrackedObject(1, 4), TrackedObject(2, 7)))
    assert clip.box(k, t) == expected


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("shapes") / "one"
    write_youtube_vis(root, SMALL, 7, 2, first=3)
    return root


def test_json_has_every_field(written):
    dataset = json.loads((written / "instances.json").read_text())
    assert set(dataset) == {"info", "licenses", "videos", "categories", "annotations"}
    assert dataset["info"]["seed"] == 7 and dataset["info"]["preset"] == "custom"
    assert dataset["info"]["config"] == asdict(SMALL)
    assert [category["name"] for category in dataset["categories"]] == list(CATEGORIES)
    assert [category["id"] for category in dataset["categories"]] == list(range(1, 8))
    assert all(category["supercategory"] for category in dataset["categories"])
    assert [video["id"] for video in dataset["videos"]] == [1, 2]
    for video in dataset["videos"]:
        assert set(video) == {
            "id", "width", "height", "length", "file_names", "license", "coco_url", "flickr_url", "date_captured",
        }  # fmt: skip
        assert (video["width"], video["height"], video["length"]) == (128, 96, 24)
    assert dataset["videos"][0]["file_names"][:2] == ["clip_00003/00000.jpg", "clip_00003/00001.jpg"]
    assert [track["id"] for track in dataset["annotations"]] == list(range(1, len(dataset["annotations"]) + 1))
    for track in dataset["annotations"]:
        assert set(track) == {
            "id", "video_id", "category_id", "iscrowd", "segmentations", "bboxes", "areas", "width", "height", "length",
        }  # fmt: skip
        assert len(track["segmentations"]) == len(track["bboxes"]) == len(track["areas"]) == 24
        assert track["iscrowd"] == 0 and track["video_id"] in (1, 2)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")   # inside pycocotools
def test_annotations_are_the_clip(written):
    dataset = json.loads((written / "instances.json").read_text())
    num_hidden = 0
    for video in dataset["videos"]:
        clip = generate_clip(SMALL, 7, 2 + video["id"])
        tracks = [track for track in dataset["annotations"] if track["video_id"] == video["id"]]
        assert [track["category_id"] for track in tracks] == [found.category_id for found in clip.objects]
        for k, track in enumerate(tracks):
            for t, mask in enumerate(clip.masks(k)):
                entry = (track["segmentations"][t], track["bboxes"][t], track["areas"][t])
                if not mask.any():
                    assert entry == (None, None, None)
                    num_hidden += 1
                    continue
                assert entry[0]["size"] == [96, 128] and isinstance(entry[0]["counts"], str)
                np.testing.assert_array_equal(coco_mask.decode([entry[0]])[..., 0], mask)
                x1, y1, x2, y2 = clip.box(k, t)
                assert entry[1:] == ([x1, y1, x2 - x1, y2 - y1], mask.sum())
    assert num_hidden > 0   # both clips have a full occlusion and a re-entry


def test_images_are_the_frames(written):
    dataset = json.loads((written / "instances.json").read_text())
    names = [name for video in dataset["videos"] for name in video["file_names"]]
    on_disk = [str(path.relative_to(written / "JPEGImages")) for path in sorted(written.rglob("*.jpg"))]
    assert names == on_disk
    frame = generate_clip(SMALL, 7, 4).frames[11].astype(int)
    stored = np.asarray(Image.open(written / "JPEGImages" / "clip_00004" / "00011.jpg"))
    assert stored.shape == frame.shape and np.abs(stored - frame).mean() < 8


def test_same_arguments_same_bytes_with_any_number_of_workers(written, tmp_path):
    seen = []
    write_youtube_vis(tmp_path / "two", SMALL, 7, 2, first=3, workers=2, progress=lambda *done: seen.append(done))
    assert contents(written) == contents(tmp_path / "two")
    assert seen == [(1, 2), (2, 2)]
    write_youtube_vis(tmp_path / "two", SMALL, 7, 2, first=3)   # once more over its own files
    assert contents(written) == contents(tmp_path / "two")


def test_a_cut_run_is_not_taken_for_a_dataset_and_can_be_repeated(tmp_path):
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_youtube_vis(tmp_path / "cut", TINY, 1, 3, progress=interrupt)
    assert not (tmp_path / "cut" / "instances.json").exists()
    with pytest.raises(DatasetError, match="seed 2, 3 clips from 0"):
        write_youtube_vis(tmp_path / "cut", TINY, 2, 3)
    write_youtube_vis(tmp_path / "cut", TINY, 1, 3)
    write_youtube_vis(tmp_path / "whole", TINY, 1, 3)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


@pytest.mark.parametrize("name, text", [
    pytest.param("holiday.jpg", "a picture", id="another file"),
    pytest.param("instances.json", '{"info": {"description": "another dataset"}}', id="another dataset"),
    pytest.param("instances.json", "[]", id="another JSON"),
    pytest.param("instances.json", "not JSON", id="a broken JSON"),
])  # fmt: skip
def test_a_foreign_folder_is_left_alone(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError, match="is not empty"):
        write_youtube_vis(tmp_path, TINY, 1, 1)
    assert contents(tmp_path) == {name: text.encode()}


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="is a file"):
        write_youtube_vis(tmp_path / "file", TINY, 1, 1)


@pytest.mark.parametrize("call", [
    pytest.param(lambda root: write_youtube_vis(root, TINY, 1, 0), id="no clip"),
    pytest.param(lambda root: write_youtube_vis(root, TINY, 1, 1, first=-1), id="clip before the first"),
    pytest.param(lambda root: write_videos(root, TINY, 1, 1, workers=0), id="no worker"),
    pytest.param(lambda root: write_videos(root, TINY, 1, 1, codec="av2"), id="unknown codec"),
    pytest.param(lambda root: generate_clip(TINY, -1, 0), id="negative seed"),
])  # fmt: skip
def test_wrong_arguments(tmp_path, call):
    with pytest.raises(ConfigError):
        call(tmp_path / "out")
    assert contents(tmp_path) == {}


def decode(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


@pytest.mark.parametrize("codec, suffix, name", [("h264", ".mp4", "h264"), ("vp9", ".webm", "vp9")])
def test_videos_hold_the_same_frames(tmp_path, codec, suffix, name):
    paths = write_videos(tmp_path / "a", SMALL, 7, 2, codec)
    assert [path.name for path in paths] == [f"clip_00000{suffix}", f"clip_00001{suffix}"]
    assert sorted(tmp_path.rglob("*.*")) == paths             # nothing unfinished is left
    with av.open(str(paths[1])) as container:
        assert container.streams.video[0].codec_context.codec.canonical_name == name
    frames = decode(paths[1])
    clip = generate_clip(SMALL, 7, 1)
    assert len(frames) == 24 and frames[1].time == pytest.approx(1 / 12, abs=1e-3)
    pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in frames]).astype(int)
    assert np.abs(pictures - clip.frames).mean(axis=(1, 2, 3)).max() < 12
    assert ("B" in {av.video.frame.PictureType(frame.pict_type).name for frame in frames}) == (codec == "h264")
    again = write_videos(tmp_path / "b", SMALL, 7, 2, codec, workers=2)
    assert [path.read_bytes() for path in paths] == [path.read_bytes() for path in again]
