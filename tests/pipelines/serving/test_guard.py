"""The guard on a real server, asked by real clients: who passes, what is bounded, and what is never told."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import socket
import threading
from contextlib import ExitStack

import pytest
import requests
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from operators.errors import ConfigError
from pipelines.config import build
from pipelines.serving.guard import Guard, GuardConfig, guard
from pipelines.serving.tokens import Tokens
from tests.pipelines.serving.guarded import OTHER, TOKEN, App, guarded, serving

BEARER = {"Authorization": f"Bearer {TOKEN}"}
WEB = {"Accept": "text/html,*/*"}


@pytest.fixture(scope="module")
def open_server():
    """On this machine, without tokens."""
    with pytest.MonkeyPatch.context() as patch, guarded(GuardConfig(), patch) as found:
        yield found


@pytest.fixture(scope="module")
def closed_server():
    """With two tokens, and narrow bounds."""
    config = GuardConfig(max_body_bytes=1000, max_upload_bytes=5000, max_message_bytes=100, max_streams=2,
                         max_requests_per_s=10_000, origins=("https://control.example.com",))  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        with guarded(config, patch, f"door {TOKEN}, gate {OTHER}") as found:
            yield found


def error_of(answer: requests.Response) -> str:
    """The one sentence of an error, and nothing beside it."""
    (said,) = answer.json().items()
    assert said[0] == "error" and said[1].endswith(".")
    assert "secret" not in answer.text and "Traceback" not in answer.text
    return said[1]


# ------------------------------------------------------------------------------------------------------- without tokens


@pytest.mark.parametrize("headers", [
    pytest.param({}, id="a program on this machine"),
    pytest.param({"Host": "localhost:9"}, id="under its other name"),
    pytest.param({"Host": "[::1]:9"}, id="under its address of IPv6"),
    pytest.param({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}, id="a link that a person followed"),
    pytest.param({"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}, id="our own page"),
])  # fmt: skip
def test_this_machine_may_ask(open_server, headers):
    address, app = open_server
    answer = requests.get(f"http://{address}/x?a=1", headers=headers, timeout=9)
    assert answer.status_code == 200 and app.seen[-1]["state"]["client"] == "local"


@pytest.mark.parametrize("headers", [
    pytest.param({"Host": "evil.example.com"}, id="a name that was rebound to this machine"),
    pytest.param({"Host": "127.0.0.1.evil.example.com"}, id="a name that begins like ours"),
    pytest.param({"Host": "localhost@evil"}, id="no host at all"),
    pytest.param({"Origin": "https://evil.example.com"}, id="a page of elsewhere"),
    pytest.param({"Origin": "null"}, id="a page without an origin"),
    pytest.param({"Origin": "http://127.0.0.1:1"}, id="a page of another port of this machine"),
    pytest.param({"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}, id="an image of a page of elsewhere"),
    pytest.param({"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}, id="an image of another port's page"),
])  # fmt: skip
def test_other_pages_may_not_ask(open_server, headers):
    address, app = open_server
    before = len(app.seen)
    answer = requests.get(f"http://{address}/", headers=headers, timeout=9)
    assert answer.status_code == 403 and error_of(answer)
    if "Host" not in headers:
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://{address}/", additional_headers=headers)
        assert refused.value.response.status_code == 403
    assert len(app.seen) == before


def test_another_machine_needs_a_token():
    """Whatever the server was told of where it listens."""
    said = asked_directly(GuardConfig(), Tokens(), client=("10.0.0.7", 4000))
    assert said[0]["status"] == 403 and b"Without a token only this machine may ask" in said[1]["body"]
    assert asked_directly(GuardConfig(), Tokens(), client=("::ffff:127.0.0.1", 4000))[0]["status"] == 200
    assert asked_directly(GuardConfig(), Tokens(), client=None)[0]["status"] == 200


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "[::]", "10.0.0.7", "cameras.example.com", ""])
def test_no_start_elsewhere_without_tokens(address, monkeypatch):
    monkeypatch.delenv("MASKSTREAM_TOKENS", raising=False)
    with pytest.raises(ConfigError, match="no token is asked for. Name a file"):
        guard(App(), GuardConfig(), bound_to=address)
    monkeypatch.setenv("MASKSTREAM_TOKENS", TOKEN)
    assert isinstance(guard(App(), GuardConfig(), bound_to=address), Guard)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.3.2.1", "::1", "[::1]", "localhost"])
def test_a_start_on_this_machine_needs_none(address, monkeypatch):
    monkeypatch.delenv("MASKSTREAM_TOKENS", raising=False)
    assert isinstance(guard(App(), GuardConfig(), bound_to=address), Guard)


# ---------------------------------------------------------------------------------------------------------- with tokens


@pytest.mark.parametrize("query, headers, cookies", [
    ("", BEARER, {}),
    ("", {"Authorization": f"bearer  {TOKEN}"}, {}),
    (f"?token={TOKEN}&b=%20", {}, {}),
])
def test_a_token_is_taken(closed_server, query, headers, cookies):
    address, app = closed_server
    answer = requests.get(f"http://{address}/x{query}", headers=headers, cookies=cookies, timeout=9)
    assert answer.status_code == 200 and app.seen[-1]["state"]["client"] == "door"
    assert app.seen[-1]["query_string"] == (b"b=%20" if query else b"")


@pytest.mark.parametrize("headers", [
    pytest.param({}, id="none"),
    pytest.param({"Authorization": ""}, id="an empty header"),
    pytest.param({"Authorization": "Bearer"}, id="no token behind the word"),
    pytest.param({"Authorization": f"Basic {TOKEN}"}, id="another scheme"),
    pytest.param({"Authorization": f"Bearer {TOKEN[:-1]}"}, id="one letter less"),
    pytest.param({"Authorization": f"Bearer {TOKEN}x"}, id="one letter more"),
    pytest.param({"Authorization": "Bearer \xe9" * 20}, id="letters of no token"),
    pytest.param({"Cookie": f"maskstream={TOKEN}"}, id="the token as a cookie"),
    pytest.param({"Cookie": "maskstream=99999999999." + "0" * 64}, id="a cookie of nobody"),
])  # fmt: skip
def test_no_token_no_answer(closed_server, headers):
    address, app = closed_server
    before = len(app.seen)
    answer = requests.get(f"http://{address}/streams", headers=headers, timeout=9)
    assert answer.status_code == 401 and answer.headers["WWW-Authenticate"].startswith("Bearer")
    assert "Authorization: Bearer TOKEN" in error_of(answer) and len(app.seen) == before


@pytest.mark.parametrize("path, status", [
    ("/healthz", 200), ("/readyz", 200), ("/", 200), ("/index.html", 200), ("/app.js", 200), ("/style.css", 200),
    ("/app.js/x", 401), ("/streams/x.js", 401), ("/openapi.json", 401), ("/.js", 401), ("/healthz/", 401),
])  # fmt: skip
def test_probes_and_the_page_need_no_token(closed_server, path, status):
    assert requests.get(f"http://{closed_server[0]}{path}", timeout=9).status_code == status
    assert requests.post(f"http://{closed_server[0]}/app.js", timeout=9).status_code == 401
    with pytest.raises(InvalidStatus, match="401"):
        connect(f"ws://{closed_server[0]}{path}")


def test_a_browser_is_asked_and_logs_in(closed_server):
    """A form that asks; a wrong token; the right one; its cookie does for pages and sockets; logging out ends it."""
    address, app = closed_server
    browser = requests.Session()
    first = browser.get(f"http://{address}/streams", headers=WEB, timeout=9)
    assert first.status_code == 401 and '<form method="post" action="/login">' in first.text
    own = {**WEB, "Origin": f"http://{address}"}
    wrong = browser.post(f"http://{address}/login", {"token": "wrong-" + TOKEN}, headers=own, timeout=9)
    assert wrong.status_code == 401 and "<form" in wrong.text and not browser.cookies
    other = browser.post(f"http://{address}/login", {"token": TOKEN}, headers={"Origin": "https://evil.org"}, timeout=9)
    assert other.status_code == 403 and not browser.cookies
    right = browser.post(f"http://{address}/login", {"token": TOKEN}, headers=own, timeout=9, allow_redirects=False)
    assert right.status_code == 303 and right.headers["Location"] == "/"
    assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(right.headers["Set-Cookie"].split("; "))
    assert TOKEN not in right.headers["Set-Cookie"]
    assert browser.get(f"http://{address}/streams", headers=WEB, timeout=9).status_code == 200
    cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
    with connect(f"ws://{address}/s", additional_headers={"Cookie": cookie}, origin=f"http://{address}") as open_socket:
        open_socket.send(b"123")
        assert open_socket.recv() == "3" and app.seen[-1]["state"]["client"] == "door"
    gone = browser.post(f"http://{address}/logout", headers=own, timeout=9)
    assert gone.status_code == 204 and not browser.cookies


def test_a_token_in_the_address_becomes_a_cookie(closed_server):
    address, _ = closed_server
    browser = requests.Session()
    first = browser.get(f"http://{address}//x%20y?a=1&token={TOKEN}&b=2", headers=WEB, timeout=9, allow_redirects=False)
    assert first.status_code == 303 and first.headers["Location"] == "/x%20y?a=1&b=2"
    assert browser.get(f"http://{address}{first.headers['Location']}", headers=WEB, timeout=9).status_code == 200
    home = requests.get(f"http://{address}/?token={TOKEN}", headers=WEB, timeout=9, allow_redirects=False)
    assert home.status_code == 303 and home.headers["Location"] == "/" and "maskstream=" in home.headers["Set-Cookie"]


def test_an_app_below_a_prefix():
    """Ray Serve's route_prefix: probes stay open, and a person is led to where the app is."""
    tokens = Tokens(((hashlib.sha256(TOKEN.encode()).digest(), "door"),))

    def ask(path, **changes):
        head, body = asked_directly(GuardConfig(), tokens, path=path, root_path="/live", **changes)
        return head["status"], dict(head["headers"]), body["body"]

    assert ask("/live/healthz")[0] == 200 and ask("/live/x")[0] == 401 and ask("/livex/healthz")[0] == 401
    page = [(b"accept", b"text/html"), (b"host", b"localhost")]
    assert ask("/live")[0] == 200 and b'action="/live/login"' in ask("/live/x", headers=page)[2]
    led = ask("/live/x", headers=page, query_string=f"token={TOKEN}".encode())
    assert led[0] == 303 and led[1][b"location"] == b"/live/x"
    login = {"path": "/live/login", "method": "POST", "body": f"token={TOKEN}".encode(), "headers": page}
    assert ask(**login)[1][b"location"] == b"/live/"


