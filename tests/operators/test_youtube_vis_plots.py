"""The pictures: there for any number of categories, with what the numbers say in them."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from operators.errors import ConfigError
from operators.youtube_vis import METRICS, Scores
from operators.youtube_vis_plots import (
    MAX_CATEGORIES,
    category_bars,
    curves_by_category,
    curves_by_threshold,
    write_plots,
)

PICTURES = ["categories.png", "precision_recall.png", "precision_recall_categories.png"]


def scores_of(*aps: float, names: list[str] | None = None) -> Scores:
    """Categories with flat curves of these precisions; -1 for one without objects."""
    names = names or [f"category {k}" for k in range(len(aps))]
    rows = [dict.fromkeys(METRICS, ap) for ap in aps]
    precision = np.array(aps).reshape(-1, 1, 1) * np.ones((1, 10, 101))
    evaluated = [ap for ap in aps if ap >= 0]
    overall = dict.fromkeys(METRICS, float(np.mean(evaluated)) if evaluated else -1.0)
    return Scores(overall, dict(zip(names, rows, strict=True)), precision=precision)


@pytest.fixture(autouse=True)
def no_figure_stays():
    yield
    plt.close("all")


@pytest.mark.parametrize("scores", [
    pytest.param(scores_of(), id="no category"),
    pytest.param(scores_of(-1), id="no objects"),
    pytest.param(scores_of(0.25), id="one"),
    pytest.param(scores_of(0.25, -1, 0), id="three"),
    pytest.param(scores_of(*np.linspace(0, 1, 40)), id="forty"),
    pytest.param(scores_of(*np.linspace(0, 1, MAX_CATEGORIES + 5)), id="more than are drawn"),
    pytest.param(scores_of(0.5, 0.25, names=["$x$ \\frac{", "é\ud800\n" + "w" * 900]), id="odd names"),
])  # fmt: skip
def test_pictures(scores, tmp_path, recwarn):
    written = write_plots(scores, tmp_path / "new" / "plots")
    assert sorted(path.name for path in written) == PICTURES
    assert sorted(path.name for path in (tmp_path / "new" / "plots").iterdir()) == PICTURES
    for path in written:
        with Image.open(path) as image:
            assert image.format == "PNG" and 300 < image.width < 4000 and 200 < image.height < 4000
    assert not plt.get_fignums() and not recwarn.list


def test_curves_are_means_over_categories_with_objects():
    axes = curves_by_threshold(scores_of(0.2, -1, 0.6)).axes[0]
    assert len(axes.lines) == 10
    np.testing.assert_allclose(axes.lines[0].get_ydata(), 0.4)
    assert axes.get_title() == "all areas, mean of 2 categories: AP 0.400"
    assert axes.get_legend().get_texts()[5].get_text() == "IoU 0.75: 0.400"


def test_a_panel_a_category_in_their_order():
    panels = [axes for axes in curves_by_category(scores_of(0.2, -1, 0.6)).axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["category 0  0.200", "category 2  0.600"]
    np.testing.assert_allclose(panels[1].lines[0].get_ydata(), 0.6)


def test_bars_from_the_best_to_the_worst():
    axes = category_bars(scores_of(0.2, -1, 0.6)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["category 2", "category 0"]
    assert [round(bar.get_width(), 6) for bar in axes.patches] == [0.6, 0.2, 0.6, 0.2]
    assert axes.get_yticks()[0] > axes.get_yticks()[1]


def test_of_too_many_the_best_and_the_worst():
    figure = category_bars(scores_of(*np.linspace(0, 1, 100)))
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert len(names) == MAX_CATEGORIES and (names[0], names[-1]) == ("category 99", "category 0")
    assert figure.axes[0].get_title().endswith("the best 40 and the worst 40 of 100")


def test_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="plots cannot be written"):
        write_plots(scores_of(0.5), tmp_path / "file")
