"""The pictures of `maskstream dataset stats --plots`.

In:     Stats
Out:    DIR/histograms.png, a panel a distribution; DIR/categories.png, a bar a category
State:  none
Limits: MAX_BARS categories are drawn, the most frequent ones
"""

from __future__ import annotations

from pathlib import Path

import matplotlib
import numpy as np

from operators.datasets.stats import DISTRIBUTIONS, Stats
from operators.errors import ConfigError
from operators.replacing import replacing

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import MaxNLocator  # noqa: E402

MAX_BARS = 60
MAX_NAME = 28
COLOR, MEDIAN_COLOR = "#3b75af", "#c8553d"
LOG_SCALES = ("mask_size", "speed")
COUNTED = {
    "video_length": "videos", "tracks_per_video": "videos", "objects_per_frame": "frames", "track_length": "tracks",
    "gaps_per_track": "tracks", "gap_length": "returns", "mask_size": "masks", "speed": "pairs of frames",
    "box_overlap": "frames",
}  # fmt: skip
"""Distribution -> what the height of a bar counts."""


def write_plots(stats: Stats, folder: Path | str) -> list[Path]:
    """Draw both pictures into `folder`, which is made; gives their paths. Nothing measured leaves empty panels.

    Raises ConfigError where they cannot be written.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        written = [folder / "histograms.png", folder / "categories.png"]
        for path, figure in zip(written, (_histograms(stats), _categories(stats)), strict=True):
            with replacing(path) as part:
                figure.savefig(part, format="png", dpi=110)
            plt.close(figure)
    except OSError as error:
        raise ConfigError(f"{folder}: plots cannot be written there ({error.strerror or error}).") from error
    return written


def bins(values: np.ndarray, log: bool) -> np.ndarray:
    """Edges of about 40 bins over (n,) values, n > 0: of equal ratio where `log`, about whole numbers if they are."""
    low, high = float(values.min()), float(values.max())
    if log:
        return np.geomspace(low, max(high, low * 1.01), 41)
    if (values == np.rint(values)).all():
        width = max(1, int(np.ceil((high - low + 1) / 40)))
        return np.arange(low - 0.5, high + width, width)
    return np.linspace(low, max(high, low + 1e-9), 41)


def _histograms(stats: Stats) -> Figure:
    figure, axes = plt.subplots(3, 3, figsize=(15, 10.5), layout="constrained")
    for axis, name in zip(axes.flat, DISTRIBUTIONS, strict=True):
        _histogram(axis, name, stats.distributions[name])
    counts = stats.counts
    figure.suptitle(f"{counts['videos']:,} videos, {counts['frames']:,} frames, {counts['tracks']:,} tracks, "
                    f"{counts['masks']:,} masks", fontsize=15)                                     # fmt: skip
    return figure


def _histogram(axis: Axes, name: str, values: np.ndarray) -> None:
    log = name in LOG_SCALES
    shown = values[values > 0] if log else values       # a mask that stands still has no place on a log scale
    axis.set_xlabel(DISTRIBUTIONS[name], fontsize=11)
    axis.set_ylabel(COUNTED[name], fontsize=11)
    axis.grid(axis="y", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)
    if not len(shown):
        axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes, fontsize=13, color="#777777")
        return
    if log:
        axis.set_xscale("log")
    elif (shown == np.rint(shown)).all():
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    edges = bins(shown, log)
    axis.hist(shown, bins=edges, color=COLOR, edgecolor="white", linewidth=0.4)
    axis.yaxis.set_major_locator(MaxNLocator(integer=True))
    if len(edges) < 5 and not log:                      # one wide bar would look like a frame
        axis.set_xlim(edges[0] - 2, edges[-1] + 2)
    median = float(np.median(values))
    axis.axvline(median, color=MEDIAN_COLOR, linewidth=1.6)
    still = len(values) - len(shown)
    title = f"median {median:.3g}, mean {values.mean():.3g}" + (f"; {still:,} of 0 not drawn" if still else "")
    axis.set_title(title, fontsize=11, color="#444444", loc="left")


def _categories(stats: Stats) -> Figure:
    rows = list(stats.per_category.items())[:MAX_BARS]
    figure, axis = plt.subplots(figsize=(9, 1.6 + 0.27 * max(len(rows), 3)), layout="constrained")
    places = np.arange(len(rows))
    tracks = [row.tracks for _, row in rows]
    axis.barh(places, tracks, color=COLOR)
    for place, number in zip(places.tolist(), tracks, strict=True):
        axis.text(number, place, f" {number:,}", va="center", fontsize=9, color="#444444")
    # names come from the file: a dollar sign would begin a formula
    labels = [(n if len(n) <= MAX_NAME else n[: MAX_NAME - 1] + "…").replace("$", r"\$") for n, _ in rows]
    axis.set_yticks(places, labels, fontsize=10)
    axis.invert_yaxis()
    axis.set_xlabel("tracks", fontsize=11)
    axis.margins(x=0.08)
    axis.spines[["top", "right"]].set_visible(False)
    more = len(stats.per_category) - len(rows)
    title = f"{len(stats.per_category)} categories with tracks" + (f", the first {len(rows)}" if more else "")
    axis.set_title(title + (f"; {len(stats.unused)} without" if stats.unused else ""), fontsize=12, loc="left")
    return figure
