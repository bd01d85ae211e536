"""Re-entries and meetings of look-alikes drawn by hand, and what became of their ids."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from operators.hard_cases import find_cases, judge, touches_border
from operators.youtube_vis_data import Dataset, Video, read_dataset
from operators.youtube_vis_results import Result
from tests.operators.datasets.small_truth import rectangle
from tests.operators.datasets.small_truth import rle as rle_of

HEIGHT, WIDTH = 8, 40
Places = list[tuple[int, int] | None]
"""Of an object 4 pixels high, its first and its last column (excluded) in each frame; None: not there."""


def rle(place: tuple[int, int]) -> dict:
    return rle_of(rectangle(2, place[0], 6, place[1], HEIGHT, WIDTH))


def dataset(folder: Path, *objects: tuple[int, Places], crowd: int | None = None) -> Dataset:
    """One video; each object is its category and its places."""
    length = max((len(places) for _, places in objects), default=1)
    entries = [{
        "id": id, "video_id": 1, "category_id": category, "iscrowd": int(id == crowd),
        "segmentations": [p and rle(p) for p in places], "areas": [p and 4 * (p[1] - p[0]) for p in places],
        "bboxes": [p and [p[0], 2, p[1] - p[0], 4] for p in places],
    } for id, (category, places) in enumerate(objects, start=1)]  # fmt: skip
    path = folder / "truth.json"
    path.write_text(json.dumps({
        "videos": [{"id": 1, "width": WIDTH, "height": HEIGHT, "length": length,
                    "file_names": [f"a/{t}.jpg" for t in range(length)]}],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}], "annotations": entries}))  # fmt: skip
    return read_dataset(path)


def found(number: int, places: Places, category: int = 1, video: int = 1) -> Result:
    return Result(number, video, category, 0.9, [p and rle(p) for p in places])


LEAVES: Places = [(20, 26), (34, 40), (38, 40), None, None, None, (38, 40), (33, 39)]
"""Well in view (12 of 24 pixels or more) up to frame 1, from frame 7 on; from 3 to 5 out of view."""
LEFT: Places = [(2, 8), (8, 14), (14, 20), (20, 26), (26, 32)]
RIGHT: Places = [(30, 36), (24, 30), (16, 22), (8, 14), (2, 8)]
"""The two overlap in frame 2 alone."""


@pytest.mark.parametrize("objects, expected", [
    pytest.param([], [], id="no object"),
    pytest.param([(1, LEAVES)], [("re-entry", [1], 1, 7)], id="leaves and comes back"),
    pytest.param([(1, [(20, 26), None, None, None, (20, 26)])], [], id="hidden inside the frame"),
    pytest.param([(1, [(34, 40), None, None, (34, 40)])], [("re-entry", [1], 0, 3)], id="away for two frames"),
    pytest.param([(1, [(34, 40), None, (34, 40)])], [], id="away for one frame alone"),
    pytest.param([(1, LEAVES[:6])], [], id="does not come back"),
    pytest.param([(1, LEFT), (1, RIGHT)], [("look-alikes", [1, 2], 1, 3)], id="two of a class meet"),
    pytest.param([(1, LEFT), (2, RIGHT)], [], id="two of two classes"),
    pytest.param([(1, [(2, 8), (8, 14), (2, 8)]), (1, [(20, 26), (14, 20), (20, 26)])], [], id="side by side, no more"),
    pytest.param([(1, LEFT[:3]), (1, RIGHT[:3])], [], id="they do not part"),
    pytest.param([(1, [*LEFT[:3], None, LEFT[4]]), (1, RIGHT)], [("look-alikes", [1, 2], 1, 4)],
                 id="the one hides the other"),
    pytest.param([(1, [*LEFT, *LEFT[::-1]]), (1, [*RIGHT, *RIGHT[::-1]])],
                 [("look-alikes", [1, 2], 1, 3), ("look-alikes", [1, 2], 6, 8)], id="they meet twice"),
])  # fmt: skip
def test_cases(tmp_path, objects, expected):
    cases = find_cases(dataset(tmp_path, *objects))
    assert [(c.kind, [a.id for a in c.objects], c.before, c.after) for c in cases] == expected


@pytest.mark.parametrize("box, touches", [
    pytest.param(None, False, id="not there"),
    pytest.param([2, 2, 36, 4], False, id="two pixels from every edge"),
    pytest.param([1, 2, 4, 4], True, id="one from the left"),
    pytest.param([35, 2, 4, 4], True, id="one from the right"),
    pytest.param([10, 1, 4, 4], True, id="one from the top"),
    pytest.param([10, 3, 4, 4], True, id="one from the bottom"),
    pytest.param([10, -3, 4, 4], True, id="beyond the top"),
])
def test_what_touches_the_border(box, touches):
    assert touches_border(box, Video(1, WIDTH, HEIGHT, 1, ("a/0.jpg",))) is touches


def test_crowds_have_no_cases_and_size_is_that_of_the_smallest(tmp_path):
    assert find_cases(dataset(tmp_path, (1, LEAVES), crowd=1)) == []
    (case,) = find_cases(dataset(tmp_path, (1, LEAVES)))
    assert case.size == 24


@pytest.mark.parametrize("results, expected", [
    pytest.param([], "unseen", id="nothing found"),
    pytest.param([found(0, LEAVES)], "kept", id="one track"),
    pytest.param([found(0, LEAVES[:3]), found(1, [*[None] * 6, *LEAVES[6:]])], "changed", id="a new id"),
    pytest.param([found(0, LEAVES[:3])], "unseen", id="not found again"),
    pytest.param([found(0, LEAVES, category=2)], "unseen", id="taken for another class"),
    pytest.param([found(0, LEAVES, video=2)], "unseen", id="of another video"),
    pytest.param([found(0, [LEAVES[0], (2, 8), (2, 8), *LEAVES[3:]])], "kept", id="lost for a frame before it"),
    pytest.param([found(0, [(24, 30), (38, 40), *LEAVES[2:]])], "unseen", id="too little overlap"),
])  # fmt: skip
def test_what_became_of_one_that_left(tmp_path, results, expected):
    data = dataset(tmp_path, (1, LEAVES))
    assert judge(data, find_cases(data)[0], results) == expected


@pytest.mark.parametrize("results, expected", [
    pytest.param([found(0, LEFT), found(4, RIGHT)], "kept", id="both keep theirs"),
    pytest.param([found(0, [*LEFT[:3], *RIGHT[3:]]), found(4, [*RIGHT[:3], *LEFT[3:]])], "swapped", id="swapped"),
    pytest.param([found(0, LEFT), found(4, RIGHT[:3]), found(5, [None] * 3 + RIGHT[3:])], "changed", id="one is new"),
    pytest.param([found(0, LEFT)], "unseen", id="one is never found"),
])
def test_what_became_of_two_that_met(tmp_path, results, expected):
    data = dataset(tmp_path, (1, LEFT), (1, RIGHT))
    assert judge(data, find_cases(data)[0], results) == expected
