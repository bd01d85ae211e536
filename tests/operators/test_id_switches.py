"""ID switches, told frame by frame: letters are objects and tracks, drawn as one row of pixels a frame."""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from operators.errors import DatasetError
from operators.id_switches import SwitchConfig, SwitchCount, count_switches, pair
from operators.youtube_vis_data import Dataset, read_dataset


def masks_of(name: str, frames: list[str]) -> list[dict | None]:
    """The pixels of one letter, in either case, in each frame; None where it does not occur."""
    masks: list[dict | None] = []
    for frame in frames:
        pixels = np.array([[sign == name for sign in frame]], dtype=np.uint8, order="F")
        found = coco_mask.encode(pixels)
        masks.append({"size": list(found["size"]), "counts": found["counts"].decode()} if pixels.any() else None)
    return masks


@pytest.fixture
def load(tmp_path):
    def write(*videos: list[str], crowd: str = "") -> Dataset:
        """A dataset of one category, an object for each letter of each video."""
        annotations = []
        for video_id, frames in enumerate(videos, start=1):
            for name in sorted(set("".join(frames)) - {"."}):
                masks = masks_of(name, frames)
                areas = [None if mask is None else int(coco_mask.area(mask)) for mask in masks]
                annotations.append({
                    "id": len(annotations) + 1, "video_id": video_id, "category_id": 1, "iscrowd": int(name in crowd),
                    "segmentations": masks, "areas": areas,
                })  # fmt: skip
        raw = {
            "videos": [{"id": i, "width": len(frames[0]), "height": 1, "length": len(frames)}
                       for i, frames in enumerate(videos, start=1)],
            "categories": [{"id": 1, "name": "star"}, {"id": 2, "name": "moon"}], "annotations": annotations,
        }  # fmt: skip
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(raw))
        return read_dataset(path, for_evaluation=True)

    return write


def tracks(frames: list[str], video_id: int = 1, category_id: int = 1, score: float = 0.9) -> list[dict]:
    """A result for each letter, in alphabetical order."""
    return [
        {"video_id": video_id, "category_id": category_id, "score": score, "segmentations": masks_of(name, frames)}
        for name in sorted(set("".join(frames)) - {"."})
    ]


STORIES = [
    pytest.param(["...."], ["...."], (0, 0, 0), id="nothing to see"),
    pytest.param(["AA..", "AA.."], ["....", "...."], (0, 0, 2), id="nothing found"),
    pytest.param(["...."], ["aa.."], (0, 0, 0), id="nothing to find"),
    pytest.param(["AABB", "AABB"], ["aabb", "aabb"], (0, 4, 4), id="both keep their tracks"),
    pytest.param(["AABB", "AABB"], ["aabb", "bbaa"], (2, 4, 4), id="tracks swapped: a switch for each object"),
    pytest.param(["AABB"] * 3, ["aabb", "bbaa", "aabb"], (4, 6, 6), id="swapped and back again"),
    pytest.param(["AA..", "AA..", "AA.."], ["aa..", "....", "aa.."], (0, 2, 3), id="missed, then the same track"),
    pytest.param(["AA..", "....", "AA.."], ["aa..", "....", "bb.."], (1, 2, 2), id="hidden, then another track"),
    pytest.param(["AA..", "....", "AA.."], ["aa..", "..aa", "aa.."], (0, 2, 2), id="hidden, its track strays"),
    pytest.param(["AA..", "AA.."], ["....", "bb.."], (0, 1, 2), id="the first track is no switch"),
    pytest.param(["AAAA", "AAAA"], ["aaab", "aaab"], (0, 2, 2), id="the better of two tracks"),
    pytest.param(["AAAA", "AAAA"], ["aaaa", "aabb"], (0, 2, 2), id="the old track is kept while it is good enough"),
    pytest.param(["AAAA.", "AAAA."], ["aaaab", "aabbb"], (0, 2, 2), id="the old track is kept at exactly 0.5"),
    pytest.param(["AAAA", "AAAA"], ["aaaa", "abbb"], (1, 2, 2), id="the old track has become too bad"),
    pytest.param(["AAA.", "AAA."], ["a...", "aa.."], (0, 1, 2), id="IoU below a half is no match"),
    # a follows A; when A has gone it jumps to B, which takes it at no cost; A returns and finds b
    pytest.param(["AA..", "..BB", "AABB"], ["aa..", "..aa", "bbaa"], (1, 4, 4), id="a track changes objects"),
    # B held a last, though A had it before; both have an IoU of 0.5 with it, and A, the earlier, gets it at that tie
    pytest.param(["AA..", "..BB", "AABB"], ["aa..", "..aa", "aaaa"], (0, 3, 4), id="two objects claim one track"),
]


