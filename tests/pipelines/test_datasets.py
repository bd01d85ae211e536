"""Where a dataset lies, by a file of configs/datasets or by its JSON."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from operators.errors import ConfigError, DatasetError
from pipelines.config import CHECKOUT
from pipelines.datasets import DatasetFile, read_dataset_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "JPEGImages").mkdir()
    (tmp_path / "instances.json").write_text("{}")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "instances.json").write_text("{}")
    return tmp_path


def test_a_json_alone_has_its_images_beside_it(folder):
    assert read_dataset_file(folder / "instances.json").images == folder / "JPEGImages"
    assert read_dataset_file(folder / "alone" / "instances.json").images == folder / "alone"


def test_a_named_folder_goes_before(folder):
    found = read_dataset_file(folder / "instances.json", image_root=str(folder / "alone"))
    assert found == DatasetFile(annotations=str(folder / "instances.json"), image_root=str(folder / "alone"))


def test_a_yaml_says_where(folder):
    path = folder / "mine.yaml"
    path.write_text(f"annotations: {folder}/instances.json\nimage_root: {folder}/alone\n")
    assert read_dataset_file(path).images == folder / "alone"
    assert read_dataset_file(path, image_root=str(folder)).images == folder


def test_a_yaml_may_name_a_folder_of_davis(folder):
    path = folder / "davis.yaml"
    path.write_text(f"annotations: {folder}/alone\n")
    found = read_dataset_file(path)
    assert found.davis and found.image_root is None
    assert not read_dataset_file(folder / "instances.json").davis and read_dataset_file(folder / "alone").davis


@pytest.mark.parametrize("text, error, message", [
    pytest.param("", ConfigError, "expected settings", id="empty"),
    pytest.param("image_root: x\n", ConfigError, "annotations: missing", id="no annotations"),
    pytest.param("annotation: x\n", ConfigError, "Did you mean annotations?", id="a slip"),
    pytest.param("annotations: none.json\nmade_by: make it\n", DatasetError,
                 "none.json does not exist. Make it by: make it", id="absent, and how it is made"),
    pytest.param("annotations: {folder}/instances.json\nimage_root: none\n", DatasetError,
                 "the folder of images none does not exist", id="images absent"),
])  # fmt: skip
def test_what_is_wrong_with_a_file(folder, text, error, message):
    path = folder / "mine.yaml"
    path.write_text(text.replace("{folder}", str(folder)))
    with pytest.raises(error, match="mine.yaml") as found:
        read_dataset_file(path)
    assert message in str(found.value)


@pytest.mark.parametrize("path", sorted((CHECKOUT / "configs/datasets").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_files_say_how_their_dataset_is_made(path):
    try:
        read_dataset_file(path)
    except DatasetError as error:
        assert re.search("does not exist. Make it by: (maskstream |unpacking .*[.]zip of )", str(error))