def test_login_as_json(closed_server):
    address, _ = closed_server
    program = requests.Session()
    assert program.post(f"http://{address}/login", json={"token": TOKEN}, timeout=9).status_code == 204
    assert program.get(f"http://{address}/x", timeout=9).status_code == 200
    assert requests.post(f"http://{address}/login", json=["token"], timeout=9).status_code == 401
    assert requests.post(f"http://{address}/login", data=b"x" * 999, timeout=9).status_code == 401


@pytest.mark.parametrize("options, path", [
    pytest.param({"additional_headers": BEARER}, "/s", id="header"),
    pytest.param({}, f"/s?token={TOKEN}", id="address"),
    pytest.param({"subprotocols": ["maskstream", f"bearer.{TOKEN}"]}, "/s", id="subprotocol"),
    pytest.param({"additional_headers": BEARER, "origin": "https://control.example.com"}, "/s", id="a page that may"),
])  # fmt: skip
def test_a_socket_carries_the_token(closed_server, options, path):
    address, app = closed_server
    with connect(f"ws://{address}{path}", **options) as open_socket:
        open_socket.send("four")
        assert open_socket.recv() == "4"
        assert open_socket.subprotocol == ("maskstream" if "subprotocols" in options else None)
    assert app.seen[-1]["query_string"] == b"" and app.seen[-1]["subprotocols"] in ([], ["maskstream"])


