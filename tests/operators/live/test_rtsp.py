"""RTSP: against a real server of Debian's packages, through a proxy that harms it; and what the relay lets through."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import SourceError
from operators.live.rtsp import MAX_HEAD, Replies
from tests.operators.live.real_rtsp import NO_H264, RealRtsp
from tests.operators.live.servers import (
    CALM,
    QUICK,
    Proxy,
    Served,
    Watched,
    check_numbers,
    no_leaks,
)

pytestmark = pytest.mark.usefixtures("no_leaks")
__all__ = ["no_leaks"]

SLOW = replace(QUICK, silence_s=2.0, first_frame_s=8)
"""This server prepares its media at the first request."""


@pytest.fixture(scope="module")
def server() -> Iterator[RealRtsp]:
    with RealRtsp() as server:
        yield server


@pytest.mark.parametrize("codec", ["vp8", "h264"])
@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_frames_of_a_real_server(server, codec, transport):
    if codec == "h264" and not server.has_h264:
        pytest.skip(NO_H264)
    url = f"rtsp://127.0.0.1:{server.port}/{codec}"
    with Watched(url, replace(CALM, rtsp_transport=transport)) as watched:
        watched.more(12)
        check_numbers(watched.frames)
        state = watched.camera.state()
        assert (state.state, state.width, state.height, state.reconnects) == ("live", 160, 120, 0)
        assert watched.frames[5].frame.image.std() > 5, "a ball on black, not grey"


def test_a_real_server_that_is_cut_stalls_and_returns(server):
    with Proxy(server.port) as proxy, Watched(f"rtsp://127.0.0.1:{proxy.port}/vp8", SLOW) as watched:
        watched.more(5)
        proxy.cut()
        watched.until(lambda: watched.camera.state().reconnects >= 1)   # it may be live again when one looks
        watched.until(watched.is_in("live"))
        watched.more(5)
        proxy.mode = "stall"
        assert watched.until(watched.is_in("reconnecting")) < 10
        assert "silent" in (reason := watched.last.reason) or "no frame" in reason
        proxy.mode = "pass"
        watched.more(5)
        proxy.refuse()
        watched.until(lambda: "refused" in watched.camera.state().reason)
        proxy.accept()
        assert watched.more(5) < 5, "frames flow within 5 s of its return"
        check_numbers(watched.frames)


def test_a_real_server_that_drips_and_garbles(server):
    with Proxy(server.port) as proxy, Watched(f"rtsp://127.0.0.1:{proxy.port}/vp8", SLOW) as watched:
        watched.more(5)
        proxy.mode = "garble"
        watched.until(lambda: watched.camera.state().damaged > 0 or watched.camera.state().reconnects > 0)
        proxy.mode = "drip"
        watched.until(watched.is_in("reconnecting"))
        proxy.mode = "pass"
        watched.more(5)
        check_numbers(watched.frames)


@pytest.mark.parametrize("login, path, reason", [
    pytest.param("", "none", "404", id="nothing there"),
    pytest.param("", "guarded", "401", id="no credentials"),
    pytest.param("cam:hunter2@", "guarded", "401", id="wrong credentials"),
])  # fmt: skip
def test_what_a_real_server_refuses_is_said_without_credentials(server, login, path, reason):
    port, path = (server.guarded, "vp8") if path == "guarded" else (server.port, path)
    with Watched(f"rtsp://{login}127.0.0.1:{port}/{path}") as watched:
        watched.until(watched.is_in("reconnecting"))
        state = watched.last
        assert reason in state.reason and "hunter2" not in state.reason
        assert (state.retry_in_s or 0) > 5 or reason != "401", "many cameras lock accounts that keep trying"


def test_a_real_server_lets_in_who_knows_the_password(server):
    with Watched(f"rtsp://cam:p%3Aw@127.0.0.1:{server.guarded}/vp8") as watched:
        watched.more(3)
        assert "p:w" not in repr(watched.camera.address) and "p%3Aw" not in repr(watched.camera.address)


# --- servers that mean no good -----------------------------------------------------------------------------------


class Fake(Served):
    """Answers every request with the same bytes; keeps what was asked."""

    def __init__(self, answer: bytes) -> None:
        super().__init__()
        self.asked = b""
        self._answer = answer
        self._listener = self.keep(socket.create_server(("127.0.0.1", 0)))
        self.port = self._listener.getsockname()[1]
        self.run(self._serve)

    def _serve(self) -> None:
        while not self.over.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with sock:
                sock.settimeout(1)
                try:
                    while data := sock.recv(1 << 16):
                        self.asked += data
                        sock.sendall(self._answer.replace(b"CSEQ", _cseq(data)))
                except OSError:
                    pass


def _cseq(data: bytes) -> bytes:
    return data.split(b"CSeq: ")[-1].split(b"\r\n")[0]


@pytest.mark.parametrize("location, reason", [
    pytest.param("rtsp://10.0.0.1/x", "allow list", id="private network"),
    pytest.param("rtsp://169.254.169.254/", "allow list", id="link-local"),
    pytest.param("rtsp://127.0.0.1:22/", "port 22", id="a port that is not listed"),
    pytest.param("http://127.0.0.1/", "address of http", id="another scheme"),
    pytest.param("file:///etc/passwd", "address of file", id="a file"),
    pytest.param("", "scheme", id="nowhere"),
])  # fmt: skip
def test_redirects_that_lead_elsewhere_are_refused(location, reason):
    with Fake(f"RTSP/1.0 302 Moved\r\nCSeq: CSEQ\r\nLocation: {location}\r\n\r\n".encode()) as fake, \
            Watched(f"rtsp://admin:hunter2@127.0.0.1:{fake.port}/a") as watched:
        watched.until(watched.is_in("reconnecting"))
        state = watched.last
        assert reason in state.reason or "URL" in state.reason, state.reason
        assert "hunter2" not in state.reason and watched.frames == []


def test_redirects_within_the_allow_list_are_followed():
    with Fake(b"RTSP/1.0 404 Gone\r\nCSeq: CSEQ\r\n\r\n") as last:
        to = f"RTSP/1.0 301 Moved\r\nCSeq: CSEQ\r\nLocation: rtsp://127.0.0.1:{last.port}/b\r\n\r\n"
        with Fake(to.encode()) as first, Watched(f"rtsp://admin:hunter2@127.0.0.1:{first.port}/a") as watched:
            watched.until(lambda: "404" in watched.camera.state().reason)
            assert b"/b" in last.asked and b"hunter2" not in last.asked and b"YWRtaW4" not in last.asked


@pytest.mark.parametrize("scheme, setting, asked", [
    ("rtsp", "tcp", b"RTP/AVP/TCP;"), ("rtsp", "udp", b"RTP/AVP/UDP;"),
    ("rtspu", "tcp", b"RTP/AVP/UDP;"), ("rtspt", "udp", b"RTP/AVP/TCP;"),
])  # fmt: skip
def test_an_address_says_how_pictures_travel(scheme, setting, asked):
    sdp = b"v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=x\r\nm=video 0 RTP/AVP 26\r\na=control:track\r\n"
    head = f"RTSP/1.0 200 OK\r\nCSeq: CSEQ\r\nContent-Type: application/sdp\r\nContent-Length: {len(sdp)}\r\n\r\n"
    config = replace(CALM, rtsp_transport=setting)
    with Fake(head.encode() + sdp) as fake, Watched(f"{scheme}://127.0.0.1:{fake.port}/a", config) as watched:
        watched.until(lambda: b"Transport: " in fake.asked)
        assert b"Transport: " + asked in fake.asked


@pytest.mark.parametrize("answer", [
    pytest.param(b"", id="silence"),
    pytest.param(b"\0" * 70_000, id="zeros"),
    pytest.param(b"HTTP/1.1 200 OK\r\n\r\n", id="another protocol"),
    pytest.param(b"RTSP/1.0 200 OK\r\n" + b"a: b\r\n" * 10_000, id="headers without end"),
    pytest.param(b"RTSP/1.0 200 OK\r\nCSeq: CSEQ\r\nContent-Length: 999999999\r\n\r\n", id="a text without end"),
    pytest.param(b"RTSP/1.0 500 Oops\r\nCSeq: CSEQ\r\n\r\n", id="an error"),
])  # fmt: skip
def test_servers_that_speak_no_rtsp_are_one_reason(answer):
    with Fake(answer) as fake, Watched(f"rtsp://127.0.0.1:{fake.port}/a", QUICK) as watched:
        assert watched.until(watched.is_in("reconnecting")) < 10
        assert watched.last.reason and watched.frames == []


OK = b"RTSP/1.0 200 OK\r\nCSeq: 2\r\n"


@pytest.mark.parametrize("sent, passed", [
    pytest.param(b"", b"", id="nothing"),
    pytest.param(b"$\0\0\x03abc", b"$\0\0\x03abc", id="a picture"),
    pytest.param(b"$\0\0\x03ab", b"", id="part of a picture"),
    pytest.param(OK + b"\r\n", b"RTSP/1.0 200 Relayed\r\ncseq: 2\r\n\r\n", id="a reply"),
    pytest.param(OK + b"Content-Length: 2\r\n\r\nhi$\0\0\0", b"RTSP/1.0 200 Relayed\r\ncseq: 2\r\nContent-Length: 2\r\n"
                 b"\r\nhi$\0\0\0", id="a text, then a picture"),
    pytest.param(OK + b"Location: rtsp://10.0.0.1/\r\nX: y\r\n\r\n", b"RTSP/1.0 200 Relayed\r\ncseq: 2\r\n\r\n",
                 id="headers that FFmpeg needs not see"),
    pytest.param(b"noise $\0\0\x01a", b"$\0\0\x01a", id="noise before a picture"),
    pytest.param(b"OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n$\0\0\0", b"$\0\0\0", id="a request of the server's"),
    pytest.param(OK + b"Transport: RTP/AVP;unicast;client_port=5-6;server_port=7-8;source=10.0.0.1;destination=10.0.0.2"
                 b"\r\n\r\n", b"RTSP/1.0 200 Relayed\r\ncseq: 2\r\nTransport: RTP/AVP;unicast;client_port=5-6;"
                 b"server_port=7-8;source=192.0.2.1\r\n\r\n", id="pictures from elsewhere"),
    pytest.param(OK + b"Transport: RTP/AVP;multicast;destination=239.1.1.1;port=5-6\r\n\r\n",
                 b"RTSP/1.0 200 Relayed\r\ncseq: 2\r\nTransport: RTP/AVP;unicast;source=192.0.2.1\r\n\r\n",
                 id="pictures to a multicast group"),
    pytest.param(OK + b"Transport: RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=0A\r\n\r\n",
                 b"RTSP/1.0 200 Relayed\r\ncseq: 2\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=0A\r\n\r\n",
                 id="pictures in the connection"),
    pytest.param(b"RTSP/1.0 301 Moved\r\nLocation: rtsp://b/\r\n\r\n$\0\0\0", b"", id="a redirect, and all after it"),
])  # fmt: skip
@pytest.mark.parametrize("step", [1, 7, 10_000])
def test_what_the_relay_lets_through(sent, passed, step):
    replies = Replies("192.0.2.1")
    given = b"".join(replies.feed(sent[begin : begin + step]) for begin in range(0, len(sent), step))
    assert given == passed


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.binary(max_size=40), st.sampled_from([
    b"RTSP/1.0 ", b"302 x\r\n", b"Location: rtsp://10.0.0.1/\r\n", b"\n", b"\r\n", b"\n\n", b"$\0\0\4", b"$\0",
    b"Content-Length: 7\r\n", b"200 OK\r\n", b"Transport: RTP/AVP;source=10.0.0.1\r\n", b"\r\r\n", b"\0", b"\x85"])),
    max_size=25))
def test_no_redirect_and_no_foreign_address_gets_through(parts):
    """Read as FFmpeg reads: line by line outside of pictures."""
    replies = Replies("192.0.2.1")
    given = b""
    try:
        for part in parts:
            given += replies.feed(part)
    except SourceError:
        pass
    assert len(replies._data) <= MAX_HEAD + (1 << 17)
    while given:
        if given[:1] == b"$":
            given = given[4 + int.from_bytes(given[2:4], "big"):]
            continue
        head, _, given = given.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        assert lines[0].startswith(b"RTSP/1.0 ") and lines[0].endswith(b" Relayed") and lines[0][9:10] != b"3"
        assert not any(b"\n" in line or b"\r" in line for line in lines)
        fields = dict(line.lower().split(b": ", 1) for line in lines[1:])
        assert b"location" not in fields and b"10.0.0.1" not in fields.get(b"transport", b"")
        given = given[int(fields.get(b"content-length", 0)):]


