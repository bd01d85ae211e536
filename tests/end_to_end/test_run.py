"""The main job as a user meets it: real encoded videos, real commands, real files."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco

ROOT = Path(__file__).resolve().parents[2]


def num_frames(video: Path) -> int:
    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0))


def lines_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def local_run(maskstream, two_videos, tmp_path_factory) -> Path:
    """Both videos at once through the in-process executor, all outputs."""
    out = tmp_path_factory.mktemp("local")
    done = maskstream("run", *two_videos, "--out", out, afresh=True)
    assert done.returncode == 0, done.stderr
    return out


def test_both_executors_give_the_same_bytes(maskstream, two_videos, local_run, tmp_path):
    done = maskstream("run", *two_videos, "--out", tmp_path, "--executor", "ray", "--save", "jsonl", timeout=180,
                      afresh=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    for video in two_videos:
        name = f"{video.stem}/tracks.jsonl"
        assert (tmp_path / name).read_bytes() == (local_run / name).read_bytes()


def test_a_video_alone_gives_what_it_gives_in_company(maskstream, two_videos, local_run, tmp_path):
    done = maskstream("run", two_videos[1], "--out", tmp_path, "--save", "jsonl", "--set", "batching.frames=3")
    assert done.returncode == 0, done.stderr
    name = f"{two_videos[1].stem}/tracks.jsonl"
    assert (tmp_path / name).read_bytes() == (local_run / name).read_bytes()


def test_every_frame_has_one_line(two_videos, local_run):
    for video in two_videos:
        lines = lines_of(local_run / video.stem / "tracks.jsonl")
        assert [line["frame"] for line in lines] == list(range(num_frames(video)))
        assert all(line["stream"] == video.stem for line in lines)


def test_instances_lie_in_the_frame_and_masks_have_its_size(two_videos, local_run):
    lines = lines_of(local_run / two_videos[0].stem / "tracks.jsonl")
    instances = [instance for line in lines for instance in line["instances"]]
    assert len(instances) >= 4 * len(lines)           # the clip shows six objects or more
    for instance in instances:
        assert instance["segmentation"]["size"] == [160, 256]
        x1, y1, x2, y2 = instance["box"]
        assert 0 <= x1 < x2 <= 256 and 0 <= y1 < y2 <= 160
        assert 0 < instance["score"] <= 1 and 1 <= instance["category_id"] <= 7
    for line in lines:
        ids = [instance["track_id"] for instance in line["instances"]]
        assert len(set(ids)) == len(ids)


def test_masks_fill_their_boxes(two_videos, local_run):
    """Box and mask come from different heads: where both are right, they agree."""
    lines = lines_of(local_run / two_videos[0].stem / "tracks.jsonl")
    confident = [i for line in lines for i in line["instances"] if i["score"] > 0.7]
    overlaps = []
    for instance in confident:
        x, y, w, h = coco.toBbox(instance["segmentation"])
        x1, y1, x2, y2 = instance["box"]
        across, down = min(x + w, x2) - max(x, x1), min(y + h, y2) - max(y, y1)
        union = w * h + (x2 - x1) * (y2 - y1) - max(across, 0) * max(down, 0)
        overlaps.append(max(across, 0) * max(down, 0) / union)
    assert len(confident) > len(lines) and np.median(overlaps) > 0.8


def test_results_hold_every_track_over_all_frames(two_videos, local_run):
    for video in two_videos:
        lines = lines_of(local_run / video.stem / "tracks.jsonl")
        results = json.loads((local_run / video.stem / "results.json").read_text())
        ids = {i["track_id"] for line in lines for i in line["instances"]}
        assert len(results) == len(ids)
        assert all(len(result["segmentations"]) == len(lines) for result in results)
        masks = sum(s is not None for result in results for s in result["segmentations"])
        assert masks == sum(len(line["instances"]) for line in lines)


def test_overlay_and_label_maps_have_every_frame(two_videos, local_run):
    for video in two_videos:
        folder = local_run / video.stem
        count = num_frames(video)
        assert num_frames(folder / "overlay.mp4") == count
        maps = sorted((folder / "masks").iterdir())
        assert [path.name for path in maps] == [f"{i:05d}.png" for i in range(count)]
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            assert Image.open(maps[0]).size == (stream.width, stream.height)


def test_outputs_asked_for_are_the_only_ones(maskstream, two_videos, tmp_path):
    done = maskstream("run", two_videos[0], "--out", tmp_path, "--save", "jsonl,ytvis")
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / two_videos[0].stem).iterdir()}
    assert names == {"tracks.jsonl", "results.json"}
    assert "encode_masks" in done.stdout and "ms a frame" in done.stdout       # the table of times per stage


def test_bad_sources_are_named_and_the_others_finish(maskstream, two_videos, tmp_path):
    (tmp_path / "text.mp4").write_text("this is no video\n" * 40)
    (tmp_path / "empty.mp4").touch()
    bad = [tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "missing.mp4"]
    done = maskstream("run", *bad, two_videos[0], "--out", tmp_path / "out", "--save", "jsonl")
    assert done.returncode == 1
    said = done.stdout + done.stderr
    assert all(path.name in said for path in bad) and "Traceback" not in said
    assert len(lines_of(tmp_path / "out" / two_videos[0].stem / "tracks.jsonl")) == num_frames(two_videos[0])


def test_a_bad_image_is_reported_in_its_line_and_the_others_are_done(maskstream, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        Image.new("RGB", (64, 48), (80 * i, 90, 200)).save(folder / f"{i}.jpg")
    (folder / "1.jpg").write_bytes((folder / "1.jpg").read_bytes()[:400])
    done = maskstream("run", folder, "--out", tmp_path / "out", "--save", "jsonl")
    assert done.returncode == 1 and "1 of 3 images could not be decoded" in done.stdout
    lines = lines_of(tmp_path / "out" / "photos" / "tracks.jsonl")
    assert [line["frame"] for line in lines] == [0, 1, 2]
    assert ["error" in line for line in lines] == [False, True, False] and "1.jpg" in lines[1]["error"]


def test_truncated_video_gives_all_frames_that_decode(maskstream, two_videos, tmp_path):
    cut = tmp_path / "cut.webm"
    cut.write_bytes(two_videos[1].read_bytes()[: two_videos[1].stat().st_size * 6 // 10])
    done = maskstream("run", cut, "--out", tmp_path, "--save", "jsonl")
    assert done.returncode == 1
    lines = lines_of(tmp_path / "cut" / "tracks.jsonl")
    assert 5 < len(lines) < num_frames(two_videos[1])
    assert f"{len(lines)} frames" in done.stdout + done.stderr or f"{len(lines)} of" in done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        pytest.param(["--set", "associate.min_mach=1"], "Did you mean min_match?", id="unknown setting"),
        pytest.param(["--set", "asociate.min_match=1"], "Did you mean associate?", id="unknown stage"),
        pytest.param(["--set", "associate.min_match=high"], "expected a number", id="wrong type"),
        pytest.param(["--network", "configs/networks/tinny.yaml"], "Did you mean tiny.yaml?", id="unknown file"),
        pytest.param(["--set", "network.model.channels=32"], "weights of another network", id="other network"),
        pytest.param(["--save", "jsonl,vidio"], "Did you mean video?", id="unknown output"),
        pytest.param(["--device", "gpu"], "invalid choice", id="unknown device"),
    ],
)
def test_usage_and_config_errors_come_before_any_work(maskstream, two_videos, tmp_path, arguments, said):
    done = maskstream("run", two_videos[0], "--out", tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def long(tmp_path_factory) -> Path:
    """A folder of one image many times over: whoever cuts its run once a few lines are there has half a minute."""
    folder = tmp_path_factory.mktemp("images") / "long"
    folder.mkdir()
    Image.new("RGB", (64, 48), (80, 90, 200)).save(folder / "0000.jpg")
    for i in range(1, 1500):
        (folder / f"{i:04d}.jpg").hardlink_to(folder / "0000.jpg")
    return folder


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_ctrl_c_leaves_valid_files(two_videos, long, tmp_path, executor):
    command = [sys.executable, "-m", "pipelines.cli", "run", str(two_videos[0]), str(long), "--out", str(tmp_path),
               "--executor", executor, "--save", "jsonl,ytvis,video", "--set", "batching.streams=1"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for_lines(process, tmp_path / "unfinished" / long.name / "tracks.jsonl", 3)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130, said
    whole, cut = tmp_path / two_videos[0].stem, tmp_path / "unfinished" / long.name
    folders = {path for path in (*tmp_path.iterdir(), *(tmp_path / "unfinished").iterdir()) if path.is_dir()}
    assert folders == {whole, cut, tmp_path / "unfinished"}, "what is not whole is under a name that says so"
    for part in (whole, cut):
        lines = lines_of(part / "tracks.jsonl")
        assert [line["frame"] for line in lines] == list(range(len(lines))) and len(lines) >= 3
        assert (len(lines) == num_frames(two_videos[0])) == (part == whole)
        assert num_frames(part / "overlay.mp4") == len(lines)
        assert all(len(r["segmentations"]) == len(lines) for r in json.loads((part / "results.json").read_text()))


def wait_for_lines(process: subprocess.Popen, path: Path, count: int) -> None:
    """Until a file has so many lines; fails when the process ends before."""
    deadline = time.monotonic() + 240
    while not path.exists() or len(path.read_bytes().splitlines()) < count:
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


KILLED = """
import os, signal, sys

