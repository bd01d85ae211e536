"""Requests made by hand: where redirects and playlists may lead, credentials, and playlists that nobody would write."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import replace
from hashlib import md5

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.errors import SourceError
from operators.live.addresses import AllowList, NotAllowed, parse
from operators.live.hls import Part, Playlist, Segment, Variant, choose, read_playlist
from operators.live.http import Getter, authorization, redirected
from operators.live.states import CameraConfig, Refused
from operators.live.stop import Stop
from tests.operators.live.servers import (
    CALM,
    HERE,
    QUICK,
    WAIT_S,
    Answer,
    Tcp,
    Watched,
    Web,
    body,
    check_numbers,
    no_leaks,
    pieces,
)
from tests.operators.small_videos import number_of

pytestmark = pytest.mark.usefixtures("no_leaks")
__all__ = ["no_leaks"]


def got(url: str, allow: AllowList = HERE, config: CameraConfig = CALM) -> bytes:
    stop = Stop()
    try:
        answer = Getter(config, allow, stop).get(parse(url))
        try:
            return answer.all(1 << 20, time.monotonic() + WAIT_S)
        finally:
            answer.close()
    finally:
        stop.close()


def to(location: str, status: int = 302) -> Answer:
    return body(b"", status=status, Location=location)


def test_redirects_are_followed_within_the_allow_list():
    with Web({"/a": to("/b", 301), "/b": to("c?d=1", 307), "/c": body(b"here")}) as web:
        assert got(web.url("/a")) == b"here"
        assert web.asked == ["/a", "/b", "/c?d=1"]


@pytest.mark.parametrize("location, error", [
    pytest.param("http://169.254.169.254/latest/meta-data", "allow list", id="cloud metadata"),
    pytest.param("http://10.0.0.1/", "allow list", id="private network"),
    pytest.param("http://[::1]:8000/", "allow list", id="this machine by IPv6"),
    pytest.param("http://[::ffff:10.0.0.1]:8000/", "allow list", id="private, mapped into IPv6"),
    pytest.param("http://2852039166/", "allow list", id="metadata as one number"),
    pytest.param("http://127.0.0.1:22/", "port 22", id="a port that is not listed"),
    pytest.param("file:///etc/passwd", "leads to an address of file", id="a file"),
    pytest.param("rtsp://127.0.0.1/", "leads to an address of rtsp", id="another scheme"),
    pytest.param("gopher://127.0.0.1/", "scheme", id="a scheme that nobody knows"),
    pytest.param("//10.0.0.1/", "allow list", id="another host, same scheme"),
    pytest.param("/loop", "redirects", id="in a circle"),
])  # fmt: skip
def test_redirects_that_lead_elsewhere_are_refused(location, error):
    with Web({"/loop": to(location)}) as web:
        with pytest.raises(SourceError, match=error):
            got(web.url("/loop"))
        assert set(web.asked) == {"/loop"}, "nothing else was asked for"


def test_a_camera_whose_address_redirects_elsewhere_says_so_and_shows_no_password():
    with Web({"/": to("http://10.0.0.1/secret")}) as web:
        with Watched(web.url("/").replace("//", "//admin:hunter2@")) as watched:
            watched.until(watched.is_in("reconnecting"))
            reason = watched.last.reason
    assert "allow list" in reason and "hunter2" not in reason and "admin" not in reason


def test_credentials_stay_with_their_site():
    where = parse("http://user:word@10.1.2.3:8080/a/b")
    assert redirected(where, "/c").password == "word"
    assert redirected(where, "http://10.1.2.3:8080/c").password == "word"
    for elsewhere in ("http://10.1.2.3:8081/c", "http://10.1.2.4:8080/c", "https://10.1.2.3:8080/c", "//x.example/"):
        assert redirected(where, elsewhere).password is None
    assert redirected(where, "http://a:b@10.1.2.3:8080/").password == "b"


def digest_guard(request, over) -> None:
    """Lets in who answers the challenge of RFC 7616 as user 'u ser', password 'p:w'."""
    fields = dict(part.strip().split("=", 1) for part in
                  request.headers.get("Authorization", "Digest ").removeprefix("Digest ").split(",") if "=" in part)
    fields = {name: value.strip('"') for name, value in fields.items()}
    login = md5(b"u ser:cams:p:w").hexdigest()
    asked = md5(f"GET:{request.path}".encode()).hexdigest()
    expected = md5(f"{login}:n0:{fields.get('nc')}:{fields.get('cnonce')}:auth:{asked}".encode()).hexdigest()
    if fields.get("response") == expected and fields.get("uri") == request.path:
        body(b"in")(request, over)
    else:
        body(b"", status=401, WWW_Authenticate='Digest realm="cams", nonce="n0", qop="auth,auth-int"')(request, over)


def test_digest_and_basic_credentials():
    def basic(request, over) -> None:
        right = request.headers.get("Authorization") == "Basic dSBzZXI6cDp3"       # u ser:p:w
        (body(b"in") if right else body(b"", status=401, WWW_Authenticate='Basic realm="x"'))(request, over)

    with Web({"/digest": digest_guard, "/basic": basic}) as web:
        for path in ("/digest?x=1", "/basic"):
            assert got(web.url(path).replace("//", "//u%20ser:p%3Aw@")) == b"in"
            for login in ("", "u%20ser:wrong@"):
                with pytest.raises(Refused, match="401") as raised:
                    got(web.url(path).replace("//", "//" + login))
                assert "wrong" not in str(raised.value)


@given(st.text(max_size=200))
def test_any_challenge_is_answered_or_not_but_never_with_a_new_line(challenge):
    answer = authorization(parse("http://a:b@h/x"), f"Digest {challenge}")
    assert answer is None or ("\n" not in answer and "\r" not in answer)


@pytest.mark.parametrize("answer", [
    pytest.param(b"", id="nothing"),
    pytest.param(b"no http at all\r\n\r\n", id="another protocol"),
    pytest.param(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 500, id="headers without end"),
    pytest.param(b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000, id="a header without end"),
    pytest.param(b"HTTP/1.1 999999 OK\r\n\r\n", id="a status that is none"),
    pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", id="a chunk of no length"),
    pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", id="fewer bytes than promised"),
    pytest.param(b"HTTP/1.1 200 OK\r\n\r\n" + bytes(2 << 20), id="more bytes than allowed"),
])  # fmt: skip
def test_strange_answers_are_one_error(answer):
    with Tcp(lambda _: [answer]) as server, pytest.raises(SourceError, match="127.0.0.1"):
        got(f"http://127.0.0.1:{server.port}/")


def test_headers_that_drip_are_given_up_in_time():
    began = time.monotonic()
    with Tcp(lambda _: (b"x" for _ in range(10_000)), rate=50) as server, pytest.raises(SourceError, match="silent"):
        got(f"http://127.0.0.1:{server.port}/", config=QUICK)
    assert time.monotonic() - began < 3 * QUICK.silence_s + 2


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> tuple[str, str]:
    """A certificate for 127.0.0.1, signed by nobody but itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate of this test, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                    "-days", "2", "-subj", "/CN=camera", "-addext", "subjectAltName=IP:127.0.0.1",
                    "-out", paths[0], "-keyout", paths[1]], check=True, capture_output=True)
    return paths


