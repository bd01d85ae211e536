"""Ground truth drawn: colours stay with tracks, sheets have their rows, a missing image is grey and is counted."""

from __future__ import annotations

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from operators.datasets.show import Shown, choose_videos, draw_frame, frame_tracks, parse_sheet, show_sheet, show_video
from operators.datasets.truth import open_youtube_vis
from operators.draw import text_size, track_color
from operators.errors import ConfigError, DatasetError
from tests.operators.datasets.small_truth import rectangle, track, video, write, write_images

H, W = 96, 160


def box_of(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    return rectangle(top, left, bottom, right, H, W)


@pytest.fixture
def truth(tmp_path):
    """Three videos; in the first a cat, a larger dog over which it walks, and a crowd."""
    videos = [video(3, "one", 4, H, W), video(5, "two", 1, H, W), video(8, "three", 3, 40, 50)]
    cat = [box_of(40, 10 + 30 * frame, 60, 40 + 30 * frame) for frame in range(3)]
    tracks = [
        track(71, 3, [*cat, None]), track(6, 3, [box_of(30, 60, 90, 150)] * 4, 2),
        track(9, 3, [None, None, None, box_of(0, 0, 20, 60)], iscrowd=1),
        track(12, 8, [None] * 3) | {"bboxes": [[5, 5, 20, 10], None, None]},
    ]  # fmt: skip
    write_images(tmp_path / "JPEGImages", videos)
    return open_youtube_vis(write(tmp_path / "a.json", videos, tracks))


def test_frame_tracks(truth):
    one, _, three = truth
    found = frame_tracks(truth, one, 1, H, W)
    assert found.track_ids.tolist() == [71, 6] and found.labels.tolist() == [0, 1]      # the smaller is drawn on top
    assert found.boxes.tolist() == [[40, 40, 70, 60], [60, 30, 150, 90]]
    assert [mask["counts"] for mask in found.masks] == [one.tracks[k].masks[1]["counts"] for k in (0, 1)]
    crowd = frame_tracks(truth, one, 3, H, W)
    assert crowd.track_ids.tolist() == [9, 6] and crowd.labels.tolist() == [2, 1]
    assert len(frame_tracks(truth, three, 1, 40, 50)) == 0
    boxed = frame_tracks(truth, three, 0, 40, 50)
    assert boxed.boxes.tolist() == [[5, 5, 25, 15]] and not coco.decode(boxed.masks[0]).any()


@pytest.mark.parametrize("height, width", [(48, 80), (24, 40), (96, 160), (192, 320)])
def test_masks_and_boxes_shrink_alike(truth, height, width):
    one = next(iter(truth))
    found = frame_tracks(truth, one, 0, height, width)
    for box, mask in zip(found.boxes.tolist(), found.masks, strict=True):
        x, y, w, h = coco.toBbox(mask).tolist()
        assert np.abs(np.subtract([x, y, x + w, y + h], box)).max() < 1


def test_colours_stay_with_tracks(truth):
    one = next(iter(truth))
    shown = Shown(truth.path)
    for frame, x in enumerate((25, 55, 85)):
        picture = draw_frame(truth, one, frame, shown)
        ground = np.full(3, frame)
        for place, track_id in (((50, x), 71), ((85, 140), 6)):
            expected = 0.55 * ground + 0.45 * np.array(track_color(track_id))
            assert np.abs(picture[place] - expected).max() <= 1
    assert (shown.frames, shown.missing) == (3, 0)


@pytest.mark.parametrize("wanted, ids", [
    ([], [3, 5]), (["two"], [5]), (["8", "one"], [8, 3]), (["3", "one", "3"], [3]),
])  # fmt: skip
def test_choose_videos(truth, wanted, ids):
    assert choose_videos(truth, wanted, default=2) == ids


def test_videos_that_there_are_not(truth, tmp_path):
    with pytest.raises(DatasetError, match="no video is called or numbered 'tow'. Did you mean two?"):
        choose_videos(truth, ["tow"], 1)
    with pytest.raises(DatasetError, match="has no videos to show"):
        choose_videos(open_youtube_vis(write(tmp_path / "none.json", [], [])), [], 1)


@pytest.mark.parametrize("text, found", [("3x4", (3, 4)), ("1X1", (1, 1)), ("20x20", (20, 20))])
def test_sheets(text, found):
    assert parse_sheet(text) == found


@pytest.mark.parametrize("text", ["", "3", "0x4", "3x", "x4", "-1x4", "3x4x5", "100x100", "9999x9999", "3 x 4"])
def test_sheets_that_are_none(text):
    with pytest.raises(ConfigError, match="--sheet"):
        parse_sheet(text)


def frames_of(path) -> list[np.ndarray]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("suffix", [".mp4", ".webm", ".mkv"])
def test_video(truth, tmp_path, suffix):
    shown = show_video(truth, [3, 8], tmp_path / f"new/out{suffix}")
    assert (shown.frames, shown.videos, shown.missing) == (7, 2, 0)
    frames = frames_of(tmp_path / f"new/out{suffix}")
    assert len(frames) == 7 and all(frame.shape == (H, W, 3) for frame in frames)
    expected = 0.55 * 0 + 0.45 * np.array(track_color(71))
    assert np.abs(frames[0][45:55, 20:30].mean((0, 1)) - expected).max() < 12
    assert [path.name for path in (tmp_path / "new").iterdir()] == [f"out{suffix}"]


def test_a_sheet_has_a_row_a_video(truth, tmp_path):
    shown = show_sheet(truth, [3, 5, 8], tmp_path / "out.png", 3, 2)
    assert (shown.frames, shown.videos) == (5, 3)       # 2 of "one", the only one of "two", 2 of "three"
    sheet = np.asarray(Image.open(tmp_path / "out.png"))
    height, gap = H + text_size(H, W) + 6, 4          # a line of text is under each frame
    assert sheet.shape == (3 * height + 2 * gap, 2 * W + gap, 3)
    assert (sheet[height + gap : 2 * height + gap, W + gap :] == 255).all()     # where "two" has no second frame
    assert (sheet[5, 5] != 255).any() and (sheet[2 * height + 2 * gap + 20, W + gap + 60] != 255).any()


@pytest.mark.parametrize("rows, columns, frames", [(1, 1, 1), (1, 3, 3), (2, 2, 4), (3, 3, 4)])
def test_a_sheet_of_one_video(truth, tmp_path, rows, columns, frames):
    assert show_sheet(truth, [3], tmp_path / "out.png", rows, columns).frames == frames
    assert show_sheet(truth, [3, 5, 8], tmp_path / "out.png", 1, 2).videos == 2        # beyond the cells: left out


def test_large_frames_are_shrunk(tmp_path):
    videos = [video(1, "wide", 2, 300, 3000), video(2, "tall", 2, 3000, 30)]
    truth = open_youtube_vis(write(tmp_path / "a.json", videos, []))
    show_sheet(truth, [1, 2], tmp_path / "out.png", 2, 2)
    height, width, _ = np.asarray(Image.open(tmp_path / "out.png")).shape
    assert width == 2 * 640 + 4 and height < 250


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "no folder"])
def test_missing_images_are_grey(truth, tmp_path, damage):
    image = tmp_path / "JPEGImages" / "one" / "00005.jpg"
    data = {"empty": b"", "cut": image.read_bytes()[:60], "text": b"no picture"}
    if damage in data:
        image.write_bytes(data[damage])
    else:
        image.unlink()
    if damage == "no folder":
        truth = open_youtube_vis(truth.path, tmp_path / "JPEGImages" / "two")
    one, shown = next(iter(truth)), Shown(truth.path)
    picture = draw_frame(truth, one, 1, shown)
    assert (picture[30, 5] == 96).all()
    assert np.abs(picture[50, 55] - (0.55 * 96 + 0.45 * np.array(track_color(71)))).max() <= 1
    assert (shown.frames, shown.missing) == (1, 1) and "video 3, frame 1: one/00005.jpg" in shown.first_missing


