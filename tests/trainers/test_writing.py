"""Files that a run goes on without: lines that come whole, and those who read them meanwhile.

What a disk that is full does to a whole run is in test_loop.py.
"""

from __future__ import annotations

import pytest

from trainers.writing import NOTICES_FILE, Lines, Notices, note


def test_no_notices(tmp_path):
    assert Notices(tmp_path).new() == []


def test_notices_are_those_since_the_last_call(tmp_path):
    note(tmp_path, "before")
    notices = Notices(tmp_path)
    assert notices.new() == []
    note(tmp_path, "one")
    note(tmp_path, "two, café")
    assert [line[20:] for line in notices.new()] == ["one", "two, café"]
    assert notices.new() == []


@pytest.mark.parametrize("at", [1, 4, 5], ids=["a letter", "half of a letter", "all but the end of the line"])
def test_a_line_that_is_being_written_comes_when_it_is_whole(tmp_path, at):
    """A reader may see the first part of what another process writes at one stroke."""
    notices, path, line = Notices(tmp_path), tmp_path / NOTICES_FILE, "café\n".encode()
    path.write_bytes(b"whole\n" + line[:at])
    assert notices.new() == ["whole"]
    path.write_bytes(b"whole\n" + line)
    assert notices.new() == ["café"]


def test_lines_are_added_to_what_is_there(tmp_path):
    lines = Lines(tmp_path / "new" / "lines.txt")
    assert lines.append(b"one\n") and lines.append(b"two\n")
    assert lines.path.read_bytes() == b"one\ntwo\n"


def test_a_place_that_cannot_be_written_is_told_and_nothing_else_happens(tmp_path):
    (tmp_path / "file").write_text("somebody's")
    assert not Lines(tmp_path / "file" / "lines.txt").append(b"one\n")
    assert not Lines(tmp_path).append(b"one\n"), "a folder"
