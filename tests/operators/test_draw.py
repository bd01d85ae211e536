"""Drawing: every pixel of small hand-drawn frames, labels that stay within, colours that can be told apart."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageCms
from pycocotools import mask as coco

from operators.draw import (
    NUM_COLORS,
    contact_sheet,
    draw_tracks,
    letterbox,
    place_label,
    text_color,
    text_size,
    track_color,
    write_animation,
)
from operators.errors import ConfigError
from operators.formats import Categories
from operators.records import FrameInfo, FrameTracks

CATEGORIES = Categories.numbered(["dog", "a category with a name that does not end"])


def tracks_of(height: int, width: int, *found: tuple) -> FrameTracks:
    """A frame out of (track id, label, score, box) tuples; the mask fills the box."""
    masks = []
    for _, _, _, (x1, y1, x2, y2) in found:
        mask = np.zeros((height, width), np.uint8, order="F")
        mask[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = 1
        encoded = coco.encode(mask)
        masks.append({"size": encoded["size"], "counts": encoded["counts"].decode("ascii")})
    return FrameTracks(
        info=FrameInfo("a", 0, 0.0, height, width),
        track_ids=np.array([f[0] for f in found], np.int64),
        labels=np.array([f[1] for f in found], np.int64),
        scores=np.array([f[2] for f in found], np.float32),
        boxes=np.array([f[3] for f in found], np.float32).reshape(-1, 4),
        masks=tuple(masks),
    )


def grey(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), 100, np.uint8)


def lab_by_littlecms(colors: list[tuple[int, int, int]]) -> np.ndarray:
    """CIELAB by another implementation than ours.  (N, 3)"""
    picture = Image.fromarray(np.array([colors], np.uint8))
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    stored = np.asarray(ImageCms.applyTransform(picture, to_lab))[0]  # L 0..255, a and b as signed bytes
    return np.column_stack([stored[:, 0] / 2.55, stored[:, 1:].astype(np.int8)])


@pytest.mark.parametrize("count, apart", [(8, 50), (20, 28), (NUM_COLORS, 20)])
def test_colors_are_told_apart(count, apart):
    lab = lab_by_littlecms([track_color(i) for i in range(count)])
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=-1)
    assert distance[~np.eye(count, dtype=bool)].min() > apart  # 2.3 is a just noticeable difference


def test_colors_repeat_and_stand_out_from_grey():
    assert track_color(3) == track_color(3 + NUM_COLORS)
    lab = lab_by_littlecms([track_color(i) for i in range(NUM_COLORS)])
    assert np.hypot(lab[:, 1], lab[:, 2]).min() > 30


def test_text_is_readable_on_every_color():
    def luminance(color):
        value = np.array(color) / 255
        return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]

    for track_id in range(NUM_COLORS):
        dark, bright = sorted((luminance(track_color(track_id)), luminance(text_color(track_color(track_id)))))
        assert (bright + 0.05) / (dark + 0.05) >= 4.5
    assert text_color((255, 255, 255)) == (0, 0, 0)
    assert text_color((0, 0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "found",
    [
        pytest.param([], id="no tracks"),
        pytest.param([(0, 0, 0.29, (10, 10, 50, 50))], id="a weak track"),
    ],
)
def test_nothing_to_draw_is_a_plain_copy(found):
    image = grey(60, 80)
    drawn = draw_tracks(image, tracks_of(60, 80, *found), CATEGORIES, min_score=0.3)
    assert drawn is not image and np.array_equal(drawn, image)


def test_mask_outline_and_the_rest():
    image = grey(100, 200)
    drawn = draw_tracks(image, tracks_of(100, 200, (0, 0, 0.9, (80, 40, 120, 90))), CATEGORIES, alpha=0.45)
    color = np.array(track_color(0))
    assert drawn[60, 100].tolist() == np.rint(100 * 0.55 + 0.45 * color).tolist()
    assert drawn[89, 100].tolist() == drawn[60, 80].tolist() == color.tolist()
    outside = np.ones((100, 200), bool)
    outside[:90, 80:] = False
    assert (drawn[outside] == 100).all()
    assert (image == 100).all()


def test_where_masks_overlap_the_best_shows_in_its_own_color():
    found = [(0, 0, 0.9, (20, 60, 60, 90)), (1, 0, 0.8, (20, 60, 100, 90))]
    for order in (found, found[::-1]):
        drawn = draw_tracks(grey(100, 200), tracks_of(100, 200, *order), CATEGORIES, alpha=0.5)
        for x, track_id in ((50, 0), (80, 1)):
            assert drawn[80, x].tolist() == np.rint(50 + 0.5 * np.array(track_color(track_id))).tolist()


def test_a_track_keeps_its_color_whatever_is_beside_it():
    box, other = (60, 50, 100, 90), (540, 60, 580, 90)
    alone = draw_tracks(grey(100, 600), tracks_of(100, 600, (7, 0, 0.9, box)), CATEGORIES)
    beside = draw_tracks(grey(100, 600), tracks_of(100, 600, (2, 1, 0.95, other), (7, 0, 0.5, box)), CATEGORIES)
    assert np.array_equal(alone[50:90, 60:100], beside[50:90, 60:100])


def test_labels_without_scores_are_shorter_and_all_else_is_as_it_was():
    tracks = tracks_of(100, 400, (0, 0, 0.9, (100, 50, 140, 90)))
    with_it, without = (draw_tracks(grey(100, 400), tracks, CATEGORIES, show_scores=s) for s in (True, False))
    widths = [int((picture[:48] != 100).any(axis=(0, 2)).sum()) for picture in (with_it, without)]
    assert widths[0] > widths[1] > 0 and np.array_equal(with_it[50:], without[50:])


def test_thicker_lines_in_larger_frames():
    drawn = draw_tracks(grey(1080, 1920), tracks_of(1080, 1920, (0, 0, 0.9, (300, 300, 900, 900))), CATEGORIES)
    line = (drawn[600, 300:310] == track_color(0)).all(-1)
    assert line.tolist() == [True] * 3 + [False] * 7
    assert [text_size(*size) for size in ((360, 640), (1080, 1920), (1920, 1080), (2, 2))] == [12, 37, 37, 9]


@pytest.mark.parametrize("height, width", [(1, 1), (3, 2), (48, 64), (64, 48), (360, 640)])
@pytest.mark.parametrize(
    "box",
    [(0, 0, 1, 1), (0, 0, 64, 48), (-50, -50, 5, 5), (60, 44, 999, 999), (40, 40, 40, 40), (30, 20, 10, 5)],
    ids=["a pixel", "whole", "out at the left", "out at the right", "no area", "inside out"],
)
def test_any_box_in_any_frame_is_drawn(height, width, box):
    drawn = draw_tracks(grey(height, width), tracks_of(height, width, (0, 1, 0.9, box)), CATEGORIES)
    assert drawn.shape == (height, width, 3)
    assert (drawn == track_color(0)).all(-1).any()


def test_another_size_is_refused():
    with pytest.raises(ValueError, match="80 x 60 pixels, tracks of 60 x 80"):
        draw_tracks(grey(60, 80), tracks_of(80, 60), CATEGORIES)


@pytest.mark.parametrize(
    "box, taken, expected",
    [
        pytest.param((0, 0, 100, 60), [], (0, 0, 30, 10), id="the whole frame"),
        pytest.param((20, 30, 80, 50), [], (20, 20, 50, 30), id="above"),
        pytest.param((20, 4, 80, 50), [], (20, 4, 50, 14), id="no room above: inside"),
        pytest.param((90, 30, 100, 50), [], (70, 20, 100, 30), id="no room at the right: ends with the box"),
        pytest.param((20, 30, 80, 50), [(20, 20, 30, 30)], (50, 20, 80, 30), id="taken: the other end"),
        pytest.param((20, 30, 50, 50), [(0, 20, 99, 30)], (20, 30, 50, 40), id="row taken: inside"),
        pytest.param((20, 30, 50, 50), [(0, 0, 100, 60)], (20, 20, 50, 30), id="all taken: above"),
        pytest.param((98, 0, 100, 5), [], (70, 0, 100, 10), id="in a corner"),
        pytest.param((0, 40, 5, 60), [(0, 30, 30, 40)], (0, 40, 30, 50), id="at an edge, row taken: inside"),
    ],
)
def test_place_label(box, taken, expected):
    assert place_label(box, (30, 10), (100, 60), taken) == expected


def test_a_label_that_fits_nowhere_is_moved_into_the_frame():
    assert place_label((20, 0, 50, 5), (90, 10), (100, 60), []) == (10, 0, 100, 10)
    assert place_label((20, 0, 50, 5), (100, 60), (100, 60), []) == (0, 0, 100, 60)


def test_labels_of_a_crowd_do_not_cover_each_other():
    found = [(i, 0, 0.9 - i / 100, (100 + i, 100 + i, 300, 300)) for i in range(6)]
    drawn = draw_tracks(grey(480, 640), tracks_of(480, 640, *found), CATEGORIES)
    for track_id in range(6):  # a label's background is far more of its colour than an outline and a box are
        assert (drawn == track_color(track_id)).all(-1).sum() > 4 * 200


def test_letterbox_keeps_the_shape():
    image = np.full((10, 20, 3), 255, np.uint8)
    assert letterbox(image, 10, 20) is image
    boxed = letterbox(image, 20, 20)
    assert boxed[:5].max() == 0 and boxed[5:15].min() == 255 and boxed[15:].max() == 0
    assert letterbox(np.full((1, 1000, 3), 255, np.uint8), 4, 4).shape == (4, 4, 3)


def test_contact_sheet():
    red, tall = np.full((4, 6, 3), (255, 0, 0), np.uint8), np.full((8, 6, 3), (0, 0, 255), np.uint8)
    sheet = contact_sheet([red, tall, red], columns=2, gap=2)
    assert sheet.shape == (10, 14, 3)
    assert sheet[:4, :6].tolist() == sheet[6:, :6].tolist() == red.tolist()
    assert sheet[2, 11].tolist() == [0, 0, 255] and sheet[2, 8].tolist() == [0, 0, 0]
    assert (sheet[:, 6:8] == 255).all() and (sheet[6:, 8:] == 255).all()
    assert contact_sheet([red], columns=5).shape == red.shape


@pytest.mark.parametrize("images, columns", [([], 2), ([np.zeros((2, 2, 3), np.uint8)], 0)])
def test_contact_sheet_refuses(images, columns):
    with pytest.raises(ValueError, match="at least one of each"):
        contact_sheet(images, columns)


@pytest.mark.parametrize("name, durations", [("a.webp", [33, 34, 33, 33]), ("a.gif", [30, 40, 30, 30])])
def test_animation_plays_at_its_rate(tmp_path, name, durations):
    frames = [np.full((20, 30, 3), shade, np.uint8) for shade in (0, 80, 160, 240)]
    with Image.open(write_animation(tmp_path / name, iter(frames), fps=30)) as picture:
        assert (picture.n_frames, picture.size, picture.info["loop"]) == (4, (30, 20), 0)
        seen = []
        for i, frame in enumerate(frames):
            picture.seek(i)
            picture.load()
            seen.append(picture.info["duration"])
            assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - frame).max() <= 4
    assert seen == durations
    assert [p.name for p in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    "name, count, fps, says",
    [
        ("a.webp", 0, 10, "0 frames"),
        ("a.gif", 1, 100, "at 100 a second"),
        ("a.png", 1, 10, r"'\.png', expected \.webp or \.gif"),
    ],
)
def test_animation_refuses(tmp_path, name, count, fps, says):
    with pytest.raises(ConfigError, match=says):
        write_animation(tmp_path / name, [grey(2, 2)] * count, fps)
    assert list(tmp_path.iterdir()) == []
