from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from operators.errors import DatasetError, SourceError
from operators.folders import natural_key
from operators.sources import Source, UnusableSource, find_sources, probe, safe_name, version_of
from tests.operators.small_videos import X264, write_sound, write_video

NO_B = {**X264, "bf": "0"}
UNEVEN = [0, 10, 11, 12]


def touch(path: Path, data: bytes = b"data") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def ytvis(path: Path, videos: dict[int, list[str]], **more) -> Path:
    """A YouTube-VIS file without annotations."""
    entries = [
        {"id": i, "width": 8, "height": 6, "length": len(names), "file_names": names} for i, names in videos.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"videos": entries, "categories": [{"id": 1, "name": "dog"}], **more}))
    return path


def test_no_argument_gives_nothing():
    assert find_sources([]) == ([], [])


def test_a_video_and_a_folder_in_the_order_given(tmp_path):
    video = touch(tmp_path / "b.mp4")
    for name in ("frame10.jpg", "frame2.JPG", "frame1.png", "._frame1.png", "notes.txt", "sub/frame3.jpg"):
        touch(tmp_path / "a" / name)
    sources, errors = find_sources([str(video), str(tmp_path / "a")])
    assert errors == []
    assert sources[0] == Source("b", "video", str(video))
    assert sources[1] == Source("a", "images", str(tmp_path / "a"), ("frame1.png", "frame2.JPG", "frame10.jpg"))
    assert pickle.loads(pickle.dumps(sources)) == sources


def test_relative_paths_become_absolute(tmp_path, monkeypatch):
    touch(tmp_path / "b.mp4")
    monkeypatch.chdir(tmp_path)
    (source,), _ = find_sources(["b.mp4"])
    assert source.path == str(tmp_path / "b.mp4")


@pytest.mark.parametrize(
    "paths, names",
    [
        pytest.param(["a/v.mp4", "b/v.mp4", "c/v.mkv"], ["v", "v-2", "v-3"], id="three of one name"),
        pytest.param(["v.mp4", "v-2.mp4", "a/v.mp4"], ["v", "v-2", "v-3"], id="the number is taken"),
        pytest.param(["V.mp4", "a/v.mp4"], ["V", "v-2"], id="capitals apart"),
        pytest.param(["v.mp4", "v.mp4"], ["v", "v-2"], id="the same file twice"),
        pytest.param(["...mp4", "a b:c.mp4", "\u00fcber.mp4"], ["source", "a_b_c", "\u00fcber"], id="odd names"),
    ],
)
def test_names_are_unique_and_safe(tmp_path, paths, names):
    sources, errors = find_sources([str(touch(tmp_path / path)) for path in paths])
    assert [source.name for source in sources] == names and errors == []


@pytest.mark.parametrize(
    "name, safe",
    [
        ("", "source"), (".", "source"), ("..", "source"), ("../x", "_x"), ("/etc", "_etc"), ("a/b\\c", "a_b_c"),
        ("a\0b\n", "a_b_"), (".hidden", "hidden"), ("clip.v2", "clip.v2"), ("\udcff", "_"), ("x" * 500, "x" * 120),
        ("\u20ac" * 3, "___"), ("\u732b" * 100, "\u732b" * 40),
    ],
)  # fmt: skip
def test_safe_name(name, safe):
    assert safe_name(name) == safe


@pytest.mark.parametrize(
    "names",
    [
        pytest.param([], id="none"),
        pytest.param(["frame2", "frame10", "frame100"], id="numbers by value"),
        pytest.param(["01", "1", "2"], id="equal numbers"),
        pytest.param(["1.jpg", "a1b2", "a1b10", "a2b1"], id="several numbers"),
    ],
)
def test_natural_order(names):
    assert sorted(names[::-1], key=natural_key) == names