@pytest.mark.parametrize("options, status", [
    pytest.param({}, 401, id="no token"),
    pytest.param({"subprotocols": ["maskstream", "bearer.wrong"]}, 401, id="a wrong one"),
    pytest.param({"additional_headers": BEARER, "origin": "https://evil.example.com"}, 403, id="a page of elsewhere"),
])  # fmt: skip
def test_a_socket_is_refused(closed_server, options, status):
    with pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{closed_server[0]}/s", **options)
    assert refused.value.response.status_code == status and b'{"error": ' in refused.value.response.body


def test_cors(closed_server):
    """A listed page may, and is told so before it asks; no other is."""
    address, app = closed_server
    listed = {"Origin": "https://control.example.com", "Access-Control-Request-Method": "DELETE"}
    before = len(app.seen)
    asked = requests.options(f"http://{address}/streams/x", headers=listed, timeout=9)
    assert (asked.status_code, len(app.seen)) == (204, before)
    assert asked.headers["Access-Control-Allow-Origin"] == "https://control.example.com"
    assert "DELETE" in asked.headers["Access-Control-Allow-Methods"] and "Credentials" not in str(asked.headers)
    other = requests.options(f"http://{address}/x", headers=listed | {"Origin": "https://evil.example.com"}, timeout=9)
    assert other.status_code == 403 and "Access-Control-Allow-Origin" not in other.headers
    plain = requests.get(f"http://{address}/x", headers=BEARER, timeout=9)
    assert "Access-Control-Allow-Origin" not in plain.headers


