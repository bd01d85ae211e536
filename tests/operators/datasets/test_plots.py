"""The pictures of the statistics: there, of a legible size, and of anything."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from operators.datasets.plots import bins, write_plots
from operators.datasets.stats import DISTRIBUTIONS, CategoryStats, Stats
from operators.errors import ConfigError


def stats_of(values: np.ndarray, names: list[str]) -> Stats:
    counts = dict.fromkeys(("videos", "frames", "tracks", "masks"), 1234)
    rows = {name: CategoryStats(k, k, k, k, 0.5) for k, name in enumerate(names)}
    return Stats(counts, {}, None, dict.fromkeys(DISTRIBUTIONS, values), rows, ("unused",), ())


@pytest.mark.parametrize("values, names", [
    pytest.param(np.zeros(0), [], id="nothing"),
    pytest.param(np.zeros(3), ["$x"], id="zeros alone"),
    pytest.param(np.array([0, 0.5, 1e-9]), ["a name far too long for a label in a picture"], id="small numbers"),
    pytest.param(np.arange(10_000.0), [f"class {k}" for k in range(80)], id="many of each"),
])  # fmt: skip
def test_plots(tmp_path, values, names):
    written = write_plots(stats_of(values, names), tmp_path / "new" / "plots")
    assert [path.name for path in written] == ["histograms.png", "categories.png"]
    for path in written:
        with Image.open(path) as image:
            assert image.width >= 900 and image.height >= 200
            assert len(np.unique(np.asarray(image.convert("L")))) > 2
    assert sorted(path.name for path in written[0].parent.iterdir()) == ["categories.png", "histograms.png"]


@pytest.mark.parametrize("values, log, expected", [
    pytest.param([3], False, [2.5, 3.5], id="one whole number"),
    pytest.param([1, 2, 4], False, [0.5, 1.5, 2.5, 3.5, 4.5], id="a bin for each whole number"),
    pytest.param([0.5], False, None, id="one fraction"),
    pytest.param([1e-6, 1.0], True, None, id="of equal ratio"),
    pytest.param([0, 10_000], False, None, id="at most about 40"),
])  # fmt: skip
def test_bins(values, log, expected):
    edges = bins(np.array(values, float), log)
    assert expected is None or edges.tolist() == expected
    assert (np.diff(edges) > 0).all() and len(edges) <= 42
    assert edges[0] <= min(values) * (1 + 1e-9) and edges[-1] >= max(values) * (1 - 1e-9)


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="plots cannot be written there"):
        write_plots(stats_of(np.zeros(0), []), tmp_path / "file" / "plots")