BAD_ARGUMENTS = {
    "nothing": (lambda folder: "", "no path"),
    "a zero byte": (lambda folder: "a\0b", "no path"),
    "missing": (lambda folder: str(folder / "none.mp4"), "does not exist"),
    "empty file": (lambda folder: str(touch(folder / "e.mp4", b"")), "is empty (0 bytes)"),
    "empty folder": (lambda folder: str(touch(folder / "f" / "x.txt").parent), "folder without images"),
    "only folders in it": (lambda folder: str(touch(folder / "g" / "dog" / "0.jpg").parent.parent), "such as 'dog'"),
    "one image": (lambda folder: str(touch(folder / "0.jpg")), "single image"),
    "an address": (lambda folder: "rtsp://camera/1", "is an address"),
    "a pattern of nothing": (lambda folder: f"{folder}/none/*.mp4", "matches nothing"),
    "a pattern of text": (lambda folder: str(touch(folder / "t" / "x.txt").parent / "*"), "no video and no folder"),
    "a pipe": (lambda folder: pipe(folder / "p.mp4"), "neither a file nor a folder"),
}


def pipe(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_a_bad_argument_is_an_error_and_the_others_are_found(tmp_path, case):
    make, says = BAD_ARGUMENTS[case]
    argument = make(tmp_path)
    good = str(touch(tmp_path / "good.mp4"))
    sources, errors = find_sources([argument, good])
    assert [source.path for source in sources] == [good]
    (error,) = errors
    assert isinstance(error, SourceError) and not isinstance(error, DatasetError)
    assert error.source == argument and says in str(error) and repr(argument) in str(error)
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.source, str(copy)) == (UnusableSource, argument, str(error))


def names_of(sources: list[Source]) -> list[str]:
    return [source.name for source in sources]


TREE = ["clip10.mp4", "clip2.MKV", "notes.txt", ".hidden.mp4", "still.jpg", "data.bin", "day/clip1.webm",
        "day/deep/clip3.mp4", "day/frames/1.jpg", "day/frames/0.jpg", "day/none/x.txt"]  # fmt: skip


@pytest.mark.parametrize("pattern, names", [
    pytest.param("*.mp4", ["clip10"], id="by suffix"),
    pytest.param("*", ["clip2", "clip10"], id="videos alone, in natural order"),
    pytest.param("**/*.mp4", ["clip10", "clip3"], id="of any depth"),
    pytest.param("**", ["clip2", "clip10", "clip1", "clip3", "frames"], id="folders of images too"),
    pytest.param("day/*", ["clip1", "frames"], id="no folder without images"),
    pytest.param("*.bin", ["data"], id="another suffix, which is asked for"),
    pytest.param("clip[0-9].*", ["clip2"], id="one letter"),
])
def test_a_pattern_gives_videos_and_folders_of_images(tmp_path, monkeypatch, pattern, names):
    root = tmp_path / "in"
    for name in TREE:
        touch(root / name)
    if pattern == "**":      # the folder itself has an image: it is one of the matches
        (root / "still.jpg").unlink()
    monkeypatch.chdir(root)
    sources, errors = find_sources([pattern])
    assert errors == [] and names_of(sources) == names
    assert all(os.path.isabs(source.path) for source in sources)
    assert find_sources([str(root / pattern)])[0] == find_sources([f"file://{root}/{pattern}"])[0] == sources


def test_a_file_with_wildcards_in_its_name_is_that_file(tmp_path):
    for name in ("a[1].mp4", "a1.mp4"):
        touch(tmp_path / name)
    ((source,), errors) = find_sources([str(tmp_path / "a[1].mp4")])
    assert errors == [] and source.path == str(tmp_path / "a[1].mp4")


def test_a_folder_without_images_gives_its_videos(tmp_path):
    for name in ("clip10.mp4", "clip2.mkv", "notes.txt", "deep/clip3.mp4"):
        touch(tmp_path / name)
    sources, errors = find_sources([str(tmp_path)])
    assert errors == [] and [(s.name, s.kind) for s in sources] == [("clip2", "video"), ("clip10", "video")]


def test_a_source_knows_when_its_file_was_written_again(tmp_path):
    path = touch(tmp_path / "v.mp4")
    ((before,), _), _ = find_sources([str(path)]), touch(path, b"other!")
    ((after,), _) = find_sources([str(path)])
    assert before == after and before.version != after.version == version_of(after)


