"""The outcome as a table and a picture: figures worked by hand."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from PIL import Image

from trainers.ablation_config import AblationConfig, GeneratedData, Row, Table, Variant
from trainers.ablation_report import Line, in_rows, lines_of, markdown, span, spread, write_report

ROWS = (Row(variant="a", paper=32.1), Row(variant="b", label="B!", paper=34.8, paper_std=0.25))
TABLE = Table(title="Parts", rows=ROWS)
CONFIG = AblationConfig(
    training="t.yaml", held_out=GeneratedData(folder="x", clips=3, seed=2),
    variants={"a": Variant(label="A"), "b": Variant(label="B")}, tables={"parts": TABLE},
)  # fmt: skip


def score(variant: str, seed: int, ap: float, switches: int = 0) -> dict:
    return {"variant": variant, "seed": seed, "AP": ap, "AP50": 2 * ap, "AP75": ap / 2, "AR1": ap, "AR10": ap,
            "switches": switches, "matched": 90, "visible": 100, "training_s": 60.0, "evaluation_s": 30.0}  # fmt: skip


SCORES = [score("a", 0, 0.20, 8), score("b", 0, 0.30, 3), score("a", 1, 0.22, 11), score("a", 2, 0.27, 11)]


@pytest.mark.parametrize("mean, std, digits, text", [
    pytest.param(34.81, None, 1, "34.8", id="a single run has no spread"),
    pytest.param(34.8, 0.25, 2, "34.8 ± 0.25", id="as the paper writes it"),
    pytest.param(5.04, 0.0, 1, "5.0 ± 0.0", id="equal runs"),
])
def test_spread(mean, std, digits, text):
    assert spread(mean, std, digits) == text


def test_mean_and_deviation_are_over_seeds():
    line = lines_of(CONFIG, TABLE, SCORES)[0]
    assert line.mean == pytest.approx(23.0)
    assert line.std == pytest.approx(math.sqrt((9 + 1 + 16) / 2))              # of a sample: n - 1


def test_rows_without_runs_are_left_out():
    assert [line.label for line in lines_of(CONFIG, TABLE, SCORES[:1])] == ["A"]
    assert lines_of(CONFIG, TABLE, []) == []


def test_markdown():
    text = markdown(TABLE, lines_of(CONFIG, TABLE, SCORES)).splitlines()
    assert text[0] == "**Parts**"
    assert text[2].count("|") == text[3].count("|") == 10
    assert text[4] == "| A | 23.0 ± 3.6 | 3 | 46.0 | 11.5 | 10 |  | 32.1 |  |"
    assert text[5] == "| B! | 30.0 | 1 | 60.0 | 15.0 | 3 | +7.0 | 34.8 ± 0.25 | +2.7 |"


def test_without_the_first_row_nothing_is_compared():
    text = markdown(TABLE, lines_of(CONFIG, TABLE, SCORES[1:2])).splitlines()
    assert text[4] == "| B! | 30.0 | 1 | 60.0 | 15.0 | 3 |  | 34.8 ± 0.25 |  |"


def test_the_axes_reach_every_run_and_every_figure_of_the_paper():
    """Relative to the first row: ours -3..+7, the paper's 0..2.95; the deviation of the first row reaches -3.61."""
    low, high = span(lines_of(CONFIG, TABLE, SCORES))
    assert -4.8 < low < -3.6 and 7.0 < high < 8.2


UNTOLD = Table(title="Lengths", rows=(Row(variant="a"), Row(variant="b", paper=30.0)))


def test_rows_that_the_paper_does_not_report_are_left_empty():
    text = markdown(UNTOLD, lines_of(CONFIG, UNTOLD, SCORES)).splitlines()
    assert text[4] == "| A | 23.0 ± 3.6 | 3 | 46.0 | 11.5 | 10 |  |  |  |"
    assert text[5] == "| B | 30.0 | 1 | 60.0 | 15.0 | 3 | +7.0 | 30.0 |  |", "nothing to compare it with"


def test_axes_without_a_first_figure_lie_by_the_next():
    """Ours reach from -3.6 to 7 of the first row, the paper's one figure lies beside the second, at 7."""
    low, high = span(lines_of(CONFIG, UNTOLD, SCORES))
    assert -4.8 < low < -3.6 and 7.0 < high < 8.2


@pytest.mark.parametrize("widths, rows", [
    pytest.param([], [], id="nothing"),
    pytest.param([9], [[0]], id="wider than a row"),
    pytest.param([3, 3, 3], [[0, 1], [2]], id="as many as go"),
    pytest.param([5, 1, 6], [[0, 1], [2]], id="just full"),
])  # fmt: skip
def test_panels_in_rows(widths, rows):
    assert in_rows(widths, most=6) == rows


def test_tables_without_figures_of_a_paper_can_be_drawn(tmp_path):
    alone = Table(title="Alone", rows=(Row(variant="a"), Row(variant="b")))
    config = replace(CONFIG, tables={"lengths": UNTOLD, "alone": alone, **{f"t{i}": TABLE for i in range(6)}})
    write_report(config, SCORES, tmp_path, "maskstream ablate x")
    with Image.open(tmp_path / "ablation.png") as image:
        assert image.size[1] > 900, "8 tables: more than one row of panels"


def test_what_is_written(tmp_path):
    write_report(CONFIG, [], tmp_path / "new", "maskstream ablate x")
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == []
    assert not (tmp_path / "new" / "table.md").exists()
    write_report(CONFIG, SCORES, tmp_path / "new", "maskstream ablate x")
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == SCORES
    text = (tmp_path / "new" / "table.md").read_text()
    assert "4 runs, 6 minutes in all" in text and "`maskstream ablate x`" in text
    with Image.open(tmp_path / "new" / "ablation.png") as image:
        assert image.format == "PNG" and min(image.size) > 300
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["ablation.png", "results.json", "table.md"]


def test_a_single_run_can_be_drawn(tmp_path):
    write_report(CONFIG, SCORES[:1], tmp_path, "maskstream ablate x")
    assert (tmp_path / "ablation.png").stat().st_size > 1000


def test_other_figures_than_ap_keep_their_unit():
    line = Line(TABLE.rows[0], "A", SCORES[:1])
    assert line.values("switches").tolist() == [8] and line.values("AP50").tolist() == [40]