def test_https_wants_a_certificate_that_somebody_knows(certificate, monkeypatch):
    secure = AllowList(schemes=("https",), hosts=("127.0.0.0/8",))
    with Web({"/": body(b"".join(pieces()[:20]), "video/mp2t")}, certificate) as web:
        url = web.url("/")
        with pytest.raises(SourceError, match="TLS failed .*self.signed"):
            got(url, secure)
        with Watched(url, replace(CALM, verify_tls=False), secure) as watched:
            watched.more(20)
        monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
        assert len(got(url, secure)) > 1000
        with pytest.raises(SourceError, match="TLS failed .*(ostname|mismatch)"):
            got(url.replace("127.0.0.1", "127.0.0.2"), secure)


# --- HLS -----------------------------------------------------------------------------------------------------------


LIVE = """#EXTM3U
#EXT-X-TARGETDURATION:{target}
#EXT-X-MEDIA-SEQUENCE:{first}
{segments}"""


def test_playlists_by_hand():
    assert read_playlist(b"#EXTM3U\n", "x") == Playlist()
    text = b"""#EXTM3U
#EXT-X-TARGETDURATION:4
#EXT-X-MEDIA-SEQUENCE:7
#EXT-X-MAP:URI="init.mp4",BYTERANGE="20@5"
#EXTINF:4.0,
#EXT-X-BYTERANGE:100@50
a.mp4
#EXTINF:4.0,
#EXT-X-BYTERANGE:30
a.mp4
#EXT-X-MAP:URI="other.mp4"
b.mp4
#EXT-X-ENDLIST
"""
    start = Part("init.mp4", 5, 20)
    assert read_playlist(text, "x") == Playlist(
        segments=(Segment(Part("a.mp4", 50, 100), 7, start), Segment(Part("a.mp4", 150, 30), 8, start),
                  Segment(Part("b.mp4"), 9, Part("other.mp4"))),
        target_s=4.0, ended=True,
    )
    master = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=10,RESOLUTION=64x32\nlow\n" \
             b"#EXT-X-STREAM-INF:AVERAGE-BANDWIDTH=99,BANDWIDTH=30,RESOLUTION=128x64\nhigh\n"
    variants = (Variant("low", 10, 2048), Variant("high", 30, 8192))
    assert read_playlist(master, "x").variants == variants
    assert choose(variants, 10_000).uri == "high" and choose(variants, 5000).uri == "low" == choose(variants, 5).uri
    assert read_playlist(b"#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI=k\na\n", "x").encrypted


