"""What classes of still images are called in YouTube-VIS 2019, by name.

In:     names of the classes of COCO or of Open Images
Out:    tables: theirs -> that of YouTube-VIS 2019
State:  none
Source: TLTM specification 1.3. COCO's table is certain: the release's classes are 80 of COCO and 20 more. That of Open
        Images is put together from the names of its boxable classes (V4; "Jaguar (Animal)" since V6): the paper maps
        about 60, and its own table is not known. Names that a version does not have are never met.

COCO's "mouse" is the computer's and has no counterpart, nor has Open Images' "Computer mouse". "ape" has no source.
"""

from __future__ import annotations

from collections.abc import Sequence

from operators.errors import DatasetError
from operators.youtube_vis_data import Category

TO_YOUTUBE_VIS: dict[str, dict[str, str]] = {
    "coco": {
        "person": "person", "car": "sedan", "motorcycle": "motorbike", "airplane": "airplane", "train": "train",
        "truck": "truck", "boat": "boat", "cat": "cat", "dog": "dog", "horse": "horse", "cow": "cow",
        "elephant": "elephant", "bear": "bear", "zebra": "zebra", "giraffe": "giraffe", "snowboard": "snowboard",
        "skateboard": "skateboard", "surfboard": "surfboard", "tennis racket": "tennis_racket",
    },
    "open-images": {
        "Person": "person", "Man": "person", "Woman": "person", "Boy": "person", "Girl": "person",
        "Panda": "giant_panda", "Lizard": "lizard", "Parrot": "parrot", "Skateboard": "skateboard", "Car": "sedan",
        "Taxi": "sedan", "Limousine": "sedan", "Dog": "dog", "Snake": "snake", "Monkey": "monkey",
        "Human hand": "hand", "Rabbit": "rabbit", "Duck": "duck", "Goose": "duck", "Cat": "cat", "Cattle": "cow",
        "Bull": "cow", "Fish": "fish", "Goldfish": "fish", "Train": "train", "Horse": "horse", "Turtle": "turtle",
        "Tortoise": "turtle", "Sea turtle": "turtle", "Bear": "bear", "Brown bear": "bear", "Polar bear": "bear",
        "Motorcycle": "motorbike", "Giraffe": "giraffe", "Leopard": "leopard", "Cheetah": "leopard",
        "Jaguar": "leopard", "Jaguar (Animal)": "leopard", "Fox": "fox", "Deer": "deer", "Antelope": "deer",
        "Owl": "owl", "Surfboard": "surfboard", "Airplane": "airplane", "Truck": "truck", "Zebra": "zebra",
        "Tiger": "tiger", "Elephant": "elephant", "Snowboard": "snowboard", "Boat": "boat", "Barge": "boat",
        "Canoe": "boat", "Gondola": "boat", "Shark": "shark", "Mouse": "mouse", "Hamster": "mouse", "Frog": "frog",
        "Eagle": "eagle", "Falcon": "eagle", "Harbor seal": "earless_seal", "Sea lion": "earless_seal",
        "Tennis racket": "tennis_racket", "Racket": "tennis_racket",
    },
}  # fmt: skip
"""19 classes of COCO; 63 names of Open Images, two of them of one class in different versions."""


def map_classes(
    theirs: tuple[Category, ...], ours: tuple[Category, ...], table: str, where: str
) -> dict[int, int]:
    """Their category id -> ours, of those that have a counterpart. `table` names one of TO_YOUTUBE_VIS, or is `same`:
    by equal names.

    Raises DatasetError where nothing of theirs is among ours.
    """
    ids = {category.name: category.id for category in ours}
    named = {c.id: c.name if table == "same" else TO_YOUTUBE_VIS[table].get(c.name) for c in theirs}
    found = {id: ids[name] for id, name in named.items() if name in ids}
    if not found:
        raise DatasetError(
            f"{where}: none of its {len(theirs)} categories ({_some(theirs)}) has a counterpart among those trained on "
            f"({_some(ours)}) by the table '{table}'. Expected one of: same, {', '.join(TO_YOUTUBE_VIS)}."
        )
    return found


def shared_rows(theirs: Sequence[str], ours: Sequence[str], table: str) -> dict[int, int]:
    """Place among the names `theirs` -> place among `ours`, of the classes that `table` joins one to one; by rising
    places of theirs. Nothing in common: {}."""
    names = TO_YOUTUBE_VIS[table]
    return {k: ours.index(names[name]) for k, name in enumerate(theirs) if names.get(name) in ours}


def _some(categories: tuple[Category, ...]) -> str:
    names = [category.name for category in categories[:3]]
    return ", ".join([*names, "..."] if len(categories) > 3 else names) or "none"
