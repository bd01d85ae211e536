from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import av
import numpy as np
import pytest

from operators.errors import SourceError
from operators.probe import Orientation, VideoInfo, probe_video, upright
from operators.records import StreamEnd
from operators.sources import Source
from operators.video import FrameClock, Tally, VideoReader, ending
from tests.conftest import MEDIA
from tests.operators.small_videos import X264, cut, number_of, packets, write_video

B_FRAMES = {**X264, "bf": "3", "b_strategy": "0"}
UNEVEN = [0, 1, 3, 4, 9, 10, 11, 15, 16, 17, 18, 30, 31, 32, 33, 34, 35, 36, 38, 40]
RECORDED = MEDIA / "decoded.json"
DECODED = json.loads(RECORDED.read_text()) if RECORDED.is_file() else {}


def read_all(path: Path, at_once: int = 4) -> tuple[list, StreamEnd]:
    reader = VideoReader(Source("clip", "video", str(path)))
    records = []
    while got := reader.read(at_once):
        records += got
    assert reader.read(1) == []
    return records[:-1], records[-1]


@pytest.mark.parametrize(
    "name, codec, settings",
    [
        pytest.param("a.mp4", "libx264", {"count": 1}, id="one frame"),
        pytest.param("a.mp4", "libx264", {"options": B_FRAMES}, id="H.264 with B-frames"),
        pytest.param("a.h264", "libx264", {"options": B_FRAMES}, id="raw H.264 without times"),
        pytest.param("a.flv", "libx264", {}, id="FLV"),
        pytest.param("a.mp4", "libx264", {"container": {"movflags": "frag_keyframe+empty_moov"}}, id="fragmented MP4"),
        pytest.param("a.mp4", "libx264", {"sound": True}, id="with sound"),
        pytest.param("a.mkv", "libx265", {"options": {"x265-params": "log-level=none"}}, id="HEVC in Matroska"),
        pytest.param("a.webm", "libvpx-vp9", {"options": {"lag-in-frames": "12", "cpu-used": "4"}}, id="VP9, hidden"),
        pytest.param("a.avi", "mpeg4", {}, id="MPEG-4 in AVI"),
        pytest.param("a.ts", "libx264", {"options": {**B_FRAMES, "g": "8"}}, id="H.264 in MPEG-TS"),
        pytest.param("a.mov", "mjpeg", {"pix_fmt": "yuvj420p"}, id="Motion JPEG, full range"),
        pytest.param("a.mp4", "libx264", {"ticks": UNEVEN}, id="variable rate"),
        pytest.param("a.mkv", "libx264", {"ticks": range(100, 120)}, id="late start"),
        pytest.param("a.mp4", "libx264", {"size": (97, 65), "pix_fmt": "yuv444p"}, id="odd size, 4:4:4"),
        pytest.param("a.mp4", "libx264", {"pix_fmt": "yuv420p10le"}, id="10 bits"),
        pytest.param("a.mp4", "libx264", {"pix_fmt": "gray"}, id="grey"),
    ],
)
def test_gives_every_frame_once_in_order_with_its_time(tmp_path, name, codec, settings):
    count = settings.get("count", 20)
    frames, end = read_all(write_video(tmp_path / name, codec, **settings))
    ticks = list(settings.get("ticks", range(count)))
    width, height = settings.get("size", (96, 64))
    assert [number_of(frame.image) for frame in frames] == list(range(count))
    assert [frame.info.index for frame in frames] == list(range(count))
    assert [frame.info.time_s for frame in frames] == pytest.approx([(t - ticks[0]) / 20 for t in ticks], abs=1.1e-3)
    assert {(frame.info.height, frame.info.width) for frame in frames} == {(height, width)}
    assert end == StreamEnd("clip", count)


@pytest.mark.parametrize("wanted", [0, 1, 7, 100])
def test_reads_as_many_as_asked_for(tmp_path, wanted):
    reader = VideoReader(Source("clip", "video", str(write_video(tmp_path / "a.mp4", count=9))))
    first = reader.read(wanted)
    assert len(first) == min(wanted, 10)
    assert len(first + reader.read(100)) == 10
    assert reader.read(100) == []


def test_skip_stands_where_read_stands(tmp_path):
    path = write_video(tmp_path / "a.mp4", options=B_FRAMES)
    frames, end = read_all(path)
    reader = VideoReader(Source("clip", "video", str(path)))
    reader.skip(7)
    rest = reader.read(100)
    assert [record.info for record in rest[:-1]] == [frame.info for frame in frames[7:]]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(rest[:-1], frames[7:], strict=True))
    assert rest[-1] == end


