"""Tables of classes, against the ids, rows and names of the specification (TLTM 1.3 and 6)."""

from __future__ import annotations

import pytest

from operators.class_names import CLASS_NAMES
from operators.datasets.class_maps import TO_YOUTUBE_VIS, map_classes, shared_rows
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
"""1.3: ids in COCO's JSON -> ids in that of YouTube-VIS 2019."""
BY_ROW = {0: 0, 2: 5, 3: 20, 4: 27, 6: 16, 7: 28, 8: 33, 15: 13, 16: 7, 17: 17, 19: 14, 20: 31, 21: 19, 22: 29, 23: 21,
          31: 32, 36: 4, 37: 26, 38: 39}  # fmt: skip
"""6: rows of a network of COCO's 80 classes -> rows of one of the 40."""
OPEN_IMAGES = """
person<-Person/Man/Woman/Boy/Girl; giant_panda<-Panda; lizard<-Lizard; parrot<-Parrot; skateboard<-Skateboard;
sedan<-Car/Taxi/Limousine; dog<-Dog; snake<-Snake; monkey<-Monkey; hand<-Human hand; rabbit<-Rabbit; duck<-Duck/Goose;
cat<-Cat; cow<-Cattle/Bull; fish<-Fish/Goldfish; train<-Train; horse<-Horse; turtle<-Turtle/Tortoise/Sea turtle;
bear<-Bear/Brown bear/Polar bear; motorbike<-Motorcycle; giraffe<-Giraffe; leopard<-Leopard/Cheetah/Jaguar; fox<-Fox;
deer<-Deer/Antelope; owl<-Owl; surfboard<-Surfboard; airplane<-Airplane; truck<-Truck; zebra<-Zebra; tiger<-Tiger;
elephant<-Elephant; snowboard<-Snowboard; boat<-Boat/Barge/Canoe/Gondola; shark<-Shark; mouse<-Mouse/Hamster;
frog<-Frog; eagle<-Eagle/Falcon; earless_seal<-Harbor seal/Sea lion; tennis_racket<-Tennis racket/Racket
"""
"""1.3, as it is written there."""


def test_coco_by_the_ids_of_the_table():
    assert map_classes(COCO, OURS, "coco", "x") == BY_ID and len(BY_ID) == 19
    assert [c.id for c in OURS if c.id not in BY_ID.values()] == [
        2, 3, 4, 7, 9, 10, 11, 12, 13, 16, 19, 23, 24, 25, 26, 31, 35, 36, 37, 38, 39], "21 without a source"
    assert 74 not in BY_ID and COCO[[c.id for c in COCO].index(74)].name == "mouse", "a computer's"


def test_coco_by_the_rows_of_the_checkpoints():
    """The two tables of the specification, of ids and of rows, are one: ids of COCO without their gaps, from 0."""
    names = CLASS_NAMES["youtube-vis-2019"]
    assert shared_rows(CLASS_NAMES["coco"], names, "coco") == BY_ROW
    row = {category.id: k for k, category in enumerate(COCO)}
    assert {row[theirs]: ours - 1 for theirs, ours in BY_ID.items()} == BY_ROW
    assert shared_rows((), names, "coco") == {} == shared_rows(CLASS_NAMES["coco"], ("kite",), "coco")
    assert shared_rows(("dog", "mouse", "cat"), ("cat", "mouse", "dog"), "coco") == {0: 2, 2: 0}


def test_open_images_by_the_names_of_the_specification():
    """About 60, it says: 62, and one of them by its later name too, since V6: "Jaguar (Animal)"."""
    told = [part.split("<-") for part in " ".join(OPEN_IMAGES.split()).split("; ")]
    table = {theirs: ours for ours, sources in told for theirs in sources.split("/")}
    assert len(table) == 62 and len(told) == 39
    assert TO_YOUTUBE_VIS["open-images"] == table | {"Jaguar (Animal)": "leopard"}


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
