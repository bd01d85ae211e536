"""The benchmark of networks: that it measures both forms, in turns, and that its table says what was measured."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.network import MERGED, REST, WHOLE, main, parse, table

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


CLIPS = """
network: cico
model:
  num_classes: 3
  clip_length: 3
  input: {short_side: 64, long_side: 96, fit: box}
  backbone: {blocks: [1, 1, 1, 1], stem_channels: 8, mid_channels: 4, stride_in: 3x3, norm: batch, frozen_stages: 0}
  channels: 16
  mask_channels: 16
  tower_convs: 1
  embedding_dim: 8
  masks: {prototypes: 8}
"""


@pytest.mark.parametrize("overlap, new", [(None, 2), (0, 3), (2, 1)])
def test_a_network_of_clips_tells_its_new_frames(tmp_path, capsys, overlap, new):
    path = tmp_path / "clips.yaml"
    path.write_text(CLIPS)
    words = ["--network", str(path), "--size", "64x90", "--instances", "5", "--repeats", "3", "--form", "plain"]
    assert main([*words, "--threads", "1", *([] if overlap is None else ["--overlap", str(overlap)])]) == 0
    head, _, _, _, *rows = capsys.readouterr().out.splitlines()
    assert f"clips of 3 frames, {new} of them new" in head
    named = [row.split(" | ")[0].removeprefix("| ") for row in rows if row.startswith("|")]
    assert named[-1] == "whole clip" and WHOLE not in named
    assert {"backbone", "pyramid", MERGED, "class tower", "box tower", "track tower", "mask branch", "tracks", REST,
            "run lengths"} < set(named)  # fmt: skip
    true, counted = (float(word.strip("(")) for word in rows[-1].split() if word.strip("(").replace(".", "").isdigit()
                     and "." in word)  # fmt: skip
    assert counted / true == pytest.approx(3 / new, rel=0.02)


@pytest.mark.parametrize("content, message", [
    pytest.param(CLIPS, "error: overlap is 3, expected less than the network's clip_length, 3", id="no new frame"),
    pytest.param(SMALL, "error: --overlap is of networks that see clips; 'crossvis' sees single", id="no clips"),
])  # fmt: skip
def test_overlaps_that_cannot_be(tmp_path, capsys, content, message):
    path = tmp_path / "net.yaml"
    path.write_text(content)
    assert main(["--network", str(path), "--size", "64x90", "--repeats", "1", "--form", "plain", "--overlap", "3"]) == 2
    assert message in capsys.readouterr().err


def test_the_table_of_clips_by_hand():
    turns = {"a": [{"tracks": 0.1, "whole clip": 0.5}]}
    assert table(turns, "whole clip", 2, 3).splitlines()[-3:] == [
        "| whole clip | 500.0 | 100% |", "", "a: 4.00 frames/s (6.00 counting all 3 of a clip)"]  # fmt: skip
    slow = {"a": [{"tracks": 0.1, "whole clip": 60.4113}]}
    assert table(slow, "whole clip", 2, 3).endswith("a: 0.0331 frames/s (0.0497 counting all 3 of a clip)")


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
