"""DAVIS folders: who is on top, what is void, where sequences and images are found, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

from operators.datasets.davis import annotation_folder, open_davis, paint, read_label_map, write_davis
from operators.datasets.truth import open_youtube_vis
from operators.errors import DatasetError
from operators.formats import davis_palette
from tests.operators.datasets.small_truth import rectangle, rle, track, video, write

LARGE, SMALL = rectangle(0, 0, 6, 6), rectangle(2, 4, 4, 8)


def save(folder: Path, *maps: list[list[int]], mode: str = "P") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for frame, values in enumerate(maps):
        image = Image.fromarray(np.array(values, np.uint8))
        if mode == "P":
            image.putpalette(davis_palette().tobytes())
        image.save(folder / f"{frame:05d}.png")


def paint_slowly(masks: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Pixel by pixel: the smallest mask that has it, the earlier of equal ones; void where only void has it."""
    labels = np.zeros((6, 8), np.uint8)
    for y, x in np.ndindex(6, 8):
        here = [(mask.sum(), k, value) for k, (value, mask) in enumerate(masks) if mask[y, x] and value != 255]
        void = any(mask[y, x] for value, mask in masks if value == 255)
        labels[y, x] = min(here)[2] if here else 255 * void
    return labels


@pytest.mark.parametrize("masks, lost", [
    pytest.param([], 0, id="nothing"),
    pytest.param([(1, LARGE), (2, rectangle(0, 6, 6, 8))], 0, id="side by side"),
    pytest.param([(1, SMALL), (2, LARGE)], 4, id="the small one is on top, though it comes first"),
    pytest.param([(2, LARGE), (1, SMALL)], 4, id="and though it comes last"),
    pytest.param([(1, LARGE), (2, LARGE)], 36, id="the earlier of two alike"),
    pytest.param([(1, LARGE), (255, rectangle(0, 0, 1, 8)), (2, SMALL)], 4, id="void is under everything"),
])  # fmt: skip
def test_paint(masks, lost):
    labels, count = paint([(value, rle(mask)) for value, mask in masks], 6, 8)
    assert (labels == paint_slowly(masks)).all() and count == lost


def test_written_as_davis_lays_it_out(tmp_path):
    videos = [video(1, "b", 2), video(2, "a", 1)]
    tracks = [track(9, 1, [None, SMALL]), track(4, 1, [LARGE, LARGE]), track(5, 1, [None, None])]
    truth = open_youtube_vis(write(tmp_path / "a.json", videos, tracks))
    write_davis(truth, tmp_path / "out")
    root = tmp_path / "out"
    assert (root / "ImageSets" / "2017" / "val.txt").read_text() == "b\na\n"
    folder = root / "Annotations_unsupervised" / "480p"
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*.png")) == ["a/00000.png", "b/00000.png",
                                                                                "b/00005.png"]     # fmt: skip
    with Image.open(folder / "b" / "00005.png") as image:
        assert image.mode == "P" and image.getpalette()[:768] == davis_palette().ravel().tolist()
        assert np.array(image).tolist() == paint_slowly([(1, SMALL), (2, LARGE)]).tolist()
    notes = " ".join(truth.notes.lines())
    assert "objects not in their video's first frame, which the DAVIS evaluation may not look for: 1" in notes
    assert "tracks without a pixel, left out: 1" in notes


@pytest.mark.parametrize("names, renumber, stems", [
    pytest.param(["v/00005.jpg", "v/00010.jpg"], False, ["00005", "00010"], id="kept"),
    pytest.param(["v/00005.jpg", "v/00010.jpg"], True, ["00000", "00001"], id="numbered anew"),
    pytest.param(["v/a.jpg", "v/a.jpg"], False, ["00000", "00001"], id="a still twice"),
    pytest.param(["v/9.jpg", "v/10.jpg"], False, ["00000", "00001"], id="out of order"),
    pytest.param(["v/a b.jpg", "v/c.jpg"], False, ["00000", "00001"], id="no name for a file"),
])  # fmt: skip
def test_frame_numbers(tmp_path, names, renumber, stems):
    path = write(tmp_path / "a.json", [video(1, "v", 2) | {"file_names": names}], [])
    write_davis(open_youtube_vis(path), tmp_path / "out", renumber=renumber)
    assert sorted(p.stem for p in (tmp_path / "out").rglob("*.png")) == stems