@settings(max_examples=120, deadline=None)
@given(st.lists(st.one_of(
    st.sampled_from(["#EXT-X-MEDIA-SEQUENCE:", "#EXT-X-MAP:URI=", "#EXT-X-BYTERANGE:", "#EXT-X-STREAM-INF:", "a.ts",
                     "#EXT-X-TARGETDURATION:9" + "9" * 30, "#EXT-X-BYTERANGE:5@" + "9" * 40, "#EXT-X-KEY:METHOD=X"]),
    st.text(max_size=40)), max_size=30))
def test_any_playlist_is_read_or_refused(lines):
    try:
        playlist = read_playlist("\n".join(["#EXTM3U", *lines]).encode("utf-8", "replace"), "x")
    except SourceError:
        return
    assert 1 <= playlist.target_s <= 600
    sequences = [segment.sequence for segment in playlist.segments]
    assert all(isinstance(one, int) for one in sequences)


class Growing:
    """A live playlist of segments of five frames, a new one each quarter of a second from the first question on. Those
    behind the last `window` leave it, but none before it was fetched: a busy machine is no reason to lose one."""

    def __init__(self, window: int = 4) -> None:
        parts = pieces()
        self.segments = [b"".join(parts[begin : begin + 5]) for begin in range(0, 60, 5)]
        self.began: float | None = None
        self.window = window
        self.fetched = 0

    def answers(self) -> dict[str, Answer]:
        found = {f"/s{number}.ts": self.segment(number) for number in range(len(self.segments))}
        return {**found, "/live.m3u8": self.playlist}

    def segment(self, number: int) -> Answer:
        def answer(request, over) -> None:
            self.fetched = max(self.fetched, number + 1)
            body(self.segments[number], "video/mp2t")(request, over)

        return answer

    def playlist(self, request, over) -> None:
        now = time.monotonic()
        self.began = self.began or now
        end = min(3 + int((now - self.began) / 0.25), len(self.segments))
        begin = max(0, min(end - self.window, self.fetched))
        names = "\n".join(f"#EXTINF:0.25,\ns{number}.ts" for number in range(begin, end))
        ended = "\n#EXT-X-ENDLIST" if end == len(self.segments) else ""
        text = LIVE.format(target=1, first=begin, segments=names + ended)
        body(text.encode(), "application/vnd.apple.mpegurl")(request, over)


def test_a_live_playlist_is_followed_to_its_end_at_its_own_rate():
    with Web(Growing().answers()) as web, Watched(web.url("/live.m3u8")) as watched:
        took = watched.until(lambda: watched.queue.ended)
        found = [number_of(live.frame.image) for live in watched.frames]
        assert found == list(range(60)), found
        check_numbers(watched.frames)
        assert took > 1.5 and watched.queue.counts().dropped == {} and watched.queue.error is None


def test_of_several_playlists_the_best_that_is_not_too_large():
    segment = b"".join(pieces()[:10])
    master = b"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1,RESOLUTION=96x64\nsmall.m3u8\n" \
             b"#EXT-X-STREAM-INF:BANDWIDTH=9,RESOLUTION=9600x6400\nlarge.m3u8\n"
    small = LIVE.format(target=1, first=0, segments="s.ts\n#EXT-X-ENDLIST").encode()
    answers = {"/m.m3u8": body(master), "/small.m3u8": body(small), "/s.ts": body(segment)}
    with Web(answers) as web, Watched(web.url("/m.m3u8")) as watched:
        watched.until(lambda: watched.queue.ended)
        assert len(watched.frames) == 10 and "/large.m3u8" not in web.asked


