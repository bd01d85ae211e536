"""The benchmark of the evaluation: its datasets are sound, and both sides agree on them."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from benchmarks.evaluation import CASES, generate, measure


@pytest.mark.parametrize("encoding", ["compressed", "uncompressed", "polygons"])
def test_both_agree(encoding):
    case = replace(CASES["dense"], videos=2, results=60, objects=4, frames=3, encoding=encoding)
    row = measure(case, turns=1, clock=time.perf_counter, workers=1)
    assert row["difference"] < 1e-12 and row["ours"] > 0 and row["loops"] > 0


def test_the_same_seed_gives_the_same():
    case = replace(CASES["one"], frames=3)
    assert generate(case, 1) == generate(case, 1) != generate(case, 2)
    truth, results = generate(replace(case, results=3))
    assert (len(truth["annotations"]), len(results), len(results[0]["segmentations"])) == (1, 3, 3)
