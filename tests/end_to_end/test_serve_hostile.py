"""The real application, asked by those who mean harm: no stack trace, no crash, and everybody else is still served.

One application with a token, narrow bounds, and nothing that may be pulled but one public address range.
"""

from __future__ import annotations

import io
import json
import os
import socket
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest
import requests
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from urllib3.exceptions import ProtocolError
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from tests.end_to_end.ports import free_port
from tests.end_to_end.test_serve import eventually

pytestmark = pytest.mark.slow

TOKEN, FULL = "a-token-of-the-hostile-tests", "a-token-that-has-its-streams"
PATIENCE_S = 100
MAX_BODY, MAX_MESSAGE = 20_000, 60_000
SECRETS = ("Traceback", 'File "', "site-packages", "root:x:", TOKEN)
ENDLESS = ("text/event-stream", "multipart/", "application/x-ndjson")
CALM = settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))


@dataclass
class Server:
    """Where it listens."""

    at: str

    def ask(self, method: str, path: str, token: str | None = TOKEN, **options: Any) -> requests.Response:
        """As it stands: nothing of the path is tidied up. At most the first part of an endless answer is read."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        headers |= options.pop("headers", {})
        prepared = requests.Request(method, f"http://{self.at}/", headers=headers, **options).prepare()
        prepared.url = f"http://{self.at}{path}"
        answer = requests.Session().send(prepared, timeout=PATIENCE_S, stream=True, allow_redirects=False)
        with closing(answer):
            kind = answer.headers.get("content-type", "")
            endless = answer.status_code == 200 and kind.startswith(ENDLESS)
            answer._content = b"" if endless else answer.raw.read(1 << 20, decode_content=True)
        return answer

    def socket(self, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {TOKEN}"} | options.pop("headers", {})
        return connect(f"ws://{self.at}{path}", additional_headers=headers, open_timeout=PATIENCE_S, **options)


@pytest.fixture(scope="module")
def server(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    from ray import serve

    from pipelines.serving.actors import forget_registry
    from pipelines.serving.app import build

    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(f"door {TOKEN}\ngate {FULL}\n")
    tokens.chmod(0o600)
    port = free_port()
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    bounds = {"token_file": str(tokens), "max_body_bytes": MAX_BODY, "max_upload_bytes": MAX_BODY,
              "max_message_bytes": MAX_MESSAGE, "max_streams": 3, "max_requests_per_s": 1000.0}  # fmt: skip
    args = {"device": "cpu", "max_streams": 4, "guard": bounds}
    args["allow"] = {"schemes": ["rtsp", "http"], "hosts": ["public"]}
    serve.run(build(args), name="hostile", route_prefix="/")
    yield Server(f"127.0.0.1:{port}")
    serve.shutdown()
    forget_registry("hostile")


@pytest.fixture(scope="module")
def pushed(server: Server) -> str:
    """A stream that a client pushes."""
    assert server.ask("POST", "/streams", json={"id": "pushed"}).status_code == 201
    return "pushed"


def harmless(answer: requests.Response) -> int:
    """The status: one that means something, with a sentence where it is an error, and nothing of what is inside."""
    text = answer.content.decode("utf-8", "replace")
    assert answer.status_code < 500 or answer.status_code == 503, text
    assert not any(secret in text for secret in SECRETS), text[:500]
    assert answer.headers.get("X-Content-Type-Options") == "nosniff" and answer.headers.get("X-Request-ID")
    if answer.status_code >= 400:
        said = answer.json()
        assert list(said) == ["error"] and len(said["error"]) > 10, text
    return answer.status_code


def picture(side: int = 64) -> bytes:
    """A frame to push: 8 bytes of time, then a JPEG."""
    out = io.BytesIO()
    Image.new("RGB", (side, side), (200, 30, 30)).save(out, "JPEG")
    return bytes(8) + out.getvalue()


# ----------------------------------------------------------------------------------------------------- who may ask


@pytest.mark.parametrize("path", ["/streams", "/streams/x.js", "/events", "/metrics", "/openapi.json", "/no"])
@pytest.mark.parametrize("token", [None, TOKEN[:-1], TOKEN.upper()], ids=["none", "short", "other case"])
def test_nothing_without_the_token(server, path, token):
    assert harmless(server.ask("GET", path, token)) == 401


def test_no_socket_without_the_token(server, pushed):
    for path in (f"/streams/{pushed}/frames", f"/streams/{pushed}/tracks", "/no"):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://{server.at}{path}", open_timeout=PATIENCE_S)
        assert refused.value.response.status_code in (401, 403)
    with pytest.raises(InvalidStatus) as refused:
        server.socket(f"/streams/{pushed}/frames", origin="https://evil.example.com")
    assert refused.value.response.status_code == 403


def test_the_token_by_a_subprotocol_and_by_the_address(server, pushed):
    """Through Ray Serve's own proxy."""
    with connect(f"ws://{server.at}/streams/{pushed}/frames", subprotocols=["maskstream", f"bearer.{TOKEN}"],
                 open_timeout=PATIENCE_S) as opened:  # fmt: skip
        opened.send(b"short")
        assert opened.subprotocol == "maskstream" and "5 bytes" in json.loads(opened.recv(PATIENCE_S))["error"]
    with connect(f"ws://{server.at}/streams/{pushed}/frames?token={TOKEN}", open_timeout=PATIENCE_S) as opened:
        opened.send("hello")
        assert "binary" in json.loads(opened.recv(PATIENCE_S))["error"]


