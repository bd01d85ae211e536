"""Splitting: the same every time, whatever the order; a video that is added moves no other; everything is kept."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from operators.datasets.split import assign, hashed, parse_parts, split
from operators.errors import ConfigError, DatasetError

PARTS = {"train": 0.8, "val": 0.2}
KEYS = [f"video {k}" for k in range(2000)]


def file_of(tmp_path, of: dict[int, list[int]], **more):
    """Video id -> categories of its annotations; the file has fields that nobody reads."""
    entries = [{"id": v, "file_names": [f"clip{v}/{k}.jpg" for k in range(3)], "length": 3, "odd": v} for v in of]
    pairs = [(v, c) for v, categories in of.items() for c in categories]
    annotations = [{"id": 7 * k, "video_id": v, "category_id": c, "segmentations": "kept as it is"}
                   for k, (v, c) in enumerate(pairs)]                                              # fmt: skip
    categories = [{"id": c, "name": f"class {c}"} for c in (1, 2, 3)]
    raw = {"info": {"of": "me"}, "videos": entries, "annotations": annotations, "categories": categories} | more
    path = tmp_path / "in.json"
    path.write_text(json.dumps({key: value for key, value in raw.items() if value != "absent"}))
    return path


def ids(path) -> list[int]:
    return [video["id"] for video in json.loads(path.read_text())["videos"]]


@pytest.mark.parametrize("text, parts", [
    ("all=1", {"all": 1.0}), ("train=0.8,val=0.2", PARTS), (" a = .5 , b=0.25", {"a": 0.5, "b": 0.25}),
    ("a=0.7,b=0.2,c=0.1", {"a": 0.7, "b": 0.2, "c": 0.1}),
])  # fmt: skip
def test_parts(text, parts):
    assert parse_parts(text) == parts


@pytest.mark.parametrize("text", [
    "", "train", "=1", "a=x", "a=0", "a=-1", "a=nan", "a=inf", "a=1.1", "a=0.6,b=0.6", "a=0.5,A=0.5", "mini=0.5",
    "../a=1", "a/b=1", "a=0.5,,b=0.5",
])  # fmt: skip
def test_parts_that_are_none(text):
    with pytest.raises(ConfigError, match="--parts"):
        parse_parts(text)


def test_shares_hold_on_average():
    found = assign(KEYS, PARTS)
    assert 1540 < found.count("train") < 1660 and found.count("train") + found.count("val") == 2000
    assert found != assign(KEYS, PARTS, seed=1)
    assert assign([], PARTS) == []
    assert 900 < assign(KEYS, {"half": 0.5}).count(None) < 1100
    assert None not in assign(KEYS, {"a": 0.7, "b": 0.2, "c": 0.1})


def test_the_hash_is_the_same_on_every_machine():
    """By hand: printf 'part\\x000\\x00dog' | sha256sum | cut -c-12"""
    assert hashed("dog", 0) == 0x0609C316F376 / 2**48


@given(st.lists(st.text(max_size=8), max_size=12), st.text(max_size=8), st.integers(-3, 3), st.randoms())
@settings(max_examples=60, deadline=None)
def test_neither_order_nor_other_videos_matter(keys, added, seed, random_):
    before = dict(zip(keys, assign(keys, PARTS, seed), strict=True))
    more = [*keys, added]
    random_.shuffle(more)
    after = dict(zip(more, assign(more, PARTS, seed), strict=True))
    assert all(after[key] == part for key, part in before.items())


def test_adding_a_video_moves_no_other(tmp_path):
    videos = {v: [1 + v % 3] for v in range(1, 60)}
    split(file_of(tmp_path, videos), tmp_path / "a", PARTS, seed=3, mini=5)
    order = [*videos, 100]
    random.Random(1).shuffle(order)
    split(file_of(tmp_path, {v: videos.get(v, [2]) for v in order}), tmp_path / "b", PARTS, seed=3, mini=5)
    for name in ("train", "val"):
        assert set(ids(tmp_path / "b" / f"{name}.json")) - {100} == set(ids(tmp_path / "a" / f"{name}.json"))
    assert len(set(ids(tmp_path / "b" / "mini.json")) & set(ids(tmp_path / "a" / "mini.json"))) >= 4


def test_everything_is_kept(tmp_path):
    path = file_of(tmp_path, {v: [1, 2] for v in range(1, 30)})
    raw = json.loads(path.read_text())
    done = split(path, tmp_path / "out", PARTS, mini=4)
    train, val, mini = (json.loads(part.path.read_text()) for part in done.parts)
    for part in (train, val, mini):
        assert list(part) == list(raw) and part["info"] == raw["info"] and part["categories"] == raw["categories"]
        own = {video["id"] for video in part["videos"]}
        assert part["videos"] == [video for video in raw["videos"] if video["id"] in own]
        assert part["annotations"] == [a for a in raw["annotations"] if a["video_id"] in own]
    assert sorted(ids(done.parts[0].path) + ids(done.parts[1].path)) == list(range(1, 30))
    assert len(mini["videos"]) == 4 and set(ids(done.parts[2].path)) < set(ids(done.parts[0].path))
    numbers = [(part.name, part.videos, part.frames, part.annotations) for part in done.parts]
    n = len(train["videos"])
    assert numbers == [("train", n, 3 * n, 2 * n), ("val", 29 - n, 87 - 3 * n, 58 - 2 * n), ("mini", 4, 12, 8)]
    assert done.parts[2].per_category == {"class 1": 4, "class 2": 4, "class 3": 0}


@pytest.mark.parametrize("annotations", [None, "absent", []])
def test_no_annotations(tmp_path, annotations):
    done = split(file_of(tmp_path, {1: [], 2: []}, annotations=annotations), tmp_path / "out", {"all": 1.0})
    raw = json.loads(done.parts[0].path.read_text())
    assert raw.get("annotations", "absent") == annotations and len(raw["videos"]) == 2
    done = split(file_of(tmp_path, {}), tmp_path / "none", PARTS)
    assert [part.videos for part in done.parts] == [0, 0] and not done.notes


def test_the_same_images_are_never_in_two_parts(tmp_path):
    videos = [{"id": v, "file_names": [f"{v % 10}.jpg"]} for v in range(100)]
    done = split(file_of(tmp_path, {}, videos=videos), tmp_path / "out", {"a": 0.5, "b": 0.5})
    a, b = ({v["file_names"][0] for v in json.loads(part.path.read_text())["videos"]} for part in done.parts)
    assert a and b and not a & b


def test_stratified(tmp_path):
    """Classes 2 and 3 are in three and one of forty videos."""
    videos = {v: [1] for v in range(1, 41)} | {5: [1, 2], 6: [2], 7: [1, 2], 8: [3]}
    path = file_of(tmp_path, videos)
    for seed in range(12):
        done = split(path, tmp_path / f"s{seed}", PARTS, seed=seed, stratified=True)
        train, val = (part.per_category for part in done.parts)
        assert min(train["class 1"], train["class 2"], val["class 1"], val["class 2"]) >= 1, seed
        assert train["class 3"] + val["class 3"] == 1 and sum(part.videos for part in done.parts) == 40
        assert done.notes == ("1 categories are not in every part: class 3.",)
        plain = split(path, tmp_path / f"p{seed}", PARTS, seed=seed)
        moved = set(ids(done.parts[1].path)) ^ set(ids(plain.parts[1].path))
        assert len(moved) <= 2


def test_notes(tmp_path):
    done = split(file_of(tmp_path, {1: [1]}), tmp_path / "out", {"a": 0.999, "b": 0.0005}, mini=3)
    assert [note.split(":")[0] for note in done.notes] == [
        "'b' has no video", "'mini' has 1 videos, all of 'a'; --mini asked for 3.",
        "1 categories are not in every part",
    ]  # fmt: skip
    done = split(file_of(tmp_path, {1: []}), tmp_path / "none", {"a": 1e-9})
    assert done.notes[0] == "1 of 1 videos are in no part, as the shares are less than 1 together."


def test_nothing_is_overwritten(tmp_path):
    path = file_of(tmp_path, {v: [1] for v in range(20)})
    with pytest.raises(ConfigError, match="is the input"):
        split(path, tmp_path, {"in": 1.0})
    split(path, tmp_path / "out", PARTS)
    split(path, tmp_path / "out", PARTS)                            # the same: fine
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    with pytest.raises(ConfigError, match="is there already, and not the same"):
        split(path, tmp_path / "out", PARTS, seed=1)
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    with pytest.raises(ConfigError, match="--mini -1"):
        split(path, tmp_path / "new", PARTS, mini=-1)


@pytest.mark.parametrize("changes, message", [
    pytest.param({"videos": "absent"}, "has no list of videos", id="no videos"),
    pytest.param({"categories": None}, "are not both lists", id="no categories"),
    pytest.param({"annotations": {"a": 1}}, "are not both lists", id="annotations are an object"),
    pytest.param({"videos": [3]}, r"videos\[0\]: id is int", id="a video is a number"),
    pytest.param({"videos": [{"id": 1}, {"id": 1}]}, "video id 1 occurs more than once", id="video twice"),
    pytest.param({"annotations": [{"video_id": 9, "category_id": 1}]}, "is of video 9", id="no such video"),
    pytest.param({"annotations": [{"video_id": "1", "category_id": 1}]}, "video_id is '1'", id="id as text"),
    pytest.param({"annotations": [{"video_id": 1}]}, "category_id is None", id="no category"),
])  # fmt: skip
def test_faults(tmp_path, changes, message):
    path = file_of(tmp_path, {1: [1]}, **changes)
    with pytest.raises(DatasetError, match=f"in.json: .*{message}"):
        split(path, tmp_path / "out", PARTS)
    assert not (tmp_path / "out").exists()
