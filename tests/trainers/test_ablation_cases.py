"""The hard cases of an ablation as a table and as pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from tests.operators.test_hard_cases import LEFT, RIGHT, dataset, rle
from trainers.ablation_cases import write_cases
from trainers.ablation_config import AblationConfig, GeneratedData, Row, Run, Table, Variant

SWAPPED = [[*LEFT[:3], *RIGHT[3:]], [*RIGHT[:3], *LEFT[3:]]]


def ablation(folder: Path) -> AblationConfig:
    """Two look-alikes of one class that meet, in a held-out set as the generator lays one out."""
    dataset(folder, (1, LEFT), (1, RIGHT)).path.rename(folder / "instances.json")
    (folder / "JPEGImages" / "a").mkdir(parents=True)
    for t in range(5):
        Image.fromarray(np.full((8, 40, 3), 90, np.uint8)).save(folder / "JPEGImages" / "a" / f"{t}.jpg")
    rows = tuple(Row(variant=name, paper=1.0) for name in ("one", "two"))
    return AblationConfig(
        training="t.yaml", held_out=GeneratedData(folder=str(folder), clips=1, seed=0),
        variants={"one": Variant(label="the first"), "two": Variant(label="the second")},
        tables={"t": Table(title="T", rows=rows)},
    )  # fmt: skip


def scored(folder: Path, variant: str, seed: int, tracks: list) -> Run:
    run = Run(variant, seed, folder / f"{variant}-{seed}")
    (run.folder / "evaluation").mkdir(parents=True)
    (run.folder / "evaluation" / "results.json").write_text(json.dumps(
        [{"video_id": 1, "category_id": 1, "score": 0.9, "segmentations": [p and rle(p) for p in places]}
         for places in tracks]))
    return run


def test_without_results_nothing_is_written(tmp_path):
    config = ablation(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    assert write_cases(config, config.held_out, [Run("one", 0, tmp_path / "none")], out) == []
    assert list(out.iterdir()) == []


def test_the_table_counts_over_seeds_and_the_picture_shows_each_variant(tmp_path):
    config = ablation(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    runs = [scored(out, "one", 0, [LEFT, RIGHT]), scored(out, "two", 0, [LEFT, RIGHT]), scored(out, "one", 1, SWAPPED)]
    written = write_cases(config, config.held_out, runs, out)
    assert written == [out / "cases.md", out / "look-alikes.png"], "nothing leaves and comes back"
    lines = (out / "cases.md").read_text().splitlines()
    assert "**Two objects of one class that meet: 1 cases**" in lines
    assert [line for line in lines if line.startswith("| the")] == [
        "| the first | 2 | 0.5 | 0.5 | 0.0 | 0.0 |", "| the second | 1 | 1.0 | 0.0 | 0.0 | 0.0 |"]  # fmt: skip
    with Image.open(out / "look-alikes.png") as picture:
        assert picture.width > picture.height > 200, "three rows of wide frames"
