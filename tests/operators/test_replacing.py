"""Whether something can be written somewhere, told before any work; what cannot is one error, and nothing is made."""

from __future__ import annotations

import os

import pytest

from operators.errors import ConfigError
from operators.replacing import check_file, check_folder, replacing, writing


def everything(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a file and a folder in it, from which names are relative."""
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["file", "new", "new/below/it", "folder/new", "./new.json"])
def test_a_file_that_can_be_written(place, name):
    before = everything(place)
    check_file(name, "--json")
    assert everything(place) == before


@pytest.mark.parametrize("name, why", [
    pytest.param("", "--json '': names nothing", id="an empty name"),
    pytest.param("folder", "--json folder: is a folder; expected the name of a file", id="a folder"),
    pytest.param(".", "is a folder", id="this folder"),
    pytest.param("pipe", "--json pipe: is no ordinary file", id="a pipe, which a file must not replace"),
    pytest.param("/dev/null", "--json /dev/null: is no ordinary file", id="a device"),
    pytest.param("file/new", "--json file/new: cannot be written: file is no folder", id="below a file"),
    pytest.param("file/a/b/new", "cannot be written: file is no folder", id="far below a file"),
    pytest.param("/proc/new", "--json /proc/new: cannot be written: ", id="where nobody can write, root neither"),
    pytest.param("n" * 300, "cannot be written: File name too long", id="too long a name"),
])  # fmt: skip
def test_a_file_that_cannot_be_written(place, name, why):
    before = everything(place)
    with pytest.raises(ConfigError) as caught:
        check_file(name, "--json")
    assert why in str(caught.value) and "\n" not in str(caught.value)
    assert everything(place) == before


@pytest.mark.parametrize("name", [".", "folder", "new", "new/below/it"])
def test_a_folder_that_can_be_made(place, name):
    before = everything(place)
    check_folder(name, "--out")
    assert everything(place) == before


@pytest.mark.parametrize("name, why", [
    pytest.param("", "--out '': names nothing", id="an empty name, as of a variable that is not set"),
    pytest.param("file", "--out file: is a file; expected a folder", id="a file"),
    pytest.param("file/new", "--out file/new: cannot be written: file is no folder", id="below a file"),
    pytest.param("/proc/new", "--out /proc/new: cannot be written: ", id="where nobody can write"),
])  # fmt: skip
def test_a_folder_that_cannot_be_made(place, name, why):
    with pytest.raises(ConfigError) as caught:
        check_folder(name, "--out")
    assert why in str(caught.value)


def test_what_goes_wrong_while_it_is_written_is_told_too(place):
    with pytest.raises(ConfigError, match="^--out file/new: cannot be written: Not a directory.$"):
        with writing("file/new", "--out"), replacing("file/new") as part:
            part.write_text("")