@pytest.mark.parametrize("name", ["manifest.json", "results.json", "failed.json", "unfinished"])
def test_no_source_is_called_as_what_a_run_writes(tmp_path, name):
    ((source,), _) = find_sources([str(touch(tmp_path / f"{name}.mp4"))])
    assert source.name == f"{name}-2"


def test_each_video_of_a_dataset_is_a_source(tmp_path):
    names = {7: ["cat/0.jpg", "cat/1.jpg"], 3: ["dog/5.jpg"], 9: ["deep/dog/1.jpg"], 11: ["0.jpg"]}
    path = ytvis(tmp_path / "set.json", names)
    for frames in names.values():
        for frame in frames:
            touch(tmp_path / frame)
    sources, errors = find_sources([str(path)])
    assert errors == []
    assert [(s.name, s.video_id, s.files) for s in sources] == [
        ("dog", 3, ("dog/5.jpg",)),
        ("cat", 7, ("cat/0.jpg", "cat/1.jpg")),
        ("dog-2", 9, ("deep/dog/1.jpg",)),
        ("video_11", 11, ("0.jpg",)),
    ]
    assert {s.path for s in sources} == {str(tmp_path)} and {s.fps for s in sources} == {6.0}


@pytest.mark.parametrize(
    "place, image_root",
    [
        pytest.param("x", None, id="beside the JSON"),
        pytest.param("x/JPEGImages", None, id="in JPEGImages beside it"),
        pytest.param("elsewhere", "elsewhere", id="as named"),
    ],
)
def test_where_images_are_looked_for(tmp_path, place, image_root):
    path = ytvis(tmp_path / "x/set.json", {1: ["a/0.jpg"]})
    touch(tmp_path / place / "a/0.jpg")
    sources, errors = find_sources([str(path)], image_root=image_root and str(tmp_path / image_root))
    assert errors == [] and [source.path for source in sources] == [str(tmp_path / place)]


def test_a_named_image_root_is_the_only_one(tmp_path):
    path = ytvis(tmp_path / "set.json", {1: ["a/0.jpg"]})
    touch(tmp_path / "a/0.jpg")
    (tmp_path / "other").mkdir()
    sources, (error,) = find_sources([str(path)], image_root=str(tmp_path / "other"))
    assert sources == [] and str(tmp_path / "other") in str(error) and "--image-root" in str(error)


def test_videos_without_images_are_one_error_and_the_others_are_found(tmp_path):
    path = ytvis(tmp_path / "set.json", {1: ["a/0.jpg", "a/1.jpg"], 2: ["b/0.jpg"], 3: ["c/0.jpg"]})
    for name in ("a/0.jpg", "b/0.jpg"):
        touch(tmp_path / name)
    sources, (error,) = find_sources([str(path)])
    assert [source.video_id for source in sources] == [2]
    assert isinstance(error, DatasetError) and error.source == str(path)
    assert "2 of 3 videos" in str(error) and "video 1: a/1.jpg is missing" in str(error)


@pytest.mark.parametrize(
    "content, says",
    [
        pytest.param("", "not valid JSON", id="empty"),
        pytest.param("{", "not valid JSON", id="cut"),
        pytest.param("[" * 100_000, "not valid JSON", id="too deep"),
        pytest.param("[]", "holds a list", id="results"),
        pytest.param('{"images": [], "annotations": []}', "videos is missing", id="COCO images"),
        pytest.param('{"videos": [], "categories": []}', "lists no videos", id="no videos"),
        pytest.param('{"videos": [{"id": 1}], "categories": []}', "videos[0]", id="a video without fields"),
    ],
)
def test_a_json_that_is_no_dataset(tmp_path, content, says):
    path = touch(tmp_path / "set.json", content.encode())
    sources, (error,) = find_sources([str(path)])
    assert sources == [] and isinstance(error, DatasetError) and isinstance(error, SourceError)
    assert error.exit_code == 2 and says in str(error) and "set.json" in str(error)


