"""J and F against the rules written down (davis_direct.py), and the rules one by one on maps drawn by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from operators.davis import (
    METRICS,
    DavisScores,
    ObjectScores,
    SequenceScores,
    evaluate,
    format_table,
    frame_scores,
    main_evaluate,
    statistics,
)
from operators.davis_data import Sequence, find_sequences
from operators.errors import ConfigError, DatasetError
from operators.formats import davis_palette
from tests.operators.davis_direct import boundary_f, brute_dilate, direct, fast_boundary_map, row


def save(folder, frames, mode="P"):
    folder.mkdir(parents=True, exist_ok=True)
    for index, labels in enumerate(frames):
        image = Image.fromarray(np.asarray(labels, dtype=np.uint8))
        if mode == "P":
            image.putpalette(davis_palette().tobytes())
        image.save(folder / f"{index:05d}.png")


@pytest.fixture
def score(tmp_path_factory):
    """Evaluate label maps {sequence: (truth, found)} as PNGs on the disk."""

    def run(official_faults=False, **sequences) -> DavisScores:
        root = tmp_path_factory.mktemp("davis")
        for name, (truth, found) in sequences.items():
            save(root / "truth" / name, truth)
            save(root / "results" / name, found, mode="L")
        return evaluate(find_sequences(root / "truth", root / "results"), official_faults=official_faults)

    return run


def drawn(*frames: str) -> np.ndarray:
    """A frame a string, its rows parted by blanks; v is void."""
    values = {".": 0, "v": 255}
    return np.array([[[values[s] if s in values else int(s) for s in line] for line in frame.split()]
                     for frame in frames])  # fmt: skip


def check(scores: DavisScores, name: str, truth: np.ndarray, found: np.ndarray, official_faults: bool) -> None:
    """Every number of a sequence equals the oracle's to 1e-12."""
    expected = direct(truth, found, eight_bits=official_faults)
    if not official_faults:
        expected.sort()
    rows = scores.per_sequence[name].objects
    assert [one.object for one in rows] == [one[0] for one in expected]
    assert [one.proposal or found.max() + 1 for one in rows] == [min(one[1], found.max() + 1) for one in expected]
    for one, wanted in zip(rows, expected, strict=True):
        np.testing.assert_allclose([one.metrics[m] for m in METRICS[1:]], wanted[2:], rtol=0, atol=1e-12)
    values = np.array([one[2:] for one in expected]).reshape(-1, 6)
    if len(values):
        means = [scores.per_sequence[name].metrics[metric] for metric in METRICS]
        np.testing.assert_allclose(means[1:], values.mean(axis=0), rtol=0, atol=1e-12)
        assert means[0] == pytest.approx((values[:, 0].mean() + values[:, 3].mean()) / 2, abs=1e-12)


CASES = [
    pytest.param(drawn(".. .."), drawn(".. .."), id="nothing at all"),
    pytest.param(drawn(".. ..", "11 .."), drawn("11 ..", "11 .."), id="first frame empty"),
    pytest.param(drawn("vv ..", "11 .."), drawn("11 ..", "11 .."), id="first frame only void"),
    pytest.param(drawn("11. ..2"), drawn("... ..."), id="no proposals"),
    pytest.param(drawn("11. ..2"), drawn("22. ..1"), id="one frame, numbers swapped"),
    pytest.param(drawn("111 111"), drawn("... ..."), id="an object that fills the frame has no boundary"),
    pytest.param(drawn("1.. ..3", "1.2 ..3"), drawn("1.2 ..3", "1.2 ..3"), id="a hole in the objects' numbers"),
    pytest.param(drawn("1.. ..2", "1.. .22"), drawn("2.. ..5", "2.. ..."), id="holes in the proposals' numbers"),
    pytest.param(drawn("11. ...", "11. .44"), drawn("11. ...", "11. .22"), id="a later object is ignored"),
    pytest.param(drawn("11v .vv", "1.v .v2"), drawn("112 .11", "122 .11"), id="void in either mask"),
    pytest.param(drawn("12 34"), drawn("11 22"), id="fewer proposals than objects"),
    pytest.param(drawn("11 11"), drawn("12 34"), id="more proposals than objects"),
    pytest.param(drawn("1.. ...", "... ..."), drawn("1.. ...", "... ..1"), id="an object that leaves"),
]


@pytest.mark.parametrize("official_faults", [False, True], ids=["sensible", "official"])
@pytest.mark.parametrize("truth, found", CASES)
def test_small_cases_equal_the_rules(score, truth, found, official_faults):
    scores = score(official_faults, a=(truth, found))
    check(scores, "a", truth, found, official_faults)


