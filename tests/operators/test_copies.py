"""Videos and images elsewhere are read as those on this machine, and nothing of them stays."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image

from operators import copies
from operators.copies import acquire, copied, release
from operators.decode import Decode, DecodeConfig, open_reader
from operators.errors import SourceError
from operators.records import Frame, FrameFault, Pull, StreamEnd
from operators.sources import Source, find_sources
from tests.operators.small_videos import write_video

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def bucket():
    files = fsspec.filesystem("memory")
    yield files
    if files.exists("/bucket"):
        files.rm("/bucket", recursive=True)


def in_use() -> list[str]:
    """Files of this process's copies."""
    folder = copies._folder
    return [] if folder is None else sorted(path.name for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def video(bucket, tmp_path) -> tuple[Source, Path]:
    """The same video at an address and here."""
    path = write_video(tmp_path / "clip.mp4", count=12)
    bucket.pipe("/bucket/clip.mp4", path.read_bytes())
    ((source,), _) = find_sources(["memory://bucket/*.mp4"])
    return source, path


def test_a_video_at_an_address_gives_the_frames_of_the_file(video):
    source, path = video
    here = open_reader(Source("clip", "video", str(path))).read(99)
    reader = open_reader(source)
    assert in_use() == ["video.mp4"]
    assert reader.info.num_frames == 12
    reader.skip(2)
    there = reader.read(99)
    reader.close()
    reader.close()
    assert in_use() == [] and len(here) == 13
    assert there[-1] == here[-1] == StreamEnd("clip", 12)
    for one, other in zip(here[2:-1], there[:-1], strict=True):
        assert one.info == other.info and np.array_equal(one.image, other.image)


def test_decode_lets_go_of_copies(video):
    source, _ = video
    stage = Decode(DecodeConfig())
    stage.open("clip")
    assert len(stage([Pull(source, 5)])) == 5 and in_use() == ["video.mp4"]
    stage.close("clip")
    assert in_use() == []


def test_images_at_an_address(bucket, tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 6), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
        bucket.pipe(f"/bucket/frames/{i}.png", (tmp_path / f"{i}.png").read_bytes() if i != 1 else b"no image")
    ((source,), errors) = find_sources(["memory://bucket/frames"])
    assert errors == [] and (source.name, source.files) == ("frames", ("0.png", "1.png", "2.png"))
    reader = open_reader(source)
    *records, end = reader.read(9)
    reader.close()
    assert [type(record) for record in records] == [Frame, FrameFault, Frame]
    assert end.error == "'memory:///bucket/frames': 1 of 3 images could not be decoded." and in_use() == []


@pytest.mark.parametrize("content, says", [
    pytest.param(b"", "'memory:///bucket/bad.mp4' is empty", id="empty"),
    pytest.param(b"words " * 99, "'memory:///bucket/bad.mp4'.* this is text", id="text"),
])
def test_messages_name_the_address_and_not_the_copy(bucket, content, says):
    bucket.pipe("/bucket/bad.mp4", content)
    with pytest.raises(SourceError, match=says):
        open_reader(Source("bad", "video", "memory:///bucket/bad.mp4"))
    assert in_use() == []


def test_a_cut_video_is_told_by_its_address(bucket, tmp_path):
    path = write_video(tmp_path / "clip.mkv", count=30)
    bucket.pipe("/bucket/cut.mkv", path.read_bytes()[: path.stat().st_size * 6 // 10])
    reader = open_reader(Source("cut", "video", "memory:///bucket/cut.mkv"))
    end = reader.read(99)[-1]
    reader.close()
    assert end.fatal and end.error.startswith("'memory:///bucket/cut.mkv': ") and str(copies._folder) not in end.error


def test_one_copy_for_all_that_read_it_at_once(video):
    source, _ = video
    paths: list[str] = []
    threads = [threading.Thread(target=lambda: paths.append(acquire(source).path)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(paths) == 8 and len(set(paths)) == 1 and in_use() == ["video.mp4"]
    for _ in range(7):
        release(source)
    assert Path(paths[0]).exists()
    release(source)
    assert not Path(paths[0]).parent.exists()


def test_a_disk_without_room_is_told_and_nothing_stays(video, monkeypatch):
    source, _ = video
    monkeypatch.setattr(copies, "RESERVE", 1 << 62)
    with pytest.raises(SourceError, match="no room for a copy .* Set TMPDIR"), copied(source):
        pass
    assert in_use() == []


def test_what_vanished_since_it_was_found(video, bucket):
    source, _ = video
    bucket.rm("/bucket/clip.mp4")
    with pytest.raises(SourceError, match="'memory:///bucket/clip.mp4' does not exist"), copied(source):
        pass
    assert in_use() == []


def test_a_folder_that_its_process_takes_along_meanwhile_is_none_to_remove(tmp_path):
    """It stands in the list of what is there, and is gone when one looks at it: as a link that leads nowhere."""
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    (tmp_path / "left").mkdir()
    copies._remove_leftovers(tmp_path)
    assert os.listdir(tmp_path) == ["gone"]


def test_the_copies_of_a_killed_process_go_with_the_next_one(tmp_path):
    """One process is killed with a copy in use, another lives: the third removes the folder of the first alone."""
    code = "import sys, fsspec; from operators.copies import acquire; from operators.sources import Source; " \
           "fsspec.filesystem('memory').pipe('/b/v.mp4', b'x'); acquire(Source('v', 'video', 'memory://b/v.mp4')); " \
           "print('copied', flush=True); sys.stdin.read()"  # fmt: skip
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def start() -> subprocess.Popen:
        process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=environment, text=True,
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert process.stdout.readline() == "copied\n"
        return process

    def left() -> int:
        return len(list(tmp_path.glob("maskstream-copies-*/*/*/video.mp4")))

    killed, alive = start(), start()
    assert left() == 2
    killed.kill()
    killed.communicate(timeout=30)
    third = start()
    assert left() == 2, "of the living one and of the third"
    for process in (alive, third):
        process.communicate(timeout=30)
    assert left() == 0
