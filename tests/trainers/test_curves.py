"""The curves of a run: which lines count, and a picture of each part."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from trainers.curves import _smooth, plot_losses, read_metrics

PARTS = {"class": 1.0, "box": 0.5, "centerness": 0.6, "mask": 0.9, "crossover": 0.8, "identity": 1.1, "total": 4.9,
         "learning_rate": 0.001}


def line(step: int, total: float = 1.0) -> str:
    return json.dumps({"step": step, "total": total})


@pytest.mark.parametrize("text, told", [
    pytest.param("", [], id="empty"),
    pytest.param(line(20, 3) + "\n" + line(40, 2) + "\n", [(20, 3), (40, 2)], id="two lines"),
    pytest.param(line(20, 3) + "\n" + line(40, 2)[:12], [(20, 3)], id="the last line is torn"),
    pytest.param(line(20, 3) + "\n" + line(40, 2)[:12] + "\n" + line(40, 1) + "\n", [(20, 3), (40, 1)],
                 id="torn, then resumed on a line of its own"),
    pytest.param("\n".join([line(20, 3), line(40, 2), line(60, 5), line(40, 7), line(60, 8)]),
                 [(20, 3), (40, 7), (60, 8)], id="resumed: the later line of a step counts"),
    pytest.param(line(40, 2) + "\n" + line(20, 3), [(20, 3), (40, 2)], id="in order of steps"),
    pytest.param(line(20, 3) + "\n\n", [(20, 3)], id="an empty line"),
])  # fmt: skip
def test_read_metrics(tmp_path, text, told):
    path = tmp_path / "metrics.jsonl"
    path.write_text(text, encoding="utf-8")
    assert [(row["step"], row["total"]) for row in read_metrics(path)] == told


def picture(folder, rows: list[dict]) -> np.ndarray:
    plot_losses(rows, folder / "losses.png")
    with Image.open(folder / "losses.png") as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB")).astype(int)


def ink(pixels: np.ndarray) -> np.ndarray:
    """(2, 4, 2): of each panel how many pixels are of the curves' dark blue, and how many rows hold some."""
    blue = np.abs(pixels - [8, 81, 156]).sum(2) < 60
    panels = [np.array_split(half, 4, axis=1) for half in np.array_split(blue, 2, axis=0)]
    return np.array([[(panel.sum(), panel.any(1).sum()) for panel in row] for row in panels])


def test_every_part_has_a_panel_and_what_changes_is_drawn(tmp_path):
    """All are flat but the mask's, which stands at the right of the upper row and falls over its whole height."""
    pixels = picture(tmp_path, [{"step": step, **PARTS, "mask": 100.0 - step} for step in range(0, 100, 10)])
    drawn = ink(pixels)
    assert (drawn[..., 0] > 50).all(), drawn
    heights = drawn[..., 1]
    assert heights[0, 3] > 10 * heights[0, 0] > 0, heights


@pytest.mark.parametrize("rows", [
    pytest.param([{"step": 1, **PARTS}], id="a single line"),
    pytest.param([{"step": 1, "total": 2.0}, {"step": 2, "total": 1.0}], id="the total alone"),
    pytest.param([{"step": s, "total": 1.0, "mask": 2.0, "box": 1.0} for s in (1, 2)], id="an odd number of panels"),
])
def test_short_and_partial_runs(tmp_path, rows):
    assert picture(tmp_path, rows).std() > 0


@pytest.mark.parametrize("values, width, smooth", [
    pytest.param([5], 9, [5], id="one value"),
    pytest.param([1, 2, 3, 4, 5], 3, [1.5, 2, 3, 4, 4.5], id="narrower at the ends"),
    pytest.param([2] * 30, 9, [2] * 30, id="flat stays flat to its ends"),
])
def test_running_mean(values, width, smooth):
    assert _smooth(np.array(values, float), width).tolist() == pytest.approx(smooth)