@pytest.mark.parametrize("line, reason", [
    pytest.param("http://169.254.169.254/x.ts", "allow list", id="segment in a special network"),
    pytest.param("file:///etc/passwd", "leads to an address of file", id="segment is a file"),
    pytest.param("concat:http://127.0.0.1/a|file:///etc/passwd", "scheme", id="FFmpeg's own protocols"),
    pytest.param('#EXT-X-MAP:URI="http://10.0.0.1/init"\ns.ts', "allow list", id="initialisation elsewhere"),
    pytest.param('#EXT-X-KEY:METHOD=AES-128,URI="http://10.0.0.1/key"\ns.ts', "encrypted", id="key elsewhere"),
    pytest.param("#EXT-X-STREAM-INF:BANDWIDTH=1\nhttp://10.0.0.1/a.m3u8", "allow list", id="variant elsewhere"),
    pytest.param("/away", "allow list", id="segment redirects elsewhere"),
    pytest.param("", "no segments", id="nothing"),
    pytest.param("missing.ts", "404", id="segment that is not there"),
])  # fmt: skip
def test_playlists_that_lead_elsewhere_are_refused(line, reason):
    text = LIVE.format(target=1, first=0, segments=line).encode()
    answers = {"/m.m3u8": body(text), "/s.ts": body(b"".join(pieces()[:10])), "/away": to("http://10.0.0.1/")}
    with Web(answers) as web, Watched(web.url("/m.m3u8")) as watched:
        watched.until(watched.is_in("reconnecting"))
        assert reason in watched.last.reason and watched.frames == []


def test_a_recording_goes_on_where_it_was_cut():
    """The second of its three segments is not there at the first try: none is played twice, none is left out."""
    parts, tries = pieces(), []

    def second(request, over) -> None:
        tries.append(request.path)
        body(b"".join(parts[5:10]), status=503 if len(tries) == 1 else 200)(request, over)

    text = LIVE.format(target=1, first=7, segments="a.ts\nb.ts\nc.ts\n#EXT-X-ENDLIST").encode()
    answers = {"/m.m3u8": body(text), "/a.ts": body(b"".join(parts[:5])), "/b.ts": second,
               "/c.ts": body(b"".join(parts[10:15]))}
    with Web(answers) as web, Watched(web.url("/m.m3u8")) as watched:
        watched.until(lambda: watched.queue.ended)
        assert [number_of(live.frame.image) for live in watched.frames] == list(range(15))
        assert watched.camera.state().reconnects == 1 and watched.queue.error is None


def test_a_playlist_that_grows_no_more_is_noticed_and_not_played_again():
    """Its encoder died, its web server did not. Later the encoder is back, and counts from 0 again."""
    named = {"first": 7, "segments": "a.ts?token=1"}
    answers = {f"/{name}.ts": body(b"".join(pieces()[begin : begin + 10])) for name, begin in (("a", 0), ("b", 20))}

    def playlist(request, over) -> None:
        body(LIVE.format(target=1, **named).encode())(request, over)

    with Web({"/m.m3u8": playlist, **answers}) as web, Watched(web.url("/m.m3u8"), QUICK) as watched:
        watched.more(10)
        assert watched.until(watched.is_in("reconnecting")) < 10
        assert "nothing new" in (reason := watched.last.reason) or "silent" in reason, "whichever clock runs out first"
        named["segments"], asked = "a.ts?token=2", len(web.asked)
        watched.until(lambda: len(web.asked) > asked + 1)
        assert len(watched.frames) == 10 and web.asked[asked:] == ["/m.m3u8"] * (len(web.asked) - asked)
        named |= {"first": 0, "segments": "b.ts"}
        watched.more(8)         # of a transport stream the last two wait for what comes behind them
        assert [number_of(live.frame.image) for live in watched.frames[:18]] == [*range(10), *range(20, 28)]
        check_numbers(watched.frames)


def test_what_is_not_allowed_is_refused_before_anything_is_sent():
    with Web({"/": body(b"x")}) as web:
        with pytest.raises(NotAllowed, match="allow list"):
            got(web.url("/"), AllowList())
        assert web.asked == []