# ------------------------------------------------------------------------------------------------- paths and addresses


@pytest.mark.parametrize("path", [
    "/../../../../etc/passwd", "/%2e%2e/%2e%2e/%2e%2e/etc/passwd", "/..%2f..%2f..%2fetc%2fpasswd", "//etc/passwd",
    "/....//....//etc/passwd", "/%5c..%5c..%5cetc%5cpasswd", "/streams/..%2f..%2fetc%2fpasswd", "/.%2e/guard.py",
    "/app.js%00.html", "/streams/%00", "/streams/" + "a" * 500, "/streams/%ff%fe", "/index.html/../../guard.py",
    "/page/index.html",
])  # fmt: skip
def test_no_way_out_of_the_page(server, path):
    assert harmless(server.ask("GET", path)) in (400, 404)


@pytest.mark.parametrize("url", [
    "file:///etc/passwd", "/etc/passwd", "http://127.0.0.1:8265/api", "http://localhost/", "http://[::1]/", "http://0.0.0.0/",
    "http://169.254.169.254/latest/meta-data/", "http://10.0.0.1/", "http://192.168.1.1/", "http://[fe80::1]/",
    "http://[::ffff:127.0.0.1]/", "http://2130706433/", "http://0x7f.1/", "http://127.1/", "rtsp://224.0.0.1/live",
    "ftp://example.com/x", "concat:/etc/passwd|x", "subfile,,start,0,end,9,,:/etc/passwd", "http://a@127.0.0.1/",
    "crypto:file:///etc/passwd", "data:text/plain,x", "gopher://127.0.0.1:25/", "http://93.184.216.34:22/", "", " ", "http://",
    "http:// /", "rtsp://\r\nhost/", "http://93.184.216.34:99999/", "unix:///var/run/docker.sock", "pipe:0",
])  # fmt: skip
def test_nothing_inside_can_be_pulled(server, url):
    """Server-side request forgery: every address that is not out in the world."""
    assert harmless(server.ask("POST", "/streams", json={"id": "spy", "url": url})) in (400, 403)
    assert harmless(server.ask("GET", "/streams/spy")) == 404


# -------------------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize("body", [
    b"", b"{", b"[]", b"null", b"3", b'"x"', b"{}", b'{"id": null}', b'{"id": 3}', b'{"id": ""}', b'{"id": "a/b"}',
    b'{"id": "../x"}', b'{"id": "a", "id": 3}', b'{"id": "a", "queue": 0}', b'{"id": "a", "queue": 1e400}',
    b'{"id": "a", "queue": "8"}', b'{"id": "a", "policy": "drop_all"}', b'{"id": "a", "more": 1}', b"[" * 9000,
    b'{"id": "\xff"}', b'{"id": "a", "url": ["rtsp://x"]}', b'{"id": "' + b"a" * 9000 + b'"}', b'{"id": NaN}',
    b'{"id": "a\\u0000"}', b'{"id": "\\ud800"}', b'{"id": "a", "url": "http://x/' + b"y" * 9000 + b'"}',
], ids=range(26))  # fmt: skip
def test_bodies_that_register_nothing(server, body):
    answer = server.ask("POST", "/streams", data=body, headers={"Content-Type": "application/json"})
    assert harmless(answer) in (400, 403)


