"""What is encoded can be decoded again: number, order, time and colour of frames, whole files and cut ones."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from operators.errors import ConfigError
from operators.video_writer import VideoWriter, write_video

CODECS = [
    pytest.param("video.mp4", "h264", 0, id="h264 mp4"),
    pytest.param("video.mp4", "h264", 2, id="h264 mp4 B-frames"),
    pytest.param("video.mkv", "h264", 2, id="h264 mkv B-frames"),
    pytest.param("video.webm", "vp9", 0, id="vp9 webm"),
    pytest.param("video.mkv", "vp9", 0, id="vp9 mkv"),
]


def picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    """A smooth frame whose brightness counts: green is 4 * index + 20 everywhere."""
    frame = np.zeros((height, width, 3), dtype=np.uint8)
    frame[..., 0] = np.linspace(30, 220, width).astype(np.uint8)
    frame[..., 1] = 4 * index + 20
    frame[..., 2] = 90
    return frame


def decoded(path: Path) -> list[av.VideoFrame]:
    with av.open(str(path)) as container:
        return list(container.decode(video=0))


def index_of(frame: av.VideoFrame) -> int:
    return round((float(frame.to_ndarray(format="rgb24")[..., 1].mean()) - 20) / 4)


@pytest.mark.parametrize("name, codec, bframes", CODECS)
def test_every_frame_comes_back_in_order(tmp_path, name, codec, bframes):
    path = write_video(tmp_path / name, (picture(k) for k in range(40)), fps=12.5, codec=codec, bframes=bframes)
    frames = decoded(path)
    assert [index_of(frame) for frame in frames] == list(range(40))
    np.testing.assert_allclose([frame.time for frame in frames], np.arange(40) / 12.5, atol=6e-4)
    difference = frames[20].to_ndarray(format="rgb24").astype(int) - picture(20)
    assert np.abs(difference).mean() < 3 and (frames[0].width, frames[0].height) == (64, 48)
    assert {frame.format.name for frame in frames} == {"yuv420p"}


@pytest.mark.parametrize("bframes", [0, 1, 2])
def test_b_frames_are_as_many_as_asked_for(tmp_path, bframes):
    noise = np.random.default_rng(0)
    moving = [noise.integers(0, 255, (48, 64, 3), dtype=np.uint8) for _ in range(24)]   # where x264 would rather not
    path = write_video(tmp_path / "b.mp4", moving, fps=12, bframes=bframes)
    kinds = "".join(av.video.frame.PictureType(frame.pict_type).name for frame in decoded(path))
    assert ("B" * bframes in kinds) and ("B" * (bframes + 1) not in kinds)
    assert ("B" in kinds) == (bframes > 0)


@pytest.mark.parametrize("height, width, expected", [
    pytest.param(1, 1, (2, 2), id="one pixel"),
    pytest.param(47, 63, (48, 64), id="both odd"),
    pytest.param(48, 63, (48, 64), id="odd width"),
    pytest.param(47, 64, (48, 64), id="odd height"),
])  # fmt: skip
@pytest.mark.parametrize("name, codec", [("odd.mp4", "h264"), ("odd.webm", "vp9")])
def test_odd_sides_grow_by_a_repeated_edge(tmp_path, name, codec, height, width, expected):
    frame = np.full((height, width, 3), 200, dtype=np.uint8)
    first = decoded(write_video(tmp_path / name, [frame, frame], fps=5, codec=codec))[0].to_ndarray(format="rgb24")
    assert first.shape[:2] == expected
    assert abs(int(first[-1, -1, 0]) - 200) < 8   # not black


@pytest.mark.parametrize("name, codec, bframes", CODECS)
def test_variable_rate_keeps_its_times(tmp_path, name, codec, bframes):
    times = [0.0, 0.02, 0.05, 0.1, 0.2, 0.22, 0.5, 1.5, 4.0]
    with VideoWriter(tmp_path / name, 64, 48, fps=30, codec=codec, bframes=bframes) as writer:
        for k, time_s in enumerate(times):
            writer.write(picture(k), time_s=time_s + 7.3)   # counted from the first frame's
    np.testing.assert_allclose([frame.time for frame in decoded(tmp_path / name)], times, atol=1.1e-3)


def test_times_that_repeat_or_go_back_lose_no_frame(tmp_path):
    with VideoWriter(tmp_path / "back.mp4", 64, 48, fps=10) as writer:
        for k, time_s in enumerate([0.0, 0.1, 0.1, 0.05, 0.3]):
            writer.write(picture(k), time_s=time_s)
    frames = decoded(tmp_path / "back.mp4")
    assert [index_of(frame) for frame in frames] == [0, 1, 2, 3, 4]
    np.testing.assert_allclose([frame.time for frame in frames], [0.0, 0.1, 0.1, 0.1, 0.3], atol=1e-3)


@pytest.mark.parametrize("name, codec, bframes", CODECS)
def test_an_unclosed_file_plays_up_to_its_last_key_frame(tmp_path, name, codec, bframes):
    writer = VideoWriter(tmp_path / name, 64, 48, fps=10, codec=codec, bframes=bframes)
    for k in range(200):
        writer.write(picture(k % 50))
    cut = tmp_path / f"cut-{name}"
    cut.write_bytes((tmp_path / name).read_bytes())   # what a killed process would leave
    writer.close()
    frames = decoded(cut)
    assert len(frames) >= 100 and [index_of(frame) for frame in frames[:50]] == list(range(50))
    assert len(decoded(tmp_path / name)) == 200


@pytest.mark.parametrize("name, codec, bframes", CODECS)
def test_an_interrupt_leaves_all_frames_written(tmp_path, name, codec, bframes):
    with pytest.raises(KeyboardInterrupt), VideoWriter(tmp_path / name, 64, 48, 10, codec, bframes=bframes) as writer:
        for k in range(7):
            writer.write(picture(k))
        raise KeyboardInterrupt
    assert [index_of(frame) for frame in decoded(tmp_path / name)] == list(range(7))


@pytest.mark.parametrize("name, codec, bframes", CODECS)
def test_same_frames_same_bytes(tmp_path, name, codec, bframes):
    (tmp_path / "again").mkdir()
    paths = [tmp_path / name, tmp_path / "again" / name]
    for path in paths:
        write_video(path, [picture(k) for k in range(30)], fps=12, codec=codec, bframes=bframes)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_small_pictures_are_the_same_after_whatever_was_encoded_before(tmp_path):
    """x264 looks into memory that others have used: of sixty such videos some three came out otherwise."""
    rng, sizes = np.random.default_rng(0), set()
    for _ in range(60):
        height, width = rng.integers(16, 120, 2)
        noise = rng.integers(0, 256, (int(rng.integers(1, 12)), height, width, 3), np.uint8)
        write_video(tmp_path / "other.mp4", noise, fps=12, bframes=int(rng.integers(3)))
        sizes.add(write_video(tmp_path / "video.mp4", [picture(k) for k in range(30)], fps=12).stat().st_size)
    assert len(sizes) == 1


def test_no_frame_leaves_no_file(tmp_path):
    with VideoWriter(tmp_path / "none.mp4", 64, 48, fps=10) as writer:
        pass
    writer.close()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="no frame came"):
        write_video(tmp_path / "none.mp4", [], fps=10)


@pytest.mark.parametrize("name, settings, message", [
    pytest.param("a.mp4", {"codec": "h246"}, "Did you mean h264", id="unknown codec"),
    pytest.param("a.mp4", {"codec": "vp9"}, "expected .webm or .mkv", id="vp9 into mp4"),
    pytest.param("a.avi", {}, "expected .mp4 or .mkv", id="no such container"),
    pytest.param("a.mp4", {"width": 0}, "sides of 1 to 16384", id="no width"),
    pytest.param("a.mp4", {"fps": 0}, "expected 0.01 to 1000", id="no rate"),
    pytest.param("a.mp4", {"bframes": 17}, "0 to 16 for h264", id="too many B-frames"),
    pytest.param("a.webm", {"codec": "vp9", "bframes": 1}, "0 for vp9", id="vp9 has no B-frames"),
])  # fmt: skip
def test_wrong_settings(tmp_path, name, settings, message):
    with pytest.raises(ConfigError, match=message):
        VideoWriter(tmp_path / name, **{"width": 64, "height": 48, "fps": 10, **settings})
    assert list(tmp_path.iterdir()) == []


def test_wrong_frames(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 64, 48, fps=10) as writer:
        with pytest.raises(ValueError, match=r"expected uint8 \(48, 64, 3\)"):
            writer.write(picture(0, height=47))
        with pytest.raises(ValueError, match="float64"):
            writer.write(picture(0).astype(np.float64))
        writer.write(picture(0))
    with pytest.raises(ValueError, match="after the video was closed"):
        writer.write(picture(1))
    assert len(decoded(tmp_path / "a.mp4")) == 1