from operators.sinks import JsonlSink
from pipelines.cli import main

video, count, *arguments = sys.argv[1:]
write, lines = JsonlSink.write, []

def counted(sink, tracks):
    write(sink, tracks)
    lines.append(tracks.info.stream)
    if lines.count(video) == int(count):
        os.kill(os.getpid(), signal.SIGKILL)

JsonlSink.write = counted
sys.exit(main(arguments))
"""
"""`maskstream ARGUMENTS`, killed outright when so many lines of a video are written: who looks from outside comes late
on a busy machine."""


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_killed_twice_and_run_again_all_is_as_if_never_killed(maskstream, two_videos, local_run, tmp_path):
    """Real kills, in the first video and in the second: what is left of them must not show, pictures included."""
    arguments = ["run", *map(str, two_videos), "--out", str(tmp_path)]
    for name, count in ((two_videos[0].stem, 3), (two_videos[1].stem, 20)):
        command = [sys.executable, "-c", KILLED, name, str(count), *arguments, "--set", "batching.streams=1"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
        assert done.returncode == -signal.SIGKILL, done.stderr
        assert len(lines_of(tmp_path / "unfinished" / name / "tracks.jsonl")) == count
    assert (tmp_path / two_videos[0].stem).is_dir() and not (tmp_path / two_videos[1].stem).exists()
    done = maskstream(*arguments)
    assert done.returncode == 0 and "1 of 2 were done before" in done.stderr, done.stderr
    assert files_of(tmp_path) == files_of(local_run)


def test_what_is_done_is_not_run_again(maskstream, two_videos, local_run):
    before = files_of(local_run)
    touched = {path: path.stat().st_mtime_ns for path in local_run.glob("*/tracks.jsonl")}
    pattern = two_videos[0].parent / "*.*"
    again = maskstream("run", pattern, "--out", local_run)
    assert again.returncode == 0 and "2 of 2 were done before" in again.stderr and "ms a frame" not in again.stdout
    assert {path: path.stat().st_mtime_ns for path in touched} == touched
    assert files_of(local_run) == before
