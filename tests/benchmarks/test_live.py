"""The benchmark of live streams: its table by hand, its words, and one short run."""

from __future__ import annotations

import pytest

from benchmarks.live import main, parse, table
from pipelines.plan_try import LiveReading


def reading(cameras: int, p95_s: float, add_up: bool = True) -> LiveReading:
    return LiveReading(cameras, 10.0, 10.0 * cameras, 9.0 * cameras, p95_s / 2, p95_s, 0.1, 0.95, add_up)


def test_the_table_by_hand():
    """Medians over the turns, and no word of counters that never failed."""
    readings = {1: [reading(1, 0.1), reading(1, 0.9), reading(1, 0.2)], 2: [reading(2, 0.4, add_up=False)]}
    *_, one, two = table(readings).splitlines()
    assert one == "| 1 | 10.0 | 9.0 | 100 / 200 | 10.0% | 95% | yes |"
    assert two == "| 2 | 20.0 | 18.0 | 200 / 400 | 10.0% | 95% | NO |"


def test_a_run(capsys):
    words = ["--cameras", "1,2", "--size", "96x64", "--fps", "2", "--seconds", "0.8", "--turns", "1", "--device", "cpu"]
    assert main([*words, "--set", "batching.frames=2"]) == 0
    printed = capsys.readouterr()
    assert [line.split(" | ")[0] for line in printed.out.splitlines()[-2:]] == ["| 1", "| 2"]
    assert "cameras of 96x64 and 2 frames/s, drop_oldest, queue 8" in printed.out and "| yes |" in printed.out
    assert "turn 1 of 1: 2 cameras" in printed.err


@pytest.mark.parametrize("words, message", [
    (["--size", "360"], "expected two sides"), (["--size", "tall"], "--size is width x height"),
    (["--cameras", "0"], "1 to 256 cameras"), (["--fps", "0"], "--fps: expected 0.1"),
    (["--policy", "drop_all"], "invalid choice: 'drop_all'"),
])  # fmt: skip
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert message in capsys.readouterr().err
