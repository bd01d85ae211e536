"""What is timed does the same work, and the table says what was found."""

from __future__ import annotations

import argparse
from itertools import islice
from pathlib import Path

import pytest

from benchmarks.training_data import BATCH, check_equal, table, take
from operators.shapes import ShapesConfig, write_youtube_vis
from operators.youtube_vis_data import read_dataset
from trainers.frames import FrameIndex
from trainers.pairs import PairSampler


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> FrameIndex:
    root = tmp_path_factory.mktemp("shapes")
    clips = ShapesConfig(width=320, height=180, num_frames=4, min_objects=3, max_objects=4, min_classes=3, num_twins=0,
                         full_occlusions=0, re_entries=0)  # fmt: skip
    path = write_youtube_vis(root, clips, seed=1, num_clips=1)
    return FrameIndex(read_dataset(path, image_root=Path(root) / "JPEGImages"))


def test_both_ways_give_the_same_pairs(index):
    draws = list(islice(PairSampler(index, max_interval=3, flip=0.5, seed=0).draws(0), BATCH))
    assert {draw.flip for draw in draws} == {False, True}
    assert check_equal(index, draws) < 1


def test_the_first_two_batches_do_not_count():
    taken = []
    rate, cost = take((taken.append(i) for i in range(99)), 5)
    assert len(taken) == 7 and rate > 0 and cost >= 0


def test_the_table_compares_with_the_better_of_the_others():
    args = argparse.Namespace(pairs=8, size="320x180", cores=1, rounds=3)
    rows = {"DALI": [(30.0, 10.0), (20.0, 30.0), (25.0, 20.0)], "plain": [(10.0, 60.0)], "workers": [(12.5, 80.0)]}
    text = table(rows, args, 0.25)
    assert "| DALI | 25.0 | 20.0 |" in text and "| workers | 12.5 | 80.0 |" in text
    assert "2.00 times the pairs" in text and "3.00 times less processor time" in text
