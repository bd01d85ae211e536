"""Cameras on real sockets, and what happens to them: each kind of source, and each kind of misfortune."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from operators.live import wire
from operators.live.addresses import AllowList, Endpoint, NotAllowed
from operators.live.camera import Camera
from operators.live.queue import LiveQueue
from operators.live.states import CameraConfig
from operators.live.stop import Stop
from operators.sources import Source
from operators.video import VideoReader
from tests.operators.live.servers import (
    QUICK,
    RATE,
    WAIT_S,
    Proxy,
    Served,
    Tcp,
    Watched,
    Web,
    body,
    check_numbers,
    endless,
    jpegs,
    live,
    multipart,
    no_leaks,
    pieces,
    play,
)
from tests.operators.small_videos import X264, number_of, write_video

pytestmark = pytest.mark.usefixtures("no_leaks")
__all__ = ["no_leaks"]


def numbers(watched: Watched) -> list[int]:
    return [number_of(live.frame.image) for live in watched.frames]


def follows(found: list[int]) -> bool:
    """Whether each number is the one after the one before it: frames are numbered modulo 64."""
    return all(after == (before + 1) % 64 for before, after in zip(found, found[1:], strict=False))


WEB = {
    "/mjpeg": live(lambda: multipart(jpegs()), "multipart/x-mixed-replace; boundary=frame"),
    "/ts": live(lambda: pieces(), "video/mp2t"),
    "/unnamed": live(lambda: pieces(), "application/octet-stream"),
    "/mp4": live(lambda: pieces("mp4"), "video/mp4"),
    "/flv": live(lambda: pieces("flv", "flv"), "video/x-flv"),
    "/mkv": live(lambda: pieces("matroska"), "video/x-matroska"),
}


@pytest.mark.parametrize("path", WEB)
def test_each_kind_of_stream_over_http(path):
    with Web(WEB) as web, Watched(web.url(path)) as watched:
        watched.more(10)
        check_numbers(watched.frames)
        assert follows(numbers(watched)), numbers(watched)
        state = watched.camera.state()
        assert (state.state, state.width, state.height) == ("live", 96, 64)
        assert watched.frames[0].frame.info.index == 0 and watched.frames[0].frame.info.time_s == 0
    assert watched.camera.state().state == "stopped"


def test_transport_streams_over_tcp_keep_their_times_and_say_when_frames_came():
    with Tcp(lambda _: pieces(), stays=True) as server, Watched(f"tcp://127.0.0.1:{server.port}") as watched:
        watched.more(20)
        steps = [b.frame.info.time_s - a.frame.info.time_s
                 for a, b in zip(watched.frames, watched.frames[1:], strict=False)]
        assert steps == pytest.approx([1 / RATE] * len(steps), abs=1e-3)
        assert all(0 < time.time() - live.captured_at < WAIT_S for live in watched.frames)
        assert follows(numbers(watched))


def test_transport_streams_over_udp():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def send(sock: socket.socket, over: threading.Event) -> None:
        def datagrams(data: bytes) -> None:
            for begin in range(0, len(data), 1316):
                sock.sendto(data[begin : begin + 1316], ("127.0.0.1", port))

        play(datagrams, endless(pieces()), over)

    with Served() as server, Watched(f"udp://127.0.0.1:{port}") as watched:
        server.run(send, server.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)), server.over)
        watched.more(10)
        check_numbers(watched.frames)


def test_a_recording_over_http_is_played_at_its_own_rate_and_ends():
    recording = b"".join(pieces()[:20])
    with Web({"/a.ts": body(recording, "video/mp2t")}) as web, Watched(web.url("/a.ts")) as watched:
        assert watched.until(lambda: watched.queue.ended) > 0.8, "20 frames of 20 a second"
        assert numbers(watched) == list(range(20))
    assert watched.camera.state().state == "ended" and watched.queue.error is None


def test_a_recording_that_breaks_off_is_no_end():
    recording = b"".join(pieces()[:20])
    whole = body(recording, "video/mp2t", Content_Length=str(len(recording) + 5000))
    with Web({"/a.ts": whole}) as web, Watched(web.url("/a.ts")) as watched:
        watched.until(watched.is_in("reconnecting"))
        assert "breaks off" in watched.last.reason


# --- files -------------------------------------------------------------------------------------------------------


FILES = AllowList(schemes=("file",))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return write_video(tmp_path_factory.mktemp("clip") / "a.mp4", count=12, options={**X264, "bf": "2"})


def test_a_file_gives_what_an_offline_run_reads_as_fast_as_it_is_taken(clip):
    *expected, _ = VideoReader(Source("cam", "video", str(clip))).read(99)
    config = CameraConfig(paced=False)
    with Watched(f"file://{clip}", config, FILES, limit=2, policy="block") as watched:
        watched.until(lambda: watched.queue.ended)
    assert [live.frame.info for live in watched.frames] == [frame.info for frame in expected]
    assert all((a.frame.image == b.image).all() for a, b in zip(watched.frames, expected, strict=True))
    assert watched.camera.state().state == "ended" and watched.queue.counts().dropped == {}


def test_a_file_at_its_own_rate_drops_for_whom_is_slow(clip):
    with Watched(f"file://{clip}", CameraConfig(), FILES) as watched:
        assert watched.until(lambda: watched.queue.ended) > 0.5, "12 frames of 20 a second"
    assert len(watched.frames) == 12
    with Watched(f"file://{clip}", CameraConfig(paced=False), FILES, limit=3) as watched:
        watched.until(lambda: watched.queue.ended)      # also of what waited there when its source had ended
    counts = watched.queue.counts()
    assert counts.frames_in == 12 and counts.taken + counts.dropped.get("queue_full_oldest", 0) == 12


def test_a_file_in_a_loop_goes_on_in_number_and_time(clip):
    config = CameraConfig(paced=False, loop=True)
    with Watched(f"file://{clip}", config, FILES, limit=4, policy="block") as watched:
        watched.more(30)
        check_numbers(watched.frames)
        times = [live.frame.info.time_s for live in watched.frames]
        assert times[:30] == pytest.approx([index / 20 for index in range(30)])
        assert numbers(watched)[:26] == [*range(12), *range(12), 0, 1]


@pytest.mark.parametrize("content, reason", [(None, "does not exist"), (b"", "empty"), (b"hello", "text")])
def test_a_file_that_is_no_use_ends_with_the_reason(tmp_path, content, reason):
    path = tmp_path / "a.mp4"
    if content is not None:
        path.write_bytes(content)
    with Watched(f"file://{path}", CameraConfig(), FILES) as watched:
        watched.until(lambda: watched.queue.ended)
        assert reason in watched.camera.state().reason and reason in watched.queue.error


def test_one_that_was_never_started_is_stopped_all_the_same(clip):
    queue = LiveQueue(2)
    camera = Camera("cam", f"file://{clip}", CameraConfig(), FILES, queue)
    assert camera.state().state == "connecting"
    camera.stop()
    camera.stop()
    assert camera.state().state == "stopped" and queue.ended


@pytest.mark.parametrize("url", ["file:///etc/hosts", "gopher://x/", "http://127.0.0.1:22/", ""])
def test_what_is_not_allowed_makes_no_camera(url):
    with pytest.raises(NotAllowed):
        Camera("cam", url, CameraConfig(), AllowList(), LiveQueue(1))


# --- misfortunes -------------------------------------------------------------------------------------------------


def long() -> Iterator[bytes]:
    return endless(pieces())


def test_a_cut_connection_is_made_again_and_indices_go_on():
    with Tcp(lambda _: long()) as server, Proxy(server.port) as proxy, \
            Watched(f"tcp://127.0.0.1:{proxy.port}") as watched:
        watched.more(5)
        proxy.cut()
        watched.until(lambda: watched.camera.state().reconnects >= 1)   # it may be live again when one looks
        watched.until(watched.is_in("live"))
        watched.more(5)
        check_numbers(watched.frames)


def test_a_dead_server_is_tried_until_it_returns():
    with Tcp(lambda _: long()) as server, Proxy(server.port) as proxy, \
            Watched(f"tcp://127.0.0.1:{proxy.port}") as watched:
        watched.more(5)
        proxy.refuse()
        watched.until(lambda: watched.camera.state().reconnects >= 3)
        state = watched.camera.state()
        assert state.state == "reconnecting" and "refused" in state.reason and "127.0.0.1" in state.reason
        assert state.retry_in_s is None or state.retry_in_s <= QUICK.retry_max_s
        proxy.accept()
        returned = watched.more(5)
        assert returned < 5, "frames flow within 5 s of its return"
        check_numbers(watched.frames)


@pytest.mark.parametrize("mode", ["stall", "drip"])
def test_an_open_connection_without_frames_is_given_up(mode):
    with Tcp(lambda _: long()) as server, Proxy(server.port) as proxy, \
            Watched(f"tcp://127.0.0.1:{proxy.port}", QUICK) as watched:
        watched.more(5)
        proxy.mode = mode
        noticed = watched.until(watched.is_in("reconnecting"))
        assert noticed < 10 and ("silent" in (reason := watched.last.reason) or "no frame" in reason)
        proxy.mode = "pass"
        watched.until(watched.is_in("live"))
        watched.more(5)
        check_numbers(watched.frames)


@pytest.mark.parametrize("scheme", ["tcp", "http"])
def test_garbled_bytes_are_survived(scheme):
    picture = live(lambda: endless(multipart(jpegs())), "multipart/x-mixed-replace; boundary=frame")
    with Tcp(lambda _: long()) as server, Web({"/": picture}) as web, \
            Proxy(web.port if scheme == "http" else server.port) as proxy, \
            Watched(f"{scheme}://127.0.0.1:{proxy.port}/", QUICK) as watched:
        watched.more(5)
        proxy.mode = "garble"
        watched.until(lambda: watched.camera.state().damaged > 0 or watched.camera.state().reconnects > 0)
        proxy.mode = "pass"
        watched.more(3)
        watched.until(lambda: follows(numbers(watched)[-4:]) and len(watched.frames) > 8 or not watched.more(1))
        check_numbers(watched.frames)


@pytest.mark.parametrize("other", [
    pytest.param({"size": (64, 96)}, id="another resolution"),
    pytest.param({"codec": "mpeg2video", "rate": 25}, id="another codec"),
    pytest.param({"rate": 10}, id="another rate"),
    pytest.param({"start_s": 5000.0}, id="times that jump ahead"),
])  # fmt: skip
def test_a_stream_that_becomes_another_one(other):
    """In mid-connection, without a word: eight frames of one stream, then another one."""
    then = pieces(**other)
    with Tcp(lambda number: [*(pieces()[:8] if number == 0 else ()), *then, *then]) as server, \
            Watched(f"tcp://127.0.0.1:{server.port}", QUICK) as watched:
        watched.more(5)
        size = other.get("size", (96, 64))
        watched.until(lambda: watched.frames[-1].frame.image.shape[:2] == size[::-1] and len(watched.frames) > 25
                      and follows(numbers(watched)[-8:]))
        check_numbers(watched.frames)
        state = watched.camera.state()
        assert (state.width, state.height) == size
        assert watched.frames[-1].frame.info.time_s < 60, "a jump of the stream's own clock is none of ours"


def test_times_that_jump_back_keep_rising():
    with Tcp(lambda _: [*pieces(start_s=9000.0)[:20], *pieces()]) as server, \
            Watched(f"tcp://127.0.0.1:{server.port}") as watched:
        watched.more(40)
        check_numbers(watched.frames)
        assert watched.frames[-1].frame.info.time_s < 60


def test_nothing_but_garbage_is_no_video():
    noise = random.Random(0).randbytes(4000)
    with Tcp(lambda _: endless([noise])) as server, \
            Watched(f"tcp://127.0.0.1:{server.port}", replace(QUICK, first_frame_s=1.5)) as watched:
        watched.until(lambda: watched.camera.state().reconnects >= 1)
        assert watched.frames == [] and watched.camera.state().width == 0


def test_a_camera_that_dies_costs_the_others_nothing():
    with Tcp(lambda _: long()) as server, Proxy(server.port) as proxy, \
            Watched(f"tcp://127.0.0.1:{server.port}", limit=1024) as well, \
            Watched(f"tcp://127.0.0.1:{proxy.port}") as ill:
        ill.more(3)
        well.more(3)
        proxy.refuse()
        ill.until(ill.is_in("reconnecting"))
        well.more(20)
        check_numbers(well.frames)
        assert follows(numbers(well)) and well.queue.counts().dropped == {} and well.camera.state().reconnects == 0


def test_one_that_is_not_there_is_stopped_while_it_waits():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))            # bound, and nobody listens
        with Watched(f"tcp://127.0.0.1:{taken.getsockname()[1]}") as watched:
            watched.until(watched.is_in("reconnecting"))


def test_a_connection_with_itself_is_none():
    """Tried again and again, a port of this machine where nobody listens is now and then given to our own end, and TCP
    connects that with itself: the server that comes back would find its port taken."""
    stop = Stop()
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        endpoint = Endpoint(socket.AF_INET, *own.getsockname())
        with pytest.raises(ConnectionRefusedError):
            wire._connect(own, endpoint, stop, time.monotonic() + WAIT_S)
    stop.close()


def test_one_that_accepts_and_never_speaks_is_stopped_while_it_waits():
    with Tcp(lambda _: []) as server:
        server.script = lambda _: (server.over.wait(60) and b"" for _ in range(1))
        with Watched(f"tcp://127.0.0.1:{server.port}", CameraConfig()) as watched:
            watched.until(lambda: server.connections == 1)


def test_the_defaults_promise_ten_seconds_and_five():
    config = CameraConfig()
    assert config.silence_s < 10, "a dead camera is noticed within 10 s"
    assert config.connect_s + config.retry_max_s < 5, "the longest wait before a try that can succeed"


def test_frames_larger_than_allowed_are_refused_before_they_are_decoded():
    with Tcp(lambda _: pieces(size=(640, 480), count=5)) as server, \
            Watched(f"tcp://127.0.0.1:{server.port}", replace(QUICK, max_pixels=100_000)) as watched:
        watched.until(watched.is_in("reconnecting"))
        assert "100000" in watched.last.reason
    assert watched.frames == []


def test_an_engine_that_is_not_there_is_said():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here, which may decode")
    with Tcp(lambda _: long()) as server, \
            Watched(f"tcp://127.0.0.1:{server.port}", replace(QUICK, hwaccel="cuda")) as watched:
        watched.until(watched.is_in("reconnecting"))
        assert "hwaccel" in watched.last.reason