# --------------------------------------------------------------------------------------------------------------- bounds


@pytest.mark.parametrize("path, size, status", [
    ("/x", 0, 200), ("/x", 1000, 200), ("/x", 1001, 413), ("/swallow", 1001, 413), ("/videos", 5000, 200),
    ("/videos", 5001, 413),
])  # fmt: skip
@pytest.mark.parametrize("whole", [True, False], ids=["length told", "in pieces"])
def test_the_body_is_bounded(closed_server, path, size, status, whole):
    body = b"x" * size
    pieces = body if whole else (body[i : i + 300] for i in range(0, size, 300))
    answer = requests.post(f"http://{closed_server[0]}{path}", data=pieces, headers=BEARER, timeout=9)
    assert answer.status_code == status
    assert answer.json() == {"bytes": 0 if path == "/swallow" else size} if status == 200 else error_of(answer)


def test_a_body_that_does_not_come(monkeypatch):
    with guarded(GuardConfig(body_timeout_s=0.2), monkeypatch) as (address, _):
        host, port = address.split(":")
        with socket.create_connection((host, int(port)), 9) as raw:
            raw.sendall(b"POST /x HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\nhalf")
            said = b""
            while not said.endswith(b"}") and (more := raw.recv(65536)):    # its head may come before its text
                said += more
        assert b"408" in said.split(b"\r\n")[0] and b"Nothing came of the body for 0.2 s" in said


@pytest.mark.parametrize("path, headers, status", [
    pytest.param("/x", {f"X-{i}": "1" for i in range(120)}, 431, id="headers"),
    pytest.param("/x", {"X-Long": "y" * 20_000}, 431, id="a long header"),
    pytest.param("/" + "x" * 3000, {}, 414, id="path"),
    pytest.param("/x?" + "y" * 9000, {}, 414, id="query"),
    pytest.param("/x?" + "y&" * 100, {}, 400, id="fields"),
    pytest.param("/page/%2e%2e/%2e%2e/etc/passwd", {}, 400, id="way up"),
    pytest.param("/page/..%5c..%5cetc", {}, 400, id="way up, by backslashes"),
    pytest.param("/x%00y", {}, 400, id="zero byte"),
    pytest.param("/x%0d%0ay", {}, 400, id="line end"),
])  # fmt: skip
def test_addresses_and_headers_are_bounded(closed_server, path, headers, status):
    prepared = requests.Request("GET", f"http://{closed_server[0]}/", headers={**BEARER, **headers}).prepare()
    prepared.url = f"http://{closed_server[0]}{path}"          # as it stands: nothing is tidied up on the way
    answer = requests.Session().send(prepared, timeout=9)
    assert answer.status_code == status and error_of(answer)


@pytest.mark.parametrize("method", ["PUT", "PATCH", "TRACE", "PROPFIND"])
def test_methods(closed_server, method):
    answer = requests.request(method, f"http://{closed_server[0]}/x", headers=BEARER, timeout=9)
    assert answer.status_code == 405 and "GET" in answer.headers["Allow"]


