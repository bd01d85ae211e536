from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from av.video.reformatter import Interpolation, VideoReformatter

from operators.backends import video_pipeline
from operators.decode import open_reader
from operators.errors import ConfigError, SourceError
from operators.records import StreamEnd
from operators.sources import Source
from tests.operators.small_videos import X264, cut, number_of, write_video

VP9 = {"cpu-used": "8", "deadline": "realtime"}
QUARTER = [0, 1, 0, -1, 0, 0, 0, 0, 1]


def read_all(path: Path, backend: str) -> list:
    reader = open_reader(Source("clip", "video", str(path)), backend)
    records = []
    while got := reader.read(3):
        records += got
    return records


@pytest.mark.parametrize(
    "backend, name, codec, settings, tolerance",
    [
        pytest.param("decord", "a.mp4", "libx264", {"count": 1}, 0, id="decord, one frame"),
        pytest.param("decord", "a.mp4", "libx264", {"options": {**X264, "bf": "3"}}, 0, id="decord, H.264, B-frames"),
        pytest.param("decord", "a.mkv", "libx264", {"ticks": [0, 3, 4, 9, 11], "count": 5}, 0, id="decord, uneven"),
        pytest.param("decord", "a.webm", "libvpx-vp9", {"options": VP9}, 0, id="decord, VP9"),
        pytest.param("decord", "a.mp4", "libx264", {"matrix": QUARTER}, 0, id="decord, turned"),
        pytest.param("dali", "a.webm", "libvpx-vp9", {"count": 1, "options": VP9}, 2, id="DALI, one frame"),
        pytest.param("dali", "a.webm", "libvpx-vp9", {"options": {"lag-in-frames": "12"}}, 2, id="DALI, VP9"),
        pytest.param("dali", "a.webm", "libvpx", {"count": 9}, 2, id="DALI, VP8"),
        pytest.param("dali", "a.mov", "mjpeg", {"pix_fmt": "yuvj420p"}, 2, id="DALI, Motion JPEG"),
        pytest.param("dali", "a.mov", "mjpeg", {"pix_fmt": "yuvj420p", "matrix": QUARTER}, 2, id="DALI, turned"),
    ],
)
def test_gives_the_frames_of_pyav(tmp_path, backend, name, codec, settings, tolerance):
    path = write_video(tmp_path / name, codec, **settings)
    expected, records = read_all(path, "pyav"), read_all(path, backend)
    assert records[-1] == expected[-1] == StreamEnd("clip", settings.get("count", 20))
    assert [r.info for r in records[:-1]] == [r.info for r in expected[:-1]]
    assert [number_of(r.image) for r in records[:-1]] == [number_of(r.image) for r in expected[:-1]]
    for ours, theirs in zip(records[:-1], expected[:-1], strict=True):
        assert np.abs(ours.image.astype(int) - theirs.image).mean() <= tolerance


@pytest.mark.parametrize("name", ["dog_person.mp4", "keyboard_rot90.mov", "desk_vfr.3gp", "sign_language.mkv"])
def test_decord_on_real_videos(media, name):
    path = media / "videos" / name
    expected, records = (open_reader(Source("c", "video", str(path)), backend) for backend in ("pyav", "decord"))
    for ours, theirs in zip(records.read(30), expected.read(30), strict=True):
        if isinstance(theirs, StreamEnd):
            assert ours == theirs
        else:
            assert ours.info == theirs.info and np.array_equal(ours.image, theirs.image)


def test_dali_differs_from_pyav_by_how_chroma_is_enlarged_alone(media):
    """With the slower filter of swscale, PyAV gives DALI's pixels: the same frames, the same matrix and range."""
    path = media / "derived/juggle_mjpeg.mov"
    exact = Interpolation.BILINEAR | Interpolation.FULL_CHR_H_INT | Interpolation.ACCURATE_RND
    with av.open(str(path)) as container:
        expected = [
            VideoReformatter().reformat(frame, format="rgb24", interpolation=exact).to_ndarray()
            for frame in container.decode(video=0)
        ]
    records = read_all(path, "dali")
    assert len(records) == 25
    assert all(np.array_equal(r.image, image) for r, image in zip(records[:-1], expected, strict=True))


