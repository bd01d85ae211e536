"""The JSON of an evaluation: whole or not at all, and readable by others."""

from __future__ import annotations

import json
import math

import pytest

from operators.errors import ConfigError
from operators.score_files import check_writable, write_scores


@pytest.mark.parametrize("scores, written", [
    pytest.param({}, {}, id="nothing"),
    pytest.param({"a": math.nan, "b": [0.5, {"c": math.nan}]}, {"a": None, "b": [0.5, {"c": None}]}, id="nan is null"),
    pytest.param({"Ä": 1 / 3}, {"Ä": 1 / 3}, id="all digits, any name"),
])  # fmt: skip
def test_write(tmp_path, scores, written):
    write_scores(tmp_path / "out.json", scores)
    assert json.loads((tmp_path / "out.json").read_text(encoding="ascii")) == written
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_where_nothing_can_be_written(tmp_path):
    check_writable(None)
    check_writable(tmp_path / "out.json")
    for path in (tmp_path, tmp_path / "none" / "out.json"):
        with pytest.raises(ConfigError, match="cannot be written"):
            check_writable(path)
    with pytest.raises(ConfigError, match="cannot be written"):
        write_scores(tmp_path / "none" / "out.json", {})
