"""Tokens: read from a file or the environment, compared, and turned into cookies that expire."""

from __future__ import annotations

import hashlib
import logging
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operators.errors import ConfigError
from pipelines.serving.tokens import Tokens, bearer, cookie_of, protocol_token, read_tokens
from tests.pipelines.serving.guarded import OTHER, TOKEN

BOTH = Tokens(((hashlib.sha256(TOKEN.encode()).digest(), "door"), (hashlib.sha256(OTHER.encode()).digest(), "gate")))


@pytest.mark.parametrize("lines, names", [
    pytest.param([TOKEN], ["token-1"], id="without a name"),
    pytest.param(["# ours", "", f"door {TOKEN}  # of the door", f"  gate\t{OTHER}"], ["door", "gate"], id="with names"),
])  # fmt: skip
def test_a_file(lines, names, tmp_path):
    file = tmp_path / "tokens"
    file.write_text("\n".join(lines))
    tokens = read_tokens(file, "")
    assert [tokens.name_of(TOKEN), *filter(None, [tokens.name_of(OTHER)])] == names
    assert TOKEN.encode() not in pickle.dumps(tokens), "what travels to a replica holds digests alone"


def test_neither_file_nor_variable_gives_none(monkeypatch):
    monkeypatch.delenv("SOME", raising=False)
    assert not read_tokens(None, "SOME") and not read_tokens(None, "")
    monkeypatch.setenv("SOME", "")
    assert not read_tokens(None, "SOME")


def test_file_and_variable_add_up(tmp_path, monkeypatch):
    file = tmp_path / "tokens"
    file.write_text(f"door {TOKEN}")
    monkeypatch.setenv("SOME", f"gate {OTHER},")
    assert read_tokens(file, "SOME") == BOTH


@pytest.mark.parametrize("text, message", [
    pytest.param("", "holds no token. Write a line", id="empty"),
    pytest.param("# nothing", "holds no token", id="comments alone"),
    pytest.param("short", "line 1: expected 'NAME TOKEN'.* got 1 words, the last of 5 letters", id="short"),
    pytest.param(f"a b {TOKEN}", "got 3 words", id="words"),
    pytest.param("x" * 513, "the last of 513 letters", id="long"),
    pytest.param("door " + "ab/+=" * 5, "expected 'NAME TOKEN'", id="letters that no cookie carries"),
    pytest.param(f"d;r {TOKEN}", "a name is 1 to 64 letters", id="name"),
    pytest.param(f"a {TOKEN}\na {OTHER}", "line 2: the name 'a' is that of .* line 1 too", id="name twice"),
    pytest.param(f"a {TOKEN}\nb {TOKEN}", "'b' has the same token as 'a'", id="token twice"),
    pytest.param("\n".join(f"{i:016d}" for i in range(1001)), "1001 tokens were given, expected 1000", id="too many"),
    pytest.param("\xe9" * 20, "byte 0 is no ASCII", id="no ASCII"),
    pytest.param("#" * (1 << 20) + "#", "larger than 1048576 bytes", id="large"),
])  # fmt: skip
def test_what_is_no_file_of_tokens(text, message, tmp_path):
    file = tmp_path / "tokens"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as refused:
        read_tokens(file, "")
    assert TOKEN not in str(refused.value) and "ab/+=" not in str(refused.value)


def test_no_such_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_tokens(tmp_path / "none", "")


@pytest.mark.parametrize("mode, warned", [(0o600, False), (0o640, True), (0o644, True)])
def test_a_file_that_others_can_read_is_told_of(mode, warned, tmp_path, caplog):
    file = tmp_path / "tokens"
    file.write_text(TOKEN)
    file.chmod(mode)
    with caplog.at_level(logging.WARNING):
        read_tokens(file, "")
    assert ("chmod 600" in caplog.text) == warned


def test_a_cookie_stands_for_its_token_until_it_expires():
    value = BOTH.cookie("gate", expires_s=1000.9)
    assert OTHER not in value and BOTH.name_of_cookie(value, now_s=999) == "gate"
    assert BOTH.name_of_cookie(value, now_s=1000) is None
    later = value.replace("1000.", "2000.")
    assert BOTH.name_of_cookie(later, now_s=999) is None, "the time is signed too"
    assert Tokens(BOTH.digests[:1]).name_of_cookie(value, now_s=999) is None, "a token taken back ends its cookies"


@given(st.one_of(st.none(), st.text(max_size=90), st.just(BOTH.cookie("door", 10**11))))
def test_no_other_text_is_a_cookie(text):
    expected = "door" if text == BOTH.cookie("door", 10**11) else None
    assert BOTH.name_of_cookie(text, now_s=0) == expected
    assert BOTH.name_of(text) is None


@given(st.text(max_size=60), st.lists(st.text(max_size=20), max_size=5))
def test_whatever_headers_hold_is_read(text, offered):
    for found in (bearer(text), cookie_of(text), protocol_token(offered)):
        assert found is None or isinstance(found, str)
    assert bearer(f"Bearer {TOKEN}") == TOKEN and cookie_of(f"a=b; maskstream={text.split(';')[0].strip()}") is not None
    assert protocol_token([*(one for one in offered if not one.startswith("bearer.")), "bearer.x"]) == "x"