def test_the_table():
    """Each sequence with its objects below it, then all; a sequence without objects has no numbers."""
    row = dict.fromkeys(METRICS, 0.25)
    objects = ObjectScores("a_1", 1, 2, row), ObjectScores("a_2", 2, None, row | {"J-Mean": 0.75})
    scores = DavisScores({"a": SequenceScores(objects, 3), "b": SequenceScores((), 1)})
    head, rule, *rows, note = format_table(scores).splitlines()
    assert head.split() == ["sequence", *METRICS] and set(rule) == {"-"} and note == scores.notes[0]
    both = ["0.3750", "0.5000", *["0.2500"] * 5]
    assert [line.split() for line in rows] == [
        ["a,", "3", "frames", *both],
        ["object", "1,", "proposal", "2", *["0.2500"] * 7],
        ["object", "2,", "no", "proposal", "0.2500", "0.7500", *["0.2500"] * 5],
        ["b,", "1", "frames", *["-"] * 7],
        ["all", "2", "objects", "of", "2", "sequences", *both],
    ]


maps = st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda shape: st.tuples(
        arrays.arrays(np.int64, shape, elements=st.sampled_from([0, 0, 0, 1, 1, 2, 3, 4, 255]), fill=st.just(0)),
        arrays.arrays(np.int64, shape, elements=st.sampled_from([0, 0, 1, 1, 2, 3, 7]), fill=st.just(0)),
    )
)


@settings(max_examples=60, deadline=None)
@given(maps, st.booleans())
@example((drawn("1"), drawn("1")), False)
def test_random_maps_equal_the_rules(maps, official_faults):
    truth, found = maps
    num_objects = int(np.where(truth[0] == 255, 0, truth[0]).max())
    for at in range(len(truth)):
        j, f = frame_scores(truth[at].astype(np.uint8), found[at].astype(np.uint8), num_objects)
        assert j.shape == f.shape == (num_objects, 21)
        for one in range(num_objects):
            for proposal in range(1, 9):                  # the eighth is empty in every frame
                solid = truth[at] != 255
                masks = (truth[at] == one + 1) & solid, (found[at] == proposal) & solid
                assert f[one, proposal - 1] == boundary_f(*masks, brute_dilate)
                either = int((masks[0] | masks[1]).sum())
                assert j[one, proposal - 1] == (int((masks[0] & masks[1]).sum()) / either if either else 1)


def test_larger_frames_equal_the_rules(score):
    """Two pixels of radius, and boundaries thin enough to be looked up one by one."""
    rng = np.random.default_rng(5)
    truth, found = np.zeros((2, 97, 131), np.int64), np.zeros((2, 97, 131), np.int64)
    for frame in range(2):
        for number, top, left in zip(range(1, 4), rng.integers(0, 70, 3), rng.integers(0, 90, 3), strict=True):
            truth[frame, top : top + 25, left : left + 30] = number
            found[frame, top + 1 : top + 23, left + 2 : left + 33] = 2 * number - 1
        truth[frame, 40:44] = 255
    check(score(a=(truth, found)), "a", truth, found, False)


def test_more_objects_than_one_integer_has_bits(score):
    truth = np.arange(1, 71).reshape(1, 7, 10)
    found = np.where(truth <= 20, truth, 0)
    scores = score(a=(truth, found))
    check(scores, "a", truth, found, False)
    assert [row.proposal for row in scores.per_sequence["a"].objects] == [*range(1, 21), *[None] * 50]


@pytest.mark.parametrize("num_frames", [*range(1, 13), 256, 257, 300, 342, 1025])
@pytest.mark.parametrize("official_faults", [False, True], ids=["sensible", "official"])
def test_statistics(num_frames, official_faults):
    values = np.random.default_rng(num_frames).uniform(0, 1, num_frames)
    values[::3] = 0.5                                   # not above 0.5
    np.testing.assert_allclose(
        statistics(values, official_faults=official_faults), row(values, official_faults), rtol=0, atol=1e-12
    )


def test_quarters_share_their_end_frames_and_round_halves_up():
    assert statistics(np.array([1.0, 0, 0])) == (1 / 3, 1 / 3, 0.5)             # frames 1 and 2, and frame 3
    assert statistics(np.array([1.0, 0, 0, 0, 0])) == (0.2, 0.2, 0.5)           # 1 and 2, and 4 and 5


def test_ten_frames_are_cut_at_0_2_5_7_9():
    """One frame alone counts a third in the first or the last quarter, 0 to 2 and 7 to 9, else nothing."""
    decays = [statistics(np.eye(10)[frame])[2] for frame in range(10)]
    assert decays == pytest.approx([1 / 3] * 3 + [0] * 4 + [-1 / 3] * 3)


def test_truth_under_other_numbers_is_perfect_and_nothing_found_is_nothing(score):
    """Three objects that move and overlap for ten frames, a part of them void; numbered 7, 2 and 20 in the results."""
    truth = np.zeros((10, 48, 85), np.int64)
    for frame in range(10):
        for number, top, left in ((1, 2, 3), (2, 20, 60 - 4 * frame), (3, 28, 4 * frame)):
            truth[frame, top : top + 14, left : left + 20] = number
        truth[frame, 30:33, :20] = 255
    numbers = np.zeros(256, np.int64)
    numbers[[1, 2, 3]] = 7, 2, 20
    scores = score(renamed=(truth, numbers[truth]))
    assert [row.proposal for row in scores.per_sequence["renamed"].objects] == [7, 2, 20]
    assert scores.overall["J&F-Mean"] == scores.overall["J-Recall"] == scores.overall["F-Recall"] == 1
    nothing = score(empty=(truth, np.zeros_like(truth))).overall
    assert (nothing["J-Mean"], nothing["F-Mean"], nothing["J-Recall"]) == (0, 0, 0)


