"""What the commands of `maskstream dataset` make of their words, and what they print."""

from __future__ import annotations

import numpy as np
import pytest

from operators.datasets.split import Part, Split
from operators.datasets.stats import DISTRIBUTIONS, CategoryStats, Stats
from operators.errors import ConfigError
from pipelines.commands.dataset_convert import class_names
from pipelines.commands.dataset_split import print_split
from pipelines.commands.dataset_stats import print_stats


@pytest.mark.parametrize("text, names", [
    ("", {}), ("1=car", {1: "car"}), (" 1 = car , 10=a=b,", {1: "car", 10: "a=b"}),
])  # fmt: skip
def test_class_names(text, names):
    assert class_names(text) == names


@pytest.mark.parametrize("text", ["car", "=car", "x=car", "1=", "-1=car", "1234567890=car", "1=car,2"])
def test_class_names_that_are_none(text):
    with pytest.raises(ConfigError, match="expected NUMBER=NAME"):
        class_names(text)


def test_names_of_classes_are_printed_as_they_are(tmp_path, capsys):
    """In a file from outside, a name may be what the terminal's library takes for a command."""
    name = "[red]cat[/nothing]"
    print_split(Split((Part("train", tmp_path / "train.json", 1, 2, 3, {name: 3, "dog": 0}),), ("A note.",)))
    told = capsys.readouterr().out
    assert name in told and "dog" not in told and "A note." in told
    values = dict.fromkeys(DISTRIBUTIONS, np.zeros(0))
    row = CategoryStats(tracks=1, masks=2, videos=1, mean_length=2.0, median_size=0.125)
    print_stats(Stats({"videos": 1}, {}, {"no_occlusion": 5}, values, {name: row}, ("dog",), ("Another.",)))
    told = capsys.readouterr().out
    assert name in told and "12.50%" in told and "Categories without tracks: 1" in told and "Another." in told
    assert "masks labelled no occlusion" in told and "stands in" not in told