@pytest.mark.parametrize("truth, found, expected", STORIES)
def test_stories(load, truth, found, expected):
    assert count_switches(load(truth), tracks(found)).total == SwitchCount(*expected)


def test_the_score_floor_and_the_category_say_who_counts(load):
    dataset = load(["AA", "AA", "AA"])
    first, low, other = tracks(["aa", "..", ".."]), tracks(["..", "aa", ".."], score=0.29), tracks(["..", "..", "aa"])
    assert count_switches(dataset, first + low + other).total == SwitchCount(1, 2, 3)
    assert count_switches(dataset, first + low + other, SwitchConfig(min_score=0.29)).total == SwitchCount(2, 3, 3)
    other[0]["category_id"] = 2
    assert count_switches(dataset, first + low + other).total == SwitchCount(0, 1, 3)


def test_a_stricter_iou_matches_less(load):
    dataset, found = load(["AAAA", "AAAA"]), tracks(["aaa.", "aaaa"])
    assert count_switches(dataset, found, SwitchConfig(min_iou=0.8)).total == SwitchCount(0, 1, 2)


def test_crowds_are_no_objects(load):
    dataset = load(["AABB", "AABB"], crowd="B")
    assert count_switches(dataset, tracks(["aabb", "aacc"])).total == SwitchCount(0, 2, 2)


def test_videos_are_counted_apart_and_summed(load):
    dataset = load(["AABB", "AABB"], ["AA", "AA"], [".."])
    found = tracks(["aabb", "bbaa"]) + tracks(["aa", ".."], video_id=2)
    calls = []
    counted = count_switches(dataset, found, progress=lambda done, total: calls.append((done, total)))
    assert counted.per_video == {1: SwitchCount(2, 4, 4), 2: SwitchCount(0, 1, 2), 3: SwitchCount(0, 0, 0)}
    assert counted.total == SwitchCount(2, 5, 6)
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_masks_of_another_size_and_shorter_tracks_match_nothing(load):
    dataset = load(["AA", "AA"])
    assert count_switches(dataset, tracks(["aaa", "aaa"])).total == SwitchCount(0, 0, 2)
    assert count_switches(dataset, tracks(["aa"])).total == SwitchCount(0, 1, 2)


def test_unknown_video(load):
    with pytest.raises(DatasetError, match="has no video 4"):
        count_switches(load([".."]), tracks(["aa"], video_id=4))


@pytest.mark.parametrize("ious, held, pairs", [
    pytest.param(np.zeros((0, 3)), {}, {}, id="no object"),
    pytest.param(np.zeros((2, 0)), {}, {}, id="no track"),
    pytest.param(np.array([[0.6, 0.9]]), {}, {0: 1}, id="highest IoU"),
    pytest.param(np.array([[0.6, 0.9]]), {0: 0}, {0: 0}, id="held goes before higher"),
    pytest.param(np.array([[0.4, 0.9]]), {0: 0}, {0: 1}, id="held is too bad"),
    pytest.param(np.array([[0.6], [0.9]]), {0: 0}, {0: 0}, id="held keeps it from a better object"),
    pytest.param(np.array([[0.6], [0.9]]), {0: 0, 1: 0}, {1: 0}, id="both held it: the better one"),
    pytest.param(np.array([[0.7, 0.7], [0.7, 0.7]]), {}, {0: 0, 1: 1}, id="all equal: in the order of the file"),
    pytest.param(np.array([[0.9, 0.8], [0.8, 0.0]]), {}, {0: 0}, id="greedy from the highest, not the best sum"),
])  # fmt: skip
def test_pair(ious, held, pairs):
    assert pair(ious, held, 0.5) == pairs
