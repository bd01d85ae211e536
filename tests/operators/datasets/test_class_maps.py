"""Tables of classes, against the ids of the specification (TLTM 1.3)."""

from __future__ import annotations

import pytest

from operators.class_names import CLASS_NAMES
from operators.datasets.class_maps import TO_YOUTUBE_VIS, map_classes
from operators.errors import DatasetError
from operators.youtube_vis_data import Category

OURS = tuple(Category(id, name) for id, name in enumerate(CLASS_NAMES["youtube-vis-2019"], start=1))
GAPS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91)
"""Ids up to 91 that COCO's 80 classes leave out."""
COCO = tuple(
    Category(id, name)
    for id, name in zip((i for i in range(1, 91) if i not in GAPS), CLASS_NAMES["coco"], strict=True)
)  # fmt: skip
BY_ID = {1: 1, 3: 6, 4: 21, 5: 28, 7: 17, 8: 29, 9: 34, 17: 14, 18: 8, 19: 18, 21: 15, 22: 32, 23: 20, 24: 30, 25: 22,
         36: 33, 41: 5, 42: 27, 43: 40}  # fmt: skip


def test_coco_by_the_ids_of_the_table():
    assert map_classes(COCO, OURS, "coco", "x") == BY_ID and len(BY_ID) == 19
    assert 74 not in BY_ID and COCO[[c.id for c in COCO].index(74)].name == "mouse", "a computer's"


def test_every_target_of_open_images_is_a_class_and_all_but_ape_have_a_source():
    targets = set(TO_YOUTUBE_VIS["open-images"].values())
    assert targets == set(CLASS_NAMES["youtube-vis-2019"]) - {"ape"}
    theirs = (Category(1, "Woman"), Category(2, "Computer mouse"), Category(3, "Polar bear"), Category(9, "Goose"))
    assert map_classes(theirs, OURS, "open-images", "x") == {1: 1, 3: 20, 9: 13}


@pytest.mark.parametrize("theirs, table", [
    pytest.param((), "same", id="no class"),
    pytest.param((Category(1, "kite"),), "same", id="other names"),
    pytest.param((Category(1, "Person"),), "coco", id="the table of another dataset"),
])  # fmt: skip
def test_nothing_in_common(theirs, table):
    with pytest.raises(DatasetError, match="a.json: none of its . categories .* by the table"):
        map_classes(theirs, OURS, table, "a.json")
