"""Folders of label maps: what is found in which layout, and what is said of what is missing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.davis_data import find_sequences, read_label_map
from operators.errors import DatasetError

BLANK = np.zeros((2, 3), np.uint8)


@pytest.fixture
def folders(tmp_path):
    """Write blank label maps: folders("t/a/00000.png", ...)."""

    def write(*paths: str) -> Path:
        for path in paths:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(BLANK).save(tmp_path / path)
        return tmp_path

    return write


def names(root: Path, truth: str = "t", results: str = "r", **options) -> dict[str, list[str]]:
    found = find_sequences(root / truth, root / results, **options)
    return {sequence.name: [str(path.relative_to(root)) for path in sequence.found] for sequence in found}


def test_plain_folders(folders):
    root = folders("t/b/00000.png", "t/b/00001.png", "t/a/x.png", "r/a/x.png", "r/a/y.png", "r/b/00000.png",
                   "r/b/00001.png", "r/c/00000.png")  # fmt: skip
    assert names(root) == {"a": ["r/a/x.png"], "b": ["r/b/00000.png", "r/b/00001.png"]}


def test_a_davis_folder_takes_the_list_in_its_order(folders):
    masks = [f"t/Annotations_unsupervised/480p/{name}/00000.png" for name in "abc"]
    root = folders(*masks, *(f"r/{name}/00000.png" for name in "abc"))
    assert list(names(root)) == ["a", "b", "c"]                             # without ImageSets all
    for year, subset, lines in (("2017", "val", "c\n\na \nc\n"), ("2019", "test-dev", "b")):
        (root / "t/ImageSets" / year).mkdir(parents=True)
        (root / "t/ImageSets" / year / f"{subset}.txt").write_text(lines)
    assert list(names(root)) == ["c", "a"]
    assert list(names(root, subset="test-dev")) == ["b"]
    with pytest.raises(DatasetError, match="2017/other.txt: there is no such file"):
        names(root, subset="other")


def test_what_a_run_saves_is_found(folders):
    assert names(folders("t/a/00000.png", "r/a/masks/00000.png")) == {"a": ["r/a/masks/00000.png"]}


DAVIS = "t/Annotations_unsupervised/480p"
MISSING = [
    pytest.param([], "", "t: is no folder; expected the ground truth", id="no ground truth"),
    pytest.param(["t/a/0.png"], "", "r: is no folder; expected the results", id="no results"),
    pytest.param(["t/0.png", "r/0.png"], "", "t: holds no folders of sequences", id="frames without a sequence"),
    pytest.param(["t/a/b/0.png", "r/a/0.png"], "", "t/a: holds no PNG label maps", id="a sequence without frames"),
    pytest.param(["t/a/0.png", "r/b/0.png"], "", "r: has no folder for sequence a of", id="a sequence"),
    pytest.param([*(f"t/{s}/0.png" for s in "abcde"), "r/b/0.png"], "", r"4 sequences \(a, c, d, ...\)", id="several"),
    pytest.param(["t/a/0.png", "t/a/1.png", "r/a/0.png"], "", "r/a: has no result for frame 1.png of", id="a frame"),
    pytest.param([f"{DAVIS}/a/0.png", "r/a/0.png"], "b", "480p: has no folder for sequence b that", id="of the list"),
    pytest.param([f"{DAVIS}/a/0.png", "r/a/0.png"], "../a", "has the line '../a'", id="a path in the list"),
    pytest.param([f"{DAVIS}/a/0.png", "r/a/0.png"], " ", "is empty; expected the name", id="empty list"),
    pytest.param(["t/Annotations_unsupervised/Full/a/0.png", "r/a/0.png"], "", "480p: is no folder", id="resolution"),
    pytest.param(["t/Annotations/480p/a/0.png", "r/a/0.png"], "", "without Annotations_unsupervised", id="other task"),
]


@pytest.mark.parametrize("paths, listed, expected", MISSING)
def test_missing(folders, paths, listed, expected):
    root = folders(*paths)
    if listed:
        (root / "t/ImageSets/2017").mkdir(parents=True)
        (root / "t/ImageSets/2017/val.txt").write_text(listed)
    with pytest.raises(DatasetError, match=expected):
        names(root)


def test_an_image_without_its_mask(folders):
    root = folders(f"{DAVIS}/a/00000.png", "r/a/00000.png", "r/a/00001.png")
    for frame in ("00000.jpg", "00001.jpg"):
        (root / "t/JPEGImages/480p/a").mkdir(parents=True, exist_ok=True)
        (root / "t/JPEGImages/480p/a" / frame).touch()
    with pytest.raises(DatasetError, match="480p/a: has no mask for frame 00001 of"):
        names(root)


@pytest.mark.parametrize("mode", ["P", "L", "1", "I;16"])
def test_indexed_images(tmp_path, mode):
    labels = np.array([[0, 1, 1]], np.uint8) if mode == "1" else np.array([[0, 7, 255]], np.uint8)
    image = Image.fromarray(labels.astype({"I;16": np.uint16, "1": bool}.get(mode, np.uint8)))
    if mode == "P":
        image.putpalette([9, 9, 9] * 256)
    assert image.mode == mode
    image.save(tmp_path / "a.png")
    read = read_label_map(tmp_path / "a.png")
    assert read.dtype == np.uint8 and read.tolist() == labels.tolist()


def test_a_palette_of_few_colours_gives_its_numbers(tmp_path):
    image = Image.fromarray(np.array([[0, 3, 2]], np.uint8))
    image.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0, 255, 255, 255])
    image.save(tmp_path / "a.png", bits=2, transparency=0)
    assert read_label_map(tmp_path / "a.png").tolist() == [[0, 3, 2]]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_refused(tmp_path, mode):
    Image.new(mode, (3, 2)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=rf"a.png: is a colour image \({mode}\).* palette PNGs"):
        read_label_map(tmp_path / "a.png")


def test_labels_beyond_a_byte(tmp_path):
    Image.fromarray(np.array([[0, 300]], np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match="holds label 300"):
        read_label_map(tmp_path / "a.png")


def damaged(tmp_path: Path) -> dict[str, bytes]:
    Image.fromarray(np.random.default_rng(0).integers(0, 9, (64, 64)).astype(np.uint8)).save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    Image.new("L", (2, 2)).save(tmp_path / "a.jpg")
    huge = whole[:16] + (60000).to_bytes(4, "big") * 2 + whole[24:]
    return {"empty": b"", "cut": whole[: len(whole) // 2], "header": whole[:20], "text": b"no image at all",
            "jpeg": (tmp_path / "a.jpg").read_bytes(), "huge": huge,
            "flipped": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:]}  # fmt: skip


@pytest.mark.parametrize("name", ["missing", "empty", "cut", "header", "text", "jpeg", "huge", "flipped"])
def test_damaged_files(tmp_path, name):
    path = tmp_path / "broken.png"
    if name != "missing":
        path.write_bytes(damaged(tmp_path)[name])
    with pytest.raises(DatasetError, match="broken.png: .* expected|broken.png: .*Expected|broken.png: .* allowed"):
        read_label_map(path)
