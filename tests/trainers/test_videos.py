"""Frames of encoded videos: any of them, exactly, in any order; and as samples.

What is expected comes from reading each file from its beginning (operators/video.py).
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from models.inputs import InputConfig
from operators.errors import DatasetError
from operators.records import Frame
from operators.shapes import ShapesConfig, write_videos, write_youtube_vis
from operators.sources import Source
from operators.video import VideoReader
from operators.youtube_vis_data import read_dataset
from trainers.data import PairLoader
from trainers.frames import FrameAnnotations, FrameIndex
from trainers.pairs import PairDraw
from trainers.videos import MAX_OPEN, EncodedVideos, VideoFile, check_videos, file_of

CLIPS = ShapesConfig(
    width=96, height=64, num_frames=30, min_objects=4, max_objects=5, min_classes=3, num_twins=0, full_occlusions=0,
    re_entries=0,
)  # fmt: skip
INPUT = InputConfig(short_side=64, long_side=96, channel_order="rgb", mean=(0, 0, 0))


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Two clips as images, as H.264 with B-frames, as VP9."""
    root = tmp_path_factory.mktemp("clips")
    write_youtube_vis(root / "images", CLIPS, seed=3, num_clips=2)
    write_videos(root / "h264", CLIPS, seed=3, num_clips=2)
    write_videos(root / "vp9", CLIPS, seed=3, num_clips=2, codec="vp9")
    return root


@pytest.fixture(scope="module")
def index(root) -> FrameIndex:
    return FrameIndex(read_dataset(root / "images" / "instances.json"))


def all_frames(path: Path) -> list[np.ndarray]:
    reader = VideoReader(Source("clip", "video", str(path)))
    return [item.image for item in reader.read(1000) if isinstance(item, Frame)]


