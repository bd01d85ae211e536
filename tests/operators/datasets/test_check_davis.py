"""Label maps of DAVIS: a small sound folder, one thing wrong at a time."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.datasets.check import find_faults, open_dataset
from operators.errors import DatasetError
from operators.formats import davis_palette

MAPS, IMAGES = "Annotations_unsupervised/480p", "JPEGImages/480p"


def write_map(path: Path, values: list[int], size: tuple[int, int] = (12, 8), mode: str = "P") -> None:
    """A label map of (width, height) with a column for each value, background elsewhere."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    pixels[:, : len(values)] = values
    image = Image.fromarray(pixels)
    if mode == "P":
        image.putpalette(davis_palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    (image if mode in "PL" else image.convert(mode)).save(path)


def write_sound(root: Path, maps: str = MAPS, images: str | None = IMAGES) -> Path:
    """Sequences bear (objects 1, 2) and dog (1, 2, 3), 4 frames each."""
    for name, values in {"bear": [1, 2], "dog": [1, 2, 3]}.items():
        for frame in range(4):
            write_map(root / maps / name / f"{frame:05d}.png", values)
            if images is not None:
                path = root / images / name / f"{frame:05d}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (12, 8)).save(path)
    if images is not None:
        (root / "ImageSets/2017").mkdir(parents=True)
        (root / "ImageSets/2017/val.txt").write_text("bear\ndog\n")
        (root / "ImageSets/2016").mkdir()
        (root / "ImageSets/2016/val.txt").write_text("/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/0.png\n")
    return root


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    return write_sound(tmp_path_factory.mktemp("davis"))


def places(path: Path, **how) -> list[tuple]:
    return [(f.kind, f.video, f.annotation_id, f.frame) for f in find_faults(open_dataset(path), **how)]


def dog(frame: int, *values: int, **how):
    return lambda root: write_map(root / MAPS / f"dog/{frame:05d}.png", list(values), **how)


def all_dogs(*values: int):
    return lambda root: [dog(frame, *values)(root) for frame in range(4)]


def cut(name: str, num_bytes: int):
    def change(root: Path) -> None:
        (root / name).write_bytes((root / name).read_bytes()[:num_bytes])

    return change


@pytest.mark.parametrize(("damage", "expected"), [
    pytest.param(lambda root: None, [], id="sound"),
    pytest.param(lambda root: (root / MAPS / "dog/00002.png").unlink(), [("label-map-missing", "dog", None, 2)],
                 id="a label map is missing"),
    pytest.param(lambda root: (root / MAPS / "dog/00000.png").unlink(), [("label-map-missing", "dog", None, 0)],
                 id="the first label map is missing"),
    pytest.param(lambda root: [path.unlink() for path in (root / MAPS / "dog").iterdir()],
                 [("sequence-empty", "dog", None, None)], id="no label map"),
    pytest.param(lambda root: (root / IMAGES / "dog/00002.jpg").unlink(), [("image-missing", "dog", None, 2)],
                 id="an image is missing"),
    pytest.param(lambda root: shutil.rmtree(root / IMAGES / "dog"), [("image-missing", "dog", None, None)],
                 id="no images of a sequence"),
    pytest.param(lambda root: shutil.rmtree(root / MAPS / "dog"), [("sequence-missing", "dog", None, None)],
                 id="a listed sequence is missing"),
    pytest.param(dog(1, 1, 2, 3, mode="RGB"), [("label-map-mode", "dog", None, 1)], id="RGB"),
    pytest.param(dog(1, 1, 2, 3, mode="RGBA"), [("label-map-mode", "dog", None, 1)], id="RGBA"),
    pytest.param(dog(1, 1, 2, 3, mode="L"), [("label-map-grey", "dog", None, 1)], id="grey"),
    pytest.param(dog(1, 1, 2, 3, size=(12, 9)), [("label-map-size", "dog", None, 1)], id="another size"),
    pytest.param(cut(f"{MAPS}/dog/00001.png", 60), [("label-map-unreadable", "dog", None, 1)], id="a cut label map"),
    pytest.param(cut(f"{MAPS}/dog/00001.png", 0), [("label-map-unreadable", "dog", None, 1)], id="an empty file"),
    pytest.param(cut(f"{IMAGES}/dog/00001.jpg", -3), [("image-damaged", "dog", None, 1)], id="a cut image"),
    pytest.param(lambda root: Image.new("RGB", (8, 12)).save(root / IMAGES / "dog/00003.jpg"),
                 [("image-size", "dog", None, 3)], id="an image of another size"),
    pytest.param(dog(2, 1, 2, 3, 4, 7), [("object-appears-later", "dog", 4, 2), ("object-appears-later", "dog", 7, 2)],
                 id="objects that appear later"),
    pytest.param(all_dogs(1, 3), [("object-never-seen", "dog", 2, None)], id="an object that is never seen"),
    pytest.param(dog(0, 1, 3), [], id="an object between that appears later counts"),
    pytest.param(dog(0), [("first-frame-empty", "dog", None, 0)], id="nothing in the first frame"),
    pytest.param(dog(1, 1, 255), [("void-pixels", "dog", None, 1)], id="void"),
    pytest.param(all_dogs(255), [("only-void", "dog", None, 0)], id="DAVIS 2016: 0 and 255"),
    pytest.param(lambda root: (dog(1, 1, 2, 3, 4)(root), (root / MAPS / "bear/00003.png").unlink()),
                 [("label-map-missing", "bear", None, 3), ("object-appears-later", "dog", 4, 1)], id="two sequences"),
])  # fmt: skip
def test_faults(damage, expected, sound, tmp_path):
    root = shutil.copytree(sound, tmp_path / "davis")
    damage(root)
    assert places(root) == expected
    for fault in find_faults(open_dataset(root)):
        assert str(root) in fault.file and fault.found and fault.expected


@pytest.mark.parametrize(("maps", "images"), [
    pytest.param(".", None, id="plain folders"),
    pytest.param("Annotations", None, id="no size"),
    pytest.param("Annotations/480p", "JPEGImages/480p", id="DAVIS 2017"),
    pytest.param("Annotations/Full-Resolution", "JPEGImages/Full-Resolution", id="full resolution"),
    pytest.param("Annotations", "JPEGImages", id="images without size"),
])  # fmt: skip
def test_layouts(maps, images, tmp_path):
    root = write_sound(tmp_path / "davis", maps, images)
    dataset = open_dataset(root)
    assert dataset.labels == root / maps and dataset.images == (None if images is None else root / images)
    assert [sequence.name for sequence in dataset.sequences] == ["bear", "dog"]
    assert dataset.layout == "davis" and "2 sequences of 8 label maps" in dataset.summary
    assert places(root) == []


def test_unsupervised_annotations_come_first(tmp_path):
    root = write_sound(tmp_path, "Annotations/480p")
    write_map(root / MAPS / "bear/00000.png", [1])
    assert open_dataset(root).labels == root / MAPS


def test_a_gap_in_the_numbers_shows_without_images(tmp_path):
    for frame in (0, 4, 8, 16, 20):                                     # every fourth frame is stored; 12 is missing
        write_map(tmp_path / f"dog/{frame:05d}.png", [1])
    (fault,) = find_faults(open_dataset(tmp_path))
    assert (fault.kind, fault.frame, fault.found) == ("label-map-missing", 3, "nothing between 00008 and 00016")


def test_progress_counts_maps_and_images(sound):
    told = []
    places(sound, progress=lambda done, total: told.append((done, total)))
    assert told == [(8, 16), (16, 16)]


def test_a_folder_with_annotations_says_to_name_the_file(tmp_path):
    (tmp_path / "train.json").write_text("{}")
    with pytest.raises(DatasetError, match="name the file, such as .*train.json"):
        open_dataset(tmp_path)


def test_real_label_maps(media):
    faults = places(media / "annotated")
    assert faults == [
        ("object-appears-later", "composite-dogs", 4, 4), ("object-appears-later", "composite-dogs", 5, 10),
        ("sequence-empty", "crossing", None, None), ("void-pixels", "tennis", None, 0),
    ]  # fmt: skip
