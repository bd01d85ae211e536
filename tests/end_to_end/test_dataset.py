"""`maskstream dataset convert`, `split`, `stats` and `show` as a user runs them, on generated clips."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import av
import pytest
from PIL import Image

from operators.shapes import PRESETS, write_youtube_vis


@pytest.fixture(scope="module")
def shapes(tmp_path_factory) -> Path:
    """Six small clips of 24 frames."""
    config = replace(PRESETS["medium"], width=128, height=80, num_frames=24)
    return write_youtube_vis(tmp_path_factory.mktemp("shapes"), config, seed=5, num_clips=6)


def masks_of(path: Path) -> dict[str, list]:
    raw = json.loads(path.read_text())
    names = {video["id"]: video["file_names"][0].split("/")[-2] for video in raw["videos"]}
    found: dict[str, list] = {}
    for entry in raw["annotations"]:
        found.setdefault(names[entry["video_id"]], []).append([m and m["counts"] for m in entry["segmentations"]])
    return {name: sorted(tracks, key=str) for name, tracks in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("by", ["davis", "mots"])
def test_convert_there_and_back(maskstream, shapes, tmp_path, by):
    done = maskstream("dataset", "convert", shapes, tmp_path / by, "--from", "youtube-vis", "--to", by, "--images",
                      "link")                                                                       # fmt: skip
    assert done.returncode == 0 and "6 videos, 144 frames" in done.stdout and "classes" in done.stdout, done.stderr
    done = maskstream("dataset", "convert", tmp_path / by, tmp_path / "back.json", "--from", by, "--to", "youtube-vis")
    assert done.returncode == 0, done.stderr
    assert masks_of(tmp_path / "back.json") == masks_of(shapes)
    raw = json.loads((tmp_path / "back.json").read_text())
    assert all((tmp_path / name).is_file() for video in raw["videos"] for name in video["file_names"])


@pytest.mark.slow
def test_split_stats_show(maskstream, shapes, tmp_path):
    done = maskstream("dataset", "split", shapes, tmp_path / "parts", "--parts", "train=0.6,val=0.4", "--mini", "1")
    assert done.returncode == 0 and "annotations of" in done.stdout, done.stderr
    ids = [{v["id"] for v in json.loads((tmp_path / "parts" / f"{name}.json").read_text())["videos"]}
           for name in ("train", "val", "mini")]                                                   # fmt: skip
    assert ids[0] | ids[1] == set(range(1, 7)) and not ids[0] & ids[1] and ids[2] <= ids[0]

    done = maskstream("dataset", "stats", shapes, "--plots", tmp_path / "plots", "--json", tmp_path / "stats.json",
                      afresh=True)  # fmt: skip
    assert done.returncode == 0 and "144  frames" in done.stdout and "mask / frame" in done.stdout, done.stderr
    numbers = json.loads((tmp_path / "stats.json").read_text())
    assert (numbers["videos"], numbers["frames"]) == (6, 144) and numbers["tracks"] == len(
        json.loads(shapes.read_text())["annotations"])                                             # fmt: skip
    assert Image.open(tmp_path / "plots" / "histograms.png").width > 1000

    done = maskstream("dataset", "show", shapes, "--out", tmp_path / "sheet.png", "--sheet", "2x3")
    assert done.returncode == 0 and "6 frames of 2 of 6 videos" in done.stdout, done.stderr
    assert Image.open(tmp_path / "sheet.png").width == 3 * 128 + 2 * 4
    done = maskstream("dataset", "show", tmp_path / "parts" / "train.json", "--out", tmp_path / "one.mp4")
    assert done.returncode == 0 and "24 frames have no image and are grey" in done.stdout, done.stderr
    with av.open(str(tmp_path / "one.mp4")) as container:
        assert sum(1 for _ in container.decode(video=0)) == 24


@pytest.mark.parametrize("words, message", [
    pytest.param(("convert", "IN", "IN", "--from", "ovis", "--to", "ovis"), "is the input", id="over the input"),
    pytest.param(("convert", "no.json", "OUT", "--from", "ovis", "--to", "ovis"), "no such file", id="no file"),
    pytest.param(("convert", "IN", "OUT", "--from", "coco", "--to", "ovis"), "say --from youtube-vis", id="not coco"),
    pytest.param(("convert", "IN", "OUT", "--from", "mots", "--to", "ovis", "--classes", "car"), "NUMBER=NAME",
                 id="classes without numbers"),
    pytest.param(("split", "IN", "OUT", "--parts", "train=2"), "--parts train=2", id="a share of 2"),
    pytest.param(("stats", "IN", "--json", "IN"), "is the input", id="numbers over the input"),
    pytest.param(("show", "IN", "--out", "OUT.gif"), "cannot be written as '.gif'", id="a picture that moves"),
    pytest.param(("show", "IN", "--out", "OUT.mp4", "--video", "nobody"), "no video is called", id="no such video"),
])  # fmt: skip
def test_errors_are_one_line(maskstream, shapes, tmp_path, words, message):
    before = shapes.read_bytes()
    places = {"IN": shapes, "OUT": tmp_path / "out", "OUT.gif": tmp_path / "a.gif", "OUT.mp4": tmp_path / "a.mp4"}
    done = maskstream("dataset", *(places.get(word, word) for word in words))
    assert done.returncode == 2 and message in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == [] and shapes.read_bytes() == before


@pytest.mark.parametrize("action", ["convert", "split", "stats", "show"])
def test_help_teaches(maskstream, action):
    done = maskstream("dataset", action, "--help")
    assert done.returncode == 0 and "examples:" in done.stdout and "exit codes:" in done.stdout