def test_an_image_of_another_size_is_stretched(truth, tmp_path):
    Image.new("RGB", (30, 20), (200, 0, 0)).save(tmp_path / "JPEGImages" / "one" / "00000.jpg", format="PNG")
    one, shown = next(iter(truth)), Shown(truth.path)
    assert draw_frame(truth, one, 0, shown)[90, 5].tolist() == [200, 0, 0] and (shown.resized, shown.missing) == (1, 0)


@pytest.mark.parametrize("name, message", [
    ("a.txt", "cannot be written as '.txt'"), ("a", "cannot be written as ''"), ("file/a.mp4", "cannot be written"),
])  # fmt: skip
def test_where_nothing_can_be_written(truth, tmp_path, name, message):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=message):
        show_video(truth, [3], tmp_path / name)
    with pytest.raises(ConfigError, match="a sheet is a .png"):
        show_sheet(truth, [3], tmp_path / name, 1, 1)


def test_damage_leaves_the_old_file(truth, tmp_path):
    out = tmp_path / "out.mp4"
    out.write_text("old")
    bad = track(1, 3, [box_of(0, 0, 5, 5)]) | {"segmentations": [{"size": [H, W], "counts": "00"}]}
    damaged = open_youtube_vis(write(tmp_path / "bad.json", [video(3, "one", 1, H, W)], [bad]))
    with pytest.raises(DatasetError, match="video 3, annotation 1, frame 0"):
        show_video(damaged, [3], out)
    with pytest.raises(ConfigError, match="rate"):
        show_video(truth, [3], out, fps=0)
    assert out.read_text() == "old" and not list(tmp_path.glob(".*part*"))


def test_real_videos(media, tmp_path):
    truth = open_youtube_vis(media / "annotated" / "instances.json")
    shown = show_sheet(truth, choose_videos(truth, ["composite-dogs"], 1), tmp_path / "out.png", 2, 3)
    assert (shown.frames, shown.missing, shown.resized) == (6, 0, 0)
    assert Image.open(tmp_path / "out.png").width == 3 * 640 + 2 * 4
