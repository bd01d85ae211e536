"""AP and AR: by hand, against the official program in plain loops (official_loops.py), and the files it reads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from operators.errors import ConfigError, DatasetError
from operators.youtube_vis import METRICS, evaluate, main_evaluate
from operators.youtube_vis_data import Dataset, read_dataset
from operators.youtube_vis_results import read_results
from tests.operators import official_loops

# ------------------------------------------------------------------------------------------------------- drawing inputs


def rle(mask: np.ndarray) -> dict:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": [int(side) for side in found["size"]], "counts": found["counts"].decode()}


def drawn(*frames: str | None) -> list[dict | None]:
    """Masks drawn in one row: '##..' -> 1 x 4; None is no mask."""
    return [None if frame is None else rle(np.array([[sign == "#" for sign in frame]])) for frame in frames]


def truth_of(objects: list[dict], num_frames: int, size: tuple[int, int], num_videos: int = 1) -> dict:
    """A file of `num_videos` videos and the categories 1 and 2; objects lack what can be filled in."""
    height, width = size
    video = {"width": width, "height": height, "length": num_frames}
    annotations = []
    for index, entry in enumerate(objects):
        filled = {"id": index + 1, "video_id": 1, "category_id": 1, "iscrowd": 0}
        if "areas" not in entry:
            filled["areas"] = [None if not mask else int(coco_mask.area(mask)) for mask in entry["segmentations"]]
        annotations.append(filled | entry)
    return {
        "videos": [{"id": i + 1, **video} for i in range(num_videos)],
        "categories": [{"id": 1, "name": "star"}, {"id": 2, "name": "moon"}],
        "annotations": annotations,
    }


def result(score: float, segmentations: list, video_id: int = 1, category_id: int = 1) -> dict:
    return {"video_id": video_id, "category_id": category_id, "score": score, "segmentations": segmentations}


@pytest.fixture
def load(tmp_path):
    """Write a truth to a file and read it as a Dataset."""

    def write(truth: dict):
        path = tmp_path / "truth.json"
        path.write_text(json.dumps(truth))
        return read_dataset(path, for_evaluation=True)

    return write


# ------------------------------------------------------------------------------------------------------------- by hand

WHOLE, HALF, NONE = drawn("####", "####"), drawn("####", None), drawn("....", "....")

BY_HAND = [
    pytest.param([], [], {"AP": -1, "AR100": -1, "APs": -1}, id="no object, no result"),
    pytest.param([WHOLE], [], {"AP": 0, "AR1": 0, "APs": 0, "APm": -1}, id="no result"),
    pytest.param([], [(0.9, WHOLE)], {"AP": -1, "AR1": -1}, id="no object"),
    pytest.param([WHOLE], [(0.9, WHOLE)], {"AP": 1, "AP50": 1, "AR1": 1, "APs": 1, "APm": -1}, id="perfect"),
    pytest.param([WHOLE], [(0.9, HALF)], {"AP": 0.1, "AP50": 1, "AP75": 0, "AR1": 0.1}, id="IoU 0.5 is enough for 0.5"),
    pytest.param([WHOLE], [(0.9, drawn("###.", "###."))], {"AP": 0.6, "AP75": 1}, id="IoU 0.75 is enough for 0.75"),
    pytest.param([NONE], [(0.9, NONE)], {"AP": 0, "AR1": 0}, id="two tracks without pixels do not match"),
    pytest.param(
        # 3 / 4 in frame 0, 1 / 2 in frame 1: together 4 / 6, four thresholds; the mean of the two reaches three
        [drawn("####", "#...")], [(0.9, drawn("###.", "##.."))], {"AP50": 1, "AP": 0.4}, id="sums, not means: 4 / 6"),
    pytest.param([WHOLE, HALF], [(0.9, WHOLE)], {"AP": 51 / 101, "AR1": 0.5}, id="one of two objects"),
    pytest.param([WHOLE], [(0.9, WHOLE), (0.8, WHOLE)], {"AP": 1}, id="a double after full recall costs nothing"),
    pytest.param([WHOLE], [(0.8, WHOLE), (0.9, NONE)], {"AP": 0.5, "AR1": 0, "AR10": 1}, id="a wrong one before"),
    pytest.param([WHOLE], [(0.9, NONE), (0.9, WHOLE)], {"AP": 0.5, "AR1": 0}, id="equal scores, wrong one first"),
    pytest.param([WHOLE], [(0.9, WHOLE), (0.9, NONE)], {"AP": 1, "AR1": 1}, id="equal scores, right one first"),
    pytest.param([drawn("##", None)], [(0.9, drawn("##", "##"))], {"AP50": 1, "AP75": 0}, id="null counts the other"),
    pytest.param([WHOLE], [(0.9, WHOLE[:1])], {"AP": 1}, id="frames up to the shorter list"),
    pytest.param(
        [drawn("####", "####")], [(0.9, drawn("####", "#####"))], {"AP": 1}, id="a frame of another size is left out"),
]  # fmt: skip


@pytest.mark.parametrize("objects, found, expected", BY_HAND)
def test_by_hand(load, objects, found, expected):
    num_frames, width = (2, objects[0][0]["size"][1]) if objects else (2, 4)
    truth = truth_of([{"segmentations": masks} for masks in objects], num_frames, (1, width))
    scores = evaluate(load(truth), [result(score, masks) for score, masks in found])
    assert {metric: scores[metric] for metric in expected} == pytest.approx(expected, abs=1e-12)


def test_crowd_takes_any_number_and_counts_for_nothing(load):
    crowd = {"segmentations": drawn("####...."), "iscrowd": 1}
    truth = truth_of([crowd, {"segmentations": drawn("....####")}], 1, (1, 8))
    found = [result(0.9, drawn("####....")), result(0.8, drawn("####....")), result(0.7, drawn("....####"))]
    assert evaluate(load(truth), found)["AP"] == pytest.approx(1.0, abs=1e-12)


def test_crowd_is_a_plain_iou(load):
    # half of the crowd, wholly inside it: IoU 0.5, while intersection over detection would be 1
    objects = [{"segmentations": drawn("####...."), "iscrowd": 1}, {"segmentations": drawn("......##")}]
    found = [result(0.9, drawn("##......")), result(0.8, drawn("......##"))]
    scores = evaluate(load(truth_of(objects, 1, (1, 8))), found)
    assert (scores["AP50"], scores["AP75"]) == pytest.approx((1.0, 0.5), abs=1e-12)


@pytest.mark.parametrize("order", [1, -1])
def test_an_object_that_counts_goes_before_a_better_crowd(load, order):
    objects = [{"segmentations": drawn("####"), "iscrowd": 1, "id": 1}, {"segmentations": drawn("###."), "id": 2}]
    scores = evaluate(load(truth_of(objects[::order], 1, (1, 4))), [result(0.9, drawn("####"))])
    assert scores["AR1"] == pytest.approx(0.6)      # the six thresholds up to 0.75


@pytest.mark.parametrize("order, recall", [(1, 0.55), (-1, 0.7)])
def test_of_equal_ious_the_later_object_wins(load, order, recall):
    # the first result has 2 / 3 with both objects, the second 0.5 with one and 1 with the other: if the first takes the
    # other, the second is left with what it reaches at threshold 0.5 alone
    objects = [{"segmentations": drawn("###.")}, {"segmentations": drawn(".###")}]
    results = [result(0.9, drawn(".##.")), result(0.8, drawn(".###"))]
    scores = evaluate(load(truth_of(objects[::order], 1, (1, 4))), results)
    assert scores["AR100"] == pytest.approx(recall)


@pytest.mark.parametrize("side, classes", [(127, "s"), (128, "sm"), (129, "m"), (256, "ml"), (257, "l")])
def test_area_classes_share_their_bounds(load, side, classes):
    square = rle(np.ones((side, side)))
    scores = evaluate(load(truth_of([{"segmentations": [square]}], 1, (side, side))), [result(0.5, [square])])
    assert [letter for letter in "sml" if scores[f"AP{letter}"] > 0.99] == list(classes)
    assert [letter for letter in "sml" if scores[f"AR{letter}"] == -1] == [c for c in "sml" if c not in classes]


def test_the_area_of_an_object_is_what_its_file_says(load):
    truth = truth_of([{"segmentations": drawn("####"), "areas": [70000]}], 1, (1, 4))
    scores = evaluate(load(truth), [result(0.5, drawn("####"))])
    assert (scores["APs"], scores["APl"]) == pytest.approx((-1, 1))    # matched: its own area does not matter


def test_categories_without_objects_stay_out_of_the_mean(load):
    truth = truth_of([{"segmentations": drawn("##")}], 1, (1, 2))
    scores = evaluate(load(truth), [result(0.5, drawn("##")), result(0.9, drawn("##"), category_id=2)])
    assert scores["AP"] == pytest.approx(1)
    assert scores.per_category["moon"] == dict.fromkeys(METRICS, -1.0)


def test_other_categories_are_dropped_and_told(load):
    objects = [{"segmentations": drawn("##")}, {"segmentations": drawn("##"), "category_id": 7}]
    scores = evaluate(load(truth_of(objects, 1, (1, 2))), [result(0.5, drawn("##")), result(0.9, drawn("##"), 1, 9)])
    assert scores["AP"] == pytest.approx(1)
    assert [note.split()[0] for note in scores.notes] == ["1", "1"]


def test_categories_of_one_name_stay_apart(load):
    truth = truth_of([{"segmentations": drawn("##")}], 1, (1, 2))
    truth["categories"][1]["name"] = "star"
    assert list(evaluate(load(truth), []).per_category) == ["star (1)", "star (2)"]


def test_annotations_that_share_an_id_count_each(load):
    objects = [{"segmentations": drawn("##.."), "id": 7}, {"segmentations": drawn("..##"), "id": 7}]
    dataset, found = load(truth_of(objects, 1, (1, 4))), [result(0.5, drawn("##..")), result(0.4, drawn("..##"))]
    scores = evaluate(dataset, found)
    assert scores["AP"] == pytest.approx(1)
    assert scores.notes == ("1 annotations have an id that one before them has: each counts for itself.",)
    faulty = evaluate(dataset, found, official_faults=True)         # the last one twice: '##..' is wrong
    assert faulty["AR100"] == pytest.approx(0.5)


def test_what_differs_from_the_video_is_told(load):
    truth = truth_of([{"segmentations": drawn("##", "##", "##")}, {"segmentations": drawn("##.", "##.")}], 2, (1, 2))
    found = [result(0.5, drawn("##")), result(0.5, drawn("##.", "##."))]
    notes = evaluate(load(truth), found).notes
    assert [(note[0], "size" in note, note.split()[1]) for note in notes] == [
        ("1", False, "annotations"), ("1", True, "annotations"), ("1", False, "results"), ("1", True, "results"),
    ]  # fmt: skip


def test_occlusion_splits_objects_by_level(load):
    no, slight, severe = "no_occlusion", "slight_occlusion", "severe_occlusion"
    objects = [
        {"segmentations": drawn("##....", "##...."), "occlusion": [no, no]},            # light
        {"segmentations": drawn("..##..", "..##.."), "occlusion": [no, slight]},        # 0.25: light and medium
        {"segmentations": drawn("....##", "....##"), "occlusion": [severe, None]},      # heavy
        {"segmentations": drawn("#.....", "#....."), "occlusion": [None, None]},        # in none
    ]  # fmt: skip
    found = [result(0.9, drawn("##....", "##....")), result(0.8, drawn("....##", "....##"))]
    scores = evaluate(load(truth_of(objects, 2, (1, 6))), found)
    rows = {level: (row["objects"], row["AR100"], row["AP"]) for level, row in scores.occlusion.items()}
    # in each level the result that found an object of another one is ignored, as that object is
    assert rows == {"light": (2, 0.5, pytest.approx(51 / 101)), "medium": (1, 0, 0), "heavy": (1, 1, pytest.approx(1))}
    assert scores.as_json()["occlusion"] == scores.occlusion
    assert scores.notes == ("1 annotations have no label of occlusion: they count in none of its levels.",)


def test_without_labels_there_is_no_split(load):
    scores = evaluate(load(truth_of([{"segmentations": drawn("##")}], 1, (1, 2))), [])
    assert scores.occlusion == {} and list(scores.as_json()) == [*METRICS, "per_category", "notes"]


def test_official_faults_can_be_asked_for(load):
    truth = truth_of([{"segmentations": drawn("##"), "id": 0}], 1, (1, 2))
    dataset, found = load(truth), [result(0.5, drawn("##"))]
    assert evaluate(dataset, found)["AP"] == pytest.approx(1)
    assert evaluate(dataset, found, official_faults=True)["AP"] == 0
    with pytest.raises(DatasetError, match="empty"):
        evaluate(dataset, [], official_faults=True)


# ------------------------------------------------------------------------------------------ against the official loops

LABELS = ["no_occlusion", "slight_occlusion", "severe_occlusion", None]
SIDE = 320          # 5 cells of 64 pixels a side: 2 x 2 cells are 128^2, 4 x 4 are 256^2


def random_masks(rng: np.random.Generator, num_frames: int, nothing: float = 0.2, odd: float = 0.03) -> list:
    """Rectangles on a coarse grid: equal IoUs, and areas that fall on 128^2 and 256^2, come up often."""
    masks: list = []
    low, high = np.sort(rng.integers(0, 6, size=(2, 2)), axis=0)
    for _ in range(num_frames):
        if rng.random() < nothing:
            masks.append([None, {}, []][rng.integers(3)])
            continue
        if rng.random() < 0.3:
            low, high = np.sort(rng.integers(0, 6, size=(2, 2)), axis=0)
        mask = np.zeros((SIDE, SIDE - (64 if rng.random() < odd else 0)), dtype=bool)
        mask[low[0] * 64 : high[0] * 64, low[1] * 64 : high[1] * 64] = True
        masks.append(rle(mask))
    return masks


def another_encoding(rng: np.random.Generator, mask: dict | None) -> dict | list | None:
    """The same pixels as polygon, as uncompressed RLE, or as they are."""
    if not mask or mask["size"][1] != SIDE or rng.random() < 0.4:
        return mask
    x, y, w, h = coco_mask.toBbox(mask).tolist()
    if w and rng.random() < 0.5:
        return [[x, y, x + w, y, x + w, y + h, x, y + h]]
    pixels = coco_mask.decode(mask).T.ravel()
    bounds = np.flatnonzero(np.diff(pixels, prepend=0)).tolist()
    return {"size": mask["size"], "counts": np.diff([0, *bounds, len(pixels)]).tolist()}


def random_input(seed: int) -> tuple[dict, list[dict]]:
    """Everything that the rules tell apart: see the comments."""
    rng = np.random.default_rng(seed)
    num_videos, num_frames = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    odd = 0.1 if seed % 4 == 1 else 0.0                             # masks of other sizes, on either side
    objects = []
    for index in range(int(rng.integers(0, 9))):
        length = max(0, num_frames + (int(rng.choice([0, 0, -1, 1])) if seed % 5 == 2 else 0))     # lists of any length
        masks = random_masks(rng, length, odd=odd)
        areas = [None if not mask else int(coco_mask.area(mask)) for mask in masks]
        areas = [area and float(area) * rng.choice([1, 1, 1, 0.5, 4]) for area in areas]
        objects.append({
            # id 0, and in some inputs ids that occur twice; categories 1..3, 4 is not listed
            "id": index // 2 if seed % 6 == 3 else index, "video_id": int(rng.integers(num_videos)) + 1,
            "category_id": int(rng.integers(1, 5 if seed % 6 == 4 else 4)), "iscrowd": int(rng.random() < 0.2),
            "segmentations": [another_encoding(rng, mask) for mask in masks], "areas": areas, "plain": masks,
            "occlusion": [LABELS[k] for k in rng.integers(0, 4, size=length)] if rng.random() < 0.9 else None,
        })  # fmt: skip
    results = []
    for _ in range(int(rng.integers(0, 130 if seed % 10 == 0 else 25))):
        copied = objects and rng.random() < 0.5
        kin = objects[rng.integers(len(objects))] if copied else None
        masks = random_masks(rng, max(0, num_frames + int(rng.choice([0, 0, 0, 0, -1, 1]))), odd=odd)
        if kin is not None:
            masks = [a if rng.random() < 0.7 else b for a, b in zip(kin["plain"], masks, strict=False)]
        video_id = kin["video_id"] if kin else int(rng.integers(num_videos)) + 1
        # with many results nearly all go to one video and category, beyond the hundred that count
        category_id = kin["category_id"] if kin else int(rng.choice([1, 1, 2, 3, 5, 9]))
        results.append(result(float(rng.integers(1, 9)) / 8, masks, video_id, category_id))
    truth = truth_of([{k: v for k, v in o.items() if k != "plain"} for o in objects], num_frames, (SIDE, SIDE),
                     num_videos)  # fmt: skip
    truth["categories"] += [{"id": 3, "name": "sun"}, {"id": 5, "name": "never there"}]
    return truth, results


def equals_the_loops(dataset: Dataset, truth: dict, results: list[dict], *, official_faults: bool = False) -> None:
    scores = evaluate(dataset, results, official_faults=official_faults)
    expected = official_loops.evaluate(truth, results, faults=official_faults, occlusion=bool(scores.occlusion))
    assert scores.overall == pytest.approx({metric: expected[metric] for metric in METRICS}, abs=1e-12)
    for category in truth["categories"]:
        assert scores.per_category[category["name"]] == pytest.approx(expected["per_category"][category["id"]],
                                                                      abs=1e-12)  # fmt: skip
    for level, row in scores.occlusion.items():
        assert row == pytest.approx(expected["occlusion"][level], abs=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_equals_the_official_loops(load, seed):
    truth, results = random_input(seed)
    official_faults = seed % 3 == 2 or seed % 12 == 9
    if official_faults and not results:
        results = [result(0.5, [])]
    equals_the_loops(load(truth), truth, results, official_faults=official_faults)


def test_only_the_first_hundred_of_a_video_and_category_count(load):
    rng = np.random.default_rng(3)
    objects = [{"segmentations": drawn("##......", "##......")}, {"segmentations": drawn("......##", "......##")}]
    truth = truth_of(objects, 2, (1, 8), num_videos=2)
    results = [result(0.5 + 0.001 * float(rng.integers(20)), drawn("..####..", None)) for _ in range(100)]
    results += [result(0.1, drawn("##......", "##......")), result(0.9, drawn("......##", "......##"))]
    equals_the_loops(load(truth), truth, results)
    assert evaluate(load(truth), results)["AR100"] == pytest.approx(0.5)       # the track with score 0.1 is the 102nd


@pytest.mark.parametrize("name", ["results_rvos.json", "results_osvos.json"])
def test_real_results(media, name):
    folder = media / "annotated"
    scores = main_evaluate(folder / "instances.json", folder / name)
    truth, results = (json.loads((folder / file).read_text()) for file in ("instances.json", name))
    expected = official_loops.evaluate(truth, results)
    assert scores.overall == pytest.approx({metric: expected[metric] for metric in METRICS}, abs=1e-12)
    assert 0 < scores["AP"] < scores["AP50"]


# Rows of 8 pixels, so that IoUs of 1/2, 2/3, 3/4 and 1 come up all the time, and with few scores ties do.
ROWS = st.one_of(st.none(), st.tuples(st.integers(0, 7), st.integers(0, 8)).map(
    lambda ends: "".join("#" if ends[0] <= x < ends[1] else "." for x in range(8))
))  # fmt: skip
MASKS = st.lists(ROWS, min_size=2, max_size=2)
AREAS = st.sampled_from([None, 0, 1, 8, 16384, 16384.5, 16383, 65536, 65537, 1e10])


@st.composite
def nasty_inputs(draw: st.DrawFn) -> tuple[dict, list[dict]]:
    objects = [
        {
            "id": draw(st.integers(0, 3)), "video_id": draw(st.integers(1, 2)), "category_id": draw(st.integers(1, 2)),
            "iscrowd": draw(st.integers(0, 1)), "segmentations": drawn(*draw(MASKS)),
            "areas": draw(st.lists(AREAS, min_size=1, max_size=3)), "occlusion": draw(st.one_of(
                st.none(), st.lists(st.sampled_from(LABELS), max_size=3))),
        }
        for _ in range(draw(st.integers(0, 5)))
    ]  # fmt: skip
    results = [
        result(draw(st.sampled_from([-1.0, 0.0, 0.5, 1.0, 1])), drawn(*draw(MASKS))[: draw(st.integers(0, 2))],
               draw(st.integers(1, 2)), draw(st.integers(1, 3)))
        for _ in range(draw(st.integers(0, 8)))
    ]  # fmt: skip
    return truth_of(objects, 2, (1, 8), num_videos=2), results


@given(nasty_inputs(), st.booleans())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_equals_the_official_loops_on_ties_and_bounds(load, made, official_faults):
    truth, results = made
    equals_the_loops(load(truth), truth, results, official_faults=official_faults and bool(results))


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_give_the_same(load, workers):
    truth, results = random_input(40)
    truth["videos"] += [{**truth["videos"][0], "id": 90 + i} for i in range(6)]
    dataset = load(truth)
    calls = []
    scores = evaluate(dataset, results, workers=workers, progress=lambda *done: calls.append(done))
    assert scores.as_json() == evaluate(dataset, results).as_json()
    assert calls == [(done, len(truth["videos"])) for done in range(1, len(truth["videos"]) + 1)]


def test_a_fault_in_a_worker_is_told(load):
    truth = truth_of([{"segmentations": drawn("##")}], 1, (1, 2), num_videos=4)
    damaged = [result(0.5, [{"size": [1, 2], "counts": "09"}], video_id=3)]
    with pytest.raises(DatasetError, match="result 0 .*frame 0: counts '09'"):
        evaluate(load(truth), damaged, workers=2)
    with pytest.raises(ConfigError, match="workers is 0"):
        evaluate(load(truth), [], workers=0)


# ------------------------------------------------------------------------------------------------ files and the command


def faulty(**changes) -> dict:
    entry = result(0.5, drawn("##")) | changes
    return {key: value for key, value in entry.items() if value != "absent"}


BAD_RESULTS = [
    pytest.param({"video_id": 1}, "expected a list", id="not a list"),
    pytest.param([[]], "result 0: is", id="not an object"),
    pytest.param([faulty(), faulty(score="absent")], "result 1: score is missing", id="no score"),
    pytest.param([faulty(score="0.5")], "score is '0.5'", id="score as text"),
    pytest.param([faulty(), faulty(score=float("nan"))], "result 1: score is nan", id="score not a number"),
    pytest.param([faulty(score=float("-inf"))], "score is -inf; expected a finite number", id="score infinite"),
    pytest.param([faulty(score=10**400)], "score is 1000", id="score beyond every float"),
    pytest.param([faulty(score=True)], "score is True", id="score as truth value"),
    pytest.param([faulty(video_id="1")], "video_id is '1'", id="video id as text"),
    pytest.param([faulty(category_id=True)], "category_id is True", id="category id as truth value"),
    pytest.param([faulty(category_id=[1])], "category_id is \\[1\\]", id="category id as list"),
    pytest.param([faulty(segmentations=None)], "segmentations is None", id="no masks"),
    pytest.param([faulty(segmentations=[[[0, 0, 1, 0, 1, 1]]])], "frame 0.*no compressed RLE", id="polygon"),
    pytest.param([faulty(segmentations=[{"size": [1, 2], "counts": [0, 2]}])], "no compressed RLE", id="uncompressed"),
    pytest.param([faulty(segmentations=[None, 7])], "frame 1", id="a number for a mask"),
    pytest.param([faulty(segmentations=["##"])], "frame 0: '##' is no compressed RLE", id="text for a mask"),
    pytest.param([faulty(segmentations=[{"counts": "02"}])], "frame 0", id="a mask without size"),
    pytest.param([faulty(segmentations=[None, [[0, 1]] * 3])], "frame 1", id="a list for a mask"),
]


@pytest.mark.parametrize("raw, message", BAD_RESULTS)
def test_bad_results_are_named(tmp_path, raw, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match=f"results.json: .*{message}"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "[", "[1e999999,", "\xff", "[" * 100_000, '{"a":' * 100_000, '[{"score": 0.5}'])
def test_no_json(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match="results.json: is not valid JSON"):
        read_results(path)


def test_keys_that_occur_twice(tmp_path):
    path = tmp_path / "results.json"
    path.write_text('[{"video_id": 1, "score": 0.1, "category_id": 1, "score": 0.9, "segmentations": []}]')
    with pytest.raises(DatasetError, match="results.json: an object has the key 'score' more than once"):
        read_results(path)


def test_a_file_of_two_gigabytes_is_refused_unread(tmp_path):
    path = tmp_path / "results.json"
    with path.open("wb") as file:
        file.truncate(2 << 30)          # sparse: takes no room on the disk
    with pytest.raises(DatasetError, match="results.json: is over the limit of 1024 MiB.*the 100 best"):
        read_results(path)


def test_a_ground_truth_file_is_recognised(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(truth_of([], 1, (1, 2))))
    with pytest.raises(DatasetError, match="is an annotation file"):
        read_results(path)


@pytest.mark.parametrize("place", [0, 150])     # of the result: damage is told of those that do not count too
@pytest.mark.parametrize("mask, message", [
    pytest.param({"size": [1, 2], "counts": "09"}, "result .*frame 0: counts '09'", id="runs beyond the frame"),
    pytest.param({"size": [10**9, 10**9], "counts": "02"}, "over the limit", id="a frame of 10^18 pixels"),
    pytest.param({"size": [0, 2], "counts": "00"}, "size is \\[0, 2\\]", id="a frame without pixels"),
    pytest.param({"size": 2, "counts": "02"}, "size is 2", id="size is no list"),
    pytest.param({"size": [1, 2], "counts": "02é"}, "counts '02é'", id="not ASCII"),
    pytest.param({"size": [1, 2], "counts": "0`0"}, "counts '0`0'", id="cut inside a number"),
    pytest.param({"size": [1, 2], "counts": "3O"}, "counts '3O'", id="a negative run"),
    pytest.param({"size": [1, 2], "counts": "0oooooo1"}, "counts '0ooo", id="a run that overflows"),
    pytest.param({"size": ["1", 2], "counts": "02"}, "size is \\['1', 2\\]", id="a side as text"),
])  # fmt: skip
def test_damaged_masks_are_named(load, mask, message, place):
    truth = truth_of([{"segmentations": drawn("##")}], 1, (1, 2))
    before = [result(0.9, drawn("##"))] * place
    with pytest.raises(DatasetError, match=message):
        evaluate(load(truth), [*before, result(0.5, [mask])])


@pytest.mark.parametrize("mask, message", [
    pytest.param({"size": [1, 2], "counts": "09"}, "counts '09'", id="compressed"),
    pytest.param({"size": [1, 2], "counts": [0, 3]}, "runs of its RLE do not fill", id="uncompressed"),
    pytest.param([[0, 0, 1]], "a ring is", id="polygon"),
])  # fmt: skip
def test_damaged_ground_truth_is_named_though_nothing_was_found_there(load, mask, message):
    truth = truth_of([{"segmentations": [mask], "areas": [2]}], 1, (1, 2))
    with pytest.raises(DatasetError, match=f"truth.json: video 1, annotation 1, frame 0: .*{message}"):
        evaluate(load(truth), [])


def test_unknown_video(load):
    with pytest.raises(DatasetError, match="result 0 .*has no video 8"):
        evaluate(load(truth_of([], 1, (1, 2))), [result(0.5, drawn("##"), video_id=8)])


@pytest.fixture
def files(tmp_path):
    truth, results = tmp_path / "truth.json", tmp_path / "results.json"
    truth.write_text(json.dumps(truth_of([{"segmentations": drawn("##")}], 1, (1, 2), num_videos=3)))
    results.write_text(json.dumps([result(0.5, drawn("##"))]))
    return truth, results


def test_command_writes_json_and_tells_progress(files, tmp_path):
    calls = []
    out = tmp_path / "scores.json"
    scores = main_evaluate(*files, out, progress=lambda done, total: calls.append((done, total)))
    written = json.loads(out.read_text())
    assert {metric: written[metric] for metric in METRICS} == scores.overall
    assert written["per_category"]["star"]["AP50"] == pytest.approx(1) and written["per_category"]["moon"]["AP"] == -1
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_command_refuses_before_work(files, tmp_path):
    with pytest.raises(ConfigError, match="absent"):
        main_evaluate(*files, tmp_path / "absent" / "scores.json", progress=lambda *_: pytest.fail("work was done"))


def test_command_says_that_validation_files_have_no_truth(files):
    raw = json.loads(files[0].read_text()) | {"annotations": None}
    files[0].write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match="has no annotations"):
        main_evaluate(*files)