def encode(path: Path, options: dict[str, str], frames: int = 40, container: str | None = None) -> Path:
    """Noise that tells frames apart, by x264."""
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream("libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for t in range(frames):
            image = np.random.default_rng(t).integers(0, 255, (6, 8, 3), np.uint8).repeat(8, 0).repeat(8, 1)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        out.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("options", [
    pytest.param({"g": "10", "bf": "3"}, id="B-frames"),
    pytest.param({"x264-params": "open-gop=1:keyint=8:min-keyint=8:bframes=3"}, id="open groups of pictures"),
    pytest.param({"g": "250", "bf": "2"}, id="one key frame"),
])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_any_frame_is_that_of_reading_from_the_beginning(tmp_path, options, suffix):
    path = encode(tmp_path / f"clip{suffix}", options)
    expected, file = all_frames(path), VideoFile(path)
    assert len(file) == len(expected) == 40
    for place in [39, 0, *np.random.default_rng(0).permutation(40).tolist()]:
        np.testing.assert_array_equal(file.frame(place), expected[place], err_msg=str(place))
    file.close()


@pytest.mark.parametrize("codec, suffix", [("h264", ".mp4"), ("vp9", ".webm")])
def test_generated_videos(root, index, codec, suffix):
    path = file_of(root / codec, index.dataset.videos[1])
    assert path.name == f"clip_00001{suffix}"
    expected, file = all_frames(path), VideoFile(path)
    for place in (29, 3, 17, 4):
        np.testing.assert_array_equal(file.frame(place), expected[place])


# ----------------------------------------------------------------------------------------------------------- as samples


def load(index: FrameIndex, draw: PairDraw, **settings):
    loader = PairLoader(iter([draw]), index, INPUT, batch=1, device=torch.device("cpu"), **settings)
    try:
        return next(loader)
    finally:
        loader.close()


@pytest.mark.parametrize("codec", ["h264", "vp9"])
def test_a_pair_out_of_videos_is_the_pair_of_images_but_for_coding(root, index, codec):
    frames = index.videos[1]
    draw = PairDraw((frames[20], frames[7]), True)
    stored = read_dataset(root / "images" / "instances.json", image_root=root / "images" / "JPEGImages")
    files = load(FrameIndex(stored), draw)
    coded = load(index, draw, source=EncodedVideos(root / codec))
    video = all_frames(file_of(root / codec, frames[0].video))
    for slot, place in ((0, 20), (1, 7)):
        mirrored = torch.from_numpy(video[place][:, ::-1].copy()).permute(2, 0, 1).float()
        assert torch.equal(coded.images[slot][0], mirrored), "the decoder's pixels, resized to their own size"
        assert (coded.images[slot] - files.images[slot]).abs().mean() < 6
        assert torch.equal(coded.targets[slot][0].masks, files.targets[slot][0].masks)


def test_dalis_own_decoder_finds_the_same_frames(root, index):
    """Of VP9, which it decodes on a CPU too; on a GPU the same graph takes the video engine."""
    frames = index.videos[0]
    draw = PairDraw((frames[25], frames[2]), False)
    here, there = (load(index, draw, source=EncodedVideos(root / "vp9", decoder=name)) for name in ("pyav", "dali"))
    for slot in (0, 1):
        difference = (here.images[slot] - there.images[slot]).abs()
        assert difference.mean() < 3, "two ways from YUV to RGB"
        assert torch.equal(here.targets[slot][0].masks, there.targets[slot][0].masks)
    assert (there.images[0] - there.images[1]).abs().mean() > 6


def test_files_are_kept_open_up_to_a_number(root, index, tmp_path):
    for n in range(MAX_OPEN + 3):
        (tmp_path / f"clip_{n:05d}.mp4").symlink_to(root / "h264" / "clip_00000.mp4")
    videos = EncodedVideos(tmp_path)
    for n in range(MAX_OPEN + 3):
        videos._file(tmp_path / f"clip_{n:05d}.mp4")
    assert [path.stem for path in videos._open] == [f"clip_{n:05d}" for n in range(3, MAX_OPEN + 3)]
    videos.close()
    videos.close()


@pytest.mark.parametrize("name, numbers, place", [
    pytest.param("v/00025.jpg", "place", 3, id="the fourth is the fourth"),
    pytest.param("v/00025.jpg", "name", 25, id="as its name says"),
])
def test_which_picture_of_the_file_a_frame_is(tmp_path, index, name, numbers, place):
    video = replace(index.dataset.videos[0], file_names=(name,) * 30)
    encode(tmp_path / "v.mp4", {"g": "10"})
    found = EncodedVideos(tmp_path, numbers=numbers).read([FrameAnnotations(video, 3, ())])["frame"][0]
    np.testing.assert_array_equal(found, all_frames(tmp_path / "v.mp4")[place])


# ------------------------------------------------------------------------------------------------------------- refused


def test_videos_without_a_file_are_named_before_training(root, index, tmp_path):
    check_videos(index, root / "h264")
    (tmp_path / "clip_00000.mkv").touch()
    with pytest.raises(DatasetError, match=r"no file of video 2; expected clip_00001\{.mp4,"):
        check_videos(index, tmp_path)


def test_a_frame_behind_the_end_is_an_error(tmp_path):
    file = VideoFile(encode(tmp_path / "v.mp4", {}, frames=5))
    with pytest.raises(DatasetError, match="v.mp4: has 5 frames, but frame 5 is annotated"):
        file.frame(5)


@pytest.mark.parametrize("content", [pytest.param(b"", id="empty"), pytest.param(b"no video" * 99, id="text")])
def test_files_that_are_no_videos(tmp_path, content):
    (tmp_path / "v.mp4").write_bytes(content)
    with pytest.raises(DatasetError, match="v.mp4"):
        VideoFile(tmp_path / "v.mp4")


def test_transport_streams_are_refused_with_the_remedy(tmp_path):
    path = encode(tmp_path / "v.mkv", {}, container="mpegts")
    with pytest.raises(DatasetError, match="ffmpeg -i v.mkv -c copy v.mp4"):
        VideoFile(path)


def test_a_damaged_file_is_an_error_where_the_batch_is_taken(tmp_path, root, index):
    for number in (0, 1):
        data = bytearray((root / "h264" / f"clip_0000{number}.mp4").read_bytes())
        (tmp_path / f"clip_0000{number}.mp4").write_bytes(data[: len(data) // 2])
    frames = index.videos[0]
    with pytest.raises(DatasetError, match="clip_00000.mp4"):
        load(index, PairDraw((frames[29], frames[28]), False), source=EncodedVideos(tmp_path))


def test_another_size_than_annotated_is_refused(tmp_path, index):
    encode(tmp_path / "clip_00000.mp4", {})
    frames = index.videos[0]
    with pytest.raises(DatasetError, match="64x48 pixels, but the annotations say 96x64"):
        load(index, PairDraw((frames[0], frames[1]), False), source=EncodedVideos(tmp_path))
