"""What a request says of itself: hosts, origins, queries and posted tokens, on what nobody thought of."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.serving.asking import (
    Asked,
    Refusal,
    here,
    host_name,
    is_loopback,
    posted_token,
    read_request,
    without_field,
)


@pytest.mark.parametrize("header, name", [
    (None, None), ("", None), (":80", None), ("LocalHost", "localhost"), ("localhost:80", "localhost"),
    ("localhost.:80", "localhost"), ("127.0.0.1:8000", "127.0.0.1"), ("[::1]", "::1"), ("[::1]:80", "::1"),
    ("::1", None), ("[::1", None), ("a b", None), ("a@b", None), ("a/b", None), ("a:b", None), ("a:1:2", None),
    ("evil.com:80#", None),
])  # fmt: skip
def test_the_name_of_a_host(header, name):
    assert host_name(header) == name


@pytest.mark.parametrize("name, own", [
    (None, False), ("", False), ("localhost", True), ("127.0.0.1", True), ("127.9.9.9", True), ("::1", True),
    ("::ffff:127.0.0.1", True), ("::ffff:10.0.0.1", False), ("0.0.0.0", False), ("10.0.0.1", False),
    ("localhost.evil.com", False), ("127.1", False), ("2130706433", False), ("0x7f.0.0.1", False),
])  # fmt: skip
def test_this_machine(name, own):
    assert is_loopback(name) is own


@given(st.text(max_size=80))
def test_any_text_is_a_host_or_none(text):
    name = host_name(text)
    assert name is None or (name and is_loopback(name) in (True, False))


@pytest.mark.parametrize("query, left", [
    ("", ""), ("token=x", ""), ("a=1&token=x&b=%20", "a=1&b=%20"), ("%74oken=x&a", "a"), ("tokens=1", "tokens=1"),
    ("token", ""), ("a=token=x", "a=token=x"), ("token=x&token=y&c", "c"),
])  # fmt: skip
def test_a_query_without_its_token(query, left):
    assert without_field(query, "token") == left


@given(st.text(alphabet="tokenTOKEN%=&+61a ;", max_size=40))
def test_no_reader_finds_the_token_afterwards(query):
    assert all(name != "token" for name, _ in parse_qsl(without_field(query, "token"), keep_blank_values=True))


@given(st.text(max_size=30), st.text(alphabet="ab=&%2", max_size=20))
def test_the_way_back_stays_here(path, query):
    """The address of a redirect names a path of this server, whatever was asked for."""
    location = here(Asked(False, "GET", "/" + path, query, {}, None))
    assert location.isascii() and location.startswith("/") and not location.startswith(("//", "/\\"))
    assert "\\" not in location and location.isprintable()
    assert unquote(location.partition("?")[0], errors="surrogatepass").lstrip("/") == path.lstrip("/")


@pytest.mark.parametrize("body, kind, token", [
    (b"", "", None), (b"token=abc", "application/x-www-form-urlencoded", "abc"), (b"a=1&token=b%2Fc", "", "b/c"),
    (b'{"token": "abc"}', "application/json; charset=utf-8", "abc"), (b'{"token": 3}', "application/json", None),
    (b"[]", "application/json", None), (b"[" * 100_000, "application/json", None), (b"\xff", "application/json", None),
    (b"\xff", "", None), (b"a&" * 100, "", None),
])  # fmt: skip
def test_a_posted_token(body, kind, token):
    assert posted_token(body, kind) == token


@given(st.binary(max_size=60), st.sampled_from(["", "application/json", "x"]))
def test_any_body_is_a_token_or_none(body, kind):
    assert posted_token(body, kind) is None or isinstance(posted_token(body, kind), str)


pairs = st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=20)), max_size=8)


@given(st.text(max_size=60), st.binary(max_size=60), pairs, st.sampled_from(["GET", "POST", "", "get", "X" * 99]))
def test_any_scope_is_read_or_refused(path, query, headers, method):
    scope = {"type": "http", "path": path, "query_string": query, "headers": headers, "method": method}
    try:
        asked = read_request(scope, max_header_bytes=100)
    except Refusal as refusal:
        assert 400 <= refusal.status < 500 and refusal.text.endswith(".")
        return
    assert asked.path == path and ".." not in path.split("/") and "\0" not in path and asked.client is None
    assert sum(len(name) + len(value) for name, value in headers) <= 100