def test_255_objects_are_too_many(tmp_path):
    masks = [rectangle(k // 20, k % 20, k // 20 + 1, k % 20 + 1, 20, 20) for k in range(255)]
    for number in (254, 255):
        path = write(tmp_path / "a.json", [video(1, "v", 1, 20, 20)], [track(k, 1, [masks[k]]) for k in range(number)])
        truth = open_youtube_vis(path)
        if number == 254:
            write_davis(truth, tmp_path / "out")
            assert [len(v.tracks) for v in open_davis(tmp_path / "out")] == [254]
        else:
            with pytest.raises(DatasetError, match="video 1 has 255 objects; a DAVIS label map holds at most 254"):
                write_davis(truth, tmp_path / "out2")
            assert not (tmp_path / "out2").exists()


@pytest.mark.parametrize("mode", ["P", "L"])
def test_read(tmp_path, mode):
    save(tmp_path / "cow10", [[0, 3], [3, 0]], [[0, 0], [7, 255]], mode=mode)
    save(tmp_path / "cow9", [[0, 0, 0]], mode=mode)
    (tmp_path / "notes").mkdir()
    truth = open_davis(tmp_path)
    nine, ten = truth
    assert (nine.id, nine.name, nine.width, nine.height, nine.tracks) == (1, "cow9", 3, 1, ())
    assert ten.file_names == ("cow10/00000.jpg", "cow10/00001.jpg")
    assert [(t.id, t.category_id, [m and coco.decode(m).tolist() for m in t.masks]) for t in ten.tracks] == [
        (1, 1, [[[0, 1], [1, 0]], None]), (2, 1, [None, [[0, 0], [1, 0]]]),
    ]  # fmt: skip
    notes = " ".join(truth.notes.lines())
    assert "folders without PNG label maps, left out: 1 (the first: notes)" in notes
    assert "void pixels, left out: 1 (the first: cow10/00001.png)" in notes
    assert "sequences without an object" in notes and "images were not found" in notes
    assert [v.name for v in truth.only({2})] == ["cow10"]


@pytest.mark.parametrize("folder, found", [
    ("Annotations/480p", "Annotations/480p"), ("Annotations_unsupervised/480p", "Annotations_unsupervised/480p"),
    ("Annotations", "Annotations"), ("Annotations/Full-Resolution", "Annotations/Full-Resolution"), ("", ""),
])  # fmt: skip
def test_where_sequences_lie(tmp_path, folder, found):
    save(tmp_path / "set" / folder / "v", [[1]])
    images = tmp_path / "set" / "JPEGImages" / ("480p" if "480p" in folder else "") / "v"
    if folder:
        images.mkdir(parents=True)
        for name in ("00000.jpg", "00001.png"):
            (images / name).touch()
    assert annotation_folder(tmp_path / "set") == tmp_path / "set" / found
    truth = open_davis(tmp_path / "set")
    (only,) = truth
    assert (truth.image(only, 0) == images / "00000.jpg") if folder else truth.image_root is None
    if folder:
        assert truth.notes.lines()[-1] == "images without a label map, left out: 1 (the first: v)."


def test_a_subset(tmp_path):
    for name in "abc":
        save(tmp_path / "Annotations" / name, [[1]])
    listed = tmp_path / "ImageSets" / "2017" / "val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("c\na\n")
    assert list(open_davis(tmp_path, subset="val").names.values()) == ["c", "a"]
    with pytest.raises(DatasetError, match="has no ImageSets/.*/test.txt"):
        open_davis(tmp_path, subset="test")
    listed.write_text("c\n../Annotations/a\n")
    with pytest.raises(DatasetError, match="lists the sequence '../Annotations/a'"):
        open_davis(tmp_path, subset="val")


def test_refused(tmp_path):
    with pytest.raises(DatasetError, match="is no folder"):
        open_davis(tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="has no folders with PNG"):
        open_davis(tmp_path)
    save(tmp_path / "v", [[1]], [[1, 1]])
    with pytest.raises(DatasetError, match="00001.png: is 2 x 1, the first label map of its sequence 1 x 1"):
        list(open_davis(tmp_path))
    Image.new("RGB", (2, 2)).save(tmp_path / "rgb.png")
    with pytest.raises(DatasetError, match="rgb.png: is a PNG of mode RGB"):
        read_label_map(tmp_path / "rgb.png")
    for name, data in {"empty": b"", "text": b"GIF89a", "cut": (tmp_path / "rgb.png").read_bytes()[:40]}.items():
        (tmp_path / f"{name}.png").write_bytes(data)
        with pytest.raises(DatasetError, match=f"{name}.png: cannot be read as a PNG"):
            read_label_map(tmp_path / f"{name}.png")
    huge = tmp_path / "huge.png"
    Image.new("1", (60000, 5000)).save(huge)
    with pytest.raises(DatasetError, match="huge.png: "):
        read_label_map(huge)
