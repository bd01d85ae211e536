"""HOTA, IDF1, MOTA and ID switches, told frame by frame: letters are objects and tracks, a row of pixels a frame."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from operators.errors import DatasetError
from operators.formats import Categories
from operators.id_switches import SwitchConfig, count_switches
from operators.jsonl import track_line
from operators.mot import COUNTS, IN_TABLE, METRICS, MotScores, evaluate, format_table, main_evaluate
from operators.mot_data import group_results
from operators.records import FrameInfo, FrameTracks
from operators.youtube_vis_data import Dataset, read_dataset

STAR, MOON = 1, 2


def masks_of(name: str, frames: list[str]) -> list[dict | None]:
    """The pixels of one letter in each frame; None where it does not occur."""
    return [rle(np.array([[sign == name for sign in frame]])) if name in frame else None for frame in frames]


def rle(pixels: np.ndarray) -> dict:
    found = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return {"size": list(found["size"]), "counts": found["counts"].decode()}


def truth(path, *videos: list[str], crowd: str = "", moons: str = "") -> Dataset:
    """Objects A, B, .. of each video; those in `moons` are of the second category."""
    annotations = []
    for video_id, frames in enumerate(videos, start=1):
        for name in sorted(set("".join(frames)) - {"."}):
            masks = masks_of(name, frames)
            annotations.append({
                "id": len(annotations) + 1, "video_id": video_id, "category_id": MOON if name in moons else STAR,
                "iscrowd": int(name in crowd), "segmentations": masks,
                "areas": [None if mask is None else int(coco_mask.area(mask)) for mask in masks],
            })  # fmt: skip
    raw = {"videos": [{"id": i, "width": len(frames[0]), "height": 1, "length": len(frames),
                       "file_names": [f"v{i}/{t}.jpg" for t in range(len(frames))]}
                      for i, frames in enumerate(videos, start=1)],
           "categories": [{"id": STAR, "name": "star"}, {"id": MOON, "name": "moon"}],
           "annotations": annotations}  # fmt: skip
    path.write_text(json.dumps(raw))
    return read_dataset(path, for_evaluation=True)


def tracks(frames: list[str], video_id: int = 1, moons: str = "", score: float = 0.9) -> list[dict]:
    """A result for each letter, in alphabetical order."""
    return [{"video_id": video_id, "category_id": MOON if name in moons else STAR, "score": score,
             "segmentations": masks_of(name, frames)}
            for name in sorted(set("".join(frames)) - {"."})]  # fmt: skip


@pytest.fixture
def score(tmp_path):
    def run(frames, found, **options):
        dataset = truth(tmp_path / "truth.json", frames, **options)
        return evaluate(dataset, group_results(tracks(found), dataset)).agnostic

    return run


ROOT_THIRD = math.sqrt(1 / 3)
STORIES = [
    # (HOTA, DetA, AssA), (IDF1, MOTA), (IDSW, CLR_TP, CLR_FN, CLR_FP)
    pytest.param(["AABB"] * 2, ["...."] * 2, (0, 0, 0), (0, 0), (0, 0, 4, 0), id="nothing found"),
    pytest.param(["...."] * 2, ["aa.."] * 2, (0, 0, 0), (0, -2), (0, 0, 0, 2), id="nothing to find"),
    pytest.param(["AABB"] * 3, ["aabb"] * 3, (1, 1, 1), (1, 1), (0, 6, 0, 0), id="perfect"),
    pytest.param(["AABB"] * 4, ["aabb", "aabb", "bbaa", "bbaa"], (ROOT_THIRD, 1, 1 / 3), (0.5, 0.75), (2, 8, 0, 0),
                 id="a swap is a switch for each object"),
    pytest.param(["AA"] * 4, ["aa", "aa", "bb", "bb"], (math.sqrt(0.5), 1, 0.5), (0.5, 0.75), (1, 4, 0, 0),
                 id="a track cut in two"),
    pytest.param(["AA.."] * 2, ["aa..", "...."], (0.5, 0.5, 0.5), (2 / 3, 0.5), (0, 1, 1, 0), id="missed once"),
    pytest.param(["AA..", "...."], ["aa..", "aa.."], (0.5, 0.5, 0.5), (2 / 3, 0), (0, 1, 0, 1), id="a null frame"),
    # the IoU of 1/2 is a match up to the threshold 0.5, ten of nineteen
    pytest.param(["AA"] * 2, ["a."] * 2, (10 / 19, 10 / 19, 10 / 19), (1, 1), (0, 2, 0, 0), id="half a mask"),
]  # fmt: skip


@pytest.mark.parametrize("frames, found, hota, shares, counts", STORIES)
def test_stories(score, frames, found, hota, shares, counts):
    scores = score(frames, found)
    assert [scores[m] for m in ("HOTA", "DetA", "AssA")] == pytest.approx(hota)
    assert scores["IDF1"] == pytest.approx(shares[0])
    assert scores["MOTA"] == pytest.approx(shares[1])
    assert tuple(scores[m] for m in ("IDSW", "CLR_TP", "CLR_FN", "CLR_FP")) == counts


def test_overlapping_tracks_each_count(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AA"] * 2)
    both = tracks(["aa"] * 2) + tracks(["aa"] * 2)
    scores = evaluate(dataset, group_results(both, dataset)).agnostic
    assert (scores["CLR_TP"], scores["CLR_FP"], scores["IDSW"], scores["MOTA"]) == (2, 2, 0, 0)


def test_empty_masks_are_not_there(tmp_path):
    dataset = truth(tmp_path / "t.json", ["A."])
    nothing = {**tracks(["a."])[0], "segmentations": [rle(np.zeros((1, 2)))]}
    scores = evaluate(dataset, group_results([nothing], dataset)).agnostic
    assert (scores["CLR_FN"], scores["CLR_FP"]) == (1, 0)


def test_another_size_and_frames_past_the_end(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AA", "AA"])
    for frames, counts in ((["aaa", "aaa"], (0, 2, 2)), (["aa"], (1, 1, 0)), (["aa"] * 5, (2, 0, 0))):
        scores = evaluate(dataset, group_results(tracks(frames), dataset)).agnostic
        assert tuple(scores[m] for m in ("CLR_TP", "CLR_FN", "CLR_FP")) == counts


def test_categories_match_within_themselves(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AABB"] * 2, moons="B")
    scores = evaluate(dataset, group_results(tracks(["aabb"] * 2, moons="ab"), dataset))
    assert scores.agnostic["HOTA"] == 1
    assert (scores.per_category["star"]["CLR_FN"], scores.per_category["star"]["CLR_FP"]) == (2, 0)
    assert (scores.per_category["moon"]["CLR_TP"], scores.per_category["moon"]["CLR_FP"]) == (2, 2)
    assert scores.averaged["IDF1"] == pytest.approx((0 + 2 / 3) / 2) and scores.averaged["CLR_FN"] == 2


def test_an_empty_category_is_in_no_mean(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AA"])
    scores = evaluate(dataset, group_results(tracks(["aa"]), dataset))
    assert list(scores.per_category) == ["star"] and scores.averaged["HOTA"] == 1
    assert "1 of 2 categories have neither" in scores.notes[0]


def test_tracks_of_an_unknown_category(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AA"])
    odd = [{**tracks(["aa"])[0], "category_id": 77}]
    scores = evaluate(dataset, group_results(odd, dataset))
    assert scores.agnostic["HOTA"] == 1 and scores.averaged["CLR_FN"] == 1
    assert any("1 tracks are of categories not listed" in note for note in scores.notes)


def test_nothing_at_all(tmp_path):
    dataset = truth(tmp_path / "t.json", [".."])
    scores = evaluate(dataset, group_results([], dataset))
    assert math.isnan(scores.agnostic["HOTA"]) and math.isnan(scores.averaged["MOTA"]) and not scores.per_category


def test_the_table():
    """A row for each category, then both ways to sum up; columns stay apart however long a number is."""
    row = dict.fromkeys(METRICS, 0.5) | dict.fromkeys(COUNTS, 3)
    scores = MotScores(row, dict.fromkeys(METRICS, math.nan), {"star": row | {"MOTA": -1234.5}}, {}, ("A note.",))
    head, rule, star, mean, agnostic, note = format_table(scores).splitlines()
    assert head.split() == ["category", *IN_TABLE] and set(rule) == {"-"} and note == "A note."
    assert star.split() == ["star", *["0.5000"] * 5, "-1234.5000", "0.5000", *["3"] * 5]
    assert mean.split() == ["mean", "of", "categories", *["-"] * 12]
    assert agnostic.split() == ["class-agnostic", *["0.5000"] * 7, *["3"] * 5]
    assert len({*map(len, (head, rule, star, mean, agnostic))}) == 1


@pytest.mark.parametrize("frame, found, expected", [
    pytest.param("AA.CC.", "aa....", (1, 0, 0), id="nobody in the crowd"),
    pytest.param("AA.CC.", "aa.bb.", (1, 0, 0), id="in the crowd: left out"),
    pytest.param("AA.CC.", "aabb..", (1, 0, 1), id="half in it is not enough"),
    pytest.param("AACC..", ".aaa..", (0, 1, 0), id="two thirds in the crowd, and no match"),
    pytest.param("AACC..", "aaaa..", (1, 0, 0), id="an object takes it"),
    pytest.param("AA.CD.", "aa.bb.", (1, 0, 0), id="in the union of two crowds"),
])  # fmt: skip
def test_crowds_are_ignored(tmp_path, frame, found, expected):
    dataset = truth(tmp_path / "t.json", [frame], crowd="CD")
    scores = evaluate(dataset, group_results(tracks([found]), dataset))
    for row in (scores.agnostic, scores.per_category["star"]):
        assert tuple(row[m] for m in ("CLR_TP", "CLR_FN", "CLR_FP")) == expected


def test_a_crowd_of_another_category_counts_only_class_agnostic(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AA.CC."], crowd="C", moons="C")
    scores = evaluate(dataset, group_results(tracks(["aa.bb."]), dataset))
    assert scores.agnostic["CLR_FP"] == 0 and scores.per_category["star"]["CLR_FP"] == 1


def test_videos_are_summed_and_named(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AABB"] * 4, ["AA"] * 2, [".."])
    found = tracks(["aabb", "aabb", "bbaa", "bbaa"]) + tracks(["aa", ".."], video_id=2)
    calls = []
    scores = evaluate(dataset, group_results(found, dataset), progress=lambda *call: calls.append(call))
    assert scores.agnostic["IDSW"] == 2 and scores.agnostic["CLR_TP"] == 9 and scores.agnostic["MOTA"] == 0.7
    assert list(scores.per_video) == ["v1", "v2", "v3"] and scores.per_video["v2"]["IDF1"] == pytest.approx(2 / 3)
    assert math.isnan(scores.per_video["v3"]["HOTA"])
    assert calls == [(1, 3), (2, 3), (3, 3)]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.permutations("abc"), min_size=1, max_size=6))
def test_switches_agree_with_ours_where_nobody_is_hidden(tmp_path_factory, orders):
    """Without gaps both rules keep to the track of the frame before, so they count alike."""
    dataset = truth(tmp_path_factory.mktemp("mot") / "t.json", ["AABBCC"] * len(orders))
    found = tracks(["".join(2 * name for name in order) for order in orders])
    ours = count_switches(dataset, found, SwitchConfig(min_score=0)).total
    theirs = evaluate(dataset, group_results(found, dataset)).agnostic
    assert (ours.switches, ours.matched, ours.visible) == (theirs["IDSW"], theirs["CLR_TP"], 3 * len(orders))


def test_over_a_gap_ours_keeps_to_the_old_track(tmp_path):
    """Two tracks fit equally after the gap: TrackEval has forgotten which was held, and takes the first."""
    dataset = truth(tmp_path / "t.json", ["AA..", "BB..", "AA.."])
    found = tracks(["bb..", "....", "...."]) + tracks(["....", "cc..", "...."])
    found[0]["segmentations"][2] = masks_of("A", ["AA.."])[0]
    found.insert(0, {**found[0], "segmentations": [None, None, masks_of("A", ["AA.."])[0]]})
    assert count_switches(dataset, found).total.switches == 0
    assert evaluate(dataset, group_results(found, dataset)).agnostic["IDSW"] == 1


def test_min_score(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AA"])
    found = tracks(["aa"]) + tracks([".a"], score=0.2)
    for least, wrong in ((0.0, 1), (0.2, 1), (0.3, 0)):
        assert evaluate(dataset, group_results(found, dataset), min_score=least).agnostic["CLR_FP"] == wrong


def test_a_folder_of_tracks_equals_its_results(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AABB"] * 2, ["AA..", ".AA."], moons="B")
    stories = {"v1": ["aabb", "bbaa"], "v2": ["aa..", ".aa."]}
    entries = []
    for video_id, (name, frames) in enumerate(stories.items(), start=1):
        entries += tracks(frames, video_id, moons="b")
        (tmp_path / "run" / name).mkdir(parents=True)
        lines = [jsonl(name, index, frame) for index, frame in enumerate(frames)]
        (tmp_path / "run" / name / "tracks.jsonl").write_text("".join(lines))
    (tmp_path / "results.json").write_text(json.dumps(entries))
    one = main_evaluate(dataset.path, tmp_path / "results.json", tmp_path / "a.json")
    other = main_evaluate(dataset.path, tmp_path / "run", tmp_path / "b.json")
    assert one == other and (tmp_path / "a.json").read_text() == (tmp_path / "b.json").read_text()
    written = json.loads((tmp_path / "a.json").read_text())
    assert list(written) == [*METRICS, "class_averaged", "per_category", "per_video", "notes"]
    assert written["IDSW"] == 2


def jsonl(stream: str, index: int, frame: str) -> str:
    names = sorted(set(frame) - {"."})
    numbers = np.array([ord(name) - ord("a") for name in names], np.int64)
    info = FrameInfo(stream, index, index / 6, 1, len(frame))
    record = FrameTracks(info, numbers, numbers, np.full(len(names), 0.9, np.float32),
                         np.zeros((len(names), 4), np.float32),
                         tuple(rle(np.array([[s == name for s in frame]])) for name in names))  # fmt: skip
    return track_line(record, Categories.numbered(["star", "moon"]))


def test_what_cannot_be_used(tmp_path):
    dataset = truth(tmp_path / "t.json", ["AA"])
    (tmp_path / "r.json").write_text(json.dumps(tracks(["aa"], video_id=9)))
    with pytest.raises(DatasetError, match=r"r.json: result 0 .*t.json has no video 9"):
        main_evaluate(dataset.path, tmp_path / "r.json")
    with pytest.raises(DatasetError, match="v1/tracks.jsonl: there is no such file; 1 of 1 videos have no tracks"):
        main_evaluate(dataset.path, tmp_path)
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "tracks.jsonl").write_text(jsonl("v1", 1, "aa"))
    with pytest.raises(DatasetError, match="has frame 1, but video 1 of .* has 1 frames"):
        main_evaluate(dataset.path, tmp_path)
    raw = json.loads(dataset.path.read_text()) | {"annotations": None}
    dataset.path.write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match="has no annotations"):
        main_evaluate(dataset.path, tmp_path)
