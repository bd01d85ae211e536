"""Open Images: masks of another size than their image, folders of archives, classes, missing images, damage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from operators.datasets.coco import read_stills
from operators.datasets.convert import ConvertOptions, convert
from operators.datasets.open_images import open_open_images
from operators.errors import DatasetError
from pipelines.cli import main

HEADER = "MaskPath,ImageID,LabelName,BoxID,BoxXMin,BoxXMax,BoxYMin,BoxYMax,PredictedIoU,Clicks"
NAMES = "LabelName,DisplayName\n/m/01,Woman\n/m/02,Computer mouse\n/m/03,Polar bear\n"
LINES = [
    "b1_m01_x.png,b1,/m/01,x,0.0,0.5,0.25,1.0,0.9,",
    "a7_m03_y.png,a7,/m/03,y,0.25,1.0,0.0,0.5,0.8,0.1 0.2 1",
    "a7_m02_z.png,a7,/m/02,z,0,1,0,1,0.8,",
    "c0_m01_w.png,c0,/m/01,w,0,1,0,1,0.8,",
]
MASK = np.array([[0, 1, 1], [0, 0, 1]], bool)
"""2 x 3, of an image of 4 x 6."""


def save_mask(path, mask: np.ndarray, mode: str = "1") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask.astype(np.uint8) * (255 if mode != "P" else 1)).convert(mode).save(path)


@pytest.fixture
def csv(tmp_path):
    """Two images of three, their masks in two unpacked archives."""
    path = tmp_path / "train-annotations-object-segmentation.csv"
    path.write_text("\n".join([HEADER, *LINES]) + "\n")
    (tmp_path / "class-descriptions-boxable.csv").write_text(NAMES)
    (tmp_path / "train").mkdir()
    for image in ("a7", "b1"):
        Image.fromarray(np.full((4, 6, 3), 99, np.uint8)).save(tmp_path / "train" / f"{image}.jpg")
    save_mask(tmp_path / "masks" / "train-masks-b" / "b1_m01_x.png", MASK)
    save_mask(tmp_path / "masks-a" / "a7_m03_y.png", np.ones((9, 9), bool), "L")
    save_mask(tmp_path / "masks-a" / "a7_m02_z.png", np.zeros((4, 6), bool), "L")
    return path


def test_a_csv_of_no_mask(csv):
    csv.write_text(HEADER + "\n")
    truth = open_open_images(csv)
    assert list(truth) == [] and truth.categories == () and truth.num_videos == 0


def test_images_and_masks(csv):
    """By rising image id; masks brought to 4 x 6 by nearest: each pixel of 2 x 3 becomes 2 x 2. Boxes in pixels."""
    truth = open_open_images(csv)
    assert [(c.id, c.name) for c in truth.categories] == [(1, "Woman"), (2, "Computer mouse"), (3, "Polar bear")]
    seven, one = list(truth)
    assert (seven.id, seven.name, seven.file_names, seven.width, seven.height) == (1, "a7", ("a7.jpg",), 6, 4)
    assert truth.image(one, 0) == csv.parent / "train" / "b1.jpg" and truth.image(one, 0).is_file()
    assert [(t.id, t.category_id, t.iscrowd) for t in (*seven.tracks, *one.tracks)] == [
        (2, 3, False), (3, 2, False), (1, 1, False)]  # fmt: skip
    assert (coco.decode(one.tracks[0].masks[0]) == np.kron(MASK, np.ones((2, 2)))).all()
    assert one.tracks[0].bboxes == ([0.0, 1.0, 3.0, 3.0],) and one.tracks[0].areas == (12,)
    assert coco.area(seven.tracks[0].masks[0]) == 24 and seven.tracks[0].bboxes == ([1.5, 0.0, 4.5, 2.0],)
    assert seven.tracks[1].areas == (None,), "no pixel"
    assert [line for line in truth.notes.lines() if "not there" in line] == [
        "images that are not there, left out with their masks: 1 (the first: c0.jpg)."]  # fmt: skip


@pytest.mark.parametrize("start, end", [
    pytest.param("", "\n", id="V4 and V5: no header"), pytest.param("id,name\n", "\n", id="V6"),
    pytest.param("LabelName,DisplayName\r\n", "\r\n", id="V7, with ends of lines of another system"),
    pytest.param("\ufeff", "\n", id="saved by a spreadsheet"),
])  # fmt: skip
def test_names_of_classes_as_the_versions_write_them(csv, start, end):
    """A name with a comma is quoted; labels begin with /m/ or, since V6, /g/."""
    lines = ["/m/01,Woman", '/m/02,"Mouse, of a computer"', "/m/03,Jaguar (Animal)", "/g/11_x,Panda"]
    (csv.parent / "class-descriptions-boxable.csv").write_bytes((start + end.join(lines) + end).encode())
    csv.write_bytes(("\ufeff" * (start == "\ufeff") + csv.read_text().replace("/m/01,x", "/g/11_x,x")).encode())
    truth = open_open_images(csv)
    assert [(c.id, c.name) for c in truth.categories] == [
        (1, "Woman"), (2, "Mouse, of a computer"), (3, "Jaguar (Animal)"), (4, "Panda")]  # fmt: skip
    assert [t.category_id for video in truth for t in video.tracks] == [3, 2, 4]


def test_nearest_by_an_independent_count(csv):
    """5 x 7 to 4 x 6: pixel j looks at floor((j + 0.5) * 5 / 4), at floor((j + 0.5) * 7 / 6)."""
    mask = np.random.default_rng(0).random((5, 7)) < 0.5
    save_mask(csv.parent / "masks" / "train-masks-b" / "b1_m01_x.png", mask)
    found = coco.decode(list(open_open_images(csv))[1].tracks[0].masks[0])
    expected = [[mask[int((y + 0.5) * 5 / 4), int((x + 0.5) * 7 / 6)] for x in range(6)] for y in range(4)]
    assert (found == np.array(expected)).all()


def test_classes_that_training_takes_as_a_json_of_coco(csv, tmp_path, capsys):
    out = tmp_path / "open.json"
    assert main(["dataset", "convert", str(csv), str(out), "--from", "open-images", "--to", "coco", "--mapped"]) == 0
    assert "images that are not there" in capsys.readouterr().out
    raw = json.loads(out.read_text())
    assert [c["name"] for c in raw["categories"]] == ["Woman", "Polar bear"]
    stills = read_stills(out, csv.parent)
    assert [v.file_names for v in stills.videos] == [("train/a7.jpg",), ("train/b1.jpg",)]
    assert [(a.video_id, a.category_id) for a in stills.annotations] == [(1, 3), (2, 1)]


def test_some_videos_alone_keep_their_ids(csv):
    (one,) = open_open_images(csv).only([2])
    assert (one.id, one.name, one.tracks[0].id) == (2, "b1", 1)


def broken(line: str, **changes: str) -> str:
    parts = dict(zip(HEADER.split(","), line.split(","), strict=True)) | changes
    return ",".join(parts.values())


@pytest.mark.parametrize("lines, message", [
    pytest.param(["nothing"], "has no column MaskPath, ImageID", id="another CSV"),
    pytest.param([HEADER, "a,b"], "line 2: has 2 values, the header 10", id="cut short"),
    pytest.param([HEADER, broken(LINES[0], LabelName="/m/99")], "which no class has", id="unknown class"),
    pytest.param([HEADER, broken(LINES[0], MaskPath="../../x.png")], "names of files without folders", id="leads out"),
    pytest.param([HEADER, broken(LINES[0], ImageID="/etc/x")], "names of files without folders", id="image leads out"),
    pytest.param([HEADER, broken(LINES[0], BoxXMax="nan")], "the box is 0.0, nan", id="a box that is none"),
    pytest.param([HEADER, broken(LINES[0], BoxYMin="0.9", BoxYMax="0.1")], "rising", id="a box the wrong way round"),
    pytest.param([HEADER, broken(LINES[1], MaskPath="a7_gone.png")], "mask a7_gone.png is in none", id="no such mask"),
])  # fmt: skip
def test_what_cannot_be_used(csv, lines, message):
    csv.write_text("\n".join(lines) + "\n")
    with pytest.raises(DatasetError, match=message):
        list(open_open_images(csv))


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut"], ids=["empty", "no image", "cut"])
def test_masks_and_images_that_are_damaged(csv, content):
    (csv.parent / "masks" / "train-masks-b" / "b1_m01_x.png").write_bytes(content)
    with pytest.raises(DatasetError, match="b1_m01_x.png: is no mask that can be read"):
        list(open_open_images(csv))
    (csv.parent / "train" / "a7.jpg").write_bytes(content)
    with pytest.raises(DatasetError, match="a7.jpg: is no image that can be read"):
        list(open_open_images(csv))


def test_without_the_names_of_classes(csv):
    (csv.parent / "class-descriptions-boxable.csv").write_text("id,name\n")
    with pytest.raises(DatasetError, match="names no class"):
        open_open_images(csv)
    (csv.parent / "class-descriptions-boxable.csv").write_text("/m/01,Woman\n/m/02,Mouse, of a computer\n")
    with pytest.raises(DatasetError, match="'/m/02,Mouse, of a computer' has 3 values, expected a label and a name"):
        open_open_images(csv)
    (csv.parent / "class-descriptions-boxable.csv").unlink()
    with pytest.raises(DatasetError, match="has no .*class-descriptions.*csv"):
        convert(csv, csv.parent / "o.json", "open-images", "coco", ConvertOptions())
