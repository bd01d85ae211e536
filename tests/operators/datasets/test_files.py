"""Output that is there as a whole or not at all, and never in place of the input."""

from __future__ import annotations

import io
import json

import pytest

from operators.datasets.files import (
    MISSING_IMAGES,
    ImagePlacer,
    check_output,
    new_folder,
    new_json,
    write_json,
)
from operators.datasets.truth import Notes
from operators.errors import ConfigError


@pytest.mark.parametrize("members, lines", [
    pytest.param({}, 1, id="nothing"),
    pytest.param({"entries": []}, 1, id="an empty list"),
    pytest.param({"a": 1, "entries": [{"x": 1}, [2], "ü"], "b": [3, 4], "c": None}, 8, id="an entry a line"),
])  # fmt: skip
def test_write_json(members, lines):
    file = io.StringIO()
    write_json(file, {key: iter(value) if key == "entries" else value for key, value in members.items()})
    text = file.getvalue()
    assert json.loads(text) == members and text.isascii() and len(text.splitlines()) == lines


def test_members_may_depend_on_those_before():
    seen: list[int] = []

    def first():
        for number in (1, 2):
            seen.append(number)
            yield number

    file = io.StringIO()
    write_json(file, {"first": first(), "second": iter(seen)})
    assert json.loads(file.getvalue()) == {"first": [1, 2], "second": [1, 2]}


def test_a_folder_is_whole_or_absent(tmp_path):
    out = tmp_path / "deep" / "out"
    with pytest.raises(RuntimeError), new_folder(out) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert list((tmp_path / "deep").iterdir()) == []
    with new_folder(out) as folder:
        (folder / "a").write_text("whole")
        assert not out.exists()
    assert [path.name for path in out.iterdir()] == ["a"]
    with pytest.raises(ConfigError, match="is there already"), new_folder(out):
        pass
    assert (out / "a").read_text() == "whole"
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty") as folder:
        (folder / "b").touch()
    assert (tmp_path / "empty" / "b").exists()


def test_a_json_is_whole_or_as_it_was(tmp_path):
    out = tmp_path / "new" / "out.json"
    with new_json(out) as file:
        file.write("1")
    with pytest.raises(RuntimeError), new_json(out) as file:
        file.write("2")
        raise RuntimeError
    assert out.read_text() == "1" and [path.name for path in out.parent.iterdir()] == ["out.json"]
    with pytest.raises(ConfigError, match="is a folder"), new_json(tmp_path):
        pass
    with pytest.raises(ConfigError, match="cannot be written"), new_json(out / "x.json"):
        pass


def test_never_the_input(tmp_path):
    source = tmp_path / "a.json"
    source.write_text("{}")
    (tmp_path / "link.json").symlink_to(source)
    (tmp_path / "hard.json").hardlink_to(source)
    for name in ("a.json", "link.json", "hard.json", "x/../a.json"):
        with pytest.raises(ConfigError, match="is the input"):
            check_output(source, tmp_path / name)
    check_output(source, tmp_path / "b.json")
    with pytest.raises(ConfigError, match="lies inside the input"):
        check_output(tmp_path, tmp_path / "davis")
    check_output(tmp_path, tmp_path / "inside.json")


@pytest.mark.parametrize("mode", ["none", "link", "copy"])
def test_images(tmp_path, mode):
    image, target = tmp_path / "a.jpg", tmp_path / "out" / "v" / "0.jpg"
    image.write_bytes(b"picture")
    notes = Notes()
    placer = ImagePlacer(mode, notes)
    for path in (image, image, tmp_path / "missing.jpg"):
        placer.place(path, target if path == image else target.with_name("1.jpg"), "video 1")
    placer.place(None, target.with_name("2.jpg"), "video 1")
    assert target.exists() == (mode != "none") and target.is_symlink() == (mode == "link")
    assert notes.number(MISSING_IMAGES) == (0 if mode == "none" else 2)
    if mode != "none":
        assert target.read_bytes() == b"picture"