def test_messages_are_bounded(closed_server):
    with connect(f"ws://{closed_server[0]}/s", additional_headers=BEARER) as open_socket:
        open_socket.send(b"x" * 100)
        assert open_socket.recv() == "100"
        open_socket.send("é" * 51)
        with pytest.raises(ConnectionClosed) as closed:
            open_socket.recv()
    assert closed.value.rcvd.code == 1009 and "102 bytes, expected 100 at most" in closed.value.rcvd.reason


def test_the_rate_of_messages_is_that_of_the_token(monkeypatch):
    """Two sockets of one token share it: 4 pass at once, not 4 each. Four more would take two seconds."""
    with guarded(GuardConfig(max_messages_per_s=2), monkeypatch, f"door {TOKEN}, gate {OTHER}") as (address, _):
        answers = 0
        with ExitStack() as stack, pytest.raises(ConnectionClosed) as closed:
            opened = [stack.enter_context(connect(f"ws://{address}/s?token={TOKEN}")) for _ in range(2)]
            for turn in range(60):
                opened[turn % 2].send("x")
                answers += opened[turn % 2].recv() == "1"
        assert closed.value.rcvd.code == 1008 and "more than 2 messages a second" in closed.value.rcvd.reason
        assert 4 <= answers < 8
        with connect(f"ws://{address}/s?token={OTHER}") as other:
            other.send("x")
            assert other.recv() == "1"


def test_the_rate_of_requests_is_that_of_the_token(monkeypatch):
    with guarded(GuardConfig(max_requests_per_s=2), monkeypatch, f"door {TOKEN}, gate {OTHER}") as (address, _):
        said = [requests.get(f"http://{address}/x?token={TOKEN}", timeout=9) for _ in range(30)]
        refused = [answer for answer in said if answer.status_code == 429]
        assert refused and all(answer.status_code == 200 for answer in said[:4])
        assert refused[0].headers["Retry-After"] == "1" and "the token 'door'" in error_of(refused[0])
        assert requests.get(f"http://{address}/x?token={OTHER}", timeout=9).status_code == 200
        assert requests.get(f"http://{address}/healthz", timeout=9).status_code == 200


def test_open_connections_are_bounded(monkeypatch):
    with guarded(GuardConfig(max_open=2), monkeypatch) as (address, _), ExitStack() as stack:
        opened = [stack.enter_context(connect(f"ws://{address}/s")) for _ in range(2)]
        full = requests.get(f"http://{address}/x", timeout=9)
        assert full.status_code == 429 and "2 requests and WebSockets of this server are open" in error_of(full)
        opened[0].close()
        said = (requests.get(f"http://{address}/x", timeout=9).status_code for _ in range(500))
        assert 200 in said                                      # once the server has seen the end of the socket


def test_streams_are_bounded_by_token(closed_server):
    address, _ = closed_server

    def register(name, token=TOKEN):
        return requests.post(f"http://{address}/streams", json={"id": name},
                             headers={"Authorization": f"Bearer {token}"}, timeout=9)  # fmt: skip

    assert [register(name).status_code for name in ("a", "b/ b", "c")] == [201, 201, 429]
    assert "2 streams of the token 'door' are registered" in error_of(register("c"))
    assert register("c", OTHER).status_code == 201
    assert requests.delete(f"http://{address}/streams/b%2F%20b", headers=BEARER, timeout=9).status_code == 200
    assert [register(name).status_code for name in ("d", "e")] == [201, 429]


def test_streams_that_went_otherwise_are_not_counted():
    """As those that were removed through another process of the ingress; where nobody can say, they are."""
    there: set[str] | None = {"a", "b"}

    async def streams():
        return there

    with serving(guard(App(), GuardConfig(max_streams=2, token_env=""), streams=streams)) as address:

        def register(name):
            return requests.post(f"http://{address}/streams", json={"id": name}, timeout=9).status_code

        assert [register(name) for name in ("a", "b", "c")] == [201, 201, 429]
        there = None
        assert register("c") == 429
        there = {"b", "of another token"}
        assert register("c") == 201
        there = {"b", "c"}
        assert register("d") == 429


# ----------------------------------------------------------------------------------------------- what is never told


