"""MOTS text files: numbers of frames, ids and classes, what is ignored, and lines that are none."""

from __future__ import annotations

import pytest
from PIL import Image
from pycocotools import mask as coco

from operators.datasets import mots
from operators.datasets.mots import open_mots, write_mots
from operators.datasets.truth import open_youtube_vis
from operators.errors import DatasetError
from tests.operators.datasets.small_truth import rectangle, rle, track, video, write

A, B = rectangle(0, 0, 2, 3), rectangle(1, 1, 5, 7)
LINE = f"6 8 {rle(A)['counts']}"


def folder_of(tmp_path, **sequences: str):
    for name, text in sequences.items():
        (tmp_path / f"{name}.txt").write_text(text)
    return tmp_path


def test_an_empty_sequence(tmp_path):
    truth = open_mots(folder_of(tmp_path, a="", b=f"0 1 2 {LINE}\n\n"))
    assert truth.names == {1: "b"} and "their size is not known, left out: 1 (the first: a)" in truth.notes.lines()[0]
    Image.new("RGB", (5, 4)).save(_image(tmp_path, "a", "000000.png"))
    truth = open_mots(tmp_path)
    first, _ = truth
    assert (first.name, first.height, first.width, first.tracks) == ("a", 4, 5, ())


def _image(folder, sequence: str, name: str):
    (folder / "images" / sequence).mkdir(parents=True, exist_ok=True)
    return folder / "images" / sequence / name


def test_read(tmp_path):
    text = f"3 2005 2 {LINE}\n0 2005 2 {LINE}\n1 10000 10 {LINE}\n"
    truth = open_mots(folder_of(tmp_path, b2=f"0 1001 1 {LINE}", b10=text), class_names={2: "pedestrian"})
    assert [(c.id, c.name) for c in truth.categories] == [(1, "class 1"), (2, "pedestrian"), (10, "class 10")]
    two, ten = truth
    assert (two.name, two.length, ten.name, ten.length) == ("b2", 1, "b10", 4)
    assert ten.file_names[3] == "b10/000003.jpg" and (ten.height, ten.width) == (6, 8)
    assert [(t.id, t.category_id, t.iscrowd, [m is not None for m in t.masks]) for t in ten.tracks] == [
        (2005, 2, False, [True, False, False, True]), (10000, 10, True, [False, True, False, False]),
    ]  # fmt: skip
    assert (coco.decode(ten.tracks[0].masks[3]) == A).all()
    assert "regions to be ignored, kept as crowds: 1" in " ".join(truth.notes.lines())


def test_ids_that_sequences_share(tmp_path):
    truth = open_mots(folder_of(tmp_path, a=f"0 7 1 {LINE}\n0 9 1 {LINE}\n", b=f"0 7 2 {LINE}\n"))
    assert [[t.id for t in v.tracks] for v in truth] == [[1, 2], [3]]
    assert "numbered anew" in truth.notes.lines()[0]
    assert [[t.id for t in v.tracks] for v in truth.only({2})] == [[1]]


@pytest.mark.parametrize("images, frames", [
    pytest.param([], [f"a/{n:06d}.jpg" for n in range(4)], id="none: from 0"),
    pytest.param(["000000.png", "000003.png"], [f"a/{n:06d}.png" for n in range(4)], id="two are missing"),
    pytest.param(["0001.jpg", "0002.jpg", "0005.jpg"], [f"a/{n:04d}.jpg" for n in range(1, 6)], id="from 1"),
    pytest.param(["x.jpg"], [f"a/{n:06d}.jpg" for n in range(4)], id="names that are no numbers"),
    pytest.param(["1.jpg", "01.jpg"], [f"a/{n:06d}.jpg" for n in range(4)], id="one number twice"),
])  # fmt: skip
def test_frames_and_images(tmp_path, images, frames):
    for name in images:
        _image(tmp_path, "a", name).touch()
    (only,) = open_mots(folder_of(tmp_path, a=f"1 7 1 {LINE}\n3 7 1 {LINE}"))
    assert list(only.file_names) == frames
    assert [mask is not None for mask in only.tracks[0].masks] == [
        int(name.split("/")[1].split(".")[0]) in (1, 3) for name in frames
    ]


def test_the_seqmap_tells_lengths_and_order(tmp_path):
    folder_of(tmp_path, a=f"0 7 1 {LINE}", b=f"0 8 1 {LINE}")
    (tmp_path / "evaluate_mots.seqmap.val").write_text("b empty 000000 000004\na empty 000000 000000\n")
    assert [(v.name, v.length) for v in open_mots(tmp_path)] == [("b", 5), ("a", 1)]
    (tmp_path / "evaluate_mots.seqmap.val").write_text("b empty 000000 9999999\n")
    with pytest.raises(DatasetError, match="seqmap.val, line 1: is 'b empty"):
        open_mots(tmp_path)