def test_close_twice_then_read_gives_nothing(tmp_path):
    reader = VideoReader(Source("clip", "video", str(write_video(tmp_path / "a.mp4"))))
    reader.read(3)
    reader.close()
    reader.close()
    assert reader.read(5) == []


TURNS = {
    "upright": [1, 0, 0, 1],
    "a quarter clockwise": [0, 1, -1, 0],
    "half": [-1, 0, 0, -1],
    "a quarter anticlockwise": [0, -1, 1, 0],
    "mirrored": [-1, 0, 0, 1],
    "upside down": [1, 0, 0, -1],
    "transposed": [0, 1, 1, 0],
}
SHOWN = {
    "upright": lambda image: image,
    "a quarter clockwise": lambda image: np.rot90(image, -1),
    "half": lambda image: np.rot90(image, 2),
    "a quarter anticlockwise": lambda image: np.rot90(image),
    "mirrored": np.fliplr,
    "upside down": np.flipud,
    "transposed": lambda image: image.transpose(1, 0, 2),
}


@pytest.mark.parametrize("turn", TURNS)
def test_the_display_matrix_is_applied_as_players_do(tmp_path, turn):
    a, b, c, d = TURNS[turn]
    path = write_video(tmp_path / "a.mp4", count=2, matrix=[a, b, 0, c, d, 0, 0, 0, 1])
    stored, _ = read_all(write_video(tmp_path / "stored.mp4", count=2))
    frames, _ = read_all(path)
    assert np.array_equal(frames[1].image, SHOWN[turn](stored[1].image))
    assert frames[1].image.flags.c_contiguous
    info = probe_video(str(path))
    assert (info.height, info.width) == frames[0].image.shape[:2]
    assert info.orientation.mirrored == (turn in ("mirrored", "upside down", "transposed"))


def test_the_keyboard_held_upright_reads_from_left_to_right(media):
    stored = Source("k", "video", str(media / "videos/keyboard_rot90.mov"))
    image = VideoReader(stored).read(1)[0].image
    assert image.shape == (568, 320, 3)
    with av.open(stored.path) as container:
        plain = next(container.decode(video=0)).to_ndarray(format="rgb24")
    # the file is stored with the space bar at the right edge; upright, it is at the bottom
    assert np.array_equal(image, np.rot90(plain, -1))


@pytest.mark.parametrize(
    "turn, shown",
    [
        pytest.param(Orientation(), [[1, 2, 3], [4, 5, 6]], id="as stored"),
        pytest.param(Orientation(True, False, True), [[4, 1], [5, 2], [6, 3]], id="clockwise"),
        pytest.param(Orientation(False, True, True), [[6, 5, 4], [3, 2, 1]], id="half"),
    ],
)
def test_upright(turn, shown):
    stored = np.array([[1, 2, 3], [4, 5, 6]], np.uint8)[..., None]
    assert upright(stored, turn)[..., 0].tolist() == shown


@pytest.mark.parametrize(
    "times, shown",
    [
        pytest.param([], [], id="none"),
        pytest.param([7.0, 7.5, 8.5], [0, 0.5, 1.5], id="counted from the first"),
        pytest.param([None, None, None], [0, 0.1, 0.2], id="no times"),
        pytest.param([5.0, None, 5.2], [0, 0.1, 0.2], id="one without"),
        pytest.param([None, 5.0, 5.1], [0, 0.1, 0.2], id="first without"),
        pytest.param([0.0, 0.5, 0.5, 0.9], [0, 0.5, 0.6, 0.9], id="the same twice"),
        pytest.param([0.0, 0.5, 0.4, 0.7], [0, 0.5, 0.6, 0.7], id="a little back"),
        pytest.param([50.0, 51.0, 0.0, 1.0], [0, 1, 1.1, 2.1], id="a new count"),
    ],
)
def test_clock(times, shown):
    clock = FrameClock(fps=10)
    assert [clock(time) for time in times] == pytest.approx(shown)