def test_long_sequences_keep_their_decay(score):
    truth = np.ones((260, 2, 3), np.int64)
    found = truth * (np.arange(260) < 130)[:, None, None]
    assert score(a=(truth, found)).overall["J-Decay"] == 1
    faulty = score(True, a=(truth, found), b=(truth[:4], found[:4]))
    assert math.isnan(faulty.overall["J-Decay"]) and faulty.per_sequence["b"].metrics["J-Decay"] == 0


def test_means_are_over_objects_and_rows_name_object_and_proposal(score):
    two, one = drawn("1.. ..2"), drawn("1.. ...")
    scores = score(pair=(two, drawn("2.. ...")), single=(one, one), none=(drawn("..."), drawn("...")))
    by_name = {row.name: row for row in scores.per_sequence["pair"].objects}
    assert [(row.object, row.proposal) for row in by_name.values()] == [(1, 2), (2, 1)]
    assert scores.overall["J-Mean"] == pytest.approx(2 / 3)
    assert scores.per_sequence["pair"].metrics["J-Mean"] == 0.5
    official = score(True, pair=(two, drawn("2.. ..."))).per_sequence["pair"].objects
    assert [(row.name, row.object, row.proposal) for row in official] == [("pair_1", 2, 1), ("pair_2", 1, 2)]
    assert "nothing is evaluated in 1 of 3 sequences: none." in scores.notes[0]
    assert math.isnan(scores.per_sequence["none"].metrics["J-Mean"])


def test_progress_counts_frames(score, tmp_path):
    save(tmp_path / "t" / "a", drawn("1.", ".1"))
    save(tmp_path / "t" / "b", drawn("1."))
    calls = []
    evaluate(find_sequences(tmp_path / "t", tmp_path / "t"), progress=lambda *call: calls.append(call))
    assert calls == [(1, 3), (2, 3), (3, 3)]


def test_json_has_null_for_what_is_no_number(tmp_path):
    save(tmp_path / "t" / "a", drawn(".."))
    scores = main_evaluate(tmp_path / "t", tmp_path / "t", tmp_path / "out.json")
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["J&F-Mean"] is None and written["per_sequence"]["a"]["objects"] == []
    assert list(written) == [*METRICS, "per_sequence", "notes"] and math.isnan(scores.overall["F-Decay"])


def test_json_that_cannot_be_written_is_refused_before_any_work(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written"):
        main_evaluate(tmp_path / "none", tmp_path / "none", tmp_path / "no" / "out.json")


@pytest.mark.parametrize("found, expected", [
    pytest.param(drawn("1. .."), None, id="fits"),
    pytest.param(drawn("1.. ..."), "00000.png: has 3 x 2 pixels, the first frame of .*/t/a has 2 x 2", id="other size"),
    pytest.param(np.full((1, 2, 2), 21), "00000.png: holds the value 21; the protocol takes at most 20", id="21"),
    pytest.param(drawn("v. .."), "holds the value 255, void in the ground truth alone", id="void in a result"),
])  # fmt: skip
def test_refused(tmp_path, found, expected):
    save(tmp_path / "t" / "a", drawn("1. .."))
    save(tmp_path / "r" / "a", found)
    sequences = find_sequences(tmp_path / "t", tmp_path / "r")
    if expected is None:
        assert evaluate(sequences).overall["J-Mean"] == 1
    else:
        with pytest.raises(DatasetError, match=expected):
            evaluate(sequences)


@pytest.mark.parametrize("method", ["rvos", "osvos"])
def test_real_sequences_equal_the_rules(media, method):
    """Published results at 480p, the first frames; OpenCV dilates here, as brute force takes minutes."""
    cv2 = pytest.importorskip("cv2")

    def dilate(mask: np.ndarray, radius: int) -> np.ndarray:
        y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        return cv2.dilate(mask.view(np.uint8), (x * x + y * y <= radius * radius).astype(np.uint8)).view(bool)

    results, truths = media / "annotated" / "results_png" / method, media / "annotated" / "Annotations"
    sequences = []
    for name in sorted(folder.name for folder in results.iterdir()):
        paths = sorted((truths / name).iterdir())[:8]
        sequences.append(Sequence(name, tuple(paths), tuple(results / name / path.name for path in paths)))
    scores = evaluate(sequences)
    for sequence in sequences:
        truth, found = (np.stack([np.asarray(Image.open(path)) for path in paths])
                        for paths in (sequence.truth, sequence.found))  # fmt: skip
        expected = sorted(direct(truth, found, dilate=dilate, edges=fast_boundary_map))
        for one, wanted in zip(scores.per_sequence[sequence.name].objects, expected, strict=True):
            assert (one.object, one.proposal) == wanted[:2]
            np.testing.assert_allclose([one.metrics[m] for m in METRICS[1:]], wanted[2:], rtol=0, atol=1e-12)
    assert 0.3 < scores.overall["J&F-Mean"] < 1
