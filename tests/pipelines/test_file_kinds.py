"""Which kind of file it is: every shipped one, and those that say little."""

from __future__ import annotations

from pathlib import Path

import pytest

from operators.errors import ConfigError
from pipelines.config import CHECKOUT, load_yaml
from pipelines.file_kinds import KINDS, kind_of, load_settings

SHIPPED = [(name, file) for name, kind in KINDS.items() if kind.folder and name != "cluster"
           for file in sorted((CHECKOUT / kind.folder).glob("*.yaml"))]  # fmt: skip


@pytest.mark.parametrize("name, file", SHIPPED, ids=[f"{file.parent.name}/{file.name}" for _, file in SHIPPED])
def test_every_shipped_file_is_of_the_kind_of_its_folder(name, file):
    assert kind_of(load_yaml(file)) == name
    assert load_settings(file, name) == load_yaml(file)


def test_examples_are_there():
    assert all((CHECKOUT / kind.example).is_file() for kind in KINDS.values() if kind.example)


@pytest.mark.parametrize("mapping, kind", [
    pytest.param({}, None, id="nothing"),
    pytest.param({"steps": 3}, None, id="keys that tell nothing"),
    pytest.param({"network": "crossvis"}, "network", id="a network by its name"),
    pytest.param({"network": "configs/networks/tiny.yaml"}, "training", id="a run, by the file of its network"),
    pytest.param({"network": "a.yaml", "variants": {}}, "ablation", id="an ablation that names a network"),
    pytest.param({"videos": [], "annotations": []}, "annotations", id="the annotations themselves"),
    pytest.param({"annotations": "a.json"}, "dataset", id="where annotations lie"),
])  # fmt: skip
def test_kind(mapping, kind):
    assert kind_of(mapping) == kind


def test_a_slip_in_ones_own_folder_is_told_by_its_own_files(tmp_path, monkeypatch):
    """A shipped file of the same name is not what is meant."""
    monkeypatch.chdir(tmp_path)
    Path("tiny_mine.yaml").write_text("network: crossvis\n")
    with pytest.raises(ConfigError, match=r"^tiny_mime.yaml: no such file. Did you mean tiny_mine.yaml\?$"):
        load_settings("tiny_mime.yaml", "network")
    with pytest.raises(ConfigError, match=r"^iai_tny: no such file. Did you mean configs/networks/iai_tiny.yaml\?$"):
        load_settings("iai_tny", "network")