@pytest.mark.parametrize("name", ["../x.jpg", "/etc/passwd", "a/../../x.jpg", "a\\..\\x.jpg", "C:/x.jpg", "."])
def test_image_paths_stay_inside_the_root(tmp_path, name):
    path = ytvis(tmp_path / "in/set.json", {1: [name]})
    touch(tmp_path / "x.jpg")
    sources, (error,) = find_sources([str(path)])
    assert sources == [] and isinstance(error, DatasetError) and name in str(error)


def test_the_real_dataset(media):
    sources, errors = find_sources([str(media / "annotated/instances.json")])
    assert errors == [] and len(sources) == 8
    assert sources[0].name == "dog" and len(sources[0].files) == 60
    info = probe(sources[0])
    assert (info.width, info.height, info.num_frames) == (854, 480, 60)


def video(path: Path) -> Source:
    return Source(path.stem, "video", str(path))


@pytest.mark.parametrize(
    "name, codec, settings, expected",
    [
        pytest.param("a.mp4", "libx264", {"count": 1}, (96, 64, 20.0, 1, "h264"), id="one frame"),
        pytest.param("a.mp4", "libx264", {"options": {**X264, "bf": "3"}}, (96, 64, 20.0, 20, "h264"), id="B-frames"),
        pytest.param("a.webm", "libvpx-vp9", {}, (96, 64, 20.0, 20, "vp9"), id="count by duration"),
        pytest.param("a.ts", "mpeg2video", {"rate": 25}, (96, 64, 25.0, None, "mpeg2video"), id="count not known"),
        pytest.param("a.mp4", "libx264", {"matrix": [0, 1, 0, -1, 0, 0, 0, 0, 1]}, (64, 96, 20.0, 20, "h264"),
                     id="turned"),
        pytest.param("a.mp4", "libx264", {"ticks": UNEVEN, "count": 4, "options": NO_B}, (96, 64, 6.15, 4, "h264"),
                     id="variable rate"),
    ],
)
def test_probe_of_a_video(tmp_path, name, codec, settings, expected):
    info = probe(video(write_video(tmp_path / name, codec, **settings)))
    assert (info.width, info.height, info.num_frames, info.codec) == (*expected[:2], *expected[3:])
    assert info.fps == pytest.approx(expected[2], rel=0.01)


def test_probe_finds_the_rate_where_the_header_has_a_clock(media):
    for name in ("man.mkv", "man.flv", "man_fragmented.mp4"):
        assert probe(video(media / "videos" / name)).fps == pytest.approx(29.97, rel=0.002)


def test_probe_takes_no_cover_picture_for_a_video(tmp_path):
    path = write_sound(tmp_path / "song.m4a", cover=True)
    with pytest.raises(SourceError, match="no video stream, only a cover picture and audio"):
        probe(video(path))


def test_probe_names_a_codec_that_nobody_knows(tmp_path):
    path = write_video(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes().replace(b"avc1", b"zzzz"))
    with pytest.raises(SourceError, match="codec that the installed FFmpeg does not know"):
        probe(video(path))


def test_probe_refuses_frames_that_are_too_large(tmp_path, monkeypatch):
    path = write_video(tmp_path / "a.mp4")
    monkeypatch.setattr("operators.probe.MAX_PIXELS", 96 * 64 - 1)
    with pytest.raises(SourceError, match="96 x 64"):
        probe(video(path))


def test_probe_opens_no_second_file(tmp_path):
    touch(tmp_path / "list.mp4", f"ffconcat version 1.0\nfile '{write_video(tmp_path / 'a.mp4').name}'\n".encode())
    with pytest.raises(SourceError, match="this is text"):
        probe(video(tmp_path / "list.mp4"))


def test_probe_takes_a_name_with_a_colon_for_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_video(tmp_path / "a.mp4", count=2).rename(tmp_path / "http:x.mp4")
    assert probe(Source("x", "video", "http:x.mp4")).num_frames == 2


def test_probe_of_images(tmp_path):
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "1.png")
    touch(tmp_path / "0.png", b"")
    info = probe(Source("x", "images", str(tmp_path), ("0.png", "1.png"), fps=3.0))
    assert (info.width, info.height, info.fps, info.num_frames) == (8, 6, 3.0, 2)