@pytest.mark.parametrize("path", ["/raise", "/silent"])
def test_no_stack_trace_but_a_number_for_the_log(open_server, path, caplog):
    with caplog.at_level(logging.ERROR):
        answer = requests.get(f"http://{open_server[0]}{path}", timeout=9)
    number = answer.headers["X-Request-ID"]
    assert answer.status_code == 500 and f"under request {number}." in error_of(answer)
    (line,) = [record for record in caplog.records if number in record.getMessage()]
    assert path in line.getMessage() and (line.exc_info is not None) == (path == "/raise")


def test_an_answer_that_breaks_off_is_cut(open_server, caplog):
    """What was said cannot be taken back: the client sees that it is not whole."""
    with caplog.at_level(logging.ERROR), pytest.raises(requests.exceptions.ChunkedEncodingError):
        requests.get(f"http://{open_server[0]}/break", timeout=9)
    assert "raised RuntimeError" in caplog.text


def test_a_socket_that_breaks(open_server, caplog):
    with caplog.at_level(logging.ERROR):
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://{open_server[0]}/raise")
        with connect(f"ws://{open_server[0]}/s") as open_socket:
            open_socket.send("raise")
            with pytest.raises(ConnectionClosed) as closed:
                open_socket.recv()
    assert refused.value.response.status_code == 500 and b"secret" not in refused.value.response.body
    assert closed.value.rcvd.code == 1011 and closed.value.rcvd.reason.startswith("Something went wrong here.")
    assert caplog.text.count("raised RuntimeError") == 2


@pytest.mark.parametrize("path", ["/x", "/raise", "/x%00y"])
def test_safe_headers_stand_on_every_answer(open_server, path):
    said = requests.get(f"http://{open_server[0]}{path}", timeout=9).headers
    assert said["X-Content-Type-Options"] == "nosniff" and said["X-Frame-Options"] == "DENY"
    policy = dict(part.strip().split(" ", 1) for part in said["Content-Security-Policy"].split(";"))
    assert policy["frame-ancestors"] == "'none'" and policy["default-src"] == "'none'"
    assert "unsafe" not in said["Content-Security-Policy"] and policy["script-src"] == "'self'"
    assert said["Cross-Origin-Resource-Policy"] == "same-origin" and said["Cache-Control"] == "no-store"
    assert len(said["X-Request-ID"]) == 16 and "Strict-Transport-Security" not in said


def test_the_number_that_ray_serve_gave_is_kept(open_server):
    """Ray Serve's proxy puts it into the request, and tells it to the client itself."""
    number = "5a1c0c3e-96b6-4d0c-8b5c-0d5cf62fbb4a"
    answer = requests.get(f"http://{open_server[0]}/raise", headers={"X-Request-ID": number}, timeout=9)
    assert f"under request {number}." in error_of(answer) and "X-Request-ID" not in answer.headers
    junk = requests.get(f"http://{open_server[0]}/raise", headers={"X-Request-ID": "a b"}, timeout=9)
    assert len(junk.headers["X-Request-ID"]) == 16


def test_a_token_never_reaches_the_log(monkeypatch, caplog):
    """And refusals fill no disk."""
    with guarded(GuardConfig(), monkeypatch, TOKEN) as (address, _), caplog.at_level(logging.DEBUG), \
            requests.Session() as client:       # one connection: more of them a second than are logged
        client.get(f"http://{address}/x?token=some-other-token-of-nobody", timeout=9)
        for _ in range(60):
            client.get(f"http://{address}/x", headers={"Authorization": "Bearer some-other-token"}, timeout=9)
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("pipelines")]
    assert 20 <= len(ours) < 60 and not any("some-other-token" in line for line in ours)


# ----------------------------------------------------------------------------------------------------------- anything


def asked_directly(config: GuardConfig, tokens: Tokens, **changes) -> list[dict]:
    """What the guard sends for a scope, without a server in between."""
    scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": [(b"host", b"localhost")],
             "client": ("127.0.0.1", 1), **changes}  # fmt: skip
    said: list[dict] = []

    async def receive():
        return {"type": "http.request", "body": changes.get("body", b""), "more_body": False}

    async def send(message):
        said.append(message)

    asyncio.run(Guard(App(), config, tokens)(scope, receive, send))
    return said


