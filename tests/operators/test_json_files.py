"""Reading JSON: what is refused, with the file named, and that nothing is left changed behind."""

from __future__ import annotations

import gc
import math
import os
import threading

import pytest

from operators import json_files
from operators.errors import DatasetError
from operators.json_files import compact_json, is_finite, read_json


@pytest.mark.parametrize("text, value", [
    pytest.param("{}", {}, id="nothing"),
    pytest.param('{"a": [1, 2.5], "b": {"a": null}}', {"a": [1, 2.5], "b": {"a": None}}, id="a key again, deeper"),
])
def test_what_is_read(tmp_path, text, value):
    path = tmp_path / "truth.json"
    path.write_text(text)
    assert read_json(path, "numbers") == value


@pytest.mark.parametrize("text, message", [
    pytest.param('{"videos": [], "videos": []}', "an object has the key 'videos' more than once", id="a key twice"),
    pytest.param('{"a": NaN}', "holds NaN, which is no number in JSON", id="NaN"),
    pytest.param('{"a": -Infinity}', "holds -Infinity", id="infinity"),
    pytest.param("[" * 100_000, "is not valid JSON", id="nested too deep"),
])
def test_json_that_is_none_of_ours(tmp_path, text, message):
    path = tmp_path / "truth.json"
    path.write_text(text)
    with pytest.raises(DatasetError, match="truth.json: " + message):
        read_json(path, "numbers")


def test_constants_pass_where_they_may(tmp_path):
    path = tmp_path / "results.json"
    path.write_text("[NaN, Infinity]")
    nan, infinity = read_json(path, "numbers", constants=True)
    assert math.isnan(nan) and infinity == math.inf


@pytest.mark.parametrize("content", [b"", b'{"videos": [', b"not json", b"\x80\x81"])
def test_no_json(tmp_path, content):
    path = tmp_path / "truth.json"
    path.write_bytes(content)
    with pytest.raises(DatasetError, match="truth.json: is not valid JSON.*expected numbers"):
        read_json(path, "numbers")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(DatasetError, match="absent.json: there is no such file; expected numbers"):
        read_json(tmp_path / "absent.json", "numbers")
    with pytest.raises(DatasetError, match="cannot be read"):
        read_json(tmp_path, "numbers")


def test_files_over_the_limit_are_refused_and_pipes_are_cut_off(monkeypatch, tmp_path):
    path, pipe = tmp_path / "truth.json", tmp_path / "pipe"
    path.write_bytes(b"[" + b"0," * 50 + b"0]")
    monkeypatch.setattr(json_files, "MAX_FILE_BYTES", 103)
    assert len(read_json(path, "numbers")) == 51, "103 bytes are not over the limit"
    monkeypatch.setattr(json_files, "MAX_FILE_BYTES", 102)
    os.mkfifo(pipe)
    feeder = threading.Thread(target=lambda: pipe.write_bytes(path.read_bytes()))
    feeder.start()
    for source in (path, pipe):         # of a pipe the size is known only when it has been read
        with pytest.raises(DatasetError, match="is over the limit of 0 MiB; expected numbers"):
            read_json(source, "numbers")
    feeder.join()


def test_reading_leaves_the_garbage_collector_as_it_was(tmp_path):
    path = tmp_path / "truth.json"
    path.write_text("[]")
    read_json(path, "numbers")
    assert gc.isenabled()
    gc.disable()
    try:
        read_json(path, "numbers")
        assert not gc.isenabled()
        with pytest.raises(DatasetError):
            read_json(tmp_path, "numbers")
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("number, finite", [
    (0, True), (-1.5, True), (10**300, True), (10**400, False), (math.nan, False), (-math.inf, False),
])
def test_is_finite(number, finite):
    assert is_finite(number) is finite


def test_compact_json():
    assert compact_json({"name": "\udcff\u00e9", "n": [1, None]}) == '{"name":"\\udcff\\u00e9","n":[1,null]}'
    with pytest.raises(ValueError):
        compact_json(math.nan)