def test_written(tmp_path):
    videos = [video(1, "b", 2), video(2, "a", 3)]
    tracks = [track(30, 1, [A, None], 2), track(12, 1, [B, A], 2), track(5, 1, [B, B], iscrowd=1),
              track(6, 1, [A, None], iscrowd=1)]                                                   # fmt: skip
    path = write(tmp_path / "in.json", videos, tracks)
    write_mots(open_youtube_vis(path), tmp_path / "out")
    assert (tmp_path / "out" / "evaluate_mots.seqmap").read_text() == "b empty 000000 000001\na empty 000000 000002\n"
    lines = (tmp_path / "out" / "instances_txt" / "b.txt").read_text().splitlines()
    both = rle(A | B)["counts"]
    assert lines == [
        f"0 30 2 6 8 {rle(A)['counts']}", f"0 12 2 6 8 {rle(B)['counts']}", f"0 10000 10 6 8 {both}",
        f"1 12 2 6 8 {rle(A)['counts']}", f"1 10000 10 6 8 {rle(B)['counts']}",
    ]  # fmt: skip
    assert (tmp_path / "out" / "instances_txt" / "a.txt").read_text() == ""
    write_mots(open_youtube_vis(path), tmp_path / "by_class", ids="class")
    lines = (tmp_path / "by_class" / "instances_txt" / "b.txt").read_text().splitlines()
    assert [line.split()[1] for line in lines] == ["2000", "2001", "10000", "2001", "10000"]


@pytest.mark.parametrize("changes, message", [
    pytest.param({"id": -3}, "id -3 of class 1; MOTS takes numbers from 0", id="negative id"),
    pytest.param({"id": 10**9}, "MOTS takes numbers from 0 to 999999999", id="id of ten digits"),
    pytest.param({"id": 10000, "category_id": 10}, "is what MOTS ignores", id="the id that is ignored"),
])  # fmt: skip
def test_ids_that_mots_cannot_hold(tmp_path, changes, message):
    path = write(tmp_path / "a.json", [video(1, "v", 1)], [track(1, 1, [A]) | changes], [str(k) for k in range(10)])
    with pytest.raises(DatasetError, match=f"video 1, annotation {changes['id']}.*{message}"):
        write_mots(open_youtube_vis(path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text, message", [
    pytest.param("0 1 1 6 8\n", "line 1: has 5 fields", id="no mask"),
    pytest.param(f"0 1 1 {LINE} 7\n", "line 1: has 7 fields", id="a field more"),
    pytest.param(f"0 1 1 {LINE}\n0 x 1 {LINE}", "line 2: begins with .*expected five whole numbers", id="text id"),
    pytest.param(f"-1 1 1 {LINE}", "line 1: begins with", id="negative frame"),
    pytest.param(f"0 1 1 {LINE}\n1 1 1 4 4 0", "line 2: is of 4 x 4 pixels, the first .* 6 x 8", id="sizes differ"),
    pytest.param("0 1 1 99999999 99999999 0", "expected frames below", id="10^16 pixels"),
    pytest.param("0 1 1 0 8 0", "expected frames below", id="no height"),
    pytest.param(f"99999999 1 1 {LINE}", "frame 99999999 of", id="frame 10^8"),
    pytest.param(f"0 1 1 {LINE}\n1 1 2 {LINE}", "line 2: object 1 is of class 2, before .* 1", id="class changes"),
    pytest.param(f"0 1 1 {LINE}\n0 1 1 {LINE}", "line 2: object 1 has a mask in frame 0 already", id="line twice"),
    pytest.param("0 1 1 6 8 0000", "line 1: counts '0000' are no compressed RLE", id="counts do not fill"),
    pytest.param("0 1 1 6 8 \udcff", "line 1: counts .* are no compressed RLE", id="counts are no text"),
])  # fmt: skip
def test_lines_that_are_none(tmp_path, text, message):
    (tmp_path / "v.txt").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=f"v.txt, {message}" if message.startswith("line") else f"v.txt.*{message}"):
        list(open_mots(tmp_path))


def test_bounds(tmp_path, monkeypatch):
    folder_of(tmp_path, v=f"0 1 1 {LINE}\n9 2 1 {LINE}\n")
    monkeypatch.setattr(mots, "MAX_CELLS", 19)
    with pytest.raises(DatasetError, match="2 objects in 10 frames are more than the 19 places"):
        list(open_mots(tmp_path))
    monkeypatch.setattr(mots, "MAX_LINE", 8)
    with pytest.raises(DatasetError, match="line 1: has 5 fields in 9 bytes"):
        open_mots(tmp_path)
    _image(tmp_path, "v", "999999999.jpg").touch()
    monkeypatch.undo()
    with pytest.raises(DatasetError, match="numbered from 0 to 999999999; expected at most"):
        open_mots(tmp_path)


def test_nothing_there(tmp_path):
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(DatasetError, match="has no MOTS text files"):
            open_mots(path)
    with pytest.raises(DatasetError, match="nowhere: is no folder"):
        open_mots(folder_of(tmp_path, v=""), tmp_path / "nowhere")