INFO = VideoInfo(64, 48, 10.0, 100, "h264", "mov", promised_frames=100, promised_s=10.0)
UNCOUNTED = VideoInfo(64, 48, 10.0, 100, "vp9", "matroska", promised_s=10.0)
LACKING = VideoInfo(64, 48, 10.0, 100, "vp9", "matroska", promised_s=10.0, num_missing=300)
LACKING_COUNTED = VideoInfo(64, 48, 10.0, 100, "h264", "mov", promised_frames=100, promised_s=10.0, num_missing=300)


@pytest.mark.parametrize(
    "info, tally, fatal, says",
    [
        pytest.param(INFO, Tally(), True, "0 of 100 frames", id="no frame"),
        pytest.param(INFO, Tally(100, start_s=5.0, reached_s=15.0), False, None, id="whole"),
        pytest.param(INFO, Tally(98, start_s=0.0, reached_s=10.0), False, None, id="index entries without frames"),
        pytest.param(INFO, Tally(98, skipped=2, start_s=0.0, reached_s=10.0), False, "2 damaged packets", id="hole"),
        pytest.param(INFO, Tally(100, damaged=1, start_s=0.0, reached_s=10.0), False, "1 frame came", id="bit errors"),
        pytest.param(INFO, Tally(40, start_s=0.0, reached_s=4.0), True, "breaks off 6.00 s before", id="time missing"),
        pytest.param(INFO, Tally(99, start_s=0.0, reached_s=10.0, failure="disk"), True, "(disk)", id="cannot go on"),
        pytest.param(INFO, Tally(99, skipped=1, start_s=0.0, reached_s=10.0, partial=True), True, "99 of 100",
                     id="half a packet at the end"),
        pytest.param(UNCOUNTED, Tally(95, start_s=0.0, reached_s=9.5), False, None, id="header rounds up"),
        pytest.param(LACKING, Tally(95, start_s=0.0, reached_s=9.5), True, "300 bytes", id="bytes and time missing"),
        pytest.param(LACKING, Tally(97, start_s=0.0, reached_s=10.0), False, "300 bytes", id="bytes of the middle"),
        pytest.param(LACKING_COUNTED, Tally(100, start_s=0.0, reached_s=10.0), False, None, id="bytes of no frame"),
        pytest.param(LACKING_COUNTED, Tally(99, start_s=0.0, reached_s=10.0), True, "99 of 100", id="last frame gone"),
    ],
)
def test_ending(info, tally, fatal, says):
    end = ending(Source("clip", "video", "x.mp4"), info, tally)
    assert (end.num_frames, end.num_skipped, end.fatal) == (tally.frames, tally.skipped, fatal)
    assert (end.error is None) == (says is None)
    assert says is None or (says in end.error and "'x.mp4'" in end.error)


@pytest.mark.parametrize(
    "packet, share",
    [
        pytest.param(1, 1.0, id="after two packets"),
        pytest.param(9, 1.0, id="after ten packets"),
        pytest.param(9, 0.5, id="in the middle of a packet"),
        pytest.param(15, 0.1, id="at the start of a key frame"),
        pytest.param(19, 0.9, id="in the last packet"),
    ],
)
def test_a_video_cut_short_gives_what_decodes(tmp_path, packet, share):
    options = {**X264, "bf": "0", "g": "5"}
    path = write_video(tmp_path / "a.mp4", options=options, container={"movflags": "faststart"})
    position, length = packets(path)[packet]
    whole = packet + (share == 1.0)
    frames, end = read_all(cut(path, position + int(length * share), "cut.mp4"))
    assert len(frames) in (whole, whole + 1)             # FFmpeg may fill up what is missing of a torn frame
    assert [number_of(frame.image) for frame in frames[:whole]] == list(range(whole))
    assert end.fatal and f"{len(frames)} of 20 frames came" in end.error and "breaks off" in end.error


def test_a_cut_webm_is_told_by_its_duration_and_structure(tmp_path):
    path = write_video(tmp_path / "a.webm", "libvpx-vp9", count=40, options={"cpu-used": "8", "deadline": "realtime"})
    frames, end = read_all(cut(path, 0.7, "cut.webm"))
    assert 0 < len(frames) < 40 and [number_of(frame.image) for frame in frames] == list(range(len(frames)))
    assert end.fatal and f"{len(frames)} frames came" in end.error and "breaks off" in end.error


