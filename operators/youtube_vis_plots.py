"""The pictures of `maskstream evaluate youtube-vis --plots`.

In:     Scores
Out:    DIR/precision_recall.png, a curve for each IoU threshold, mean over categories;
        DIR/precision_recall_categories.png, a panel a category at IoU 0.5; DIR/categories.png, AP and AP50 of each
State:  none
Limits: of more than MAX_CATEGORIES the best and the worst half of so many are drawn
"""

from __future__ import annotations

import math
import warnings
from pathlib import Path

import matplotlib
import numpy as np

from operators.errors import ConfigError
from operators.replacing import replacing
from operators.youtube_vis import Scores, short_name
from operators.youtube_vis_curves import RECALLS
from operators.youtube_vis_match import IOU_THRESHOLDS

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

MAX_CATEGORIES = 80
MAX_NAME = 24
DARK, LIGHT = "#08519c", "#9ecae1"


def write_plots(scores: Scores, folder: Path | str) -> list[Path]:
    """Draw the pictures into `folder`, which is made; gives their paths. Without objects they say so.

    Raises ConfigError where they cannot be written.
    """
    folder = Path(folder)
    pictures = {
        "precision_recall": curves_by_threshold, "precision_recall_categories": curves_by_category,
        "categories": category_bars,
    }  # fmt: skip
    written = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, draw in pictures.items():
            figure = draw(scores)
            with replacing(folder / f"{name}.png") as part:
                _save(figure, part)
            plt.close(figure)
            written.append(folder / f"{name}.png")
    except OSError as error:
        raise ConfigError(f"{folder}: plots cannot be written there ({error.strerror or error}).") from error
    return written


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)    # drawn as empty boxes
        figure.savefig(path, format="png", dpi=110)


def curves_by_threshold(scores: Scores) -> Figure:
    """Precision over recall, the mean over categories, a curve for each IoU threshold; the legend gives its AP."""
    figure, axes = plt.subplots(figsize=(7.6, 5), constrained_layout=True)
    evaluated = scores.precision[_evaluated(scores)]                                     # (K, I, R)
    _recall_axes(axes)
    axes.set_xlabel("recall")
    axes.set_ylabel("precision")
    if not len(evaluated):
        _nothing(axes)
        return figure
    colors = plt.get_cmap("viridis_r")(np.linspace(0.1, 1, len(IOU_THRESHOLDS)))
    for threshold, curve, color in zip(IOU_THRESHOLDS, evaluated.mean(axis=0), colors, strict=True):
        label = f"IoU {threshold:.2f}: {curve.mean():.3f}"
        axes.plot(RECALLS, curve, color=color, label=label, linewidth=1.8, clip_on=False)
    axes.set_title(f"all areas, mean of {_count(len(evaluated))}: AP {scores['AP']:.3f}")
    axes.legend(title="AP at", loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False)
    return figure


def curves_by_category(scores: Scores) -> Figure:
    """Precision over recall at IoU 0.5, a panel a category in the order of the ids."""
    shown = sorted(_shown(scores))
    columns = max(1, min(8, len(shown), math.ceil(math.sqrt(1.6 * len(shown)))))
    rows = max(1, math.ceil(len(shown) / columns))
    side = 5 if len(shown) <= 1 else 2.6 if len(shown) <= 9 else 1.9
    width, height = side * columns + 0.7, (side + 0.2) * rows + 1.0
    figure, grid = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, sharex=True, sharey=True)
    # margins in inches: for 40 panels matplotlib's own layout takes seconds
    figure.subplots_adjust(left=0.7 / width, right=1 - 0.15 / width, bottom=0.55 / height, top=1 - 0.7 / height,
                           wspace=0.15, hspace=0.25)  # fmt: skip
    names = list(scores.per_category)
    for axes, k in zip(grid.flat, shown, strict=False):
        _recall_axes(axes)
        axes.fill_between(RECALLS, scores.precision[k, 0], color=LIGHT, alpha=0.5, linewidth=0)
        axes.plot(RECALLS, scores.precision[k, 0], color=DARK, linewidth=1.4, clip_on=False)
        axes.set_title(f"{_text(names[k])}  {scores.per_category[names[k]]['AP50']:.3f}", fontsize=9)
    for axes in grid.flat[max(1, len(shown)) :]:
        axes.set_visible(False)
    if not shown:
        _recall_axes(grid[0, 0])
        _nothing(grid[0, 0])
    figure.supxlabel("recall", fontsize=10, y=0.1 / height, va="bottom")
    figure.supylabel("precision", fontsize=10, x=0.1 / width, ha="left")
    title = "Precision over recall at IoU 0.5, with AP50" + _part(scores, shown)
    figure.suptitle(title, fontsize=11 if width > 6 else 9, y=1 - 0.1 / height, va="top")
    return figure


def category_bars(scores: Scores) -> Figure:
    """AP and AP50 of each category, the best at the top, and the means of all as lines."""
    shown = _shown(scores)
    names = list(scores.per_category)
    figure, axes = plt.subplots(figsize=(7.6, 1.6 + 0.24 * max(4, len(shown))), constrained_layout=True)
    places = np.arange(len(shown))[::-1]
    for metric, color, height in (("AP50", LIGHT, 0.8), ("AP", DARK, 0.46)):
        values = [scores.per_category[names[k]][metric] for k in shown]
        axes.barh(places, values, height=height, color=color, label=f"{metric}, mean {_number(scores[metric])}")
        if shown:
            axes.axvline(scores[metric], color=color, linewidth=1, linestyle="--")
    for column, (metric, color) in enumerate((("AP", DARK), ("AP50", "#4a86b5"))):
        cells = [_number(scores.per_category[names[k]][metric]) for k in shown]
        for place, cell in zip([len(shown) - 0.2, *places], [metric, *cells], strict=True):
            axes.text(1.07 + 0.09 * column, place, cell, va="center", ha="center", fontsize=8, color=color)
    axes.set_yticks(places, [_text(names[k]) for k in shown], fontsize=9)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.7, max(len(shown), 1) - 0.3)
    axes.set_xticks(np.arange(0, 1.01, 0.2))
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("AP and AP50 of each category" + _part(scores, shown), fontsize=11, pad=14)
    if shown:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    else:
        _nothing(axes)
    return figure


def _evaluated(scores: Scores) -> list[int]:
    """Categories that have objects."""
    return [k for k, row in enumerate(scores.per_category.values()) if row["AP"] >= 0]


def _shown(scores: Scores) -> list[int]:
    """Those that are drawn, from the best to the worst; at equal AP by name."""
    names = list(scores.per_category)
    ordered = sorted(_evaluated(scores), key=lambda k: (-scores.per_category[names[k]]["AP"], names[k]))
    half = MAX_CATEGORIES // 2
    return ordered if len(ordered) <= MAX_CATEGORIES else ordered[:half] + ordered[-half:]


def _part(scores: Scores, shown: list[int]) -> str:
    total = len(_evaluated(scores))
    half = MAX_CATEGORIES // 2
    return f": the best {half} and the worst {half} of {total}" if len(shown) < total else ""


def _recall_axes(axes: Axes) -> None:
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _nothing(axes: Axes) -> None:
    axes.text(0.5, 0.5, "no category has objects", ha="center", va="center", transform=axes.transAxes)


def _count(num: int) -> str:
    return "1 category" if num == 1 else f"{num} categories"


def _number(value: float) -> str:
    return "-" if value < 0 else f"{value:.3f}"


def _text(name: str) -> str:
    """A name as it is: in matplotlib a pair of dollars would begin a formula."""
    return short_name(name, MAX_NAME).replace("$", r"\$")