names = st.sampled_from([b"host", b"origin", b"authorization", b"cookie", b"content-length", b"content-type", b"accept",
                         b"sec-fetch-site", b"sec-fetch-mode", b"x-request-id", b"x"])  # fmt: skip
values = st.one_of(st.binary(max_size=60), st.sampled_from([
    b"localhost", b"[::1", b"Bearer ", f"Bearer {TOKEN}".encode(), b"maskstream=1.2", b"text/html", b"application/json",
    b"http://localhost", b"null", b"\xff\xfe", b"99999999999999999999", b"-1",
]))  # fmt: skip
NOBODY = Tokens(((b"0" * 32, "nobody"),))
BAD_HABITS = ("/raise", "/silent", "/break")
"""Paths of the app that have tests of their own."""


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    path=st.one_of(st.text(max_size=40).map("/{}".format).filter(lambda path: path not in BAD_HABITS),
                   st.sampled_from(["/login", "/streams", "/logout", "*", ""])),
    query=st.one_of(st.binary(max_size=60), st.just(f"token={TOKEN}".encode())),
    headers=st.lists(st.tuples(names, values), max_size=6),
    method=st.sampled_from(["GET", "POST", "DELETE", "OPTIONS", "PUT"]),
    body=st.binary(max_size=80),
    tokens=st.sampled_from([Tokens(), NOBODY]),
)
@example(path="/streams", query=b"", headers=[(b"host", b"localhost")], method="POST", body=b"", tokens=Tokens())
def test_whatever_is_asked_is_answered(path, query, headers, method, body, tokens):
    """One answer, begun and ended, of a status that means something; without a known token nothing reaches the app."""
    asked = {"path": path, "query_string": query, "headers": headers, "method": method, "body": body}
    said = asked_directly(GuardConfig(), tokens, **asked)
    assert [message["type"] for message in said] == ["http.response.start", "http.response.body"]
    status = said[0]["status"]
    if tokens:
        assert status in (204, 400, 401, 403, 405, 413, 414) or path in ("/", *GuardConfig().open_paths)
    else:
        assert status in (200, 201, 204, 400, 403, 405, 413, 414) or (status == 500 and path == "/streams")
    for name, value in said[0]["headers"]:
        assert not set(b"\r\n\0") & set(name + value)


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize("settings_of, message", [
    pytest.param({"max_bodybytes": 1}, "guard.max_bodybytes: no such setting. Did you mean max_body_bytes", id="name"),
    pytest.param({"max_body_bytes": 0}, "max_body_bytes is 0, expected more than 0", id="zero"),
    pytest.param({"max_message_bytes": 1 << 30}, "at most 16777216", id="more than Serve takes"),
    pytest.param({"origins": ["*"]}, "origins holds '\\*', expected a scheme and a host", id="any origin"),
    pytest.param({"origins": ["https://a/b"]}, "origins holds", id="an origin with a path"),
    pytest.param({"hosts": ["http://a"]}, "hosts holds 'http://a', expected a name", id="an address for a host"),
    pytest.param({"open_paths": ["healthz"]}, "open_paths holds 'healthz', expected a path", id="a path"),
])  # fmt: skip
def test_settings_are_checked(settings_of, message):
    with pytest.raises(ConfigError, match=message):
        build(GuardConfig, settings_of, "live.yaml", "guard")


def test_settings_of_a_file(tmp_path):
    config = build(GuardConfig, {"token_file": str(tmp_path / "t"), "origins": ["https://a.b"]}, "live.yaml", "guard")
    assert config.token_file == tmp_path / "t" and config.origins == ("https://a.b",)


def test_a_framework_keeps_its_own_class(monkeypatch):
    """FastAPI is given the guard as middleware, and what its routes raise ends there."""
    from fastapi import FastAPI

    monkeypatch.delenv("MASKSTREAM_TOKENS", raising=False)
    app = FastAPI()

    @app.get("/raise")
    def raises() -> None:
        raise RuntimeError("secret of the app")

    assert guard(app, GuardConfig()) is app
    with serving(app) as address:
        answer = requests.get(f"http://{address}/raise", timeout=9)
        assert answer.status_code == 500 and error_of(answer)
        assert threading.active_count() > 1 and requests.get(f"http://{address}/none", timeout=9).status_code == 404