def test_a_damaged_packet_is_skipped_and_the_rest_comes(tmp_path):
    path = write_video(tmp_path / "a.mp4", options={**X264, "bf": "0", "g": "5"})
    data = bytearray(path.read_bytes())
    position, length = packets(path)[12]
    data[position : position + length] = b"\xff" * length
    path.write_bytes(data)
    frames, end = read_all(path)
    assert (len(frames), end.num_skipped, end.fatal) == (19, 1, False)
    assert "19 of 20 frames came; 1 damaged packet" in end.error
    assert [number_of(frame.image) for frame in frames][-5:] == [15, 16, 17, 18, 19]


def test_memory_does_not_grow_with_length(tmp_path):
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("this system does not tell a process its memory")
    path = write_video(tmp_path / "a.mp4", count=100, size=(960, 540), options={"preset": "ultrafast"})
    reader = VideoReader(Source("clip", "video", str(path)))
    used = []
    for _ in range(100):
        reader.read(1)
        used.append(int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE"))
    assert max(used) - used[10] < 40e6          # all frames together would be 155 MB


@pytest.mark.parametrize("name", sorted(DECODED) or [pytest.param("", id="no media beside this checkout")])
def test_real_videos_give_the_frames_of_the_reference(media, name):
    expected = DECODED[name]
    source = Source("clip", "video", str(media / name))
    if not expected["opens"] or not expected.get("video", True):
        with pytest.raises(SourceError):
            VideoReader(source)
        return
    reader = VideoReader(source)
    hashes, times, sizes = [], [], []
    while (decoded := reader._next()) is not None:       # before the conversion to RGB, which is not in the reference
        frame, _, time_s = decoded
        hashes.append(plane_hash(frame))
        times.append(time_s)
        sizes.append([frame.width, frame.height])
    (end,) = reader.read(1)
    assert end.num_frames == expected["frames"] and hashes == expected["md5"]
    assert all(size in expected["sizes"] for size in sizes)
    assert all(a < b for a, b in zip(times, times[1:], strict=False))
    if None not in expected["pts"]:
        upper, lower = expected["time_base"].split("/")
        ticks = [(pts - expected["pts"][0]) * int(upper) / int(lower) for pts in expected["pts"]]
        assert times == pytest.approx(ticks, abs=1e-6)
    assert end.fatal == (name in ("broken/cut.webm", "broken/index_first_cut.mp4"))
    assert (end.error is None) == (not name.startswith("broken/") or name == "broken/starts_in_the_middle.ts")


def plane_hash(frame: av.VideoFrame) -> str:
    """The first 12 digits of the MD5 over the planes in the native format, without padding."""
    digest = hashlib.md5()
    for plane, component in zip(frame.planes, frame.format.components, strict=True):
        rows = np.frombuffer(bytes(plane), np.uint8).reshape(-1, plane.line_size)[: plane.height]
        digest.update(np.ascontiguousarray(rows[:, : plane.width * ((component.bits + 7) // 8)]))
    return digest.hexdigest()[:12]


def test_each_frame_of_a_stream_that_changes_size_has_its_own(media):
    reader = VideoReader(Source("clip", "video", str(media / "videos/puppy_resolution_change.h264")))
    shapes = [record.image.shape for record in reader.read(96)]
    assert set(shapes) == {(464, 848, 3), (232, 424, 3)} and shapes[0] == (464, 848, 3)
    assert reader.info.fps == 30


@pytest.mark.parametrize("name", ["sign_language.mkv", "desk_vfr.3gp"])
def test_decoding_twice_gives_the_same_pixels(media, name):
    first, second = (VideoReader(Source("c", "video", str(media / "videos" / name))).read(20) for _ in range(2))
    assert all(np.array_equal(a.image, b.image) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize(
    "pix_fmt, color_range, white",
    [
        pytest.param("yuv420p", 1, 255, id="limited range: 235 is white"),
        pytest.param("yuv420p", 2, 235, id="full range, tagged"),
        pytest.param("yuvj420p", 2, 235, id="full range, by its format"),
    ],
)
def test_the_colour_range_is_respected(tmp_path, pix_fmt, color_range, white):
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1" if pix_fmt == "yuv420p" else "mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 32, pix_fmt
        stream.codec_context.color_range = color_range
        frame = av.VideoFrame(64, 32, pix_fmt)
        for plane, value in zip(frame.planes, (235, 128, 128), strict=True):
            plane.update(bytes([value]) * plane.buffer_size)
        frame.color_range = color_range
        out.mux([*stream.encode(frame), *stream.encode(None)])
    frames, _ = read_all(path)
    assert np.abs(frames[0].image.astype(int) - white).max() <= 1
