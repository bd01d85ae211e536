"""Pushed streams: what good clients send comes out as sent, and what others send is refused, counted and forgotten."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from operators.errors import SourceError
from operators.live.pushed import Pushed, PushRefused
from operators.live.queue import LiveQueue
from operators.live.states import PushedConfig
from tests.operators.small_videos import X264, number_of, numbered, write_video

FAST = PushedConfig(max_rate=1e6, max_bytes=1 << 16)


def pushed(config: PushedConfig = FAST, limit: int = 64) -> Pushed:
    return Pushed("cam", config, LiveQueue(limit))


def picture(index: int, kind: str = "JPEG", size: tuple[int, int] = (96, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(numbered(index, *size)).save(buffer, kind)
    return buffer.getvalue()


def huge_png(width: int, height: int) -> bytes:
    """A header of so many pixels, and hardly any bytes."""
    def part(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(bytes(1000))) + part(b"IEND", b"")


@pytest.fixture(scope="module")
def h264(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("h264")
    options = {**X264, "g": "10"}
    return {
        "plain": write_video(folder / "a.h264", count=30, options={**options, "bf": "0"}).read_bytes(),
        "bframes": write_video(folder / "b.h264", count=30, options={**options, "bf": "2"}).read_bytes(),
        "other size": write_video(folder / "c.h264", count=10, options=options, size=(64, 96)).read_bytes(),
        "large": write_video(folder / "d.h264", count=2, options=options, size=(640, 480)).read_bytes(),
    }


def counts_add_up(source: Pushed) -> bool:
    counts = source.queue.counts()
    return counts.frames_in == counts.taken + sum(counts.dropped.values()) + counts.waiting


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_come_out_as_they_were_sent(kind):
    source = pushed()
    assert source.state().state == "connecting"
    for index in range(3):
        source.image(picture(index, kind), 1000 + index / 2)
    frames = source.queue.take(9)
    assert [number_of(live.frame.image) for live in frames] == [0, 1, 2]
    assert [live.captured_at for live in frames] == [1000, 1000.5, 1001]
    assert [(live.frame.info.index, live.frame.info.time_s) for live in frames] == [(0, 0), (1, 0.5), (2, 1)]
    state = source.state()
    assert (state.state, state.width, state.height) == ("live", 96, 64)
    source.end()
    source.end()
    assert source.state().state == "ended" and source.queue.ended


@pytest.mark.parametrize("timestamp", [None, 0.0, 1e12])
def test_without_a_time_or_with_one_to_come_it_is_now(timestamp):
    source = pushed()
    before = time.time()
    source.image(picture(1), timestamp)
    (live,) = source.queue.take(1)
    assert before <= live.captured_at <= time.time()


@pytest.mark.parametrize("size", [1, 37, 1000, 1 << 15])
@pytest.mark.parametrize("kind", ["plain", "bframes"])
def test_h264_in_pieces_of_any_size(h264, kind, size):
    source, data = pushed(), h264[kind]
    for number, begin in enumerate(range(0, len(data), size)):
        source.chunk(data[begin : begin + size], 1000 + number)
    source.end()
    frames = source.queue.take(64)
    assert [number_of(live.frame.image) for live in frames] == list(range(30))
    times = [live.frame.info.time_s for live in frames]
    assert all(after > before for before, after in zip(times, times[1:], strict=False))
    assert frames[0].captured_at == 1000
    if kind == "plain" and size == 37:
        captured = [live.captured_at for live in frames]
        assert captured == sorted(captured) and len(set(captured)) > 20, "each frame has the time of its own piece"


def test_the_size_may_change_in_mid_stream(h264):
    source = pushed()
    source.chunk(h264["plain"], 1000)
    source.chunk(h264["other size"], 2000)
    source.end()
    sizes = [live.frame.image.shape[:2] for live in source.queue.take(64)]
    assert sizes == [(64, 96)] * 30 + [(96, 64)] * 10


@pytest.mark.parametrize("data, code", [
    pytest.param(b"", "damaged", id="nothing"),
    pytest.param(b"hello", "damaged", id="text"),
    pytest.param(picture(0)[:200], "damaged", id="a picture cut in its header"),
    pytest.param(picture(0)[:-300], "damaged", id="a picture cut in its pixels"),
    pytest.param(picture(0, "GIF"), "damaged", id="another format"),
    pytest.param(picture(0, "BMP"), "damaged", id="and another"),
    pytest.param(huge_png(60_000, 60_000), "too_large", id="a bomb of 3.6 Gpixel"),
    pytest.param(huge_png(8000, 8000), "too_large", id="a bomb that Pillow would take"),
    pytest.param(bytes(1 << 17), "too_large", id="too many bytes"),
])  # fmt: skip
def test_what_is_no_picture_is_refused_and_the_next_one_is_taken(data, code):
    source = pushed()
    with pytest.raises(PushRefused, match="'cam'") as raised:
        source.image(data, 1000)
    assert raised.value.code == code and source.queue.counts().dropped == {code: 1}
    source.image(picture(5), 1001)
    (live,) = source.queue.take(9)
    assert number_of(live.frame.image) == 5 and live.frame.info.index == 0 and counts_add_up(source)


def test_a_bomb_costs_neither_time_nor_memory():
    import tracemalloc

    bomb = huge_png(30_000, 30_000)
    source = pushed()
    tracemalloc.start()
    with pytest.raises(PushRefused):
        source.image(bomb)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 4 << 20


def test_large_frames_of_h264_are_refused_before_they_are_decoded(h264):
    source = pushed(PushedConfig(max_pixels=100_000))
    with pytest.raises(PushRefused) as raised:
        source.chunk(h264["large"] + h264["plain"])
    assert raised.value.code == "damaged"
    source.end()
    assert all(live.frame.image.shape[0] == 64 for live in source.queue.take(64)) and counts_add_up(source)


def test_a_frame_of_h264_without_end_is_given_up():
    source = pushed()
    with pytest.raises(PushRefused) as raised:
        for _ in range(100):
            source.chunk(b"\0\0\1\x65" + b"\x5a" * 4000)
            source.chunk(b"\x5a" * 60_000)
    assert raised.value.code in ("too_large", "damaged")
    assert counts_add_up(source)


@pytest.mark.parametrize("timestamp", [float("nan"), float("inf"), -1.0])
def test_times_that_are_none_are_refused(timestamp):
    source = pushed()
    with pytest.raises(PushRefused, match="timestamp"):
        source.image(picture(0), timestamp)


def test_more_messages_than_allowed_are_refused():
    source = pushed(PushedConfig(max_rate=2))
    data, refused = picture(0), []
    for _ in range(20):
        try:
            source.image(data)
        except PushRefused as error:
            refused.append(error.code)
    assert 10 <= len(refused) <= 16 and set(refused) == {"too_fast"}
    assert source.queue.counts().frames_in == 20 and counts_add_up(source)


def test_after_the_end_nothing_is_taken():
    source = pushed()
    source.end()
    for push in (source.image, source.chunk):
        with pytest.raises(PushRefused) as raised:
            push(picture(0))
        assert raised.value.code == "ended"
    removed = pushed()
    removed.image(picture(0))
    removed.stop()
    assert removed.queue.counts().dropped == {"stopped": 1}
    with pytest.raises(PushRefused):
        removed.image(picture(0))


def test_a_stream_that_is_silent_does_not_count_as_live():
    source = pushed(PushedConfig(silence_s=0.01))
    source.image(picture(0))
    deadline = time.monotonic() + 10
    while (state := source.state()).state == "live" and time.monotonic() < deadline:
        pass
    assert state.state == "reconnecting" and "no frame was pushed" in state.reason


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.binary(max_size=400),
                 st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=20)).map(
                     lambda change: picture(3)[: change[0]] + change[1] + picture(3)[change[0] + len(change[1]):])))
def test_any_bytes_are_a_picture_or_one_error(data):
    source = pushed(limit=2)
    try:
        source.image(data, 1.0)
    except SourceError as error:
        assert isinstance(error, PushRefused) and len(str(error)) < 500
    assert counts_add_up(source) and source.queue.counts().frames_in == 1


@settings(max_examples=60, deadline=None)
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=60)), min_size=1, max_size=8),
       step=st.integers(1, 4000))
def test_damaged_h264_costs_frames_and_nothing_else(h264, changes, step):
    data = bytearray(h264["plain"])
    for share, noise in changes:
        at = int(share * (len(data) - 1))
        data[at : at + len(noise)] = noise
    source = pushed()
    for begin in range(0, len(data), step):
        try:
            source.chunk(bytes(data[begin : begin + step]), 1.0)
        except PushRefused as error:
            assert error.code in ("damaged", "too_large")
    source.end()
    assert counts_add_up(source)
    assert all(isinstance(live.frame.image, np.ndarray) for live in source.queue.take(64))
