"""The benchmark of networks: that it measures both forms, in turns, and that its table says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.network import REST, WHOLE, main, parse, table

SMALL = """
network: crossvis
model:
  num_classes: 3
  backbone: {blocks: [1, 1, 1, 1], stem_channels: 8, mid_channels: 4}
  channels: 16
  fcos: {tower_convs: 1, groups: 4, size_bounds: [16, 32, 64, 128]}
  mask_channels: 8
  embedding_dim: 8
"""


@pytest.fixture
def network(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_run_prints_every_part_of_both_forms(network, capsys):
    words = ["--network", str(network), "--size", "64x90", "--instances", "5", "--repeats", "3", "--threads", "1"]
    assert main([*words, "--dtype", "float32"]) == 0
    printed = capsys.readouterr()
    head, _, titles, _, *rows = printed.out.splitlines()
    assert "small.yaml, 64x90, " in head and "medians of 3 turns" in head and f"torch {torch.__version__}" in head
    assert 3 <= int(head.split(", ")[2].split()[0]) <= 8, "about as many instances as asked for"
    assert titles.startswith("| part | plain, float32, ms | share | fused, float32") and titles.endswith("| ratio |")
    named = [row.split(" | ")[0].removeprefix("| ") for row in rows if row.startswith("|")]
    assert named[-1] == WHOLE and {"backbone", "pyramid", "class tower", "run lengths", REST} < set(named)
    assert rows[-1].count("frames/s") == 2
    assert "turn 5 of 5" in printed.err


def test_one_form_alone(network, capsys):
    assert main(["--network", str(network), "--size", "64x64", "--repeats", "1", "--form", "plain"]) == 0
    out = capsys.readouterr().out
    assert "fused" not in out and "ratio" not in out and out.count("frames/s") == 1


def test_the_table_by_hand():
    plain = [{"backbone": 0.3, WHOLE: 0.4}, {"backbone": 0.1, WHOLE: 0.2}, {"backbone": 0.5, WHOLE: 0.9}]
    fused = [{"backbone": 0.1, WHOLE: 0.2}, {"backbone": 0.1, WHOLE: 0.1}, {"backbone": 0.1, WHOLE: 0.3}]
    assert table({"a": plain, "b": fused}).splitlines() == [
        "| part | a, ms | share | b, ms | share | ratio |",
        "|---|---:|---:|---:|---:|---:|",
        "| backbone | 300.0 | 75% | 100.0 | 50% | 3.00 |",
        "| whole frame | 400.0 | 100% | 200.0 | 100% | 2.00 |",
        "",
        "a: 2.50 frames/s; b: 5.00 frames/s",
    ]


@pytest.mark.parametrize("words", [
    ["--size", "360"], ["--size", "axb"], ["--size", "8x640"], ["--repeats", "0"], ["--threads", "0"],
    ["--instances", "101"],
])  # fmt: skip
def test_words_out_of_range(words, capsys):
    with pytest.raises(SystemExit):
        parse(words)
    assert "expected" in capsys.readouterr().err
