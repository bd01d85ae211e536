"""AP and AR: by hand, and against a slow port of the official rules that shares no code with ours.

`Oracle` is written from the evaluation specification alone: plain loops, masks as arrays, one detection, object and
threshold at a time. It reads the same JSON objects as the evaluator does.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from operators.errors import ConfigError, DatasetError
from operators.youtube_vis import METRICS, evaluate, format_table, main_evaluate, track_ious
from operators.youtube_vis_data import read_dataset
from operators.youtube_vis_results import read_results
from operators.youtube_vis_rle import MaskTrack

# ---------------------------------------------------------------------------------------------------------- the oracle


def decode(entry: dict | list, height: int, width: int) -> np.ndarray:
    """Any mask of a file -> (H, W) bool."""
    if isinstance(entry, list):
        return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(entry, height, width))).astype(bool)
    counts = entry["counts"]
    if isinstance(counts, str):
        counts = decode_counts(counts)
    pixels = np.zeros(entry["size"][0] * entry["size"][1], dtype=bool)
    for start, run in zip(np.cumsum(counts)[:-1:2], counts[1::2], strict=False):
        pixels[start : start + run] = True
    return pixels.reshape(entry["size"][1], entry["size"][0]).T


def decode_counts(text: str) -> list[int]:
    counts, at = [], 0
    while at < len(text):
        number, digit, more = 0, 0, True
        while more:
            code = ord(text[at]) - 48
            number |= (code & 31) << 5 * digit
            more = code & 32
            at, digit = at + 1, digit + 1
            if not more and code & 16:
                number -= 1 << 5 * digit
        counts.append(number + (counts[-2] if len(counts) > 2 else 0))
    return counts


class Oracle:
    AREAS = ((0, 1e10), (0, 128**2), (128**2, 256**2), (256**2, 1e10))

    def __init__(self, truth: dict, results: list[dict], official_faults: bool = False):
        self.faults = official_faults
        self.videos = {video["id"]: video for video in truth["videos"]}
        self.categories = sorted(category["id"] for category in truth["categories"])
        self.objects = [self.load(raw) | {"mean": self.mean(raw["areas"])} for raw in truth["annotations"]]
        self.found = [self.load(raw) for raw in results]
        for track in self.found:
            track["mean"] = self.mean([0 if mask is None else int(mask.sum()) for mask in track["masks"]])
        self.thresholds = np.linspace(0.5, 0.95, 10)

    def load(self, raw: dict) -> dict:
        video = self.videos[raw["video_id"]]
        size = video["height"], video["width"]
        return {**raw, "masks": [decode(entry, *size) if entry else None for entry in raw["segmentations"]]}

    @staticmethod
    def mean(areas: list) -> float:
        areas = [area for area in areas if area]
        return sum(areas) / len(areas) if areas else 0

    @staticmethod
    def iou(one: dict, other: dict) -> float:
        common = either = 0
        for a, b in zip(one["masks"], other["masks"], strict=False):
            if a is None and b is None:
                continue
            if a is None or b is None:
                either += int((b if a is None else a).sum())
            elif a.shape == b.shape:
                common += int((a & b).sum())
                either += int((a | b).sum())
        return common / either if either else 0.0

    def match(self, video: int, category: int, area: tuple, threshold: float, ious: dict) -> tuple[list, int]:
        """[(score, matched, ignored)] of the first hundred, and how many objects were to be found."""
        low, high = area
        objects = [o for o in self.objects if (o["video_id"], o["category_id"]) == (video, category)]
        found = [d for d in self.found if (d["video_id"], d["category_id"]) == (video, category)]
        found = sorted(found, key=lambda track: -track["score"])[:100]
        ignored = [bool(o["iscrowd"]) or not low <= o["mean"] <= high for o in objects]
        taken, rows = set(), []
        for track in found:
            partner = None
            for wanted in (False, True):
                best = min(threshold, 1 - 1e-10)
                for g, truth in enumerate(objects):
                    if partner is not None and ignored[partner] != wanted:
                        break
                    if ignored[g] != wanted or (g in taken and not truth["iscrowd"]):
                        continue
                    key = id(track), id(truth)
                    if key not in ious:
                        ious[key] = self.iou(track, truth)
                    if ious[key] >= best:
                        best, partner = ious[key], g
            if partner is not None:
                taken.add(partner)
            matched = partner is not None and not (self.faults and objects[partner]["id"] == 0)
            out = partner is not None and ignored[partner]
            rows.append((track["score"], matched, out or (not matched and not low <= track["mean"] <= high)))
        return rows, ignored.count(False)

    def curve(self, category: int, area: tuple, limit: int, threshold: float, ious: dict) -> tuple[list, float] | None:
        rows, total = [], 0
        for video in sorted(self.videos):
            matched, objects = self.match(video, category, area, threshold, ious)
            rows += matched[:limit]
            total += objects
        if total == 0:
            return None
        rows = sorted(rows, key=lambda row: -row[0])
        right = wrong = 0
        recall, precision = [], []
        for _, matched, ignored in rows:
            right += matched and not ignored
            wrong += not matched and not ignored
            recall.append(right / total)
            precision.append(right / (wrong + right + 2.0**-52))
        for i in range(len(precision) - 1, 0, -1):
            precision[i - 1] = max(precision[i - 1], precision[i])
        read = []
        for point in np.linspace(0, 1, 101):
            place = next((i for i, value in enumerate(recall) if value >= point), None)
            read.append(0.0 if place is None else precision[place])
        return read, (recall[-1] if recall else 0.0)

    def scores(self) -> dict[str, float]:
        ious: dict = {}
        self.curves = {
            (c, a, limit, i): self.curve(c, self.AREAS[a], limit, threshold, ious)
            for c in self.categories
            for a, limit in ((0, 1), (0, 10), (0, 100), (1, 100), (2, 100), (3, 100))
            for i, threshold in enumerate(self.thresholds)
        }
        return self.summary(self.categories)

    def summary(self, categories: list[int]) -> dict[str, float]:
        def mean(kind: int, area: int = 0, limit: int = 100, at: int | None = None) -> float:
            curves = [self.curves[c, area, limit, i] for c in categories for i in range(10) if at in (None, i)]
            values = [curve[kind] for curve in curves if curve is not None]
            return float(np.mean(values)) if values else -1.0

        areas = {letter: area for area, letter in enumerate("sml", start=1)}
        return (
            {"AP": mean(0), "AP50": mean(0, at=0), "AP75": mean(0, at=5)}
            | {f"AP{letter}": mean(0, area) for letter, area in areas.items()}
            | {f"AR{limit}": mean(1, limit=limit) for limit in (1, 10, 100)}
            | {f"AR{letter}": mean(1, area) for letter, area in areas.items()}
        )


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
        areas = [None if not mask else int(coco_mask.area(mask)) for mask in entry["segmentations"]]
        filled = {"id": index + 1, "video_id": 1, "category_id": 1, "iscrowd": 0, "areas": areas}
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


def test_official_faults_can_be_asked_for(load):
    truth = truth_of([{"segmentations": drawn("##"), "id": 0}], 1, (1, 2))
    dataset, found = load(truth), [result(0.5, drawn("##"))]
    assert evaluate(dataset, found)["AP"] == pytest.approx(1)
    assert evaluate(dataset, found, official_faults=True)["AP"] == 0
    with pytest.raises(DatasetError, match="empty"):
        evaluate(dataset, [], official_faults=True)


# --------------------------------------------------------------------------------------------------- against the oracle


def random_masks(rng: np.random.Generator, num_frames: int, cells: int = 5, side: int = 64) -> list:
    """Rectangles on a coarse grid: equal IoUs, and areas that fall on 128^2 and 256^2, come up often."""
    masks: list = []
    low, high = np.sort(rng.integers(0, cells + 1, size=(2, 2)), axis=0)
    for _ in range(num_frames):
        if rng.random() < 0.2:
            masks.append([None, {}, []][rng.integers(3)])
            continue
        if rng.random() < 0.3:
            low, high = np.sort(rng.integers(0, cells + 1, size=(2, 2)), axis=0)
        size = (cells * side, cells * side - (side if rng.random() < 0.03 else 0))
        mask = np.zeros(size, dtype=bool)
        mask[low[0] * side : high[0] * side, low[1] * side : high[1] * side] = True
        masks.append(rle(mask))
    return masks


def random_input(seed: int) -> tuple[dict, list[dict]]:
    rng = np.random.default_rng(seed)
    num_videos, num_frames = int(rng.integers(1, 4)), int(rng.integers(1, 4))
    objects = []
    for index in range(int(rng.integers(0, 9))):
        masks = random_masks(rng, num_frames)
        masks = [mask if mask and mask["size"][1] == 320 else None for mask in masks]
        areas = [None if mask is None else int(coco_mask.area(mask)) for mask in masks]
        areas = [area and float(area) * rng.choice([1, 1, 1, 0.5, 4]) for area in areas]
        objects.append({
            "id": index, "video_id": int(rng.integers(num_videos)) + 1, "category_id": int(rng.integers(1, 4)),
            "iscrowd": int(rng.random() < 0.2), "segmentations": masks, "areas": areas,
        })  # fmt: skip
    truth = truth_of(objects, num_frames, (320, 320), num_videos)
    truth["categories"].append({"id": 5, "name": "never there"})
    results = []
    for _ in range(int(rng.integers(0, 130 if seed % 10 == 0 else 25))):
        copied = objects and rng.random() < 0.5
        kin = objects[rng.integers(len(objects))] if copied else None
        masks = random_masks(rng, max(0, num_frames + int(rng.choice([0, 0, 0, 0, -1, 1]))))
        if kin is not None:
            masks = [a if rng.random() < 0.7 else b for a, b in zip(kin["segmentations"], masks, strict=False)]
        video_id = kin["video_id"] if kin else int(rng.integers(num_videos)) + 1
        # with many results nearly all go to one video and category, beyond the hundred that count
        category_id = kin["category_id"] if kin else int(rng.choice([1, 1, 2, 3, 5]))
        results.append(result(float(rng.integers(1, 9)) / 8, masks, video_id, category_id))
    return truth, results


@pytest.mark.parametrize("seed", range(30))
def test_equals_the_oracle(load, seed):
    truth, results = random_input(seed)
    official_faults = seed % 3 == 2
    if official_faults and not results:
        results = [result(0.5, [])]
    scores = evaluate(load(truth), results, official_faults=official_faults)
    oracle = Oracle(truth, results, official_faults)
    assert scores.overall == pytest.approx(oracle.scores(), abs=1e-12)
    for category in truth["categories"]:
        assert scores.per_category[category["name"]] == pytest.approx(oracle.summary([category["id"]]), abs=1e-12)


def test_only_the_first_hundred_of_a_video_and_category_count(load):
    rng = np.random.default_rng(3)
    objects = [{"segmentations": drawn("##......", "##......")}, {"segmentations": drawn("......##", "......##")}]
    truth = truth_of(objects, 2, (1, 8), num_videos=2)
    results = [result(0.5 + 0.001 * float(rng.integers(20)), drawn("..####..", None)) for _ in range(100)]
    results += [result(0.1, drawn("##......", "##......")), result(0.9, drawn("......##", "......##"))]
    scores = evaluate(load(truth), results)
    assert scores.overall == pytest.approx(Oracle(truth, results).scores(), abs=1e-12)
    assert scores["AR100"] == pytest.approx(0.5)       # the track with score 0.1 is the 102nd


@pytest.mark.parametrize("name", ["results_rvos.json", "results_osvos.json"])
def test_real_results(media, name):
    folder = media / "annotated"
    scores = main_evaluate(folder / "instances.json", folder / name)
    truth, results = (json.loads((folder / file).read_text()) for file in ("instances.json", name))
    assert scores.overall == pytest.approx(Oracle(truth, results).scores(), abs=1e-12)
    assert 0 < scores["AP"] < scores["AP50"]


def test_intersections_are_exact_for_large_masks():
    rng = np.random.default_rng(0)
    masks = [np.kron(rng.random((9, 16)) < 0.5, np.ones((120, 120), dtype=bool)) for _ in range(6)]
    masks = [mask ^ (rng.random(mask.shape) < 0.01) for mask in masks]
    one, other = (MaskTrack.of([rle(mask) for mask in half]) for half in (masks[:3], masks[3:]))
    pairs = list(zip(masks[:3], masks[3:], strict=True))
    expected = sum(int((a & b).sum()) for a, b in pairs) / sum(int((a | b).sum()) for a, b in pairs)
    assert track_ious([one], [other])[0, 0] == expected


# ------------------------------------------------------------------------------------------------ files and the command


def faulty(**changes) -> dict:
    entry = result(0.5, drawn("##")) | changes
    return {key: value for key, value in entry.items() if value != "absent"}


BAD_RESULTS = [
    pytest.param({"video_id": 1}, "expected a list", id="not a list"),
    pytest.param([[]], "result 0: is", id="not an object"),
    pytest.param([faulty(), faulty(score="absent")], "result 1: score is missing", id="no score"),
    pytest.param([faulty(score="0.5")], "score is '0.5'", id="score as text"),
    pytest.param([faulty(score=True)], "score is True", id="score as truth value"),
    pytest.param([faulty(video_id="1")], "video_id is '1'", id="video id as text"),
    pytest.param([faulty(segmentations=None)], "segmentations is None", id="no masks"),
    pytest.param([faulty(segmentations=[[[0, 0, 1, 0, 1, 1]]])], "frame 0.*no compressed RLE", id="polygon"),
    pytest.param([faulty(segmentations=[{"size": [1, 2], "counts": [0, 2]}])], "no compressed RLE", id="uncompressed"),
    pytest.param([faulty(segmentations=[None, 7])], "frame 1", id="a number for a mask"),
]


@pytest.mark.parametrize("raw, message", BAD_RESULTS)
def test_bad_results_are_named(tmp_path, raw, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(DatasetError, match=f"results.json: .*{message}"):
        read_results(path)


@pytest.mark.parametrize("text", ["", "[", '[{"score": NaN}]', "[1e999999,", "\xff", "[" * 100_000])
def test_no_json(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(DatasetError, match="results.json: is not valid JSON"):
        read_results(path)


def test_a_ground_truth_file_is_recognised(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(truth_of([], 1, (1, 2))))
    with pytest.raises(DatasetError, match="is an annotation file"):
        read_results(path)


@pytest.mark.parametrize("mask, message", [
    pytest.param({"size": [1, 2], "counts": "09"}, "result 0 .*frame 0: counts '09'", id="runs beyond the frame"),
    pytest.param({"size": [10**9, 10**9], "counts": "02"}, "over the limit", id="a frame of 10^18 pixels"),
    pytest.param({"size": [0, 2], "counts": "00"}, "size is \\[0, 2\\]", id="a frame without pixels"),
    pytest.param({"size": 2, "counts": "02"}, "size is 2", id="size is no list"),
])  # fmt: skip
def test_damaged_masks_are_named(load, mask, message):
    truth = truth_of([{"segmentations": drawn("##")}], 1, (1, 2))
    with pytest.raises(DatasetError, match=message):
        evaluate(load(truth), [result(0.5, [mask])])


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


def test_table(load):
    table = format_table(evaluate(load(truth_of([{"segmentations": WHOLE}], 2, (1, 4))), [result(0.9, HALF)]))
    rows = {line.rsplit(maxsplit=12)[0]: line.split()[-12:] for line in table.splitlines() if "0.100" in line}
    # AP AP50 AP75 and their areas, of 4 + 4 pixels all small; AR alike
    assert rows["star"] == ["0.100", "1.000", "0.000", "0.100", "-", "-"] + ["0.100"] * 4 + ["-", "-"]
    assert rows["all categories"] == rows["star"]
    assert "1 of 2 categories have no objects" in table and "moon" not in table
