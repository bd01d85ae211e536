"""Settings: what is read, and the one error for everything else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from operators.errors import ConfigError
from pipelines.config import CHECKOUT, apply_overrides, build, load_yaml, resolve


@dataclass(frozen=True, kw_only=True)
class Inner:
    max_unseen: int = 30
    min_score: float = 0.5
    mode: Literal["fast", "exact"] = "fast"
    size: tuple[int, int] = (360, 640)
    scales: tuple[float, ...] | None = None
    flag: bool = False

    def __post_init__(self) -> None:
        if self.max_unseen < 0:
            raise ValueError(f"max_unseen is {self.max_unseen}, expected 0 or more.")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = Inner()
    many: tuple[Inner, ...] = ()
    weights: dict[str, float] | None = None
    file: Path | None = None


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        pytest.param({}, Outer(name="a"), id="defaults"),
        pytest.param({"inner": None}, Outer(name="a"), id="empty-group"),
        pytest.param({"inner": {"min_score": 1}}, Outer(name="a", inner=Inner(min_score=1.0)), id="int-for-float"),
        pytest.param({"inner": {"size": [1, 2]}}, Outer(name="a", inner=Inner(size=(1, 2))), id="pair"),
        pytest.param({"inner": {"scales": []}}, Outer(name="a", inner=Inner(scales=())), id="no-scales"),
        pytest.param({"many": [{}, {"flag": True}]}, Outer(name="a", many=(Inner(), Inner(flag=True))), id="list"),
        pytest.param({"weights": {"x": 1}}, Outer(name="a", weights={"x": 1.0}), id="mapping"),
        pytest.param({"file": "b/c"}, Outer(name="a", file=Path("b/c")), id="path"),
    ],
)
def test_build(given, expected):
    built = build(Outer, {"name": "a"} | given, "f.yaml")
    assert built == expected
    assert type(built.inner.min_score) is float


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        pytest.param({}, ", name: missing; expected a text.", id="missing"),
        pytest.param([], ": expected a group of settings, got [].", id="no-mapping"),
        pytest.param({"name": 3}, ", name: expected a text, got 3.", id="number-for-text"),
        pytest.param({3: 4}, ", 3: no such setting. Known: file, inner, many, name, weights.", id="number-as-key"),
        pytest.param({"name": "a", "inner": 3}, ", inner: expected a group of settings, got 3.", id="no-group"),
        pytest.param({"many": [{}, {"flg": 1}]}, ", many[1].flg: no such setting. Did you mean flag?", id="in-a-list"),
        pytest.param({"weights": {"x": "y"}}, ", weights.x: expected a number, got 'y'.", id="in-a-mapping"),
    ],
)
def test_build_refuses(mapping, message):
    with pytest.raises(ConfigError) as raised:
        build(Outer, mapping if "name" in mapping or not mapping else {"name": "a"} | mapping, "f.yaml")
    assert str(raised.value) == f"f.yaml{message}"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        pytest.param("max_unsen", 3, ".max_unsen: no such setting. Did you mean max_unseen?", id="misspelt"),
        pytest.param("flag", 1, ".flag: expected true or false, got 1.", id="one-is-not-true"),
        pytest.param("max_unseen", True, ".max_unseen: expected a whole number, got true.", id="true-is-not-one"),
        pytest.param("max_unseen", 1.0, ".max_unseen: expected a whole number, got 1.0.", id="1.0-is-not-whole"),
        pytest.param("min_score", "0.5", ".min_score: expected a number, got '0.5'.", id="text"),
        pytest.param("min_score", float("nan"), ".min_score: expected a number, got nan.", id="nan"),
        pytest.param("mode", "slow", ".mode: expected 'fast' or 'exact', got 'slow'.", id="choice"),
        pytest.param("size", [1, "x"], ".size[1]: expected a whole number, got 'x'.", id="second-of-a-pair"),
        pytest.param(
            "size", [1], ".size: expected a list of 2 values (a whole number, a whole number), got 1: [1].", id="half"
        ),
        pytest.param("max_unseen", -1, ": max_unseen is -1, expected 0 or more.", id="refused-by-the-class"),
    ],
)
def test_build_refuses_inside(name, value, message):
    with pytest.raises(ConfigError) as raised:
        build(Outer, {"name": "a", "inner": {name: value}}, "f.yaml")
    assert str(raised.value) == f"f.yaml, inner{message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("", ": expected settings as 'key: value' lines, got nothing.", id="empty"),
        pytest.param("[1]", ": expected settings as 'key: value' lines, got [1].", id="list"),
        pytest.param("a: 1\nb: 2\na: 3", ", line 3: not valid YAML: the key 'a' stands here twice.", id="twice"),
        pytest.param("a:\n  b: 1\n  b: 2", ", line 3: not valid YAML: the key 'b' stands here twice.", id="twice-in"),
        pytest.param("a: [1", ", line 1: not valid YAML: expected ',' or ']', but got '<stream end>'.", id="open-list"),
        pytest.param("a: &x 1\nb: *x", ", line 2: not valid YAML: aliases (*name) are not allowed", id="alias"),
        pytest.param("? [a]\n: 1", ", line 1: not valid YAML: a key must be a single word.", id="list-as-key"),
        pytest.param("[" * 5000, ": nested too deep to be settings.", id="deep"),
        pytest.param("a: 2024-13-45", ": not valid YAML: month must be in 1..12.", id="date"),
        pytest.param("a: !!python/name:os.system", ", line 1: not valid YAML: could not determine", id="code"),
        pytest.param("#" * (1 << 20) + "\n", ": larger than 1048576 bytes. Is this a file of settings?", id="large"),
    ],
)
def test_load_yaml_refuses(text, message, tmp_path):
    file = tmp_path / "f.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as raised:
        load_yaml(file)
    assert str(raised.value).startswith(f"{file}{message}")
    assert "\n" not in str(raised.value)


def test_load_yaml_refuses_what_is_no_text(tmp_path):
    (tmp_path / "v.yaml").write_bytes(b"a: \xff")
    with pytest.raises(ConfigError, match="v.yaml: not text in UTF-8 .byte 3."):
        load_yaml(tmp_path / "v.yaml")
    with pytest.raises(ConfigError, match="cannot be read: Is a directory"):
        load_yaml(tmp_path)


def test_a_missing_file_names_its_neighbour(tmp_path):
    (tmp_path / "offline.yaml").touch()
    with pytest.raises(ConfigError, match="oflin.yaml: no such file. Did you mean offline.yaml?"):
        load_yaml(tmp_path / "oflin.yaml")


def test_load_yaml_reads_exponents_as_numbers(tmp_path):
    (tmp_path / "f.yaml").write_text("a: 1e-4\nb: 1.0e-4\nc: 3\nd: x1e4\n")
    assert load_yaml(tmp_path / "f.yaml") == {"a": 1e-4, "b": 1e-4, "c": 3, "d": "x1e4"}


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        pytest.param([], {"a": {"b": 1}}, id="none"),
        pytest.param(["a.b=2"], {"a": {"b": 2}}, id="replaced"),
        pytest.param(["a.b=2", "a.b=3"], {"a": {"b": 3}}, id="the-last-counts"),
        pytest.param(["a.c.d=[1, 2.5]"], {"a": {"b": 1, "c": {"d": [1, 2.5]}}}, id="new-group"),
        pytest.param(["e=1e-3"], {"a": {"b": 1}, "e": 0.001}, id="exponent"),
        pytest.param(["e=x=y"], {"a": {"b": 1}, "e": "x=y"}, id="equals-in-value"),
        pytest.param(["e="], {"a": {"b": 1}, "e": None}, id="empty-value"),
    ],
)
def test_overrides(overrides, expected):
    mapping = {"a": {"b": 1}}
    assert apply_overrides(mapping, overrides, "--set") == expected
    assert mapping == {"a": {"b": 1}}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        pytest.param("a", "--set: 'a' is not of the form key.sub=value.", id="no-equals"),
        pytest.param("=1", "--set: '=1' is not of the form key.sub=value.", id="no-key"),
        pytest.param("a..b=1", "--set: 'a..b=1' is not of the form key.sub=value.", id="hole"),
        pytest.param("a.b.c=1", "--set: 'a.b.c=1': a.b is 1, not a group of settings.", id="value-as-group"),
        pytest.param("a.b=[1", "--set: 'a.b=[1', line 1: not valid YAML: expected ',' or ']'", id="bad-value"),
    ],
)
def test_overrides_refuse(override, message):
    with pytest.raises(ConfigError) as raised:
        apply_overrides({"a": {"b": 1}}, [override], "--set")
    assert str(raised.value).startswith(message)


def test_resolve_prefers_what_is_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("pipelines/stage.py") == CHECKOUT / "pipelines" / "stage.py"
    assert resolve("not/there.yaml") == Path("not/there.yaml")
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "pipelines" / "stage.py").touch()
    assert resolve("pipelines/stage.py") == Path("pipelines/stage.py")