@pytest.mark.parametrize(
    "backend, name, codec, settings, says",
    [
        pytest.param("decord", "a.ts", "libx264", {}, "container is mpegts", id="decord, MPEG-TS"),
        pytest.param("decord", "a.avi", "mpeg4", {}, "container is avi", id="decord, AVI"),
        pytest.param("decord", "a.mp4", "libx264", {"pix_fmt": "yuv420p10le"}, "10 bits", id="decord, 10 bits"),
        pytest.param("decord", "a.mp4", "libx264", {"matrix": [-1, 0, 0, 0, 1, 0, 0, 0, 1]}, "mirrored",
                     id="decord, mirrored"),
        pytest.param("dali", "a.mp4", "libx264", {}, "codec is h264", id="DALI, H.264"),
    ],
)
def test_refuses_what_it_would_get_wrong_and_names_the_alternative(tmp_path, backend, name, codec, settings, says):
    path = write_video(tmp_path / name, codec, **settings)
    with pytest.raises(SourceError) as error:
        open_reader(Source("clip", "video", str(path)), backend)
    assert says in str(error.value) and str(path) in str(error.value) and "backend pyav" in str(error.value)


def test_decord_refuses_a_cut_file(tmp_path):
    path = write_video(tmp_path / "a.mp4", options={**X264, "g": "5"}, container={"movflags": "faststart"})
    with pytest.raises(SourceError, match="the file is damaged"):
        open_reader(Source("clip", "video", str(cut(path, path.stat().st_size - 40, "cut.mp4"))), "decord")


@pytest.mark.parametrize(
    "backend, name, says",
    [
        ("decord", "derived/road_interlaced.mp4", "interlaced"),
        ("decord", "derived/dog_av1.mkv", "av1"),
        ("dali", "derived/dog_vp9.webm", "colour matrix is number 1"),
    ],
)
def test_refuses_real_videos_that_it_would_get_wrong(media, backend, name, says):
    with pytest.raises(SourceError, match=says):
        open_reader(Source("clip", "video", str(media / name)), backend)


def test_a_decoder_that_gives_up_says_so(media):
    records = read_all(media / "broken/zeroed.mp4", "decord")
    end = records[-1]
    assert end.fatal and end.num_frames == len(records) - 1 and 0 < end.num_frames < 65
    assert f"{end.num_frames} of 67 frames came" in end.error and "pyav" in end.error


@pytest.mark.parametrize("backend, name, codec", [("decord", "a.mp4", "libx264"), ("dali", "a.mov", "mjpeg")])
def test_skip_and_close(tmp_path, backend, name, codec):
    path = write_video(tmp_path / name, codec, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    reader = open_reader(Source("clip", "video", str(path)), backend)
    reader.skip(6)
    assert [number_of(record.image) for record in reader.read(3)] == [6, 7, 8]
    reader.close()
    reader.close()
    assert reader.read(3) == []


def test_an_unknown_backend_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean pyav"):
        open_reader(Source("clip", "video", "x.mp4"), "pyaw")


def test_the_same_graph_decodes_on_the_video_engine():
    """Serialising checks the names of operators and arguments; building would need the driver."""
    here, there = (video_pipeline(device, None, 1).serialize() for device in ("cpu", "mixed"))
    assert b"mixed" not in here and b"mixed" in there


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_the_video_engine_needs_a_gpu(tmp_path):
    path = write_video(tmp_path / "a.mp4", "libx264")
    with pytest.raises(SourceError, match="nvdec needs a GPU, and torch sees none. Use the backend pyav"):
        open_reader(Source("clip", "video", str(path)), "nvdec")


@pytest.mark.gpu
@pytest.mark.parametrize("name, codec", [("a.mp4", "libx264"), ("a.mp4", "libx265"), ("a.webm", "libvpx-vp9")])
def test_the_video_engine_gives_the_frames_of_pyav(tmp_path, name, codec):
    path = write_video(tmp_path / name, codec)
    expected, records = read_all(path, "pyav"), read_all(path, "nvdec")
    assert records[-1] == expected[-1]
    assert [number_of(r.image) for r in records[:-1]] == [number_of(r.image) for r in expected[:-1]]
    assert max(np.abs(a.image.astype(int) - b.image).mean() for a, b in zip(records, expected[:-1], strict=False)) <= 3