@pytest.mark.parametrize("body, kind, said", [
    pytest.param(b"{", "application/json", "expected as a JSON object", id="torn"),
    pytest.param(b"\xff" * 99, "application/json", "expected as a JSON object", id="no text"),
    pytest.param(b'{"id": "a"}', "text/plain", "Content-Type: application/json", id="of another type"),
    pytest.param(b'{"id": "a", "%s": 1}' % (b"k" * 5000), "application/json", "body.kkk", id="a key without end"),
])  # fmt: skip
def test_bodies_are_refused_in_words_that_help(server, body, kind, said):
    answer = server.ask("POST", "/streams", data=body, headers={"Content-Type": kind})
    assert harmless(answer) == 400 and said in answer.json()["error"] and len(answer.text) < 600


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(
        st.sampled_from(["id", "url", "policy", "queue"]) | st.text(max_size=8), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@CALM
@given(body=JSON, kind=st.sampled_from(["application/json", "text/plain", "", "application/x-www-form-urlencoded"]))
def test_any_json_is_taken_or_refused(server, body, kind):
    answer = server.ask("POST", "/streams", data=json.dumps(body), headers={"Content-Type": kind})
    if harmless(answer) == 201:
        assert harmless(server.ask("DELETE", f"/streams/{answer.json()['id']}")) == 200


@pytest.mark.parametrize("path", ["/streams", "/videos"])
@pytest.mark.parametrize("whole", [True, False], ids=["length told", "in pieces"])
def test_a_body_that_is_too_long(server, path, whole):
    body = b"x" * (4 * MAX_BODY)
    pieces = body if whole else (body[i : i + 4096] for i in range(0, len(body), 4096))
    # it may be hung up on before it has said all, and before it has read all of the answer
    with suppress(requests.exceptions.ConnectionError, ProtocolError):
        assert harmless(server.ask("POST", path, data=pieces)) == 413


@pytest.mark.parametrize("size", [0, 1, 100, 5000])
def test_a_video_that_is_none(server, size):
    assert harmless(server.ask("POST", "/videos", data=os.urandom(size))) in (400, 422)


def test_streams_per_token(server):
    """Three each; the other's are its own."""

    def register(number: int) -> int:
        return harmless(server.ask("POST", "/streams", FULL, json={"id": f"own-{number}"}))

    try:
        assert [register(number) for number in range(4)] == [201, 201, 201, 429]
    finally:
        for number in range(3):
            server.ask("DELETE", f"/streams/own-{number}", FULL)


# ----------------------------------------------------------------------------------------------------- all addresses


@pytest.fixture(scope="module")
def operations(server: Server) -> list[tuple[str, str, list[dict], bool]]:
    """(method, path, parameters, whether there is a body) of everything that the application says it has."""
    paths = server.ask("GET", "/openapi.json").json()["paths"]
    found = [(method.upper(), path, operation.get("parameters", []), "requestBody" in operation)
             for path, methods in paths.items() for method, operation in methods.items()]  # fmt: skip
    assert {"/streams", "/streams/{stream}", "/videos", "/metrics", "/events"} <= set(paths)
    return found


VALUE = st.one_of(
    st.text(max_size=30), st.integers().map(str), st.floats().map(str),
    st.sampled_from(["pushed", "..", "%00", "-1", "1e999", "", "null", "x" * 400, "'; --", "<script>", "\u202e", "{}"]),
)  # fmt: skip


@settings(CALM, max_examples=80)
@given(data=st.data())
def test_every_operation_on_any_value(server, pushed, operations, data):
    """What OpenAPI lists, with values of no schema."""
    method, path, parameters, has_body = data.draw(st.sampled_from(operations))
    query = []
    for parameter in parameters:
        value = quote(data.draw(VALUE), safe="")
        if parameter["in"] == "path":
            path = path.replace("{" + parameter["name"] + "}", value)
        elif data.draw(st.booleans()):
            query.append(f"{parameter['name']}={value}")
    if method == "DELETE" and path == f"/streams/{pushed}":
        return                                              # the other tests need it
    body = json.dumps(data.draw(JSON)) if has_body or method == "POST" else None
    answer = server.ask(method, path + ("?" + "&".join(query) if query else ""), data=body)
    if harmless(answer) == 201:
        server.ask("DELETE", f"/streams/{answer.json()['id']}")


# ------------------------------------------------------------------------------------------------------------- sockets


@CALM
@given(messages=st.lists(st.binary(max_size=200) | st.text(max_size=50), min_size=1, max_size=5),
       query=st.sampled_from(["", "?format=image", "?format=h264"]))  # fmt: skip
def test_any_message_is_answered_with_an_error(server, pushed, messages, query):
    """Each one is; none ends the stream, nor the connection but by a close."""
    if "end" in messages:
        return
    with server.socket(f"/streams/{pushed}/frames{query}") as opened:
        for message in messages:
            opened.send(message)
        with suppress(TimeoutError, ConnectionClosed):
            while True:
                said = json.loads(opened.recv(0.05))
                assert list(said) == ["error"] and not any(secret in said["error"] for secret in SECRETS)
    assert harmless(server.ask("GET", f"/streams/{pushed}")) == 200


@pytest.mark.parametrize("message", [
    pytest.param(bytes(8) + b"\xff\xd8\xff\xe0" + os.urandom(500), id="a JPEG's beginning"),
    pytest.param(bytes(8) + b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR\x7f\xff\xff\xff\x7f\xff\xff\xff\x08\x02\x00\x00\x00",
                 id="a PNG of 2^62 pixels"),
    pytest.param(b"\xff" * 7 + b"\x7f" + b"x" * 50, id="a time that is no number"),
    pytest.param(b"\x00" * 6 + b"\xf0\x7f" + b"x" * 50, id="a time without end"),
    pytest.param(bytes(8) + b"GIF89a" + b"\xff" * 50, id="another format"),
])  # fmt: skip
def test_frames_that_are_none(server, pushed, message):
    with server.socket(f"/streams/{pushed}/frames") as opened:
        opened.send(message)
        said = json.loads(opened.recv(PATIENCE_S))
        assert list(said) == ["error"] and not any(secret in said["error"] for secret in SECRETS)


def test_a_message_that_is_too_long_ends_its_own_connection_alone(server, pushed):
    with server.socket(f"/streams/{pushed}/frames") as other, server.socket(f"/streams/{pushed}/frames") as opened:
        opened.send(bytes(MAX_MESSAGE + 1))
        with pytest.raises(ConnectionClosed) as closed:
            opened.recv(PATIENCE_S)
        assert closed.value.rcvd.code == 1009 and f"{MAX_MESSAGE + 1} bytes" in closed.value.rcvd.reason
        other.send("still there")
        assert "error" in json.loads(other.recv(PATIENCE_S))


def test_a_stream_that_is_removed_ends_its_silent_sockets(server):
    assert server.ask("POST", "/streams", json={"id": "short"}).status_code == 201
    with server.socket("/streams/short/frames") as frames, server.socket("/streams/short/tracks") as results:
        assert server.ask("DELETE", "/streams/short").status_code == 200
        assert "no stream 'short'" in json.loads(frames.recv(PATIENCE_S))["error"]
        for opened, code in ((frames, 4404), (results, 1000)):
            with pytest.raises(ConnectionClosed) as closed:
                opened.recv(PATIENCE_S)
            assert closed.value.rcvd.code == code


@pytest.mark.parametrize("path", ["/streams", "/streams/pushed", "/metrics", "/healthz", "/readyz", "/"])
def test_a_probe_may_ask_for_the_head_alone(server, pushed, path):
    answer = server.ask("HEAD", path)
    assert answer.status_code == 200 and answer.content == b""


@pytest.mark.parametrize("path", ["/streams/none/frames", "/streams/none/tracks", "/streams/%2e%2e/frames", "/no"])
def test_sockets_of_nothing(server, path):
    try:
        with server.socket(path) as opened:
            said = json.loads(opened.recv(PATIENCE_S))
            assert list(said) == ["error"]
    except InvalidStatus as refused:
        assert refused.response.status_code in (400, 403, 404)
    except ConnectionClosed as closed:
        assert closed.rcvd is not None


def test_raw_bytes_on_the_port(server):
    """What is no HTTP at all."""
    host, port = server.at.split(":")
    for junk in (b"", b"\x16\x03\x01" + os.urandom(64), b"GET\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 9000,
                 b"POST /streams HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n", os.urandom(2000)):  # fmt: skip
        with socket.create_connection((host, int(port)), 10) as raw, suppress(OSError):
            raw.sendall(junk)
            raw.shutdown(socket.SHUT_WR)
            said = raw.recv(65536)
            assert not any(secret.encode() in said for secret in SECRETS)


# ------------------------------------------------------------------------------------------------------- and afterwards


def test_everybody_else_is_still_served(server, pushed):
    """After all of the above: a frame that is pushed gives its result, the counters add up, and probes are well."""
    with server.socket(f"/streams/{pushed}/tracks") as results, server.socket(f"/streams/{pushed}/frames") as frames:
        for _ in range(3):
            frames.send(picture())
        record = json.loads(results.recv(PATIENCE_S))
        assert record["stream"] == pushed and isinstance(record["instances"], list)

    def told() -> dict[str, Any] | None:                    # replicas tell of their streams twice a second
        (status,) = server.ask("GET", "/streams").json()["streams"]
        counts = status["frames"]
        assert counts["in"] == counts["out"] + counts["in_flight"] + sum(counts["dropped"].values())
        return status if counts["out"] >= 3 and not counts["in_flight"] else None

    status = eventually(told)
    assert status["id"] == pushed and server.ask("GET", "/readyz", None).status_code == 200
    metrics = server.ask("GET", "/metrics").content.decode()
    assert f'maskstream_stream_frames_in_total{{stream="{pushed}"}} {status["frames"]["in"]}' in metrics
